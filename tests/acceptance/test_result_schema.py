"""Every result that any command prints is valid by the published schema."""

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from jsonschema import Draft202012Validator

from netsonde import wire
from netsonde._native import icmp
from netsonde.cli.starter import unmeasurable
from netsonde.clock import NS_PER_S, ClockQuality, ManualClock, SystemClock
from netsonde.errors import RequestError
from netsonde.model import (
    SPEC_TYPES,
    Failure,
    FailureSource,
    Measurement,
    Observation,
    Outcome,
    PingExpect,
    PingSpec,
    Reason,
    TaskKind,
)
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping import PingProber
from netsonde.probe.ping.observations import EMPTY_SUMMARY
from netsonde.probe.targets import TargetResolver
from netsonde.server.beacon import NAME, beacon
from netsonde.wire.reports import RESULT_FIELDS
from support.commands import json_lines, netsonde, running
from support.echo import Event, Request
from support.ping_bench import PingBench
from support.stores import STORES, Caller, callers

SCHEMA_PATH = Path(__file__).resolve().parents[2] / "docs" / "result.schema.json"
SCHEMA: dict[str, Any] = json.loads(SCHEMA_PATH.read_text())
VALIDATOR = Draft202012Validator(SCHEMA)

RESULT: dict[str, Any] = {
    "kind": "tcp",
    "spec": {"kind": "tcp", "host": "127.0.0.1", "port": 80},
    "outcome": "ok",
    "started_at": "2026-11-24T10:11:12.123456789Z",
    "duration_ms": 0.25,
    "observations": [{"name": "anything_new", "value": {"x": 1}}],
    "env": {"version": "0.1.0"},
}
CLOCK = {"synchronised": True, "estimated_error_ms": None, "maximum_error_ms": 12.5}
FAILED = {"reason": "refused", "failure_source": "target", "message": "closed"}


