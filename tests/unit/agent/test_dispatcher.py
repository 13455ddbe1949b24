"""The dispatcher: claims what can start, nothing else, and never stands still for one kind."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest

from netsonde.agent.dispatcher import FULL_RETRY_NS, REPEAT_NS, Dispatcher
from netsonde.agent.worker import TASKS_PER_TURN
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.control_plane import ClaimGrant, ClaimSink, ControlPlaneError, TransportError
from netsonde.errors import SpoolFull
from netsonde.leases import LeaseTable
from netsonde.model import Lease, Repeat, TaskKind
from netsonde.spool import Spool, SpoolLimits
from netsonde.wire import RejectedLease
from support.leases import TERM_MS, make_lease

PING, DNS, HTTP = TaskKind.PING, TaskKind.DNS, TaskKind.HTTP
HOLD_NS = 20 * NS_PER_S


@dataclass
class FakeLanes:
    """Slots that the test empties."""

    capacity: dict[TaskKind, int]
    taken: list[Lease] = field(default_factory=list)

    def free(self) -> dict[TaskKind, int]:
        free = {
            kind: slots - sum(lease.kind is kind for lease in self.taken)
            for kind, slots in self.capacity.items()
        }
        return {kind: slots for kind, slots in free.items() if slots > 0}

    def measures(self, kind: TaskKind) -> bool:
        return self.capacity.get(kind, 0) > 0

    @property
    def per_turn(self) -> int:
        return TASKS_PER_TURN

    def submit_many(self, leases: Sequence[Lease]) -> None:
        self.taken += leases


class FakeClaims:
    """Holds a claim until there is a lease for it, as long as a server would."""

    def __init__(self, clock: ManualClock) -> None:
        self.asked: list[tuple[dict[str, int], str]] = []
        self.is_streaming = False
        self.revoked: list[int] = []
        self.handed_back: list[RejectedLease] = []
        self.waiting: deque[Lease] = deque()
        self.failures: deque[Exception] = deque()
        self.rejected: tuple[RejectedLease, ...] = ()
        self.forced: list[Lease] = []  # granted whatever was asked for
        self.term_ns = TERM_MS * 1_000_000
        self._clock = clock
        self._news = asyncio.Event()

    def offer(self, *leases: Lease) -> None:
        self.waiting += leases
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    async def claim_into(
        self,
        sink: ClaimSink,
        capacities: Mapping[str, int],
        *,
        claim_id: str,
        wait_ms: int | None = None,
    ) -> None:
        self.asked.append((dict(capacities), claim_id))
        if self.failures:
            raise self.failures.popleft()
        if self.is_streaming:
            await self._stream(sink, dict(capacities))
        else:
            await sink.take(await self._claim(capacities))

    async def _stream(self, sink: ClaimSink, room: dict[str, int]) -> None:
        """Give what comes until there is no room, or the script breaks it off."""
        while any(room.values()):
            self._news.clear()
            if self.failures:
                raise self.failures.popleft()
            if revoked := self.revoked:
                self.revoked = []
                sink.revoke(revoked)
            if granted := self._match(room):
                ends_ns = self._clock.boottime_ns() + self.term_ns
                await sink.take(ClaimGrant(granted, [ends_ns] * len(granted)))
                continue
            await self._news.wait()

    async def _claim(self, capacities: Mapping[str, int]) -> ClaimGrant:
        until_ns = self._clock.boottime_ns() + HOLD_NS
        while True:
            self._news.clear()
            if granted := self._match(capacities):
                ends_ns = self._clock.boottime_ns() + self.term_ns
                rejected, self.rejected = self.rejected, ()
                return ClaimGrant(granted, [ends_ns] * len(granted), rejected)
            left_ns = until_ns - self._clock.boottime_ns()
            if left_ns <= 0:
                return ClaimGrant()
            await self._clock.wait(self._news, left_ns)

    async def hand_back(self, rejected: Sequence[RejectedLease]) -> int:
        self.handed_back += rejected
        if self.failures:
            raise self.failures.popleft()
        return len(rejected)

    def _match(self, capacities: Mapping[str, int]) -> list[Lease]:
        room = capacities if isinstance(capacities, dict) else dict(capacities)
        granted, self.forced = self.forced, []
        for lease in list(self.waiting):
            if room.get(lease.kind, 0) > 0:
                room[lease.kind] -= 1
                self.waiting.remove(lease)
                granted.append(lease)
        return granted


class Bench:
    def __init__(self, clock: ManualClock, leases: LeaseTable, spool: Spool) -> None:
        self.clock, self.leases, self.spool = clock, leases, spool
        self.client = FakeClaims(clock)
        self.lanes = FakeLanes({PING: 2, DNS: 4})
        self.dispatcher = Dispatcher(clock, leases, spool, self.client, self.lanes)
        self.granted_calls = 0
        self.dispatcher.on_granted = self._note

    def _note(self) -> None:
        self.granted_calls += 1

    def finish(self, *lease_ids: int) -> None:
        """Free the slots of leases, as the worker does."""
        self.lanes.taken = [one for one in self.lanes.taken if one.lease_id not in lease_ids]
        self.leases.release_many(lease_ids)
        self.dispatcher.wake()

    @property
    def capacities_asked(self) -> list[dict[str, int]]:
        return [asked for asked, _ in self.client.asked]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.dispatcher.run())
            await self.clock.settle()
            yield
            task.cancel()


@pytest.fixture
def bench(clock: ManualClock, leases: LeaseTable, spool: Spool) -> Bench:
    return Bench(clock, leases, spool)


async def test_a_claim_asks_for_the_free_slots_and_what_comes_is_worked_on(bench: Bench) -> None:
    bench.client.offer(make_lease(1), make_lease(2, DNS))
    async with bench.running():
        assert bench.capacities_asked == [{"ping": 2, "dns": 4}, {"ping": 1, "dns": 3}]
        assert [lease.lease_id for lease in bench.lanes.taken] == [1, 2]
        assert set(bench.leases) == {1, 2}
        assert bench.granted_calls == 1


async def test_a_full_kind_shrinks_only_itself(bench: Bench) -> None:
    bench.client.offer(make_lease(1), make_lease(2), make_lease(3), make_lease(4))
    async with bench.running():
        assert bench.capacities_asked == [{"ping": 2, "dns": 4}, {"dns": 4}]
        bench.client.offer(make_lease(11, DNS))
        await bench.clock.settle()
        assert [lease.lease_id for lease in bench.lanes.taken] == [1, 2, 11]


async def test_with_nothing_free_nothing_is_asked(bench: Bench) -> None:
    bench.lanes.capacity = {PING: 1}
    bench.client.offer(make_lease(1), make_lease(2))
    async with bench.running():
        await bench.clock.advance(600 * NS_PER_S)
        assert len(bench.client.asked) == 1
        bench.finish(1)
        await bench.clock.settle()
        assert [lease.lease_id for lease in bench.lanes.taken] == [2]


async def test_a_freed_slot_is_claimed_for_at_once_while_another_claim_is_held(
    bench: Bench,
) -> None:
    bench.client.offer(make_lease(1), make_lease(2))
    async with bench.running():
        assert bench.capacities_asked[-1] == {"dns": 4}  # held: there is no dns work
        bench.client.offer(make_lease(3))
        await bench.clock.advance(NS_PER_S)
        assert len(bench.lanes.taken) == 2
        bench.finish(1)
        await bench.clock.settle()

        assert bench.capacities_asked[-1] == {"ping": 1}
        assert [lease.lease_id for lease in bench.lanes.taken] == [2, 3]


async def test_an_idle_agent_asks_once_per_hold(bench: Bench) -> None:
    async with bench.running():
        await bench.clock.advance(10 * HOLD_NS - 1)

    assert len(bench.client.asked) == 10
    assert len({claim_id for _, claim_id in bench.client.asked}) == 10


async def test_the_control_planes_distance_between_claims_is_kept(bench: Bench) -> None:
    bench.dispatcher.gap_ns = lambda: 5 * NS_PER_S
    times_ns = []
    bench.lanes.capacity = {PING: 1000}
    async with bench.running():
        for number in range(1, 200):
            asked = len(bench.client.asked)
            bench.client.offer(make_lease(number))
            await bench.clock.advance(200_000_000)
            times_ns += [bench.clock.boottime_ns()] * (len(bench.client.asked) - asked)

    # 40 s; the first was held, the second answered at once with the first lease.
    assert 7 <= len(bench.client.asked) <= 10


async def test_an_original_control_plane_has_one_claim_at_a_time(bench: Bench) -> None:
    bench.dispatcher.is_alone = lambda: True
    bench.client.offer(make_lease(1), make_lease(2))
    async with bench.running():
        bench.finish(1)
        await bench.clock.settle()
        assert bench.capacities_asked == [{"ping": 2, "dns": 4}, {"dns": 4}]
        await bench.clock.advance(HOLD_NS)
        assert bench.capacities_asked[2:] == [{"ping": 1, "dns": 4}]


async def test_a_claim_without_an_answer_is_repeated_under_its_id(bench: Bench) -> None:
    lost = TransportError("claim", "the connection broke")
    busy = ControlPlaneError("busy", code="ERR_UNAVAILABLE", status=503, retryable=True)
    refused = ControlPlaneError("no", code="ERR_VALIDATION", status=400, retryable=False)
    bench.client.failures.extend([lost, busy, refused])
    async with bench.running():
        ids = [claim_id for _, claim_id in bench.client.asked]

    # The refusal says that nothing was granted, so that the next claim is a new one.
    assert len(ids) == 4
    assert ids[0] == ids[1] == ids[2] != ids[3]


async def test_duplicates_and_leases_that_came_too_late_are_counted_and_not_worked_on(
    bench: Bench,
) -> None:
    async with bench.running():
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        bench.client.term_ns = 0
        bench.client.offer(make_lease(2))
        await bench.clock.settle()

    assert [lease.lease_id for lease in bench.lanes.taken] == [1]
    assert bench.dispatcher.counters["lease_duplicate"] == 1
    assert bench.dispatcher.counters["lease_late"] == 1


async def test_poison_leases_are_handed_back_and_cost_nobody_else(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """In the original one lease of an unknown kind lost the whole batch, again and again."""
    unknown = RejectedLease(9, 1009, "Invalid value 'smtp'")
    bench.client.rejected = (unknown,)
    bench.client.forced = [make_lease(1), make_lease(7, HTTP)]
    async with bench.running():
        assert [lease.lease_id for lease in bench.lanes.taken] == [1]
        assert [one.lease_id for one in bench.client.handed_back] == [9, 7]
        assert bench.client.handed_back[1].message == "this agent does not measure http"
        assert set(bench.leases) == {1}
    (record,) = caplog.records
    assert vars(record) | {"leases": 2, "lease_id": 9, "task_id": 1009} == vars(record)


async def test_leases_of_a_kind_that_is_stopped_are_handed_back_and_held_no_more(
    bench: Bench,
) -> None:
    async with bench.running():
        bench.client.offer(make_lease(1), make_lease(2))
        await bench.clock.settle()
        bench.dispatcher.give_back([make_lease(2)])
        await bench.clock.settle()
        assert set(bench.leases) == {1}
        assert [one.lease_id for one in bench.client.handed_back] == [2]
    bench.dispatcher.give_back([make_lease(1)])  # nobody is asked any more
    assert len(bench.leases) == 0


async def test_a_hand_back_that_fails_is_counted(bench: Bench) -> None:
    bench.client.rejected = (RejectedLease(9, 1009, "odd"),)
    bench.client.offer(make_lease(1))
    async with bench.running():
        pass
    bench.client.rejected = (RejectedLease(10, 1010, "odd"),)
    async with bench.running():
        bench.client.failures.append(TransportError("release", "gone"))
        await bench.dispatcher._hand_back(bench.client.rejected)

    assert bench.dispatcher.counters["hand_back_failed"] == 1


async def test_a_full_spool_stops_claims_until_it_has_room(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.spool._limits = SpoolLimits(rows=1)
    await bench.spool.append(1, b"{}", cancelled=False)
    with pytest.raises(SpoolFull):
        await bench.spool.append(2, b"{}", cancelled=False)
    async with bench.running():
        await bench.clock.advance(60 * NS_PER_S)
        assert bench.client.asked == []
        (record,) = await bench.spool.pending(10, 100)
        bench.spool.acknowledge([record.seq])
        await bench.spool.flush()
        await bench.clock.advance(FULL_RETRY_NS)
        assert len(bench.client.asked) == 1
    assert caplog.text.count("the spool is full: 1 results") == 1


async def test_kinds_together_ask_for_no_more_than_the_table_takes(
    clock: ManualClock, spool: Spool
) -> None:
    bench = Bench(clock, LeaseTable(Random(7), capacity=5), spool)
    bench.lanes.capacity = {PING: 3, DNS: 10}
    async with bench.running():
        await bench.clock.settle()
        assert bench.capacities_asked == [{"ping": 3, "dns": 2}]


async def test_a_full_lease_table_stops_claims(clock: ManualClock, spool: Spool) -> None:
    bench = Bench(clock, LeaseTable(Random(7), capacity=3), spool)
    bench.lanes.capacity = {PING: 10}
    bench.client.offer(*(make_lease(number) for number in range(1, 10)))
    async with bench.running():
        await bench.clock.settle()
        assert bench.capacities_asked == [{"ping": 3}]
        assert len(bench.lanes.taken) == 3


async def test_stopping_ends_held_claims_and_names_them(bench: Bench) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.dispatcher.run())
        await bench.clock.settle()
        claim_ids, known = bench.dispatcher.stop()
        await bench.clock.settle()
        assert running.done()
        bench.dispatcher.wake()

    assert list(claim_ids) == [claim_id for _, claim_id in bench.client.asked]
    assert len(claim_ids) == 1
    assert known == ()


async def test_a_claim_that_was_stopped_before_it_was_sent_holds_up_none_after_it(
    bench: Bench,
) -> None:
    """Its task never ran, so that nothing in it could say that it is over."""
    async with asyncio.TaskGroup() as group:
        first = group.create_task(bench.dispatcher.run())
        for _ in range(10):
            if not bench.dispatcher._out:
                await asyncio.sleep(0)
        (claim_id,), _ = bench.dispatcher.stop()
        assert claim_id
        await bench.clock.settle()
        assert first.done()
        assert bench.client.asked == []

        bench.dispatcher.resume()
        bench.client.offer(make_lease(1), make_lease(2, DNS))
        again = group.create_task(bench.dispatcher.run())
        await bench.clock.settle()
        assert [lease.lease_id for lease in bench.lanes.taken] == [1, 2]
        again.cancel()


async def test_a_large_grant_does_not_stop_the_loop(bench: Bench) -> None:
    bench.lanes.capacity = {PING: 1000}
    bench.client.offer(*(make_lease(number) for number in range(1, 1001)))
    most_at_once, taken = 0, 0
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.dispatcher.run())
        while taken < 1000:
            await asyncio.sleep(0)
            most_at_once = max(most_at_once, len(bench.lanes.taken) - taken)
            taken = len(bench.lanes.taken)
        running.cancel()

    assert 0 < most_at_once <= TASKS_PER_TURN


async def test_stopping_amid_a_large_grant_gives_the_rest_back(bench: Bench) -> None:
    """Giving the claim back by its id takes back what came, so that what runs must be named."""
    bench.lanes.capacity = {PING: 200}
    bench.client.offer(*(make_lease(number) for number in range(1, 201)))
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.dispatcher.run())
        for _ in range(10):
            if not bench.lanes.taken:
                await asyncio.sleep(0)
        _, known = bench.dispatcher.stop()

    assert set(known) == {lease.lease_id for lease in bench.lanes.taken}
    begun = {lease.lease_id for lease in bench.lanes.taken}
    back = {one.lease_id for one in bench.client.handed_back}
    assert begun
    assert begun | back == set(range(1, 201))
    assert not begun & back


async def test_a_streams_leases_begin_as_they_come(bench: Bench) -> None:
    bench.client.is_streaming = True
    async with bench.running():
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        assert [lease.lease_id for lease in bench.lanes.taken] == [1]
        bench.client.offer(make_lease(2, kind=DNS))
        await bench.clock.settle()
        assert [lease.lease_id for lease in bench.lanes.taken] == [1, 2]
        assert bench.capacities_asked == [{"ping": 2, "dns": 4}], "one claim is enough for both"


async def test_a_kind_whose_credit_is_used_up_is_claimed_again(bench: Bench) -> None:
    bench.client.is_streaming = True
    async with bench.running():
        bench.client.offer(make_lease(1), make_lease(2))
        await bench.clock.settle()
        assert bench.capacities_asked == [{"ping": 2, "dns": 4}]
        bench.lanes.taken.clear()  # both are done, while the first claim waits for dns
        bench.dispatcher.wake()
        await bench.clock.settle()
        assert bench.capacities_asked[1:] == [{"ping": 2}]


async def test_credit_that_is_out_is_not_asked_for_twice(bench: Bench) -> None:
    bench.client.is_streaming = True
    async with bench.running():
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        bench.lanes.taken.clear()
        bench.dispatcher.wake()
        await bench.clock.settle()
        assert len(bench.client.asked) == 1, "one ping may still come by the first claim"


async def test_what_a_stream_takes_back_is_passed_on(bench: Bench) -> None:
    bench.client.is_streaming = True
    lost: list[int] = []
    bench.dispatcher.on_revoked = lost.extend
    async with bench.running():
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        bench.client.revoked = [1]
        bench.client.wake()
        await bench.clock.settle()
    assert lost == [1]


async def test_a_stream_that_breaks_off_is_asked_again_under_its_id(bench: Bench) -> None:
    bench.client.is_streaming = True
    async with bench.running():
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        bench.client.failures.append(TransportError("claim", "broke off"))
        bench.client.wake()
        await bench.clock.settle()
        (_, first), (room, second) = bench.client.asked
        assert first == second
        assert room == {"ping": 1, "dns": 4}
        bench.client.forced = [make_lease(1)]  # still held there: it comes again
        bench.client.wake()
        await bench.clock.settle()
        assert [lease.lease_id for lease in bench.lanes.taken] == [1]
        assert bench.dispatcher.counters["lease_repeated"] == 1


async def test_every_stream_that_broke_off_is_asked_again_for_its_kinds(bench: Bench) -> None:
    """Were all that is free claimed under one id, the leases of the others would be stranded."""
    bench.client.is_streaming = True
    async with bench.running():
        bench.client.offer(make_lease(1), make_lease(2))
        await bench.clock.settle()
        bench.lanes.taken.clear()
        bench.dispatcher.wake()
        await bench.clock.settle()
        (_, dns), (_, ping) = bench.client.asked
        bench.client.failures += [TransportError("claim", "broke off")] * 2
        bench.client.wake()
        await bench.clock.settle()
        assert bench.client.asked[2:] == [({"dns": 4, "ping": 2}, dns)]
        bench.client.offer(make_lease(3), make_lease(4))
        await bench.clock.settle()
        bench.lanes.taken.clear()
        bench.dispatcher.wake()
        await bench.clock.settle()
        assert bench.client.asked[3:] == [({"ping": 2}, ping)]


async def test_a_claim_that_broke_off_long_ago_is_not_repeated(bench: Bench) -> None:
    bench.client.is_streaming = True
    async with bench.running():
        bench.lanes.capacity = {}  # nothing is free when it breaks off
        bench.client.failures.append(TransportError("claim", "broke off"))
        bench.client.wake()
        await bench.clock.advance(REPEAT_NS + NS_PER_S)
        bench.lanes.capacity = {PING: 2}
        bench.dispatcher.wake()
        await bench.clock.settle()
    (_, first), (_, second) = bench.client.asked
    assert first != second


async def test_what_has_ended_here_is_not_begun_again(bench: Bench) -> None:
    """Its result is on its way: acknowledged, it would end a measurement that runs."""
    bench.client.is_streaming = True
    async with bench.running():
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        bench.leases.release(1)
        bench.lanes.taken.clear()
        bench.client.failures.append(TransportError("claim", "broke off"))
        bench.client.wake()
        await bench.clock.settle()
        bench.client.forced = [make_lease(1)]
        bench.client.wake()
        await bench.clock.settle()
        assert bench.lanes.taken == []
        assert len(bench.leases) == 0


async def test_stopping_names_what_came_by_streams_that_broke_off(bench: Bench) -> None:
    bench.client.is_streaming = True
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.dispatcher.run())
        await bench.clock.settle()
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        bench.client.failures += [TransportError("claim", "broke off")] * 2
        bench.client.wake()
        await bench.clock.settle()
        claim_ids, known = bench.dispatcher.stop()
    assert len(set(claim_ids)) == len(claim_ids) >= 1
    assert known == (1,)


async def test_a_lease_that_repeats_takes_no_slot(bench: Bench) -> None:
    standing: list[Lease] = []
    bench.dispatcher.on_standing = standing.append
    async with bench.running():
        bench.client.offer(make_lease(1, repeat=Repeat(every_ms=1000)), make_lease(2))
        await bench.clock.settle()
    assert [lease.lease_id for lease in standing] == [1]
    assert [lease.lease_id for lease in bench.lanes.taken] == [2]
    assert list(bench.leases) == [1, 2]


# ── stopping and going on ──


async def test_it_goes_on_with_new_claims_and_asks_for_no_old_one(bench: Bench) -> None:
    bench.client.failures.append(TransportError("claim", "broke off"))
    async with asyncio.TaskGroup() as group:
        first = group.create_task(bench.dispatcher.run())
        await bench.clock.settle()
        given_back, _ = bench.dispatcher.stop()
        asked_before = len(bench.client.asked)
        await bench.clock.settle()
        assert first.done()
        bench.client.offer(make_lease(1))
        bench.dispatcher.wake()
        bench.dispatcher.resume()
        again = group.create_task(bench.dispatcher.run())
        await bench.clock.settle()
        again.cancel()

    assert [lease.lease_id for lease in bench.lanes.taken] == [1]
    asked = {claim_id for _, claim_id in bench.client.asked[asked_before:]}
    assert given_back
    assert asked
    assert not asked.intersection(given_back)


async def test_going_on_before_it_has_stopped_keeps_it_running(bench: Bench) -> None:
    async with bench.running():
        bench.dispatcher.stop()
        bench.dispatcher.resume()
        await bench.clock.settle()
        bench.client.offer(make_lease(1))
        await bench.clock.settle()
        assert [lease.lease_id for lease in bench.lanes.taken] == [1]


async def test_what_an_old_claim_still_brings_goes_back_after_going_on(bench: Bench) -> None:
    """It was given back by its id: the control plane grants it to somebody else."""
    bench.lanes.capacity = {PING: 200}
    bench.client.offer(*(make_lease(number) for number in range(1, 201)))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bench.dispatcher.run())
        for _ in range(10):
            if not bench.lanes.taken:
                await asyncio.sleep(0)
        _, known = bench.dispatcher.stop()
        bench.dispatcher.resume()
        await bench.clock.settle(100)
        running.cancel()

    begun = {lease.lease_id for lease in bench.lanes.taken}
    assert 0 < len(begun) < 200
    assert begun == set(known)
    assert {one.lease_id for one in bench.client.handed_back} == set(range(1, 201)) - begun
