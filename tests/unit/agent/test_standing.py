"""Standing leases on the agent: no tick twice, none that could run left out, none made up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netsonde.agent.standing import LOOK_NS, StandingLeases
from netsonde.clock import NS_PER_S, ManualClock, instant_ns, rfc3339
from netsonde.leases import LeaseTable
from netsonde.model import Lease, Reason, Repeat
from netsonde.ticks import Tick
from support.leases import make_lease

EVERY_S = 10
ANCHOR_NS = 1_790_000_000 * NS_PER_S


class Lanes:
    """A worker whose runs last until the test ends them."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int, int]] = []  # task, lease, tick
        self.cancelled: list[int] = []
        self.scheduled: list[str] = []

    def submit(self, lease: Lease, tick: Tick | None = None) -> None:
        assert tick is not None
        self.begun.append((lease.task_id, lease.lease_id, tick.number))
        self.scheduled.append(tick.scheduled_at)

    def cancel(self, lease_id: int, reason: Reason) -> None:
        assert reason is Reason.CANCELLED
        self.cancelled.append(lease_id)

    @property
    def ticks(self) -> list[int]:
        return [tick for _, _, tick in self.begun]


class Bench:
    def __init__(self, clock: ManualClock, leases: LeaseTable) -> None:
        self.clock, self.leases = clock, leases
        self.lanes = Lanes()
        self.offset_ns = ANCHOR_NS - clock.boottime_ns()
        self.standing = StandingLeases(clock, leases, self.lanes, self.server_now_ns)

    def server_now_ns(self) -> int:
        return self.clock.boottime_ns() + self.offset_ns

    def take(self, lease_id: int = 1, task_id: int = 50, **changes: Any) -> Lease:
        """Grant a standing lease: every 10 s from now on, unless changed."""
        repeat = Repeat(every_ms=EVERY_S * 1000)
        fields: dict[str, Any] = {
            "task_id": task_id,
            "repeat": repeat,
            "scheduled_at": rfc3339(ANCHOR_NS),
            "offline_ms": 86_400_000,
        }
        lease = make_lease(lease_id, **(fields | changes))
        now_ns = self.clock.boottime_ns()
        self.leases.grant(lease, now_ns + 3600 * NS_PER_S, now_ns)
        self.standing.take(lease)
        return lease

    async def pass_s(self, seconds: float) -> None:
        await self.clock.advance(round(seconds * NS_PER_S))
        await self.clock.settle()

    def ran(self, lease_id: int = 1) -> None:
        self.standing.ran(lease_id)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.standing.run())
            await self.clock.settle()
            yield
            task.cancel()


@pytest.fixture
def bench(clock: ManualClock, leases: LeaseTable) -> Bench:
    return Bench(clock, leases)


async def test_a_run_begins_at_every_tick(bench: Bench) -> None:
    bench.take()
    async with bench.running():
        for _ in range(4):
            bench.ran()
            await bench.pass_s(EVERY_S)
    assert bench.lanes.ticks == [0, 1, 2, 3, 4]
    due = [ANCHOR_NS + number * EVERY_S * NS_PER_S for number in range(5)]
    assert [instant_ns(text) for text in bench.lanes.scheduled] == due


async def test_a_tick_during_a_run_is_skipped_and_counted(bench: Bench) -> None:
    bench.take()
    async with bench.running():
        await bench.pass_s(25)
        bench.ran()
        await bench.pass_s(10)
    assert bench.lanes.ticks == [0, 3]
    assert bench.standing.counters["skipped"] == 2
    assert bench.standing.counters["missed"] == 0


async def test_what_was_missed_is_counted_and_not_made_up(bench: Bench) -> None:
    bench.take()
    async with bench.running():
        bench.ran()
        bench.offset_ns += 57 * NS_PER_S  # the host was suspended, or its server's clock set
        await bench.pass_s(LOOK_NS / NS_PER_S)
        assert bench.lanes.ticks == [0, 5], "the last one's period is not over"
        bench.ran()
        await bench.pass_s(2)
    assert bench.lanes.ticks == [0, 5, 6]
    assert bench.standing.counters["missed"] == 4


async def test_a_stale_tick_is_missed(bench: Bench) -> None:
    bench.take(repeat=Repeat(every_ms=EVERY_S * 1000, stale_after_ms=2_000))
    async with bench.running():
        bench.ran()
        bench.offset_ns += 57 * NS_PER_S
        await bench.pass_s(LOOK_NS / NS_PER_S)
        await bench.pass_s(2)
    assert bench.lanes.ticks == [0, 6]
    assert bench.standing.counters["missed"] == 5


async def test_a_server_clock_that_goes_back_runs_no_tick_twice(bench: Bench) -> None:
    bench.take()
    async with bench.running():
        bench.ran()
        await bench.pass_s(10)
        bench.ran()
        bench.offset_ns -= 15 * NS_PER_S
        await bench.pass_s(24)
        assert bench.lanes.ticks == [0, 1]
        await bench.pass_s(1)
    assert bench.lanes.ticks == [0, 1, 2]


async def test_a_task_granted_again_goes_on_where_it_was(bench: Bench) -> None:
    bench.take(1)
    async with bench.running():
        bench.ran()
        await bench.pass_s(10)  # tick 1 still runs
        bench.take(2, next_tick=0)
        assert 1 not in bench.leases
        await bench.pass_s(5)
        assert bench.lanes.ticks == [0, 1]
        bench.ran(1)
        await bench.pass_s(5)
    assert bench.lanes.begun == [(50, 1, 0), (50, 1, 1), (50, 2, 2)]
    assert bench.standing.counters["taken_again"] == 1


