"""Backoff, the retry budget and the cooldown."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.backoff import (
    HINT_MAX_MS,
    POLICIES,
    RESERVED_TOKENS,
    RETRY_COST,
    SHARED_TOKENS,
    BackoffPolicy,
    Cooldown,
    RetryBudget,
    Verb,
)
from netsonde.clock import NS_PER_MS

ALL_TOKENS = SHARED_TOKENS + sum(RESERVED_TOKENS.values())


@given(
    base_ms=st.integers(1, 10_000),
    factor=st.integers(1, 1000),
    attempt=st.integers(0, 10_000),
    seed=st.integers(),
)
def test_a_delay_stays_within_the_cap_and_the_doubled_base(
    base_ms: int, factor: int, attempt: int, seed: int
) -> None:
    policy = BackoffPolicy(base_ms, base_ms * factor)

    delay_ms = policy.delay_ms(attempt, Random(seed))

    assert 0 <= delay_ms <= min(policy.cap_ms, base_ms * 2 ** min(attempt, 40))


def test_jitter_is_full() -> None:
    rng = Random(1)
    delays = [BackoffPolicy(1000, 1000).delay_ms(5, rng) for _ in range(4000)]

    tenths = [sum(low <= delay < low + 100 for delay in delays) for low in range(0, 1000, 100)]

    assert min(tenths) > 300  # 400 expected in each: no tenth of the range is avoided
    assert max(tenths) < 500


@pytest.mark.parametrize(
    ("hint_ms", "low_ms", "high_ms"),
    [
        (None, 0, 100),
        (0, 0, 100),
        (-5, 0, 100),
        (7000, 7000, 7000),
        (10**15, HINT_MAX_MS, HINT_MAX_MS),
    ],
)
def test_the_servers_hint_wins_when_it_is_larger(
    hint_ms: int | None, low_ms: int, high_ms: int
) -> None:
    rng = Random(2)
    delays = [BackoffPolicy(100, 30_000).delay_ms(0, rng, hint_ms) for _ in range(200)]

    assert min(delays) >= low_ms
    assert max(delays) <= high_ms


@pytest.mark.parametrize(("base_ms", "cap_ms"), [(0, 10), (-1, 10), (20, 10)])
def test_a_policy_that_makes_no_sense_is_refused(base_ms: int, cap_ms: int) -> None:
    with pytest.raises(ValueError, match="base_ms"):
        BackoffPolicy(base_ms, cap_ms)


def test_the_table_is_the_contracts() -> None:
    assert {verb.value: (policy.base_ms, policy.cap_ms) for verb, policy in POLICIES.items()} == {
        "register": (1000, 300_000),
        "heartbeat": (100, 5_000),
        "claim": (100, 30_000),
        "extend": (100, 30_000),
        "release": (100, 30_000),
        "report": (100, 30_000),
        "config": (100, 30_000),
        "metrics": (1000, 60_000),
    }


def drain(budget: RetryBudget, verb: Verb) -> int:
    taken = 0
    while budget.take(verb):
        taken += 1
    return taken


def test_claims_cannot_use_up_what_is_reserved() -> None:
    budget = RetryBudget()

    assert drain(budget, Verb.CLAIM) == SHARED_TOKENS // RETRY_COST
    assert drain(budget, Verb.REPORT) == RESERVED_TOKENS[Verb.REPORT] // RETRY_COST
    assert drain(budget, Verb.HEARTBEAT) == RESERVED_TOKENS[Verb.HEARTBEAT] // RETRY_COST
    assert budget.tokens == 0


def test_what_is_shared_is_used_before_what_is_reserved() -> None:
    budget = RetryBudget()

    taken = drain(budget, Verb.REPORT)

    assert taken == (SHARED_TOKENS + RESERVED_TOKENS[Verb.REPORT]) // RETRY_COST
    assert not budget.take(Verb.EXTEND)
    assert budget.take(Verb.HEARTBEAT)


@given(st.lists(st.tuples(st.sampled_from(Verb), st.integers(0, 3)), max_size=300))
def test_an_empty_budget_fills_up_again_by_successes_of_any_kind(
    calls: list[tuple[Verb, int]],
) -> None:
    budget = RetryBudget()
    for verb, retries in calls:
        paid = sum(budget.take(verb) for _ in range(retries))
        before = budget.tokens
        budget.succeeded(paid)
        assert before <= budget.tokens <= ALL_TOKENS

    for _ in range(ALL_TOKENS):
        budget.succeeded()

    assert budget.tokens == ALL_TOKENS
    assert drain(budget, Verb.CLAIM) == SHARED_TOKENS // RETRY_COST


def test_reserves_fill_first() -> None:
    budget = RetryBudget()
    for verb in (Verb.CLAIM, Verb.REPORT, Verb.HEARTBEAT):
        drain(budget, verb)

    for _ in range(sum(RESERVED_TOKENS.values())):
        budget.succeeded()

    assert not budget.take(Verb.CLAIM)
    assert drain(budget, Verb.REPORT) == RESERVED_TOKENS[Verb.REPORT] // RETRY_COST


def test_a_cooldown_grows_with_failures_in_a_row_and_forgets_at_a_success() -> None:
    cooldowns = [Cooldown(Random(seed)) for seed in range(50)]
    longest = []
    for _ in range(12):
        for cooldown in cooldowns:
            cooldown.failed(Verb.CLAIM, 0)
        longest.append(max(cooldown.wait_ns(Verb.CLAIM, 0) for cooldown in cooldowns))

    assert longest[0] <= 100 * NS_PER_MS
    assert longest[0] < longest[4] < longest[8] <= 30_000 * NS_PER_MS
    for cooldown in cooldowns:
        cooldown.succeeded(Verb.CLAIM)
        assert cooldown.wait_ns(Verb.CLAIM, 0) == 0
        cooldown.failed(Verb.CLAIM, 0)
        assert cooldown.wait_ns(Verb.CLAIM, 0) <= 100 * NS_PER_MS


def test_a_cooldown_is_per_verb_and_passes() -> None:
    cooldown = Cooldown(Random(3))
    cooldown.failed(Verb.CLAIM, 0, hint_ms=5000)

    assert cooldown.wait_ns(Verb.REPORT, 0) == 0
    assert cooldown.wait_ns(Verb.CLAIM, 0) == 5000 * NS_PER_MS
    assert cooldown.wait_ns(Verb.CLAIM, 4000 * NS_PER_MS) == 1000 * NS_PER_MS
    assert cooldown.wait_ns(Verb.CLAIM, 9000 * NS_PER_MS) == 0


def test_a_refusal_waits_for_the_cap() -> None:
    cooldown = Cooldown(Random(4))

    cooldown.refused(Verb.REGISTER, 0)

    assert cooldown.wait_ns(Verb.REGISTER, 0) == 300_000 * NS_PER_MS


def test_a_verb_that_is_answered_again_lets_the_others_hurry() -> None:
    cooldown = Cooldown(Random(1), {verb: BackoffPolicy(1000, 300_000) for verb in Verb})
    for verb in (Verb.CLAIM, Verb.REPORT, Verb.HEARTBEAT):
        for _ in range(6):
            cooldown.failed(verb, 0)
    cooldown.failed(Verb.EXTEND, 0, hint_ms=5_000)
    cooldown.refused(Verb.RELEASE, 0)

    assert cooldown.succeeded(Verb.HEARTBEAT)

    assert cooldown.wait_ns(Verb.CLAIM, 0) == cooldown.wait_ns(Verb.REPORT, 0) == 0
    assert cooldown.wait_ns(Verb.EXTEND, 0) >= 5_000 * NS_PER_MS, "the server said how long"
    assert cooldown.wait_ns(Verb.RELEASE, 0) == 300_000 * NS_PER_MS
    assert cooldown.wait_ns(Verb.HEARTBEAT, 0) == 0


def test_a_verb_that_never_failed_tells_the_others_nothing() -> None:
    cooldown = Cooldown(Random(1), {verb: BackoffPolicy(1000, 300_000) for verb in Verb})
    for _ in range(6):
        cooldown.failed(Verb.REPORT, 0)
    waiting_ns = cooldown.wait_ns(Verb.REPORT, 0)

    assert not cooldown.succeeded(Verb.CLAIM)

    assert cooldown.wait_ns(Verb.REPORT, 0) == waiting_ns > 0
