"""The schedule of runs against heapq, the token buckets against exact arithmetic."""

import heapq
import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from native.pacing_core import Budget, KeyedBudgets, Schedule

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
UNITS_PER_NS = 16
SMOOTH_NS = 2 * NS_PER_MS  # shorter gaps are kept on average over this time
KEY_PLACES = 1 << 16
KEY_LOOKS = 8

RATES = st.one_of(
    st.sampled_from([0.01, 1.0, 499.0, 500.0, 501.0, 1e4, 1e6, 1e9]), st.floats(0.001, 1e9)
)
STARTS = st.integers(0, 1 << 50)  # CLOCK_MONOTONIC: 13 days


# ── the schedule ─────────────────────────────────────────────────────────────────────────────────


class Queue(RuleBasedStateMachine):
    """Any order of pushes, pops and removals; heapq is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()
        self.model: list[tuple[int, int]] = []
        self.tokens = itertools.count()
        self.most = 0

    @rule(dues=st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 5), max_size=300))
    def push(self, dues: list[int]) -> None:
        for due_ns in dues:
            token = next(self.tokens)
            self.schedule.push(token, due_ns)
            heapq.heappush(self.model, (due_ns, token))
        self.most = max(self.most, len(self.model))

    @rule(count=st.integers(1, 100))
    def pop(self, count: int) -> None:
        for _ in range(count):
            popped = self.schedule.pop()
            if popped is None:
                assert not self.model
                return
            token, due_ns = popped
            assert (due_ns, token) == heapq.heappop(self.model), "of those due, who came first"

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        due_ns, token = data.draw(st.sampled_from(self.model))
        assert self.schedule.remove(token) == (token, due_ns)
        assert self.schedule.remove(token) is None
        self._drop(due_ns, token)

    @invariant()
    def is_as_long_as_the_model_and_reuses_runs(self) -> None:
        assert len(self.schedule) == len(self.model)
        assert self.schedule.used == self.most

    def _drop(self, due_ns: int, token: int) -> None:
        self.model.remove((due_ns, token))
        heapq.heapify(self.model)


def test_the_schedule_agrees_with_heapq() -> None:
    run_state_machine_as_test(Queue)


@given(st.lists(st.integers(-(1 << 62), 1 << 62), max_size=2000))
def test_the_schedule_sorts(dues: list[int]) -> None:
    schedule = Schedule()
    for token, due_ns in enumerate(dues):
        schedule.push(token, due_ns)
    popped = [entry[1] for _ in dues if (entry := schedule.pop()) is not None]
    assert popped == sorted(dues)
    assert schedule.pop() is None


# ── token buckets ────────────────────────────────────────────────────────────────────────────────


class ExactBucket:
    """The generic cell rate algorithm (ITU-T I.371, annex A) in fractions of a nanosecond.

    The gap is the pace's, rounded to the 1/16 ns that the bucket counts in.
    """

    def __init__(self, rate_pps: float) -> None:
        exact = NS_PER_S * UNITS_PER_NS / Fraction(rate_pps)
        self.gap_ns = Fraction(math.floor(exact + Fraction(1, 2)), UNITS_PER_NS)
        self.slack_ns = SMOOTH_NS if self.gap_ns < SMOOTH_NS else 0
        self.due_ns = Fraction(0)

    def take(self, now_ns: int) -> int:
        ahead_ns = self.due_ns - self.slack_ns - now_ns
        if ahead_ns > 0:
            return math.ceil(ahead_ns)
        self.due_ns = max(self.due_ns, Fraction(now_ns)) + self.gap_ns
        return 0

    def give_back(self) -> None:
        self.due_ns -= self.gap_ns


def assert_same_gap(rate_pps: float, exact: ExactBucket) -> None:
    """A double divides by the rate with an error of one part in 2^53."""
    budget = Budget(rate_pps)
    start_ns = 1 << 40
    assert budget.take(start_ns) == 0
    waits = 1
    while (wait := budget.take(start_ns)) == 0:
        waits += 1
        assert waits <= 1 + SMOOTH_NS * UNITS_PER_NS, "a burst has an end"
    expected = waits * exact.gap_ns - exact.slack_ns
    assert abs(wait - expected) <= 1 + expected / 2**50


@given(RATES)
def test_a_burst_is_as_long_as_the_slack(rate_pps: float) -> None:
    assert_same_gap(min(rate_pps, 1e6), ExactBucket(min(rate_pps, 1e6)))


RATES_OF_WHOLE_GAPS = st.sampled_from([1.0, 2.0, 125.0, 500.0, 512.0, 1000.0, 64_000.0, 1e6, 1e9])


@given(
    RATES_OF_WHOLE_GAPS, STARTS,
    st.lists(st.tuples(st.integers(0, 5 * NS_PER_MS), st.sampled_from(["take", "take", "return"])),
             max_size=200),
)  # fmt: skip
def test_a_budget_agrees_with_exact_arithmetic(
    rate_pps: float, now_ns: int, operations: list[tuple[int, str]]
) -> None:
    budget, exact = Budget(rate_pps), ExactBucket(rate_pps)
    taken = 0
    for wait_ns, operation in operations:
        now_ns += wait_ns
        if operation == "take":
            wait = budget.take(now_ns)
            assert wait == exact.take(now_ns)
            taken += wait == 0
        elif taken:
            budget.give_back()
            exact.give_back()
            taken -= 1


@given(RATES, STARTS, st.integers(2, 300))
def test_the_wait_told_is_exact(rate_pps: float, now_ns: int, count: int) -> None:
    budget = Budget(rate_pps)
    for _ in range(count):
        wait = budget.take(now_ns)
        if wait:
            assert budget.take(now_ns + wait - 1) == 1
            assert budget.take(now_ns + wait) == 0
            now_ns += wait


@given(RATES, STARTS, st.lists(st.integers(0, 10 * NS_PER_MS), min_size=1, max_size=300))
def test_no_window_holds_more_than_the_rate_and_the_slack(
    rate_pps: float, start_ns: int, pauses_ns: list[int]
) -> None:
    budget, exact = Budget(rate_pps), ExactBucket(rate_pps)
    instants = [start_ns + total for total in itertools.accumulate(pauses_ns)]
    passed = [now_ns for now_ns in instants if budget.take(now_ns) == 0]
    for first, last in itertools.combinations(range(len(passed)), 2):
        span_ns = passed[last] - passed[first]
        allowed = (span_ns + exact.slack_ns) / (exact.gap_ns - Fraction(1, UNITS_PER_NS)) + 1
        assert last - first + 1 <= allowed + 1


@pytest.mark.parametrize("rate_pps", [7.0, 499.0, 501.0, 9_999.0, 333_333.0])
def test_a_rate_is_kept_to_a_few_parts_per_million(rate_pps: float) -> None:
    budget = Budget(rate_pps)
    start_ns = now_ns = NS_PER_S
    passed = 0
    while passed < 2_000:
        wait = budget.take(now_ns)
        passed += wait == 0
        now_ns += wait
    burst = Fraction(SMOOTH_NS * rate_pps / NS_PER_S) + 1 if rate_pps > 500 else 1
    rate = (passed - burst) / Fraction(now_ns - start_ns, NS_PER_S)
    assert abs(rate / Fraction(rate_pps) - 1) < Fraction(2, 1000)


class Keys(RuleBasedStateMachine):
    """Buckets by key: exact while a key's places are not all busy, else never faster."""

    rate_pps = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.keyed = KeyedBudgets(self.rate_pps)
        self.exact: dict[int, ExactBucket] = {}
        self.now_ns = NS_PER_S

    @rule(ns=st.integers(0, 30 * NS_PER_MS))
    def wait(self, ns: int) -> None:
        self.now_ns += ns

    @rule(key=st.integers(1, 6).map(lambda n: n * KEY_PLACES + 3) | st.integers(0, (1 << 64) - 1))
    def take(self, key: int) -> None:
        exact = self.exact.setdefault(key, ExactBucket(self.rate_pps))
        if self._is_crowded(key):
            return
        assert self.keyed.take(key, self.now_ns) == exact.take(self.now_ns)

    def _is_crowded(self, key: int) -> bool:
        """Whether so many keys want the places near this one that they may have to share."""
        near = sum((other - key) % KEY_PLACES < KEY_LOOKS or (key - other) % KEY_PLACES < KEY_LOOKS
                   for other in self.exact)  # fmt: skip
        return near > KEY_LOOKS // 2


def test_keyed_buckets_agree_with_exact_arithmetic() -> None:
    run_state_machine_as_test(Keys)


def test_keys_that_crowd_a_place_share_a_pace() -> None:
    """Many keys gain nothing over few: 64 that all want the same 8 places pass 8 packets."""
    keyed = KeyedBudgets(1.0)
    passed = sum(keyed.take(n * KEY_PLACES, NS_PER_S) == 0 for n in range(1, 65))
    assert passed == KEY_LOOKS


def test_a_pace_of_zero_is_no_limit() -> None:
    keyed = KeyedBudgets(0.0)
    assert not any(keyed.take(1, 0) for _ in range(1000))
