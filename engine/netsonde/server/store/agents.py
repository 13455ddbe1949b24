"""Agents and their tokens as a store keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One of an agent's tokens, hashed. `until_ns` None: valid until a newer one is used."""

    digest: bytes
    is_used: bool = False
    until_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """One agent. `identity` is unique; `tokens` are newest first; `document` is its own account."""

    agent_id: int
    identity: str
    hostname: str
    is_legacy: bool
    registered_ns: int
    last_seen_ns: int
    tokens: tuple[TokenRow, ...] = ()
    instance_id: str | None = None
    labels: bytes = b"{}"
    has_operator_labels: bool = False
    is_disabled: bool = False
    document: bytes = b"{}"


class AgentStore(Protocol):
    """Verbs over agents."""

    def new_agent_id(self) -> int:
        """Return an id no agent has had."""
        ...

    def save_agent(self, agent: AgentRow) -> None:
        """Insert or replace an agent."""
        ...

    def agent(self, agent_id: int) -> AgentRow | None:
        """Return one agent."""
        ...

    def agent_by_identity(self, identity: str) -> AgentRow | None:
        """Return the agent of an identity."""
        ...

    def agents(self, after: int, limit: int) -> list[AgentRow]:
        """Return agents by id, those above `after`."""
        ...

    def saw_agents(self, seen: Mapping[int, int]) -> None:
        """Note when agents were last heard of."""
        ...

    def label_queue(self, labels: bytes) -> int:
        """Return the queue of a set of labels, making it when it is new."""
        ...

    def label_queues(self) -> dict[int, bytes]:
        """Return the label sets that have a queue."""
        ...
