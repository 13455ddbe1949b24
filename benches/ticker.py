"""How late an event loop is for what is due every millisecond."""

import asyncio
import ctypes
import os
import struct
import sys
import time

TICK_NS = 1_000_000
US_NS = 1000
TFD_NONBLOCK = os.O_NONBLOCK
CLOCK_MONOTONIC = 1  # linux/time.h


class Ticker:
    """Notes how late an event loop is for a tick a millisecond.

    By a timerfd: uvloop's own timers are whole milliseconds, and what is asked is whether the loop
    is free in time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        self._next_ns = time.monotonic_ns() + TICK_NS
        first = (self._next_ns // 10**9, self._next_ns % 10**9)
        absolute = 1  # TFD_TIMER_ABSTIME
        spec = struct.pack("@4l", 0, TICK_NS, *first)
        if self._fd < 0 or self._libc.timerfd_settime(self._fd, absolute, spec, None):
            raise OSError(ctypes.get_errno(), "timerfd")
        self.late_ns: list[int] = []
        loop.add_reader(self._fd, self._tick)

    def _tick(self) -> None:
        expired = int.from_bytes(os.read(self._fd, 8), sys.byteorder)
        now_ns = time.monotonic_ns()
        for _ in range(expired):
            self.late_ns.append(now_ns - self._next_ns)
            self._next_ns += TICK_NS

    def close(self) -> None:
        """Stop ticking."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def late_p99_us(self) -> float:
        """Return the lateness that 99 of 100 ticks did not exceed."""
        return sorted(self.late_ns)[len(self.late_ns) * 99 // 100] / US_NS
