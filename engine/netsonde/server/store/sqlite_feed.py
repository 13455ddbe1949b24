"""How far the results in SQLite reach, for those who follow them."""

from netsonde.server.store.results import ResultBounds
from netsonde.server.store.sqlite_tasks import Database


class SqliteFeed:
    """Verbs over the ids of results."""

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
