"""What the bodies say that pass the proxy, and the mark it leaves on a lease's URL. Pure.

Every lease in the answer to a claim has its URL extended by the agent and the lease id, so that the
target knows under which lease it is measured, whatever agent and server believe.
"""

from typing import Any

import msgspec
from msgspec import Struct, field

from support.chaos.evidence import ConfigSaid, Grant, Metered

# Counters that are compared at the end.
COUNTED = (
    "netsonde_agent_results_total",
    "netsonde_agent_reported_total",
    "netsonde_agent_leases_total",
    "netsonde_agent_requests_total",
)


class Seen(Struct, kw_only=True):
    """What a request and its answer were about; see `evidence.Exchange`."""

    asked: int = 0
    claim: str = ""
    grants: list[Grant] = field(default_factory=list)
    extended: list[tuple[int, int]] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    results: list[tuple[int, str]] = field(default_factory=list)
    metered: Metered | None = None
    config: ConfigSaid | None = None


class _Item(Struct):
    lease_id: int


class _Request(Struct):
    capacities: dict[str, int] = {}
    claim_id: str = ""
    completed: list[_Item] = []
    cancelled: list[_Item] = []


class _Sample(Struct):
    name: str
    value: float
    labels: dict[str, str] = {}


class _Metrics(Struct):
    agent_id: int
    instance_id: str
    seq: int
    start_time: str
    counters: list[_Sample] = []
    gauges: list[msgspec.Raw] = []
    histograms: list[msgspec.Raw] = []


class _Taken(Struct):
    stored: int = 0
    superseded: bool = False


class _Heartbeat(Struct):
    config: ConfigSaid | None = None


class _Outcome(Struct):
    lease_id: int
    new_deadline_ms: int


class _Verdict(Struct):
    lease_id: int
    status: str


class _Line(Struct):
    seq: int
    lease_id: int


class _Answer(Struct):
    t: str
    seq: int = 0
    status: str = ""


class _Extended(Struct):
    outcomes: list[_Outcome] = []


class _Reported(Struct):
    results: list[_Verdict] = []


_request = msgspec.json.Decoder(_Request)
_extended = msgspec.json.Decoder(_Extended)
_reported = msgspec.json.Decoder(_Reported)
_line = msgspec.json.Decoder(_Line)
_answer = msgspec.json.Decoder(_Answer)
_metrics = msgspec.json.Decoder(_Metrics)
_taken = msgspec.json.Decoder(_Taken)
_heartbeat = msgspec.json.Decoder(_Heartbeat)
_READ = frozenset({"claim", "report"})


def read_request(verb: str, body: bytes) -> Seen:
    """Read what an agent asks, or says of itself."""
    if verb == "metrics":
        return Seen(metered=_read_metrics(body))
    if verb == "heartbeat":
        return Seen(config=_heartbeat.decode(body).config)
    if verb not in _READ:
        return Seen()
    request = _request.decode(body)
    items = [item.lease_id for item in (*request.completed, *request.cancelled)]
    # A registration names the slots too, but asks for nothing.
    asked = sum(request.capacities.values())
    return Seen(asked=asked, claim=request.claim_id, items=items)


def read_answer(verb: str, agent: int, body: bytes, seen: Seen) -> bytes:
    """Add what a successful answer grants to seen; return the body to pass on."""
    if verb == "claim":
        claimed = msgspec.json.decode(body)
        seen.grants = [_marked(lease, agent) for lease in claimed["leases"]]
        return msgspec.json.encode(claimed)
    if verb == "extend":
        answer = _extended.decode(body)
        seen.extended = [(one.lease_id, one.new_deadline_ms) for one in answer.outcomes]
    elif verb == "report":
        seen.results = [(one.lease_id, one.status) for one in _reported.decode(body).results]
    elif verb == "metrics" and seen.metered is not None:
        taken = _taken.decode(body)
        seen.metered = msgspec.structs.replace(
            seen.metered, stored=taken.stored, is_superseded=taken.superseded
        )
    return body


def _read_metrics(body: bytes) -> Metered:
    envelope = _metrics.decode(body)
    return Metered(
        agent_id=envelope.agent_id,
        run=f"{envelope.instance_id} {envelope.start_time}",
        seq=envelope.seq,
        samples=len(envelope.counters) + len(envelope.gauges) + len(envelope.histograms),
        values={
            series_name(one.name, one.labels): one.value
            for one in envelope.counters
            if one.name in COUNTED
        },
    )


def series_name(name: str, labels: dict[str, str]) -> str:
    """Return what a series is called in logs."""
    return name + "".join(f" {key}={value}" for key, value in sorted(labels.items()))


def read_claim_lines(lines: list[bytes], agent: int) -> tuple[list[bytes], list[list[Grant]]]:
    """Leave the mark on the leases of a claim's lines; return the lines, and what each grants."""
    passed: list[bytes] = []
    grants: list[list[Grant]] = []
    for line in lines:
        decoded = msgspec.json.decode(line)
        is_lease = decoded.get("t") == "lease"
        grants.append([_marked(decoded["lease"], agent)] if is_lease else [])
        passed.append(msgspec.json.encode(decoded) if is_lease else line)
    return passed, grants


def read_report_lines(lines: list[bytes]) -> dict[int, int]:
    """Return the leases that a report's lines are about, by the lines' numbers."""
    read = [_line.decode(line) for line in lines]
    return {one.seq: one.lease_id for one in read}


def read_verdict_lines(lines: list[bytes]) -> list[tuple[int, str]]:
    """Return the numbers that lines of a report's answer settle, and how."""
    read = [_answer.decode(line) for line in lines]
    return [(one.seq, one.status) for one in read if one.t == "a"]


def report_of(agent_id: int, lines: list[bytes]) -> bytes:
    """Make a report in one piece of a report's lines."""
    items = [msgspec.json.decode(line) for line in lines]
    return msgspec.json.encode({"agent_id": agent_id, "completed": items, "cancelled": []})


class LineCutter:
    """Cuts what comes into complete lines, without their ends."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that data completes."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        return [line for line in lines if line]


def _marked(lease: dict[str, Any], agent: int) -> Grant:
    """Leave the mark on a lease; return what it says."""
    lease["spec"]["url"] += f"/a{agent}/l{lease['lease_id']}"
    return Grant(
        lease_id=lease["lease_id"],
        task_id=lease["task_id"],
        until_ms=lease["lease_until_ms"],
        after_ms=lease["granted_after_ms"],
        attempt=lease["attempt"],
        max_attempts=lease["max_attempts"],
    )


def read_path(path: bytes) -> tuple[int, int, int]:
    """Read a marked path, `/t/TASK/aAGENT/lLEASE`: the task's number, the agent, the lease id.

    Raises:
        ValueError: it is none.
    """
    parts = path.split(b"/")
    if len(parts) != 5 or parts[0] or parts[1] != b"t" or parts[3][:1] + parts[4][:1] != b"al":
        raise ValueError(f"not a marked path: {path[:200]!r}")
    return int(parts[2]), int(parts[3][1:]), int(parts[4][1:])
