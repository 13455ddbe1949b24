"""How agents are, what is ordered of them, and which are drained, as a store keeps it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRow:
    """An agent's last heartbeat that counts. `retired` are the instances before this one.

    `document` is what it said of its leases and its health; `heard_ns` is None before the first
    heartbeat of an instance that has registered.
    """

    agent_id: int
    instance_id: str | None = None
    seq: int | None = None
    heard_ns: int | None = None
    state: str | None = None
    document: bytes = b"{}"
    retired: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """An order that its agent has not yet named as carried out."""

    command_id: int
    agent_id: int
    type: str
    ordered_ns: int


class FleetStore(Protocol):
    """Verbs over heartbeats, commands and drained agents."""

    def save_heartbeats(self, heartbeats: Sequence[HeartbeatRow]) -> None:
        """Insert or replace agents' last heartbeats."""
        ...

    def heartbeats(self) -> list[HeartbeatRow]:
        """Return every agent's last heartbeat, by agent."""
        ...

    def drain_agent(self, agent_id: int, now_ns: int) -> None:
        """Grant an agent nothing from now on; one that is drained already stays so."""
        ...

    def resume_agent(self, agent_id: int) -> None:
        """Grant an agent work again."""
        ...

    def drained_agents(self) -> dict[int, int]:
        """Return which agents are drained, and since when."""
        ...

    def drained_since(self, agent_id: int) -> int | None:
        """Return since when an agent is drained, None when it is not."""
        ...

    def is_barred(self, agent_id: int) -> bool:
        """Whether an agent is drained or disabled."""
        ...

    def order(self, agent_id: int, type_: str, now_ns: int) -> None:
        """Order something of an agent; an open command of that type stays the only one."""
        ...

    def call_off(self, agent_id: int, type_: str) -> None:
        """Drop an open command that is no longer wanted."""
        ...

    def commands(self, agent_ids: Collection[int]) -> list[Command]:
        """Return agents' open commands, in the order they were given."""
        ...

    def settle_commands(self, agent_id: int, command_ids: Collection[int]) -> int:
        """Drop commands that an agent has carried out; return how many of them were open."""
        ...
