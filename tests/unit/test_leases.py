"""The lease table against a plain list of leases under a clock moved by hand."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.leases import (
    ASK_AGAIN_MIN_NS,
    FRACTION_MAX,
    FRACTION_MIN,
    GATHER_NS,
    NEVER_NS,
    STANDING_ASK_MIN_NS,
    Ended,
    Grant,
    LeaseState,
    LeaseTable,
)
from netsonde.model import ID_MAX, Lease, TaskKind
from support.leases import ask_ns, make_lease

TERM_MS = 20_000
TERM_NS = TERM_MS * NS_PER_MS
CAPACITY = 12


def make_table(capacity: int = 100) -> LeaseTable:
    return LeaseTable(Random(1), capacity=capacity)


def granted(table: LeaseTable, *lease_ids: int, now_ns: int = 0) -> None:
    """Grant leases of one term, as one claim would."""
    leases = [make_lease(lease_id, lease_until_ms=TERM_MS) for lease_id in lease_ids]
    answers = table.grant_many(leases, [now_ns + TERM_NS] * len(leases), now_ns)
    assert set(answers) == {Grant.GRANTED}


# ── a random history ─────────────────────────────────────────────────────────────────────────────


@dataclass
class Held:
    """A lease as the contract sees it."""

    lease: Lease
    state: LeaseState
    deadline_ns: int
    limit_ns: float  # infinite without max_lease_ms
    ask_ns: int = 0
    offline_ns: int | None = None  # of a standing lease

    def plan(self, now_ns: int, seed: int) -> None:
        """Due when remaining < (1 - f) of the term just obtained."""
        self.ask_ns = NEVER_NS
        end_ns = self.deadline_ns - (self.offline_ns or 0)
        if end_ns < self.limit_ns:
            self.ask_ns = ask_ns(self.lease.lease_id, end_ns, now_ns, seed)
            term_ns = end_ns - now_ns
            passed_ns = self.ask_ns - now_ns
            if term_ns > 0:
                assert FRACTION_MIN * term_ns - 1 <= passed_ns <= FRACTION_MAX * term_ns


some_id = st.sampled_from([*range(1, 20), ID_MAX])
some_ids = st.lists(some_id, max_size=8)
some_ms = st.integers(-2000, 40_000)


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(Random(5), capacity=CAPACITY)
        self.seed = Random(5).getrandbits(64)  # what the table draws
        self.now_ns = 1000 * NS_PER_S
        self.held: dict[int, Held] = {}
        self.counts: Counter[str] = Counter()

    @rule(
        lease_id=some_id,
        kind=st.sampled_from(TaskKind),
        left_ms=some_ms,
        max_lease_ms=st.sampled_from([None, 30_000]),
    )
    def grant(self, lease_id: int, kind: TaskKind, left_ms: int, max_lease_ms: int | None) -> None:
        lease = make_lease(
            lease_id, kind, lease_until_ms=max(left_ms, 1), max_lease_ms=max_lease_ms,
            offline_ms=10 * abs(left_ms),
        )  # fmt: skip
        deadline_ns = self.now_ns + left_ms * NS_PER_MS
        answer = self.table.grant(lease, deadline_ns, self.now_ns)

        if lease_id in self.held:
            assert answer is Grant.DUPLICATE
        elif left_ms <= 0:
            assert answer is Grant.LATE
        elif len(self.held) == CAPACITY:
            assert answer is Grant.FULL
        else:
            assert answer is Grant.GRANTED
            limit_ns = float("inf")
            if max_lease_ms is not None:
                limit_ns = deadline_ns + max(max_lease_ms - lease.lease_until_ms, 0) * NS_PER_MS
            held = Held(lease, LeaseState.QUEUED, deadline_ns, limit_ns)
            held.plan(self.now_ns, self.seed)
            self.held[lease_id] = held
        self.counts["granted" if answer is Grant.GRANTED else "refused"] += 1

    @rule(lease_id=some_id)
    def stand(self, lease_id: int) -> None:
        held = self.held.get(lease_id)
        if held is None:
            return
        self.table.stand(held.lease)
        if held.offline_ns is None:
            held.offline_ns = held.lease.offline_ms * NS_PER_MS
            held.deadline_ns += held.offline_ns

    @rule(lease_id=some_id)
    def start(self, lease_id: int) -> None:
        held = self.held.get(lease_id)
        startable = (
            held is not None and held.state is LeaseState.QUEUED and held.deadline_ns > self.now_ns
        )

        assert self.table.start(lease_id, self.now_ns) == startable
        if held is not None and startable:
            held.state = LeaseState.RUNNING

    @rule(lease_id=some_id)
    def finish(self, lease_id: int) -> None:
        held = self.held.get(lease_id)
        running = held is not None and held.state is LeaseState.RUNNING

        assert self.table.finish(lease_id) == running
        if held is not None and running:
            held.state = LeaseState.FINISHED
            held.ask_ns = NEVER_NS

    @rule(ids=some_ids)
    def pass_many(self, ids: list[int]) -> None:
        passed = []
        for lease_id in ids:
            held = self.held.get(lease_id)
            if held and held.state is LeaseState.QUEUED and held.deadline_ns > self.now_ns:
                held.state = LeaseState.FINISHED
                held.ask_ns = NEVER_NS
                passed.append(lease_id)

        assert self.table.pass_many(ids, self.now_ns) == passed

    @rule(ids=some_ids)
    def release(self, ids: list[int]) -> None:
        assert self.table.release_many(ids) == len(self.let_go(ids))
        self.counts["released"] = self.table.counters.released

    @rule(ids=some_ids)
    def revoke(self, ids: list[int]) -> None:
        expected = self.let_go(ids)

        assert self.table.revoke(iter(ids)) == expected
        self.counts["revoked"] += len(expected)
        self.counts["unknown"] += len(ids) - len(expected)

    @rule(answers=st.dictionaries(some_id, some_ms, max_size=8))
    def extend(self, answers: dict[int, int]) -> None:
        deadlines_ns = {key: self.now_ns + left * NS_PER_MS for key, left in answers.items()}
        moved = 0
        for lease_id, deadline_ns in deadlines_ns.items():
            held = self.held.get(lease_id)
            if held is None:
                self.counts["unknown"] += 1
                continue
            limit_ns = float("inf") if held.state is LeaseState.FINISHED else held.limit_ns
            end_ns = int(min(deadline_ns, limit_ns)) + (held.offline_ns or 0)
            if end_ns > held.deadline_ns:
                moved += 1
                held.deadline_ns = end_ns
                asked_ns = held.ask_ns
                held.plan(self.now_ns, self.seed)
                if held.state not in (LeaseState.QUEUED, LeaseState.RUNNING):
                    held.ask_ns = asked_ns
            else:
                self.counts["unextended"] += 1

        assert self.table.extend(deadlines_ns, self.now_ns) == moved
        self.counts["extended"] += moved

    @rule(limit=st.sampled_from([1, 3, 1000]))
    def due(self, limit: int) -> None:
        asked = self.table.due(self.now_ns, limit)

        order = sorted(self.held.values(), key=lambda held: held.ask_ns)
        gathered = [held for held in order if held.ask_ns <= self.now_ns + GATHER_NS][:limit]
        if not order or order[0].ask_ns > self.now_ns:
            gathered = []
        assert sorted(asked) == sorted(held.lease.lease_id for held in gathered) or (
            # Which of equals go is not promised, only how many and that none is late.
            [self.held[key].ask_ns for key in asked] == [held.ask_ns for held in gathered]
        )
        for lease_id in asked:
            held = self.held[lease_id]
            left_ns = held.deadline_ns - (held.offline_ns or 0) - self.now_ns
            least_ns = ASK_AGAIN_MIN_NS if held.offline_ns is None else STANDING_ASK_MIN_NS
            held.ask_ns = self.now_ns + max(left_ns // 4, least_ns)

    @rule(limit=st.sampled_from([1, 1000]))
    def pop_expired(self, limit: int) -> None:
        ended = self.table.pop_expired(self.now_ns, limit)

        late = sorted(
            held.deadline_ns for held in self.held.values() if held.deadline_ns <= self.now_ns
        )
        assert [self.held[one.lease_id].deadline_ns for one in ended] == late[:limit]
        assert ended == self.let_go([one.lease_id for one in ended])
        self.counts["expired"] += len(ended)

    @rule(ms=st.sampled_from([1, 499, 500, 1000, 5000, 20_000]))
    def time_passes(self, ms: int) -> None:
        self.now_ns += ms * NS_PER_MS

    @rule()
    def time_passes_to_the_next_event(self) -> None:
        self.now_ns = max(self.now_ns, self.table.next_wake_ns or 0)

    @invariant()
    def agrees(self) -> None:
        assert list(self.table) == list(self.held)
        assert len(self.table) == len(self.held)
        for lease_id, held in self.held.items():
            finished = held.state is LeaseState.FINISHED
            assert self.table.lease(lease_id) is (None if finished else held.lease)
            assert self.table.state(lease_id) is held.state
            assert self.table.stands(lease_id) == (held.offline_ns is not None)
            assert self.table.deadline_ns(lease_id) == held.deadline_ns
        events = [ns for held in self.held.values() for ns in (held.ask_ns, held.deadline_ns)]
        assert self.table.next_wake_ns == min(events, default=None)

    @invariant()
    def counts_agree(self) -> None:
        for name, count in self.counts.items():
            assert getattr(self.table.counters, name) == count

    def let_go(self, ids: list[int]) -> list[Ended]:
        return [
            Ended(
                held.lease.lease_id,
                held.state,
                None if held.state is LeaseState.FINISHED else held.lease,
            )
            for held in (self.held.pop(lease_id, None) for lease_id in ids)
            if held is not None
        ]


LeaseMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestTableAgainstAList = LeaseMachine.TestCase


# ── sentences of the contract ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", sorted(set(LeaseState) - {LeaseState.ENDED}))
@pytest.mark.parametrize("end", ["release", "revoke", "expire"])
def test_every_lease_can_end_and_nothing_leaves_its_end(state: LeaseState, end: str) -> None:
    table = make_table()
    granted(table, 1)
    if state is not LeaseState.QUEUED:
        table.start(1, 0)
    if state is LeaseState.FINISHED:
        table.finish(1)
    assert table.state(1) is state

    match end:
        case "release":
            assert table.release(1)
        case "revoke":
            assert [ended.state for ended in table.revoke([1])] == [state]
        case "expire":
            assert [ended.state for ended in table.pop_expired(TERM_NS)] == [state]

    assert table.state(1) is LeaseState.ENDED
    assert not table.start(1, 0)
    assert not table.finish(1)
    assert not table.release(1)
    assert table.revoke([1]) == []
    assert (len(table), table.next_wake_ns, table._running) == (0, None, set())


def test_an_extension_is_due_when_the_fraction_of_the_term_has_passed() -> None:
    table = make_table()
    granted(table, *range(1, 101))
    earliest_ns = table.next_wake_ns
    assert earliest_ns is not None

    assert FRACTION_MIN * TERM_NS - 1 <= earliest_ns < 0.36 * TERM_NS  # of a hundred, the least
    assert table.due(earliest_ns - 1) == []

    asked = table.due(earliest_ns)
    assert 0 < len(asked) < 100  # what is due within half a second goes along, not all

    table.due(int(FRACTION_MAX * TERM_NS) + 1)
    assert table.next_wake_ns == earliest_ns + (TERM_NS - earliest_ns) // 4


def test_leases_due_within_half_a_second_go_together() -> None:
    table = make_table()
    granted(table, *range(1, 51))
    seed = Random(1).getrandbits(64)
    instants_ns = {lease_id: ask_ns(lease_id, TERM_NS, 0, seed) for lease_id in range(1, 51)}
    first_ns = min(instants_ns.values())
    together = {key for key, at_ns in instants_ns.items() if at_ns <= first_ns + GATHER_NS}

    assert table.next_wake_ns == first_ns
    assert table.due(first_ns - 1) == []
    assert set(table.due(first_ns)) == together
    assert 1 < len(together) < 50
    assert table.due(first_ns) == []
    assert table.next_wake_ns == min(instants_ns[key] for key in instants_ns.keys() - together)


def test_every_table_spreads_its_leases_anew() -> None:
    tables = [LeaseTable(Random(seed)) for seed in (1, 2)]
    for table in tables:
        granted(table, *range(1, 51))

    assert tables[0].next_wake_ns != tables[1].next_wake_ns


def test_a_failed_call_is_repeated_until_the_deadline_and_no_faster_than_half_a_second() -> None:
    table = make_table()
    granted(table, 1)
    instants: list[int] = []
    while not table.pop_expired(table.next_wake_ns or 0):
        now_ns = table.next_wake_ns
        assert now_ns is not None
        assert table.due(now_ns) == [1]
        instants.append(now_ns)

    gaps_ns = [later - earlier for earlier, later in pairwise(instants)]
    assert len(instants) > 5
    assert min(gaps_ns) >= ASK_AGAIN_MIN_NS
    assert len(table) == 0
    assert table.next_wake_ns is None


def test_an_extension_never_shortens() -> None:
    table = make_table()
    granted(table, 1)

    assert table.extend({1: TERM_NS - 1}, NS_PER_S) == 0
    assert table.extend({1: TERM_NS}, NS_PER_S) == 0
    assert table.deadline_ns(1) == TERM_NS
    assert table.counters.unextended == 2


def test_an_extension_stops_at_the_longest_a_lease_may_last_and_is_not_asked_for_again() -> None:
    table = make_table()
    lease = make_lease(1, lease_until_ms=TERM_MS, max_lease_ms=TERM_MS + 5000)
    table.grant(lease, TERM_NS, 0)
    limit_ns = TERM_NS + 5 * NS_PER_S

    assert table.extend({1: 2 * TERM_NS}, 0) == 1
    assert table.deadline_ns(1) == limit_ns
    assert table.next_wake_ns == limit_ns
    assert table.due(limit_ns) == []


def test_a_longest_life_below_the_term_itself_cuts_nothing() -> None:
    table = make_table()
    lease = make_lease(1, lease_until_ms=TERM_MS, max_lease_ms=-(10**30))
    table.grant(lease, TERM_NS, 0)

    assert table.extend({1: 2 * TERM_NS}, 0) == 0
    assert table.deadline_ns(1) == TERM_NS


def test_an_answer_after_the_deadline_revives_a_lease_that_has_not_been_let_go() -> None:
    table = make_table()
    granted(table, 1)

    assert table.extend({1: 3 * TERM_NS}, TERM_NS + 1) == 1
    assert table.pop_expired(TERM_NS + 1) == []
    assert table.start(1, TERM_NS + 1)


def test_a_finished_lease_is_not_extended_but_still_ends_at_its_deadline() -> None:
    table = make_table()
    granted(table, 1)
    table.start(1, 0)
    table.finish(1)

    assert table.next_wake_ns == TERM_NS
    assert table.due(TERM_NS) == []
    assert [one.state for one in table.pop_expired(TERM_NS)] == [LeaseState.FINISHED]


def test_a_lease_does_not_start_at_its_deadline() -> None:
    table = make_table()
    granted(table, 1)

    assert not table.start(1, TERM_NS)
    assert table.state(1) is LeaseState.QUEUED
    assert [one.lease_id for one in table.pop_expired(TERM_NS)] == [1]
    assert table.state(1) is LeaseState.ENDED


def test_a_batch_of_grants_answers_each() -> None:
    table = make_table(capacity=2)
    lease = make_lease(1, lease_until_ms=TERM_MS)
    late, other, third = (make_lease(lease_id, lease_until_ms=TERM_MS) for lease_id in (2, 3, 4))

    assert table.grant_many([lease, lease, late, other, third], [5, 9, 0, 5, 5], now_ns=0) == [
        Grant.GRANTED,
        Grant.DUPLICATE,
        Grant.LATE,
        Grant.GRANTED,
        Grant.FULL,
    ]
    assert table.deadline_ns(1) == 5
    assert table.counters.granted == 2
    assert table.counters.refused == 3


def test_a_grant_that_cannot_be_filed_changes_nothing() -> None:
    table = make_table()
    with pytest.raises(OverflowError):
        table.grant(make_lease(ID_MAX + 1), 10, 0)

    assert len(table) == 0
    assert table.next_wake_ns is None


def test_foreign_ids_are_carried_untouched() -> None:
    table = make_table()
    granted(table, 0, ID_MAX)

    assert set(table.due(TERM_NS)) == {0, ID_MAX}
    assert [one.lease_id for one in table.revoke([ID_MAX, 7])] == [ID_MAX]
    assert table.release(0)
    assert not table.release(0)


def test_a_large_table_ends_its_leases_in_order() -> None:
    count = 200_000
    table = LeaseTable(Random(1), capacity=count)
    shared = make_lease(1, lease_until_ms=1)
    for begin in range(0, count, 1000):
        keys = range(begin, begin + 1000)
        leases = [msgspec.structs.replace(shared, lease_id=key) for key in keys]
        table.grant_many(leases, [key % 977 + 1 for key in keys], now_ns=0)
    ended = table.pop_expired(100, limit=count)

    assert len(ended) == sum(key % 977 < 100 for key in range(count))
    remainders = [one.lease_id % 977 for one in ended]
    assert remainders == sorted(remainders)
    assert len(table) == count - len(ended)


@pytest.mark.parametrize("is_running", [False, True])
def test_a_lease_that_is_taken_back_twice_at_once_ends_once(is_running: bool) -> None:
    table = make_table()
    granted(table, 1)
    if is_running:
        table.start(1, 0)

    assert len(table.revoke([1, 1])) == 1
    assert (table.counters.revoked, table.counters.unknown) == (1, 1)
    assert table.pop_expired(TERM_NS) == []


def test_a_standing_lease_is_extended_no_further_than_any_other() -> None:
    table = make_table()
    lease = make_lease(1, lease_until_ms=TERM_MS, max_lease_ms=TERM_MS + 5, offline_ms=60_000)
    table.grant(lease, TERM_NS, 0)
    table.stand(lease)

    assert table.extend({1: 3 * TERM_NS}, 0) == 1
    assert table.deadline_ns(1) == TERM_NS + (5 + 60_000) * NS_PER_MS


def test_a_standing_lease_is_asked_for_through_an_outage_and_kept() -> None:
    table = make_table()
    lease = make_lease(1, lease_until_ms=TERM_MS, offline_ms=3_600_000)
    table.grant(lease, TERM_NS, 0)
    table.stand(lease)
    assert table.deadline_ns(1) == TERM_NS + 3600 * NS_PER_S
    asked_ns: list[int] = []
    while (wake_ns := table.next_wake_ns) is not None and not table.pop_expired(wake_ns):
        if table.due(wake_ns):
            asked_ns.append(wake_ns)
    assert FRACTION_MIN * TERM_NS <= asked_ns[0] <= FRACTION_MAX * TERM_NS
    gaps_ns = [after - before for before, after in pairwise(asked_ns)]
    assert set(gaps_ns) == {STANDING_ASK_MIN_NS}
    assert len(asked_ns) == 3600 // 30 + 1
    assert not table.stands(1)


def test_an_extension_of_a_standing_lease_moves_both_its_ends() -> None:
    table = make_table()
    lease = make_lease(1, lease_until_ms=TERM_MS, offline_ms=60_000)
    table.grant(lease, TERM_NS, 0)
    table.stand(lease)
    now_ns = TERM_NS + 50 * NS_PER_S  # in the outage
    assert table.extend({1: now_ns + TERM_NS}, now_ns) == 1
    assert table.deadline_ns(1) == now_ns + TERM_NS + 60 * NS_PER_S
    wake_ns = table.next_wake_ns
    assert wake_ns is not None
    assert now_ns + FRACTION_MIN * TERM_NS <= wake_ns <= now_ns + FRACTION_MAX * TERM_NS
