"""What `netsonde trace` prints of results, and draws while traces are under way."""

import asyncio
import io
from typing import Any

import click
import pytest
from rich.console import Console

from netsonde.cli.exits import Exit
from netsonde.cli.screen import Screen
from netsonde.cli.trace_graph import ASCII
from netsonde.cli.trace_report import TraceReport, trace_lines
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.model import FailureSource, Measurement, Outcome, Reason, TraceSpec
from netsonde.probe.base import Recorder
from netsonde.probe.trace.answers import Flag, Kind
from support.traces import answer, hop, lost, probe, reached, trace_value

ERASE_LINE, SHOW_CURSOR = "\x1b[2K", "\x1b[?25h"  # ECMA-48 EL, DECTCEM
ERASE_LINES = "\r\x1b[12AK"  # of what moves up and erases


def result(
    value: dict[str, Any], spec: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "kind": "trace",
        "spec": {"kind": "trace", "host": value["host"], **(spec or {})},
        "outcome": "ok",
        "observations": [{"name": "trace", "value": value}],
        **more,
    }


def lines(value: dict[str, Any], spec: dict[str, Any] | None = None, **more: Any) -> list[str]:
    return [click.unstyle(line) for line in trace_lines(result(value, spec, **more))]


def failed(reason: str, message: str) -> dict[str, Any]:
    error = {"reason": reason, "failure_source": "path", "message": message}
    return {"outcome": "target_error", "error": error}


# ── a result ──


def test_a_trace_is_a_title_a_table_and_an_end() -> None:
    value = reached("192.0.2.9", ["192.0.2.1"])
    assert lines(value) == [
        "trace to 192.0.2.9 by icmp",
        "TTL  ADDRESS    RTT MS  NOTES",
        "  1  192.0.2.1  1.000",
        "  2  192.0.2.9  2.000",
        "ok            trace  192.0.2.9  reached, 2 hops, 2.000 ms, in 1.234 s",
    ]


def test_the_title_says_what_was_traced() -> None:
    value = reached("192.0.2.9") | {"host": "www.example", "method": "tcp", "port": 443}
    assert lines(value)[0] == "trace to www.example (192.0.2.9) by tcp to port 443"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("gap_limit", "stopped at the gap limit, 2 hops, in 1.234 s; timeout: h: no answer"),
        ("max_hops", "stopped at the last hop allowed, 2 hops, in 1.234 s; timeout: h: no answer"),
        ("unreachable", "refused, 2 hops, in 1.234 s; timeout: h: no answer"),
        ("loop", "stopped in a loop, 2 hops, in 1.234 s; timeout: h: no answer"),
        ("cancelled", "2 hops, in 1.234 s; timeout: h: no answer"),
    ],
)
def test_the_end_says_why_it_stopped(stop: str, text: str) -> None:
    value = trace_value("h", hop(1, probe("192.0.2.1", 1.0)), hop(2, lost()), stop_reason=stop)
    last = lines(value, **failed("timeout", "h: no answer"))[-1]
    assert last == f"target_error  trace  h  {text}"


def test_without_a_hop_there_is_the_cause_alone() -> None:
    value = trace_value("h", stop_reason="resolve_failed")
    assert lines(value, **failed("resolve_failed", "h: no such name")) == [
        "target_error  trace  h  resolve_failed: h: no such name"
    ]


def test_loss_has_a_column_with_all_probes_only() -> None:
    value = reached("192.0.2.9")
    assert "LOSS" not in lines(value)[1]
    assert "LOSS" in lines(value, {"all_probes": True})[1]


def test_names_stand_before_addresses() -> None:
    shown = result(reached("192.0.2.9", ["192.0.2.1"]))
    names = {"name": "trace_names", "value": {"names": {"192.0.2.1": "gw.example"}}}
    shown["observations"].append(names)
    assert "  1  gw.example (192.0.2.1)  1.000" in trace_lines(shown)


