"""The trace prober on a manual clock and a network that is known exactly."""

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.errors import PrivilegeError, ResolveError, TargetDeniedError
from netsonde.model import FailureSource, Family, Measurement, Outcome, Reason, TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import TraceProber
from netsonde.probe.trace_lane import TraceEngine
from netsonde.probe.trace_path import DUPLICATE, TRANSLATED, USER_CLOCK
from support.trace_network import Plan, Reply, TwinSocket, move, play, straight

TARGET = "198.51.100.7"
TARGET6 = "2001:db8::7"
ROUTERS = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
ORIGINAL_FIELDS = [
    "host",
    "status",
    "paris_flow",
    "total_duration_ms",
    "hops",
    "nat_detected",
    "loop_detected",
    "permission_denied",
    "protocols",
]


class Names(TargetResolver):
    """Resolves from a table; what is not in it does not exist."""

    def __init__(self, table: dict[str, tuple[str, ...]]) -> None:
        super().__init__(TargetPolicy.person())
        self._table = table

    async def addresses(self, host: str, family: Family = "any") -> tuple[str, ...]:
        if host == "denied.example":
            raise TargetDeniedError("denied.example: 10.0.0.1 is private")
        if host not in self._table:
            raise ResolveError(f"{host}: the name does not exist")
        return self._table[host]


