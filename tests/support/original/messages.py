"""The original agent's messages: what it writes, and how strictly it reads.

It ignores fields that it does not know. Everything else must be as declared: a missing field, a
number in quotes, an id with a sign or a kind that is none of the five spoils the whole answer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

T = TypeVar("T")

U64_MAX = 2**64 - 1
U64 = Annotated[int, Meta(ge=0)]  # its upper bound is beyond what an annotation can hold
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
Kind = Literal["dns", "http", "tcp", "ping", "trace"]


class UnreadableError(Exception):
    """An answer that the original agent cannot decode."""


class Registration(Struct, frozen=True):
    """Who the agent is from now on."""

    agent_id: U64
    lease_duration_ms: U64
    heartbeat_timeout_ms: U64
    auth_token: str


class Beat(Struct, frozen=True):
    """A heartbeat's answer."""

    agent_id: U64
    next_deadline_ms: U64


class Dns(Struct, frozen=True, tag_field="kind", tag="dns"):
    """Ask for a name."""

    query: str
    server: str | None = None


class Http(Struct, frozen=True, tag_field="kind", tag="http"):
    """Fetch an address."""

    url: str
    method: str | None = None


class Tcp(Struct, frozen=True, tag_field="kind", tag="tcp"):
    """Connect to a port."""

    host: str
    port: U16


class Ping(Struct, frozen=True, tag_field="kind", tag="ping"):
    """Send echo requests."""

    host: str
    count: U32 | None = None
    interval_ms: U64 | None = None
    timeout_ms: U64 | None = None
    rate_limit_per_sec: U32 | None = None


class Trace(Struct, frozen=True, tag_field="kind", tag="trace"):
    """Find the way to a host."""

    host: str
    max_hops: U8 | None = None


Spec = Dns | Http | Tcp | Ping | Trace


class Lease(Struct, frozen=True):
    """One piece of work."""

    lease_id: U64
    task_id: U64
    kind: Kind
    lease_until_ms: U64
    spec: Spec


class Claim(Struct, frozen=True):
    """A claim's answer."""

    leases: list[Lease]


class Extended(Struct, frozen=True):
    """One lease's new deadline; an extension's answer is a bare array of them."""

    lease_id: U64
    new_deadline_ms: U64


class Acknowledged(Struct, frozen=True):
    """A report's answer."""

    acknowledged: U64


class LeaseReport(Struct, frozen=True):
    """One lease's result; observations are name, value and perhaps unit."""

    lease_id: int
    observations: Sequence[Mapping[str, Any]] = ()


def decode(wanted: type[T], body: bytes) -> T:
    """Read an answer as the original agent does.

    Raises:
        UnreadableError: it is not exactly what was declared.
    """
    try:
        value = msgspec.json.decode(body, type=wanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableError(str(error)) from error
    if _largest(msgspec.to_builtins(value)) > U64_MAX:
        raise UnreadableError("a number has more than 64 bits")
    return value


def encode(value: Mapping[str, Any]) -> bytes:
    """Write a request's body: fields in the declared order, no spaces, no escapes above ASCII."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def reports(items: Sequence[LeaseReport]) -> list[dict[str, Any]]:
    """Return what a report request has of these results."""
    return [
        {"lease_id": item.lease_id, "observations": [dict(one) for one in item.observations]}
        for item in items
    ]


def _largest(value: Any) -> int:
    """Return the largest integer in a value."""
    if isinstance(value, dict):
        return max(map(_largest, value.values()), default=0)
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int) else 0
