"""Slots by kind: who gets one, who waits, and what congestion takes away."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netsonde.agent.lanes import Lanes, _shared, target_of
from netsonde.congestion import HOLD_NS, LAG_MAX_NS, Signal
from netsonde.model import Lease, TaskKind
from support.leases import make_lease

DNS, PING, TCP = TaskKind.DNS, TaskKind.PING, TaskKind.TCP


@dataclass(eq=False)
class Job:
    lease: Lease


def lanes(ping: int = 4, dns: int = 4) -> Lanes[Job]:
    return Lanes({PING: ping, DNS: dns, TCP: 0})


def queue(it: Lanes[Job], *leases: Lease) -> None:
    for lease in leases:
        it.queue(Job(lease))


def begun(it: Lanes[Job], kind: TaskKind = PING) -> list[int]:
    ids = []
    while (job := it.begin(kind)) is not None:
        ids.append(job.lease.lease_id)
    return ids


def test_a_kind_has_its_slots_and_what_is_beyond_them_waits() -> None:
    it = lanes(ping=2)
    queue(it, *(make_lease(number) for number in range(1, 5)))
    assert it.free() == {DNS: 4}, "what waits has a claim on slots too"
    assert begun(it) == [1, 2]
    assert it.taken() == {PING: 2}
    it.give_back(PING)
    assert begun(it) == [3]
    assert it.measures(PING)
    assert not it.measures(TCP)


def test_a_full_kind_takes_nothing_from_the_others() -> None:
    it = lanes(ping=2, dns=2)
    queue(it, *(make_lease(number) for number in range(1, 50)))
    assert begun(it) == [1, 2]
    assert it.free() == {DNS: 2}
    queue(it, make_lease(100, DNS), make_lease(101, DNS))
    assert begun(it, DNS) == [100, 101]


def test_a_target_that_times_out_lets_the_others_pass() -> None:
    it = lanes()
    for second in range(20):
        slow = make_lease(1, target="slow.test")
        queue(it, slow)
        assert begun(it) == [1]
        it.ended(slow, Signal.TIMEOUT, second * HOLD_NS)
        it.give_back(PING)
    queue(it, *(make_lease(number, target="slow.test") for number in (2, 3, 4)), make_lease(5))
    assert begun(it) == [2, 5], "one of the slow ones at a time"
    it.ended(make_lease(2, target="slow.test"), Signal.ANSWERED, 0)
    it.give_back(PING)
    assert begun(it) == [3, 4], "an answer makes room for one more"


def test_a_host_that_lags_begins_and_asks_for_less() -> None:
    it = lanes(ping=5, dns=5)
    it.congestion.lagged(LAG_MAX_NS + 1, 0)
    assert sum(it.free().values()) == 7
    queue(it, *(make_lease(number) for number in range(1, 6)))
    queue(it, *(make_lease(number, DNS) for number in range(11, 16)))
    assert len(begun(it)) + len(begun(it, DNS)) == 7
    assert it.free() == {}


def test_what_is_removed_waits_no_longer() -> None:
    it = lanes(ping=1)
    queue(it, *(make_lease(number) for number in (1, 2, 3)))
    assert begun(it) == [1]
    assert [job.lease.lease_id for job in it.remove({2, 9})] == [2]
    assert [job.lease.lease_id for job in it.queued()] == [3]
    assert not it.is_idle
    it.remove({3})
    assert it.is_idle


class LanesMachine(RuleBasedStateMachine):
    """No slot is given twice or lost, whatever ends how and in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = lanes(ping=3, dns=2)
        self.capacity = {PING: 3, DNS: 2}
        self.running: list[Lease] = []
        self.waiting: set[int] = set()
        self.made = 0
        self.now_ns = 0

    @rule(kind=st.sampled_from([PING, DNS]), host=st.sampled_from(["a", "b", "c"]))
    def queue(self, kind: TaskKind, host: str) -> None:
        self.made += 1
        self.lanes.queue(Job(make_lease(self.made, kind, target=host)))
        self.waiting.add(self.made)

    @rule(kind=st.sampled_from([PING, DNS]))
    def begin(self, kind: TaskKind) -> None:
        job = self.lanes.begin(kind)
        if job is not None:
            self.waiting.remove(job.lease.lease_id)
            self.running.append(job.lease)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), signal=st.sampled_from(Signal), wait_ns=st.integers(0, 2 * HOLD_NS))
    def end(self, data: st.DataObject, signal: Signal, wait_ns: int) -> None:
        self.now_ns += wait_ns
        lease = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.lanes.ended(lease, signal, self.now_ns)
        self.lanes.give_back(lease.kind)

    @rule(lag_ns=st.integers(0, 2 * LAG_MAX_NS))
    def lag(self, lag_ns: int) -> None:
        self.lanes.congestion.lagged(lag_ns, self.now_ns)

    @invariant()
    def slots_are_what_they_are(self) -> None:
        taken = self.lanes.taken()
        for kind, slots in self.capacity.items():
            assert taken.get(kind, 0) == sum(lease.kind is kind for lease in self.running) <= slots
        assert {job.lease.lease_id for job in self.lanes.queued()} == self.waiting
        free = self.lanes.free()
        assert all(0 < free[kind] <= self.capacity[kind] for kind in free)

    @invariant()
    def something_can_always_begin(self) -> None:
        if not self.running and self.waiting:
            kinds = {job.lease.kind for job in self.lanes.queued()}
            job = next(filter(None, map(self.lanes.begin, kinds)))
            self.waiting.remove(job.lease.lease_id)
            self.running.append(job.lease)
            assert target_of(job.lease) in "abc"


