"""What a program counts of itself: families by name, their readings, and durations in buckets.

Pure. A family is declared once; whoever shows it, to Prometheus or to a control plane, reads the
counters that its part has anyway.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from netsonde.clock import NS_PER_S

DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OTHER = "other"  # the value of a label for whatever is not one of its known ones


class MetricType(StrEnum):
    """What a family or a series is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: what it is called and counts, by which labels. A counter's name ends in _total.

    The values of labels come from short fixed lists: never an id, a host or a target.
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    unit: str | None = None


class Durations:
    """Durations counted in buckets; `counts` are not summed up, the last is above every bound."""

    def __init__(self, bounds_s: Sequence[float] = DURATION_BOUNDS_S) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        self.sum_ns = 0
        self._bounds_ns = [round(bound * NS_PER_S) for bound in self.bounds_s]

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def observe(self, duration_ns: int) -> None:
        """Count one; below 0 is 0."""
        duration_ns = max(duration_ns, 0)
        self.counts[bisect_left(self._bounds_ns, duration_ns)] += 1
        self.sum_ns += duration_ns


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a family now; `labels` are the values of its labels, in their order."""

    family: Family
    value: float | Durations
    labels: tuple[str, ...] = ()
