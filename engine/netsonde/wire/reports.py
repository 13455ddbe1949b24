"""Results on their way: report bodies, items as servers take them, and the one result object."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from netsonde._native.reports import leading_ids
from netsonde.clock import NS_PER_MS, rfc3339
from netsonde.model import ID_MAX, Measurement, Outcome, TaskKind, TaskSpec
from netsonde.wire.codec import DecodeError, decode, decoder, encode, is_too_deep, parse
from netsonde.wire.limits import ITEM_MAX_BYTES, OBSERVATIONS_MAX, REPORT_MAX_BYTES
from netsonde.wire.report_items import measured

# The result object's fields in their order; a server repeats no others.
RESULT_FIELDS = (
    "lease_id",
    "task_id",
    "tick",
    "check_id",
    "agent_id",
    "kind",
    "spec",
    "outcome",
    "scheduled_at",
    "started_at",
    "duration_ms",
    "attempt",
    "observations",
    "error",
    "env",
)
_ITEM_FIELDS = frozenset(
    {
        "lease_id",
        "tick",
        "outcome",
        "scheduled_at",
        "started_at",
        "duration_ms",
        "observations",
        "error",
        "env",
    }
)
_UNREADABLE = (msgspec.DecodeError, DecodeError, RecursionError, UnicodeDecodeError)
TIMED_BY = "control_plane"  # in env: its instants are those of the grant and of the receipt

Instant = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z\Z")]


class ReportItem(msgspec.Struct, frozen=True):
    """One reported result as the server takes it.

    `body` is the item's validated JSON. With a `problem` the item is invalid and `body` empty;
    `lease_id` is then whatever could be read, 0 for nothing. `observations` serve to classify
    an original agent's result, which has no outcome of its own.
    """

    lease_id: int
    cancelled: bool
    body: bytes = b""
    outcome: str | None = None
    started_at: str | None = None
    duration_ms: float | None = None
    scheduled_at: str | None = None
    tick: int | None = None
    problem: str | None = None
    observations: tuple["ObservationHead", ...] = ()


class ObservationHead(msgspec.Struct, frozen=True):
    """An observation whose value is validated but not built."""

    name: str
    value: msgspec.Raw
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class ReportIn:
    """A decoded report."""

    agent_id: int
    items: tuple[ReportItem, ...]


class _LooseReport(msgspec.Struct, frozen=True):
    agent_id: int
    completed: tuple[msgspec.Raw, ...] = ()
    cancelled: tuple[msgspec.Raw, ...] = ()


class _FailureHead(msgspec.Struct, frozen=True):
    reason: str
    failure_source: str
    message: str = ""


class _ItemHead(msgspec.Struct, frozen=True):
    lease_id: int
    observations: tuple[ObservationHead, ...] = ()
    tick: Annotated[int, Meta(ge=0)] | None = None
    scheduled_at: Instant | None = None
    outcome: str | None = None
    started_at: Instant | None = None
    duration_ms: Annotated[float, Meta(ge=0)] | None = None
    error: _FailureHead | None = None
    env: dict[str, msgspec.Raw] | None = None


class _EnvHead(msgspec.Struct, frozen=True):
    env: dict[str, msgspec.Raw] | None = None


class _LeaseIdOnly(msgspec.Struct, frozen=True):
    lease_id: int = 0


def decode_report(body: bytes) -> ReportIn:
    """Decode a report; a bad item costs itself.

    Raises:
        RequestError: the body as a whole is too large, not JSON, or not a report.
    """
    # Depth counts item by item, so that a deep item costs only itself.
    report = decode(_LooseReport, body, max_bytes=REPORT_MAX_BYTES, depth_max=None)
    items = decode_report_items([*map(bytes, report.completed)], cancelled=False)
    items += decode_report_items([*map(bytes, report.cancelled)], cancelled=True)
    return ReportIn(report.agent_id, tuple(items))


def decode_report_items(raws: Sequence[bytes], *, cancelled: bool) -> list[ReportItem]:
    """Decode reported results; what is wrong with one is its `problem`.

    They are read all at once, and one by one where anything is wrong with any of them.
    """
    if any(len(raw) > ITEM_MAX_BYTES or is_too_deep(raw) for raw in raws):
        return [_alone(raw, cancelled) for raw in raws]
    try:
        heads = decoder(tuple[_ItemHead, ...]).decode(b"[%b]" % b",".join(raws))
        return [_item(head, raw, cancelled) for head, raw in zip(heads, raws, strict=True)]
    except _UNREADABLE:
        return [_alone(raw, cancelled) for raw in raws]


def _alone(raw: bytes, cancelled: bool) -> ReportItem:
    try:
        if len(raw) > ITEM_MAX_BYTES:
            raise DecodeError(f"{len(raw)} bytes, {ITEM_MAX_BYTES} are allowed")
        if is_too_deep(raw):
            raise DecodeError("nested too deep")
        return _item(decoder(_ItemHead).decode(raw), raw, cancelled)
    except _UNREADABLE as error:
        return _bad_item(raw, cancelled, str(error))


def _item(head: _ItemHead, raw: bytes, cancelled: bool) -> ReportItem:
    """Make an item of what was read of it.

    Raises:
        DecodeError: a number is out of bounds, or a value is not JSON.
    """
    # The head passes over values, and with them broken UTF-8 and numbers nobody can read: a result
    # that nobody can read would hide every other one of its page.
    parse(raw)
    if not 0 < head.lease_id <= ID_MAX:
        raise DecodeError("lease_id must be 1 to 2^64-1")
    if len(head.observations) > OBSERVATIONS_MAX:
        raise DecodeError(f"{len(head.observations)} observations, {OBSERVATIONS_MAX} are allowed")
    return ReportItem(
        lease_id=head.lease_id,
        cancelled=cancelled,
        body=raw,
        outcome=head.outcome,
        started_at=head.started_at,
        duration_ms=head.duration_ms,
        scheduled_at=head.scheduled_at,
        tick=head.tick,
        observations=head.observations,
    )


def _bad_item(raw: bytes, cancelled: bool, problem: str) -> ReportItem:
    try:
        lease_id = decoder(_LeaseIdOnly).decode(raw).lease_id
    except _UNREADABLE:
        lease_id = 0
    return ReportItem(
        lease_id=lease_id if 0 <= lease_id <= ID_MAX else 0, cancelled=cancelled, problem=problem
    )


def classify(kind: TaskKind, item: ReportItem) -> str:
    """Return an item's outcome; an original agent's is read off its observations.

    The original's HTTP prober is a stub that reports nothing, which is no measurement; its DNS
    prober reports nothing for an empty answer, which is one.
    """
    if item.outcome is not None:
        return item.outcome
    if item.cancelled:
        return Outcome.CANCELLED
    if not item.observations:
        return Outcome.OK if kind is TaskKind.DNS else Outcome.AGENT_ERROR
    return Outcome.TARGET_ERROR if _tells_failure(item.observations) else Outcome.OK


def _tells_failure(observations: Collection[ObservationHead]) -> bool:
    names = {observation.name for observation in observations}
    if any(name.endswith("_resolution") for name in names) or names == {"dns_error"}:
        return True
    for observation in observations:
        if observation.name.endswith("_summary"):
            value = msgspec.json.decode(bytes(observation.value))
            return isinstance(value, dict) and value.get("success") is False
        if observation.name == "trace":
            value = msgspec.json.decode(bytes(observation.value))
            return isinstance(value, dict) and value.get("status") != "ok"
    return False


def item_lease_ids(items: list[bytes]) -> list[int]:
    """Return the leases that encoded items report on, 0 for one that does not say."""
    lease_ids = leading_ids(items)
    if all(lease_ids):  # ours begin with it
        return lease_ids
    return [
        lease_id or item_lease_id(item) for lease_id, item in zip(lease_ids, items, strict=True)
    ]


def item_lease_id(item_body: bytes) -> int:
    """Return the lease an encoded item reports on, 0 when it does not say."""
    try:
        return decoder(_LeaseIdOnly).decode(item_body).lease_id
    except _UNREADABLE:
        return 0


def encode_report(agent_id: int, completed: Sequence[bytes], cancelled: Sequence[bytes]) -> bytes:
    """Assemble a report's body from encoded items."""
    parts = (
        b'{"agent_id":%d,"completed":[' % agent_id,
        b",".join(completed),
        b'],"cancelled":[',
        b",".join(cancelled),
        b"]}",
    )
    return b"".join(parts)


