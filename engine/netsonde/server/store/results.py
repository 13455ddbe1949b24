"""Results as a store keeps them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from netsonde.model import TaskKind


class NewResult(Struct, frozen=True, kw_only=True, gc=False):
    """One result as it was reported. `body` is the validated item; `is_final` ends its task."""

    lease_id: int
    task_id: int
    agent_id: int
    kind: TaskKind
    outcome: str
    attempt: int
    received_ns: int
    is_final: bool
    spec_id: int
    body: bytes
    check_id: int | None = None
    scheduled_ns: int | None = None
    tick: int | None = None


class StoredResult(Struct, frozen=True, kw_only=True, gc=False):
    """One result with its place in the order of commits and its task's spec."""

    result_id: int
    lease_id: int
    task_id: int
    agent_id: int
    kind: TaskKind
    outcome: str
    attempt: int
    is_final: bool
    spec: bytes
    body: bytes
    check_id: int | None
    scheduled_ns: int | None
    tick: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultQuery:
    """Which results to read, at most `limit`, after (or, descending, before) `position`."""

    limit: int
    position: int | None = None
    descending: bool = False
    check_id: int | None = None
    agent_id: int | None = None
    task_id: int | None = None
    kind: TaskKind | None = None
    outcome: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    final_only: bool = True


class ResultStore(Protocol):
    """Verbs over results."""

    def add_results(self, results: Sequence[NewResult]) -> None:
        """Append results; their lease ids are new, or with ticks their `(task, scheduled)`."""
        ...

    def result_owners(self, lease_ids: Collection[int]) -> dict[int, int]:
        """Return the agent of each of these lease ids that has a result; ticks have none."""
        ...

    def results(self, query: ResultQuery) -> list[StoredResult]:
        """Return results in the order of commits."""
        ...
