"""The queue, results and dead letters in SQLite."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from netsonde import wire
from netsonde.model import TaskKind
from netsonde.server.leasing import Change, Died, Finished, HeldTask, Requeued, TaskState
from netsonde.server.store.bodies import pack_all
from netsonde.server.store.results import NewResult
from netsonde.server.store.tasks import (
    KIND_CODES,
    KINDS,
    DeadLetter,
    ExtendedLease,
    Grant,
    GrantedTask,
    NewTask,
    QueueDepth,
)

_STATES = tuple(TaskState)  # by their numbers
SPEC_CACHE_MAX = 20_000  # spec ids by digest; a fleet's checks have some thousand specs


class Database(Protocol):
    """What the verbs need of the connection that `SqliteStore` owns."""

    def run(self, name: str, *parameters: Any) -> "Rows":
        """Run a named statement."""
        ...

    def run_named(self, name: str, parameters: Mapping[str, Any]) -> "Rows":
        """Run a named statement whose parameters have names."""
        ...

    def run_many(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named statement once per row."""
        ...

    def insert(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a named `INSERT … VALUES (…)` for all rows in few steps."""
        ...

    def select(self, statement: str, parameters: Sequence[Any]) -> "Rows":
        """Run a statement that was put together from our own text."""
        ...

    def next_id(self, name: str, count: int = 1) -> int:
        """Reserve count ids of a sequence and return the first."""
        ...


class Rows(Protocol):
    """What a statement returned."""

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        ...

    def __iter__(self) -> Iterator[Any]: ...

    def fetchone(self) -> Any:
        """Return one row or None."""
        ...


def id_list(ids: Collection[int]) -> str:
    """Write ids as the JSON array that json_each reads."""
    return f"[{','.join(map(str, ids))}]"


class SqliteTasks:
    """Verbs over the tables task, spec, result and dead_letter."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._spec_ids: dict[bytes, int] = {}
        self._specs: dict[int, bytes] = {}

    def forget_specs(self) -> None:
        """Drop ids of specs that a rolled back transaction may have made, or that have gone."""
        self._spec_ids.clear()
        self._specs.clear()

    def add_tasks(self, tasks: Sequence[NewTask]) -> range:
        """Queue tasks; return their ids, in order."""
        spec_ids = self._intern({task.spec for task in tasks})
        first = self._db.next_id("next_task", len(tasks))
        self._db.insert(
            "add_task",
            [
                (
                    task_id,
                    task.queue,
                    KIND_CODES[task.kind],
                    task.priority,
                    task.run_ns,
                    task.stale_ns,
                    task.max_attempts,
                    spec_ids[task.spec],
                    task.check_id,
                    task.scheduled_ns,
                    task.repeat,
                )
                for task_id, task in enumerate(tasks, first)
            ],
        )
        return range(first, first + len(tasks))

    def _intern(self, specs: set[bytes]) -> Mapping[bytes, int]:
        known = {spec: self._spec_ids[spec] for spec in specs if spec in self._spec_ids}
        new = {spec: hashlib.sha256(spec).digest() for spec in specs if spec not in known}
        self._db.run_many("add_spec", ((digest, spec) for spec, digest in new.items()))
        for spec, digest in new.items():
            known[spec] = self._db.run("spec_id", digest).fetchone()[0]
        if len(self._spec_ids) + len(new) > SPEC_CACHE_MAX:
            self._spec_ids.clear()
        if len(new) <= SPEC_CACHE_MAX:
            self._spec_ids |= known
        return known

    def take(self, queue: int, kind: TaskKind, limit: int, grant: Grant) -> list[GrantedTask]:
        """Grant ready tasks in order of priority, then of time; lease ids are consecutive."""
        granted = self._db.run_named(
            "take",
            {
                "queue": queue,
                "kind": KIND_CODES[kind],
                "limit": limit,
                "agent_id": grant.agent_id,
                "claim_key": grant.claim_key,
                "first_lease_id": grant.first_lease_id,
                "now_ns": grant.now_ns,
                "until_ns": grant.until_ns,
                "due_ns": grant.due_ns,
                "standing_until_ns": grant.standing_until_ns,
                "standing_due_ns": grant.standing_due_ns,
            },
        ).rowcount
        if not granted:
            return []
        first = grant.first_lease_id
        rows = self._rows("taken", first, first + granted - 1)
        if any(row[10] is not None for row in rows):
            self._db.run("follow_standing", first, first + granted - 1, grant.now_ns)
            self._db.run("add_standing", first, first + granted - 1)
        bodies = self._bodies(rows)
        return [_granted(row, kind, bodies) for row in rows]

    def granted_under(self, agent_id: int, claim_key: int) -> list[GrantedTask]:
        """Return what an agent still holds of one claim."""
        rows = self._rows("granted_under", agent_id, claim_key)
        bodies = self._bodies(rows)
        return [_granted(row, KINDS[row[12]], bodies) for row in rows]

    def _rows(self, name: str, *parameters: Any) -> list[list[Any]]:
        """Run a statement that returns all its rows as one JSON array."""
        text: str = self._db.run(name, *parameters).fetchone()[0]
        rows: list[list[Any]] = wire.parse(text.encode())
        return rows

    def _bodies(self, rows: Iterable[Sequence[Any]]) -> Mapping[int, bytes]:
        """Return the specs that granted rows name; a fleet's specs are few and stay known."""
        wanted = {row[2] for row in rows}
        missing = wanted - self._specs.keys()
        if missing:
            if len(self._specs) + len(missing) > SPEC_CACHE_MAX:
                self._specs.clear()
                missing = wanted
            self._specs |= dict(self._db.run("specs", id_list(missing)).fetchall())
        return self._specs

    def by_lease(self, lease_ids: Collection[int]) -> dict[int, HeldTask]:
        """Return the tasks whose current lease id is one of these."""
        return {row[1]: _held(row) for row in self._rows("by_lease", id_list(lease_ids))}

    def held_by(self, agent_id: int) -> list[HeldTask]:
        """Return what an agent holds, by lease id."""
        return [_held(row) for row in self._rows("held_by", agent_id)]

    def holds_more_than(self, agent_id: int, bound: int) -> bool:
        """Whether an agent holds more than bound leases."""
        return self._db.run("holds_more_than", agent_id, bound).fetchone() is not None

    def extend(self, leases: Sequence[ExtendedLease]) -> None:
        """Move the ends of leases; a task that was taken back is leased again."""
        rows = [(lease.task_id, lease.until_ns, lease.due_ns) for lease in leases]
        if rows:
            self._db.run("extend", wire.encode(rows).decode())

    def apply(self, changes: Sequence[Change], now_ns: int) -> None:
        """Requeue, bury, finish or free tasks."""
        requeued: list[tuple[Any, ...]] = []
        freed: list[int] = []
        died: list[tuple[str, int, int]] = []
        ended: list[int] = []
        for change in changes:
            match change:
                case Requeued(task_id, run_ns, attempt, returns, keeps_lease):
                    requeued.append((task_id, run_ns, attempt, returns, int(keeps_lease)))
                case Died(task_id, reason):
                    died.append((reason, now_ns, task_id))
                    ended.append(task_id)
                case Finished(task_id):
                    ended.append(task_id)
                case _:
                    freed.append(change.task_id)
        if requeued:
            self._db.run("requeue", wire.encode(requeued).decode())
        if freed:
            self._db.run("free_lease", id_list(freed))
        self._db.run_many("bury", died)
        if ended:
            self._db.run("finish", id_list(ended))

    def due(self, now_ns: int, limit: int) -> list[HeldTask]:
        """Return leases whose grace is over, the oldest first."""
        return [_held(row) for row in self._rows("due", now_ns, limit)]

    def is_sweep_due(self, now_ns: int) -> bool:
        """Whether `due` or `drop_stale` would find anything."""
        return bool(self._db.run("is_sweep_due", now_ns, now_ns).fetchone()[0])

    def drop_stale(self, now_ns: int, limit: int) -> int:
        """Drop queued tasks that nobody ran in time; return how many."""
        return self._db.run("drop_stale", now_ns, limit).rowcount

    def revoked_of_check(self, check_id: int) -> list[tuple[int, int]]:
        """Return `(agent_id, lease_id)` of a check's leases that are revoked and still held."""
        return self._db.run("revoked_of_check", check_id).fetchall()

    def live_of_check(self, check_id: int, now_ns: int) -> set[tuple[int, bytes]]:
        """Return `(queue, spec)` of what has not ended and is not stale; standing tasks are not."""
        rows = self._db.run("live_of_check", check_id, now_ns).fetchall()
        return {(queue, body) for queue, body in rows}

    def delayed(self, now_ns: int) -> list[tuple[int, TaskKind, int]]:
        """Return `(queue, kind, run_ns)` of what is ready only later."""
        rows = self._db.run("delayed", now_ns).fetchall()
        return [(queue, KINDS[kind], run_ns) for queue, kind, run_ns in rows]

    def depths(self, now_ns: int) -> list[QueueDepth]:
        """Return how full every queue is."""
        rows = self._db.run("depths", now_ns).fetchall()
        return [QueueDepth(row[0], KINDS[row[1]], *row[2:]) for row in rows]

    def add_results(self, results: Sequence[NewResult]) -> None:
        """Append results; their lease ids are new."""
        bodies: dict[TaskKind, list[bytes]] = {}
        for result in results:
            bodies.setdefault(result.kind, []).append(result.body)
        packed = {kind: iter(pack_all(kind, there)) for kind, there in bodies.items()}
        self._db.insert(
            "add_result",
            [
                (
                    result.lease_id,
                    result.task_id,
                    result.agent_id,
                    result.check_id,
                    KIND_CODES[result.kind],
                    result.outcome,
                    result.attempt,
                    result.is_final,
                    result.received_ns,
                    result.scheduled_ns,
                    result.tick,
                    result.spec_id,
                    next(packed[result.kind]),
                )
                for result in results
            ],
        )

    def result_owners(self, lease_ids: Collection[int]) -> dict[int, int]:
        """Return the agent of each of these lease ids that has a result."""
        return dict(self._db.run("result_owners", id_list(lease_ids)).fetchall())

    def dead_by_lease(self, lease_ids: Collection[int]) -> dict[int, DeadLetter]:
        """Return dead letters whose last lease id is one of these."""
        rows = self._db.run("dead_by_lease", id_list(lease_ids)).fetchall()
        return {row[1]: dead_letter(row) for row in rows}

    def unbury(self, task_ids: Collection[int]) -> None:
        """Remove dead letters whose result came after all."""
        self._db.run("unbury", id_list(task_ids))


def _granted(row: Sequence[Any], kind: TaskKind, bodies: Mapping[int, bytes]) -> GrantedTask:
    return GrantedTask(
        task_id=row[0],
        lease_id=row[1],
        kind=kind,
        spec=bodies[row[2]],
        attempt=row[3],
        max_attempts=row[4],
        granted_ns=row[5],
        until_ns=row[6],
        priority=row[7],
        check_id=row[8],
        scheduled_ns=row[9],
        repeat=row[10],
        next_tick=row[11],
    )


def _held(row: Sequence[Any]) -> HeldTask:
    return HeldTask(
        task_id=row[0],
        lease_id=row[1],
        agent_id=row[2],
        state=_STATES[row[3]],
        kind=KINDS[row[4]],
        attempt=row[5],
        max_attempts=row[6],
        returns=row[7],
        granted_ns=row[8],
        until_ns=row[9],
        check_id=row[10],
        spec_id=row[11],
        scheduled_ns=row[12],
        queue=row[13],
        is_standing=bool(row[14]),
    )


def dead_letter(row: Sequence[Any]) -> DeadLetter:
    """Read a row of dead_letter and its spec."""
    return DeadLetter(
        task_id=row[0],
        lease_id=row[1],
        agent_id=row[2],
        kind=KINDS[row[3]],
        attempt=row[4],
        reason=row[5],
        died_ns=row[6],
        spec=row[7],
        spec_id=row[8],
        check_id=row[9],
        scheduled_ns=row[10],
        queue=row[11],
        priority=row[12],
        max_attempts=row[13],
    )
