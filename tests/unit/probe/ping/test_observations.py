"""What a ping's result says: packets one by one or as columns, and the summary."""

import errno
import json
from typing import Any

import pytest

from netsonde import wire
from netsonde._native import icmp
from netsonde._native.ledger import EchoLedger
from netsonde.clock import NS_PER_MS
from netsonde.model import Outcome, PingSpec
from netsonde.probe.ping import observations, verdicts
from netsonde.probe.ping.run import COMPLETION, NOBODY, Counts, Method, PingRun
from netsonde.probe.ping.sockets import SocketDriver
from netsonde.stats import Histogram
from support.echo import Event, Request, answers
from support.ping_bench import PingBench, addresses, summary, values

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

# ── packets one by one, for original peers ───────────────────────────────────────────────────────


async def test_a_reply_is_told_as_the_original_does(bench: PingBench) -> None:
    measurement = await bench.ping(host="192.0.2.1", count=3, size=100)
    attempts = values(measurement, "ping_attempt")
    assert attempts[0] == {
        "attempt": 1, "success": True, "protocol": "icmp", "address": "192.0.2.1:0",
        "rtt_ms": 1.0, "bytes": 108, "ttl": 64,
    }  # fmt: skip
    assert [each["attempt"] for each in attempts] == [1, 2, 3]
    assert all(set(each) == ORIGINAL_SUCCESS for each in attempts)
    assert values(measurement, "ping_attempts") == []


async def test_a_failure_is_told_as_the_original_does(bench: PingBench) -> None:
    bench.script = lambda _: []
    attempt = values(await bench.ping(host="192.0.2.1", count=1), "ping_attempt")[0]
    assert set(attempt) == ORIGINAL_FAILURE
    assert (attempt["reason"], attempt["code"]) == ("timeout", None)


@pytest.mark.parametrize(("count", "attempts", "columns"), [(256, 256, 0), (257, 0, 1)])
async def test_original_peers_get_256_packets_one_by_one_and_no_more(
    bench: PingBench, count: int, attempts: int, columns: int
) -> None:
    measurement = await bench.ping(host="192.0.2.1", count=count, interval_ms=0)
    assert len(values(measurement, "ping_attempt")) == attempts
    assert len(values(measurement, "ping_attempts")) == columns


async def test_the_256_are_those_of_all_addresses(bench: PingBench) -> None:
    bench.names = {"many.example": ["192.0.2.1", "192.0.2.2"]}
    measurement = await bench.ping(host="many.example", count=129, interval_ms=0, addresses="all")
    assert values(measurement, "ping_attempt") == []
    assert [each["count"] for each in values(measurement, "ping_attempts")] == [129, 129]


async def test_late_and_duplicate_replies_are_told_apart(bench: PingBench) -> None:
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


async def test_a_reply_from_elsewhere_is_recorded_not_dropped(bench: PingBench) -> None:
    bench.script = lambda _: [Event(responder="198.51.100.5")]
    measurement = await bench.ping(host="192.0.2.1", count=1)
    assert measurement.outcome is Outcome.OK
    assert values(measurement, "ping_attempt")[0]["responder"] == "198.51.100.5"
    columns = values(await bench.ping(host="192.0.2.1", count=1, columnar=True), "ping_attempts")
    assert columns[0]["exceptions"] == [{"attempt": 1, "responder": "198.51.100.5"}]


async def test_a_ttl_that_is_not_known_is_null(bench: PingBench) -> None:
    bench.script = lambda _: [Event(ttl=0)]
    attempt = values(await bench.ping(host="192.0.2.1", count=1), "ping_attempt")[0]
    columns = values(await bench.ping(host="192.0.2.1", count=1, columnar=True), "ping_attempts")
    assert attempt["ttl"] is None
    assert columns[0]["ttl"] == [[None, 1]]


# ── columns ──────────────────────────────────────────────────────────────────────────────────────


async def test_columns_have_a_value_per_packet_or_per_row(bench: PingBench) -> None:
    bench.script = lambda request: [] if 2 <= request.attempt < 5 else [Event(after_ns=12_349)]
    measurement = await bench.ping(host="192.0.2.1", count=8, interval_ms=1, columnar=True)
    assert values(measurement, "ping_attempt") == []
    assert values(measurement, "ping_attempts") == [
        {
            "count": 8,
            "protocol": "icmp",
            "address": "192.0.2.1:0",
            "rtt_us": [12.3, 12.3, None, None, None, 12.3, 12.3, 12.3],
            "reasons": [[None, 2], ["timeout", 3], [None, 3]],
            "ttl": [[64, 2], [None, 3], [64, 3]],
            "bytes": [[64, 2], [None, 3], [64, 3]],
        }
    ]


