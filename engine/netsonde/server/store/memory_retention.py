"""What the store in memory lets go."""

from collections.abc import Collection

from netsonde.server.store.memory_rows import Results, Standing, Task
from netsonde.server.store.results import NewResult
from netsonde.server.store.retention import STEP_MAX_BYTES, KeyFloor, SpecPage, StoreSize
from netsonde.server.store.tasks import DeadLetter


class MemoryRetention:
    """Verbs over what has an age."""

    _results: Results
    _dead: dict[int, DeadLetter]
    _tasks: dict[int, Task]
    _standing: dict[int, Standing]
    _specs: dict[int, bytes]
    _spec_ids: dict[bytes, int]

    def __init__(self) -> None:
        self._floor = KeyFloor()
        self._gone_leases: set[int] = set()
        self._gone_ticks: set[tuple[int, int]] = set()

    def drop_results(self, before_ns: int | None, floor: KeyFloor, limit: int) -> int:
        """Drop the oldest results, received before an instant or (None) whenever."""
        dropped, size = 0, 0
        for row in self._results.rows[:limit]:
            size += len(row.body)
            is_young = before_ns is not None and row.received_ns >= before_ns
            if is_young or (dropped and size > STEP_MAX_BYTES):
                break
            dropped += 1
            self._let_go(row, floor)
        del self._results.rows[:dropped]
        self._results.gone += dropped
        return dropped

    def _let_go(self, row: NewResult, floor: KeyFloor) -> None:
        key = (row.task_id, row.scheduled_ns or 0)
        if row.tick is None:
            self._gone_leases.add(row.lease_id)
            if row.lease_id < floor.lease_id:
                self._forget([row.lease_id], [], floor)
        else:
            self._gone_ticks.add(key)
            if key[1] < floor.scheduled_ns:
                self._forget([], [key], floor)

    def _forget(
        self, leases: Collection[int], ticks: Collection[tuple[int, int]], floor: KeyFloor
    ) -> None:
        for lease_id in leases:
            self._results.by_lease.pop(lease_id, None)
        self._results.ticks.difference_update(ticks)
        self._gone_leases.difference_update(leases)
        self._gone_ticks.difference_update(ticks)
        self._floor = KeyFloor(
            max(self._floor.lease_id, floor.lease_id),
            max(self._floor.scheduled_ns, floor.scheduled_ns),
        )

    def drop_keys(self, floor: KeyFloor, limit: int) -> int:
        """Drop keys of results that have gone and are below `floor`; `key_floor` rises to it."""
        leases = [one for one in sorted(self._gone_leases) if one < floor.lease_id][:limit]
        ticks = [one for one in self._gone_ticks if one[1] < floor.scheduled_ns]
        ticks = ticks[: limit - len(leases)]
        if leases or ticks:
            self._forget(leases, ticks, floor)
        return len(leases) + len(ticks)

    def key_floor(self) -> KeyFloor:
        """Return below what results cannot be recognised any more."""
        return self._floor

    def drop_dead_letters(self, before_ns: int, limit: int) -> int:
        """Drop the oldest dead letters, of tasks given up before an instant."""
        old = [dead for dead in self._dead.values() if dead.died_ns < before_ns]
        old.sort(key=lambda dead: dead.died_ns)
        for dead in old[:limit]:
            del self._dead[dead.task_id]
        return len(old[:limit])

    def unused_specs(self, after: int, limit: int) -> SpecPage:
        """Look through as many specs, those with ids above `after`, for unused ones."""
        page = [spec_id for spec_id in sorted(self._specs) if spec_id > after][:limit]
        used = self._used_specs()
        unused = tuple(spec_id for spec_id in page if spec_id not in used)
        return SpecPage(unused, page[-1] if len(page) == limit else None)

    def drop_specs(self, spec_ids: Collection[int]) -> int:
        """Drop those of these specs that are still unused; the latest one stays, as in SQLite."""
        latest = max(self._specs, default=0)
        gone = set(spec_ids) & self._specs.keys() - self._used_specs() - {latest}
        for spec_id in gone:
            del self._spec_ids[self._specs.pop(spec_id)]
        return len(gone)

    def _used_specs(self) -> set[int]:
        return {
            *(row.spec_id for row in self._results.rows),
            *(task.spec_id for task in self._tasks.values()),
            *(standing.lease.spec_id for standing in self._standing.values()),
            *(dead.spec_id for dead in self._dead.values()),
        }

    def oldest_result_ns(self) -> int | None:
        """Return when the oldest result was received."""
        return self._results.rows[0].received_ns if self._results.rows else None

    def size(self) -> StoreSize:
        """Return nothing: there is no file to grow."""
        return StoreSize(0, 0)
