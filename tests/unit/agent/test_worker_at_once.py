"""Leases whose prober answers at once: no task, the same life, one commit for many."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netsonde import wire
from netsonde.agent.bounds import target_pacer
from netsonde.agent.keeper import HOLD_RETRY_NS
from netsonde.agent.worker import INSTANTS_PER_TURN, TASKS_PER_TURN, Worker
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import SpoolFull, TargetDeniedError
from netsonde.leases import LeaseState, LeaseTable
from netsonde.model import Lease, Outcome, Reason, TaskKind
from netsonde.spool import GROUP_ROWS_MAX, Spool, SpoolLimits, SpoolRecord
from support.leases import make_lease
from support.probers import GatedProber, InstantProber
from support.spools import SpoolFaults

PING, DNS = TaskKind.PING, TaskKind.DNS
FAR_NS = 3600 * NS_PER_S


class Bench:
    """A worker whose pings answer at once."""

    def __init__(
        self,
        clock: ManualClock,
        leases: LeaseTable,
        spool: Spool,
        capacity: int,
        starts_per_s: float,
    ) -> None:
        self.clock, self.leases, self.spool = clock, leases, spool
        self.ping, self.dns = InstantProber(PING), GatedProber(DNS)
        probers = {PING: self.ping, DNS: self.dns}
        capacities = dict.fromkeys(probers, capacity)
        self.worker = Worker(clock, leases, spool, probers, capacities, target_pacer(starts_per_s))
        self.calls: list[str] = []
        self.worker.on_free = lambda: self.calls.append("free")
        self.worker.on_kept = lambda: self.calls.append("kept")

    def grant(self, *granted: Lease) -> None:
        now_ns = self.clock.boottime_ns()
        self.leases.grant_many(granted, [now_ns + FAR_NS] * len(granted), now_ns)
        self.worker.submit_many(granted)

    async def results(self) -> list[dict[str, Any]]:
        records = await self.spool.pending(2000, 1 << 30)
        return [wire.parse(record.body) | {"cancelled": record.cancelled} for record in records]

    async def lease_ids(self) -> list[int]:
        return sorted(result["lease_id"] for result in await self.results())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.worker.run())
            await self.clock.settle()
            yield
            task.cancel()


@pytest.fixture
def bench(clock: ManualClock, leases: LeaseTable, spool: Spool) -> Callable[..., Bench]:
    def make(capacity: int = 20, starts_per_s: float = 1_000_000) -> Bench:
        return Bench(clock, leases, spool, capacity, starts_per_s)

    return make


async def test_a_batch_is_measured_in_one_call_and_kept_in_one_commit(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    made.worker.env["policy_version"] = "abc"
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 11)))
        # Measured already; not durable, so neither free nor idle.
        assert [len(specs) for specs in made.ping.asked] == [10]
        assert made.worker.free() == {PING: 10, DNS: 20}
        assert made.worker.running() == {PING: 10}
        assert (made.worker.held, made.worker.idle.is_set()) == (10, False)
        assert await made.results() == []

        await made.clock.settle()
        results = await made.results()

    assert [result["lease_id"] for result in results] == list(range(1, 11))
    assert {result["outcome"] for result in results} == {"ok"}
    assert results[0]["env"]["policy_version"] == "abc"
    assert results[0]["env"]["clock"] == made.clock.quality().as_env()
    assert {made.leases.state(number) for number in range(1, 11)} == {LeaseState.FINISHED}
    assert made.calls == ["kept", "free"]
    assert made.worker.free() == {PING: 20, DNS: 20}
    assert made.worker.idle.is_set()
    assert made.worker.counters["outcome_ok"] == 10
    assert made.ping.started == 0


async def test_a_run_that_was_scheduled_says_so(bench: Callable[..., Bench]) -> None:
    made = bench()
    async with made.running():
        made.grant(make_lease(1), make_lease(2, scheduled_at="2026-01-01T00:00:00Z"))
        await made.clock.settle()
        first, second = await made.results()

    assert "scheduled_at" not in first
    assert second["scheduled_at"] == "2026-01-01T00:00:00Z"


async def test_what_was_cancelled_at_once_is_reported_so(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.ping.outcome = Outcome.CANCELLED
    async with made.running():
        made.grant(make_lease(1))
        await made.clock.settle()
        (result,) = await made.results()

    assert result["cancelled"]


async def test_kinds_with_and_without_tasks_work_side_by_side(bench: Callable[..., Bench]) -> None:
    made = bench()
    async with made.running():
        made.grant(*(make_lease(number, DNS if number % 2 else PING) for number in range(1, 9)))
        await made.clock.settle()
        assert await made.lease_ids() == [2, 4, 6, 8]
        assert made.dns.started == 4

        made.dns.gate.set()
        await made.clock.settle()
        assert await made.lease_ids() == list(range(1, 9))


async def test_a_lease_that_ended_or_ends_now_is_not_measured(bench: Callable[..., Bench]) -> None:
    made = bench()
    async with made.running():
        now_ns = made.clock.boottime_ns()
        leases = [make_lease(number) for number in range(1, 5)]
        made.leases.grant_many(leases[:3], [now_ns + FAR_NS] * 3, now_ns)
        made.leases.grant(leases[3], now_ns + NS_PER_S, now_ns)
        made.leases.revoke([2])
        await made.clock.advance(NS_PER_S)
        made.worker.submit_many(leases)
        await made.clock.settle()

        assert await made.lease_ids() == [1, 3]
        assert made.worker.counters["unstarted"] == 2
        assert made.worker.free() == {PING: 20, DNS: 20}
        assert made.worker.idle.is_set()


async def test_one_target_is_still_measured_no_faster_than_allowed(
    bench: Callable[..., Bench],
) -> None:
    made = bench(starts_per_s=2)
    made.ping.gate.set()
    async with made.running():
        made.grant(*(make_lease(number, target="same.test") for number in range(1, 16)))
        await made.clock.settle()
        assert await made.lease_ids() == list(range(1, 11))  # the burst

        await made.clock.advance(NS_PER_S)
        assert len(await made.lease_ids()) == 12
        assert sorted(made.worker.drop_unstarted()) == [13, 14, 15]
        await made.clock.settle()
        assert made.worker.idle.is_set()


async def test_beyond_the_slots_leases_wait_as_any_do(bench: Callable[..., Bench]) -> None:
    made = bench(capacity=4)
    made.ping.gate.set()
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 7)))
        assert made.worker.running() == {PING: 4}
        await made.clock.settle(100)

        assert await made.lease_ids() == list(range(1, 7))
        assert made.worker.free() == {PING: 4, DNS: 4}


async def test_a_lease_granted_again_while_its_result_is_kept_is_let_go(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench()
    faults = SpoolFaults(made.spool, monkeypatch)
    faults.error = SpoolFull("full")
    async with made.running():
        made.grant(make_lease(1), make_lease(2))
        await made.clock.settle()
        made.leases.revoke([1])
        made.worker.cancel(1, Reason.EXPIRED)  # measured: what was seen is reported
        made.grant(make_lease(1))
        assert made.worker.counters["granted_again"] == 1

        faults.error = None
        await made.clock.advance(HOLD_RETRY_NS)
        assert await made.lease_ids() == [1, 2]
        assert made.leases.state(1) is LeaseState.ENDED


async def test_what_the_spool_refuses_is_held_with_its_slots_and_in_order(
    bench: Callable[..., Bench],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = bench(capacity=4)
    made.ping.gate.set()
    faults = SpoolFaults(made.spool, monkeypatch)
    faults.error = SpoolFull("full")
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 5)))
        made.grant(make_lease(5))
        await made.clock.advance(10 * NS_PER_S)
        assert (made.worker.free(), made.worker.held) == ({DNS: 4}, 4)
        assert caplog.text.count("results are held in memory with their slots") == 1

        faults.error = None
        await made.clock.advance(HOLD_RETRY_NS)
        assert [result["lease_id"] for result in await made.results()] == [1, 2, 3, 4, 5]
        assert made.worker.free() == {PING: 4, DNS: 4}


async def test_a_spool_with_little_room_takes_what_fits(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench()
    monkeypatch.setattr(made.spool, "_limits", SpoolLimits(rows=3))
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 6)))
        await made.clock.settle()
        assert await made.lease_ids() == [1, 2, 3]
        assert made.worker.held == 2

        records = await made.spool.pending(10, 1 << 20)
        made.spool.acknowledge([record.seq for record in records])
        await made.spool.flush()
        await made.clock.advance(HOLD_RETRY_NS)
        assert await made.lease_ids() == [4, 5]


async def test_a_prober_that_raises_still_gives_every_lease_a_result(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    async with made.running():
        made.ping.columns_raise = RuntimeError("boom")
        made.grant(make_lease(1), make_lease(2))
        made.ping.columns_raise = TargetDeniedError("private")
        made.grant(make_lease(3))
        await made.clock.settle()
        results = await made.results()

    assert [result["outcome"] for result in results] == ["agent_error", "agent_error", "rejected"]
    assert results[0]["error"]["message"] == "internal error: RuntimeError: boom"
    assert made.worker.idle.is_set()


async def test_kinds_that_answer_at_once_are_kept_together_even_if_one_fails(
    clock: ManualClock, leases: LeaseTable, spool: Spool
) -> None:
    made = Bench(clock, leases, spool, 20, 1_000_000)
    tcp = InstantProber(TaskKind.TCP)
    probers = {PING: made.ping, TaskKind.TCP: tcp}
    made.worker = Worker(
        clock, leases, spool, probers, dict.fromkeys(probers, 20), target_pacer(1_000_000)
    )
    tcp.columns_raise = RuntimeError("boom")
    async with made.running():
        made.grant(*(make_lease(n, TaskKind.TCP if n % 2 else PING) for n in range(1, 7)))
        await made.clock.settle()
        results = {result["lease_id"]: result for result in await made.results()}
        records = await spool.pending(10, 1 << 20)

    assert {n: result["outcome"] for n, result in results.items()} == {
        n: "agent_error" if n % 2 else "ok" for n in range(1, 7)
    }
    assert {n for n, result in results.items() if "error" in result} == {1, 3, 5}
    assert len(_groups(records)) == 1


async def test_thousands_leave_nothing_behind(bench: Callable[..., Bench]) -> None:
    made = bench(capacity=2000)
    async with made.running():
        made.grant(*(make_lease(number) for number in range(1, 1501)))
        await made.clock.settle(100)

        records = await made.spool.pending(2000, 1 << 30)
        assert [record.lease_id for record in records] == list(range(1, 1501))
        assert max(len(group) for group in _groups(records)) == GROUP_ROWS_MAX
        assert (made.worker._jobs, made.worker._keeping) == ({}, {})


async def test_more_leases_begin_at_once_where_none_has_a_task(
    bench: Callable[..., Bench], clock: ManualClock, leases: LeaseTable, spool: Spool
) -> None:
    instant = {PING: InstantProber(PING)}
    alone = Worker(clock, leases, spool, instant, {PING: 4}, target_pacer(1))

    assert bench().worker.per_turn == TASKS_PER_TURN
    assert alone.per_turn == INSTANTS_PER_TURN


def _groups(records: Sequence[SpoolRecord]) -> list[list[SpoolRecord]]:
    numbers = sorted({record.seq >> 16 for record in records})
    return [[one for one in records if one.seq >> 16 == number] for number in numbers]
