"""The worker: always a result, durable before the slot is free, whatever the prober does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netsonde import wire
from netsonde.agent.bounds import target_pacer
from netsonde.agent.keeper import HOLD_RETRY_NS
from netsonde.agent.worker import Worker
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.congestion import LAG_MAX_NS
from netsonde.errors import (
    NetsondeError,
    ResolveError,
    SpoolFull,
    StorageError,
    TargetDeniedError,
)
from netsonde.leases import LeaseState, LeaseTable
from netsonde.model import Lease, Reason, Repeat, TaskKind
from netsonde.probe.base import Prober, Recorder
from netsonde.spool import Spool
from netsonde.ticks import Tick
from support.leases import make_lease
from support.probers import FailingProber, GatedProber, StubbornProber
from support.spools import SpoolFaults

PING, DNS = TaskKind.PING, TaskKind.DNS
FAR_NS = 3600 * NS_PER_S


class Bench:
    """A worker, what it needs, and what came out of it."""

    def __init__(
        self,
        clock: ManualClock,
        leases: LeaseTable,
        spool: Spool,
        probers: dict[TaskKind, Prober[Any]],
        capacity: int = 4,
        starts_per_s: float = 1_000_000,
    ) -> None:
        self.clock, self.leases, self.spool = clock, leases, spool
        capacities = dict.fromkeys(TaskKind, capacity)
        pacer = target_pacer(starts_per_s)
        self.worker = Worker(clock, leases, spool, probers, capacities, pacer)
        self.freed = 0
        self.kept = 0
        self.worker.on_free = self._note_free
        self.worker.on_kept = self._note_kept

    def _note_free(self) -> None:
        self.freed += 1

    def _note_kept(self) -> None:
        self.kept += 1

    def grant(self, *granted: Lease) -> None:
        now_ns = self.clock.boottime_ns()
        for lease in granted:
            self.leases.grant(lease, now_ns + FAR_NS, now_ns)
            self.worker.submit(lease)

    async def results(self) -> list[dict[str, Any]]:
        """What is in the spool, in the order of the lease ids."""
        records = await self.spool.pending(1000, 1 << 30)
        items = [wire.parse(record.body) | {"cancelled": record.cancelled} for record in records]
        return sorted(items, key=lambda item: int(item["lease_id"]))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.worker.run())
            await self.clock.settle()
            yield
            task.cancel()


@pytest.fixture
def bench(clock: ManualClock, leases: LeaseTable, spool: Spool) -> Callable[..., Bench]:
    def make(*probers: Any, **settings: Any) -> Bench:
        return Bench(clock, leases, spool, {one.kind: one for one in probers}, **settings)

    return make


async def test_a_lease_becomes_a_durable_result_and_the_slot_is_free(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    made = bench(prober)
    made.worker.env["policy_version"] = "abc"
    async with made.running():
        made.grant(make_lease(1, scheduled_at="2026-01-01T00:00:00Z"))
        await made.clock.settle()
        assert made.leases.state(1) is LeaseState.RUNNING
        assert made.worker.free() == {PING: 3}
        assert not made.worker.idle.is_set()

        prober.gate.set()
        await made.clock.settle()

        (result,) = await made.results()
        assert (result["lease_id"], result["outcome"], result["cancelled"]) == (1, "ok", False)
        assert result["scheduled_at"] == "2026-01-01T00:00:00Z"
        assert result["env"]["policy_version"] == "abc"
        assert result["env"]["clock"] == made.clock.quality().as_env()
        assert made.leases.state(1) is LeaseState.FINISHED
        assert made.worker.free() == {PING: 4}
        assert (made.kept, made.freed) == (1, 1)
        assert made.worker.idle.is_set()


@pytest.mark.parametrize("is_columnar", [True, False])
async def test_a_prober_is_told_whether_the_reader_knows_columns(
    bench: Callable[..., Bench], is_columnar: bool
) -> None:
    prober = GatedProber(PING)
    prober.gate.set()
    made = bench(prober)
    made.worker.is_columnar = lambda: is_columnar
    async with made.running():
        made.grant(make_lease(1))
        await made.clock.settle()
    assert prober.records[0].columnar is is_columnar


async def test_a_lease_that_is_granted_again_before_its_measurement_has_ended(
    bench: Callable[..., Bench],
) -> None:
    made = bench(GatedProber(PING))
    async with made.running():
        made.grant(make_lease(1))
        await made.clock.settle()
        made.leases.revoke([1])
        made.worker.cancel(1, Reason.EXPIRED)
        made.grant(make_lease(1))  # its task has not run since
        await made.clock.settle()

        (result,) = await made.results()
        assert (result["outcome"], result["cancelled"]) == ("cancelled", True)
        assert made.leases.state(1) is LeaseState.ENDED
        assert made.worker.free() == {PING: 4}
        assert made.worker.idle.is_set()


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (RuntimeError("boom"), "agent_error", "protocol_error"),
        (NetsondeError("no socket"), "agent_error", "tx_error"),
        (ResolveError("no such name"), "target_error", "resolve_failed"),
        (TargetDeniedError("private"), "rejected", "denied"),
    ],
)
async def test_a_prober_that_raises_still_gives_the_lease_a_result(
    bench: Callable[..., Bench],
    error: Exception,
    outcome: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "netsonde.agent")
    prober = GatedProber(PING)
    prober.gate.set()
    prober.raises.append(error)
    made = bench(prober)
    async with made.running():
        made.grant(make_lease(1), make_lease(2))
        await made.clock.settle()
        results = await made.results()

    assert [item["outcome"] for item in results] == [outcome, "ok"]
    assert results[0]["error"]["reason"] == reason
    told = [(vars(one)["lease_id"], vars(one)["task_id"]) for one in caplog.records]
    assert told == ([(1, make_lease(1).task_id)] if outcome == "agent_error" else [])
    assert made.worker.durations[PING].count == 2
    # A host that cannot send does less at once for a while.
    assert made.worker.free() == {PING: 3 if reason == "tx_error" else 4}


async def test_a_target_that_is_down_is_a_completed_measurement(
    bench: Callable[..., Bench],
) -> None:
    made = bench(FailingProber(DNS))
    async with made.running():
        made.grant(make_lease(1, DNS))
        await made.clock.settle()
        (result,) = await made.results()

    assert (result["outcome"], result["cancelled"]) == ("target_error", False)


@pytest.mark.parametrize("reason", [Reason.EXPIRED, Reason.CANCELLED])
async def test_a_measurement_that_is_ended_reports_what_it_saw(
    bench: Callable[..., Bench], reason: Reason
) -> None:
    made = bench(GatedProber(PING))
    async with made.running():
        made.grant(make_lease(1), make_lease(2))
        await made.clock.settle()
        made.worker.cancel(1, reason)
        made.worker.cancel(1, Reason.CANCELLED)
        await made.clock.settle()

        (result,) = await made.results()
        assert (result["outcome"], result["cancelled"]) == ("cancelled", True)
        assert result["error"]["reason"] == reason
        names = [observation["name"] for observation in result["observations"]]
        assert names == ["seen_before", "seen_summary"]
        assert made.worker.running() == {PING: 1}


async def test_a_prober_that_ignores_its_end_is_reported_as_ended(
    bench: Callable[..., Bench],
) -> None:
    prober = StubbornProber(PING)
    made = bench(prober)
    async with made.running():
        made.grant(make_lease(1))
        await made.clock.settle()
        made.worker.cancel(1, Reason.EXPIRED)
        await made.clock.settle()
        assert made.worker.running() == {PING: 1}
        prober.gate.set()
        await made.clock.settle()
        (result,) = await made.results()

    assert result["outcome"] == "cancelled"
    assert made.worker.idle.is_set()


async def test_ending_an_unknown_or_a_measured_lease_changes_nothing(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    prober = GatedProber(PING)
    prober.gate.set()
    made = bench(prober)
    faults = SpoolFaults(made.spool, monkeypatch)
    faults.error = SpoolFull("full")
    async with made.running():
        made.worker.cancel(77, Reason.EXPIRED)
        made.grant(make_lease(1))
        await made.clock.settle()
        made.worker.cancel(1, Reason.EXPIRED)
        faults.error = None
        await made.clock.advance(HOLD_RETRY_NS)
        (result,) = await made.results()

    assert result["outcome"] == "ok"


async def test_a_full_kind_queues_its_own_leases_only(bench: Callable[..., Bench]) -> None:
    ping, dns = GatedProber(PING), GatedProber(DNS)
    dns.gate.set()
    made = bench(ping, dns, capacity=2)
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 6)))
        made.grant(*(make_lease(number, DNS) for number in range(11, 16)))
        await made.clock.settle()
        assert ping.started == 2
        assert made.worker.free() == {DNS: 2}
        assert [item["lease_id"] for item in await made.results()] == [11, 12, 13, 14, 15]
        ping.gate.set()
        await made.clock.settle()

        assert len(await made.results()) == 10
        assert made.worker.free() == {PING: 2, DNS: 2}


async def test_a_loop_that_lags_begins_less_until_it_keeps_up_again(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    prober.gate.set()
    made = bench(prober, capacity=10)
    async with made.running():
        made.worker.lagged(LAG_MAX_NS + 1)
        assert made.worker.free() == {PING: 7}
        for round_ in range(20):
            first = 100 * round_ + 1
            made.grant(*(make_lease(number) for number in range(first, first + 10)))
            await made.clock.settle()
        assert made.worker.free() == {PING: 10}


async def test_a_lease_that_ended_while_it_waited_never_starts(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    made = bench(prober, capacity=1)
    async with made.running():
        made.grant(make_lease(1), make_lease(2), make_lease(3))
        await made.clock.settle()
        for ended in made.leases.revoke([2]):
            made.worker.cancel(ended.lease_id, Reason.CANCELLED)
        made.leases.revoke([3])  # the worker learns of it only when it starts
        prober.gate.set()
        await made.clock.settle()

        assert [item["lease_id"] for item in await made.results()] == [1]
        assert prober.started == 1
        assert made.worker.idle.is_set()


async def test_a_lease_ended_before_its_task_ran_frees_its_slot(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    made = bench(prober, capacity=1)
    async with made.running():
        made.grant(make_lease(1))
        made.worker.cancel(1, Reason.CANCELLED)  # no turn of the loop in between
        await made.clock.settle()

        assert prober.started == 0
        assert made.worker.free() == {PING: 1}
        assert await made.results() == []


async def test_what_has_not_started_is_given_up_on_request(bench: Callable[..., Bench]) -> None:
    prober = GatedProber(PING)
    made = bench(prober, capacity=12, starts_per_s=1)
    async with made.running():
        made.grant(*(make_lease(number, target="same.test") for number in range(1, 15)))
        await made.clock.settle()
        assert prober.started == 10  # the burst; two wait for the target, two for a slot

        dropped = made.worker.drop_unstarted()
        prober.gate.set()
        await made.clock.settle()

        assert sorted(dropped) == [11, 12, 13, 14]
        assert [item["lease_id"] for item in await made.results()] == list(range(1, 11))
        assert made.worker.idle.is_set()


async def test_what_waits_for_a_kind_that_is_stopped_goes_back(
    bench: Callable[..., Bench],
) -> None:
    """It would be extended for as long as the control plane lets it, and never begin."""
    prober = GatedProber(PING)
    made = bench(prober, capacity=2)
    stopped: list[Lease] = []
    ran: list[int] = []
    made.worker.on_stopped = stopped.extend
    made.worker.on_ran = ran.append
    async with made.running():
        made.grant(make_lease(1), make_lease(2), make_lease(3))
        made.worker.submit(make_lease(4, repeat=Repeat(every_ms=1000)), Tick(1, "t"))
        await made.clock.settle()
        made.worker.resize({PING: 0})
        assert [lease.lease_id for lease in stopped] == [3]
        assert ran == [4]
        made.worker.submit(make_lease(5, repeat=Repeat(every_ms=1000)), Tick(1, "t"))
        assert ran == [4, 5]
        prober.gate.set()
        await made.clock.settle()
        assert [item["lease_id"] for item in await made.results()] == [1, 2]
        assert made.worker.idle.is_set()
        made.worker.resize({PING: 2})
        assert made.worker.free() == {PING: 2}


async def test_one_target_is_not_measured_faster_than_allowed(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    made = bench(prober, capacity=100, starts_per_s=2)
    async with made.running():
        made.grant(*(make_lease(number, target="same.test") for number in range(1, 21)))
        made.grant(*(make_lease(number) for number in range(101, 121)))
        await made.clock.settle()
        assert prober.started == 30
        await made.clock.advance(2 * NS_PER_S)
        assert prober.started == 34
        await made.clock.advance(60 * NS_PER_S)
        assert prober.started == 40


@pytest.mark.parametrize("error", [SpoolFull("the spool is full"), StorageError("disk gone")])
async def test_a_result_the_spool_refuses_is_held_with_its_slot(
    bench: Callable[..., Bench],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: StorageError,
) -> None:
    prober = GatedProber(PING)
    prober.gate.set()
    made = bench(prober, capacity=2)
    faults = SpoolFaults(made.spool, monkeypatch)
    faults.error = error
    async with made.running():
        made.grant(make_lease(1), make_lease(2), make_lease(3))
        await made.clock.advance(10 * NS_PER_S)
        assert (made.worker.free(), made.worker.held) == ({}, 2)
        assert (prober.started, faults.refused > 10) == (2, True)
        assert caplog.text.count("results are held in memory with their slots") == 1

        faults.error = None
        await made.clock.advance(HOLD_RETRY_NS)
        assert [item["lease_id"] for item in await made.results()] == [1, 2, 3]
        assert made.worker.free() == {PING: 2}


async def test_a_result_that_cannot_be_encoded_becomes_one_that_says_so(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        kind = PING

        async def run(self, spec: Any, record: Recorder) -> None:
            record.observe("odd", {"value": object()})
            record.ok()

        async def close(self) -> None:
            """Nothing is open."""

    made = bench(Odd())
    async with made.running():
        made.grant(make_lease(1))
        await made.clock.settle()
        (result,) = await made.results()

    assert result["outcome"] == "agent_error"
    assert "cannot be encoded" in result["error"]["message"]
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["lease_id"]) == ("a result cannot be encoded", 1)


async def test_stopping_the_agent_stops_its_measurements(bench: Callable[..., Bench]) -> None:
    prober = GatedProber(PING)
    made = bench(prober, capacity=1)
    async with made.running():
        made.grant(make_lease(1), make_lease(2))
        await made.clock.settle()

    assert prober.running == []
    assert prober.started == 1
    assert await made.results() == []


async def test_a_thousand_leases_leave_nothing_behind(bench: Callable[..., Bench]) -> None:
    prober = GatedProber(PING)
    prober.gate.set()
    made = bench(prober, capacity=50)
    async with made.running():
        for first in range(1, 1000, 100):
            made.grant(*(make_lease(number) for number in range(first, first + 100)))
            await made.clock.settle(100)

        assert len(await made.results()) == 1000
        assert made.worker._jobs == {}
        assert made.worker.counters["outcome_ok"] == 1000


# ── ticks of standing leases ──


async def test_a_tick_is_reported_as_itself_and_its_lease_goes_on(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    prober.gate.set()
    made = bench(prober)
    ran: list[int] = []
    made.worker.on_ran = ran.append
    lease = make_lease(1, scheduled_at="2026-01-01T00:00:00Z", repeat=Repeat(every_ms=1000))
    now_ns = made.clock.boottime_ns()
    made.leases.grant(lease, now_ns + FAR_NS, now_ns)
    async with made.running():
        for number in (3, 4):
            made.worker.submit(lease, Tick(number, f"2026-01-01T00:00:0{number}Z"))
            await made.clock.settle()
        results = await made.results()
        assert [(item["tick"], item["scheduled_at"][17:19]) for item in results] == [
            (3, "03"), (4, "04"),
        ]  # fmt: skip
        assert ran == [1, 1]
        assert 1 in made.leases
        assert made.leases.state(1) is LeaseState.QUEUED
        assert made.worker.free() == {PING: 4}


async def test_a_tick_that_waits_for_a_slot_is_over_when_it_is_given_up(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    made = bench(prober, capacity=1)
    ran: list[int] = []
    made.worker.on_ran = ran.append
    async with made.running():
        made.grant(make_lease(1))
        await made.clock.settle()
        made.worker.submit(make_lease(2), Tick(0, "2026-01-01T00:00:00Z"))
        made.worker.cancel(2, Reason.CANCELLED)
        assert ran == [2]
        made.worker.submit(make_lease(2), Tick(1, "2026-01-01T00:00:01Z"))
        assert made.worker.drop_unstarted() == [2]
        assert ran == [2, 2]


# ── bounds that change at work ──


async def test_more_slots_begin_what_waits_and_fewer_let_it_end(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    made = bench(prober, capacity=1)
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 6)))
        await made.clock.settle()
        assert len(prober.running) == 1
        freed = made.freed
        made.worker.resize({PING: 3})
        await made.clock.settle()
        assert len(prober.running) == 3
        assert made.freed > freed, "there may be more to claim"
        made.worker.resize({PING: 1})
        await made.clock.settle()
        assert len(prober.running) == 3, "what runs goes on"
        prober.gate.set()
        await made.clock.settle()
        assert len(await made.results()) == 5


async def test_a_prober_is_asked_within_the_bound_of_its_kind(
    bench: Callable[..., Bench],
) -> None:
    prober = GatedProber(PING)
    made = bench(prober)
    made.worker.bounds.bound_timeouts({PING: 300})
    async with made.running():
        made.grant(make_lease(1))
        await made.clock.settle()
        assert [spec.timeout_ms for spec in prober.running] == [300]


async def test_a_kind_is_begun_only_so_often(bench: Callable[..., Bench]) -> None:
    prober = GatedProber(PING)
    prober.gate.set()
    made = bench(prober, capacity=100)
    made.worker.bounds.pace(1_000, {PING: 2})
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 15)))
        await made.clock.settle()
        assert prober.started == 10, "a burst of ten is free"
        await made.clock.advance(NS_PER_S)
        await made.clock.settle()
        assert prober.started == 12
