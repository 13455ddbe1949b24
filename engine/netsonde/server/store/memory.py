"""The store's twin in memory: the same verbs and the same answers, nothing durable."""

from collections.abc import Collection, Mapping, Sequence

from msgspec import structs

from netsonde.model import TaskKind
from netsonde.server.leasing import (
    Change,
    Died,
    Finished,
    HeldTask,
    Requeued,
    StandingLease,
    TaskState,
)
from netsonde.server.store.base import Reached
from netsonde.server.store.memory_access import MemoryAccess
from netsonde.server.store.memory_configs import MemoryConfigs
from netsonde.server.store.memory_dead import MemoryDead
from netsonde.server.store.memory_fleet import MemoryFleet
from netsonde.server.store.memory_metrics import MemoryMetrics
from netsonde.server.store.memory_records import MemoryRecords
from netsonde.server.store.memory_results import MemoryResults
from netsonde.server.store.memory_retention import MemoryRetention
from netsonde.server.store.memory_rows import (
    Results,
    Standing,
    Task,
    depth,
    letter,
)
from netsonde.server.store.memory_uploads import MemoryUploads
from netsonde.server.store.tasks import (
    DeadLetter,
    ExtendedLease,
    Grant,
    GrantedTask,
    NewTask,
    QueueDepth,
)