MULTIPATH = {
    "confidence": 99.5,
    "nodes": [
        {"ttl": 1, "address": "192.0.2.1"},
        {"ttl": 2, "address": "192.0.2.2"},
        {"ttl": 2, "address": "192.0.2.3"},
        {"ttl": 3, "address": "192.0.2.9"},
    ],
    "links": [
        {"ttl": 1, "from": "192.0.2.1", "to": "192.0.2.2"},
        {"ttl": 1, "from": "192.0.2.1", "to": "192.0.2.3"},
        {"ttl": 2, "from": "192.0.2.2", "to": "192.0.2.9"},
        {"ttl": 2, "from": "192.0.2.3", "to": "192.0.2.9"},
    ],
    "flows": 12,
}


def test_a_graph_follows_the_table() -> None:
    value = reached("192.0.2.9", ["192.0.2.1", "192.0.2.2"]) | {"multipath": MULTIPATH}
    assert lines(value)[5:-1] == [
        "paths: 4 nodes, 4 links, up to 2 side by side, 99.5 % sure",
        "  1  o        192.0.2.1",
        "     ├───┐",
        "  2  o   │    192.0.2.2",
        "     │   o    192.0.2.3",
        "     ├───┘",
        "  3  o        192.0.2.9",
    ]
    assert all(line.isascii() for line in trace_lines(result(value), ASCII))
    value["multipath"] = MULTIPATH | {"cut": True}
    title = "paths: 4 nodes, 4 links, up to 2 side by side; a limit ended the search"
    assert lines(value)[5] == title


@pytest.mark.parametrize(
    ("pmtu", "text"),
    [
        ({"mtu": 1500, "black_hole": False}, "path MTU 1500 bytes"),
        (
            {"mtu": 1400, "ttl": 3, "address": "192.0.2.3", "black_hole": False},
            "path MTU 1400 bytes, narrowed at TTL 3 by 192.0.2.3",
        ),
        (
            {"mtu": 1280, "ttl": 4, "black_hole": True},
            "path MTU 1280 bytes, narrowed at TTL 4; a black hole: no one says so",
        ),
        (
            {"mtu": 1400, "address": "192.0.2.3", "black_hole": False},
            "path MTU 1400 bytes, narrowed by 192.0.2.3",
        ),
        ({"mtu": 1280, "black_hole": False, "cut": True}, "path MTU 1280 bytes or more"),
        ({"mtu": None, "black_hole": False}, "path MTU not found: no packet got an answer"),
    ],
)
def test_the_path_mtu(pmtu: dict[str, Any], text: str) -> None:
    assert lines(reached("192.0.2.9") | {"pmtu": pmtu})[-2] == text


# ── a report ──


def measurement(clock: ManualClock, value: dict[str, Any], **failure: Any) -> Measurement:
    record = Recorder(clock)
    record.observe("trace", value)
    if failure:
        record.fail(**failure)
    else:
        record.ok()
    return record.measurement()


DENIED = {
    "outcome": Outcome.AGENT_ERROR,
    "reason": Reason.TX_ERROR,
    "source": FailureSource.SELF,
    "message": "no buffer space",
}


async def test_the_worst_trace_is_the_code_and_the_first_cause_is_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = ManualClock()
    report = TraceReport(clock, as_json=False)
    for host, failure in (("a", {}), ("b", DENIED), ("c", DENIED)):
        spec = TraceSpec(host=host)
        report.start(spec)
        report.add(spec, measurement(clock, reached("192.0.2.9") | {"host": host}, **failure))
    report.begin()
    report.end()
    assert report.code == Exit.CANNOT
    out, err = capsys.readouterr()
    assert err == "netsonde: trace b: no buffer space\n"
    assert out.count("\n\ntrace to ") == 2
    assert out.endswith("tx_error: no buffer space\n")


class Display:
    """A report on a screen of 80 by 12 that keeps all that was drawn."""

    def __init__(self) -> None:
        self.drawn = io.StringIO()
        self.clock = ManualClock()
        console = Console(
            file=self.drawn, force_terminal=True, width=80, height=12, legacy_windows=False
        )
        self.report = TraceReport(self.clock, as_json=False, screen=Screen(console))
        self.report.begin()

    def begin(self, host: str) -> TraceSpec:
        spec = TraceSpec(host=host)
        self.report.start(spec)
        return spec

    def take(self, spec: TraceSpec, *args: Any) -> None:
        assert self.report.watcher is not None
        self.report.watcher(spec, answer(*args))

    def text(self) -> list[str]:
        return self.report._progress_text().splitlines()