def encode_result(kind: TaskKind, spec: TaskSpec, measurement: Measurement, **ids: Any) -> bytes:
    """Encode a result object of our own measuring: one line of JSON."""
    known = {"kind": kind, "spec": spec, **measured(measurement), **ids}
    return encode(_ordered(known))


def timed_item(item: ReportItem, granted_ns: int, received_ns: int) -> bytes:
    """Return an item's body with when and how long it was measured.

    An original agent does not say. The lease was granted before and reported after: those instants
    are put in, on the server's clock, and `env` says whose they are.
    """
    if item.started_at is not None and item.duration_ms is not None:
        return item.body
    head = decoder(_EnvHead).decode(item.body)
    fields = _fragments(decoder(dict[str, msgspec.Raw]).decode(item.body))
    if item.started_at is None:
        fields["started_at"] = rfc3339(granted_ns)
    if item.duration_ms is None:
        fields["duration_ms"] = max(received_ns - granted_ns, 0) / NS_PER_MS
    fields["env"] = _fragments(head.env or {}) | {"timed_by": TIMED_BY}
    return encode(fields)


def _fragments(fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    """Return fields to be written as they stand: what we build has bounds for its numbers."""
    return {name: orjson.Fragment(bytes(raw)) for name, raw in fields.items()}


def merge_result(item_body: bytes, known: Mapping[str, Any]) -> bytes:
    """Make the result object of a reported item and what the server knows of its task.

    Where both have a field the server's wins, save None, which says that it does not know.
    """
    item = decoder(dict[str, msgspec.Raw]).decode(item_body)
    merged: dict[str, Any] = {
        name: orjson.Fragment(bytes(raw)) for name, raw in item.items() if name in _ITEM_FIELDS
    }
    merged |= {name: value for name, value in known.items() if value is not None}
    merged.setdefault("observations", [])
    return encode(_ordered(merged))


def _ordered(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in RESULT_FIELDS if fields.get(name) is not None}
