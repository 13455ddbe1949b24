"""Metrics as a store keeps them: series, and blocks of what an agent's series said at one time."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from msgspec import Struct


class Level(IntEnum):
    """How much one block of an agent sums up."""

    RAW = 0  # one envelope
    MINUTE = 1
    HOUR = 2


class MetricSeries(Struct, frozen=True, gc=False):
    """One series. `key` says what it is; the numbers of its samples begin at `series_id`."""

    series_id: int
    agent_id: int
    key: str


class MetricBlock(Struct, frozen=True, gc=False):
    """What an agent's series said at, or from, one instant on."""

    agent_id: int
    at_ns: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSource:
    """The run of an agent that sends now: what it was answered, what its series said last.

    `answers` and `earlier`, the runs before it, are JSON; `latest` is a body of `cells`.
    """

    agent_id: int
    run: str
    seq: int
    answers: bytes
    earlier: bytes
    latest: bytes


@dataclass(frozen=True, slots=True)
class RollProgress:
    """How far a level is: every window before `window_ns`, and of that one agents up to `after`."""

    window_ns: int = 0
    after: int = 0


class MetricStore(Protocol):
    """Verbs over metrics."""

    def metric_source(self, agent_id: int) -> MetricSource | None:
        """Return what is known of an agent's metrics."""
        ...

    def save_metric_source(self, source: MetricSource) -> None:
        """Insert or replace what is known of an agent's metrics."""
        ...

    def metric_keys(self, agent_id: int) -> dict[str, int]:
        """Return the ids of an agent's series by their keys."""
        ...

    def add_metric_series(
        self, agent_id: int, widths: Mapping[str, tuple[str, int]], now_ns: int
    ) -> dict[str, int]:
        """Keep new series by their keys, each with its name and how many ids it takes."""
        ...

    def metric_series(
        self, name: str | None, agent_id: int | None, after: int, limit: int
    ) -> list[MetricSeries]:
        """Return series by id, those above `after`."""
        ...

    def saw_metric_series(self, series_ids: Collection[int], now_ns: int) -> None:
        """Note when series were last heard of."""
        ...

    def drop_metric_series(self, before_ns: int, limit: int) -> int:
        """Drop series that were last heard of before; return how many."""
        ...

    def add_metric_block(self, level: Level, block: MetricBlock) -> None:
        """Append a block; instants of one agent and level do not descend."""
        ...

    def metric_blocks(
        self, level: Level, agent_id: int, from_ns: int, to_ns: int, limit: int
    ) -> list[MetricBlock]:
        """Return an agent's blocks from one instant to before another, in order."""
        ...

    def metric_agents(
        self, level: Level, from_ns: int, to_ns: int, after: int, limit: int
    ) -> list[int]:
        """Return agents with blocks from one instant to before another, by id above `after`."""
        ...

    def first_metric_block_ns(self, level: Level, from_ns: int) -> int | None:
        """Return the instant of the first block at or after one."""
        ...

    def drop_metric_blocks(self, level: Level, before_ns: int, limit: int) -> int:
        """Drop the oldest blocks before an instant; return how many."""
        ...

    def roll_progress(self, level: Level) -> RollProgress:
        """Return how far a level is."""
        ...

    def save_roll_progress(self, level: Level, progress: RollProgress) -> None:
        """Remember how far a level is."""
        ...
