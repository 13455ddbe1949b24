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
