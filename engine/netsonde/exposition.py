"""Readings in the text format that Prometheus scrapes: the one module that knows its client.

A registry of our own, filled at each scrape from counters that exist anyway.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from netsonde.clock import NS_PER_S
from netsonde.metrics import Durations, Family, MetricType, Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_COUNTER_END = "_total"  # the format's own, which its client adds


class _Readings(Collector):
    """Hands readings to the client's registry as they are at that moment."""

    def __init__(self, read: Callable[[], Sequence[Reading]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: what there is is read at each scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return every family with its values."""
        families: dict[str, tuple[Family, list[Reading]]] = {}
        for reading in self._read():
            families.setdefault(reading.family.name, (reading.family, []))[1].append(reading)
        for family, readings in families.values():
            yield _metric(family, readings)


def exposition(read: Callable[[], Sequence[Reading]]) -> bytes:
    """Return what `read` returns as a page to scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Readings(read))
    page: bytes = generate_latest(registry)
    return page


def _metric(family: Family, readings: Sequence[Reading]) -> Metric:
    match family.type:
        case MetricType.COUNTER:
            name = family.name.removesuffix(_COUNTER_END)
            counter = CounterMetricFamily(name, family.help, labels=family.labels)
            for reading in readings:
                counter.add_metric(reading.labels, _number(reading))
            return counter
        case MetricType.GAUGE:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for reading in readings:
                gauge.add_metric(reading.labels, _number(reading))
            return gauge
    histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for reading in readings:
        if isinstance(reading.value, Durations):
            took = reading.value
            names = [*(str(bound) for bound in took.bounds_s), "+Inf"]
            buckets = [*zip(names, accumulate(took.counts), strict=True)]
            histogram.add_metric(reading.labels, buckets, took.sum_ns / NS_PER_S)
    return histogram


def _number(reading: Reading) -> float:
    if isinstance(reading.value, Durations):
        raise TypeError(f"{reading.family.name} is no histogram")
    return reading.value