class MemoryStore(
    MemoryRecords,
    MemoryResults,
    MemoryFleet,
    MemoryDead,
    MemoryConfigs,
    MemoryAccess,
    MemoryMetrics,
    MemoryUploads,
    MemoryRetention,
):
    """The store protocol over dictionaries; an operation that raises must not have begun."""

    def __init__(self) -> None:
        MemoryRecords.__init__(self)
        MemoryConfigs.__init__(self)
        MemoryFleet.__init__(self)
        MemoryAccess.__init__(self)
        MemoryMetrics.__init__(self)
        MemoryUploads.__init__(self)
        MemoryRetention.__init__(self)
        self._tasks: dict[int, Task] = {}
        self._by_lease: dict[int, Task] = {}
        self._specs: dict[int, bytes] = {}
        self._spec_ids: dict[bytes, int] = {}
        self._results = Results()
        self._dead: dict[int, DeadLetter] = {}
        self._standing: dict[int, Standing] = {}
        self._clock_ns = 0
        self._last_lease_id = 0
        self._reached: Reached | None = None

    # transactions: everything is at once as durable as it will ever be

    def begin(self) -> None:
        """Do nothing."""

    def savepoint(self) -> None:
        """Do nothing."""

    def undo(self) -> None:
        """Do nothing."""

    def commit(self) -> None:
        """Remember how far the clock is."""
        if self._reached is not None:
            self.keep_clock(*self._reached())

    def rollback(self) -> None:
        """Do as `commit`: nothing is taken back."""
        self.commit()

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

    def follow(self, reached: Reached) -> None:
        """Remember them with every transaction from now on."""
        self._reached = reached

    def last_lease_id(self) -> int:
        """Return the greatest lease id ever granted from here."""
        return self._last_lease_id

    # tasks

    def add_tasks(self, tasks: Sequence[NewTask]) -> range:
        """Queue tasks; return their ids, in order."""
        first = self.next_id("task", len(tasks))
        for task_id, new in enumerate(tasks, first):
            spec_id = self._spec_ids.setdefault(new.spec, next(reversed(self._specs), 0) + 1)
            self._specs[spec_id] = new.spec
            self._tasks[task_id] = Task(task_id, new, spec_id, new.run_ns)
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
            and (task.new.repeat is None or grant.standing_until_ns is not None)
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
            if task.new.repeat is not None:
                self._stand(task, lease_id, task.new.repeat, grant)
        return [task.granted() for task in ready[:limit]]

    def _stand(self, task: Task, lease_id: int, repeat: str, grant: Grant) -> None:
        task.until_ns = grant.standing_until_ns or 0
        task.due_ns = grant.standing_due_ns
        for earlier in self._standing.values():
            if earlier.lease.task_id == task.task_id and earlier.followed_ns is None:
                earlier.followed_ns = grant.now_ns
        self._standing[lease_id] = Standing(
            StandingLease(
                lease_id=lease_id,
                task_id=task.task_id,
                agent_id=grant.agent_id,
                kind=task.new.kind,
                anchor_ns=task.new.scheduled_ns or 0,
                repeat=repeat,
                spec_id=task.spec_id,
                granted_ns=grant.now_ns,
                check_id=task.new.check_id,
            )
        )

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
                    self._dead[task.task_id] = letter(task, change.reason, now_ns)
                    self._drop(task)
                case Finished():
                    self._drop(task)
                case _:
                    self._free(task)

    def _free(self, task: Task) -> None:
        if task.lease_id is not None:
            self._by_lease.pop(task.lease_id, None)
            task.lease_id = None

    def _drop(self, task: Task) -> None:
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

    def cancel_check(self, check_id: int, now_ns: int) -> int:
        """Drop a check's queued tasks and revoke its leased ones; return how many."""
        ids = [task.task_id for task in self._tasks.values() if task.new.check_id == check_id]
        return self.withdraw(ids, now_ns)

    def withdraw(self, task_ids: Collection[int], now_ns: int) -> int:
        """Drop those that are queued and revoke those that are leased; return how many."""
        wanted = set(task_ids)
        for standing in self._standing.values():
            if standing.lease.task_id in wanted and standing.ended_ns is None:
                standing.ended_ns = now_ns
        withdrawn = 0
        for task in [self._tasks[one] for one in wanted if one in self._tasks]:
            if task.state is TaskState.READY:
                self._drop(task)
                withdrawn += 1
            elif task.state is TaskState.LEASED:
                task.state = TaskState.REVOKED
                if task.new.repeat is not None:
                    task.due_ns = now_ns
                withdrawn += 1
        return withdrawn

    def standing_of_check(self, check_id: int) -> dict[tuple[int, bytes], int]:
        """Return a check's standing tasks that were not revoked, by `(queue, spec)`."""
        return {
            (task.new.queue, task.new.spec): task.task_id
            for task in self._tasks.values()
            if task.new.check_id == check_id
            and task.new.repeat is not None
            and task.state is not TaskState.REVOKED
        }

    def standing_leases(self, lease_ids: Collection[int]) -> dict[int, StandingLease]:
        """Return those of these leases that are a standing task's, its last or an earlier one."""
        found = {}
        for standing in (self._standing[one] for one in lease_ids if one in self._standing):
            task = self._tasks.get(standing.lease.task_id)
            found[standing.lease.lease_id] = structs.replace(
                standing.lease,
                ended_ns=standing.ended_ns,
                next_tick=None if task is None else task.next_tick,
            )
        return found

    def ran(self, next_ticks: Mapping[int, int]) -> None:
        """Note, by task, the tick after the last one that has a result."""
        for task_id, tick in next_ticks.items():
            if task_id in self._tasks:
                task = self._tasks[task_id]
                task.next_tick = max(task.next_tick, tick)

    def have_run(self, ticks: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return which of these `(task_id, scheduled_ns)` have the result of a tick."""
        return self._results.ticks & set(ticks)

    def forget_standing(self, before_ns: int) -> int:
        """Drop standing leases under which nobody can report any more; return how many."""
        over = [
            lease_id
            for lease_id, standing in self._standing.items()
            if standing.is_over(before_ns, standing.lease.task_id not in self._tasks)
        ]
        for lease_id in over:
            del self._standing[lease_id]
        return len(over)

    def revoked_of_check(self, check_id: int) -> list[tuple[int, int]]:
        """Return `(agent_id, lease_id)` of a check's leases that are revoked and still held."""
        return [
            (task.agent_id, lease_id)
            for lease_id, task in self._by_lease.items()
            if task.new.check_id == check_id and task.state is TaskState.REVOKED
        ]

    def live_of_check(self, check_id: int, now_ns: int) -> set[tuple[int, bytes]]:
        """Return `(queue, spec)` of what has not ended and is not stale; standing tasks are not."""
        return {
            (task.new.queue, task.new.spec)
            for task in self._tasks.values()
            if task.new.check_id == check_id
            and task.new.repeat is None
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
        groups: dict[tuple[int, TaskKind], list[Task]] = {}
        for task in self._tasks.values():
            groups.setdefault((task.new.queue, task.new.kind), []).append(task)
        return [depth(*key, groups[key], now_ns) for key in sorted(groups)]

    # dead letters

    def dead_by_lease(self, lease_ids: Collection[int]) -> dict[int, DeadLetter]:
        """Return dead letters whose last lease id is one of these."""
        wanted = set(lease_ids)
        return {dead.lease_id: dead for dead in self._dead.values() if dead.lease_id in wanted}

    def unbury(self, task_ids: Collection[int]) -> None:
        """Remove dead letters whose result came after all."""
        for task_id in task_ids:
            self._dead.pop(task_id, None)
