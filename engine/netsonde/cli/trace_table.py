"""A trace as a table: a row per TTL and responder, with the marks that traceroutes have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netsonde.cli.output import columns, printable
from netsonde.cli.render import milliseconds, percent
from netsonde.model import Reason

Value = Mapping[str, Any]  # of a `trace` observation, a hop or a probe in it

LISTED_MAX = 5  # round-trip times of a row written out; of more their extremes and mean
SILENT = "*"

# ICMP unreachable codes: RFC 792, 1122, 1812; RFC 4443. A port unreachable is a host's answer.
_MARKS_4 = {
    0: "!N", 1: "!H", 2: "!P", 3: "", 5: "!S", 6: "!N", 7: "!H", 8: "!N", 9: "!X", 10: "!X",
    11: "!N", 12: "!H", 13: "!X", 14: "!V", 15: "!C",
}  # fmt: skip
_MARKS_6 = {0: "!N", 1: "!X", 2: "!S", 3: "!H", 4: "", 5: "!X", 6: "!X"}
_UNREACHABLE = {4: 3, 6: 1}
_PARAMETER_PROBLEM = {4: 12, 6: 4}
_TOO_BIG = {4: (3, 4), 6: (2, 0)}

_LABELS, _INTERFACES = 1, 2  # classes of extension objects (RFC 4950, RFC 5837)

_PORTS = {"syn_ack": "open", "rst": "closed"}
_LOSSES = {
    "path": "lost on the path",
    "rate_limited": "rate-limited",
    "return": "lost on the way back",
    "silent": "sends no errors",
    "unknown": "lost for unknown reasons",
}


@dataclass(slots=True)
class Responder:
    """What one address answered at one TTL."""

    rtts_ms: dict[int, float] = field(default_factory=dict)  # by attempt, those in time
    notes: dict[str, None] = field(default_factory=dict)  # in order, each once
    late: int = 0
    duplicates: int = 0

    def take(self, probe: Value, address: str) -> None:
        """Take one of its answers."""
        if probe.get("duplicate"):
            self.duplicates += 1
        elif probe.get("late"):
            self.late += 1
        else:
            self.rtts_ms[probe["attempt"]] = probe["rtt_ms"]
        self.notes |= dict.fromkeys(filter(None, _probe_notes(probe, 6 if ":" in address else 4)))

    def all_notes(self) -> list[str]:
        """Return what there is to say of it."""
        extra = {"late": self.late, "duplicate": self.duplicates}
        return [*self.notes, *(f"{count} {name}" for name, count in extra.items() if count)]


def table_lines(value: Value, names: Mapping[str, str], *, has_loss: bool) -> list[str]:
    """Lay a trace's hops out, a row per responder; names: of addresses.

    has_loss: every hop was asked as often as the others, so that its loss says something.
    """
    begins = _beginnings(value)
    rows = [row for hop in value["hops"] for row in _hop_rows(hop, begins, names)]
    headings = ["TTL", "ADDRESS", "RTT MS", "LOSS", "NOTES"]
    kept = [at for at in range(len(headings)) if has_loss or headings[at] != "LOSS"]
    return columns([headings[at] for at in kept], [[row[at] for at in kept] for row in rows])


def named(address: str, names: Mapping[str, str]) -> str:
    """Return an address with its name, where it has one."""
    return f"{printable(names[address])} ({address})" if address in names else address


def _hop_rows(
    hop: Value, begins: Mapping[int, Sequence[str]], names: Mapping[str, str]
) -> Iterator[list[str]]:
    """Yield a row per responder of a hop, the hop's own notes in the first one."""
    responders: dict[str, Responder] = {}
    lost: list[int] = []
    errors: dict[str, None] = {}
    for probe in hop["probes"]:
        if (address := probe.get("address")) is not None:
            responders.setdefault(address, Responder()).take(probe, address)
        elif probe["error"] == Reason.TIMEOUT:
            lost.append(probe["attempt"])
        else:
            errors[printable(probe["error"])] = None
    loss = _loss_text(responders.values(), lost)
    notes = [*errors, *begins.get(hop["ttl"], ()), *_loss_notes(hop)]
    for number, (address, found) in enumerate((responders or {SILENT: Responder()}).items()):
        is_first = number == 0
        yield [
            f"{hop['ttl']:>3}" if is_first else "",
            named(address, names),
            _rtts_text(found.rtts_ms, lost if is_first and responders else ()),
            loss if is_first else "",
            ", ".join([*found.all_notes(), *(notes if is_first else ())]),
        ]


