"""Why a packet was not answered, and what a run as a whole amounts to."""

import errno
from collections.abc import Iterator

import pytest

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS
from netsonde.model import FailureSource, Outcome, PingExpect, Reason
from netsonde.probe.ping import verdicts
from netsonde.probe.ping.observations import EMPTY_SUMMARY
from netsonde.probe.ping.run import PingRun
from netsonde.probe.ping.verdicts import EXPECTATIONS, mismatch, unmet
from support.echo import Event, silence
from support.ping_bench import PingBench, summary, values


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
    bench: PingBench, host: str, icmp_type: int, code: int, reason: Reason, source: FailureSource
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
    ("code", "outcome", "reason"),
    [
        (errno.ENETUNREACH, Outcome.TARGET_ERROR, Reason.NO_ROUTE),
        (errno.EHOSTUNREACH, Outcome.TARGET_ERROR, Reason.NO_ROUTE),
        (errno.ENOBUFS, Outcome.AGENT_ERROR, Reason.TX_ERROR),
        (errno.EPERM, Outcome.AGENT_ERROR, Reason.TX_ERROR),
    ],
)
async def test_refused_sends_are_our_own_failure(
    bench: PingBench, code: int, outcome: Outcome, reason: Reason
) -> None:
    bench.script = lambda _: [Event(kind=icmp.TX_ERROR, errno=code)]
    measurement = await bench.ping(host="192.0.2.1", count=2)
    assert measurement.outcome is outcome
    assert measurement.error is not None
    assert measurement.error.reason == reason
    assert measurement.error.failure_source == FailureSource.SELF


async def test_replies_all_dropped_here_are_our_error(bench: PingBench) -> None:
    bench.script = lambda _: [Event(kind=icmp.RX_DROP)]
    measurement = await bench.ping(host="192.0.2.1", count=2)
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert "receive queue" in values(measurement, "ping_attempt")[0]["message"]


async def test_the_dominant_reason_decides(bench: PingBench) -> None:
    error = Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254")
    bench.script = lambda request: [] if request.attempt == 0 else [error]
    measurement = await bench.ping(host="192.0.2.1", count=3)
    assert measurement.error is not None
    assert measurement.error.reason == Reason.UNREACHABLE_HOST
    assert "(2 of 3 packets)" in measurement.error.message


async def test_of_equally_many_the_earliest_decides(bench: PingBench) -> None:
    error = Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254")
    bench.script = lambda request: [error] if request.attempt == 0 else []
    measurement = await bench.ping(host="192.0.2.1", count=2)
    assert measurement.error is not None
    assert measurement.error.reason == Reason.UNREACHABLE_HOST


async def test_a_late_reply_does_not_pass_for_who_sent_the_error(bench: PingBench) -> None:
    error = Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254")
    late = Event(kind=icmp.LATE, after_ns=2 * NS_PER_MS, responder="192.0.2.1")
    bench.script = lambda request: [error, late] if request.attempt == 0 else [error]
    measurement = await bench.ping(host="192.0.2.1", count=2)
    assert measurement.error is not None
    assert "host unreachable, says 192.0.2.254" in measurement.error.message


async def test_the_address_that_failed_is_named(bench: PingBench) -> None:
    bench.names = {"many.example": ["192.0.2.1", "192.0.2.2"]}
    error = Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254")
    bench.script = lambda request: [error] if request.address == "192.0.2.2" else []
    measurement = await bench.ping(host="many.example", count=1, addresses="all")
    assert measurement.error is not None
    assert measurement.error.message == "192.0.2.1: no reply within 1000 ms (1 of 2 packets)"


SEEN = EMPTY_SUMMARY | {"loss_pct": 5.0, "avg_rtt_ms": 2.0, "p95_ms": 4.0, "jitter_ms": 0.5}


def test_a_limit_may_be_reached_and_not_passed() -> None:
    just = PingExpect(loss_pct_max=5, avg_ms_max=2, p95_ms_max=4, jitter_ms_max=0.5)
    assert unmet(just, SEEN) == []
    found = unmet(PingExpect(loss_pct_max=4.9, avg_ms_max=1.9, p95_ms_max=3.9, jitter_ms_max=0.4),
                  SEEN)  # fmt: skip
    assert [each["name"] for each in found] == list(EXPECTATIONS)
    assert found[1] == {"name": "avg_ms_max", "limit": 1.9, "seen": 2.0}


def test_what_was_not_seen_is_not_met() -> None:
    found = unmet(PingExpect(loss_pct_max=0, avg_ms_max=1), EMPTY_SUMMARY)
    assert [each["seen"] for each in found] == [None, None]
    assert mismatch("h", found).message == "h: expected loss_pct_max 0, saw None"


async def test_packets_are_counted_once_a_run(
    bench: PingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[PingRun] = []
    ends = verdicts.ends

    def count(run: PingRun) -> Iterator[tuple[int, int, int]]:
        counted.append(run)
        return ends(run)

    monkeypatch.setattr(verdicts, "ends", count)
    bench.names = {"many.example": ["192.0.2.1", "192.0.2.2"]}
    bench.script = lambda request: [] if request.attempt else [Event()]
    await bench.ping(host="many.example", count=6000, interval_ms=0, addresses="all", columnar=True)
    assert len(counted) == 2
    bench.script = silence
    await bench.ping(host="192.0.2.1", count=6000, interval_ms=0, columnar=True)
    assert len(counted) == 4  # and once up to the first that fits the message


async def test_the_message_is_of_the_first_packet_that_fits(bench: PingBench) -> None:
    fates = [
        [],
        [Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254")],
        [Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.253")],
    ]
    bench.script = lambda request: fates[request.attempt]
    measurement = await bench.ping(host="192.0.2.1", count=3)
    assert measurement.error is not None
    assert measurement.error.message.endswith("says 192.0.2.254 (2 of 3 packets)")
