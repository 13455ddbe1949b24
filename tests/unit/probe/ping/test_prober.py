"""The ping prober over the engine's twin: what a spec becomes, and how a run ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from netsonde import wire
from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.errors import (
    ConfigError,
    PrivilegeError,
    RequestError,
    RouteError,
    SendError,
)
from netsonde.model import FailureSource, Outcome, PingExpect, PingSpec, Reason
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping import PingProber
from netsonde.probe.ping.lane import Lane
from netsonde.probe.ping.prober import run_all
from netsonde.probe.ping.run import Completion, PingRun
from netsonde.probe.ping.sweep import Pinged, Sweep
from netsonde.probe.privilege import GRANT_HINT
from netsonde.probe.targets import TargetResolver
from support.echo import Event, MemoryEchoEngine, Request, silence
from support.ping_bench import PingBench, addresses, summary, values

RTTS = (
    "min_rtt_ms", "max_rtt_ms", "avg_rtt_ms", "stddev_rtt_ms", "p50_ms", "p90_ms", "p95_ms",
    "p99_ms", "jitter_ms",
)  # fmt: skip
BOTH = {"both.example": ["192.0.2.1", "2001:db8::1", "192.0.2.2"]}


def refusing(error: Exception) -> PingProber:
    def refuse(family: int) -> MemoryEchoEngine:
        raise error

    return PingProber(ManualClock(), TargetResolver(TargetPolicy.person()), engine=refuse)


async def test_a_reply_each_is_ok(bench: PingBench) -> None:
    measurement = await bench.ping(host="192.0.2.1", count=3, size=100)
    assert (measurement.outcome, measurement.error) == (Outcome.OK, None)
    assert measurement.env["icmp_socket"] == "raw"
    assert measurement.env["policy_version"] == bench.prober.resolver.policy.version
    assert [(each.attempt, each.size) for each in bench.requests] == [(0, 100), (1, 100), (2, 100)]


async def test_ipv6_is_the_same(bench: PingBench) -> None:
    measurement = await bench.ping(host="2001:db8::7", count=1)
    assert values(measurement, "ping_attempt")[0]["address"] == "[2001:db8::7]:0"
    assert list(bench.engines) == [6]


async def test_what_the_spec_asks_for_is_in_the_packets(bench: PingBench) -> None:
    await bench.ping(host="192.0.2.1", count=1, ttl=9, dscp=46, timeout_ms=70)
    (request,) = bench.requests
    assert (request.ttl, request.tos, request.timeout_ns) == (9, 46 << 2, 70 * NS_PER_MS)
    assert (request.path, request.flags) == (0, 0)


@pytest.mark.parametrize(
    ("spec", "interval_ns"),
    [
        ({}, 100 * NS_PER_MS),  # the default rate of 10 a second
        ({"rate_limit_per_sec": 4}, 250 * NS_PER_MS),
        ({"interval_ms": 30}, 30 * NS_PER_MS),
        ({"interval_ms": 30, "rate_limit_per_sec": 1}, 30 * NS_PER_MS),
        ({"interval_ms": 0}, 0),
    ],
)
async def test_packets_keep_their_distance(
    bench: PingBench, spec: dict[str, Any], interval_ns: int
) -> None:
    await bench.ping(host="192.0.2.1", count=3, **spec)
    first, second, third = (request.sent_ns for request in bench.requests)
    assert (second - first, third - second) == (interval_ns, interval_ns)


async def test_silence_is_a_timeout_of_the_target(bench: PingBench) -> None:
    bench.script = silence
    started_ns = bench.clock.monotonic_ns()
    measurement = await bench.ping(host="192.0.2.1", count=3, interval_ms=10, timeout_ms=500)
    took_ns = bench.clock.monotonic_ns() - started_ns
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TIMEOUT
    assert measurement.error.failure_source == FailureSource.TARGET
    assert took_ns == 520 * NS_PER_MS


async def test_thousands_of_runs_share_an_engine(bench: PingBench) -> None:
    specs = [
        PingSpec(host=f"10.{n >> 8}.{n & 255}.1", count=2, interval_ms=100) for n in range(3000)
    ]
    measurements = await bench.ping_all(specs)
    assert all(each.outcome is Outcome.OK for each in measurements)
    assert len(bench.requests) == 6000
    for spec, measurement in zip(specs, measurements, strict=True):
        found = summary(measurement)
        assert (found["address"], found["received"]) == (spec.host, 2)
    assert len(bench.lane().driver._ledger) == 0


async def test_runs_of_all_lengths_end_by_themselves(bench: PingBench) -> None:
    specs = [PingSpec(host=f"192.0.2.{n}", count=n, interval_ms=7 * n) for n in range(1, 40)]
    measurements = await bench.ping_all(specs)
    assert [summary(each)["received"] for each in measurements] == list(range(1, 40))


# ── every address ────────────────────────────────────────────────────────────────────────────────


async def test_the_first_address_is_pinged(bench: PingBench) -> None:
    bench.names = BOTH
    found = summary(await bench.ping(host="both.example", count=1))
    assert found["address"] == "192.0.2.1"
    assert "addresses" not in found


async def test_every_address_is_pinged_when_all_are_asked_for(bench: PingBench) -> None:
    bench.names = BOTH
    bench.script = lambda request: [] if request.address == "192.0.2.2" else [Event()]
    measurement = await bench.ping(host="both.example", count=2, addresses="all")
    found = summary(measurement)
    assert measurement.outcome is Outcome.OK
    assert (found["sent"], found["received"], found["address"]) == (6, 4, None)
    assert (found["socket"], found["backend"]) == ("raw", None)  # header and raw
    assert [each["address"] for each in addresses(measurement)] == BOTH["both.example"]
    assert [each["loss_pct"] for each in addresses(measurement)] == [0, 0, 100]
    assert [each["backend"] for each in addresses(measurement)] == ["header", "raw", "header"]
    told = [each["address"] for each in values(measurement, "ping_attempt")]
    assert told == ["192.0.2.1:0"] * 2 + ["[2001:db8::1]:0"] * 2 + ["192.0.2.2:0"] * 2


async def test_one_address_of_a_name_is_told_as_one(bench: PingBench) -> None:
    bench.names = {"one.example": ["192.0.2.1"]}
    found = summary(await bench.ping(host="one.example", count=1, addresses="all"))
    assert found["address"] == "192.0.2.1"
    assert "addresses" not in found


async def test_an_address_that_cannot_be_pinged_leaves_the_others(bench: PingBench) -> None:
    bench.names = BOTH
    opened = bench.open

    def no_ipv6(family: int) -> MemoryEchoEngine:
        if family == 6:
            raise SendError("open ICMPv6 socket", 97, "no IPv6 here")
        return opened(family)

    bench.prober.lanes._open_engine = no_ipv6
    measurement = await bench.ping(host="both.example", count=1, addresses="all")
    assert measurement.outcome is Outcome.OK
    assert [each["address"] for each in addresses(measurement)] == [
        "192.0.2.1", "192.0.2.2", "2001:db8::1",
    ]  # fmt: skip
    assert addresses(measurement)[-1]["error"] == "open ICMPv6 socket: no IPv6 here"
    alone = await bench.ping(host="both.example", count=1, addresses="all", family=6)
    assert alone.outcome is Outcome.AGENT_ERROR


async def test_addresses_that_the_policy_leaves_out_are_named() -> None:
    bench = PingBench(TargetPolicy())  # an agent's
    bench.names = {"half.example": ["10.0.0.1", "8.8.8.8"]}
    measurement = await bench.ping(host="half.example", count=1, addresses="all")
    found = summary(measurement)
    assert found["address"] == "8.8.8.8"
    assert len(found["denied"]) == 1
    assert found["denied"][0].startswith("10.0.0.1 is private")
    await bench.prober.close()


async def test_a_source_decides_the_family(bench: PingBench) -> None:
    bench.names = BOTH
    bench.lane(6).ways._sources.add("2001:db8::5")
    found = summary(await bench.ping(host="both.example", count=1, source="2001:db8::5"))
    assert found["address"] == "2001:db8::1"
    assert [path.source for path in bench.engines[6].paths] == [
        bytes.fromhex("20010db8000000000000000000000005")
    ]


# ── expectations ─────────────────────────────────────────────────────────────────────────────────


async def test_expectations_that_are_met_leave_it_ok(bench: PingBench) -> None:
    expect = PingExpect(loss_pct_max=0, avg_ms_max=1, p95_ms_max=1, jitter_ms_max=0.5)
    measurement = await bench.ping(host="192.0.2.1", expect=expect)
    assert measurement.outcome is Outcome.OK
    assert summary(measurement)["unmet"] == []


async def test_what_is_not_as_expected_is_listed_with_what_was_seen(bench: PingBench) -> None:
    bench.script = lambda request: [Event(after_ns=3 * NS_PER_MS)] if request.attempt else []
    expect = PingExpect(loss_pct_max=10, avg_ms_max=2.5, p95_ms_max=5)
    measurement = await bench.ping(host="192.0.2.1", count=4, expect=expect)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.MISMATCH
    assert measurement.error.failure_source == FailureSource.TARGET
    assert measurement.error.message == "192.0.2.1: expected loss_pct_max 10, saw 25.0"
    assert summary(measurement)["unmet"] == [
        {"name": "loss_pct_max", "limit": 10, "seen": 25.0},
        {"name": "avg_ms_max", "limit": 2.5, "seen": 3.0},
    ]


async def test_a_target_that_is_down_says_so_whatever_was_expected(bench: PingBench) -> None:
    bench.script = silence
    measurement = await bench.ping(host="192.0.2.1", expect=PingExpect(avg_ms_max=1))
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TIMEOUT
    assert summary(measurement)["unmet"] == [{"name": "avg_ms_max", "limit": 1, "seen": None}]


async def test_without_expectations_nothing_is_said_of_them(bench: PingBench) -> None:
    assert "unmet" not in summary(await bench.ping(host="192.0.2.1", count=1))


# ── cancellation ─────────────────────────────────────────────────────────────────────────────────


async def test_cancelling_one_leaves_the_others_running(bench: PingBench) -> None:
    records = [Recorder(bench.clock) for _ in range(3)]
    specs = [PingSpec(host=f"192.0.2.{n}", count=10, interval_ms=100) for n in range(1, 4)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(measure(bench.prober, spec, record))
            for spec, record in zip(specs, records, strict=True)
        ]
        await bench.clock.advance(250 * NS_PER_MS)
        tasks[0].cancel()
        await bench.clock.advance(5 * NS_PER_S)
    assert tasks[0].cancelled()
    found = [summary(record.measurement()) for record in records]
    assert [each["received"] for each in found] == [3, 10, 10]
    assert [each["cancelled"] for each in found] == [True, False, False]
    assert len(bench.requests) == 23


async def test_cancellation_keeps_what_was_seen_and_is_not_loss(bench: PingBench) -> None:
    bench.script = lambda request: [] if request.attempt == 2 else [Event()]
    record = Recorder(bench.clock, columnar=False)
    spec = PingSpec(
        host="192.0.2.1", count=10, interval_ms=100, timeout_ms=1000,
        expect=PingExpect(loss_pct_max=0),
    )  # fmt: skip
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(bench.prober, spec, record))
        await bench.clock.advance(250 * NS_PER_MS)
        task.cancel()
    found = summary(record.measurement())
    attempts = values(record.measurement(), "ping_attempt")
    assert (found["sent"], found["received"], found["loss_pct"]) == (3, 2, 0.0)
    assert (found["cancelled"], found["reasons"]) == (True, {"cancelled": 1})
    assert [each.get("reason") for each in attempts] == [None, None, "cancelled"]
    assert "unmet" not in found  # it was not measured to the end


async def test_every_address_is_cancelled_with_the_run(bench: PingBench) -> None:
    bench.names = BOTH
    record = Recorder(bench.clock)
    spec = PingSpec(host="both.example", count=10, interval_ms=100, addresses="all")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(bench.prober, spec, record))
        await bench.clock.advance(150 * NS_PER_MS)
        task.cancel()
    found = summary(record.measurement())
    assert (found["sent"], found["received"], found["cancelled"]) == (6, 6, True)


async def test_cancelled_before_the_first_packet_still_has_a_summary(bench: PingBench) -> None:
    bench.names = BOTH
    record = Recorder(bench.clock)
    spec = PingSpec(host="both.example", count=10, addresses="all")
    prepared = await bench.prober.prepare_all(spec)
    bench.prober.observe(spec, prepared, record, cancelled=True)
    found = summary(record.measurement())
    assert (found["sent"], found["cancelled"], found["reasons"]) == (0, True, {"cancelled": 1})


async def test_replies_to_a_run_that_has_ended_go_nowhere(bench: PingBench) -> None:
    bench.script = lambda _: [Event(after_ns=50 * NS_PER_MS)]
    record = Recorder(bench.clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            measure(bench.prober, PingSpec(host="192.0.2.1", count=3, interval_ms=10), record)
        )
        await bench.clock.advance(15 * NS_PER_MS)
        task.cancel()
    measurement = await bench.ping(host="192.0.2.2", count=3)
    assert summary(measurement)["received"] == 3
    assert summary(record.measurement())["received"] == 0
    assert bench.lane().driver._ledger.strays == 2


# ── what cannot be measured ──────────────────────────────────────────────────────────────────────


async def test_a_name_that_does_not_resolve_still_has_a_summary(bench: PingBench) -> None:
    measurement = await bench.ping(host="192.0.2.1", family=6, count=2)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.RESOLVE_FAILED
    (resolution,) = values(measurement, "ping_resolution")
    assert set(resolution) == {"host", "error"}
    found = summary(measurement)
    assert (found["loss_pct"], found["reasons"]) == (100.0, {"resolve_failed": 1})
    assert {found[name] for name in RTTS} == {None}
    assert bench.engines == {}


@pytest.mark.parametrize("zone", ["4294967296", "lo\0"])
async def test_a_zone_that_no_interface_can_have_disturbs_nobody(
    bench: PingBench, zone: str
) -> None:
    bad, good = await bench.ping_all(
        [PingSpec(host=f"fe80::1%{zone}", count=2), PingSpec(host="2001:db8::1", count=2)]
    )
    assert bad.error is not None
    assert bad.error.reason == Reason.RESOLVE_FAILED
    assert summary(bad)["loss_pct"] == 100.0
    assert good.outcome is Outcome.OK
    assert len(bench.lane(6).driver._ledger) == 0


async def test_a_denied_target_is_rejected_with_a_summary() -> None:
    bench = PingBench(TargetPolicy())  # an agent's: no loopback
    measurement = await bench.ping(host="127.0.0.1")
    assert measurement.outcome is Outcome.REJECTED
    assert summary(measurement)["reasons"] == {"denied": 1}


@pytest.mark.parametrize(
    "error", [PrivilegeError(f"no\n{GRANT_HINT}"), SendError("open ICMPv6 socket", 97, "no IPv6")]
)
async def test_no_socket_is_our_error_and_says_what_to_do(error: Exception) -> None:
    prober = refusing(error)
    record = Recorder(prober.clock)
    await measure(prober, PingSpec(host="127.0.0.1"), record)
    measurement = record.measurement()
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert measurement.error.message == str(error)
    found = summary(measurement)
    assert (found["sent"], found["loss_pct"]) == (0, None)


async def test_a_spec_that_makes_no_sense_is_rejected(bench: PingBench) -> None:
    measurement = await bench.ping(host="192.0.2.1", method="tcp")
    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert measurement.error.failure_source == FailureSource.SELF
    assert "port must be" in measurement.error.message
    assert summary(measurement)["protocol"] == "tcp"
    with pytest.raises(RequestError):
        wire.check_spec(PingSpec(host="192.0.2.1", method="udp"))


async def test_an_interface_that_is_not_there_is_rejected(bench: PingBench) -> None:
    measurement = await bench.ping(host="192.0.2.1", interface="nosuch0")
    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert "no interface 'nosuch0'" in measurement.error.message


async def test_no_way_out_is_no_route_for_frames_too(
    bench: PingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(_lane: Lane, address: str, wanted: object) -> int:
        raise RouteError(f"cannot send to {address}: this host has no route to it")

    monkeypatch.setattr(Lane, "path", nowhere)
    measurement = await bench.ping(host="192.0.2.1")
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.NO_ROUTE
    found = summary(measurement)
    assert (found["loss_pct"], found["reasons"]) == (100.0, {"no_route": 1})


# ── the engine ───────────────────────────────────────────────────────────────────────────────────


async def test_an_engine_that_is_closed_meanwhile_fails_its_runs(bench: PingBench) -> None:
    records = [Recorder(bench.clock) for _ in range(2)]
    bench.names = BOTH
    specs = [
        PingSpec(host="192.0.2.1", count=10),
        PingSpec(host="both.example", count=10, addresses="all"),
    ]
    async with asyncio.TaskGroup() as group:
        for spec, record in zip(specs, records, strict=True):
            group.create_task(measure(bench.prober, spec, record))
        await bench.clock.advance(150 * NS_PER_MS)
        await bench.prober.close()
    for record in records:
        measurement = record.measurement()
        assert measurement.outcome is Outcome.AGENT_ERROR
        assert measurement.error is not None
        assert "was closed" in measurement.error.message
        assert summary(measurement)["received"] >= 2
    assert len(bench.engines) == 2  # and nothing was opened anew


async def test_what_the_engine_cannot_send_is_rejected_with_a_summary(
    bench: PingBench,
) -> None:
    await bench.ping(host="192.0.2.1", count=1)
    bench.engines[4].size_max = 320
    measurement = await bench.ping(host="192.0.2.1", count=2, size=321)
    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    says = "the ICMP engine cannot send this: size must be 16 to 320"
    assert measurement.error.message == says
    found = summary(measurement)
    assert (found["sent"], found["cancelled"], found["loss_pct"]) == (0, False, None)


@pytest.mark.parametrize("host", ["192.0.2.1", "both.example"])
async def test_a_bug_of_a_method_still_has_a_summary_and_its_name(
    bench: PingBench, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    async def broken(run: PingRun, token: int) -> Completion:
        raise ZeroDivisionError("by accident")

    bench.names = BOTH
    monkeypatch.setattr(bench.prober._sockets["tcp"], "_try", broken)
    measurement = await bench.ping(host=host, method="tcp", port=80, addresses="all")
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert measurement.error.message == "internal error: ZeroDivisionError: by accident"
    assert summary(measurement)["received"] == 0
    assert len(bench.prober._sockets["tcp"]._ledger) == 0


async def test_steps_of_the_wall_clock_during_the_run_are_told(bench: PingBench) -> None:
    bench.lane()
    bench.engines[4].clock_steps = 5  # before

    def stepping(request: Request) -> Sequence[Event]:
        bench.engines[4].clock_steps += request.attempt == 1
        return [Event()]

    bench.script = stepping
    measurement = await bench.ping(host="192.0.2.1", count=4)
    quiet = await bench.ping(host="192.0.2.1", count=1)
    assert measurement.env["clock"]["steps"] == 1
    assert quiet.env["clock"]["steps"] == 0


async def test_kernel_transmit_stamps_are_named(bench: PingBench) -> None:
    bench.script = lambda _: [Event(clocks=icmp.RX_KERNEL | icmp.TX_KERNEL)]
    found = summary(await bench.ping(host="192.0.2.1", count=2))
    assert (found["tx_clock"], found["rx_clock"]) == ("kernel", "kernel")


async def test_an_engine_without_a_lane_is_closed(bench: PingBench) -> None:
    def deaf() -> MemoryEchoEngine:
        raise ConfigError("cannot hear network changes")

    bench.backend = "packet"
    bench.prober.lanes._open_monitor = deaf  # type: ignore[assignment]
    measurement = await bench.ping(host="192.0.2.1")
    assert measurement.outcome is Outcome.REJECTED
    assert bench.engines[4].closed


async def test_close_is_idempotent_and_not_for_ever(bench: PingBench) -> None:
    await bench.ping(host="192.0.2.1", count=1)
    await bench.prober.close()
    await bench.prober.close()
    assert (await bench.ping(host="192.0.2.1", count=1)).outcome is Outcome.OK


def test_the_grant_hint_has_lines_to_paste() -> None:
    for line in ("AmbientCapabilities=CAP_NET_RAW", "net.ipv4.ping_group_range", "sudo"):
        assert line in GRANT_HINT


# ── an engine that can name no more ways ─────────────────────────────────────────────────────────


async def test_an_engine_that_is_full_makes_way_for_another(bench: PingBench) -> None:
    bench.paths_max = 2
    specs = [PingSpec(host="192.0.2.1", count=3, mark=mark) for mark in range(1, 8)]
    results = await bench.ping_all(specs)
    assert {result.outcome for result in results} == {Outcome.OK}
    assert len(bench.opened) == 4
    assert [engine.closed for engine in bench.opened] == [True, True, True, False]
    assert [path.mark for engine in bench.opened for path in engine.paths] == list(range(1, 8))


async def test_what_runs_on_a_full_engine_goes_on(bench: PingBench) -> None:
    bench.paths_max = 1
    old = await bench.prober.prepare(PingSpec(host="192.0.2.1", mark=1), "192.0.2.1")
    new = await bench.prober.prepare(PingSpec(host="192.0.2.1", mark=2), "192.0.2.1")
    await bench.clock.settle()
    assert [engine.closed for engine in bench.opened] == [False, False]
    await bench.finish([asyncio.get_running_loop().create_task(old.carrier.run(old))])
    assert old.counts.received == 4
    old.carrier.forget(old)
    await bench.clock.settle()
    assert [engine.closed for engine in bench.opened] == [True, False]
    await bench.prober.stop([old, new])


async def test_a_sweep_goes_on_past_a_full_engine(bench: PingBench) -> None:
    bench.paths_max = 1
    marks = iter(range(1, 6))
    ended: list[Pinged] = []
    sweep = Sweep(
        bench.prober,
        lambda target: PingSpec(host=target, count=1, mark=next(marks)),
        ended.append,
    )

    async def source() -> AsyncIterator[str]:
        for n in range(1, 6):
            yield f"192.0.2.{n}"

    await bench.finish([asyncio.get_running_loop().create_task(sweep.run(source()))])
    assert [each.error for each in ended] == [None] * 5
    await bench.clock.settle()
    assert [engine.closed for engine in bench.opened] == [True] * 4 + [False]


async def test_a_cancelled_preparation_keeps_no_engine_open(bench: PingBench) -> None:
    bench.paths_max = 1
    bench.names = {"many.example": ["192.0.2.1", "192.0.2.2"]}
    prepare = bench.prober.prepare

    async def hang(spec: PingSpec, address: str) -> PingRun:
        if address == "192.0.2.2":
            await asyncio.get_running_loop().create_future()
        return await prepare(spec, address)

    bench.prober.prepare = hang  # type: ignore[method-assign]
    task = asyncio.get_running_loop().create_task(
        bench.prober.prepare_all(PingSpec(host="many.example", addresses="all", mark=1))
    )
    await bench.clock.settle()
    task.cancel()
    await bench.clock.settle()
    await bench.ping(host="192.0.2.1", mark=2)
    assert [engine.closed for engine in bench.opened] == [True, False]


async def test_the_cause_of_a_failure_is_kept(bench: PingBench) -> None:
    def fail(run: PingRun) -> None:
        raise ConfigError("it cannot be") from OSError(5, "Input/output error")

    async def carry(run: PingRun) -> None:
        fail(run)

    runs = [await bench.prober.prepare(PingSpec(host="x"), f"192.0.2.{n}") for n in (1, 2)]
    for run in runs:
        run.carrier.run = carry  # type: ignore[method-assign]
    with pytest.raises(ConfigError) as caught:
        await run_all(runs)
    assert isinstance(caught.value.__cause__, OSError)