def _rtts_text(rtts_ms: Mapping[int, float], lost: Sequence[int]) -> str:
    """Write times by attempt, `*` for one that was lost."""
    if len(rtts_ms) + len(lost) <= LISTED_MAX:
        written = {attempt: _number(rtt_ms) for attempt, rtt_ms in rtts_ms.items()}
        written |= dict.fromkeys(lost, SILENT)
        return "  ".join(text for _, text in sorted(written.items()))
    found = list(rtts_ms.values())
    if not found:
        return SILENT
    mean = sum(found) / len(found)
    return f"min {_number(min(found))} avg {_number(mean)} max {_number(max(found))}"


def _loss_text(responders: Iterable[Responder], lost: Sequence[int]) -> str:
    asked = len(lost) + len({attempt for each in responders for attempt in each.rtts_ms})
    return percent(round(100 * len(lost) / asked, 1) if asked else None)


def _number(rtt_ms: float) -> str:
    return milliseconds(rtt_ms).removesuffix(" ms")


# ── notes ──


def _beginnings(value: Value) -> dict[int, list[str]]:
    """Return what begins where: translation, and a narrower path."""
    begins: dict[int, list[str]] = {}
    if (ttl := value.get("nat_ttl")) is not None:
        begins.setdefault(ttl, []).append("NAT begins here")
    if pmtu := value.get("pmtu"):
        # Who says so may be known, and not by which TTL it is reached with a large packet.
        said = [hop["ttl"] for hop in value["hops"] if _is_of(hop, pmtu.get("address"))]
        ttl = pmtu.get("ttl") or min(said, default=0)
        begins.setdefault(ttl, []).append(f"MTU {pmtu['mtu']} from here")
    return begins


def _is_of(hop: Value, address: object) -> bool:
    return address is not None and hop.get("address") == address


def _loss_notes(hop: Value) -> Iterator[str]:
    if (loss_class := hop.get("loss_class")) is not None:
        text = _LOSSES.get(loss_class, printable(loss_class))
        sure = hop.get("loss_confidence")  # 0 to 1, 0 of an unknown cause
        yield f"{text} ({percent(round(100 * sure))})" if sure else text


def _probe_notes(probe: Value, version: int) -> Iterator[str]:
    if (answer := probe.get("tcp")) is not None:
        yield _PORTS.get(answer, printable(answer))
    else:
        yield icmp_mark(version, probe["icmp_type"], probe["icmp_code"], probe.get("mtu") or 0)
    if stack := probe.get("mpls"):
        yield "MPLS " + " / ".join(
            f"{entry['label']} (tc {entry['tc']}, ttl {entry['ttl']})" for entry in stack
        )
    interfaces = probe.get("interfaces") or ()
    yield from map(_interface_text, interfaces)
    told = {_LABELS, _INTERFACES} if interfaces else {_LABELS}
    for each in probe.get("extensions") or ():
        if each["class"] not in told:
            yield f"extension {each['class']}/{each['type']}"
    if probe.get("extensions_untrusted") is not None:
        yield "extension that lies"


def _interface_text(interface: Value) -> str:
    """Say which interface a router told of, by its name if it has one."""
    number = interface.get("if_index")
    shown = interface.get("name") or interface.get("address") or f"number {number}"
    return f"{interface['role'].replace('_', ' ')} {printable(shown)}"


def icmp_mark(version: int, icmp_type: int, code: int, mtu: int) -> str:
    """Return the mark of an ICMP answer, nothing for one that says that the TTL has expired.

    !N no route to the network, !H host unreachable, !P protocol unreachable, !S source route or
    scope, !X prohibited, !V and !C precedence, !F-MTU too big, else !<type-code>.
    """
    if (icmp_type, code) == _TOO_BIG[version]:
        return f"!F-{mtu}"
    if icmp_type == _UNREACHABLE[version]:
        marks = _MARKS_4 if version == 4 else _MARKS_6
        return marks.get(code, f"!<{icmp_type}-{code}>")
    return f"!<{icmp_type}-{code}>" if icmp_type == _PARAMETER_PROBLEM[version] else ""
