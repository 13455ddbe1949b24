"""Durations in buckets."""

from hypothesis import given
from hypothesis import strategies as st

from netsonde.metrics import Durations


@given(st.lists(st.integers(-(10**9), 20 * 10**9)))
def test_every_duration_is_in_the_first_bucket_that_holds_it(durations_ns: list[int]) -> None:
    took = Durations((0.001, 1.0))
    for duration_ns in durations_ns:
        took.observe(duration_ns)
    low = sum(one <= 1_000_000 for one in durations_ns)
    middle = sum(1_000_000 < one <= 10**9 for one in durations_ns)
    assert took.counts == [low, middle, len(durations_ns) - low - middle]
    assert took.count == len(durations_ns)
    assert took.sum_ns == sum(max(one, 0) for one in durations_ns)
