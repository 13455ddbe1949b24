"""The extender: renews in time, ends on time, and nothing the control plane does can stop it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from netsonde.agent.lease_extender import CALLS_MAX, LeaseExtender
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.control_plane import ControlPlaneError, Extension, TransportError
from netsonde.errors import ErrorCode
from netsonde.leases import Ended, LeaseState, LeaseTable
from netsonde.model import Reason
from support.leases import make_lease

TERM_NS = 45 * NS_PER_S
Answer = Callable[[Sequence[int], int], Extension]


class Extensions:
    """A control plane that only extends; `answer` decides how, `gate` when."""

    def __init__(self, clock: ManualClock) -> None:
        self.calls: list[tuple[tuple[int, ...], int]] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.revoked: set[int] = set()
        self.silent_about: set[int] = set()
        self.shorten_to_ns: int | None = None
        self._clock = clock

    async def extend(self, lease_ids: Sequence[int], extend_by_ms: int) -> Extension:
        sent_ns = self._clock.boottime_ns()
        self.calls.append((tuple(lease_ids), extend_by_ms))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        by_ns = self.shorten_to_ns or extend_by_ms * NS_PER_MS
        deadlines_ns = {
            lease_id: sent_ns + by_ns
            for lease_id in lease_ids
            if lease_id not in self.revoked | self.silent_about
        }
        return Extension(deadlines_ns, tuple(self.revoked & set(lease_ids)))


class Bench:
    def __init__(self, clock: ManualClock, leases: LeaseTable) -> None:
        self.clock, self.leases = clock, leases
        self.client = Extensions(clock)
        self.ended: list[tuple[int, Reason, int]] = []
        self.gap_ns = 0
        self.term_ms = 0
        self.extender = LeaseExtender(
            clock, leases, self.client, self._on_ended, lambda: self.gap_ns, lambda: self.term_ms
        )
        self.start_ns = clock.boottime_ns()

    def _on_ended(self, ended: Ended, reason: Reason) -> None:
        at_ns = self.clock.boottime_ns() - self.start_ns
        self.ended.append((ended.lease_id, reason, at_ns))

    def grant(self, *lease_ids: int, term_ns: int = TERM_NS, is_running: bool = True) -> None:
        now_ns = self.clock.boottime_ns()
        for lease_id in lease_ids:
            lease = make_lease(lease_id, lease_until_ms=term_ns // NS_PER_MS)
            self.leases.grant(lease, now_ns + term_ns, now_ns)
            if is_running:
                self.leases.start(lease_id, now_ns)
        self.extender.wake()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.extender.run())
            await self.clock.settle()
            yield
            task.cancel()


@pytest.fixture
def bench(clock: ManualClock, leases: LeaseTable) -> Bench:
    return Bench(clock, leases)


async def test_a_lease_that_is_worked_on_never_ends(bench: Bench) -> None:
    async with bench.running():
        bench.grant(1)
        await bench.clock.advance(3600 * NS_PER_S)

    assert bench.ended == []
    assert bench.leases.state(1) is LeaseState.RUNNING
    # Asked for when 35 to 45 % of each term has passed.
    assert 3600 / (0.45 * 45) <= len(bench.client.calls) <= 3600 / (0.35 * 45) + 1
    assert {call[1] for call in bench.client.calls} == {45_000}


async def test_a_lease_that_came_with_the_rest_of_its_term_is_extended_by_a_whole_one(
    bench: Bench,
) -> None:
    bench.term_ms = 45_000
    async with bench.running():
        bench.grant(1, term_ns=NS_PER_S)
        await bench.clock.advance(NS_PER_S)

    assert [asked_ms for _, asked_ms in bench.client.calls] == [45_000]


async def test_a_host_that_slept_past_a_deadline_stops_within_a_second(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake, asleep_ns = bench.clock.boottime_ns, 0
    monkeypatch.setattr(bench.clock, "boottime_ns", lambda: awake() + asleep_ns)
    async with bench.running():
        bench.grant(1)
        await bench.clock.advance(NS_PER_S)
        asleep_ns = 60 * NS_PER_S  # no timer ran meanwhile

        await bench.clock.advance(NS_PER_S)

    assert [(lease_id, reason) for lease_id, reason, _ in bench.ended] == [(1, Reason.EXPIRED)]


async def test_leases_due_together_go_in_one_call_asking_for_the_longest_term(
    bench: Bench,
) -> None:
    async with bench.running():
        bench.grant(*range(1, 101), term_ns=2 * NS_PER_S)
        bench.grant(200, term_ns=2 * NS_PER_S + 100 * NS_PER_MS)
        await bench.clock.advance(NS_PER_S)

    assert len(bench.client.calls) == 1
    assert set(bench.client.calls[0][0]) == {*range(1, 101), 200}
    assert bench.client.calls[0][1] == 2100


async def test_a_finished_lease_is_not_extended(bench: Bench) -> None:
    async with bench.running():
        bench.grant(1, 2)
        bench.leases.finish(1)
        await bench.clock.advance(TERM_NS - 1)
        assert {lease_id for call in bench.client.calls for lease_id in call[0]} == {2}


async def test_a_lease_ends_at_its_deadline_and_not_before(bench: Bench) -> None:
    bench.client.failure = TransportError("extend", "connection refused")
    async with bench.running():
        bench.grant(1)
        await bench.clock.advance(TERM_NS - 1)
        assert bench.ended == []
        await bench.clock.advance(1)

    assert bench.ended == [(1, Reason.EXPIRED, TERM_NS)]
    assert len(bench.client.calls) >= 3  # it had several chances


async def test_an_extend_that_fails_blocks_nothing(bench: Bench) -> None:
    """The original's extender retried for ever inside its own task, and the agent stood still."""
    bench.client.failure = ControlPlaneError("no", code="ERR_BACKEND", status=500, retryable=True)
    async with bench.running():
        bench.grant(1)
        await bench.clock.advance(30 * NS_PER_S)
        bench.grant(*range(2, 200))
        await bench.clock.advance(TERM_NS - 30 * NS_PER_S)
        assert bench.ended == [(1, Reason.EXPIRED, TERM_NS)]
        bench.client.failure = None
        await bench.clock.advance(300 * NS_PER_S)

    assert len(bench.ended) == 1
    assert len(bench.leases) == 198
    assert bench.extender.counters["failed"] >= 3


