"""What a store in SQLite lets go, and how large it is."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from netsonde.server.store.retention import STEP_MAX_BYTES, KeyFloor, SpecPage, StoreSize
from netsonde.server.store.sqlite_tasks import Database, id_list

LEASE_FLOOR = "lease_floor"
TICK_FLOOR = "tick_floor_ns"


class KeepingDatabase(Database, Protocol):
    """What these verbs need of the connection."""

    def number(self, name: str) -> int:
        """Return a number that is kept under a name; 0 when there is none."""
        ...

    def keep_number(self, name: str, value: int) -> None:
        """Keep a number under a name, unless a greater one is kept."""
        ...

    def forget_specs(self) -> None:
        """Drop what is remembered of specs that may be there no more."""
        ...


class SqliteRetention:
    """Verbs over what has an age."""

    def __init__(self, database: KeepingDatabase, path: Path) -> None:
        self._keeper = database
        self._db: Database = database
        self._database_path = path

    def drop_results(self, before_ns: int | None, floor: KeyFloor, limit: int) -> int:
        """Drop the oldest results, received before an instant or (None) whenever."""
        last, dropped, size, is_below = 0, 0, 0, False
        for row in self._db.run("oldest_results", limit).fetchall():
            result_id, received_ns, lease_id, tick, scheduled_ns, body_bytes = row
            is_young = before_ns is not None and received_ns >= before_ns
            size += body_bytes
            if is_young or (dropped and size > STEP_MAX_BYTES):
                break
            last, dropped = result_id, dropped + 1
            is_below |= lease_id < floor.lease_id if tick is None else _is_old(scheduled_ns, floor)
        if dropped:
            self._db.run("keep_leases", last, floor.lease_id)
            self._db.run("keep_ticks", last, floor.scheduled_ns)
            self._db.run("drop_results", last)
            self._raise_floor(floor, is_below)
        return dropped

    def drop_keys(self, floor: KeyFloor, limit: int) -> int:
        """Drop keys of results that have gone and are below `floor`; `key_floor` rises to it."""
        leases = self._db.run("drop_gone_leases", floor.lease_id, limit).rowcount
        left = limit - leases
        ticks = self._db.run("drop_gone_ticks", floor.scheduled_ns, left).rowcount if left else 0
        self._raise_floor(floor, leases + ticks > 0)
        return leases + ticks

    def _raise_floor(self, floor: KeyFloor, is_needed: bool) -> None:
        if is_needed:
            self._keeper.keep_number(LEASE_FLOOR, floor.lease_id)
            self._keeper.keep_number(TICK_FLOOR, floor.scheduled_ns)

    def key_floor(self) -> KeyFloor:
        """Return below what results cannot be recognised any more."""
        return KeyFloor(self._keeper.number(LEASE_FLOOR), self._keeper.number(TICK_FLOOR))

    def drop_dead_letters(self, before_ns: int, limit: int) -> int:
        """Drop the oldest dead letters, of tasks given up before an instant."""
        return self._db.run("drop_dead_letters", before_ns, limit).rowcount

    def unused_specs(self, after: int, limit: int) -> SpecPage:
        """Look through as many specs, those with ids above `after`, for unused ones."""
        rows = self._db.run("specs_after", after, limit).fetchall()
        unused = tuple(spec_id for spec_id, is_unused in rows if is_unused)
        return SpecPage(unused, rows[-1][0] if len(rows) == limit else None)

    def drop_specs(self, spec_ids: Collection[int]) -> int:
        """Drop those of these specs that are still unused."""
        dropped = self._db.run("drop_specs", id_list(spec_ids)).rowcount
        if dropped:
            self._keeper.forget_specs()
        return dropped

    def oldest_result_ns(self) -> int | None:
        """Return when the oldest result was received."""
        row = self._db.run("oldest_result").fetchone()
        return None if row is None else row[0]

    def size(self) -> StoreSize:
        """Return how large the file is, and how much its file system has left."""
        pages, free_pages, page_bytes = (
            self._db.select(f"PRAGMA {name}", ()).fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        system = os.statvfs(self._database_path.parent)
        return StoreSize(
            file_bytes=pages * page_bytes,
            used_bytes=(pages - free_pages) * page_bytes,
            free_bytes=system.f_bavail * system.f_frsize,
        )


def _is_old(scheduled_ns: int | None, floor: KeyFloor) -> bool:
    return (scheduled_ns or 0) < floor.scheduled_ns
