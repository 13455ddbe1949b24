"""Results in SQLite as they are read: a look costs what it finds, whatever is asked for.

Every look goes by one index, named here, over one span of ids. Ids grow with the commits and so,
nearly, do instants: a span of time is one of ids, give or take what a crash forgets of the clock.
"""

from collections.abc import Sequence
from typing import Any

from netsonde.clock import NS_PER_S
from netsonde.model import MINTED_ID_MAX
from netsonde.server.store.bodies import unpack
from netsonde.server.store.results import ResultBounds, ResultQuery, StoredResult, page_of
from netsonde.server.store.sqlite_tasks import Database
from netsonde.server.store.tasks import KIND_CODES, KINDS

# A crash forgets seconds of the clock, and what was noted may wait as long for its commit.
SKEW_NS = 600 * NS_PER_S

# The most selective first; each gives its rows in the order of ids.
_INDEXES = (
    ("result_task", ("task_id",)),
    ("result_check", ("check_id",)),
    ("result_agent", ("agent_id",)),
    ("result_outcome", ("kind", "outcome")),
)


class SqliteFeed:
    """Verbs over results in the order of their ids."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def result_bounds(self) -> ResultBounds:
        """Return from which id to which there are results."""
        oldest, newest = self._db.run("result_bounds").fetchone()
        newest = newest or 0
        return ResultBounds(newest + 1 if oldest is None else oldest, newest)

    def next_result(self, position: int) -> int | None:
        """Return the id of the first result after a position."""
        following: int | None = self._db.run("next_result", position).fetchone()[0]
        return following

    def results(self, query: ResultQuery) -> list[StoredResult]:
        """Return results in the order of commits."""
        equal = _equal(query)
        index, _ = _index_of(equal)
        low, high = self._span(query)
        conditions = [f"{name} = ?" for name in equal]
        values = list(equal.values())
        for text, instant_ns in (
            ("received_ns >= ?", query.from_ns),
            ("received_ns < ?", query.to_ns),
        ):
            if instant_ns is not None:
                conditions.append(text)
                values.append(instant_ns)
        if query.final_only:
            conditions.append("is_final = 1")
        # Only our own words are put together; every value is a parameter.
        statement = (
            "SELECT result_id, lease_id, task_id, agent_id, kind, outcome, attempt, is_final,"  # noqa: S608
            " spec.body, result.body, check_id, scheduled_ns, tick"
            f" FROM result {index} CROSS JOIN spec USING (spec_id)"
            f" WHERE {' AND '.join(['result_id BETWEEN ? AND ?', *conditions])}"
            f" ORDER BY result_id {_order(query)} LIMIT ?"
        )
        rows = self._db.select(statement, [low, high, *values, query.limit])
        return page_of(query, map(_stored, rows))

    def look_end(self, query: ResultQuery, rows_max: int) -> int | None:
        """Return the id that a look over so many rows ends with; None: there are no more."""
        equal = _equal(query)
        index, names = _index_of(equal)
        low, high = self._span(query)
        if not names:
            return self._end_by_id(query, low, high, rows_max)
        wanted = " AND ".join(["result_id BETWEEN ? AND ?", *(f"{name} = ?" for name in names)])
        statement = (
            f"SELECT result_id FROM result {index} WHERE {wanted}"  # noqa: S608
            f" ORDER BY result_id {_order(query)} LIMIT 1 OFFSET ?"
        )
        values = [low, high, *(equal[name] for name in names), rows_max - 1]
        row = self._db.select(statement, values).fetchone()
        return None if row is None else int(row[0])

    def _end_by_id(self, query: ResultQuery, low: int, high: int, rows_max: int) -> int | None:
        """Count ids in place of rows, from the first that there is: few ids are of no row."""
        if query.descending:
            first: int | None = self._db.run("last_result", high).fetchone()[0]
            end = None if first is None else first - rows_max + 1
            return None if end is None or end <= low else end
        first = self.next_result(low - 1)
        end = None if first is None else first + rows_max - 1
        return None if end is None or end >= min(high, self.result_bounds().newest) else end

    def _span(self, query: ResultQuery) -> tuple[int, int]:
        """Return the first and the last id that a query can be about."""
        low, high = 1, MINTED_ID_MAX
        if query.descending:
            low = max(low, query.through or low)
            high = high if query.position is None else query.position - 1
        else:
            low = max(low, (query.position or 0) + 1)
            high = high if query.through is None else query.through
        if query.from_ns is not None:
            before = self._db.run("result_before", query.from_ns - SKEW_NS).fetchone()
            low = low if before is None else max(low, before[0])
        if query.to_ns is not None:
            after = self._db.run("result_at", query.to_ns + SKEW_NS).fetchone()
            high = high if after is None else min(high, after[0])
        return low, high


def _equal(query: ResultQuery) -> dict[str, Any]:
    """Return what columns must be, of those that are asked for."""
    wanted = {
        "task_id": query.task_id,
        "check_id": query.check_id,
        "agent_id": query.agent_id,
        "kind": None if query.kind is None else KIND_CODES[query.kind],
        "outcome": query.outcome,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _index_of(equal: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return which index a look goes by, and its columns: none is the order of ids itself."""
    for index, names in _INDEXES:
        if all(name in equal for name in names):
            return f"INDEXED BY {index}", names
    return "NOT INDEXED", ()


def _order(query: ResultQuery) -> str:
    return "DESC" if query.descending else "ASC"


def _stored(row: Sequence[Any]) -> StoredResult:
    return StoredResult(
        result_id=row[0],
        lease_id=row[1],
        task_id=row[2],
        agent_id=row[3],
        kind=KINDS[row[4]],
        outcome=row[5],
        attempt=row[6],
        is_final=bool(row[7]),
        spec=row[8],
        body=unpack(KINDS[row[4]], row[9]),
        check_id=row[10],
        scheduled_ns=row[11],
        tick=row[12],
    )
