"""The ping prober over the engine's twin: pacing, observations, summary, verdict. No packets."""

import asyncio
import errno
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.errors import PrivilegeError, SendError
from netsonde.model import FailureSource, Measurement, Outcome, PingSpec, Reason
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.echo import REQUEST, EchoDriver, EchoRun
from netsonde.probe.ping import PingProber
from netsonde.probe.privilege import GRANT_HINT
from netsonde.probe.targets import TargetResolver
from netsonde.stats import Histogram
from support.echo import Event, MemoryEchoEngine, Request, Script, answers, silence

ORIGINAL_SUCCESS = {"attempt", "success", "protocol", "address", "rtt_ms", "bytes", "ttl"}
ORIGINAL_FAILURE = {"attempt", "success", "protocol", "address", "reason", "code", "message"}
ORIGINAL_SUMMARY = {
    "success", "sent", "received", "loss_pct", "min_rtt_ms", "max_rtt_ms", "avg_rtt_ms",
    "stddev_rtt_ms", "protocol", "reasons", "cancelled",
}  # fmt: skip
RTTS = (
    "min_rtt_ms", "max_rtt_ms", "avg_rtt_ms", "stddev_rtt_ms", "p50_ms", "p90_ms", "p95_ms",
    "p99_ms", "jitter_ms",
)  # fmt: skip


