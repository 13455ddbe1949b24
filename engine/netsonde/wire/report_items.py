"""Results as report items: one of them, or a batch by native code. Both write the same bytes.

A duration is written exactly, in ms with one to six decimals.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from netsonde._native.reports import write_items
from netsonde.clock import NS_PER_MS, rfc3339
from netsonde.model import Failure, Measurement, Observation, Outcome
from netsonde.wire.codec import encode, fragment, parse
from netsonde.wire.limits import ITEM_MAX_BYTES, OBSERVATIONS_MAX


class Result(NamedTuple):
    """What one lease's measurement gave; a standing lease's says which run it was."""

    lease_id: int
    measurement: Measurement
    scheduled_at: str | None = None
    tick: int | None = None


class ResultColumns(NamedTuple):
    """What a batch of measurements gave, a list for each field and one env for all.

    `observations` are what `encode_observations` made of each; `errors` None: there are none.
    """

    outcomes: list[Outcome]
    started_at_ns: list[int]
    durations_ns: list[int]
    observations: list[bytes]
    env: dict[str, Any]
    errors: list[Failure | None] | None = None

    @classmethod
    def joined(cls, parts: Sequence["ResultColumns"]) -> "ResultColumns":
        """Return the results of all parts, which share one env."""
        if len(parts) == 1:
            return parts[0]
        chained = chain.from_iterable
        errors: list[Failure | None] | None = None
        if any(part.errors for part in parts):
            errors = [one for part in parts for one in part.errors or [None] * len(part.outcomes)]
        return cls(
            outcomes=[*chained(part.outcomes for part in parts)],
            started_at_ns=[*chained(part.started_at_ns for part in parts)],
            durations_ns=[*chained(part.durations_ns for part in parts)],
            observations=[*chained(part.observations for part in parts)],
            env=parts[0].env,
            errors=errors,
        )

    def checked(self, count: int) -> "ResultColumns":
        """Return these if they are so many in every column.

        Raises:
            ValueError: they are not.
        """
        lengths = {
            len(self.outcomes),
            len(self.started_at_ns),
            len(self.durations_ns),
            len(self.observations),
            len(self.errors or self.outcomes),
        }
        if lengths != {count}:
            raise ValueError(f"not {count} results in every column")
        return self

    def measurement(self, at: int) -> Measurement:
        """Return one of them as a value."""
        return Measurement(
            outcome=self.outcomes[at],
            started_at_ns=self.started_at_ns[at],
            duration_ns=self.durations_ns[at],
            observations=tuple(Observation(**each) for each in parse(self.observations[at])),
            error=self.errors[at] if self.errors else None,
            env=self.env,
        )


def encode_report_item(
    lease_id: int,
    measurement: Measurement,
    *,
    scheduled_at: str | None = None,
    tick: int | None = None,
) -> bytes:
    """Encode one lease's result; one that is too large loses its details and says so."""
    return _encode_one(Result(lease_id, measurement, scheduled_at, tick))


def encode_report_items(results: Sequence[Result]) -> list[bytes]:
    """Encode the results of a batch, each as `encode_report_item` does.

    Raises:
        TypeError: one of them holds something JSON has no form for.
    """
    measurements = [result.measurement for result in results]
    items = write_items(
        [result.lease_id for result in results],
        [each.started_at_ns for each in measurements],
        [each.duration_ns for each in measurements],
        [each.outcome for each in measurements],
        [encode_observations(each.observations) for each in measurements],
        _encoded_alike([each.env for each in measurements]),
        before=_members([_run_of(result) for result in results]),
        after=_members([_error_of(each.error) for each in measurements]),
    )
    for at, result in enumerate(results):
        if not _may_travel(items[at], result.measurement):
            items[at] = _encode_one(result)
    return items


def encode_columns(
    lease_ids: list[int], columns: ResultColumns, scheduled_at: Sequence[str | None] = ()
) -> list[bytes]:
    """Encode the results of a batch of leases, each as `encode_report_item` does.

    `scheduled_at` is empty when nobody scheduled any of them.

    Raises:
        ValueError: the columns differ in length.
    """
    runs = [{"scheduled_at": each} if each else {} for each in scheduled_at]
    items = write_items(
        lease_ids,
        columns.started_at_ns,
        columns.durations_ns,
        columns.outcomes,
        columns.observations,
        [encode(columns.env)] * len(lease_ids),
        before=_members(runs),
        after=_members([_error_of(error) for error in columns.errors or ()]),
    )
    if max(map(len, items), default=0) > ITEM_MAX_BYTES:
        for at, item in enumerate(items):
            if len(item) > ITEM_MAX_BYTES:
                run = scheduled_at[at] if scheduled_at else None
                items[at] = _encode_one(Result(lease_ids[at], columns.measurement(at), run))
    return items


def encode_observations(observations: Sequence[Observation]) -> bytes:
    """Encode what was seen as a JSON array.

    Raises:
        TypeError: a value holds something JSON has no form for.
    """
    return encode(_plain(observations))


def measured(measurement: Measurement) -> dict[str, Any]:
    """Return what a result object says of a measurement."""
    return {
        "outcome": measurement.outcome,
        "started_at": rfc3339(measurement.started_at_ns),
        "duration_ms": fragment(_milliseconds(measurement.duration_ns)),
        "observations": _plain(measurement.observations),
        "env": measurement.env,
        **_error_of(measurement.error),
    }


def _encode_one(result: Result) -> bytes:
    measurement = result.measurement
    item = {"lease_id": result.lease_id, **_run_of(result), **measured(measurement)}
    body = encode(item)
    return body if _may_travel(body, measurement) else encode(item | _cut(measurement))


def _milliseconds(duration_ns: int) -> bytes:
    whole, rest = divmod(abs(duration_ns), NS_PER_MS)
    text = b"%d.%06d" % (whole, rest)
    sign = b"-" if duration_ns < 0 else b""
    return sign + text[:-5] + text[-5:].rstrip(b"0")


def _plain(observations: Iterable[Observation]) -> list[dict[str, Any]]:
    """Return what the encoder takes without asking what it is."""
    return [
        {"name": each.name, "value": each.value}
        if each.unit is None
        else {"name": each.name, "value": each.value, "unit": each.unit}
        for each in observations
    ]


def _run_of(result: Result) -> dict[str, Any]:
    run: dict[str, Any] = {}
    if result.tick is not None:
        run["tick"] = result.tick
    if result.scheduled_at is not None:
        run["scheduled_at"] = result.scheduled_at
    return run


def _error_of(error: Failure | None) -> dict[str, Any]:
    return {} if error is None else {"error": error}


def _members(objects: Sequence[dict[str, Any]]) -> list[bytes] | None:
    """Encode objects without their braces; None: all are empty."""
    return [encode(each)[1:-1] for each in objects] if any(objects) else None


def _encoded_alike(values: Iterable[dict[str, Any]]) -> list[bytes]:
    """Encode values most of which are one and the same object."""
    known: dict[int, bytes] = {}
    return [known.get(id(each)) or known.setdefault(id(each), encode(each)) for each in values]


def _may_travel(body: bytes, measurement: Measurement) -> bool:
    return len(body) <= ITEM_MAX_BYTES and len(measurement.observations) <= OBSERVATIONS_MAX


def _cut(measurement: Measurement) -> dict[str, Any]:
    """Keep the summaries of a result that is too large to travel."""
    kept = [each for each in _plain(measurement.observations) if each["name"].endswith("_summary")]
    dropped = len(measurement.observations) - len(kept)
    return {"observations": kept, "env": {**measurement.env, "observations_dropped": dropped}}
