"""The trace prober over the engine's twin: what a spec becomes, and how a run ends."""

import errno
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import PrivilegeError, RouteError, SendError
from netsonde.model import FailureSource, Outcome, Reason, TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder
from netsonde.probe.ping.lane import Lane
from support.ping_bench import values
from support.trace_bench import (
    ROUTER,
    ROUTER6,
    TARGET,
    TARGET6,
    TraceBench,
    addresses,
    error_of,
    path,
    seen,
)
from support.trace_endings import Ending, answer
from support.trace_twin import TraceRequest

BOTH = {"both.example": [TARGET6, TARGET]}
NO_ROUTE = Ending(stop=icmp.STOPPED_TX_ERROR, errno=errno.ENETUNREACH, tx_errors=1, attempts=b"\1")


# ── a trace ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_destination_that_answers_is_ok(bench: TraceBench) -> None:
    measurement, value = await bench.trace()
    assert (measurement.outcome, measurement.error) == (Outcome.OK, None)
    assert measurement.env["source"] == value["source"] == "192.0.2.99"
    assert measurement.env["policy_version"] == bench.prober.resolver.policy.version
    assert addresses(value) == [ROUTER, TARGET]
    told = {name: value[name] for name in ("host", "status", "address", "stop_reason", "sent")}
    assert told == {
        "host": TARGET,
        "status": "ok",
        "address": TARGET,
        "stop_reason": "completed",
        "sent": 2,
    }
    assert not {"multipath", "pmtu", "unreachable"} & set(value)


async def test_ipv6_is_the_same(bench: TraceBench) -> None:
    measurement, value = await bench.trace(TARGET6)
    assert measurement.outcome is Outcome.OK
    assert addresses(value) == [ROUTER6, TARGET6]
    assert list(bench.twins) == [6]


async def test_what_the_spec_asks_for_is_in_the_request(bench: TraceBench) -> None:
    await bench.trace(
        method="udp", port=53, first_hop=2, max_hops=9, probes_per_hop=4, gap_limit=6,
        timeout_ms=70, interval_ms=80, size=100, dscp=46, all_probes=True,
    )  # fmt: skip
    (request,) = bench.traces
    wanted = TraceRequest(
        request.token, 70 * NS_PER_MS, 80 * NS_PER_MS, request.destination, bytes(16), 0, 0, 0, 53,
        100, icmp.TRACE_UDP, 2, 9, 4, 6, 46 << 2, icmp.TRACE_ALL_ATTEMPTS,
    )  # fmt: skip
    assert request == wanted
    assert bench.twins[4].opened == [icmp.TRACE_UDP]


@pytest.mark.parametrize(("method", "port"), [("icmp", 0), ("udp", 33434), ("tcp", 80)])
async def test_a_method_has_its_port(bench: TraceBench, method: str, port: int) -> None:
    await bench.trace(method=method)
    assert bench.traces[0].port == port


async def test_a_mark_is_a_way_of_its_own(bench: TraceBench) -> None:
    await bench.trace(mark=7)
    assert [each.mark for each in bench.twins[4].paths] == [7]
    assert bench.traces[0].path == 1


async def test_traces_and_pings_share_an_engine(bench: TraceBench) -> None:
    await bench.trace()
    await bench.ping(host=TARGET, count=1)
    assert len(bench.opened) == 1


async def test_traces_run_beside_each_other(bench: TraceBench) -> None:
    bench.plans[4] = lambda _: None
    records = [Recorder(bench.clock) for _ in range(3)]
    tasks = [bench.start(record, f"198.51.100.{n}") for n, record in enumerate(records, 1)]
    await bench.clock.settle()
    for request in reversed(bench.traces):
        bench.twins[4].end(request, path(request))
    await bench.finish(tasks)
    assert [record.measurement().outcome for record in records] == [Outcome.OK] * 3
    assert [request.destination[3] for request in bench.traces] == [1, 2, 3]


async def test_a_zone_is_the_scope_of_the_request(bench: TraceBench) -> None:
    await bench.trace("fe80::1%lo")
    (request,) = bench.twins[6].traces
    assert request.destination == ip_address("fe80::1").packed
    assert request.scope == socket.if_nametoindex("lo")