class Bench:
    """A prober on a manual clock, and the engines it opened."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.script: Script = answers
        self.capacity = 1 << 20
        self.engines: dict[int, MemoryEchoEngine] = {}
        self.prober = PingProber(
            self.clock, TargetResolver(TargetPolicy.person()), engine=self.open
        )

    def open(self, family: int) -> MemoryEchoEngine:
        engine = MemoryEchoEngine(self.clock, family, self._answer, capacity=self.capacity)
        self.engines[family] = engine
        return engine

    def _answer(self, request: Request) -> Sequence[Event]:
        return self.script(request)

    @property
    def requests(self) -> list[Request]:
        return self.engines[4].requests

    async def ping(self, *, within_ns: int = 600 * NS_PER_S, **spec: Any) -> Measurement:
        (measurement,) = await self.ping_all([PingSpec(**spec)], within_ns=within_ns)
        return measurement

    async def ping_all(
        self, specs: Sequence[PingSpec], *, within_ns: int = 600 * NS_PER_S
    ) -> list[Measurement]:
        records = [Recorder(self.clock) for _ in specs]
        ends_ns = self.clock.monotonic_ns() + within_ns
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(measure(self.prober, spec, record))
                for spec, record in zip(specs, records, strict=True)
            ]
            await self.clock.settle()
            idle = 0
            while not all(task.done() for task in tasks):
                wake_ns = self.clock.next_wake_ns
                if wake_ns is None:  # a turn of the loop was not enough for all that is due
                    idle += 1
                    assert idle < 10, "nobody waits and somebody is not done"
                    await self.clock.settle()
                    continue
                assert wake_ns <= ends_ns, "took too long"
                idle = 0
                await self.clock.advance(wake_ns - self.clock.monotonic_ns())
        return [record.measurement() for record in records]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.prober.close()
    assert all(engine.closed for engine in bench.engines.values())


def values(measurement: Measurement, name: str) -> list[dict[str, Any]]:
    return [each.value for each in measurement.observations if each.name == name]


def summary(measurement: Measurement) -> dict[str, Any]:
    (value,) = values(measurement, "ping_summary")
    assert measurement.observations[-1].name == "ping_summary"
    json.dumps(value)  # plain values only
    return value


async def test_a_reply_each_is_ok_and_told_as_the_original_does(bench: Bench) -> None:
    measurement = await bench.ping(host="192.0.2.1", count=3, size=100)
    attempts = values(measurement, "ping_attempt")
    assert measurement.outcome is Outcome.OK
    assert measurement.error is None
    assert attempts[0] == {
        "attempt": 1, "success": True, "protocol": "icmp", "address": "192.0.2.1:0",
        "rtt_ms": 1.0, "bytes": 108, "ttl": 64,
    }  # fmt: skip
    assert [each["attempt"] for each in attempts] == [1, 2, 3]
    assert all(set(each) == ORIGINAL_SUCCESS for each in attempts)
    assert measurement.env["icmp_socket"] == "raw"


async def test_the_summary_has_the_originals_fields_and_ours(bench: Bench) -> None:
    bench.script = lambda request: [Event(after_ns=(request.attempt + 1) * NS_PER_MS)]
    found = summary(await bench.ping(host="192.0.2.1", count=4))
    assert set(found) >= ORIGINAL_SUMMARY
    assert {name: found[name] for name in RTTS} == {
        "min_rtt_ms": 1.0, "max_rtt_ms": 4.0, "avg_rtt_ms": 2.5, "stddev_rtt_ms": 1.118034,
        "p50_ms": 2.0, "p90_ms": 4.0, "p95_ms": 4.0, "p99_ms": 4.0, "jitter_ms": 0.176025,
    }  # fmt: skip
    assert (found["sent"], found["received"], found["loss_pct"]) == (4, 4, 0.0)
    assert found["rate_pps"] == 10.0
    assert (found["tx_clock"], found["rx_clock"]) == ("user", "kernel")
    assert Histogram.from_value(found["histogram"]).count == 4


async def test_ipv6_is_the_same(bench: Bench) -> None:
    measurement = await bench.ping(host="2001:db8::7", count=1)
    assert values(measurement, "ping_attempt")[0]["address"] == "[2001:db8::7]:0"
    assert list(bench.engines) == [6]


async def test_silence_is_a_timeout_of_the_target(bench: Bench) -> None:
    bench.script = silence
    started_ns = bench.clock.monotonic_ns()
    measurement = await bench.ping(host="192.0.2.1", count=3, interval_ms=10, timeout_ms=500)
    took_ns = bench.clock.monotonic_ns() - started_ns
    found = summary(measurement)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TIMEOUT
    assert measurement.error.failure_source == FailureSource.TARGET
    assert (found["success"], found["loss_pct"], found["reasons"]) == (False, 100.0, {"timeout": 3})
    assert {found[name] for name in RTTS} == {None}
    assert found["rx_clock"] is None
    attempt = values(measurement, "ping_attempt")[0]
    assert set(attempt) == ORIGINAL_FAILURE
    assert (attempt["reason"], attempt["code"]) == ("timeout", None)
    assert 520 * NS_PER_MS <= took_ns <= 530 * NS_PER_MS


@pytest.mark.parametrize(
    ("host", "icmp_type", "code", "reason", "source"),
    [
        ("192.0.2.1", 3, 0, Reason.UNREACHABLE_NET, FailureSource.PATH),
        ("192.0.2.1", 3, 1, Reason.UNREACHABLE_HOST, FailureSource.TARGET),
        ("192.0.2.1", 3, 3, Reason.UNREACHABLE_PORT, FailureSource.TARGET),
        ("192.0.2.1", 3, 13, Reason.FILTERED, FailureSource.PATH),
        ("192.0.2.1", 3, 200, Reason.UNREACHABLE_NET, FailureSource.PATH),
        ("192.0.2.1", 11, 0, Reason.TTL_EXCEEDED, FailureSource.PATH),
        ("192.0.2.1", 12, 0, Reason.PROTOCOL_ERROR, FailureSource.PATH),
        ("2001:db8::1", 1, 0, Reason.UNREACHABLE_NET, FailureSource.PATH),
        ("2001:db8::1", 1, 1, Reason.FILTERED, FailureSource.PATH),
        ("2001:db8::1", 1, 3, Reason.UNREACHABLE_HOST, FailureSource.TARGET),
        ("2001:db8::1", 2, 0, Reason.UNREACHABLE_NET, FailureSource.PATH),
        ("2001:db8::1", 3, 0, Reason.TTL_EXCEEDED, FailureSource.PATH),
        ("2001:db8::1", 4, 1, Reason.PROTOCOL_ERROR, FailureSource.PATH),
    ],
)
async def test_icmp_errors_have_their_reason(
    bench: Bench, host: str, icmp_type: int, code: int, reason: Reason, source: FailureSource
) -> None:
    router = "2001:db8::ff" if ":" in host else "192.0.2.254"
    bench.script = lambda _: [
        Event(kind=icmp.ERROR, icmp_type=icmp_type, code=code, responder=router)
    ]
    measurement = await bench.ping(host=host, count=2)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (reason, source)
    assert router in measurement.error.message
    attempt = values(measurement, "ping_attempt")[0]
    assert (attempt["reason"], attempt["code"], attempt["responder"]) == (reason, code, router)
    assert summary(measurement)["loss_pct"] == 100.0


@pytest.mark.parametrize(
    ("code", "outcome", "reason", "loss_pct"),
    [
        (errno.ENETUNREACH, Outcome.TARGET_ERROR, Reason.NO_ROUTE, 100.0),
        (errno.EHOSTUNREACH, Outcome.TARGET_ERROR, Reason.NO_ROUTE, 100.0),
        (errno.ENOBUFS, Outcome.AGENT_ERROR, Reason.TX_ERROR, None),
        (errno.EPERM, Outcome.AGENT_ERROR, Reason.TX_ERROR, None),
    ],
)
async def test_refused_sends_are_not_loss(
    bench: Bench, code: int, outcome: Outcome, reason: Reason, loss_pct: float | None
) -> None:
    bench.script = lambda _: [Event(kind=icmp.TX_ERROR, errno=code)]
    measurement = await bench.ping(host="192.0.2.1", count=2)
    found = summary(measurement)
    assert measurement.outcome is outcome
    assert measurement.error is not None
    assert measurement.error.reason == reason
    assert measurement.error.failure_source == FailureSource.SELF
    assert (found["sent"], found["tx_errors"], found["lost"]) == (0, 2, 0)
    assert found["loss_pct"] == loss_pct
    assert values(measurement, "ping_attempt")[0]["code"] == code


async def test_loss_is_of_what_was_sent_and_not_dropped_here(bench: Bench) -> None:
    fates = [
        [Event()],
        [],
        [Event(kind=icmp.TX_ERROR, errno=errno.ENOBUFS)],
        [Event(kind=icmp.RX_DROP)],
        [Event(kind=icmp.ERROR, icmp_type=3, code=1)],
    ]
    bench.script = lambda request: fates[request.attempt]
    measurement = await bench.ping(host="192.0.2.1", count=5)
    found = summary(measurement)
    assert measurement.outcome is Outcome.OK  # reached once
    assert (found["sent"], found["received"], found["lost"]) == (4, 1, 2)
    assert (found["tx_errors"], found["rx_drops"]) == (1, 1)
    assert found["loss_pct"] == pytest.approx(66.6667)
    assert found["reasons"] == {"timeout": 1, "tx_error": 2, "unreachable_host": 1}


async def test_the_dominant_reason_decides(bench: Bench) -> None:
    error = Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254")
    bench.script = lambda request: [] if request.attempt == 0 else [error]
    measurement = await bench.ping(host="192.0.2.1", count=3)
    assert measurement.error is not None
    assert measurement.error.reason == Reason.UNREACHABLE_HOST
    assert "(2 of 3 packets)" in measurement.error.message


async def test_replies_all_dropped_here_are_our_error(bench: Bench) -> None:
    bench.script = lambda _: [Event(kind=icmp.RX_DROP)]
    measurement = await bench.ping(host="192.0.2.1", count=2)
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert summary(measurement)["loss_pct"] is None


async def test_late_and_duplicate_replies_are_counted_apart(bench: Bench) -> None:
    fates = [
        [Event(after_ns=1200 * NS_PER_MS)],
        [Event(), Event(kind=icmp.DUPLICATE, after_ns=2 * NS_PER_MS)],
    ]
    bench.script = lambda request: fates[request.attempt] if request.attempt < 2 else [Event()]
    measurement = await bench.ping(host="192.0.2.1", count=4, interval_ms=500)
    found = summary(measurement)
    late, doubled, *_ = values(measurement, "ping_attempt")
    assert (found["received"], found["late"], found["duplicates"]) == (3, 1, 1)
    assert found["max_rtt_ms"] == 1.0
    assert (late["reason"], late["late_rtt_ms"]) == ("timeout", 1200.0)
    assert doubled["duplicates"] == 1


async def test_a_reply_from_elsewhere_is_recorded_not_dropped(bench: Bench) -> None:
    bench.script = lambda _: [Event(responder="198.51.100.5")]
    measurement = await bench.ping(host="192.0.2.1", count=1)
    assert measurement.outcome is Outcome.OK
    assert values(measurement, "ping_attempt")[0]["responder"] == "198.51.100.5"


async def test_one_user_stamp_makes_the_summary_say_so(bench: Bench) -> None:
    bench.script = lambda request: [Event(clocks=0 if request.attempt == 1 else icmp.RX_KERNEL)]
    assert summary(await bench.ping(host="192.0.2.1", count=3))["rx_clock"] == "user"


async def test_the_clock_of_an_icmp_error_times_no_reply(bench: Bench) -> None:
    error = Event(kind=icmp.ERROR, icmp_type=3, code=1, clocks=0)
    bench.script = lambda request: [error] if request.attempt == 1 else answers(request)
    assert summary(await bench.ping(host="192.0.2.1", count=3))["rx_clock"] == "kernel"


async def test_columns_above_256_packets(bench: Bench) -> None:
    bench.script = lambda request: [] if 10 <= request.attempt < 13 else [Event(after_ns=12345)]
    measurement = await bench.ping(host="192.0.2.1", count=300, interval_ms=1)
    assert values(measurement, "ping_attempt") == []
    (columns,) = values(measurement, "ping_attempts")
    assert columns["count"] == len(columns["rtt_us"]) == 300
    assert columns["rtt_us"][9:14] == [12.3, None, None, None, 12.3]
    assert columns["reasons"] == [[None, 10], ["timeout", 3], [None, 287]]
    assert columns["ttl"] == [[64, 10], [None, 3], [64, 287]]


async def test_256_packets_are_still_told_one_by_one(bench: Bench) -> None:
    measurement = await bench.ping(host="192.0.2.1", count=256, interval_ms=0)
    assert len(values(measurement, "ping_attempt")) == 256


async def test_above_8000_packets_only_the_histogram_is_left(bench: Bench) -> None:
    measurement = await bench.ping(host="192.0.2.1", count=8_001, interval_ms=0)
    assert [each.name for each in measurement.observations] == ["ping_summary"]
    found = summary(measurement)
    assert (found["sent"], found["received"]) == (8_001, 8_001)
    assert Histogram.from_value(found["histogram"]).count == 8_001


async def test_8000_columns_fit_an_item(bench: Bench) -> None:
    bench.script = lambda request: [Event(after_ns=999_999_999 - request.attempt)]
    measurement = await bench.ping(host="192.0.2.1", count=8_000, interval_ms=0)
    value = values(measurement, "ping_attempts")[0]
    assert len(json.dumps(value, separators=(",", ":"))) < 128 * 1024


@pytest.mark.parametrize(
    ("spec", "interval_ns"),
    [
        ({}, 100 * NS_PER_MS),  # the default rate of 10 a second
        ({"rate_limit_per_sec": 4}, 250 * NS_PER_MS),
        ({"interval_ms": 30}, 30 * NS_PER_MS),
        ({"interval_ms": 30, "rate_limit_per_sec": 1}, 30 * NS_PER_MS),
    ],
)
async def test_packets_keep_their_distance(
    bench: Bench, spec: dict[str, int], interval_ns: int
) -> None:
    await bench.ping(host="192.0.2.1", count=20, **spec)
    sent = [request.sent_ns for request in bench.requests]
    gaps = {after - before for before, after in itertools.pairwise(sent)}
    assert gaps == {interval_ns}


async def test_a_fast_pace_goes_out_in_quanta(bench: Bench) -> None:
    found = summary(await bench.ping(host="192.0.2.1", count=1000, rate_limit_per_sec=20_000))
    assert found["rate_pps"] == pytest.approx(20_000, rel=0.05)
    sent = [request.sent_ns for request in bench.requests]
    assert max(sent.count(instant) for instant in set(sent)) <= 64


async def test_a_loop_that_was_late_does_not_burst(bench: Bench) -> None:
    async with asyncio.TaskGroup() as group:
        record = Recorder(bench.clock)
        spec = PingSpec(host="192.0.2.1", count=10, interval_ms=10)
        group.create_task(measure(bench.prober, spec, record))
        await bench.clock.settle()
        bench.clock._now_ns += 50 * NS_PER_MS  # nobody ran for 50 ms
        await bench.clock.advance(NS_PER_S)
    sent = [request.sent_ns for request in bench.requests]
    assert all(after - before >= 8 * NS_PER_MS for before, after in itertools.pairwise(sent))


async def test_a_full_engine_delays_and_loses_nothing(bench: Bench) -> None:
    bench.capacity = 5
    specs = [PingSpec(host=f"192.0.2.{n}", count=20, interval_ms=0) for n in range(1, 6)]
    measurements = await bench.ping_all(specs)
    assert [summary(each)["received"] for each in measurements] == [20] * 5
    asked = [(request.address, request.attempt) for request in bench.requests]
    assert len(asked) == len(set(asked)) == 100


async def test_a_batch_that_is_not_taken_is_sent_again(bench: Bench) -> None:
    await bench.ping(host="192.0.2.1", count=1)
    submit = bench.engines[4].submit
    failures = [MemoryError()]

    def fail_once(requests: bytes) -> int:
        if failures and len(requests) == 2 * REQUEST.size:  # both runs have one in it
            raise failures.pop()
        return submit(requests)

    bench.engines[4].submit = fail_once  # type: ignore[method-assign]
    leader, other = await bench.ping_all(
        [PingSpec(host=f"192.0.2.{n}", count=2, interval_ms=10) for n in (2, 3)]
    )
    assert not failures
    assert leader.outcome is Outcome.AGENT_ERROR
    assert other.outcome is Outcome.OK
    assert summary(other)["received"] == 2


async def test_thousands_of_runs_share_an_engine(bench: Bench) -> None:
    specs = [
        PingSpec(host=f"10.{n >> 8}.{n & 255}.1", count=2, interval_ms=100) for n in range(3000)
    ]
    measurements = await bench.ping_all(specs)
    assert all(each.outcome is Outcome.OK for each in measurements)
    assert len(bench.requests) == 6000
    for spec, measurement in zip(specs, measurements, strict=True):
        found = summary(measurement)
        assert (found["address"], found["received"]) == (spec.host, 2)


async def test_runs_of_all_lengths_hand_the_lead_on(bench: Bench) -> None:
    specs = [PingSpec(host=f"192.0.2.{n}", count=n, interval_ms=7 * n) for n in range(1, 40)]
    measurements = await bench.ping_all(specs)
    assert [summary(each)["received"] for each in measurements] == list(range(1, 40))


async def test_cancelling_the_leader_leaves_the_others_running(bench: Bench) -> None:
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


async def test_cancellation_keeps_what_was_seen_and_is_not_loss(bench: Bench) -> None:
    bench.script = lambda request: [] if request.attempt == 2 else [Event()]
    record = Recorder(bench.clock)
    spec = PingSpec(host="192.0.2.1", count=10, interval_ms=100, timeout_ms=1000)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(bench.prober, spec, record))
        await bench.clock.advance(250 * NS_PER_MS)
        task.cancel()
    found = summary(record.measurement())
    attempts = values(record.measurement(), "ping_attempt")
    assert (found["sent"], found["received"], found["loss_pct"]) == (3, 2, 0.0)
    assert (found["cancelled"], found["reasons"]) == (True, {"cancelled": 1})
    assert [each.get("reason") for each in attempts] == [None, None, "cancelled"]


async def test_replies_to_a_run_that_has_ended_go_nowhere(bench: Bench) -> None:
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
    assert bench.prober._drivers[4].strays == 2


async def test_a_name_that_does_not_resolve_still_has_a_summary(bench: Bench) -> None:
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
async def test_a_zone_that_no_interface_can_have_disturbs_nobody(bench: Bench, zone: str) -> None:
    bad, good = await bench.ping_all(
        [PingSpec(host=f"fe80::1%{zone}", count=2), PingSpec(host="2001:db8::1", count=2)]
    )
    assert bad.error is not None
    assert bad.error.reason == Reason.RESOLVE_FAILED
    assert summary(bad)["loss_pct"] == 100.0
    assert good.outcome is Outcome.OK


async def test_a_denied_target_is_rejected_with_a_summary() -> None:
    clock = ManualClock()
    prober = PingProber(clock, TargetResolver(TargetPolicy()))  # an agent's: no loopback
    record = Recorder(clock)
    await measure(prober, PingSpec(host="127.0.0.1"), record)
    measurement = record.measurement()
    assert measurement.outcome is Outcome.REJECTED
    assert summary(measurement)["reasons"] == {"denied": 1}


@pytest.mark.parametrize(
    "error", [PrivilegeError(f"no\n{GRANT_HINT}"), SendError("open ICMPv6 socket", 97, "no IPv6")]
)
async def test_no_socket_is_our_error_and_says_what_to_do(error: Exception) -> None:
    def refuse(family: int) -> MemoryEchoEngine:
        raise error

    clock = ManualClock()
    prober = PingProber(clock, TargetResolver(TargetPolicy.person()), engine=refuse)
    record = Recorder(clock)
    await measure(prober, PingSpec(host="127.0.0.1"), record)
    measurement = record.measurement()
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert measurement.error.message == str(error)
    found = summary(measurement)
    assert (found["sent"], found["loss_pct"]) == (0, None)


async def test_a_run_whose_engine_breaks_still_has_a_summary(bench: Bench) -> None:
    async def broken(_run: EchoRun) -> None:
        raise ValueError("EchoEngine is closed")

    await bench.ping(host="192.0.2.1", count=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EchoDriver, "run", lambda _, run: broken(run))
        measurement = await bench.ping(host="192.0.2.1", count=2)
    assert measurement.outcome is Outcome.AGENT_ERROR
    found = summary(measurement)
    assert (found["sent"], found["cancelled"], found["loss_pct"]) == (0, False, None)


def test_the_grant_hint_has_lines_to_paste() -> None:
    for line in ("AmbientCapabilities=CAP_NET_RAW", "net.ipv4.ping_group_range", "sudo"):
        assert line in GRANT_HINT


async def test_close_is_idempotent(bench: Bench) -> None:
    await bench.ping(host="192.0.2.1", count=1)
    await bench.prober.close()
    await bench.prober.close()
