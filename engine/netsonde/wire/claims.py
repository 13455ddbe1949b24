"""Claims and extensions as agents read them, and the one place where lease times become ns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from netsonde.clock import NS_PER_MS, instant_ns
from netsonde.model import (
    ID_MAX,
    SPEC_TYPES,
    ClaimResponse,
    ExtendOutcome,
    ExtendResponse,
    Lease,
    Repeat,
)
from netsonde.wire.codec import UNREADABLE, DecodeError, decode_answer, decoder, is_too_deep, parse

EPOCH_MS_MIN = 10**11  # a duration this long is 3 years; an instant this early is 1973
MARGIN_MIN_NS = 250 * NS_PER_MS
MARGIN_FRACTION = 100  # 1 %: drift between two hosts' clocks over one term
DATE_HEADER_SLACK_MS = 1000  # the Date header is cut to whole seconds

_KINDS = {type_: kind for kind, type_ in SPEC_TYPES.items()}


@dataclass(frozen=True, slots=True)
class RejectedLease:
    """A lease that was granted but cannot be worked on; it is handed back."""

    lease_id: int | None
    task_id: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim's answer: the leases that decode, and those that do not."""

    leases: tuple[Lease, ...] = ()
    rejected: tuple[RejectedLease, ...] = ()
    claim_id: str | None = None
    held_ms: int | None = None
    server_time_ms: int | None = None
    config_revision: str | int | None = None


class _LooseClaim(msgspec.Struct, frozen=True):
    leases: tuple[msgspec.Raw, ...]
    claim_id: str | None = None
    held_ms: int | None = None
    server_time_ms: int | None = None
    config_revision: str | int | None = None


class _Ids(msgspec.Struct, frozen=True):
    lease_id: int | None = None
    task_id: int | None = None


def decode_claim(body: bytes) -> Claimed:
    """Decode a claim's answer; an empty body is an answer without leases.

    The whole batch is decoded at once; only when that fails is it decoded lease by lease, and only
    what fails again is looked at field by field, so that one bad lease costs itself.

    Raises:
        DecodeError: the answer as a whole is not a claim's.
    """
    if not body:
        return Claimed()
    try:
        answer = decode_answer(ClaimResponse, body)
    except DecodeError:
        loose = decode_answer(_LooseClaim, body)
        return _with_facts(as_claimed((), loose.leases), loose)
    return _with_facts(as_claimed(answer.leases), answer)


def as_claimed(leases: Sequence[Lease], loose: Iterable[msgspec.Raw] = ()) -> Claimed:
    """Return decoded leases, and those of `loose` that decode alone.

    What does not, and what contradicts itself, is rejected.
    """
    rejected: list[RejectedLease] = []
    found = (*leases, *_decoded_alone(loose, rejected))
    if not _are_consistent(found):
        found = tuple(_consistent(found, rejected))
    return Claimed(found, tuple(rejected))


def _with_facts(claimed: Claimed, answer: ClaimResponse | _LooseClaim) -> Claimed:
    return replace(
        claimed,
        claim_id=answer.claim_id,
        held_ms=answer.held_ms,
        server_time_ms=answer.server_time_ms,
        config_revision=answer.config_revision,
    )


def decode_extend(body: bytes) -> ExtendResponse:
    """Decode an extension's answer: ours, the original servers', or a bare array of outcomes.

    Raises:
        DecodeError: it is none of these.
    """
    if body.lstrip()[:1] == b"[":
        return ExtendResponse(outcomes=decode_answer(tuple[ExtendOutcome, ...], body))
    return decode_answer(ExtendResponse, body)


def relative_ms(value: int, *, date_epoch_ms: int | None, term_ms: int) -> int:
    """Return a deadline as the milliseconds that remain.

    The original Go server sends epoch milliseconds; they are compared with that server's own Date
    header, never with this host's wall clock, and clamped to (0, term_ms]. Whatever a server sends,
    the result fits the clock.
    """
    term_ms = min(term_ms, EPOCH_MS_MIN)
    if value <= EPOCH_MS_MIN:
        return max(value, 0)
    if date_epoch_ms is None:
        return term_ms
    return max(1, min(value - date_epoch_ms - DATE_HEADER_SLACK_MS, term_ms))