async def test_the_server_knows_of_ticks_an_earlier_process_ran(bench: Bench) -> None:
    bench.take(next_tick=1)
    async with bench.running():
        await bench.pass_s(9)
        assert bench.lanes.ticks == []
        await bench.pass_s(1)
    assert bench.lanes.ticks == [1]
    assert bench.standing.counters["missed"] == 0


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_lease_that_ended_runs_no_more(bench: Bench, is_running: bool) -> None:
    bench.take()
    async with bench.running():
        if not is_running:
            bench.ran()
        bench.leases.revoke([1])
        bench.standing.end(1, Reason.CANCELLED)
        await bench.pass_s(30)
        bench.ran()
    assert bench.lanes.ticks == [0]
    assert bench.lanes.cancelled == ([1] if is_running else [])
    assert len(bench.standing) == 0


async def test_the_end_of_a_lease_that_was_followed_ends_nothing(bench: Bench) -> None:
    bench.take(1)
    async with bench.running():
        bench.take(2)
        bench.standing.end(1, Reason.CANCELLED)
        bench.ran(1)
        await bench.pass_s(10)
    assert bench.lanes.cancelled == []
    assert bench.lanes.begun == [(50, 1, 0), (50, 2, 1)]


async def test_the_end_of_the_lease_ends_a_run_under_an_earlier_one(bench: Bench) -> None:
    bench.take(1)
    async with bench.running():
        bench.take(2)
        bench.standing.end(2, Reason.CANCELLED)
    assert bench.lanes.cancelled == [1]


async def test_after_its_last_tick_a_lease_is_let_go(bench: Bench) -> None:
    bench.take(repeat=Repeat(every_ms=EVERY_S * 1000, ticks=2))
    async with bench.running():
        bench.ran()
        await bench.pass_s(10)
        assert 1 in bench.leases, "its last run goes on"
        bench.ran()
        assert 1 not in bench.leases
        await bench.pass_s(20)
    assert bench.lanes.ticks == [0, 1]
    assert bench.standing.counters["finished"] == 1


async def test_a_lease_whose_ticks_are_over_is_let_go_at_once(bench: Bench) -> None:
    bench.take(repeat=Repeat(every_ms=EVERY_S * 1000, ticks=2), next_tick=2)
    async with bench.running():
        await bench.pass_s(20)
    assert bench.lanes.ticks == []
    assert 1 not in bench.leases


async def test_stopping_begins_no_more_and_returns_what_is_held(bench: Bench) -> None:
    bench.take(1, task_id=50)
    bench.take(2, task_id=51)
    async with bench.running():
        assert sorted(bench.standing.stop()) == [1, 2]
        await bench.pass_s(30)
        bench.ran(1)
    assert len(bench.lanes.begun) == 2


async def test_many_ticks_at_once_begin_in_slices(bench: Bench) -> None:
    for number in range(1, 101):
        bench.take(number, task_id=1000 + number)
    async with bench.running():
        await bench.clock.settle()
        assert len(bench.lanes.begun) == 100
    assert len(set(bench.lanes.begun)) == 100


async def test_a_lease_that_does_not_repeat_is_not_taken(bench: Bench) -> None:
    with pytest.raises(ValueError, match="does not repeat"):
        bench.standing.take(make_lease(9))


# ── given back, and taken again ──


async def test_a_run_that_goes_on_is_the_only_one_when_its_task_comes_back(bench: Bench) -> None:
    """An agent that is drained finishes what runs; resumed, it is granted the same task anew."""
    bench.take()
    async with bench.running():
        await bench.pass_s(1)
        assert bench.standing.stop() == [1]
        assert bench.standing.stop() == [], "what runs is known however often it is told"
        bench.take(2)
        await bench.pass_s(EVERY_S)
        assert bench.lanes.ticks == [0], "the old run goes on"
        assert bench.standing.counters["skipped"] == 1
        bench.ran(1)
        await bench.pass_s(EVERY_S)
        bench.ran(2)
        await bench.pass_s(EVERY_S)
    assert bench.lanes.begun == [(50, 1, 0), (50, 2, 2), (50, 2, 3)]


async def test_a_tick_that_was_measured_is_not_run_again_under_the_next_lease(
    bench: Bench,
) -> None:
    """Its result waits in the spool: the control plane does not know of it yet."""
    bench.take()
    async with bench.running():
        await bench.pass_s(1)
        bench.standing.stop()
        bench.ran(1)
        bench.take(2, next_tick=0)
        await bench.pass_s(EVERY_S)
    assert bench.lanes.begun == [(50, 1, 0), (50, 2, 1)]


async def test_a_tick_that_was_dropped_unmeasured_is_run_under_the_next_lease(
    bench: Bench,
) -> None:
    bench.take()
    async with bench.running():
        await bench.pass_s(1)
        bench.standing.stop()
        bench.ran(1)  # a worker says so of what it drops
        bench.standing.dropped([1])
        bench.take(2, next_tick=0)
        await bench.pass_s(1)
    assert bench.lanes.begun == [(50, 1, 0), (50, 2, 0)]


async def test_the_last_tick_of_a_task_that_came_back_ends_it(bench: Bench) -> None:
    once = Repeat(every_ms=EVERY_S * 1000, ticks=1)
    bench.take(repeat=once)
    async with bench.running():
        await bench.pass_s(1)
        bench.standing.stop()
        bench.take(2, repeat=once)
        assert len(bench.standing) == 1
        bench.ran(1)
    assert len(bench.standing) == 0
    assert 2 not in bench.leases
