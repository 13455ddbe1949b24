"""Agents' metrics: what they said last, and over time."""

from msgspec import Struct

from netsonde.metrics import MetricType
from netsonde.server.answers.values import Count, Cursor, Id, Instant
from netsonde.server.measures import Aggregate


class Series(Struct, frozen=True, kw_only=True):
    """What a series of an agent's metrics is."""

    agent_id: Id
    name: str
    type: MetricType
    unit: str | None
    labels: dict[str, str]


class LatestSeries(Series, frozen=True, kw_only=True, omit_defaults=True):
    """What a series said last: a value, or the numbers of a histogram."""

    at: Instant
    value: float | None = None
    count: Count | None = None
    sum: float | None = None
    bounds: tuple[float, ...] | None = None
    counts: tuple[Count, ...] | None = None


class LatestPage(Struct, frozen=True, kw_only=True):
    """What series of agents that run now said last."""

    metrics: tuple[LatestSeries, ...]
    cursor: Cursor


class SeriesPoints(Series, frozen=True, kw_only=True):
    """A series over time: Unix milliseconds and a number, a step without samples left out."""

    points: tuple[tuple[int, float], ...]


class MetricAnswer(Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """One name's values over time."""

    name: str
    agg: Aggregate
    from_: Instant
    to: Instant
    step_ms: Count
    series: tuple[SeriesPoints, ...]
