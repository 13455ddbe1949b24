"""What `netsonde trace` prints: a table per target that fills as hops answer, or an object."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import structs

from netsonde import wire
from netsonde.cli.output import printable
from netsonde.cli.render import Headline, line_text, observed, trace_text, with_cause
from netsonde.cli.report import Report
from netsonde.cli.screen import Screen
from netsonde.cli.trace_graph import ASCII, BOX, Glyphs, graph_lines
from netsonde.cli.trace_table import Value, named, table_lines
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.model import Measurement, TaskKind, TraceSpec
from netsonde.probe.trace.answers import Answer
from netsonde.probe.trace.prober import Watch

ANSWERS_KEPT_MAX = 128  # of a hop, while its trace is under way
NAMES = "trace_names"  # the observation of addresses' names

_STOPS = {
    "completed": "reached",
    "gap_limit": "stopped at the gap limit",
    "max_hops": "stopped at the last hop allowed",
    "unreachable": "refused",
    "loop": "stopped in a loop",
}


class TraceReport(Report):
    """Writes traces as they end; those under way are drawn on the screen, where there is one."""

    def __init__(self, clock: Clock, *, as_json: bool, screen: Screen | None = None) -> None:
        super().__init__(clock, TaskKind.TRACE, screen)
        self._as_json = as_json
        self._screen = screen
        self._done = 0
        self._under_way: dict[int, UnderWay] = {}  # by the identity of the spec
        self._glyphs = BOX if sys.stdout.encoding.lower().startswith("utf") else ASCII

    def start(self, spec: TraceSpec) -> None:
        """Note that a trace begins; its answers and its end come with the same object."""
        self._under_way[id(spec)] = UnderWay(spec)

    @property
    def watcher(self) -> Watch | None:
        """What wants to know of every answer, where they are drawn as they come."""
        return None if self._screen is None else self._watch

    def _watch(self, spec: TraceSpec, answer: Answer) -> None:
        self._under_way[id(spec)].take(answer)

    def drop(self, spec: TraceSpec) -> None:
        """Note that a trace ends of which there is nothing to tell."""
        del self._under_way[id(spec)]

    def add(self, spec: TraceSpec, measurement: Measurement) -> None:
        """Count a trace that has ended, and write it."""
        self.drop(spec)
        if self._failure is not None:
            return
        if measurement.error is not None:
            self._judge(spec.host, measurement.outcome, measurement.error)
        body = wire.encode_result(TaskKind.TRACE, spec, measurement)
        if self._as_json:
            self._outlet.take(body + b"\n")
        else:
            gap = "\n" if self._done else ""
            text = "\n".join(trace_lines(wire.parse(body), self._glyphs))
            self._write(f"{gap}{text}\n")
        self._done += 1
        if self._screen is not None:
            asyncio.get_running_loop().call_soon(self._redraw)  # when that has been written

    def end(self) -> None:
        """Write what is left.

        Raises:
            OSError: nobody reads any more.
        """
        self._progress.clear()
        if self._began_ns is not None and self._failure is None:
            self._outlet.flush()
            self.check()

    def _redraw(self) -> None:
        if self._progress.is_wanted and self._under_way:
            self._progress.show(self._progress_text())

    def _progress_text(self) -> str:
        lines = [] if self._screen is None else self._tables(self._screen.height - 1)
        seconds = self._elapsed_ns() // NS_PER_S
        done = f"{self._done_text(self._done)}, {len(self._under_way)} under way, {seconds} s"
        return "\n".join([*lines, done])

    def _tables(self, room: int) -> list[str]:
        """Draw the oldest traces under way that there is room for; of a long one the last hops."""
        lines: list[str] = []
        for each in self._under_way.values():
            table = each.lines()
            if lines and len(lines) + len(table) + 1 > room:
                break
            lines += [*table[-(room - 1) :], ""]
        return lines


class UnderWay:
    """A trace that has not ended, as far as it is known."""

    def __init__(self, spec: TraceSpec) -> None:
        self._spec = spec
        self._probes: dict[int, list[Value]] = {}
        self._end_ttl = spec.max_hops  # where the destination has answered

    def take(self, answer: Answer) -> None:
        """Take an answer."""
        if answer.is_end(self._spec.method):
            self._end_ttl = min(self._end_ttl, answer.ttl)
        probes = self._probes.setdefault(answer.ttl, [])
        if answer.is_counted and len(probes) < ANSWERS_KEPT_MAX:
            probes.append(
                {
                    "attempt": answer.attempt,
                    "address": answer.address,
                    "rtt_ms": answer.rtt_ns / NS_PER_MS,
                    "icmp_type": answer.icmp_type,
                    "icmp_code": answer.icmp_code,
                }
            )

    def lines(self) -> list[str]:
        """Draw what is known, as far as somebody has answered."""
        last_ttl = min(max(self._probes, default=0), self._end_ttl)
        ttls = range(self._spec.first_hop, last_ttl + 1)
        hops = [{"ttl": ttl, "probes": self._probes.get(ttl, [])} for ttl in ttls]
        title = title_text(structs.asdict(self._spec))
        return [title, *(table_lines({"hops": hops}, {}, has_loss=False) if hops else ())]


# ── a trace that has ended ──


def trace_lines(result: Mapping[str, Any], glyphs: Glyphs = BOX) -> list[str]:
    """Lay a result out: its hops, its graph, its path MTU, and how it ended."""
    value = observed(result, "trace")
    names = observed(result, NAMES).get("names") or {}
    lines: list[str] = []
    if value.get("hops"):
        has_loss = bool(result["spec"].get("all_probes"))
        lines += [title_text(value), *table_lines(value, names, has_loss=has_loss)]
    if multipath := value.get("multipath"):
        lines += [_graph_title(multipath), *graph_lines(multipath, names, glyphs=glyphs)]
    if pmtu := value.get("pmtu"):
        lines.append(pmtu_text(pmtu, names))
    return [*lines, line_text(_headline(result, value))]


def title_text(value: Value) -> str:
    """Say what is traced, and how."""
    host, address = printable(value["host"]), value.get("address")
    to = host if address in (None, value["host"]) else f"{host} ({address})"
    port = f" to port {value['port']}" if value.get("port") else ""
    return f"trace to {to} by {value.get('method', 'icmp')}{port}"


def pmtu_text(pmtu: Value, names: Mapping[str, str]) -> str:
    """Say how large a packet may be, and who lets no larger one pass."""
    if pmtu["mtu"] is None:
        return "path MTU not found: no packet got an answer"
    text = f"path MTU {pmtu['mtu']} bytes"
    if pmtu.get("cut"):
        text += " or more"
    ttl, address = pmtu.get("ttl"), pmtu.get("address")
    if ttl is not None or address is not None:
        text += ", narrowed"
    if ttl is not None:
        text += f" at TTL {ttl}"
    if address is not None:
        text += f" by {named(address, names)}"
    return f"{text}; a black hole: no one says so" if pmtu.get("black_hole") else text


def _graph_title(multipath: Value) -> str:
    nodes = multipath["nodes"]
    widest = max(Counter(node["ttl"] for node in nodes).values(), default=0)
    counts = f"{_count(nodes, 'node')}, {_count(multipath['links'], 'link')}"
    found = f"paths: {counts}, up to {widest} side by side"
    if multipath.get("cut"):
        return f"{found}; a limit ended the search"
    return f"{found}, {multipath['confidence']:g} % sure"


def _count(what: Sequence[Any], name: str) -> str:
    return f"{len(what)} {name}{'' if len(what) == 1 else 's'}"


def _headline(result: Mapping[str, Any], value: Value) -> Headline:
    outcome, host = str(result["outcome"]), printable(result["spec"]["host"])
    text = ", ".join(_ending(result, value))
    if (error := result.get("error")) is not None:
        text = with_cause(text, error["reason"], error["message"])
    return Headline("trace", host, outcome, text)


def _ending(result: Mapping[str, Any], value: Value) -> Iterator[str]:
    """Yield whether it was reached or why it stopped, how far it came, how long it took."""
    if not (far := trace_text(result)):
        return
    if (stop := _STOPS.get(value.get("stop_reason") or "")) is not None:
        yield stop
    yield far
    yield f"in {value['total_duration_ms'] / 1000:.3f} s"
