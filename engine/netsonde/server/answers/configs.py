"""Signed configurations, and where they came to."""

from msgspec import Struct

from netsonde.dsse import Envelope
from netsonde.remote_config import RemoteConfig
from netsonde.remote_config import Scope as ConfigScope
from netsonde.server.answers.values import Count, Cursor, Id, Instant


class ConfigSummary(Struct, frozen=True, kw_only=True):
    """A signed configuration, without its values."""

    revision: Id
    digest: str
    scope: ConfigScope
    issued_at: Instant
    expires_at: Instant
    keyids: tuple[str, ...]
    published_at: Instant


class ConfigPage(Struct, frozen=True, kw_only=True):
    """Some configurations, the latest first."""

    configs: tuple[ConfigSummary, ...]
    cursor: Cursor


class Config(ConfigSummary, frozen=True, kw_only=True):
    """A signed configuration: its values, which nobody verified here, and the envelope."""

    config: RemoteConfig
    envelope: Envelope


class ConfigState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent made of a configuration: `ack`, `nack`, `pending` or `superseded`."""

    agent_id: Id
    hostname: str
    status: str
    reported_at: Instant | None = None
    applied: int | None = None
    reason: str | None = None
    error: str | None = None
    stale: bool = False
    clamped: tuple[dict[str, str], ...] = ()


class ConfigStates(Struct, frozen=True, kw_only=True):
    """Where a configuration came to."""

    revision: Id
    counts: dict[str, Count]
    agents: tuple[ConfigState, ...]
    cursor: Cursor
