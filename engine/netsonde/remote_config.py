"""What a signed configuration says, and who it is for; `ceiling` is how much a host allows.

Pure. `judge` is the one way from an envelope to values that may be applied: it verifies, and only
then parses what was verified. `inspect` reads without verifying, for those who only look.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Annotated, Literal

from msgspec import Meta, Struct

from netsonde import dsse, wire
from netsonde.clock import NS_PER_S
from netsonde.dsse import Envelope, TrustedKeys, Verified
from netsonde.errors import ConfigError, ConfigRefused, RefusalReason
from netsonde.model import MINTED_ID_MAX, TaskKind, TimeoutMs
from netsonde.policy import TargetPolicy
from netsonde.wire.codec import is_too_deep

PAYLOAD_TYPE = "application/vnd.netsonde.config+json"
CONCURRENCY_MAX = 10_000
RESOLVERS_MAX = 8
NAMES_MAX = 64  # labels, feature flags
SCOPE_AGENTS_MAX = 10_000
DENY_MAX = 25_000  # prefixes; a payload holds no more

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Flag = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[a-z0-9_.]+\Z")]
Rate = Annotated[float, Meta(ge=0.001, le=1_000_000)]
Level = Literal["debug", "info", "warning", "error"]
Revision = Annotated[int, Meta(ge=1, le=MINTED_ID_MAX)]
Instant = Annotated[datetime, Meta(tz=True)]


class KindValues(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Of one kind: how many run at once, how many begin a second, how long one may wait."""

    concurrency: Annotated[int, Meta(ge=0, le=CONCURRENCY_MAX)] | None = None
    starts_per_s: Rate | None = None
    timeout_ms: TimeoutMs | None = None


class CadenceValues(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """How far apart an agent's calls are.

    `claim_ms` is the least time between two claims, `report_ms` how long a first result waits for
    others.
    """

    claim_ms: Annotated[int, Meta(ge=0, le=60_000)] | None = None
    report_ms: Annotated[int, Meta(ge=1, le=60_000)] | None = None
    heartbeat_ms: Annotated[int, Meta(ge=1_000, le=600_000)] | None = None
    metrics_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)] | None = None