async def test_an_extend_that_hangs_delays_no_deadline_and_no_other_lease(bench: Bench) -> None:
    bench.client.gate.clear()
    async with bench.running():
        for lease_id in range(1, 11):
            bench.grant(lease_id)
            await bench.clock.advance(NS_PER_S)
        await bench.clock.advance(TERM_NS)

        assert [lease_id for lease_id, _, _ in bench.ended] == list(range(1, 11))
        assert [at_ns for _, _, at_ns in bench.ended] == [
            TERM_NS + step * NS_PER_S for step in range(10)
        ]
        assert len(bench.client.calls) == CALLS_MAX
        bench.client.gate.set()
        bench.grant(20)
        await bench.clock.advance(600 * NS_PER_S)
        assert bench.leases.state(20) is LeaseState.RUNNING


async def test_an_extension_never_shortens_a_lease(bench: Bench) -> None:
    """The original asked for 500 ms every 2 s and so cut 60 s leases to half a second."""
    bench.client.shorten_to_ns = 500 * NS_PER_MS
    async with bench.running():
        bench.grant(1)
        await bench.clock.advance(TERM_NS - 1)

    assert len(bench.client.calls) >= 1
    assert bench.ended == []


async def test_revoked_means_lease_ids(bench: Bench) -> None:
    """The original looked revoked lease ids up as task ids."""
    bench.client.revoked = {2}
    async with bench.running():
        bench.grant(1, 2, 3)
        assert bench.leases.lease(1) is not None
        await bench.clock.advance(TERM_NS)

    assert [(lease_id, reason) for lease_id, reason, _ in bench.ended] == [(2, Reason.CANCELLED)]