def problems(result: Mapping[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(result)]


def valid(text: str) -> list[dict[str, Any]]:
    """Decode the results of a command's output, each of which must be valid."""
    results = json_lines(text)
    for result in results:
        assert problems(result) == [], json.dumps(result, indent=1)
    return results


# ── the schema itself ──


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_it_has_exactly_the_fields_that_are_written() -> None:
    assert tuple(SCHEMA["properties"]) == RESULT_FIELDS


@pytest.mark.parametrize("kind", list(TaskKind))
def test_it_has_exactly_the_options_of_each_kind(kind: TaskKind) -> None:
    described = SCHEMA["$defs"][f"{kind}_spec"]
    fields = {field.encode_name: field for field in msgspec.structs.fields(SPEC_TYPES[kind])}
    assert set(described["properties"]) == {"kind", *fields}
    needed = {name for name, field in fields.items() if field.required}
    assert set(described["required"]) == {"kind", *needed}


def test_it_has_exactly_the_words_of_the_model() -> None:
    assert SCHEMA["properties"]["kind"]["enum"] == list(TaskKind)
    assert SCHEMA["properties"]["outcome"]["enum"] == list(Outcome)
    error = SCHEMA["$defs"]["error"]["properties"]
    assert error["reason"]["enum"] == list(Reason)
    assert error["failure_source"]["enum"] == list(FailureSource)


def test_a_whole_result_is_valid() -> None:
    whole = RESULT | {
        "lease_id": 2**64 - 1,
        "task_id": 1,
        "tick": 0,
        "check_id": 3,
        "agent_id": 4,
        "scheduled_at": "2026-11-24T10:11:12Z",
        "attempt": 1,
        "outcome": "target_error",
        "error": FAILED,
        "env": {
            "version": "0.1.0",
            "clock": CLOCK | {"steps": 1},
            "policy_version": "abc",
            "source": "127.0.0.1",
        },
    }
    assert problems(RESULT) == []
    assert problems(whole) == []


@pytest.mark.parametrize(
    "change",
    [
        {"lease_id": 0},
        {"lease_id": 2**64},
        {"task_id": "7"},
        {"colour": "red"},
        {"kind": "pong"},
        {"kind": "ping"},
        {"spec": {"kind": "tcp", "host": "a", "port": 0}},
        {"spec": {"kind": "tcp", "host": "a", "port": 1, "extra": 1}},
        {"outcome": "fine"},
        {"outcome": "target_error"},
        {"error": FAILED},
        {"outcome": "target_error", "error": FAILED | {"reason": "bad_luck"}},
        {"outcome": "target_error", "error": {"reason": "refused"}},
        {"started_at": "2026-11-24 10:11:12"},
        {"started_at": "2026-11-24T10:11:12.1234567890Z"},
        {"duration_ms": -1},
        {"duration_ms": "1"},
        {"observations": {}},
        {"observations": [{"name": "Bad Name", "value": 1}]},
        {"observations": [{"name": "no_value"}]},
        {"observations": [{"name": "tcp_summary", "value": {}}]},
        {"env": {}},
        {"env": {"version": "0.1.0", "mood": "good"}},
        {"env": {"timed_by": "somebody"}},
        {"env": {"version": "0.1.0", "clock": "good"}},
        {"env": {"version": "0.1.0", "clock": {"synchronised": True}}},
        {"env": {"version": "0.1.0", "clock": CLOCK | {"maximum_error_ms": -1}}},
        {"env": {"version": "0.1.0", "clock": CLOCK | {"colour": "red"}}},
    ],
    ids=str,
)
def test_what_is_no_result_is_not_valid(change: dict[str, Any]) -> None:
    assert problems(RESULT | change)


@pytest.mark.parametrize("name", SCHEMA["required"])
def test_what_is_required_is_required(name: str) -> None:
    assert problems({field: value for field, value in RESULT.items() if field != name})


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("kind", list(TaskKind))
def test_what_our_encoder_writes_is_valid(kind: TaskKind, outcome: Outcome) -> None:
    target = {"http": "http://a/", "tcp": "a:1"}.get(kind, "a")
    failure = Failure(reason="timeout", failure_source="target", message="no answer")
    measurement = Measurement(
        outcome=outcome,
        started_at_ns=1,
        duration_ns=1,
        observations=(Observation("x", {"y": None}, "ms"),),
        error=None if outcome is Outcome.OK else failure,
        env={"version": "0.1.0"},
    )
    body = wire.encode_result(kind, wire.build_spec(kind, target, {}), measurement)
    assert problems(json.loads(body)) == []


@pytest.mark.parametrize(
    "quality",
    [
        SystemClock().quality(),
        ClockQuality(True, 1, 2),
        ClockQuality(True, None, 2),
        ClockQuality(False),
        ClockQuality(None),
    ],
    ids=["this host's", "estimated", "bounded", "not synchronised", "not told"],
)
def test_what_is_recorded_of_the_clock_is_valid(quality: ClockQuality) -> None:
    clock = ManualClock()
    clock.set_quality(quality)
    record = Recorder(clock)
    record.ok()

    body = wire.encode_result(
        TaskKind.TCP, wire.build_spec(TaskKind.TCP, "a:1", {}), record.measurement()
    )

    assert problems(json.loads(body)) == []
    assert json.loads(body)["env"]["clock"] == quality.as_env()


# ── pings ──

PING_SPEC: dict[str, Any] = {"kind": "ping", "host": "192.0.2.1"}
PINGED = RESULT | {"kind": "ping", "spec": PING_SPEC}
COLUMNS: dict[str, Any] = {"count": 1, "protocol": "icmp", "address": "192.0.2.1:0"}


@pytest.mark.parametrize(
    "options",
    [
        {"expect": {"loss_pct_max": 0, "avg_ms_max": 0.5, "p95_ms_max": 1, "jitter_ms_max": 60000}},
        {"expect": None, "source": None, "interface": None, "mark": None, "port": None},
        {"method": "tcp", "port": 443, "addresses": "all"},
        {"method": "udp", "port": 53, "source": "2001:db8::1", "interface": "eth0", "mark": 1},
        {"dscp": 63, "df": True, "size": 65507, "method": "icmp"},
    ],
)  # fmt: skip
def test_what_a_ping_may_be_asked_is_valid(options: dict[str, Any]) -> None:
    assert problems(PINGED | {"spec": PING_SPEC | options}) == []
    assert wire.convert_spec(PING_SPEC | options) is not None


@pytest.mark.parametrize(
    "options",
    [
        {"method": "tcp"},
        {"method": "udp", "port": None},
        {"port": 80},
        {"method": "icmp", "port": 80},
        {"method": "smoke", "port": 80},
        {"addresses": "some"},
        {"dscp": 64},
        {"mark": 2**32},
        {"interface": "x" * 16},
        {"source": ""},
        {"expect": {"loss_pct_max": 101}},
        {"expect": {"avg_ms_max": 0}},
    ],
)
def test_what_a_ping_may_not_be_asked_is_not(options: dict[str, Any]) -> None:
    assert problems(PINGED | {"spec": PING_SPEC | options})
    with pytest.raises(RequestError):
        wire.convert_spec(PING_SPEC | options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ping_attempts", {"count": 1}),
        ("ping_attempts", COLUMNS | {"rtt_us": ["fast"]}),
        ("ping_attempts", COLUMNS | {"reasons": [["timeout"]]}),
        ("ping_attempts", COLUMNS | {"bytes": [[64, 0]]}),
        ("ping_attempts", COLUMNS | {"ttl": [[256, 1]]}),
        ("ping_attempts", COLUMNS | {"exceptions": [{"late_rtt_ms": 1}]}),
        ("ping_attempts", COLUMNS | {"colours": []}),
        ("ping_attempt", {"success": True}),
        ("ping_summary", {"success": True}),
        ("ping_summary", EMPTY_SUMMARY | {"backend": "pigeon"}),
        ("ping_summary", EMPTY_SUMMARY | {"unmet": [{"name": "loss_pct_max"}]}),
        ("ping_summary", EMPTY_SUMMARY | {"addresses": [{"sent": 1}]}),
        ("ping_summary", EMPTY_SUMMARY | {"tx_clock": "sundial"}),
    ],
)
def test_what_no_ping_says_is_not_valid(name: str, value: dict[str, Any]) -> None:
    assert (
        problems(PINGED | {"observations": [{"name": "ping_summary", "value": EMPTY_SUMMARY}]})
        == []
    )
    assert problems(PINGED | {"observations": [{"name": name, "value": value}]})


