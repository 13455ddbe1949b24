"""Series and blocks of metrics in SQLite."""

from collections.abc import Collection, Mapping

from netsonde import wire
from netsonde.server.store.metrics import (
    Level,
    MetricBlock,
    MetricSeries,
    MetricSource,
    RollProgress,
)
from netsonde.server.store.sqlite_tasks import Database, id_list

_SERIES = {  # by whether a name and whether an agent is given: each has its index
    (False, False): "metric_series",
    (True, False): "metric_series_named",
    (False, True): "metric_series_of",
    (True, True): "metric_series_named_of",
}


class SqliteMetrics:
    """Verbs over the tables metric_…"""

    def __init__(self, database: Database) -> None:
        self._db = database

    def metric_source(self, agent_id: int) -> MetricSource | None:
        """Return what is known of an agent's metrics."""
        row = self._db.run("metric_source", agent_id).fetchone()
        if row is None:
            return None
        return MetricSource(
            agent_id=row[0], run=row[1], seq=row[2], answers=row[3], earlier=row[4], latest=row[5]
        )

    def save_metric_source(self, source: MetricSource) -> None:
        """Insert or replace what is known of an agent's metrics."""
        self._db.run(
            "save_metric_source",
            source.agent_id,
            source.run,
            source.seq,
            source.answers,
            source.earlier,
            source.latest,
        )

    def metric_keys(self, agent_id: int) -> dict[str, int]:
        """Return the ids of an agent's series by their keys."""
        text: str = self._db.run("metric_keys", agent_id).fetchone()[0]
        keys: dict[str, int] = wire.parse(text.encode())
        return keys

    def add_metric_series(
        self, agent_id: int, widths: Mapping[str, tuple[str, int]], now_ns: int
    ) -> dict[str, int]:
        """Keep new series by their keys, each with its name and how many ids it takes."""
        following = self._db.next_id("next_metric", sum(width for _, width in widths.values()))
        ids: dict[str, int] = {}
        for key, (_, width) in widths.items():
            ids[key] = following
            following += width
        self._db.insert(
            "add_metric_series",
            [(ids[key], agent_id, name, key, now_ns) for key, (name, _) in widths.items()],
        )
        return ids

    def metric_series(
        self, name: str | None, agent_id: int | None, after: int, limit: int
    ) -> list[MetricSeries]:
        """Return series by id, those above `after`."""
        wanted = {"name": name, "agent_id": agent_id, "after": after, "limit": limit}
        statement = _SERIES[name is not None, agent_id is not None]
        text: str = self._db.run_named(statement, wanted).fetchone()[0]
        return [MetricSeries(*row) for row in wire.parse(text.encode())]

    def saw_metric_series(self, series_ids: Collection[int], now_ns: int) -> None:
        """Note when series were last heard of."""
        self._db.run("saw_metric_series", now_ns, id_list(series_ids))

    def drop_metric_series(self, before_ns: int, limit: int) -> int:
        """Drop series that were last heard of before; return how many."""
        return self._db.run("drop_metric_series", before_ns, limit).rowcount

    def add_metric_block(self, level: Level, block: MetricBlock) -> None:
        """Append a block."""
        self._db.run("add_metric_block", level, block.agent_id, block.at_ns, block.body)

    def metric_blocks(
        self, level: Level, agent_id: int, from_ns: int, to_ns: int, limit: int
    ) -> list[MetricBlock]:
        """Return an agent's blocks from one instant to before another, in order."""
        rows = self._db.run("metric_blocks", level, agent_id, from_ns, to_ns, limit).fetchall()
        return [MetricBlock(*row) for row in rows]

    def metric_agents(
        self, level: Level, from_ns: int, to_ns: int, after: int, limit: int
    ) -> list[int]:
        """Return agents with blocks from one instant to before another, by id above `after`."""
        rows = self._db.run("metric_agents", level, from_ns, to_ns, after, limit).fetchall()
        return [agent_id for (agent_id,) in rows]

    def first_metric_block_ns(self, level: Level, from_ns: int) -> int | None:
        """Return the instant of the first block at or after one."""
        at_ns: int | None = self._db.run("first_metric_block", level, from_ns).fetchone()[0]
        return at_ns

    def drop_metric_blocks(self, level: Level, before_ns: int, limit: int) -> int:
        """Drop the oldest blocks before an instant; return how many."""
        return self._db.run("drop_metric_blocks", level, before_ns, limit).rowcount

    def roll_progress(self, level: Level) -> RollProgress:
        """Return how far a level is."""
        row = self._db.run("roll_progress", level).fetchone()
        return RollProgress() if row is None else RollProgress(*row)

    def save_roll_progress(self, level: Level, progress: RollProgress) -> None:
        """Remember how far a level is."""
        self._db.run("save_roll_progress", level, progress.window_ns, progress.after)
