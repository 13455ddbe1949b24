"""The one-shots with probers that answer from a script."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from netsonde import wire
from netsonde.cli import measuring
from netsonde.cli.exits import Exit
from netsonde.cli.measuring import TARGETS_AT_ONCE_MAX, measure_all
from netsonde.cli.root import main
from netsonde.clock import ManualClock
from netsonde.errors import PrivilegeError, ResolveError, TargetDeniedError
from netsonde.model import (
    SPEC_TYPES,
    FailureSource,
    Measurement,
    Outcome,
    PingSpec,
    Reason,
    TaskKind,
    TaskSpec,
)
from netsonde.probe.base import Recorder


class ScriptedProber:
    """Ends every run the way its target's name says."""

    def __init__(self, kind: TaskKind) -> None:
        self.kind = kind
        self.specs: list[Any] = []
        self.closed = 0

    async def run(self, spec: Any, record: Recorder) -> None:
        self.specs.append(spec)
        target = str(getattr(spec, "host", None) or getattr(spec, "query", None) or spec.url)
        record.observe(f"{self.kind}_seen", {"sent": 1})
        if "refused" in target:
            record.fail(Outcome.TARGET_ERROR, Reason.REFUSED, FailureSource.TARGET, "closed port")
        elif "unknown" in target:
            raise ResolveError("unknown.invalid: the name does not exist")
        elif "denied" in target:
            raise TargetDeniedError("224.0.0.1 is multicast: never probed")
        elif "broken" in target:
            raise PrivilegeError("no raw socket: run as root")
        elif "odd" in target:
            record.fail(Outcome.REJECTED, Reason.DENIED, FailureSource.SELF, "no such type")
        else:
            record.ok()

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def probers(monkeypatch: pytest.MonkeyPatch) -> dict[TaskKind, ScriptedProber]:
    made = {kind: ScriptedProber(kind) for kind in TaskKind}
    monkeypatch.setattr(measuring, "make_probers", lambda clock, policy: made)
    return made


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def results(done: Result) -> list[dict[str, Any]]:
    return [wire.parse(line.encode()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("args", "spec"),
    [
        (
            ["dns", "h", "--type", "MX", "--server", "127.0.0.1:53", "--transport", "tcp",
             "--timeout", "1s", "--retries", "0"],
            {"query": "h", "qtype": "MX", "server": "127.0.0.1:53", "transport": "tcp",
             "timeout_ms": 1000, "retries": 0},
        ),
        (
            ["http", "http://h/", "-X", "HEAD", "-H", "A: b:c", "-H", "D:e", "--no-verify",
             "--redirects", "0", "--max-body", "5"],
            {"url": "http://h/", "method": "HEAD", "headers": {"A": "b:c", "D": "e"},
             "verify": False, "redirects": 0, "max_body": 5},
        ),
        (["tcp", "[::1]:443"], {"host": "::1", "port": 443}),
    ],
)  # fmt: skip
def test_options_become_the_spec(
    probers: dict[TaskKind, ScriptedProber], args: list[str], spec: dict[str, Any]
) -> None:
    done = invoke(*args, "--json")
    assert done.exit_code == Exit.OK, done.stderr
    kind = TaskKind(args[0])
    assert probers[kind].specs == [SPEC_TYPES[kind](**spec)]
    assert probers[kind].closed == 1
    (result,) = results(done)
    assert result["spec"] == {"kind": kind.value, **spec}


@pytest.mark.parametrize(
    ("targets", "code", "outcomes"),
    [
        (["a"], Exit.OK, ["ok"]),
        (["a", "refused"], Exit.TARGET_FAILED, ["ok", "target_error"]),
        (["unknown"], Exit.TARGET_FAILED, ["target_error"]),
        (["denied"], Exit.TARGET_FAILED, ["rejected"]),
        (["odd"], Exit.USAGE, ["rejected"]),
        (["refused", "broken", "a"], Exit.CANNOT, ["agent_error", "ok", "target_error"]),
    ],
)
def test_the_worst_outcome_is_the_exit_code(
    probers: dict[TaskKind, ScriptedProber], targets: list[str], code: Exit, outcomes: list[str]
) -> None:
    done = invoke("dns", *targets, "--ndjson")
    assert done.exit_code == code
    assert sorted(result["outcome"] for result in results(done)) == outcomes


def test_what_could_not_be_measured_is_said_on_standard_error_too(
    probers: dict[TaskKind, ScriptedProber],
) -> None:
    done = invoke("dns", "broken", "--json")
    assert done.stderr == "netsonde: dns broken: no raw socket: run as root\n"
    assert results(done)[0]["error"]["message"] == "no raw socket: run as root"


def test_people_get_lines_without_colour_codes(
    probers: dict[TaskKind, ScriptedProber],
) -> None:
    done = invoke("tcp", "refused:1")
    assert done.stdout == "target_error  tcp    refused:1  refused: closed port\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["dns", "h", "--retries", "11"], ["retries", "0 to 10"]),
        (["dns", "h", "--retries", "abc"], ["retries", "0 to 10", "abc"]),
        (["tcp", "h:1", "--timeout", "2h"], ["timeout_ms", "1 to 60000"]),
        (["tcp", "h:1", "--timeout", "soon"], ["--timeout", "500ms"]),
        (["tcp", "a b:1"], ["host", "a b"]),
        (["tcp", ""], ["port"]),
        (["tcp", "h"], ["port", "1 to 65535"]),
        (["tcp", "h:0"], ["port", "1 to 65535"]),
        (["tcp", "h:99999"], ["port", "1 to 65535"]),
        (["tcp", "h:http"], ["port", "1 to 65535"]),
        (["http", "h"], ["url", "http://"]),
        (["http", "ftp://h/"], ["url", "http://"]),
        (["http", "http://h/", "-X", "get it"], ["method"]),
        (["http", "http://h/", "-H", "nocolon"], ["--header", "NAME:VALUE"]),
        (["dns", "h", "--transport", "carrier-pigeon"], ["transport", "udp", "tcp"]),
        (["dns", "a..b"], ["query"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2_before_anything_is_sent(
    probers: dict[TaskKind, ScriptedProber], args: list[str], words: list[str]
) -> None:
    done = invoke(*args, "--json")
    assert done.exit_code == Exit.USAGE
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("netsonde: ")
    for word in words:
        assert word in done.stderr
    assert not any(prober.specs for prober in probers.values())


def test_one_bad_target_stops_the_others_before_they_start(
    probers: dict[TaskKind, ScriptedProber],
) -> None:
    assert invoke("tcp", "a:1", "b:0").exit_code == Exit.USAGE
    assert probers[TaskKind.TCP].specs == []


class Gate(ScriptedProber):
    """Holds every run until the test opens it."""

    def __init__(self) -> None:
        super().__init__(TaskKind.PING)
        self.open = asyncio.Event()
        self.running = 0
        self.most = 0

    async def run(self, spec: Any, record: Recorder) -> None:
        record.observe("ping_summary", {"sent": 1})
        self.running += 1
        self.most = max(self.most, self.running)
        await self.open.wait()
        self.running -= 1
        record.ok()


def collect() -> tuple[list[Measurement], Callable[[TaskSpec, Measurement], None]]:
    seen: list[Measurement] = []
    return seen, lambda spec, measurement: seen.append(measurement)


async def test_targets_at_once_are_bounded() -> None:
    gate, clock = Gate(), ManualClock()
    specs = [PingSpec(host=f"h{number}") for number in range(TARGETS_AT_ONCE_MAX * 2)]
    seen, emit = collect()
    async with asyncio.TaskGroup() as group:
        group.create_task(measure_all(gate, specs, emit, clock=clock, env={}))
        await clock.settle()
        assert gate.running == TARGETS_AT_ONCE_MAX
        gate.open.set()
    assert gate.most == TARGETS_AT_ONCE_MAX
    assert len(seen) == len(specs)


async def test_an_interrupt_emits_what_was_seen_so_far() -> None:
    gate, clock = Gate(), ManualClock()
    seen, emit = collect()
    specs = [PingSpec(host=f"h{number}") for number in range(TARGETS_AT_ONCE_MAX + 5)]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure_all(gate, specs, emit, clock=clock, env={"source": "x"}))
        await clock.settle()
        task.cancel()
    # Those that had not started have nothing to tell.
    assert [measurement.outcome for measurement in seen] == ["cancelled"] * TARGETS_AT_ONCE_MAX
    assert seen[0].observations[0].name == "ping_summary"
    assert seen[0].error is not None
    assert seen[0].error.reason == Reason.CANCELLED
    assert seen[0].env["source"] == "x"
    assert seen[0].env["clock"] == clock.quality().as_env()
