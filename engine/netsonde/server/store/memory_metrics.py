"""Series and blocks of metrics in memory."""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from operator import attrgetter

from netsonde import wire
from netsonde.server.store.metrics import (
    Level,
    MetricBlock,
    MetricSeries,
    MetricSource,
    RollProgress,
)

_AT = attrgetter("at_ns")


class MemoryMetrics:
    """Verbs over metrics; an agent's blocks of a level are a list in their order."""

    def __init__(self) -> None:
        self._sources: dict[int, MetricSource] = {}
        self._metric_series: dict[int, MetricSeries] = {}
        self._metric_keys: dict[int, dict[str, int]] = {}
        self._seen_ns: dict[int, int] = {}
        self._next_series = 1
        self._blocks: dict[Level, dict[int, list[MetricBlock]]] = {level: {} for level in Level}
        self._rolls: dict[Level, RollProgress] = {}

    def metric_source(self, agent_id: int) -> MetricSource | None:
        """Return what is known of an agent's metrics."""
        return self._sources.get(agent_id)

    def save_metric_source(self, source: MetricSource) -> None:
        """Insert or replace what is known of an agent's metrics."""
        self._sources[source.agent_id] = source

    def metric_keys(self, agent_id: int) -> dict[str, int]:
        """Return the ids of an agent's series by their keys."""
        return dict(self._metric_keys.get(agent_id, {}))

    def add_metric_series(
        self, agent_id: int, widths: Mapping[str, tuple[str, int]], now_ns: int
    ) -> dict[str, int]:
        """Keep new series by their keys, each with its name and how many ids it takes."""
        ids: dict[str, int] = {}
        for key, (_, width) in widths.items():
            ids[key] = self._next_series
            self._metric_series[self._next_series] = MetricSeries(self._next_series, agent_id, key)
            self._seen_ns[self._next_series] = now_ns
            self._next_series += width
        self._metric_keys.setdefault(agent_id, {}).update(ids)
        return ids

    def metric_series(
        self, name: str | None, agent_id: int | None, after: int, limit: int
    ) -> list[MetricSeries]:
        """Return series by id, those above `after`."""
        found: list[MetricSeries] = []
        for series in self._metric_series.values():  # ids only grow
            if series.series_id > after and agent_id in (None, series.agent_id):
                if name is None or wire.parse(series.key.encode())[1] == name:
                    found.append(series)
                if len(found) == limit:
                    break
        return found

    def saw_metric_series(self, series_ids: Collection[int], now_ns: int) -> None:
        """Note when series were last heard of."""
        for series_id in series_ids:
            if series_id in self._seen_ns:
                self._seen_ns[series_id] = max(self._seen_ns[series_id], now_ns)

    def drop_metric_series(self, before_ns: int, limit: int) -> int:
        """Drop series that were last heard of before; return how many."""
        old = [one for one, seen_ns in self._seen_ns.items() if seen_ns < before_ns][:limit]
        for series_id in old:
            series = self._metric_series.pop(series_id)
            del self._metric_keys[series.agent_id][series.key], self._seen_ns[series_id]
        return len(old)

    def add_metric_block(self, level: Level, block: MetricBlock) -> None:
        """Append a block."""
        self._blocks[level].setdefault(block.agent_id, []).append(block)

    def metric_blocks(
        self, level: Level, agent_id: int, from_ns: int, to_ns: int, limit: int
    ) -> list[MetricBlock]:
        """Return an agent's blocks from one instant to before another, in order."""
        blocks = self._blocks[level].get(agent_id, [])
        first = bisect_left(blocks, from_ns, key=_AT)
        last = bisect_left(blocks, to_ns, key=_AT)
        return blocks[first : min(last, first + limit)]

    def metric_agents(
        self, level: Level, from_ns: int, to_ns: int, after: int, limit: int
    ) -> list[int]:
        """Return agents with blocks from one instant to before another, by id above `after`."""
        ids = sorted(agent_id for agent_id in self._blocks[level] if agent_id > after)
        return [one for one in ids if self.metric_blocks(level, one, from_ns, to_ns, 1)][:limit]

    def first_metric_block_ns(self, level: Level, from_ns: int) -> int | None:
        """Return the instant of the first block at or after one."""
        firsts = (
            blocks[place].at_ns
            for blocks in self._blocks[level].values()
            if (place := bisect_left(blocks, from_ns, key=_AT)) < len(blocks)
        )
        return min(firsts, default=None)

    def drop_metric_blocks(self, level: Level, before_ns: int, limit: int) -> int:
        """Drop the oldest blocks before an instant; return how many."""
        dropped = 0
        for blocks in self._blocks[level].values():
            count = min(bisect_left(blocks, before_ns, key=_AT), limit - dropped)
            del blocks[:count]
            dropped += count
        return dropped

    def roll_progress(self, level: Level) -> RollProgress:
        """Return how far a level is."""
        return self._rolls.get(level, RollProgress())

    def save_roll_progress(self, level: Level, progress: RollProgress) -> None:
        """Remember how far a level is."""
        self._rolls[level] = progress
