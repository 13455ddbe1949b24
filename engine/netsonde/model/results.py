"""What was seen: how a task ended, why it failed, and the observations."""

from enum import StrEnum
from typing import Any

from msgspec import Struct


class Outcome(StrEnum):
    """How one task ended. A target that is down is a `target_error`: a successful measurement."""

    OK = "ok"
    TARGET_ERROR = "target_error"
    AGENT_ERROR = "agent_error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why a probe or a task failed (measurement methods, rule 4)."""

    TIMEOUT = "timeout"
    UNREACHABLE_NET = "unreachable_net"
    UNREACHABLE_HOST = "unreachable_host"
    UNREACHABLE_PORT = "unreachable_port"
    FILTERED = "filtered"
    TTL_EXCEEDED = "ttl_exceeded"
    REFUSED = "refused"
    RESET = "reset"
    NO_ROUTE = "no_route"
    RESOLVE_FAILED = "resolve_failed"
    TLS_FAILED = "tls_failed"
    PROTOCOL_ERROR = "protocol_error"
    MISMATCH = "mismatch"
    DENIED = "denied"
    TX_ERROR = "tx_error"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class FailureSource(StrEnum):
    """Whose failure it was."""

    TARGET = "target"
    PATH = "path"
    RESOLVER = "resolver"
    SELF = "self"
    POLICY = "policy"


class Failure(Struct, frozen=True, kw_only=True):
    """Why a result is not `ok`."""

    reason: str
    failure_source: str
    message: str


class Observation(Struct, frozen=True, omit_defaults=True):
    """One thing that was seen: a name of the vocabulary and a JSON value."""

    name: str
    value: Any
    unit: str | None = None


class Measurement(Struct, frozen=True, kw_only=True):
    """What one run of a prober produced. `started_at_ns` is the wall clock, the rest monotonic.

    `env` is how it was measured: version, clock, policy_version, source.
    """

    outcome: Outcome
    started_at_ns: int
    duration_ns: int
    observations: tuple[Observation, ...]
    error: Failure | None = None
    env: dict[str, Any] = {}
