"""What an agent counts of itself: the call `metrics`."""

from msgspec import Struct


class MetricSample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One counter's or gauge's value."""

    name: str
    value: float
    unit: str | None = None
    labels: dict[str, str] = {}


class MetricHistogram(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often values fell below each of `bounds`, which ascend, and above the last; not summed.

    `counts` has one number more than `bounds`; like `sum` and `count` they are cumulative.
    """

    name: str
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    count: int
    unit: str | None = None
    labels: dict[str, str] = {}


class MetricsEnvelope(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent's counters (cumulative), gauges and histograms at one instant.

    `instance_id` and `seq` name it, so that it can be sent again; counters count from `start_time`.
    An original agent names none of them.
    """

    agent_id: int
    timestamp: str
    counters: tuple[MetricSample, ...] = ()
    gauges: tuple[MetricSample, ...] = ()
    histograms: tuple[MetricHistogram, ...] = ()
    instance_id: str | None = None
    seq: int | None = None
    start_time: str | None = None


class MetricRejection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sample that was not taken, by its place in the envelope, and why."""

    path: str
    error: str
    message: str = ""


class MetricsResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an envelope; `rejected` names the first of `rejected_total`."""

    accepted: bool
    id: str = ""
    stored: int | None = None
    rejected: tuple[MetricRejection, ...] = ()
    rejected_total: int = 0
    superseded: bool = False