@pytest.fixture
def display() -> Display:
    return Display()


async def test_hops_fill_the_table_as_they_answer(display: Display) -> None:
    display.report.total = 3
    spec, other = display.begin("one.example"), display.begin("one.example")
    display.take(spec, 2, "192.0.2.2", 2.0)
    display.take(spec, 1, "192.0.2.1", 1.0)
    display.take(spec, 2, "192.0.2.7", 3.0, 1)
    display.take(spec, 1, "192.0.2.1", 9.0, 0, Flag.DUPLICATE)
    display.take(other, 1, "2001:db8::1", 4.0)
    await display.clock.advance(2 * NS_PER_S)
    assert [line.split() for line in display.text()] == [
        ["trace", "to", "one.example", "by", "icmp"],
        ["TTL", "ADDRESS", "RTT", "MS", "NOTES"],
        ["1", "192.0.2.1", "1.000"],
        ["2", "192.0.2.2", "2.000"],
        ["192.0.2.7", "3.000"],
        [],
        ["trace", "to", "one.example", "by", "icmp"],
        ["TTL", "ADDRESS", "RTT", "MS", "NOTES"],
        ["1", "2001:db8::1", "4.000"],
        [],
        ["0", "of", "3", "done,", "2", "under", "way,", "2", "s"],
    ]


async def test_what_owes_an_answer_is_open_and_nothing_follows_the_destination(
    display: Display,
) -> None:
    spec = display.begin("192.0.2.9")
    display.take(spec, 5, "192.0.2.9", 5.0, 0, 0, Kind.ECHO)
    display.take(spec, 4, "192.0.2.9", 4.0, 0, 0, Kind.ECHO)
    display.take(spec, 2, "192.0.2.2", 2.0)
    display.take(spec, 3, "192.0.2.3", -1.0, 0, 0, Kind.REFUSED)
    assert [line.split() for line in display.text()[2:-2]] == [
        ["1", "*"],
        ["2", "192.0.2.2", "2.000"],
        ["3", "*"],
        ["4", "192.0.2.9", "4.000"],
    ]


async def test_more_than_fits_is_left_out(display: Display) -> None:
    spec = display.begin("far.example")
    for ttl in range(1, 31):
        display.take(spec, ttl, f"192.0.2.{ttl}", 1.0)
    display.begin("other.example")
    shown = display.text()
    assert len(shown) == 11
    assert [line.split()[0] for line in shown[:-2]] == [str(ttl) for ttl in range(22, 31)]
    assert shown[-1] == "0 done, 2 under way, 0 s"


async def test_what_has_ended_is_written_above_what_is_under_way(
    display: Display, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, other = display.begin("192.0.2.9"), display.begin("other.example")
    display.report._redraw()
    assert "trace to 192.0.2.9" in display.drawn.getvalue()
    before = len(display.drawn.getvalue())
    display.report.add(spec, measurement(display.clock, reached("192.0.2.9")))
    await asyncio.sleep(0)  # the loop's next turn writes it
    assert "ok            trace  192.0.2.9  reached, 1 hop" in capsys.readouterr().out
    erased, _, drawn = display.drawn.getvalue()[before:].rpartition(SHOW_CURSOR)
    assert ERASE_LINE in erased
    assert "trace to other.example" in drawn
    assert "192.0.2.9" not in drawn
    assert "1 done, 1 under way" in drawn
    display.report.drop(other)
    display.report.end()
    assert display.drawn.getvalue().rpartition(SHOW_CURSOR)[2].strip(ERASE_LINES) == ""


async def test_json_and_pipes_are_told_of_no_answer() -> None:
    assert TraceReport(ManualClock(), as_json=True).watcher is None


def test_a_screen_that_has_gone_is_drawn_no_more() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    screen = Screen(Console(file=Gone(), force_terminal=True, width=80, height=12))
    screen.show("a")
    assert not screen.is_wanted
    screen.clear()
    screen.show("b")