async def test_a_lease_the_answer_leaves_out_keeps_its_deadline(bench: Bench) -> None:
    bench.client.silent_about = {1}
    async with bench.running():
        bench.grant(1, 2)
        await bench.clock.advance(TERM_NS)

    assert bench.ended == [(1, Reason.EXPIRED, TERM_NS)]


async def test_the_heartbeats_word_ends_leases_at_once(bench: Bench) -> None:
    async with bench.running():
        bench.grant(1, 2)
        bench.extender.revoke([2, 99])

    assert bench.ended == [(2, Reason.CANCELLED, 0)]
    assert bench.leases.counters.unknown == 1


async def test_queued_leases_are_kept_alive_too(bench: Bench) -> None:
    async with bench.running():
        bench.grant(1, is_running=False)
        await bench.clock.advance(10 * TERM_NS)

    assert bench.ended == []
    assert bench.leases.state(1) is LeaseState.QUEUED


async def test_calls_keep_the_distance_the_control_plane_wants(bench: Bench) -> None:
    bench.gap_ns = 2 * NS_PER_S
    times_ns: list[int] = []
    extend = bench.client.extend

    async def noting(lease_ids: Sequence[int], extend_by_ms: int) -> Extension:
        times_ns.append(bench.clock.boottime_ns())
        return await extend(lease_ids, extend_by_ms)

    bench.client.extend = noting  # type: ignore[method-assign]
    async with bench.running():
        for lease_id in range(1, 50):
            bench.grant(lease_id, term_ns=20 * NS_PER_S)
            await bench.clock.advance(300 * NS_PER_MS)
        await bench.clock.advance(60 * NS_PER_S)

    gaps = [later - earlier for earlier, later in pairwise(times_ns)]
    assert min(gaps) >= bench.gap_ns
    assert bench.ended == []


async def test_more_leases_than_a_call_takes_go_in_several(bench: Bench) -> None:
    bench.gap_ns = 100 * NS_PER_MS
    async with bench.running():
        bench.grant(*range(1, 2502), term_ns=10 * NS_PER_S)
        await bench.clock.advance(60 * NS_PER_S)

    assert bench.ended == []
    assert max(len(call[0]) for call in bench.client.calls) <= 1000


async def test_an_outage_ends_no_standing_lease_and_it_is_asked_for_until_answered(
    bench: Bench,
) -> None:
    lease = make_lease(1, lease_until_ms=45_000, offline_ms=3_600_000)
    async with bench.running():
        bench.grant(2)
        now_ns = bench.clock.boottime_ns()
        bench.leases.grant(lease, now_ns + TERM_NS, now_ns)
        bench.leases.stand(lease)
        bench.extender.wake()
        bench.client.failure = TransportError("extend", "gone")
        await bench.clock.advance(1800 * NS_PER_S)
        assert [lease_id for lease_id, _, _ in bench.ended] == [2]
        bench.client.failure = None
        before = len(bench.client.calls)
        await bench.clock.advance(31 * NS_PER_S)
        assert len(bench.client.calls) == before + 1
        await bench.clock.advance(3 * 3600 * NS_PER_S)
    assert 1 in bench.leases


@pytest.mark.parametrize("is_verdict", [True, False])
async def test_an_agent_that_is_turned_away_stops_its_standing_leases(
    bench: Bench, is_verdict: bool
) -> None:
    lease = make_lease(1, lease_until_ms=45_000, offline_ms=3_600_000)
    refusal = ControlPlaneError("no", code=ErrorCode.FORBIDDEN, status=403, retryable=False)
    refusal.is_verdict = is_verdict  # else it is some proxy's page, which is an outage
    async with bench.running():
        bench.grant(2)
        now_ns = bench.clock.boottime_ns()
        bench.leases.grant(lease, now_ns + TERM_NS, now_ns)
        bench.leases.stand(lease)
        bench.client.failure = refusal
        await bench.clock.advance(25 * NS_PER_S)
    ended = [(lease_id, reason) for lease_id, reason, _ in bench.ended]
    assert ended == ([(1, Reason.CANCELLED)] if is_verdict else [])
