"""Probers without a network: tests decide when and how each measurement ends."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from netsonde.clock import Clock
from netsonde.model import FailureSource, Observation, Outcome, Reason, TaskKind
from netsonde.probe.base import Moment, Recorder
from netsonde.wire import ResultColumns, encode_observations


class GatedProber:
    """Measures until the test opens the gate; says what it saw when it is cancelled.

    `running` holds the specs in progress, `records` those of all that were started, `started`
    counts them, `raises` are exceptions for the next runs.
    """

    def __init__(self, kind: TaskKind) -> None:
        self.kind = kind
        self.gate = asyncio.Event()
        self.running: list[Any] = []
        self.records: list[Recorder] = []
        self.started = 0
        self.raises: deque[Exception] = deque()
        self.is_closed = False

    async def run(self, spec: Any, record: Recorder) -> None:
        self.started += 1
        self.running.append(spec)
        self.records.append(record)
        record.observe("seen_before", {"n": self.started})
        try:
            await self.gate.wait()
            if self.raises:
                raise self.raises.popleft()
            record.ok()
        finally:
            record.observe("seen_summary", {"n": self.started})
            self.running.remove(spec)

    async def close(self) -> None:
        self.is_closed = True


class TimedProber:
    """Takes the same time for every measurement."""

    def __init__(self, kind: TaskKind, clock: Clock, takes_ns: int) -> None:
        self.kind = kind
        self.finished = 0
        self._clock = clock
        self._takes_ns = takes_ns

    async def run(self, spec: Any, record: Recorder) -> None:
        await self._clock.sleep(self._takes_ns)
        self.finished += 1
        record.ok()

    async def close(self) -> None:
        """Nothing is open."""


class InstantProber(GatedProber):
    """Answers at once when it is asked for many; `asked` are the specs of each such call.

    `columns_raise` is what the next of these calls raises, `outcome` what they tell.
    """

    def __init__(self, kind: TaskKind) -> None:
        super().__init__(kind)
        self.asked: list[list[Any]] = []
        self.columns_raise: Exception | None = None
        self.outcome = Outcome.OK

    def measure_many(
        self, specs: Sequence[Any], began: Moment, env: dict[str, Any]
    ) -> ResultColumns:
        self.asked.append([*specs])
        if self.columns_raise is not None:
            raise self.columns_raise
        seen = encode_observations([Observation("seen_at_once", {"n": len(self.asked)})])
        return ResultColumns(
            outcomes=[self.outcome] * len(specs),
            started_at_ns=[began.realtime_ns] * len(specs),
            durations_ns=[0] * len(specs),
            observations=[seen] * len(specs),
            env=env,
        )


class FailingProber:
    """Finds every target down."""

    def __init__(self, kind: TaskKind) -> None:
        self.kind = kind

    async def run(self, spec: Any, record: Recorder) -> None:
        record.fail(Outcome.TARGET_ERROR, Reason.TIMEOUT, FailureSource.TARGET, "no reply")

    async def close(self) -> None:
        """Nothing is open."""


class StubbornProber(GatedProber):
    """Does not let itself be cancelled, as a broken prober would."""

    async def run(self, spec: Any, record: Recorder) -> None:
        self.started += 1
        while not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:  # the defect that this prober is
                record.observe("ignored_cancel", {})
        record.ok()


def gated() -> dict[TaskKind, GatedProber]:
    """One gated prober of every kind."""
    return {kind: GatedProber(kind) for kind in TaskKind}
