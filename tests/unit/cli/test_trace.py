"""`netsonde trace` with a prober that answers from a script: options, targets, exit codes."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from netsonde.cli import trace as command
from netsonde.cli import tracing
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from netsonde.cli.trace import SECTIONS
from netsonde.cli.trace_names import ReverseNames
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import PrivilegeError, ResolveError, TargetDeniedError
from netsonde.model import FailureSource, Outcome, Reason, TaskKind, TraceSpec
from netsonde.probe.base import Recorder
from netsonde.probe.privilege import GRANT_HINT
from support.driving import finish
from support.traces import reached


class Stage:
    """A prober that ends every trace the way its target's name says, on a clock that never waits.

    running, most: traces at once. hold_s: how long each takes.
    """

    kind = TaskKind.TRACE

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.specs: list[TraceSpec] = []
        self.rates_pps: list[float] = []
        self.running = self.most = 0
        self.hold_s = 0.0
        self.closed = 0
        self.asked: list[str] = []

    async def run(self, spec: TraceSpec, record: Recorder) -> None:
        self.specs.append(spec)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.clock.sleep(round(self.hold_s * NS_PER_S))
        except asyncio.CancelledError:
            value = reached(spec.host, ["192.0.2.1"]) | {"stop_reason": "cancelled"}
            record.observe("trace", value)
            raise
        finally:
            self.running -= 1
        self._end(spec, record)

    def _end(self, spec: TraceSpec, record: Recorder) -> None:
        record.observe("trace", reached(spec.host, ["192.0.2.1"]))
        if "silent" in spec.host:
            record.fail(Outcome.TARGET_ERROR, Reason.TIMEOUT, FailureSource.PATH, "no answer")
        elif "unknown" in spec.host:
            raise ResolveError("the name does not exist")
        elif "denied" in spec.host:
            raise TargetDeniedError("multicast is never probed")
        elif "unprivileged" in spec.host:
            raise PrivilegeError(f"trace by {spec.method}: not permitted\n{GRANT_HINT}")
        elif "broken" in spec.host:
            record.fail(Outcome.AGENT_ERROR, Reason.TX_ERROR, FailureSource.SELF, "no buffers")
        else:
            record.ok()

    async def close(self) -> None:
        self.closed += 1

    def open(self, clock: Any, resolver: Any, options: Any, report: Any) -> "Stage":
        self.rates_pps += [budget.rate_pps for budget in options.budgets]
        return self

    def drive(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(finish(self.clock, work))

    async def name_of(self, address: str) -> str | None:
        self.asked.append(address)
        return "gw.example" if address == "192.0.2.1" else None


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(command, "run", stage.drive)
    monkeypatch.setattr(command, "SystemClock", lambda: stage.clock)
    monkeypatch.setattr(tracing, "open_prober", stage.open)
    monkeypatch.setattr(tracing, "ReverseNames", lambda: ReverseNames(stage.name_of))
    return stage


def trace(*args: str, **more: Any) -> Result:
    return CliRunner().invoke(main, ["trace", *args], **more)


def objects(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# ── what was typed ──


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ([], {}),
        (["-m", "9", "-f", "2", "-q", "1", "--gap-limit", "3", "-w", "100ms", "-6"],
         {"max_hops": 9, "first_hop": 2, "probes_per_hop": 1, "gap_limit": 3, "timeout_ms": 100,
          "family": 6}),
        (["--max-hops", "255", "--first-hop", "255", "--probes", "100", "--timeout", "1s", "-4"],
         {"max_hops": 255, "first_hop": 255, "probes_per_hop": 100, "timeout_ms": 1000,
          "family": 4}),
        (["--method", "tcp", "-p", "443"], {"method": "tcp", "port": 443}),
        (["--method", "udp", "--port", "65535", "-s", "99", "--dscp", "46"],
         {"method": "udp", "port": 65_535, "size": 99, "dscp": 46}),
        (["--all-probes", "-i", "5ms", "--pmtud"],
         {"all_probes": True, "interval_ms": 5, "pmtud": True}),
        (["--multipath"], {"multipath": "mda"}),
        (["--multipath", "--confidence", "99.5"], {"multipath": "mda", "confidence": 99.5}),
        (["-S", "127.0.0.1", "-I", "lo", "--mark", "7"],
         {"source": "127.0.0.1", "interface": "lo", "mark": 7}),
    ],
)  # fmt: skip
def test_options_become_the_spec(stage: Stage, args: list[str], fields: dict[str, Any]) -> None:
    done = trace("h.example", *args, "--json")
    assert done.exit_code == Exit.OK, done.stderr
    assert stage.specs == [TraceSpec(host="h.example", **fields)]
    assert stage.closed == 1
    assert objects(done)[0]["spec"] == {"kind": "trace", "host": "h.example", **fields}


def test_a_rate_becomes_the_engines(stage: Stage) -> None:
    trace("h.example", "--rate", "250.5")
    trace("h.example")
    assert stage.rates_pps == [250.5]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--targets"]),
        (["h", "-m", "0"], ["max_hops", "1 to 255", "0"]),
        (["h", "-m", "300"], ["max_hops", "1 to 255", "300"]),
        (["h", "-f", "9", "-m", "8"], ["first_hop", "1 to max_hops, 8"]),
        (["h", "-q", "101"], ["probes_per_hop", "1 to 100"]),
        (["h", "-q", "few"], ["probes_per_hop", "1 to 100", "few"]),
        (["h", "--gap-limit", "0"], ["gap_limit", "1 to 255"]),
        (["h", "--method", "gre"], ["method", "icmp, tcp, udp"]),
        (["h", "--method", "udp", "-p", "65536"], ["port", "1 to 65535"]),
        (["h", "--method", "tcp", "-p", "0"], ["port", "1 to 65535"]),
        (["h", "-p", "80"], ["port", "udp or tcp"]),
        (["h", "--method", "tcp", "--pmtud"], ["pmtud", "icmp or udp"]),
        (["h", "--confidence", "99"], ["--confidence", "--multipath"]),
        (["h", "--multipath", "--confidence", "40"], ["confidence", "50 to 99.9", "40"]),
        (["h", "--multipath", "--confidence", "nan"], ["confidence", "50 to 99.9", "nan"]),
        (["h", "-w", "2h"], ["timeout_ms", "1 to 60000"]),
        (["h", "-w", "soon"], ["--timeout", "500ms"]),
        (["h", "-s", "8"], ["size", "18 to 65507"]),
        (["h", "--dscp", "64"], ["dscp", "0 to 63"]),
        (["h", "--parallel", "0"], ["--parallel", "1 to 65536", "0"]),
        (["h", "--parallel", "all"], ["--parallel", "1 to 65536", "all"]),
        (["h", "--rate", "0"], ["--rate", "0.000001 to 1000000000"]),
        (["h", "-I", "nosuch0"], ["nosuch0"]),
        (["h", "-S", "198.51.100.77"], ["198.51.100.77", "not an address of this host"]),
        (["a b"], ["host", "a b"]),
        (["192.0.2.1", "10.0.0.0/7"], ["10.0.0.0/7", "/8 or longer"]),
        (["192.0.2.1", "--targets", "/nonexistent/list"], ["/nonexistent/list", "No such file"]),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_sent(
    stage: Stage, args: list[str], words: list[str]
) -> None:
    done = trace(*args)
    assert done.exit_code == Exit.USAGE, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("netsonde: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert stage.specs == []


def test_every_option_stands_under_a_heading_of_the_help() -> None:
    done = trace("--help")
    assert done.exit_code == Exit.OK
    for heading in SECTIONS:
        assert f"\n{heading}:\n" in done.stdout
    other = done.stdout.partition("\nOther:\n")[2].partition("\n\n")[0]
    assert other.split() == ["-h,", "--help", "Show", "this", "message", "and", "exit."]
    assert "netsonde trace --multipath --confidence 99 example.net\n" in done.stdout
    assert "  3  could not measure" in done.stdout
    assert "!X" in done.stdout


# ── targets ──


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[bytes], str]:
    """Write a list; return the name of its file."""

    def write(content: bytes) -> str:
        (tmp_path / "list").write_bytes(content)
        return str(tmp_path / "list")

    return write


def test_prefixes_and_lists_follow_the_arguments(
    stage: Stage, listed: Callable[[bytes], str]
) -> None:
    path = listed(b"192.0.2.4/31\n# nothing\n  two.example # it\n")
    done = trace("one.example", "192.0.2.8/30", "--targets", path, "--parallel", "1", "--json")
    assert done.exit_code == Exit.OK, done.stderr
    assert [spec.host for spec in stage.specs] == [
        "one.example", "192.0.2.9", "192.0.2.10", "192.0.2.4", "192.0.2.5", "two.example",
    ]  # fmt: skip


def test_standard_input_is_a_list(stage: Stage) -> None:
    done = trace("--targets", "-", input="")
    assert (done.exit_code, done.stdout) == (Exit.OK, "")


def test_lines_that_are_no_targets_are_results(
    stage: Stage, listed: Callable[[bytes], str]
) -> None:
    lines = [b"192.0.2.1", b"\xff\xfe\0", b"a" * 5000, b"10.0.0.0/2", b"x y", b"1.2.3"]
    path = listed(b"\n".join(lines))
    done = trace("--json", "--targets", path)
    assert done.exit_code == Exit.TARGET_FAILED
    assert done.stderr == ""
    found = objects(done)
    assert [spec.host for spec in stage.specs] == ["192.0.2.1"]
    failed = [each for each in found if each["outcome"] != "ok"]
    assert len(failed) == len(lines) - 1
    assert {each["error"]["reason"] for each in failed} == {"resolve_failed"}
    for each in failed:
        (resolution, value) = each["observations"]
        assert resolution["name"] == "trace_resolution"
        assert (value["name"], value["value"]["stop_reason"]) == ("trace", "resolve_failed")
    assert "\x1b" not in trace("--targets", listed(b"\x1b[31mred\n")).stdout


@pytest.mark.parametrize(("args", "most"), [(["--parallel", "3"], 3), ([], command.PARALLEL)])
def test_traces_at_once_are_bounded(stage: Stage, args: list[str], most: int) -> None:
    stage.hold_s = 1
    done = trace("192.0.2.0/24", *args)
    assert done.exit_code == Exit.OK
    assert len(stage.specs) == 254
    assert stage.most == most


# ── what is printed ──


def test_tables_stand_apart(stage: Stage) -> None:
    done = trace("192.0.2.8", "192.0.2.9")
    assert done.stdout == (
        "trace to 192.0.2.8 by icmp\n"
        "TTL  ADDRESS    RTT MS  NOTES\n"
        "  1  192.0.2.1  1.000\n"
        "  2  192.0.2.8  2.000\n"
        "ok            trace  192.0.2.8  reached, 2 hops, 2.000 ms, in 1.234 s\n"
        "\n"
        "trace to 192.0.2.9 by icmp\n"
        "TTL  ADDRESS    RTT MS  NOTES\n"
        "  1  192.0.2.1  1.000\n"
        "  2  192.0.2.9  2.000\n"
        "ok            trace  192.0.2.9  reached, 2 hops, 2.000 ms, in 1.234 s\n"
    )
    assert done.stderr == ""


def test_json_is_the_result(stage: Stage) -> None:
    (result,) = objects(trace("192.0.2.9", "--ndjson"))
    assert result["spec"] == {"kind": "trace", "host": "192.0.2.9"}
    assert [each["name"] for each in result["observations"]] == ["trace"]
    assert {"version", "clock"} <= set(result["env"])


def test_names_are_asked_for_once_when_the_timing_is_done(stage: Stage) -> None:
    done = trace("192.0.2.8", "192.0.2.9", "--resolve")
    assert sorted(stage.asked) == ["192.0.2.1", "192.0.2.8", "192.0.2.9"]
    assert done.stdout.count("  1  gw.example (192.0.2.1)  1.000\n") == 2
    (result,) = objects(trace("192.0.2.9", "--resolve", "--json"))
    assert result["observations"][-1] == {
        "name": "trace_names", "value": {"names": {"192.0.2.1": "gw.example"}}
    }  # fmt: skip
    stage.asked.clear()
    trace("192.0.2.8")
    assert stage.asked == []


# ── exit codes ──


@pytest.mark.parametrize(
    ("targets", "code"),
    [
        (["a", "b"], Exit.OK),
        (["a", "silent"], Exit.TARGET_FAILED),
        (["unknown"], Exit.TARGET_FAILED),
        (["denied", "a"], Exit.TARGET_FAILED),
        (["a", "broken", "silent"], Exit.CANNOT),
    ],
)
def test_the_worst_target_is_the_exit_code(stage: Stage, targets: list[str], code: Exit) -> None:
    done = trace(*targets, "--json")
    assert done.exit_code == code
    assert len(objects(done)) == len(targets)


def test_what_could_not_be_measured_is_explained(stage: Stage) -> None:
    assert trace("broken", "--json").stderr == "netsonde: trace broken: no buffers\n"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_without_privilege_it_ends_with_the_lines_that_grant_it(
    stage: Stage, form: list[str]
) -> None:
    done = trace("--method", "tcp", "unprivileged", "silent", "--parallel", "1", *form)
    assert done.exit_code == Exit.CANNOT
    assert done.stdout == ""
    assert done.stderr == f"netsonde: trace by tcp: not permitted\n{GRANT_HINT}\n"
    assert len(stage.specs) < 3
    assert stage.closed == 1


def test_an_interrupt_prints_what_was_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupt(work: Coroutine[Any, Any, None]) -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            await stage.clock.settle()
            task.cancel()

    def drive(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(interrupt(work))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", drive)
    stage.hold_s = 1
    done = trace("192.0.2.8", "192.0.2.9", "--parallel", "1")
    assert done.exit_code == Exit.INTERRUPTED
    assert done.stdout == (
        "trace to 192.0.2.8 by icmp\n"
        "TTL  ADDRESS    RTT MS  NOTES\n"
        "  1  192.0.2.1  1.000\n"
        "  2  192.0.2.8  2.000\n"
        "cancelled     trace  192.0.2.8  2 hops, 2.000 ms, in 1.234 s;"
        " cancelled: interrupted before it had ended\n"
    )
    assert stage.closed == 1
