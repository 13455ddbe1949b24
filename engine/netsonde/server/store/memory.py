"""The store's twin in memory: the same verbs and the same answers, nothing durable."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from netsonde.model import TaskKind
from netsonde.server.leasing import Change, Died, Finished, HeldTask, Requeued, TaskState
from netsonde.server.store.base import (
    DeadLetter,
    ExtendedLease,
    Grant,
    GrantedTask,
    NewResult,
    NewTask,
    QueueDepth,
    ResultQuery,
    StoredResult,
)
from netsonde.server.store.memory_records import MemoryRecords


@dataclass(slots=True)
class _Task:
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

    def is_stale(self, now_ns: int) -> bool:
        return self.new.stale_ns is not None and self.new.stale_ns <= now_ns

    def held(self) -> HeldTask:
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
        )

    def granted(self) -> GrantedTask:
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
        )


@dataclass(slots=True)
class _Results:
    rows: list[NewResult] = field(default_factory=list)
    by_lease: dict[int, int] = field(default_factory=dict)


class MemoryStore(MemoryRecords):
    """The store protocol over dictionaries; an operation that raises must not have begun."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[int, _Task] = {}
        self._by_lease: dict[int, _Task] = {}
        self._specs: list[bytes] = [b""]
        self._spec_ids: dict[bytes, int] = {}
        self._results = _Results()
        self._dead: dict[int, DeadLetter] = {}
        self._clock_ns = 0
        self._last_lease_id = 0

    # transactions: everything is at once as durable as it will ever be

    def begin(self) -> None:
        """Do nothing."""

    def savepoint(self) -> None:
        """Do nothing."""

    def undo(self) -> None:
        """Do nothing."""

    def commit(self) -> None:
        """Do nothing."""

    def rollback(self) -> None:
        """Do nothing."""

    def fault(self, error: BaseException) -> Exception | None:
        """Return None: memory does not fail by halves."""
        return None

    def close(self) -> None:
        """Do nothing."""

    def clock_ns(self) -> int:
        """Return the latest instant this store was told."""
        return self._clock_ns

    def keep_clock(self, now_ns: int, last_lease_id: int) -> None:
        """Remember how far the clock and the lease ids are."""
        self._clock_ns = max(self._clock_ns, now_ns)
        self._last_lease_id = max(self._last_lease_id, last_lease_id)

    def last_lease_id(self) -> int:
        """Return the greatest lease id ever granted from here."""
        return self._last_lease_id

    # tasks

    def add_tasks(self, tasks: Sequence[NewTask]) -> range:
        """Queue tasks; return their ids, in order."""
        first = self.next_id("task", len(tasks))
        for task_id, new in enumerate(tasks, first):
            spec_id = self._spec_ids.setdefault(new.spec, len(self._specs))
            if spec_id == len(self._specs):
                self._specs.append(new.spec)
            self._tasks[task_id] = _Task(task_id, new, spec_id, new.run_ns)
        return range(first, first + len(tasks))

    def take(self, queue: int, kind: TaskKind, limit: int, grant: Grant) -> list[GrantedTask]:
        """Grant ready tasks in order of priority, then of time; lease ids are consecutive."""
        ready = [
            task
            for task in self._tasks.values()
            if task.state is TaskState.READY
            and task.new.queue == queue
            and task.new.kind is kind
            and task.run_ns <= grant.now_ns
            and not task.is_stale(grant.now_ns)
        ]
        ready.sort(key=lambda task: (task.new.priority, task.run_ns, task.task_id))
        for lease_id, task in enumerate(ready[:limit], grant.first_lease_id):
            self._free(task)
            task.state = TaskState.LEASED
            task.attempt += 1
            task.lease_id = lease_id
            task.agent_id = grant.agent_id
            task.claim_key = grant.claim_key
            task.granted_ns = grant.now_ns
            task.until_ns = grant.until_ns
            task.due_ns = grant.due_ns
            self._by_lease[lease_id] = task
        return [task.granted() for task in ready[:limit]]

    def granted_under(self, agent_id: int, claim_key: int) -> list[GrantedTask]:
        """Return what an agent still holds of one claim."""
        return [
            task.granted()
            for task in sorted(self._tasks.values(), key=lambda task: task.lease_id or 0)
            if task.state is TaskState.LEASED
            and task.agent_id == agent_id
            and task.claim_key == claim_key
        ]

    def by_lease(self, lease_ids: Collection[int]) -> dict[int, HeldTask]:
        """Return the tasks whose current lease id is one of these."""
        return {
            lease_id: self._by_lease[lease_id].held()
            for lease_id in lease_ids
            if lease_id in self._by_lease
        }

    def held_by(self, agent_id: int) -> list[HeldTask]:
        """Return what an agent holds, by lease id."""
        held = [
            task.held()
            for task in self._by_lease.values()
            if task.agent_id == agent_id and task.state is not TaskState.READY
        ]
        return sorted(held, key=lambda task: task.lease_id)

    def holds_more_than(self, agent_id: int, bound: int) -> bool:
        """Whether an agent holds more than bound leases."""
        return len(self.held_by(agent_id)) > bound

    def extend(self, leases: Sequence[ExtendedLease]) -> None:
        """Move the ends of leases; a task that was taken back is leased again."""
        for lease in leases:
            task = self._tasks[lease.task_id]
            task.state = TaskState.LEASED
            task.until_ns = lease.until_ns
            task.due_ns = lease.due_ns

    def apply(self, changes: Sequence[Change], now_ns: int) -> None:
        """Requeue, bury, finish or free tasks."""
        for change in changes:
            task = self._tasks[change.task_id]
            match change:
                case Requeued():
                    task.state = TaskState.READY
                    task.run_ns = change.run_ns
                    task.attempt = change.attempt
                    task.returns = change.returns
                    if not change.keeps_lease:
                        self._free(task)
                case Died():
                    self._dead[task.task_id] = _letter(task, change.reason, now_ns)
                    self._drop(task)
                case Finished():
                    self._drop(task)
                case _:
                    self._free(task)

    def _free(self, task: _Task) -> None:
        if task.lease_id is not None:
            self._by_lease.pop(task.lease_id, None)
            task.lease_id = None

    def _drop(self, task: _Task) -> None:
        self._free(task)
        del self._tasks[task.task_id]

    def due(self, now_ns: int, limit: int) -> list[HeldTask]:
        """Return leases whose grace is over, the oldest first."""
        late = [
            task
            for task in self._tasks.values()
            if task.state is not TaskState.READY and task.due_ns <= now_ns
        ]
        late.sort(key=lambda task: task.due_ns)
        return [task.held() for task in late[:limit]]

    def is_sweep_due(self, now_ns: int) -> bool:
        """Whether `due` or `drop_stale` would find anything."""
        return any(
            task.is_stale(now_ns) if task.state is TaskState.READY else task.due_ns <= now_ns
            for task in self._tasks.values()
        )

    def drop_stale(self, now_ns: int, limit: int) -> int:
        """Drop queued tasks that nobody ran in time; return how many."""
        stale = [
            task
            for task in self._tasks.values()
            if task.state is TaskState.READY and task.is_stale(now_ns)
        ][:limit]
        for task in stale:
            self._drop(task)
        return len(stale)

    def cancel_check(self, check_id: int) -> int:
        """Drop a check's queued tasks and revoke its leased ones; return how many."""
        cancelled = 0
        for task in [task for task in self._tasks.values() if task.new.check_id == check_id]:
            if task.state is TaskState.READY:
                self._drop(task)
                cancelled += 1
            elif task.state is TaskState.LEASED:
                task.state = TaskState.REVOKED
                cancelled += 1
        return cancelled

    def revoked_of_check(self, check_id: int) -> list[tuple[int, int]]:
        """Return `(agent_id, lease_id)` of a check's leases that are revoked and still held."""
        return [
            (task.agent_id, lease_id)
            for lease_id, task in self._by_lease.items()
            if task.new.check_id == check_id and task.state is TaskState.REVOKED
        ]

    def live_of_check(self, check_id: int, now_ns: int) -> set[tuple[int, bytes]]:
        """Return `(queue, spec)` of a check's tasks that have not ended and are not stale."""
        return {
            (task.new.queue, task.new.spec)
            for task in self._tasks.values()
            if task.new.check_id == check_id
            and task.state is not TaskState.REVOKED
            and not (task.state is TaskState.READY and task.is_stale(now_ns))
        }

    def delayed(self, now_ns: int) -> list[tuple[int, TaskKind, int]]:
        """Return `(queue, kind, run_ns)` of what is ready only later."""
        later = {
            (task.new.queue, task.new.kind, task.run_ns)
            for task in self._tasks.values()
            if task.state is TaskState.READY and task.run_ns > now_ns
        }
        return sorted(later)

    def depths(self, now_ns: int) -> list[QueueDepth]:
        """Return how full every queue is."""
        groups: dict[tuple[int, TaskKind], list[_Task]] = {}
        for task in self._tasks.values():
            groups.setdefault((task.new.queue, task.new.kind), []).append(task)
        return [_depth(*key, groups[key], now_ns) for key in sorted(groups)]

    # results and dead letters

    def add_results(self, results: Sequence[NewResult]) -> None:
        """Append results; their lease ids are new."""
        for result in results:
            self._results.by_lease[result.lease_id] = result.agent_id
            self._results.rows.append(result)

    def result_owners(self, lease_ids: Collection[int]) -> dict[int, int]:
        """Return the agent of each of these lease ids that has a result."""
        owners = self._results.by_lease
        return {lease_id: owners[lease_id] for lease_id in lease_ids if lease_id in owners}

    def results(self, query: ResultQuery) -> list[StoredResult]:
        """Return results in the order of commits."""
        numbered = list(enumerate(self._results.rows, 1))
        if query.descending:
            numbered.reverse()
        chosen = [(place, row) for place, row in numbered if _matches(query, place, row)]
        return [self._stored(place, row) for place, row in chosen[: query.limit]]

    def _stored(self, place: int, row: NewResult) -> StoredResult:
        return StoredResult(
            result_id=place,
            lease_id=row.lease_id,
            task_id=row.task_id,
            agent_id=row.agent_id,
            kind=row.kind,
            outcome=row.outcome,
            attempt=row.attempt,
            is_final=row.is_final,
            spec=self._specs[row.spec_id],
            body=row.body,
            check_id=row.check_id,
            scheduled_ns=row.scheduled_ns,
        )

    def dead_by_lease(self, lease_ids: Collection[int]) -> dict[int, DeadLetter]:
        """Return dead letters whose last lease id is one of these."""
        wanted = set(lease_ids)
        return {dead.lease_id: dead for dead in self._dead.values() if dead.lease_id in wanted}

    def unbury(self, task_ids: Collection[int]) -> None:
        """Remove dead letters whose result came after all."""
        for task_id in task_ids:
            self._dead.pop(task_id, None)

    def dead_letters(self, before: int | None, limit: int) -> list[DeadLetter]:
        """Return dead letters, the youngest task first, with ids below `before`."""
        ids = sorted(self._dead, reverse=True)
        chosen = [task_id for task_id in ids if before is None or task_id < before]
        return [self._dead[task_id] for task_id in chosen[:limit]]


def _letter(task: _Task, reason: str, now_ns: int) -> DeadLetter:
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
    )


def _depth(queue: int, kind: TaskKind, tasks: Sequence[_Task], now_ns: int) -> QueueDepth:
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


def _matches(query: ResultQuery, place: int, row: NewResult) -> bool:
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
