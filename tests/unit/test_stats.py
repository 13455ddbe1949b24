"""Summaries and histograms of round-trip times."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.stats import (
    HISTOGRAM_UNIT_NS,
    SUB_BUCKETS,
    Histogram,
    bucket_bounds_ns,
    bucket_index,
    combine,
    jitter,
    percentile,
    summarise,
)

durations = st.integers(0, 2**63 - 1)
rtts = st.lists(st.integers(0, 60_000_000_000), min_size=1, max_size=200)


def test_nothing_has_no_summary() -> None:
    assert summarise([]) is None


@given(rtts)
def test_moments_are_those_of_the_standard_library(values: list[int]) -> None:
    summary = summarise(values)
    assert summary is not None
    assert summary.count == len(values)
    assert (summary.min_ns, summary.max_ns) == (min(values), max(values))
    assert summary.avg_ns == pytest.approx(statistics.fmean(values))
    assert summary.stddev_ns == pytest.approx(statistics.pstdev(values), abs=1e-3)


def test_percentiles_are_members_by_nearest_rank() -> None:
    values = list(range(10, 1010, 10))
    assert [percentile(values, p) for p in (50, 90, 95, 99, 100)] == [500, 900, 950, 990, 1000]
    assert percentile([7], 50) == percentile([7], 99) == 7


@given(rtts, st.sampled_from([50, 90, 95, 99]))
def test_a_percentile_is_not_exceeded_by_that_share(values: list[int], percent: int) -> None:
    found = percentile(sorted(values), percent)
    below = sum(value <= found for value in values)
    assert below * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_percentiles_have_bounds(percent: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile([1], percent)
    with pytest.raises(ValueError, match="no percentile"):
        Histogram([1]).percentile_ns(percent)


def test_jitter_follows_rfc_3550() -> None:
    # |D| = 16, 0, 32: 1, 0.9375, 0.9375 + (32 - 0.9375) / 16
    assert jitter([100, 116, 116, 84]) == pytest.approx(2.87890625)
    assert jitter([]) == jitter([5]) == 0


@given(durations)
def test_every_duration_lies_in_its_bucket(duration_ns: int) -> None:
    first_ns, last_ns = bucket_bounds_ns(bucket_index(duration_ns))
    assert first_ns <= duration_ns <= last_ns


@given(st.integers(0, (40 << 5) - 1))
def test_buckets_join_without_gaps_and_are_narrow(index: int) -> None:
    first_ns, last_ns = bucket_bounds_ns(index)
    assert bucket_bounds_ns(index + 1)[0] == last_ns + 1
    if index >= SUB_BUCKETS:
        assert (last_ns + 1 - first_ns) * SUB_BUCKETS <= first_ns
    else:
        assert last_ns + 1 - first_ns == HISTOGRAM_UNIT_NS


@given(st.lists(durations, max_size=50), st.lists(durations, max_size=50))
def test_merging_equals_counting_everything_in_one(left: list[int], right: list[int]) -> None:
    merged = Histogram(left)
    merged.merge(Histogram(right))
    assert merged == Histogram([*left, *right])
    assert merged.count == len(left) + len(right)


@given(st.lists(durations, max_size=50))
def test_the_json_form_says_all_that_was_counted(values: list[int]) -> None:
    histogram = Histogram(values)
    assert Histogram.of(histogram.value()["counts"]) == histogram


@given(rtts, st.sampled_from([50, 90, 99]))
def test_a_histograms_percentile_is_within_a_bucket(values: list[int], percent: int) -> None:
    exact = percentile(sorted(values), percent)
    estimate = Histogram(values).percentile_ns(percent)
    assert exact <= estimate <= exact * (1 + 1 / SUB_BUCKETS) + HISTOGRAM_UNIT_NS


def test_below_zero_counts_as_zero() -> None:
    assert Histogram([-5]) == Histogram([0])


@given(st.lists(rtts, min_size=1, max_size=5))
def test_summaries_of_parts_combine(parts: list[list[int]]) -> None:
    each = [summary for part in parts if (summary := summarise(part)) is not None]
    everything = [rtt_ns for part in parts for rtt_ns in part]
    exact, whole = summarise(everything), combine(each, Histogram(everything))
    assert exact is not None
    assert (whole.count, whole.min_ns, whole.max_ns) == (exact.count, exact.min_ns, exact.max_ns)
    assert whole.avg_ns == pytest.approx(exact.avg_ns)
    assert whole.stddev_ns == pytest.approx(exact.stddev_ns, rel=1e-6, abs=1)
    for name in ("p50_ns", "p90_ns", "p95_ns", "p99_ns"):
        least = getattr(exact, name)
        assert least <= getattr(whole, name) <= least * 1.032 + HISTOGRAM_UNIT_NS
    assert whole.jitter_ns == max(part.jitter_ns for part in each)