async def test_who_watches_hears_of_every_answer_and_its_trace(bench: TraceBench) -> None:
    bench.tracer = bench.new_tracer(watch=lambda spec, told: bench.watched.append((spec, told)))
    bench.plans[4] = lambda _: None
    task = bench.start(Recorder(bench.clock))
    await bench.clock.settle()
    (request,) = bench.traces
    bench.twins[4].tell(request, answer(1, ROUTER))
    bench.twins[4].end(request, path(request))
    await bench.finish([task])
    assert request.flags == icmp.TRACE_WATCHED
    assert [(spec.host, told.ttl, told.address) for spec, told in bench.watched] == [
        (TARGET, 1, ROUTER)
    ]


async def test_a_refusal_is_a_target_error_that_says_who(bench: TraceBench) -> None:
    refusal = answer(1, ROUTER, icmp_type=3, icmp_code=13)
    bench.plans[4] = lambda _: Ending(answers=[refusal], stop=icmp.STOPPED_UNREACHABLE, end_ttl=1)
    measurement, value = await bench.trace()
    reason, source, message = error_of(measurement)
    assert (measurement.outcome, reason, source) == (Outcome.TARGET_ERROR, "filtered", "path")
    assert f"{ROUTER} at TTL 1 says" in message
    assert (value["stop_reason"], value["status"]) == ("unreachable", "ok")
    assert value["unreachable"]["address"] == ROUTER


# ── no way there ─────────────────────────────────────────────────────────────────────────────────


async def test_the_next_address_is_tried_where_there_is_no_route(bench: TraceBench) -> None:
    bench.names = BOTH
    bench.plans[6] = lambda _: NO_ROUTE
    measurement, value = await bench.trace("both.example")
    assert measurement.outcome is Outcome.OK
    assert (value["address"], value["stop_reason"]) == (TARGET, "completed")
    assert len(bench.twins[6].traces) == 1


async def test_no_route_to_any_address_is_our_own_failure(bench: TraceBench) -> None:
    bench.names = BOTH
    bench.plans = {4: lambda _: NO_ROUTE, 6: lambda _: NO_ROUTE}
    measurement, value = await bench.trace("both.example")
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert error_of(measurement) == (
        Reason.NO_ROUTE,
        FailureSource.SELF,
        "both.example: this host has no route there: Network is unreachable",
    )
    assert (value["stop_reason"], value["status"]) == ("no_route", "error")


async def test_packets_that_the_kernel_refuses_otherwise_are_no_missing_route(
    bench: TraceBench,
) -> None:
    bench.names = BOTH
    bench.plans[6] = lambda _: Ending(
        stop=icmp.STOPPED_TX_ERROR, errno=errno.ENOBUFS, attempts=b"\1"
    )
    measurement, value = await bench.trace("both.example")
    assert error_of(measurement)[0] == Reason.TX_ERROR
    assert (value["stop_reason"], value["status"]) == ("tx_error", "error")
    assert value["address"] == TARGET6


async def test_a_way_that_cannot_be_found_is_no_route(
    bench: TraceBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(_lane: Lane, address: str, wanted: object) -> int:
        raise RouteError(f"cannot send to {address}: this host has no route to it")

    monkeypatch.setattr(Lane, "path", nowhere)
    measurement, value = await bench.trace()
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert error_of(measurement)[0] == Reason.NO_ROUTE
    assert value["stop_reason"] == "no_route"


async def test_a_family_that_this_host_lacks_is_no_route(bench: TraceBench) -> None:
    bench.engine_error = SendError("open ICMPv6 socket", errno.EAFNOSUPPORT, "no IPv6")
    measurement, value = await bench.trace(TARGET6)
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert value["stop_reason"] == "no_route"


async def test_sockets_that_cannot_be_opened_are_told(bench: TraceBench) -> None:
    bench.open_error = OSError(errno.EMFILE, "Too many open files")
    measurement, value = await bench.trace()
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert error_of(measurement)[2].endswith("Too many open files")
    assert value["sent"] == 0


# ── what may not be ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EPERM, "Operation not permitted"), "tcp: Operation not permitted"),
        (ValueError("no raw sockets"), "tcp needs raw sockets, and this process has the back end"),
    ],
)
async def test_missing_privilege_says_how_to_be_granted_it(
    bench: TraceBench, error: Exception, says: str
) -> None:
    bench.open_error = error
    bench.names = BOTH  # and no other address is tried
    record = Recorder(bench.clock)
    with pytest.raises(PrivilegeError, match="AmbientCapabilities=CAP_NET_RAW") as caught:
        await bench.tracer.run(TraceSpec(host="both.example", method="tcp"), record)
    assert says in str(caught.value)
    value = seen(record)
    assert (value["status"], value["stop_reason"]) == ("permission_denied", "denied")
    assert value["permission_denied"] is True
    assert list(bench.twins) == [6]