@pytest.mark.parametrize("columnar", [True, False])
@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("192.0.2.1", {"count": 6, "interval_ms": 500}),
        ("192.0.2.1", {"count": 6, "expect": PingExpect(loss_pct_max=0, avg_ms_max=0.5)}),
        ("both.example", {"count": 6, "addresses": "all"}),
        ("192.0.2.1", {"count": 9_000, "interval_ms": 0}),
        ("192.0.2.1", {"family": 6}),
        ("192.0.2.1", {"interface": "nosuch0"}),
        ("224.0.0.1", {}),
    ],
    ids=str,
)
async def test_whatever_a_ping_sees_is_valid(
    columnar: bool, host: str, options: dict[str, Any]
) -> None:
    bench = PingBench()
    bench.names = {"both.example": ["192.0.2.1", "2001:db8::1", "224.0.0.1"]}
    fates = {
        1: [Event(after_ns=1_100_000_000)],
        2: [Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254", ttl=0)],
        3: [Event(kind=icmp.TX_ERROR, errno=105)],
        4: [Event(ttl=0), Event(kind=icmp.DUPLICATE, after_ns=2_000_000)],
    }

    def script(request: Request) -> list[Event]:
        fate = fates.get(request.attempt, [Event()])
        return [Event()] if ":" in request.address else fate

    bench.script = script
    spec = PingSpec(host=host, **options)
    (measurement,) = await bench.ping_all([spec], columnar=columnar)
    await bench.prober.close()
    assert problems(json.loads(wire.encode_result(TaskKind.PING, spec, measurement))) == []


@pytest.mark.parametrize("method", ["tcp", "udp"])
async def test_pings_by_other_methods_are_valid(method: Literal["tcp", "udp"]) -> None:
    clock = SystemClock()
    prober = PingProber(clock, TargetResolver(TargetPolicy.person()))
    with socket.socket() as holder:  # its port is closed
        holder.bind(("127.0.0.1", 0))
        spec = PingSpec(
            host="127.0.0.1", method=method, port=holder.getsockname()[1], count=3, interval_ms=0,
            timeout_ms=5000,
        )  # fmt: skip
        for columnar in (True, False):
            record = Recorder(clock, columnar=columnar)
            await measure(prober, spec, record)
            body = wire.encode_result(TaskKind.PING, spec, record.measurement())
            assert problems(json.loads(body)) == []
            assert json.loads(body)["outcome"] == "ok"


# ── what the control plane keeps of agents that came first ──

ORIGINAL = {"user_agent": "codecrafters-agent/0.1.0", "netsonde_protocol": ""}
PING_SUMMARY = {"min_rtt_ms": 1.0, "avg_rtt_ms": 1.5, "max_rtt_ms": 2.0, "stddev_rtt_ms": 0.5}
ORIGINALS: list[tuple[dict[str, Any], list[tuple[str, dict[str, Any]]], str]] = [
    (
        {"kind": "ping", "host": "192.0.2.1"},
        [
            ("ping_attempt", {"attempt": 1, "success": True, "rtt_ms": 1.0, "ttl": 60}),
            (
                "ping_summary",
                {"success": True, "sent": 1, "received": 1, "loss_pct": 0.0} | PING_SUMMARY,
            ),
        ],
        "ok",
    ),
    (
        {"kind": "ping", "host": "nowhere.invalid"},
        [("ping_resolution", {"host": "nowhere.invalid", "error": "no such host"})],
        "target_error",
    ),
    (
        {"kind": "tcp", "host": "192.0.2.1", "port": 1},
        [
            ("tcp_attempt", {"attempt": 1, "success": False, "address": "192.0.2.1:1"}),
            ("tcp_summary", {"success": False, "address": None, "rtt_ms": None, "errno": 111}),
        ],
        "target_error",
    ),
    (
        {"kind": "dns", "query": "example.net"},
        [
            (
                "dns_a_record",
                {"query": "example.net", "server": "system", "address": "192.0.2.7", "ttl": 60},
            )
        ],
        "ok",
    ),
    ({"kind": "dns", "query": "empty.example.net"}, [], "ok"),
    ({"kind": "http", "url": "http://192.0.2.1/"}, [], "agent_error"),
    (
        {"kind": "trace", "host": "192.0.2.1"},
        [("trace", {"host": "192.0.2.1", "status": "permission_denied", "hops": []})],
        "target_error",
    ),
]


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.mark.parametrize(("spec", "seen", "outcome"), ORIGINALS, ids=str)
@pytest.mark.parametrize("is_late", [False, True], ids=["in time", "given up"])
async def test_what_an_original_agent_reports_is_kept_as_a_result(
    caller: Caller,
    spec: dict[str, Any],
    seen: list[tuple[str, dict[str, Any]]],
    outcome: str,
    is_late: bool,
) -> None:
    await caller.clock.advance(10**9 * NS_PER_S)  # beyond the first second that lease ids know
    agent = await caller.register(agent_key=None, hostname="h1", **ORIGINAL)
    agent.headers |= ORIGINAL
    await caller.tasks(1, kind=spec["kind"], spec=spec, max_attempts=1)
    (lease,) = await agent.claim(capacities={spec["kind"]: 1})
    await caller.clock.advance(3 * NS_PER_S)
    if is_late:
        await caller.clock.advance(60 * NS_PER_S)
        await caller.plane.sweep(may_expire=True)
    observations = [{"name": name, "value": value} for name, value in seen]
    item = {"lease_id": lease["lease_id"], "observations": observations}
    status, _, _ = await agent.call("/report", {"completed": [item], "cancelled": []})
    assert status == 200

    _, answer, _ = await caller.operator("GET", "/v1/results")

    (kept,) = answer["results"]
    assert problems(kept) == []
    assert kept["outcome"] == outcome
    assert kept["observations"] == observations
    assert kept["env"] == {"timed_by": "control_plane"}
    took_ms = 63_000 if is_late else 3_000
    assert took_ms <= kept["duration_ms"] < took_ms + 1_000  # ids know the second only


# ── what the commands print ──


async def test_dns_results() -> None:
    async with beacon() as dns:
        done = await asyncio.to_thread(
            netsonde, "dns", NAME, "none.netsonde.test", "other.invalid",
            "--server", dns.endpoint, "--json",
        )  # fmt: skip
    results = {result["spec"]["query"]: result for result in valid(done.stdout)}
    assert len(results) == 3
    assert results[NAME]["outcome"] == "ok"
    done = netsonde("dns", NAME, "--server", dns.endpoint, "--timeout", "200ms", "--json")
    (silent,) = valid(done.stdout)
    assert silent["outcome"] == "target_error"


def test_tcp_and_http_results() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        opened, closed = listener.getsockname()[1], holder.getsockname()[1]
        done = netsonde(
            "tcp", f"127.0.0.1:{opened}", f"127.0.0.1:{closed}", f"[::1]:{closed}",
            "no-such-name.invalid:1", "255.255.255.255:1", "--json",
        )  # fmt: skip
        tcp = valid(done.stdout)
        done = netsonde(
            "http", f"http://127.0.0.1:{closed}/", f"https://127.0.0.1:{opened}/",
            "http://no-such-name.invalid/", "http://224.0.0.1/", "--timeout", "500ms", "--json",
        )  # fmt: skip
        http = valid(done.stdout)
    assert len(tcp) == 5
    assert {result["outcome"] for result in tcp} == {"ok", "target_error", "rejected"}
    assert len(http) == 4
    assert {result["outcome"] for result in http} == {"target_error", "rejected"}


@pytest.mark.raw
@pytest.mark.parametrize(
    "args",
    [("ping", "--count", "3", "-i", "10ms"), ("ping", "--count", "300", "-i", "0"), ("trace",)],
)
def test_packet_results(args: tuple[str, ...]) -> None:
    done = netsonde(
        *args, "127.0.0.1", "::1", "no-such-name.invalid", "224.0.0.1", "--timeout", "500ms",
        "--json",
    )  # fmt: skip
    outcomes = {result["spec"]["host"]: result["outcome"] for result in valid(done.stdout)}
    assert outcomes == {
        "127.0.0.1": "ok",
        "::1": "ok",
        "no-such-name.invalid": "target_error",
        "224.0.0.1": "rejected",
    }


def test_up_once_and_what_the_server_keeps_of_it(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path))
    once = netsonde("up", "--once", "--json", *state, "--check", "tcp 127.0.0.1:1", timeout_s=120)
    results = valid(once.stdout)
    kinds = {result["kind"] for result in results if result["outcome"] == "ok"}
    assert kinds == set(TaskKind) - unmeasurable(), once.stderr
    with running(
        "server", "run", *state, "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"
    ) as server:
        line = server.line("stderr", "operators reach it at ")
        url = line.partition("operators reach it at ")[2].split()[0]
        kept = valid(netsonde("results", "--json", "--server", url).stdout)
    assert sorted(result["lease_id"] for result in kept) == sorted(
        result["lease_id"] for result in results
    )
    assert all(result in kept for result in results)
