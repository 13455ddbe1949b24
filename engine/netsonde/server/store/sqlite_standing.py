"""Standing tasks and their leases in SQLite, and the end of tasks that nobody wants any more."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from netsonde import wire
from netsonde.server.leasing import StandingLease
from netsonde.server.store.sqlite_tasks import Database, id_list
from netsonde.server.store.tasks import KINDS


class SqliteStanding:
    """Verbs over the table standing_lease, and over tasks by what they are for."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def cancel_check(self, check_id: int, now_ns: int) -> int:
        """Drop a check's queued tasks and revoke its leased ones; return how many."""
        rows = self._db.run("tasks_of_check", check_id).fetchall()
        return self.withdraw([task_id for (task_id,) in rows], now_ns)

    def withdraw(self, task_ids: Collection[int], now_ns: int) -> int:
        """Drop those that are queued and revoke those that are leased; return how many."""
        if not task_ids:
            return 0
        ids = id_list(task_ids)
        self._db.run("end_standing", ids, now_ns)
        dropped = self._db.run("drop_ready", ids).rowcount
        return dropped + self._db.run("revoke", ids, now_ns).rowcount

    def standing_of_check(self, check_id: int) -> dict[tuple[int, bytes], int]:
        """Return a check's standing tasks that were not revoked, by `(queue, spec)`."""
        rows = self._db.run("standing_of_check", check_id).fetchall()
        return {(queue, spec): task_id for queue, spec, task_id in rows}

    def standing_leases(self, lease_ids: Collection[int]) -> dict[int, StandingLease]:
        """Return those of these leases that are a standing task's, its last or an earlier one."""
        text: str = self._db.run("standing_leases", id_list(lease_ids)).fetchone()[0]
        rows: list[list[Any]] = wire.parse(text.encode())
        return {row[0]: _standing(row) for row in rows}

    def ran(self, next_ticks: Mapping[int, int]) -> None:
        """Note, by task, the tick after the last one that has a result."""
        self._db.run_many("ran", [(tick, task_id) for task_id, tick in next_ticks.items()])

    def have_run(self, ticks: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return which of these `(task_id, scheduled_ns)` have the result of a tick."""
        rows = self._db.run("have_run", wire.encode(list(ticks)).decode()).fetchall()
        return {(task_id, scheduled_ns) for task_id, scheduled_ns in rows}

    def forget_standing(self, before_ns: int) -> int:
        """Drop standing leases under which nobody can report any more; return how many."""
        return self._db.run("forget_standing", before_ns).rowcount


def _standing(row: Sequence[Any]) -> StandingLease:
    return StandingLease(
        lease_id=row[0],
        task_id=row[1],
        agent_id=row[2],
        kind=KINDS[row[3]],
        anchor_ns=row[4],
        repeat=row[5],
        spec_id=row[6],
        granted_ns=row[7],
        check_id=row[8],
        ended_ns=row[9],
        next_tick=row[10],
    )