async def test_an_engine_without_privilege_is_denied_alike(bench: TraceBench) -> None:
    bench.engine_error = PrivilegeError("no socket")
    measurement, value = await bench.trace()
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert value["permission_denied"] is True


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"port": 80}, "port 80 is for method udp or tcp"),
        ({"method": "tcp", "size": 100}, "size is for method icmp or udp"),
        ({"method": "tcp", "pmtud": True}, "pmtud is for method icmp or udp"),
        ({"first_hop": 9, "max_hops": 8}, "first_hop must be a whole number from 1 to max_hops, 8"),
    ],
)
async def test_a_spec_that_makes_no_sense_is_rejected(
    bench: TraceBench, fields: dict[str, Any], says: str
) -> None:
    measurement, value = await bench.trace(**fields)
    assert measurement.outcome is Outcome.REJECTED
    assert says in error_of(measurement)[2]
    assert (value["status"], value["address"], bench.opened) == ("error", None, [])


async def test_datagram_sockets_find_no_mtu(bench: TraceBench) -> None:
    bench.backend = "datagram"
    measurement, _ = await bench.trace(pmtud=True)
    assert measurement.outcome is Outcome.REJECTED
    assert "pmtud needs raw sockets" in error_of(measurement)[2]
    assert bench.traces == []


async def test_what_the_engine_cannot_send_is_rejected(bench: TraceBench) -> None:
    bench.lane()
    bench.twins[4].wrong = 198
    measurement, value = await bench.trace()
    assert measurement.outcome is Outcome.REJECTED
    assert error_of(measurement)[2] == "the ICMP engine cannot send this: size must be another"
    assert value["status"] == "error"


async def test_a_name_that_does_not_resolve_gives_the_resolution_too(bench: TraceBench) -> None:
    measurement, value = await bench.trace(family=6)
    assert [each.name for each in measurement.observations] == ["trace_resolution", "trace"]
    (resolution,) = values(measurement, "trace_resolution")
    reason, source, message = error_of(measurement)
    assert resolution == {"host": TARGET, "error": message}
    assert (reason, source) == (Reason.RESOLVE_FAILED, FailureSource.RESOLVER)
    assert (value["stop_reason"], value["hops"]) == ("resolve_failed", [])


async def test_a_denied_target_is_not_probed() -> None:
    bench = TraceBench(TargetPolicy())  # an agent's: no loopback
    measurement, value = await bench.trace("127.0.0.1")
    assert measurement.outcome is Outcome.REJECTED
    assert (value["stop_reason"], value["permission_denied"]) == ("denied", False)
    assert bench.opened == []


# ── cancelled, closed ────────────────────────────────────────────────────────────────────────────


async def test_a_cancelled_trace_tells_what_it_saw(bench: TraceBench) -> None:
    bench.plans[4] = lambda _: None
    record = Recorder(bench.clock)
    task = bench.start(record)
    await bench.clock.settle()
    bench.twins[4].partial = [answer(1, ROUTER)]
    await bench.clock.advance(3 * NS_PER_MS)
    task.cancel()
    await bench.clock.settle()
    assert task.cancelled()
    value = seen(record)
    assert (value["status"], value["stop_reason"]) == ("cancelled", "cancelled")
    assert value["hops"][0]["address"] == ROUTER
    assert value["total_duration_ms"] == 3.0


async def test_a_trace_that_waits_for_its_end_takes_as_long(bench: TraceBench) -> None:
    bench.plans[4] = lambda _: None
    record = Recorder(bench.clock)
    task = bench.start(record)
    await bench.clock.advance(2 * NS_PER_S)
    bench.twins[4].end(bench.traces[0], path(bench.traces[0]))
    await bench.finish([task])
    assert seen(record)["total_duration_ms"] == 2000.0


async def test_an_engine_that_is_closed_meanwhile_fails_its_traces(bench: TraceBench) -> None:
    bench.plans[4] = lambda _: None
    record = Recorder(bench.clock)
    task = bench.start(record)
    await bench.clock.settle()
    await bench.tracer.close()
    await bench.tracer.close()
    await bench.finish([task])
    assert "was closed before the trace ended" in error_of(record.measurement())[2]
    assert seen(record)["stop_reason"] == "tx_error"
