"""What a store is: rows, and the verbs of the domain.

A store is synchronous and belongs to one writer at a time. Its verbs run inside a transaction that
the writer opens (`begin`, `savepoint`, `commit`); many operations share one commit. Verbs that
take many rows take them at once. Instants are ns of the server's clock. Rows that come by the
thousand are msgspec Structs, which cost a tenth of a dataclass to make.
"""

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


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────


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


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How much waits and runs in one queue, for one kind."""

    queue: int
    kind: TaskKind
    ready: int
    delayed: int
    leased: int
    oldest_ns: int | None


# ── results ──────────────────────────────────────────────────────────────────────────────────────


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


# ── agents, checks, the rest ─────────────────────────────────────────────────────────────────────


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One check. `document` is its definition; `next_ns` None when no tick is ahead."""

    check_id: int
    document: bytes
    is_enabled: bool
    next_ns: int | None
    created_ns: int
    tick: int = 0
    tasks: int = 0
    skipped: int = 0
    missed: int = 0


@dataclass(frozen=True, slots=True)
class RememberedAnswer:
    """What an Idempotency-Key was answered with."""

    body_digest: bytes
    status: int
    body: bytes


class Store(Protocol):
    """The control plane's state. Every verb may raise what `fault` explains."""

    # transactions
    def begin(self) -> None:
        """Open a transaction that may write."""
        ...

    def savepoint(self) -> None:
        """Mark the point that `undo` returns to."""
        ...

    def undo(self) -> None:
        """Take back what was done since the savepoint."""
        ...

    def commit(self) -> None:
        """Make everything durable; returns when it is."""
        ...

    def rollback(self) -> None:
        """Give up the open transaction; harmless without one."""
        ...

    def fault(self, error: BaseException) -> Exception | None:
        """Translate a failure of the storage itself; None when error is none of that."""
        ...

    def close(self) -> None:
        """Let go of files. Idempotent."""
        ...

    # the clock and the fence
    def clock_ns(self) -> int:
        """Return the latest instant this store was told."""
        ...

    def keep_clock(self, now_ns: int, last_lease_id: int) -> None:
        """Remember how far the clock and the lease ids are."""
        ...

    def last_lease_id(self) -> int:
        """Return the greatest lease id ever granted from here."""
        ...

    # tasks
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

    def count(self, counter: str, by: int) -> None:
        """Add to a counter that survives restarts."""
        ...

    def counters(self) -> dict[str, int]:
        """Return the counters."""
        ...

    # results and dead letters
    def add_results(self, results: Sequence[NewResult]) -> None:
        """Append results; their lease ids are new, or with ticks their `(task, scheduled)`."""
        ...

    def result_owners(self, lease_ids: Collection[int]) -> dict[int, int]:
        """Return the agent of each of these lease ids that has a result; ticks have none."""
        ...

    def results(self, query: ResultQuery) -> list[StoredResult]:
        """Return results in the order of commits."""
        ...

    def dead_by_lease(self, lease_ids: Collection[int]) -> dict[int, DeadLetter]:
        """Return dead letters whose last lease id is one of these."""
        ...

    def unbury(self, task_ids: Collection[int]) -> None:
        """Remove dead letters whose result came after all."""
        ...

    def dead_letters(self, before: int | None, limit: int) -> list[DeadLetter]:
        """Return dead letters, the youngest task first, with ids below `before`."""
        ...

    # agents
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

    # checks
    def new_check_id(self) -> int:
        """Return an id no check has had."""
        ...

    def save_check(self, check: CheckRow) -> None:
        """Insert or replace a check."""
        ...

    def check(self, check_id: int) -> CheckRow | None:
        """Return one check."""
        ...

    def checks(self, after: int, limit: int) -> list[CheckRow]:
        """Return checks by id, those above `after`."""
        ...

    def check_count(self) -> int:
        """Return how many checks there are."""
        ...

    def add_missed(self, check_id: int, by: int) -> None:
        """Add to what a check counts as missed."""
        ...

    def delete_check(self, check_id: int) -> None:
        """Remove a check's definition."""
        ...

    def checks_due(self, now_ns: int, limit: int) -> list[CheckRow]:
        """Return enabled checks whose tick has come."""
        ...

    def next_tick_ns(self) -> int | None:
        """Return when the next check is due."""
        ...

    # idempotency and metrics
    def recall(self, key: str) -> RememberedAnswer | None:
        """Return what a key was answered with."""
        ...

    def remember(self, key: str, answer: RememberedAnswer, now_ns: int) -> None:
        """Keep a key's answer."""
        ...

    def forget_before(self, instant_ns: int) -> None:
        """Drop answers that are older."""
        ...

    def save_metrics(self, agent_id: int, body: bytes, now_ns: int) -> None:
        """Keep an agent's latest metrics."""
        ...

    def metrics(self, agent_id: int) -> bytes | None:
        """Return an agent's latest metrics."""
        ...
