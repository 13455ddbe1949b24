"""Dead letters that people deal with, in SQLite."""

from collections.abc import Sequence
from typing import Any

from netsonde import wire
from netsonde.server.store.dead_letters import DeadQuery, Revival
from netsonde.server.store.sqlite_tasks import Database, dead_letter, id_list
from netsonde.server.store.tasks import KIND_CODES, DeadLetter


class SqliteDead:
    """Verbs over the table dead_letter that the life of tasks does not need."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def find_dead(self, query: DeadQuery) -> list[DeadLetter]:
        """Return dead letters, the youngest task first."""
        given = [(text, value) for text, value in _conditions(query) if value is not None]
        # Only our own words are put together; every value is a parameter.
        statement = (
            "SELECT task_id, lease_id, agent_id, kind, attempt, reason, died_ns, body, spec_id,"  # noqa: S608
            " check_id, scheduled_ns, coalesce(queue, -agent_id), priority,"
            " coalesce(max_attempts, attempt)"
            " FROM dead_letter JOIN spec USING (spec_id)"
            f" WHERE {' AND '.join(['1', *(text for text, _ in given)])}"
            " ORDER BY task_id DESC LIMIT ?"
        )
        parameters = [*(value for _, value in given), query.limit]
        return [dead_letter(row) for row in self._db.select(statement, parameters).fetchall()]

    def dead_count(self) -> int:
        """Return how many dead letters there are."""
        count: int = self._db.run("dead_count").fetchone()[0]
        return count

    def revive(self, revivals: Sequence[Revival]) -> None:
        """Queue tasks of dead letters again and remove the letters."""
        rows = [
            (revival.task_id, revival.run_ns, int(revival.keeps_lease), revival.granted_ns)
            for revival in revivals
        ]
        ids = id_list([revival.task_id for revival in revivals])
        self._db.run("revive", wire.encode(rows).decode())
        self._db.run("unbury", ids)
        self._db.run("unfinal", ids)


def _conditions(query: DeadQuery) -> tuple[tuple[str, Any], ...]:
    return (
        ("task_id < ?", query.before),
        ("task_id = ?", query.task_id),
        ("kind = ?", None if query.kind is None else KIND_CODES[query.kind]),
        ("check_id = ?", query.check_id),
        ("agent_id = ?", query.agent_id),
        ("died_ns >= ?", query.from_ns),
        ("died_ns < ?", query.to_ns),
    )
