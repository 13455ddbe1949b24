"""Summaries of round-trip times: moments, percentiles, jitter, and a histogram that merges.

Pure. Times are ns. Rendering in ms or us is the caller's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

JITTER_GAIN = 16  # RFC 3550 6.4.1: a sixteenth of each new difference

HISTOGRAM_UNIT_NS = 100  # finer than any stamp is true
SUB_BUCKET_BITS = 5  # 32 buckets per doubling: a bucket is at most 1/32 = 3.2 % wide
SUB_BUCKETS = 1 << SUB_BUCKET_BITS
INDEX_MAX = (64 << SUB_BUCKET_BITS) - 1  # no int64 duration lies above


@dataclass(frozen=True, slots=True, kw_only=True)
class RttSummary:
    """What a series of round-trip times says; the standard deviation is the population's."""

    count: int
    min_ns: int
    max_ns: int
    avg_ns: float
    stddev_ns: float
    p50_ns: int
    p90_ns: int
    p95_ns: int
    p99_ns: int
    jitter_ns: float

    @classmethod
    def of(cls, *numbers: Any) -> Self:
        """Make a summary of its fields in their order."""
        return cls(**dict(zip(cls.__slots__, numbers, strict=True)))


def combine(parts: Sequence[RttSummary], histogram: "Histogram") -> RttSummary:
    """Summarise series as one, percentiles within 3.2 %; the jitter is the greatest.

    histogram: of all of them.
    """
    count = sum(part.count for part in parts)
    least, greatest = min(part.min_ns for part in parts), max(part.max_ns for part in parts)
    avg_ns = math.fsum(part.count * part.avg_ns for part in parts) / count
    squares = (part.count * (part.stddev_ns**2 + (part.avg_ns - avg_ns) ** 2) for part in parts)

    def percentile_ns(percent: float) -> int:
        return max(least, min(greatest, histogram.percentile_ns(percent)))

    return RttSummary(
        count=count,
        min_ns=least,
        max_ns=greatest,
        avg_ns=avg_ns,
        stddev_ns=math.sqrt(math.fsum(squares) / count),
        p50_ns=percentile_ns(50),
        p90_ns=percentile_ns(90),
        p95_ns=percentile_ns(95),
        p99_ns=percentile_ns(99),
        jitter_ns=max(part.jitter_ns for part in parts),
    )


def summarise(rtts_ns: Sequence[int]) -> RttSummary | None:
    """Summarise round-trip times given in the order of sending; None when there are none."""
    if not rtts_ns:
        return None
    ordered = sorted(rtts_ns)
    count = len(ordered)
    avg_ns = sum(ordered) / count
    variance = math.fsum((rtt_ns - avg_ns) ** 2 for rtt_ns in ordered) / count
    return RttSummary(
        count=count,
        min_ns=ordered[0],
        max_ns=ordered[-1],
        avg_ns=avg_ns,
        stddev_ns=math.sqrt(variance),
        p50_ns=percentile(ordered, 50),
        p90_ns=percentile(ordered, 90),
        p95_ns=percentile(ordered, 95),
        p99_ns=percentile(ordered, 99),
        jitter_ns=jitter(rtts_ns),
    )


def percentile(ordered: Sequence[int], percent: float) -> int:
    """Return the smallest value that at least `percent` of them do not exceed (RFC 2330 11.3).

    Raises:
        ValueError: ordered is empty or percent is not above 0 and at most 100.
    """
    if not ordered or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(ordered)} values")
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def jitter(rtts_ns: Iterable[int]) -> float:
    """Return the smoothed mean deviation of successive round-trip times (RFC 3550 6.4.1)."""
    estimate = 0.0
    previous: int | None = None
    for rtt_ns in rtts_ns:
        if previous is not None:
            estimate += (abs(rtt_ns - previous) - estimate) / JITTER_GAIN
        previous = rtt_ns
    return estimate


class Histogram:
    """Counts of durations in log-linear buckets, each at most 3.2 % wide.

    Buckets are the same everywhere, so merging histograms equals counting everything in one.
    """

    __slots__ = ("_counts",)

    def __init__(self, durations_ns: Iterable[int] = ()) -> None:
        self._counts: dict[int, int] = {}
        for duration_ns in durations_ns:
            self.add(duration_ns)

    def add(self, duration_ns: int, count: int = 1) -> None:
        """Count a duration; below 0 counts as 0."""
        index = bucket_index(duration_ns)
        self._counts[index] = self._counts.get(index, 0) + count

    @classmethod
    def of(cls, counts: Iterable[list[int]]) -> Self:
        """Make a histogram of `[index, count]` pairs that are known to be right."""
        histogram = cls()
        histogram._counts = dict(counts)  # type: ignore[arg-type]
        return histogram

    def merge(self, other: "Histogram") -> None:
        """Add everything other has counted."""
        for index, count in other._counts.items():
            self._counts[index] = self._counts.get(index, 0) + count

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self._counts.values())

    def percentile_ns(self, percent: float) -> int:
        """Return the upper bound of the bucket in which the percentile lies.

        Raises:
            ValueError: nothing was counted, or percent is not above 0 and at most 100.
        """
        total = self.count
        if not total or not 0 < percent <= 100:
            raise ValueError(f"no percentile {percent} of {total} values")
        rank = math.ceil(total * percent / 100)
        index = -1
        for index in sorted(self._counts):
            rank -= self._counts[index]
            if rank <= 0:
                break
        return bucket_bounds_ns(index)[1]

    def value(self) -> dict[str, Any]:
        """Return the JSON form: the bucket scheme, and `[index, count]` of what is not empty."""
        return {
            "unit_ns": HISTOGRAM_UNIT_NS,
            "sub_buckets": SUB_BUCKETS,
            "counts": [[index, self._counts[index]] for index in sorted(self._counts)],
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}>"


def bucket_index(duration_ns: int) -> int:
    """Return the number of the bucket a duration falls into."""
    units = max(duration_ns, 0) // HISTOGRAM_UNIT_NS
    shift = max(units.bit_length() - 1 - SUB_BUCKET_BITS, 0)
    return min((shift << SUB_BUCKET_BITS) + (units >> shift), INDEX_MAX)


def bucket_bounds_ns(index: int) -> tuple[int, int]:
    """Return the first and the last duration of a bucket."""
    shift = max((index >> SUB_BUCKET_BITS) - 1, 0)
    units = index - (shift << SUB_BUCKET_BITS)
    return (
        (units << shift) * HISTOGRAM_UNIT_NS,
        ((units + 1) << shift) * HISTOGRAM_UNIT_NS - 1,
    )
