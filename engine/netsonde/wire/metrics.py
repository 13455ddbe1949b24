"""An agent's metrics as they come: each sample judged by itself, so that a bad one costs itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
from msgspec import Raw, Struct

from netsonde.errors import ErrorCode, RequestError
from netsonde.metrics import MetricType
from netsonde.model import (
    MINTED_ID_MAX,
    MetricHistogram,
    MetricRejection,
    MetricSample,
)
from netsonde.wire.codec import decode, decoder, encode, validation_error
from netsonde.wire.limits import REPORT_MAX_BYTES

METRIC_SAMPLES_MAX = 2_000  # of one envelope
METRIC_NAME_MAX_CHARS = 128
METRIC_UNIT_MAX_CHARS = 32
METRIC_LABELS_MAX = 8
METRIC_LABEL_MAX_CHARS = 128  # of a label's name, and of its value
METRIC_BOUNDS_MAX = 64
METRIC_ID_MAX_CHARS = 128  # of an instance's name, and of its start
METRIC_REJECTIONS_MAX = 100  # told one by one; beyond, an answer would be larger than its request


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One sample that is well. `values` are one, of a histogram count, sum and the counts.

    `path` is where it stood; `key` is the same for the same series of one agent, whenever.
    """

    path: str
    key: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class MetricsBatch:
    """What an envelope holds: who sent it, which one it is, what can be taken and what cannot."""

    agent_id: int
    timestamp: str
    instance_id: str
    seq: int
    start_time: str
    values: Sequence[MetricValue]
    rejected: Sequence[MetricRejection]


class OriginalSample(Struct, frozen=True, kw_only=True):
    """A sample as original agents write it."""

    name: str
    value: float
    unit: str | None = None


class OriginalMetrics(Struct, frozen=True, kw_only=True):
    """An envelope as original agents write it: whatever else it has is passed over."""

    agent_id: int
    timestamp: str
    counters: tuple[OriginalSample, ...] = ()
    gauges: tuple[OriginalSample, ...] = ()


class _Envelope(Struct, frozen=True, kw_only=True):
    """An envelope whose samples are not read yet."""

    agent_id: int
    timestamp: str = ""
    instance_id: str
    seq: int
    start_time: str
    counters: tuple[Raw, ...] = ()
    gauges: tuple[Raw, ...] = ()
    histograms: tuple[Raw, ...] = ()


class _Instance(Struct, frozen=True):
    instance_id: str | None = None


class _Refused(Exception):
    """Why a sample is not taken."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def names_its_instance(body: bytes) -> bool:
    """Whether a body of metrics says which one it is; those of original agents do not.

    Raises:
        RequestError: ERR_TOO_LARGE, ERR_MALFORMED_JSON, ERR_VALIDATION.
    """
    return decode(_Instance, body, max_bytes=REPORT_MAX_BYTES).instance_id is not None


def decode_metrics(body: bytes) -> MetricsBatch:
    """Read an envelope; what is wrong with one of its samples is told and costs no other.

    Raises:
        RequestError: the envelope itself: ERR_TOO_LARGE, ERR_MALFORMED_JSON, ERR_VALIDATION.
    """
    envelope = decode(_Envelope, body, max_bytes=REPORT_MAX_BYTES)
    for field in ("instance_id", "start_time"):
        _check_text(field, getattr(envelope, field))
    if not 0 <= envelope.seq <= MINTED_ID_MAX:
        _refuse("seq", f"seq must be 0 to {MINTED_ID_MAX}")
    values: list[MetricValue] = []
    rejected: list[MetricRejection] = []
    seen: set[str] = set()
    for number, (path, type_, raw) in enumerate(_items(envelope)):
        try:
            value = _read(number, path, type_, raw)
            _check_new(value.key, seen)
        except _Refused as why:
            rejected.append(MetricRejection(path=path, error=why.code, message=str(why)))
        else:
            values.append(value)
    return MetricsBatch(
        agent_id=envelope.agent_id,
        timestamp=envelope.timestamp,
        instance_id=envelope.instance_id,
        seq=envelope.seq,
        start_time=envelope.start_time,
        values=values,
        rejected=rejected,
    )


def original_metrics(envelope: OriginalMetrics) -> MetricsBatch:
    """Return what an original agent's envelope says; samples that fit no series are left out."""
    values: dict[str, MetricValue] = {}
    for type_, samples in (
        (MetricType.COUNTER, envelope.counters),
        (MetricType.GAUGE, envelope.gauges),
    ):
        for sample in samples:
            try:
                value = _sample(
                    "", type_, MetricSample(name=sample.name, value=sample.value, unit=sample.unit)
                )
            except _Refused:
                continue
            values[value.key] = value
    return MetricsBatch(
        agent_id=envelope.agent_id,
        timestamp=envelope.timestamp,
        instance_id="",
        seq=0,
        start_time="",
        values=[*values.values()],
        rejected=(),
    )


