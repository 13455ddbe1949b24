"""Agents, and what is ordered of them."""

from typing import Any

from msgspec import Struct

from netsonde.server.answers.values import Count, Cursor, Id, Instant


class OpenCommand(Struct, frozen=True, kw_only=True):
    """An order that the agent has not yet said it has carried out."""

    id: Id
    type: str
    ordered_at: Instant


class Agent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent: what it said of itself, what it holds, what is wanted of it.

    `version`, `capacities` and `inventory` are missing where they were too long to be kept.
    """

    agent_id: Id
    hostname: str
    labels: dict[str, str]
    disabled: bool
    revoked: bool
    legacy: bool
    registered_at: Instant
    last_seen_at: Instant
    in_flight: dict[str, Count]
    state: str | None
    heartbeat_at: Instant | None
    active_leases: Count | None
    health: dict[str, Any]
    drained: bool
    drained_at: Instant | None
    commands: tuple[OpenCommand, ...]
    version: str | None = None
    capacities: dict[str, int] = {}
    inventory: dict[str, Any] = {}


class AgentPage(Struct, frozen=True, kw_only=True):
    """Some agents, by their ids."""

    agents: tuple[Agent, ...]
    cursor: Cursor


class RevokedAgent(Agent, frozen=True, kw_only=True, omit_defaults=True):
    """An agent whose tokens have ended, and how many leases it had to give back."""

    returned_leases: Count