class World:
    """A prober over twin sockets, and what its runs gave."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.sockets: dict[int, TwinSocket] = {
            4: TwinSocket(self.clock, 4, TARGET, straight(ROUTERS, TARGET)),
            6: TwinSocket(self.clock, 6, TARGET6, straight(["2001:db8::1"], TARGET6)),
        }
        self.open_error: OSError | None = None
        names = {"target.example": (TARGET,), "both.example": (TARGET6, TARGET)}
        self.prober = TraceProber(self.clock, Names(names), engine=self._open)

    def _open(self, family: int) -> TraceEngine:
        if self.open_error is not None:
            raise self.open_error
        return self.sockets[4 if family == 2 else 6]

    def plan(self, plan: Plan) -> None:
        self.sockets[4].plan = plan

    def recorder(self) -> Recorder:
        return Recorder(self.clock)

    async def trace(self, host: str = "target.example", **fields: Any) -> Measurement:
        record = self.recorder()
        await play(
            self.clock,
            list(self.sockets.values()),
            measure(self.prober, TraceSpec(host=host, **fields), record),
        )
        return record.measurement()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.prober.close()
    for each in world.sockets.values():
        assert not each.live
        each.close()


def seen(measurement: Measurement) -> dict[str, Any]:
    """Return the one `trace` of a measurement."""
    values = [each.value for each in measurement.observations if each.name == "trace"]
    assert len(values) == 1
    value: dict[str, Any] = values[0]
    assert list(value)[: len(ORIGINAL_FIELDS)] == ORIGINAL_FIELDS
    assert len(value["protocols"]) == value["sent"]
    return value


def addresses(value: dict[str, Any]) -> list[str | None]:
    return [hop.get("address") for hop in value["hops"]]


async def test_trace_tells_the_path_in_one_round_trip(world: World) -> None:
    measurement = await world.trace()

    value = seen(measurement)
    assert measurement.outcome is Outcome.OK
    assert measurement.error is None
    assert measurement.env["source"] == "192.0.2.99"
    assert addresses(value) == [*ROUTERS, TARGET]
    assert [hop["rtt_ms"] for hop in value["hops"]] == [10.0, 20.0, 30.0, 40.0]
    assert measurement.duration_ns <= 41 * NS_PER_MS
    assert value | {"hops": None, "total_duration_ms": None} == {
        "host": "target.example",
        "status": "ok",
        "paris_flow": 4711,
        "total_duration_ms": None,
        "hops": None,
        "nat_detected": False,
        "loop_detected": False,
        "permission_denied": False,
        "protocols": ["icmp"] * 19,  # the window, and three that it slid
        "stop_reason": "completed",
        "address": TARGET,
        "sent": 19,
        "late": 0,
        "duplicates": 0,
        "tx_errors": 0,
        "rx_drops": 0,
        "tx_clock": "user",
        "rx_clock": "kernel",
    }


async def test_hop_has_the_original_fields_and_every_probe(world: World) -> None:
    value = seen(await world.trace())

    assert value["hops"][0] == {
        "ttl": 1,
        "address": ROUTERS[0],
        "rtt_ms": 10.0,
        "protocol": "icmp",
        "success": True,
        "reached_destination": False,
        "probes": [
            {
                "attempt": 0,
                "address": ROUTERS[0],
                "rtt_ms": 10.0,
                "reply_ttl": 64,
                "icmp_type": 11,
                "icmp_code": 0,
                "late": False,
                "duplicate": False,
                "quoted_ttl": 1,
                "quoted_tos": 0,
            }
        ],
    }
    assert value["hops"][3]["reached_destination"] is True
    assert "quoted_ttl" not in value["hops"][3]["probes"][0]


async def test_ipv6_is_traced_alike(world: World) -> None:
    measurement = await world.trace("both.example")

    assert measurement.outcome is Outcome.OK
    assert addresses(seen(measurement)) == ["2001:db8::1", TARGET6]


async def test_near_destination_costs_one_burst(world: World) -> None:
    world.plan(straight([], TARGET, rtt_ms=0.05))

    value = seen(await world.trace())

    assert (addresses(value), value["sent"]) == ([TARGET], 4)


async def test_silent_hop_is_asked_probes_per_hop_times(world: World) -> None:
    world.plan(straight([ROUTERS[0], None, ROUTERS[2]], TARGET, rtt_ms=1))

    measurement = await world.trace(probes_per_hop=2, timeout_ms=1000)

    value = seen(measurement)
    assert measurement.outcome is Outcome.OK
    assert value["hops"][1] == {
        "ttl": 2,
        "protocol": "icmp",
        "success": False,
        "reached_destination": False,
        "error": "timeout",
        "probes": [{"attempt": 0, "error": "timeout"}, {"attempt": 1, "error": "timeout"}],
    }
    assert addresses(value) == [ROUTERS[0], None, ROUTERS[2], TARGET]
    assert measurement.duration_ns == pytest.approx(1250 * NS_PER_MS, abs=5 * NS_PER_MS)


async def test_lost_probe_is_made_up_for(world: World) -> None:
    whole = straight(ROUTERS, TARGET)
    world.plan(lambda ttl, attempt: whole(ttl, attempt) if ttl != 3 or attempt == 1 else [])

    value = seen(await world.trace())

    assert addresses(value) == [*ROUTERS, TARGET]
    assert [probe.get("error") for probe in value["hops"][2]["probes"]] == ["timeout", None]


async def test_late_and_duplicate_answers_are_told_and_not_believed(world: World) -> None:
    def plan(ttl: int, attempt: int) -> list[Reply]:
        if ttl == 1:
            return [Reply(ROUTERS[0], 5), Reply(ROUTERS[0], 6, flags=DUPLICATE)]
        if ttl == 2:
            return [Reply(ROUTERS[1], 450)]
        return [Reply(TARGET, 20)] if ttl > 3 or attempt == 2 else []

    world.plan(plan)

    value = seen(await world.trace(timeout_ms=400))

    assert (value["duplicates"], value["late"]) == (1, 2)
    assert [hop["success"] for hop in value["hops"]] == [True, False, True]
    late = value["hops"][1]["probes"]
    assert [each.get("late") for each in late[:2]] == [True, None]
    assert value["hops"][1]["error"] == "timeout"


async def test_answer_in_time_that_is_read_after_the_timeout_counts(world: World) -> None:
    world.plan(straight([], TARGET, rtt_ms=1400))
    spec = TraceSpec(host="target.example", max_hops=1, probes_per_hop=1, timeout_ms=1500)
    record = world.recorder()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(world.prober, spec, record))
        await world.clock.advance(1501 * NS_PER_MS)  # and nobody rings: the loop is late
        assert task.done()

    assert record.measurement().outcome is Outcome.OK
    assert seen(record.measurement())["hops"][0]["rtt_ms"] == 1400.0


async def test_unreachable_says_who_and_why(world: World) -> None:
    def plan(ttl: int, attempt: int) -> list[Reply]:
        if ttl < 3:
            return [Reply(ROUTERS[ttl - 1], 5)]
        return [Reply(ROUTERS[2], 15, icmp=(3, 13))]

    world.plan(plan)

    measurement = await world.trace()

    value = seen(measurement)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.FILTERED
    assert measurement.error.failure_source == FailureSource.PATH
    assert "192.0.2.3 at TTL 3" in measurement.error.message
    assert value["stop_reason"] == "unreachable"
    assert value["unreachable"]["icmp_code"] == 13
    assert value["unreachable"]["reason"] == "filtered"
    assert (value["hops"][2]["success"], value["hops"][2]["error"]) == (True, "filtered")
    assert addresses(value) == ROUTERS


@pytest.mark.parametrize(
    ("routers", "fields", "stop_reason", "reason"),
    [
        ([*ROUTERS, *[None] * 40], {"gap_limit": 2}, "gap_limit", Reason.TIMEOUT),
        ([None] * 40, {}, "gap_limit", Reason.TIMEOUT),
        (ROUTERS, {"max_hops": 3}, "max_hops", Reason.TTL_EXCEEDED),
        ([*ROUTERS[:2], None, None], {"max_hops": 3}, "max_hops", Reason.TIMEOUT),
        (ROUTERS[:2] * 40, {"max_hops": 64}, "loop", Reason.TTL_EXCEEDED),
    ],
)
async def test_destination_that_is_not_reached_is_a_target_error(
    world: World,
    routers: list[str | None],
    fields: dict[str, Any],
    stop_reason: str,
    reason: Reason,
) -> None:
    world.plan(straight(routers, TARGET, rtt_ms=1))

    measurement = await world.trace(**fields)

    value = seen(measurement)
    assert value["stop_reason"] == stop_reason
    assert value["loop_detected"] is (stop_reason == "loop")
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (reason, "path")


async def test_flags_of_answers_become_fields(world: World) -> None:
    flags = {1: TRANSLATED, 2: USER_CLOCK}
    whole = straight(ROUTERS, TARGET)

    def plan(ttl: int, attempt: int) -> list[Reply]:
        return [Reply(each.address, each.rtt_ms, flags=flags.get(ttl, 0)) for each in whole(ttl, 0)]

    world.plan(plan)

    value = seen(await world.trace())

    assert (value["nat_detected"], value["rx_clock"]) == (True, "user")
    assert value["hops"][0]["probes"][0]["nat"] is True
    assert value["hops"][1]["probes"][0]["rx_clock"] == "user"
    assert "nat" not in value["hops"][2]["probes"][0]


async def test_other_address_is_tried_where_there_is_no_route(world: World) -> None:
    world.sockets[6].no_route = True

    measurement = await world.trace("both.example")

    assert measurement.outcome is Outcome.OK
    assert seen(measurement)["address"] == TARGET


async def test_no_route_is_our_own_failure(world: World) -> None:
    world.sockets[4].no_route = True

    measurement = await world.trace()

    value = seen(measurement)
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.NO_ROUTE
    assert (value["stop_reason"], value["status"], value["sent"]) == ("no_route", "error", 0)


async def test_packets_the_kernel_refuses_are_no_loss(world: World) -> None:
    world.sockets[4].send_errno = errno.ENOBUFS

    measurement = await world.trace(probes_per_hop=2)

    value = seen(measurement)
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TX_ERROR
    assert (value["stop_reason"], value["sent"], value["protocols"]) == ("tx_error", 0, [])
    assert value["status"] == "error"
    assert value["tx_errors"] > 0
    assert value["hops"][0]["error"].startswith("tx_error: ")


async def test_full_send_buffer_delays_and_loses_nothing(world: World) -> None:
    socket = world.sockets[4]
    socket.fill_send_buffer()
    record = world.recorder()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(world.prober, TraceSpec(host="target.example"), record))
        await world.clock.advance(60_000 * NS_PER_MS)
        assert not task.done()
        assert socket.sent == []
        socket.drain_send_buffer()
        while not task.done():
            await world.clock.settle()
            await move(world.clock, [socket])

    assert record.measurement().outcome is Outcome.OK
    assert addresses(seen(record.measurement())) == [*ROUTERS, TARGET]
    assert socket.queued == 0


async def test_cancelled_trace_tells_what_it_saw(world: World) -> None:
    record = world.recorder()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(world.prober, TraceSpec(host="target.example"), record))
        while len(world.sockets[4].sent) < 16 or world.clock.monotonic_ns() < 1_025_000_000:
            await world.clock.settle()
            await move(world.clock, [world.sockets[4]])
        task.cancel()

    assert task.cancelled()
    value = seen(record.measurement())
    assert (value["status"], value["stop_reason"]) == ("cancelled", "cancelled")
    assert addresses(value)[:2] == ROUTERS[:2]


async def test_unknown_name_gives_the_resolution_and_an_empty_trace(world: World) -> None:
    measurement = await world.trace("missing.example")

    names = [each.name for each in measurement.observations]
    assert names == ["trace_resolution", "trace"]
    assert measurement.observations[0].value["host"] == "missing.example"
    assert "does not exist" in measurement.observations[0].value["error"]
    assert seen(measurement)["stop_reason"] == "resolve_failed"
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.RESOLVE_FAILED


async def test_denied_target_is_not_probed(world: World) -> None:
    measurement = await world.trace("denied.example")

    value = seen(measurement)
    assert measurement.outcome is Outcome.REJECTED
    assert (value["stop_reason"], value["permission_denied"]) == ("denied", False)
    assert world.sockets[4].sent == []


async def test_missing_privilege_says_how_to_grant_it(world: World) -> None:
    world.open_error = PermissionError(errno.EPERM, "open raw socket: Operation not permitted")
    record = world.recorder()

    with pytest.raises(PrivilegeError, match="AmbientCapabilities=CAP_NET_RAW"):
        await world.prober.run(TraceSpec(host="both.example"), record)

    value = seen(record.measurement())
    assert value["permission_denied"] is True
    assert (value["status"], value["stop_reason"]) == ("permission_denied", "denied")


async def test_family_this_host_lacks_is_no_route(world: World) -> None:
    world.open_error = OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    measurement = await world.trace()

    assert measurement.outcome is Outcome.AGENT_ERROR
    assert seen(measurement)["stop_reason"] == "no_route"


async def test_traces_beyond_the_limit_wait_for_a_slot(world: World) -> None:
    world.sockets[4].traces_max = 2
    records = [world.recorder() for _ in range(5)]
    spec = TraceSpec(host="target.example")

    await play(
        world.clock,
        [world.sockets[4]],
        *(measure(world.prober, spec, record) for record in records),
    )

    assert [record.measurement().outcome for record in records] == [Outcome.OK] * 5
    elapsed_ms = [seen(record.measurement())["total_duration_ms"] for record in records]
    assert [round(each, -1) for each in elapsed_ms] == [40, 40, 80, 80, 120]


async def test_full_queue_delays_probes(world: World) -> None:
    world.sockets[4].queue_max = 3

    value = seen(await world.trace())

    assert addresses(value) == [*ROUTERS, TARGET]


async def test_many_traces_share_a_socket(world: World) -> None:
    records = [world.recorder() for _ in range(100)]
    spec = TraceSpec(host="target.example")

    await play(
        world.clock,
        [world.sockets[4]],
        *(measure(world.prober, spec, record) for record in records),
    )

    for record in records:
        assert addresses(seen(record.measurement())) == [*ROUTERS, TARGET]


async def test_close_is_idempotent_and_a_running_trace_survives_its_cancellation() -> None:
    world = World()
    record = world.recorder()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(world.prober, TraceSpec(host="target.example"), record))
        await world.clock.settle()
        await world.prober.close()
        await world.prober.close()
        task.cancel()

    assert seen(record.measurement())["status"] == "cancelled"
    assert world.sockets[4].closed
    world.sockets[6].close()
