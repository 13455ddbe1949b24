"""Dead letters that people deal with, as a store keeps them."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from netsonde.model import TaskKind
from netsonde.server.store.tasks import DeadLetter


class DeadQuery(Struct, frozen=True, kw_only=True):
    """Which dead letters: those below a task id, of a kind, a check, an agent, a time of death."""

    limit: int
    before: int | None = None
    task_id: int | None = None
    kind: TaskKind | None = None
    check_id: int | None = None
    agent_id: int | None = None
    from_ns: int | None = None
    to_ns: int | None = None


class Revival(Struct, frozen=True, gc=False):
    """A dead letter's task that is queued again, with fresh attempts.

    With `keeps_lease` its last holder may yet report it, until somebody else is granted it.
    """

    task_id: int
    run_ns: int
    keeps_lease: bool
    granted_ns: int


class DeadLetterStore(Protocol):
    """Verbs over dead letters; `unbury` removes them."""

    def find_dead(self, query: DeadQuery) -> list[DeadLetter]:
        """Return dead letters, the youngest task first."""
        ...

    def dead_count(self) -> int:
        """Return how many dead letters there are."""
        ...

    def revive(self, revivals: Sequence[Revival]) -> None:
        """Queue tasks of dead letters again and remove the letters.

        Results that were their tasks' last are no longer final.
        """
        ...
