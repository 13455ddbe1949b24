"""Tasks, leases and dead letters as a store keeps them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from netsonde.model import TaskKind
from netsonde.server.leasing import Change, HeldTask, StandingLease

ANY_QUEUE = 0  # work for whoever asks; below 0: pinned to agent -queue; above 0: a set of labels

# Kinds as the stores keep them; append-only.
KINDS: Mapping[int, TaskKind] = {
    1: TaskKind.DNS,
    2: TaskKind.HTTP,
    3: TaskKind.TCP,
    4: TaskKind.PING,
    5: TaskKind.TRACE,
}
KIND_CODES: Mapping[TaskKind, int] = {kind: code for code, kind in KINDS.items()}


def pinned_queue(agent_id: int) -> int:
    """Return the queue whose tasks only this agent is granted."""
    return -agent_id


class NewTask(Struct, frozen=True, kw_only=True, gc=False):
    """One task to queue. `spec` is the encoded spec."""

    kind: TaskKind
    spec: bytes
    run_ns: int
    max_attempts: int
    queue: int = ANY_QUEUE
    priority: int = 0
    stale_ns: int | None = None
    check_id: int | None = None
    scheduled_ns: int | None = None
    repeat: str | None = None  # standing: an encoded `Repeat`; scheduled_ns is its anchor


class Grant(Struct, frozen=True, kw_only=True, gc=False):
    """To whom, under which ids and until when tasks are granted."""

    agent_id: int
    claim_key: int
    first_lease_id: int
    now_ns: int
    until_ns: int
    due_ns: int
    standing_until_ns: int | None = None  # None: nothing that repeats
    standing_due_ns: int = 0


class GrantedTask(Struct, frozen=True, kw_only=True, gc=False):
    """One granted task as the claim's answer needs it."""

    task_id: int
    lease_id: int
    kind: TaskKind
    spec: bytes
    attempt: int
    max_attempts: int
    granted_ns: int
    until_ns: int
    priority: int
    check_id: int | None
    scheduled_ns: int | None
    repeat: str | None = None
    next_tick: int = 0


class ExtendedLease(Struct, frozen=True, gc=False):
    """A lease's new end."""

    task_id: int
    until_ns: int
    due_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A task that was given up; its last holder may still report."""

    task_id: int
    lease_id: int
    agent_id: int
    kind: TaskKind
    attempt: int
    reason: str
    died_ns: int
    spec: bytes = b""
    spec_id: int = 0
    check_id: int | None = None
    scheduled_ns: int | None = None
    queue: int = ANY_QUEUE
    priority: int = 0
    max_attempts: int = 1


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How much waits and runs in one queue, for one kind."""

    queue: int
    kind: TaskKind
    ready: int
    delayed: int
    leased: int
    oldest_ns: int | None


class TaskStore(Protocol):
    """Verbs over tasks and their leases."""

    def add_tasks(self, tasks: Sequence[NewTask]) -> range:
        """Queue tasks; return their ids, in order."""
        ...

    def take(self, queue: int, kind: TaskKind, limit: int, grant: Grant) -> list[GrantedTask]:
        """Grant ready tasks in order of priority, then of time; lease ids are consecutive."""
        ...

    def granted_under(self, agent_id: int, claim_key: int) -> list[GrantedTask]:
        """Return what an agent still holds of one claim."""
        ...

    def by_lease(self, lease_ids: Collection[int]) -> dict[int, HeldTask]:
        """Return the tasks whose current lease id is one of these."""
        ...

    def held_by(self, agent_id: int) -> list[HeldTask]:
        """Return what an agent holds, by lease id."""
        ...

    def holds_more_than(self, agent_id: int, bound: int) -> bool:
        """Whether an agent holds more than bound leases."""
        ...

    def extend(self, leases: Sequence[ExtendedLease]) -> None:
        """Move the ends of leases; a task that was taken back is leased again."""
        ...

    def apply(self, changes: Sequence[Change], now_ns: int) -> None:
        """Requeue, bury, finish or free tasks."""
        ...

    def due(self, now_ns: int, limit: int) -> list[HeldTask]:
        """Return leases whose grace is over, the oldest first."""
        ...

    def is_sweep_due(self, now_ns: int) -> bool:
        """Whether `due` or `drop_stale` would find anything."""
        ...

    def drop_stale(self, now_ns: int, limit: int) -> int:
        """Drop queued tasks that nobody ran in time; return how many."""
        ...

    def cancel_check(self, check_id: int, now_ns: int) -> int:
        """Drop a check's queued tasks and revoke its leased ones; return how many."""
        ...

    def revoked_of_check(self, check_id: int) -> list[tuple[int, int]]:
        """Return `(agent_id, lease_id)` of a check's leases that are revoked and still held."""
        ...

    def withdraw(self, task_ids: Collection[int], now_ns: int) -> int:
        """Drop those that are queued and revoke those that are leased; return how many."""
        ...

    def live_of_check(self, check_id: int, now_ns: int) -> set[tuple[int, bytes]]:
        """Return `(queue, spec)` of a check's tasks that have not ended and are not stale.

        Standing tasks are not among them.
        """
        ...

    def standing_of_check(self, check_id: int) -> dict[tuple[int, bytes], int]:
        """Return a check's standing tasks that were not revoked, by `(queue, spec)`."""
        ...

    def standing_leases(self, lease_ids: Collection[int]) -> dict[int, StandingLease]:
        """Return those of these leases that are a standing task's, its last or an earlier one."""
        ...

    def ran(self, next_ticks: Mapping[int, int]) -> None:
        """Note, by task, the tick after the last one that has a result."""
        ...

    def have_run(self, ticks: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return which of these `(task_id, scheduled_ns)` have the result of a tick."""
        ...

    def forget_standing(self, before_ns: int) -> int:
        """Drop standing leases under which nobody can report any more; return how many.

        Those are leases that were called off, or followed by another one, before this instant, and
        granted before it to a task that is gone.
        """
        ...

    def delayed(self, now_ns: int) -> list[tuple[int, TaskKind, int]]:
        """Return `(queue, kind, run_ns)` of what is ready only later."""
        ...

    def depths(self, now_ns: int) -> list[QueueDepth]:
        """Return how full every queue is."""
        ...

    def dead_by_lease(self, lease_ids: Collection[int]) -> dict[int, DeadLetter]:
        """Return dead letters whose last lease id is one of these."""
        ...

    def unbury(self, task_ids: Collection[int]) -> None:
        """Remove dead letters whose result came after all."""
        ...