async def test_exceptions_stand_beside_the_columns(bench: PingBench) -> None:
    fates = {
        1: [Event(after_ns=1100 * NS_PER_MS)],
        2: [Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254")],
        3: [Event(), Event(kind=icmp.DUPLICATE, after_ns=2 * NS_PER_MS)],
    }
    bench.script = lambda request: fates.get(request.attempt, [Event()])
    measurement = await bench.ping(host="192.0.2.1", count=5, interval_ms=500, columnar=True)
    assert values(measurement, "ping_attempts")[0]["exceptions"] == [
        {"attempt": 3, "icmp_type": 3, "icmp_code": 1, "responder": "192.0.2.254"},
        {"attempt": 4, "duplicate_rtt_ms": 2.0},
        {"attempt": 2, "late_rtt_ms": 1100.0},
    ]


async def test_a_cancelled_run_has_columns_of_what_was_sent(bench: PingBench) -> None:
    prepared = await bench.prober.prepare_all(PingSpec(host="192.0.2.1", count=10))
    (run,) = prepared.runs
    run.enter(EchoLedger())
    assert run.ledger is not None
    run.ledger.fold(run.stop_record(3))
    value = observations.columns(run, whole=True, exceptions_max=1)
    assert value is not None
    assert value["count"] == 3
    assert wire.parse(wire.encode(value))["rtt_us"] == [None] * 3
    assert value["reasons"] == [["cancelled", 3]]


async def test_of_too_many_packets_only_the_histogram_is_left(bench: PingBench) -> None:
    count = observations.COLUMNS_MAX + 1
    measurement = await bench.ping(host="192.0.2.1", count=count, interval_ms=0, columnar=True)
    assert [each.name for each in measurement.observations] == ["ping_summary"]
    found = summary(measurement)
    assert (found["sent"], found["received"]) == (count, count)
    assert Histogram.of(found["histogram"]["counts"]).count == count


async def test_of_too_many_packets_exceptions_are_still_told(bench: PingBench) -> None:
    bench.script = lambda _: [Event(responder="198.51.100.5")]
    count = observations.COLUMNS_MAX + 1
    measurement = await bench.ping(host="192.0.2.1", count=count, interval_ms=0, columnar=True)
    (value,) = values(measurement, "ping_attempts")
    assert set(value) == {"count", "protocol", "address", "exceptions"}
    assert len(value["exceptions"]) == observations.EXCEPTIONS_MAX


@pytest.mark.parametrize("hosts", [1, 32])
async def test_the_largest_result_fits_an_item(bench: PingBench, hosts: int) -> None:
    bench.names = {"many.example": [f"198.51.100.{n + 100}" for n in range(hosts)]}

    def worst(_request: Request) -> list[Event]:
        kind = icmp.ERROR if next(turns) % 2 else icmp.REPLY
        return [
            Event(
                kind=kind,
                after_ns=59_999_999_900,
                icmp_type=3,
                code=1,
                ttl=255,
                responder="198.51.100.255",
            )
        ]

    turns = iter(range(1 << 30))
    bench.script = worst
    count = observations.COLUMNS_MAX // hosts
    measurement = await bench.ping(
        host="many.example",
        count=count,
        interval_ms=0,
        timeout_ms=60_000,
        size=icmp.SIZE_MAX_BYTES,
        addresses="all",
        columnar=True,
    )
    value = values(measurement, "ping_attempts")
    assert len(value) == hosts
    item = wire.parse(wire.encode_report_item(2**63, measurement))
    assert "observations_dropped" not in item["env"]


# ── the summary ──────────────────────────────────────────────────────────────────────────────────


async def test_the_summary_has_the_originals_fields_and_ours(bench: PingBench) -> None:
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
    assert (found["socket"], found["backend"]) == ("raw", "header")
    assert Histogram.of(found["histogram"]["counts"]).count == 4


async def test_silence_has_no_round_trip_times(bench: PingBench) -> None:
    bench.script = lambda _: []
    found = summary(await bench.ping(host="192.0.2.1", count=3))
    assert (found["success"], found["loss_pct"], found["reasons"]) == (False, 100.0, {"timeout": 3})
    assert {found[name] for name in RTTS} == {None}
    assert found["rx_clock"] is None


@pytest.mark.parametrize(
    ("code", "loss_pct"),
    [
        (errno.ENETUNREACH, 100.0),
        (errno.EHOSTUNREACH, 100.0),
        (errno.ENOBUFS, None),
        (errno.EPERM, None),
    ],
)
async def test_refused_sends_are_not_loss(
    bench: PingBench, code: int, loss_pct: float | None
) -> None:
    bench.script = lambda _: [Event(kind=icmp.TX_ERROR, errno=code)]
    measurement = await bench.ping(host="192.0.2.1", count=2)
    found = summary(measurement)
    assert (found["sent"], found["tx_errors"], found["lost"]) == (0, 2, 0)
    assert found["loss_pct"] == loss_pct
    assert values(measurement, "ping_attempt")[0]["code"] == code


async def test_loss_is_of_what_was_sent_and_not_dropped_here(bench: PingBench) -> None:
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


async def test_replies_all_dropped_here_leave_loss_unknown(bench: PingBench) -> None:
    bench.script = lambda _: [Event(kind=icmp.RX_DROP)]
    assert summary(await bench.ping(host="192.0.2.1", count=2))["loss_pct"] is None


async def test_one_user_stamp_makes_the_summary_say_so(bench: PingBench) -> None:
    bench.script = lambda request: [Event(clocks=0 if request.attempt == 1 else icmp.RX_KERNEL)]
    assert summary(await bench.ping(host="192.0.2.1", count=3))["rx_clock"] == "user"


async def test_the_clock_of_an_icmp_error_times_no_reply(bench: PingBench) -> None:
    error = Event(kind=icmp.ERROR, icmp_type=3, code=1, clocks=0)
    bench.script = lambda request: [error] if request.attempt == 1 else answers(request)
    assert summary(await bench.ping(host="192.0.2.1", count=3))["rx_clock"] == "kernel"


async def test_several_addresses_are_one_summary(bench: PingBench) -> None:
    bench.names = {"many.example": ["192.0.2.1", "192.0.2.2", "192.0.2.3"]}
    delays = {"192.0.2.1": 10, "192.0.2.2": 30}
    jitter = {"192.0.2.1": 0, "192.0.2.2": 8}

    def script(request: Request) -> list[Event]:
        if request.address not in delays:
            return []
        later = jitter[request.address] * (request.attempt % 2)
        return [Event(after_ns=(delays[request.address] + later) * NS_PER_MS)]

    bench.script = script
    measurement = await bench.ping(host="many.example", count=2, addresses="all")
    found = summary(measurement)
    assert (found["sent"], found["received"], found["lost"]) == (6, 4, 2)
    assert found["loss_pct"] == pytest.approx(33.3333)
    assert (found["min_rtt_ms"], found["max_rtt_ms"], found["avg_rtt_ms"]) == (10, 38, 22)
    assert found["jitter_ms"] == 0.5  # the second address's, not that between addresses
    assert found["rate_pps"] == 50.0  # six packets in 100 ms
    assert found["reasons"] == {"timeout": 2}
    assert Histogram.of(found["histogram"]["counts"]).count == 4
    assert [each["avg_rtt_ms"] for each in addresses(measurement)] == [10, 34, None]


async def test_no_route_to_any_address_is_a_loss_of_all(bench: PingBench) -> None:
    bench.names = {"many.example": ["192.0.2.1", "192.0.2.2"]}
    bench.script = lambda _: [Event(kind=icmp.TX_ERROR, errno=errno.ENETUNREACH)]
    found = summary(await bench.ping(host="many.example", count=2, addresses="all"))
    assert (found["loss_pct"], found["reasons"]) == (100.0, {"no_route": 4})


def test_the_instants_of_several_runs_are_those_of_all() -> None:
    def counts(first_ns: int, last_ns: int) -> Counts:
        return Counts(1, 1, 1, 0, 0, 0, 0, 0, 0, first_ns, last_ns)

    total = Counts.total([counts(0, 0), counts(5, 9), counts(3, 7)])
    assert (total.submitted, total.first_sent_ns, total.last_sent_ns) == (3, 3, 9)
    assert Counts.total([counts(0, 0)]).first_sent_ns == 0


# ── methods tcp and udp ──────────────────────────────────────────────────────────────────────────


def answered(bench: PingBench, method: Method, *replies: tuple[int, int, int]) -> PingRun:
    """A run whose attempts were answered: (ICMP type, errno, payload size) each; -1: not at all."""

    async def unused(run: PingRun, token: int) -> None:
        raise AssertionError

    carrier = SocketDriver(bench.clock, unused, "stream")  # type: ignore[arg-type]
    run = PingRun(
        carrier=carrier, address="192.0.2.1", count=len(replies), interval_ns=0,
        timeout_ns=NS_PER_MS, method=method, port=443,
    )  # fmt: skip
    ledger = EchoLedger()
    run.enter(ledger)
    for attempt, (icmp_type, code, size) in enumerate(replies):
        kind = icmp.TIMEOUT if icmp_type < 0 else icmp.REPLY
        ledger.fold(COMPLETION.pack(
            run.token + attempt, NS_PER_MS, 1 + attempt, NOBODY if icmp_type < 0 else
            run.destination, kind, max(icmp_type, 0), 3 if icmp_type > 0 else 0, 0, size, 0, code,
        ))  # fmt: skip
    return run


async def test_a_reset_is_an_answer_and_noted(bench: PingBench) -> None:
    run = answered(
        bench, "tcp", (0, 0, 0), (0, errno.ECONNREFUSED, 0), (0, errno.ECONNRESET, 0), (-1, 0, 0)
    )
    value = observations.columns(run, whole=True, exceptions_max=9)
    assert value is not None
    assert (value["protocol"], value["address"]) == ("tcp", "192.0.2.1:443")
    assert value["answers"] == [["connected", 1], ["refused", 1], ["reset", 1], [None, 1]]
    assert value["bytes"] == value["ttl"] == [[None, 4]]
    whole = observations.summary([run], [verdicts.tally(run)], cancelled=False)
    assert whole["answers"] == {"connected": 1, "refused": 1, "reset": 1}
    assert (whole["protocol"], whole["port"], whole["received"]) == ("tcp", 443, 3)
    assert (whole["socket"], whole["backend"]) == ("stream", None)
    assert observations.attempts(run)[1]["answer"] == "refused"
    assert "answer" not in observations.attempts(run)[3]


async def test_a_closed_port_is_an_answer_to_udp(bench: PingBench) -> None:
    run = answered(bench, "udp", (0, 0, 12), (0, 0, 0), (3, 0, 0), (-1, 0, 0))
    value = observations.columns(run, whole=True, exceptions_max=9)
    assert value is not None
    assert value["answers"] == [["datagram", 2], ["unreachable_port", 1], [None, 1]]
    assert value["bytes"] == [[20, 1], [8, 1], [None, 2]]
    assert json.loads(run.rtt_us_json) == [1000.0, 1000.0, 1000.0, None]
    assert observations.attempts(run)[2]["bytes"] is None


async def test_many_packets_of_several_addresses_are_summed_up_from_their_parts(
    bench: PingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.names = {"many.example": ["192.0.2.1", "192.0.2.2"]}
    bench.script = lambda request: [Event(after_ns=(request.attempt + 1) * 10_000)]
    spec: dict[str, Any] = {
        "host": "many.example",
        "count": 100,
        "interval_ms": 0,
        "addresses": "all",
    }
    exact = summary(await bench.ping(**spec))
    monkeypatch.setattr(observations, "COLUMNS_MAX", 100)
    monkeypatch.delattr(observations, "summarise")
    close = summary(await bench.ping(**spec))
    for name in RTTS:
        tolerance = 0.033 if name.startswith("p") else 1e-6
        assert close[name] == pytest.approx(exact[name], rel=tolerance), name


async def test_an_error_that_the_target_sent_has_no_responder(bench: PingBench) -> None:
    bench.script = lambda _: [Event(kind=icmp.ERROR, icmp_type=3, code=3, responder="192.0.2.1")]
    attempt = values(await bench.ping(host="192.0.2.1", count=1), "ping_attempt")[0]
    assert "responder" not in attempt
    assert attempt["message"].endswith("says 192.0.2.1")
