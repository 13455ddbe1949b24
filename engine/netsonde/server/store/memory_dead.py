"""Dead letters that people deal with, in memory."""

from collections.abc import Mapping, Sequence

from msgspec import structs

from netsonde.server.store.dead_letters import DeadQuery, Revival
from netsonde.server.store.memory_rows import Results, Task
from netsonde.server.store.tasks import DeadLetter, NewTask


class MemoryDead:
    """Verbs over dead letters."""

    _tasks: dict[int, Task]
    _by_lease: dict[int, Task]
    _dead: dict[int, DeadLetter]
    _results: Results

    def find_dead(self, query: DeadQuery) -> list[DeadLetter]:
        """Return dead letters, the youngest task first."""
        found = [dead for dead in self._dead.values() if _matches(query, dead)]
        return sorted(found, key=lambda dead: -dead.task_id)[: query.limit]

    def dead_count(self) -> int:
        """Return how many dead letters there are."""
        return len(self._dead)

    def revive(self, revivals: Sequence[Revival]) -> None:
        """Queue tasks of dead letters again and remove the letters."""
        for revival in revivals:
            dead = self._dead.pop(revival.task_id)
            task = _revived(dead, revival)
            self._tasks[task.task_id] = task
            if task.lease_id is not None:
                self._by_lease[task.lease_id] = task
        revived = {revival.task_id for revival in revivals}
        self._results.rows = [
            structs.replace(row, is_final=False)
            if row.task_id in revived and row.tick is None
            else row
            for row in self._results.rows
        ]


def _revived(dead: DeadLetter, revival: Revival) -> Task:
    new = NewTask(
        kind=dead.kind,
        spec=dead.spec,
        run_ns=revival.run_ns,
        max_attempts=dead.max_attempts,
        queue=dead.queue,
        priority=dead.priority,
        check_id=dead.check_id,
        scheduled_ns=dead.scheduled_ns,
    )
    task = Task(dead.task_id, new, dead.spec_id, revival.run_ns)
    task.agent_id = dead.agent_id
    task.lease_id = dead.lease_id if revival.keeps_lease else None
    task.granted_ns = task.until_ns = task.due_ns = revival.granted_ns
    return task


def _matches(query: DeadQuery, dead: DeadLetter) -> bool:
    equal: Mapping[str, object] = {
        "task_id": query.task_id,
        "kind": query.kind,
        "check_id": query.check_id,
        "agent_id": query.agent_id,
    }
    if any(value is not None and getattr(dead, name) != value for name, value in equal.items()):
        return False
    return (
        (query.before is None or dead.task_id < query.before)
        and (query.from_ns is None or dead.died_ns >= query.from_ns)
        and (query.to_ns is None or dead.died_ns < query.to_ns)
    )