TestLanesMachine = LanesMachine.TestCase
TestLanesMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_slots_can_become_more_and_fewer_while_they_are_taken() -> None:
    it = lanes(ping=4)
    queue(it, *(make_lease(number) for number in range(1, 10)))
    assert begun(it) == [1, 2, 3, 4]
    it.resize({PING: 2, DNS: 4})
    it.give_back(PING)
    it.give_back(PING)
    assert begun(it) == [], "two still run"
    it.give_back(PING)
    assert begun(it) == [5]
    it.resize({PING: 6, DNS: 4})
    assert begun(it) == [6, 7, 8, 9]


def test_a_kind_without_slots_waits_until_it_has_some() -> None:
    it = lanes(ping=4)
    it.resize({DNS: 4})
    queue(it, make_lease(1))
    assert begun(it) == []
    assert not it.measures(PING)
    assert it.free() == {DNS: 4}
    it.resize({PING: 1, DNS: 4})
    assert begun(it) == [1]


def test_a_ceiling_that_moves_keeps_what_congestion_has_learned() -> None:
    it = lanes(ping=100, dns=100)
    it.congestion._shrink(PING, 0)
    assert it.congestion.limit(PING) == 70
    it.resize({PING: 200, DNS: 50})
    assert (it.congestion.limit(PING), it.congestion.limit(DNS)) == (70, 50)
    it.resize({PING: 10, DNS: 200})
    assert (it.congestion.limit(PING), it.congestion.limit(DNS)) == (10, 200)


CAPACITIES = {DNS: 200, TaskKind.HTTP: 64, TCP: 128, PING: 256, TaskKind.TRACE: 32}


def congested(limit: int) -> Lanes[Job]:
    """Lanes of an agent whose loop was late until there were fewer slots than limit."""
    it: Lanes[Job] = Lanes(CAPACITIES)
    now_ns = 0
    while it.congestion.limit_of_all > limit:
        now_ns += HOLD_NS
        it.congestion.lagged(2 * LAG_MAX_NS, now_ns)
    return it


def test_a_late_loop_leaves_every_kind_some_slots() -> None:
    it = congested(120)
    left, free = it.congestion.limit_of_all, it.free()
    assert left < CAPACITIES[DNS], "one kind alone could have them all"
    assert set(free) == set(CAPACITIES)
    assert sum(free.values()) == left
    assert max(free.values()) - min(free.values()) <= 1


def test_kinds_take_turns_where_there_are_fewer_slots_than_kinds() -> None:
    for left in range(1, len(CAPACITIES)):
        claimed = [_shared(CAPACITIES, left, turn) for turn in range(len(CAPACITIES))]
        assert {kind for shares in claimed for kind in shares} == set(CAPACITIES)
        assert all(sum(shares.values()) == left for shares in claimed)


@given(
    st.dictionaries(st.sampled_from(list(TaskKind)), st.integers(1, 300), min_size=1),
    st.integers(0, 1000),
    st.integers(0, 10),
)
def test_what_is_left_is_divided_and_none_has_more_than_its_room(
    room: dict[TaskKind, int], left: int, turn: int
) -> None:
    shares = _shared(room, left, turn)
    assert sum(shares.values()) == min(left, sum(room.values()))
    assert all(0 < slots <= room[kind] for kind, slots in shares.items())
