"""What the store in memory keeps of a task, its leases and its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from netsonde.model import TaskKind
from netsonde.server.leasing import HeldTask, StandingLease, TaskState
from netsonde.server.store.results import NewResult, ResultQuery, StoredResult
from netsonde.server.store.tasks import DeadLetter, GrantedTask, NewTask, QueueDepth


@dataclass(slots=True)
class Task:
    """A live task."""

    task_id: int
    new: NewTask
    spec_id: int
    run_ns: int
    state: TaskState = TaskState.READY
    attempt: int = 0
    returns: int = 0
    lease_id: int | None = None
    agent_id: int = 0
    claim_key: int = 0
    granted_ns: int = 0
    until_ns: int = 0
    due_ns: int = 0
    next_tick: int = 0

    def is_stale(self, now_ns: int) -> bool:
        """Whether it is too old to be granted."""
        return self.new.stale_ns is not None and self.new.stale_ns <= now_ns

    def held(self) -> HeldTask:
        """Return it as the policy sees it."""
        return HeldTask(
            task_id=self.task_id,
            lease_id=self.lease_id or 0,
            agent_id=self.agent_id,
            state=self.state,
            kind=self.new.kind,
            attempt=self.attempt,
            max_attempts=self.new.max_attempts,
            returns=self.returns,
            granted_ns=self.granted_ns,
            until_ns=self.until_ns,
            check_id=self.new.check_id,
            spec_id=self.spec_id,
            scheduled_ns=self.new.scheduled_ns,
            queue=self.new.queue,
            is_standing=self.new.repeat is not None,
        )

    def granted(self) -> GrantedTask:
        """Return it as a claim answers it."""
        return GrantedTask(
            task_id=self.task_id,
            lease_id=self.lease_id or 0,
            kind=self.new.kind,
            spec=self.new.spec,
            attempt=self.attempt,
            max_attempts=self.new.max_attempts,
            granted_ns=self.granted_ns,
            until_ns=self.until_ns,
            priority=self.new.priority,
            check_id=self.new.check_id,
            scheduled_ns=self.new.scheduled_ns,
            repeat=self.new.repeat,
            next_tick=self.next_tick,
        )


@dataclass(slots=True)
class Results:
    """Results in their order, without the first `gone`, and what is looked up of all."""

    rows: list[NewResult] = field(default_factory=list)
    by_lease: dict[int, int] = field(default_factory=dict)
    ticks: set[tuple[int, int]] = field(default_factory=set)
    gone: int = 0


@dataclass(slots=True)
class Standing:
    """A lease of a standing task."""

    lease: StandingLease
    ended_ns: int | None = None
    followed_ns: int | None = None

    def is_over(self, before_ns: int, is_gone: bool) -> bool:
        """Whether nobody can report under it since before_ns; is_gone: its task."""
        ends = [self.ended_ns, self.followed_ns, self.lease.granted_ns if is_gone else None]
        return any(end_ns is not None and end_ns < before_ns for end_ns in ends)


def letter(task: Task, reason: str, now_ns: int) -> DeadLetter:
    """Return the dead letter of a task."""
    return DeadLetter(
        task_id=task.task_id,
        lease_id=task.lease_id or 0,
        agent_id=task.agent_id,
        kind=task.new.kind,
        attempt=task.attempt,
        reason=reason,
        died_ns=now_ns,
        spec=task.new.spec,
        spec_id=task.spec_id,
        check_id=task.new.check_id,
        scheduled_ns=task.new.scheduled_ns,
        queue=task.new.queue,
        priority=task.new.priority,
        max_attempts=task.new.max_attempts,
    )


def depth(queue: int, kind: TaskKind, tasks: Sequence[Task], now_ns: int) -> QueueDepth:
    """Return how full a queue is."""
    waiting = [task for task in tasks if task.state is TaskState.READY]
    ready = [task.run_ns for task in waiting if task.run_ns <= now_ns]
    return QueueDepth(
        queue=queue,
        kind=kind,
        ready=len(ready),
        delayed=len(waiting) - len(ready),
        leased=len(tasks) - len(waiting),
        oldest_ns=min(ready, default=None),
    )


def matches(query: ResultQuery, place: int, row: NewResult) -> bool:
    """Whether a query asks for a result."""
    if query.through is not None:
        is_beyond = place < query.through if query.descending else place > query.through
        if is_beyond:
            return False
    if query.position is not None:
        is_past = place < query.position if query.descending else place > query.position
        if not is_past:
            return False
    equal: Mapping[str, object] = {
        "check_id": query.check_id,
        "agent_id": query.agent_id,
        "task_id": query.task_id,
        "kind": query.kind,
        "outcome": query.outcome,
    }
    if any(value is not None and getattr(row, name) != value for name, value in equal.items()):
        return False
    if query.from_ns is not None and row.received_ns < query.from_ns:
        return False
    if query.to_ns is not None and row.received_ns >= query.to_ns:
        return False
    return row.is_final or not query.final_only


def stored(place: int, row: NewResult, spec: bytes) -> StoredResult:
    """Return a result as it is read."""
    return StoredResult(
        result_id=place,
        lease_id=row.lease_id,
        task_id=row.task_id,
        agent_id=row.agent_id,
        kind=row.kind,
        outcome=row.outcome,
        attempt=row.attempt,
        is_final=row.is_final,
        spec=spec,
        body=row.body,
        check_id=row.check_id,
        scheduled_ns=row.scheduled_ns,
        tick=row.tick,
    )
