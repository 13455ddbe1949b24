"""Time as a dependency: the one module that reads a clock or waits for one.

All instants and durations are int64 nanoseconds. Three clocks, never subtracted from one another:

* `boottime_ns` counts through suspend; lease deadlines live on it.
* `monotonic_ns` measures durations on this host.
* `realtime_ns` is the wall clock, for reports only; no decision reads it.
"""

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime
from typing import Protocol

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """What netsonde needs of time; `SystemClock` is real, `ManualClock` is the tests'."""

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME: never steps, counts through suspend."""
        ...

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC: never steps, stands still in suspend."""
        ...

    def realtime_ns(self) -> int:
        """Return CLOCK_REALTIME: ns since 1970-01-01 UTC; may step."""
        ...

    async def sleep(self, delay_ns: int) -> None:
        """Wait delay_ns; at or below 0 only yields to the loop."""
        ...

    async def wait(self, event: asyncio.Event, delay_ns: int | None) -> bool:
        """Wait until event is set or delay_ns has passed; return whether it was set."""
        ...


class SystemClock:
    """The kernel's clocks and the running event loop's timers."""

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def realtime_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.time_ns()

    async def sleep(self, delay_ns: int) -> None:
        """Wait delay_ns on the event loop."""
        await asyncio.sleep(max(delay_ns, 0) / NS_PER_S)

    async def wait(self, event: asyncio.Event, delay_ns: int | None) -> bool:
        """Wait until event is set or delay_ns has passed."""
        if event.is_set():
            return True
        try:
            async with asyncio.timeout(None if delay_ns is None else max(delay_ns, 0) / NS_PER_S):
                await event.wait()
        except TimeoutError:
            return event.is_set()
        return True


class ManualClock:
    """A clock that moves only when `advance` is called; sleepers wake in deadline order."""

    def __init__(
        self, start_ns: int = NS_PER_S, realtime_ns: int = 1_700_000_000 * NS_PER_S
    ) -> None:
        self._now_ns = start_ns
        self._realtime_offset_ns = realtime_ns - start_ns
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def boottime_ns(self) -> int:
        """Return the manual time."""
        return self._now_ns

    def monotonic_ns(self) -> int:
        """Return the manual time."""
        return self._now_ns

    def realtime_ns(self) -> int:
        """Return the manual time on the wall clock."""
        return self._now_ns + self._realtime_offset_ns

    def step_realtime(self, delta_ns: int) -> None:
        """Step the wall clock, as an operator or NTP would."""
        self._realtime_offset_ns += delta_ns

    @property
    def next_wake_ns(self) -> int | None:
        """The earliest instant somebody sleeps until, or None when nobody does."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def sleep(self, delay_ns: int) -> None:
        """Wait until `advance` has moved the clock by delay_ns."""
        if delay_ns <= 0:
            await asyncio.sleep(0)
            return
        await self._sleeper(delay_ns)

    async def wait(self, event: asyncio.Event, delay_ns: int | None) -> bool:
        """Wait until event is set or `advance` has moved the clock by delay_ns."""
        if event.is_set():
            return True
        if delay_ns is None:
            return await event.wait()
        sleeper = self._sleeper(delay_ns)
        async with asyncio.TaskGroup() as group:
            setter = group.create_task(event.wait())
            try:
                await asyncio.wait((setter, sleeper), return_when=asyncio.FIRST_COMPLETED)
            finally:
                setter.cancel()
                sleeper.cancel()
        return event.is_set()

    async def advance(self, delta_ns: int) -> None:
        """Move time forward, letting every sleeper on the way run at its own instant."""
        target_ns = self._now_ns + delta_ns
        await self.settle()
        while (wake_ns := self.next_wake_ns) is not None and wake_ns <= target_ns:
            _, _, sleeper = heapq.heappop(self._sleepers)
            self._now_ns = max(self._now_ns, wake_ns)
            sleeper.set_result(None)
            await self.settle()
        self._now_ns = target_ns

    async def settle(self, rounds: int = 25) -> None:
        """Let tasks that are ready run; each round is one turn of the loop."""
        for _ in range(rounds):
            await asyncio.sleep(0)

    def _sleeper(self, delay_ns: int) -> "asyncio.Future[None]":
        sleeper = asyncio.get_running_loop().create_future()
        heapq.heappush(
            self._sleepers, (self._now_ns + max(delay_ns, 0), next(self._order), sleeper)
        )
        return sleeper


def rfc3339(realtime_ns: int) -> str:
    """Format a wall-clock instant as RFC 3339 UTC with nanoseconds."""
    seconds, nanoseconds = divmod(realtime_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