def _items(envelope: _Envelope) -> Iterator[tuple[str, MetricType, Raw]]:
    for type_, field in (
        (MetricType.COUNTER, "counters"),
        (MetricType.GAUGE, "gauges"),
        (MetricType.HISTOGRAM, "histograms"),
    ):
        for index, raw in enumerate(getattr(envelope, field)):
            yield f"$.{field}[{index}]", type_, raw


def _check_new(key: str, seen: set[str]) -> None:
    if key in seen:
        raise _Refused(ErrorCode.VALIDATION, "the same series is given twice")
    seen.add(key)


def _read(number: int, path: str, type_: MetricType, raw: Raw) -> MetricValue:
    if number >= METRIC_SAMPLES_MAX:
        raise _Refused(ErrorCode.LIMIT, f"at most {METRIC_SAMPLES_MAX} samples are taken")
    try:
        if type_ is MetricType.HISTOGRAM:
            return _histogram(path, decoder(MetricHistogram).decode(raw))
        return _sample(path, type_, decoder(MetricSample).decode(raw))
    except msgspec.ValidationError as error:
        raise _Refused(ErrorCode.VALIDATION, str(validation_error(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Refused(ErrorCode.VALIDATION, f"unreadable: {error}") from error


def _sample(path: str, type_: MetricType, sample: MetricSample) -> MetricValue:
    if type_ is MetricType.COUNTER and sample.value < 0:
        raise _Refused(ErrorCode.VALIDATION, "a counter is 0 or more")
    return MetricValue(path, _key(type_, sample.name, sample.unit, sample.labels), (sample.value,))


def _histogram(path: str, histogram: MetricHistogram) -> MetricValue:
    bounds, counts = histogram.bounds, histogram.counts
    if len(bounds) > METRIC_BOUNDS_MAX:
        raise _Refused(ErrorCode.LIMIT, f"a histogram has at most {METRIC_BOUNDS_MAX} bounds")
    if not bounds or any(low >= high for low, high in pairwise(bounds)):
        raise _Refused(ErrorCode.VALIDATION, "bounds must ascend, and there must be one")
    if len(counts) != len(bounds) + 1 or min(counts) < 0 or max(counts) > MINTED_ID_MAX:
        raise _Refused(
            ErrorCode.VALIDATION, "counts must be one more than bounds, each from 0 to 2^53-1"
        )
    if sum(counts) != histogram.count:
        raise _Refused(ErrorCode.VALIDATION, "count must be the sum of counts")
    key = _key(MetricType.HISTOGRAM, histogram.name, histogram.unit, histogram.labels, bounds)
    return MetricValue(path, key, (histogram.count, histogram.sum, *counts))


def _key(
    type_: MetricType,
    name: str,
    unit: str | None,
    labels: Mapping[str, str],
    bounds: Sequence[float] = (),
) -> str:
    """Return the text that stands for a series: what it is, as JSON."""
    _check_name(name, unit, labels)
    return encode([type_, name, unit, dict(sorted(labels.items())), list(bounds)]).decode()


@dataclass(frozen=True, slots=True)
class SeriesIdentity:
    """What a series is, read from its key."""

    type: MetricType
    name: str
    unit: str | None
    labels: Mapping[str, str]
    bounds: Sequence[float]

    @property
    def width(self) -> int:
        """How many numbers one sample of it has."""
        return 1 if self.type is not MetricType.HISTOGRAM else len(self.bounds) + 3


def series_identity(key: str) -> SeriesIdentity:
    """Read a series' key."""
    type_, name, unit, labels, bounds = msgspec.json.decode(key)
    return SeriesIdentity(MetricType(type_), name, unit, labels, bounds)


def _check_name(name: str, unit: str | None, labels: Mapping[str, str]) -> None:
    if len(name) > METRIC_NAME_MAX_CHARS or len(unit or "") > METRIC_UNIT_MAX_CHARS:
        raise _Refused(
            ErrorCode.LIMIT,
            f"a name has at most {METRIC_NAME_MAX_CHARS} characters, a unit"
            f" {METRIC_UNIT_MAX_CHARS}",
        )
    texts = (*labels, *labels.values())
    if len(labels) > METRIC_LABELS_MAX or max(map(len, texts), default=0) > METRIC_LABEL_MAX_CHARS:
        raise _Refused(
            ErrorCode.LIMIT,
            f"a sample has at most {METRIC_LABELS_MAX} labels of {METRIC_LABEL_MAX_CHARS}"
            " characters",
        )
    if not name or "" in labels or not "".join((name, unit or "", *texts)).isprintable():
        raise _Refused(
            ErrorCode.VALIDATION, "name, unit and labels must be printable, names not empty"
        )


def _check_text(field: str, text: str) -> None:
    if not 0 < len(text) <= METRIC_ID_MAX_CHARS or not text.isprintable():
        _refuse(field, f"{field} must have 1 to {METRIC_ID_MAX_CHARS} printable characters")


def _refuse(field: str, message: str) -> None:
    raise RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
