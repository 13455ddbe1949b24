"""Time as a dependency: the one module that reads a clock or waits for one.

All instants and durations are int64 nanoseconds. Three clocks, never subtracted from one another:

* `boottime_ns` counts through suspend; lease deadlines live on it.
* `monotonic_ns` measures durations on this host.
* `realtime_ns` is the wall clock, for reports only; no decision reads it.
"""

import asyncio
import ctypes
import heapq
import itertools
import struct
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STA_UNSYNC = 0x40  # linux/timex.h
TIMEX_BYTES = 256  # struct timex has 208 on 64-bit Linux
# How long what the kernel said of its clock is believed: the error it names grows by 500 ppm.
QUALITY_NS = 100 * 1_000_000
TIMEX_ERRORS = struct.Struct("@Illlli")  # modes, offset, freq, maxerror, esterror, status

_adjtimex = ctypes.CDLL(None).adjtimex


@dataclass(frozen=True, slots=True)
class ClockQuality:
    """How good the wall clock is, as whoever disciplines it has told the kernel (RFC 5905).

    `synchronised` is None when the kernel does not tell. Errors are against UTC and None where they
    mean nothing: both without synchronisation, the estimate when none was given.
    """

    synchronised: bool | None
    estimated_error_ns: int | None = None
    maximum_error_ns: int | None = None

    def as_env(self, *, steps: int | None = None) -> dict[str, bool | float | int | None]:
        """Return it as a result's `env.clock`, errors in ms.

        steps is how often the wall clock was seen to step meanwhile, left out when nobody looked.
        """
        env: dict[str, bool | float | int | None] = {
            "synchronised": self.synchronised,
            "estimated_error_ms": _milliseconds(self.estimated_error_ns),
            "maximum_error_ms": _milliseconds(self.maximum_error_ns),
        }
        return env if steps is None else env | {"steps": steps}


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

    def quality(self) -> ClockQuality:
        """Return how good CLOCK_REALTIME is."""
        ...

    async def sleep(self, delay_ns: int) -> None:
        """Wait delay_ns; at or below 0 only yields to the loop."""
        ...

    async def wait(self, event: asyncio.Event, delay_ns: int | None) -> bool:
        """Wait until event is set or delay_ns has passed; return whether it was set."""
        ...


class SystemClock:
    """The kernel's clocks and the running event loop's timers."""

    def __init__(self) -> None:
        self._quality = ClockQuality(synchronised=None)
        self._quality_until_ns = 0

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def realtime_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.time_ns()

    def quality(self) -> ClockQuality:
        """Return what the kernel said a moment ago (adjtimex(2), read-only)."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._quality_until_ns:
            timex = ctypes.create_string_buffer(TIMEX_BYTES)  # modes 0: nothing is set
            state: int = _adjtimex(timex)
            self._quality = clock_quality(state, timex.raw)
            self._quality_until_ns = now_ns + QUALITY_NS
        return self._quality

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
        self._quality = ClockQuality(synchronised=True, maximum_error_ns=NS_PER_MS)
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

    def quality(self) -> ClockQuality:
        """Return what `set_quality` was given, at first a clock synchronised to 1 ms."""
        return self._quality

    def set_quality(self, quality: ClockQuality) -> None:
        """Make the wall clock as good as quality says."""
        self._quality = quality

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


def clock_quality(state: int, timex: bytes) -> ClockQuality:
    """Read what adjtimex(2) returned, a clock state or -1, and filled in (struct timex)."""
    if state < 0:
        return ClockQuality(synchronised=None)
    *_, maximum_us, estimated_us, status = TIMEX_ERRORS.unpack_from(timex)
    if status & STA_UNSYNC:
        return ClockQuality(synchronised=False)
    # An estimate of exactly 0 is what daemons leave that make none, such as systemd-timesyncd.
    estimated_ns = estimated_us * NS_PER_US or None
    return ClockQuality(True, estimated_ns, maximum_us * NS_PER_US)


def _milliseconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / NS_PER_MS


def rfc3339(realtime_ns: int) -> str:
    """Format a wall-clock instant as RFC 3339 UTC with nanoseconds."""
    seconds, nanoseconds = divmod(realtime_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def instant_ns(text: str) -> int:
    """Read an RFC 3339 instant in UTC (`Z`) of at most nine decimals as ns since 1970.

    Raises:
        ValueError: text is none.
    """
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    if not text.endswith("Z") or len(seconds) != 19 or len(fraction) > 9:
        raise ValueError(f"{text[:50]!r} is not an RFC 3339 instant in UTC")
    since = datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC) - EPOCH
    nanoseconds = int(fraction.ljust(9, "0"))
    return (since.days * 86_400 + since.seconds) * NS_PER_S + nanoseconds
