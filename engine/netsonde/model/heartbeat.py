"""That an agent lives, and what it is told to do: the call `heartbeat`."""

from enum import StrEnum
from typing import Any

from msgspec import Struct

from netsonde.model.configuration import ConfigStatus


class CommandType(StrEnum):
    """What a control plane may order an agent to do; agents ignore what they do not know."""

    DRAIN = "drain"
    RESUME = "resume"
    REFRESH_CONFIG = "refresh_config"


class AgentCommand(Struct, frozen=True, kw_only=True):
    """One order; it comes with every heartbeat's answer until the agent names it as done."""

    id: int
    type: str


class HeartbeatRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say that the agent lives, what it holds and how it feels.

    `done_commands` are ids of commands that it has carried out.
    """

    agent_id: int
    instance_id: str | None = None
    seq: int | None = None
    state: str | None = None
    active_leases: dict[str, Any] = {}
    health: dict[str, Any] = {}
    config: ConfigStatus | None = None
    done_commands: tuple[int, ...] = ()


class HeartbeatResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When the next heartbeat is due, what to do, and leases held that should not be."""

    agent_id: int | None = None
    next_deadline_ms: int = 0
    heartbeat_interval_ms: int | None = None
    server_time_ms: int | None = None
    config_revision: str | int | None = None
    revoked_leases: tuple[int, ...] = ()
    unknown_leases: tuple[int, ...] = ()
    commands: tuple[AgentCommand, ...] = ()