def lease_deadline_ns(sent_ns: int, lease_until_ms: int, granted_after_ms: int | None) -> int:
    """Return the instant at which this agent stops working on a lease.

    sent_ns is when this attempt's request left, on CLOCK_BOOTTIME; the server counts
    granted_after_ms from its receipt. The result is early for any network delay, never late.
    """
    term_ns = lease_until_ms * NS_PER_MS
    margin_ns = max(MARGIN_MIN_NS, term_ns // MARGIN_FRACTION)
    return sent_ns + (granted_after_ms or 0) * NS_PER_MS + term_ns - margin_ns


def _decoded_alone(raws: Iterable[msgspec.Raw], rejected: list[RejectedLease]) -> Iterator[Lease]:
    decode_lease = decoder(Lease).decode
    for raw in raws:
        try:
            yield decode_lease(raw)
        except UNREADABLE:
            loose = _decoded_loosely(bytes(raw))
            if isinstance(loose, Lease):
                yield loose
            else:
                rejected.append(loose)


def _decoded_loosely(raw: bytes) -> Lease | RejectedLease:
    """Decode a lease as far as it goes; say what is wrong with it."""
    if is_too_deep(raw):
        return RejectedLease(None, None, "nested too deep")
    try:
        plain = parse(raw)
    except DecodeError as error:
        ids = _ids_of(raw)
        return RejectedLease(_id_of(ids, "lease_id"), _id_of(ids, "task_id"), str(error))
    try:
        return msgspec.convert(_without_nulls(plain), Lease)
    except msgspec.ValidationError as error:
        return RejectedLease(_id_of(plain, "lease_id"), _id_of(plain, "task_id"), str(error))


def _without_nulls(value: Any) -> Any:
    """Drop null fields: the original servers write absent options as null."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _ids_of(raw: bytes) -> Any:
    """Read the ids of a lease whose other fields cannot be read."""
    try:
        return msgspec.structs.asdict(decode_answer(_Ids, raw))
    except DecodeError:
        return None


def _id_of(value: Any, name: str) -> int | None:
    found = value.get(name) if isinstance(value, dict) else None
    return found if type(found) is int and 0 <= found <= ID_MAX else None


def _are_consistent(leases: Sequence[Lease]) -> bool:
    """Whether no lease has an inconsistency: one loop for what nearly never is."""
    for lease in leases:
        if (
            lease.lease_id > ID_MAX
            or lease.task_id > ID_MAX
            or _KINDS[type(lease.spec)] is not lease.kind
            or (lease.repeat is not None and _inconsistency(lease) is not None)
        ):
            return False
    return True


def _consistent(leases: Iterable[Lease], rejected: list[RejectedLease]) -> Iterator[Lease]:
    for lease in leases:
        problem = _inconsistency(lease)
        if problem is None:
            yield lease
        else:
            rejected.append(RejectedLease(lease.lease_id, lease.task_id, problem))


def _inconsistency(lease: Lease) -> str | None:
    if lease.lease_id > ID_MAX or lease.task_id > ID_MAX:
        return "an id is above 2^64-1"
    if _KINDS[type(lease.spec)] is not lease.kind:
        return f"the lease says {lease.kind.value}, its spec {lease.spec.__struct_config__.tag}"
    return None if lease.repeat is None else _unrepeatable(lease.repeat, lease.scheduled_at)


def _unrepeatable(repeat: Repeat, scheduled_at: str | None) -> str | None:
    if repeat.jitter_ms >= repeat.every_ms:
        return "repeat.jitter_ms must be below repeat.every_ms"
    try:
        instant_ns(scheduled_at or "")
    except ValueError as error:
        return f"a lease with repeat needs scheduled_at: {error}"
    return None