class RemoteConfig(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """The values themselves; what is absent is as the agent's own settings have it.

    `deny` is added to the agent's own, never taken from it. `resolvers` are asked by dns
    measurements that name no server. Flags that an agent does not know have no effect.
    """

    kinds: dict[TaskKind, KindValues] = {}
    target_starts_per_s: Rate | None = None
    cadence: CadenceValues = CadenceValues()
    resolvers: Annotated[tuple[str, ...], Meta(max_length=RESOLVERS_MAX)] = ()
    deny: Annotated[tuple[str, ...], Meta(max_length=DENY_MAX)] = ()
    log_level: Level | None = None
    features: Annotated[dict[Flag, bool], Meta(max_length=NAMES_MAX)] = {}


class Scope(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Who a configuration is for: exactly one of the three. Agents are ids or host names."""

    all: bool | None = None
    labels: Annotated[dict[Name, Name], Meta(min_length=1, max_length=NAMES_MAX)] | None = None
    agents: (
        Annotated[
            tuple[Annotated[int, Meta(ge=1)] | Name, ...],
            Meta(min_length=1, max_length=SCOPE_AGENTS_MAX),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        """Refuse a scope that says nothing, or two things."""
        said = sum(part is not None for part in (self.all, self.labels, self.agents))
        if said != 1 or self.all is False:
            raise ValueError('a scope is {"all": true}, {"labels": {…}} or {"agents": […]}')

    def covers(self, holder: "Holder") -> bool:
        """Whether it is for this agent."""
        if self.all:
            return True
        if self.labels is not None:
            return all(holder.labels.get(name) == value for name, value in self.labels.items())
        return bool({holder.agent_id, holder.hostname} & set(self.agents or ()))


class Payload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed."""

    spec: Literal[1]
    revision: Revision
    issued_at: Instant
    expires_at: Instant
    scope: Scope
    config: RemoteConfig

    def __post_init__(self) -> None:
        """Refuse what could never be applied."""
        if self.expires_at <= self.issued_at:
            raise ValueError("expires_at must be after issued_at")

    def is_expired(self, now_ns: int) -> bool:
        """Whether its time is over; now_ns is the wall clock's."""
        return self.expires_at <= _datetime(now_ns)


@dataclass(frozen=True, slots=True)
class Holder:
    """The agent that a configuration may be for; labels are those it gives itself."""

    agent_id: int
    hostname: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Floor:
    """The last configuration that was accepted: nothing older is, whoever signed it."""

    revision: int
    digest: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A configuration that may be applied; `is_known`: it is the one that was accepted before."""

    payload: Payload
    digest: str
    keyids: tuple[str, ...]
    is_known: bool = False


def judge(
    envelope: Envelope, keys: TrustedKeys, holder: Holder, floor: Floor | None, now_ns: int
) -> Accepted:
    """Decide whether this agent may apply a configuration; now_ns is its wall clock.

    Raises:
        ConfigRefused: it may not; the reason is distinct for each cause.
    """
    verified = keys.verify(envelope, PAYLOAD_TYPE)
    payload = read_verified(verified)
    accepted = Accepted(payload, verified.digest, verified.keyids)
    if floor is not None and payload.revision <= floor.revision:
        if (payload.revision, verified.digest) != (floor.revision, floor.digest):
            raise ConfigRefused(
                RefusalReason.REPLAYED,
                f"revision {payload.revision} is not after {floor.revision}, which was accepted",
                payload.revision,
            )
        accepted = Accepted(payload, verified.digest, verified.keyids, is_known=True)
    if not payload.scope.covers(holder):
        raise ConfigRefused(
            RefusalReason.OUT_OF_SCOPE,
            f"revision {payload.revision} is not for agent {holder.agent_id}, {holder.hostname}",
            payload.revision,
        )
    if payload.is_expired(now_ns) and not accepted.is_known:
        raise ConfigRefused(
            RefusalReason.EXPIRED,
            f"revision {payload.revision} expired at {payload.expires_at.isoformat()}",
            payload.revision,
        )
    return accepted


def read_verified(verified: Verified) -> Payload:
    """Parse what a trusted key has signed.

    Raises:
        ConfigRefused: its values are not what they may be.
    """
    return _read(verified.payload)


def inspect(envelope: Envelope) -> Payload:
    """Parse a payload that nobody has verified, to look at it and never to act on it.

    Raises:
        ConfigRefused: it is no well-formed configuration.
    """
    payload = dsse.payload_bytes(envelope)
    if envelope.payload_type != PAYLOAD_TYPE:
        shown = envelope.payload_type[:80]
        raise ConfigRefused(RefusalReason.WRONG_TYPE, f"payload_type is {shown!r}")
    return _read(payload)


def _read(body: bytes) -> Payload:
    if is_too_deep(body):
        raise ConfigRefused(RefusalReason.INVALID, "the payload is nested too deeply")
    try:
        payload = wire.decode_answer(Payload, body)
        _check_values(payload.config)
    except (wire.DecodeError, ConfigError) as error:
        text = str(error).partition(" (the body starts")[0]  # the path says where
        raise ConfigRefused(RefusalReason.INVALID, text) from error
    return payload


def _check_values(config: RemoteConfig) -> None:
    """Look at what types cannot say.

    Raises:
        ConfigError: naming what is wrong.
    """
    TargetPolicy(deny=config.deny)
    for text in config.resolvers:
        check_resolver(text)


def check_resolver(text: str) -> None:
    """Pass when text is an address, or an address and a port.

    Raises:
        ConfigError: it is not.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    address = (match[1] or match[2]) if match else text
    try:
        version: int = ip_address(address.partition("%")[0]).version
    except ValueError:
        version = 0
    is_right = version > 0
    if match is not None:
        is_right = version == (6 if match[1] else 4) and 1 <= int(match[3]) <= 65_535
    if not is_right:
        raise ConfigError(
            f"resolvers: {text[:80]!r} is not an address such as 192.0.2.53, 192.0.2.53:5353 or"
            " [2001:db8::53]:53"
        )


def _datetime(now_ns: int) -> datetime:
    return datetime.fromtimestamp(now_ns / NS_PER_S, UTC)
