"""Token buckets: never more than they promise, never less over time."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.pacing import EVICTION_LOOKS, KeyedBuckets, Pacer, TokenBucket, take_all

START_NS = 5 * NS_PER_S


def test_a_new_bucket_is_full_and_then_gains_by_its_rate() -> None:
    bucket = TokenBucket(10, 3)

    assert [bucket.take(1, START_NS) for _ in range(4)] == [0, 0, 0, 100 * NS_PER_MS]
    assert bucket.take(1, START_NS + 100 * NS_PER_MS - 1) == 1
    assert bucket.take(1, START_NS + 100 * NS_PER_MS) == 0


def test_an_idle_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(1000, 2)
    bucket.take(2, START_NS)
    later_ns = START_NS + 3600 * NS_PER_S

    assert bucket.take(2, later_ns) == 0
    assert bucket.take(1, later_ns) == NS_PER_MS


def test_peek_takes_nothing() -> None:
    bucket = TokenBucket(1, 1)

    assert [bucket.peek(1, START_NS) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(1, START_NS) == 0
    assert bucket.peek(1, START_NS) == NS_PER_S


def test_a_refused_take_costs_nothing() -> None:
    bucket = TokenBucket(1, 5)
    bucket.take(4, START_NS)

    assert bucket.take(3, START_NS) == 2 * NS_PER_S
    assert bucket.take(1, START_NS) == 0


def test_a_clock_that_goes_back_brings_nothing() -> None:
    bucket = TokenBucket(1, 1)
    bucket.take(1, START_NS)

    assert bucket.take(1, START_NS - NS_PER_S) == 2 * NS_PER_S  # the same instant as before
    assert bucket.take(1, START_NS + NS_PER_S) == 0


@pytest.mark.parametrize("count", [0, -1, 4])
def test_what_can_never_be_taken_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match="tokens at once"):
        TokenBucket(1, 3).take(count, START_NS)


@pytest.mark.parametrize(
    ("rate", "burst"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1), (float("inf"), 1), (1e-9, 1)]
)
def test_a_bucket_without_rate_or_burst_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match=r"a bucket needs|too few"):
        TokenBucket(rate, burst)


@given(
    rate=st.fractions(min_value=Fraction(1, 1000), max_value=10**6, max_denominator=1000),
    gaps=st.lists(st.integers(0, 3 * NS_PER_S), min_size=1, max_size=60),
    burst=st.integers(1, 20),
)
def test_any_window_admits_at_most_burst_plus_rate_times_time(
    rate: Fraction, gaps: list[int], burst: int
) -> None:
    bucket, now_ns, taken = TokenBucket(rate, burst), START_NS, 0
    for gap_ns in gaps:
        now_ns += gap_ns
        while taken < 10_000 and bucket.take(1, now_ns) == 0:
            taken += 1
    assert taken <= burst + rate * (now_ns - START_NS) / NS_PER_S


@given(
    rate=st.floats(0.01, 1e5),
    steps=st.lists(st.integers(0, NS_PER_S), min_size=1, max_size=200),
)
def test_however_often_it_is_looked_at_no_token_gets_lost(rate: float, steps: list[int]) -> None:
    looked_at, left_alone = TokenBucket(rate, 10**9), TokenBucket(rate, 10**9)
    now_ns = START_NS
    for bucket in (looked_at, left_alone):
        bucket.take(10**9, START_NS)
    for step_ns in steps:
        now_ns += step_ns
        looked_at.peek(1, now_ns)
    assert looked_at.peek(10**9, now_ns) == left_alone.peek(10**9, now_ns)


@given(rate=st.floats(0.001, 1e6), count=st.integers(1, 50))
def test_the_wait_it_names_is_exactly_enough(rate: float, count: int) -> None:
    bucket = TokenBucket(rate, 50)
    bucket.take(50, START_NS)
    wait_ns = bucket.peek(count, START_NS)

    assert bucket.peek(count, START_NS + wait_ns - 1) > 0
    assert bucket.take(count, START_NS + wait_ns) == 0


def test_all_or_none() -> None:
    wide, narrow = TokenBucket(100, 100), TokenBucket(1, 1)

    assert take_all((wide, narrow), 1, START_NS) == 0
    assert take_all((wide, narrow), 1, START_NS) == NS_PER_S
    assert wide.take(99, START_NS) == 0


def test_nothing_to_pass_is_passed() -> None:
    assert take_all((), 1, START_NS) == 0


def test_each_key_has_its_own_bucket() -> None:
    buckets = KeyedBuckets(1, 1, keys_max=10)

    assert buckets.of("a", START_NS).take(1, START_NS) == 0
    assert buckets.of("a", START_NS).take(1, START_NS) == NS_PER_S
    assert buckets.of("b", START_NS).take(1, START_NS) == 0


def test_keys_are_bounded_and_full_buckets_make_room() -> None:
    buckets = KeyedBuckets(1, 1, keys_max=3)
    now_ns = START_NS
    for key in range(1000):
        assert buckets.of(key, now_ns).take(1, now_ns) == 0
        now_ns += NS_PER_S
        assert len(buckets) <= 3


def test_using_many_keys_gains_nothing() -> None:
    buckets = KeyedBuckets(1, 1, keys_max=10)
    taken = sum(buckets.of(key, START_NS).take(1, START_NS) == 0 for key in range(1000))

    assert taken == 11  # ten keys, and all the others together one
    assert buckets.of(3, START_NS).take(1, START_NS) > 0


def test_a_busy_key_is_kept_while_idle_ones_go() -> None:
    buckets = KeyedBuckets(1, 1, keys_max=2)
    buckets.of("busy", START_NS).take(1, START_NS)
    buckets.of("idle", START_NS).take(1, START_NS)
    later_ns = START_NS + NS_PER_S
    busy = buckets.of("busy", later_ns)
    busy.take(1, later_ns)
    buckets.of("new", later_ns)

    assert buckets.of("busy", later_ns) is busy


def test_keys_that_are_busy_hide_a_full_bucket_only_once() -> None:
    buckets = KeyedBuckets(1, 1, keys_max=EVICTION_LOOKS + 1)
    later_ns = START_NS + NS_PER_S
    for key in range(EVICTION_LOOKS):
        buckets.of(key, START_NS).take(1, later_ns)
    buckets.of("idle", START_NS)

    shared = buckets.of("new", later_ns)
    assert buckets.of("new", later_ns) is not shared
    assert len(buckets) == EVICTION_LOOKS + 1


def test_keyed_buckets_need_room_for_one() -> None:
    with pytest.raises(ValueError, match="keys_max"):
        KeyedBuckets(1, 1, keys_max=0)


def test_a_start_passes_every_level_that_concerns_it() -> None:
    pacer = Pacer(
        [TokenBucket(1000, 4)],
        [KeyedBuckets(10, 3, keys_max=5), KeyedBuckets(1, 1, keys_max=100)],
    )

    assert pacer.take(("ping", "a"), START_NS) == 0
    assert pacer.take(("ping", "a"), START_NS) == NS_PER_S  # the target's level
    assert pacer.take(("ping", "b"), START_NS) == 0
    assert pacer.take(("ping", "c"), START_NS) == 0
    assert pacer.take(("ping", "d"), START_NS) == 100 * NS_PER_MS  # the kind's level
    assert pacer.take(("dns", None), START_NS) == 0
    assert pacer.take(("dns", "e"), START_NS) == NS_PER_MS  # the agent's level


def test_a_pacer_wants_a_key_per_level() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Pacer([], [KeyedBuckets(1, 1, keys_max=1)]).take((), START_NS)


def test_a_reservation_queues_behind_the_earlier_ones() -> None:
    bucket = TokenBucket(10, 1)

    assert [bucket.reserve(1, START_NS) for _ in range(3)] == [0, 10**8, 2 * 10**8]
    assert bucket.take(1, START_NS) == 3 * 10**8
    assert bucket.reserve(1, START_NS + 3 * 10**8) == 0


def test_a_pacer_reserves_at_its_slowest_level() -> None:
    pacer = Pacer([TokenBucket(100, 1)], [KeyedBuckets(10, 1, keys_max=5)])

    assert pacer.reserve(("a",), START_NS) == 0
    assert pacer.reserve(("a",), START_NS) == 10**8
    assert pacer.reserve(("b",), START_NS) == 2 * 10**7


@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 2 * NS_PER_S), st.lists(st.sampled_from(["a", "b", "c"]), max_size=5)
        ),
        max_size=20,
    )
)
def test_taking_for_each_of_many_keys_is_taking_one_by_one(
    calls: list[tuple[int, list[str]]],
) -> None:
    together, alone = (Pacer(keyed=[KeyedBuckets(1.5, 2, keys_max=2)]) for _ in range(2))
    now_ns = 0
    for later_ns, keys in calls:
        now_ns += later_ns
        expected = [alone.take((key,), now_ns) == 0 for key in keys]

        assert together.take_each(keys, now_ns) == expected


def test_taking_for_each_passes_every_level() -> None:
    pacer = Pacer([TokenBucket(1, 2)], [KeyedBuckets(1, 5, keys_max=10)])

    assert pacer.take_each(["a", "b", "c"], 0) == [True, True, False]
