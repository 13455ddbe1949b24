"""What an agent says of itself: who it is at registration, how it feels in every heartbeat."""

import asyncio
import gc
import os
import platform
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.metrics import Durations
from netsonde.spool import Spool

TICK_NS = 250 * NS_PER_MS  # the loop's lag is sampled this often: 4 wake-ups a second
TICKS_KEPT = 480  # two minutes: longer than any heartbeat interval we ask for
COLLECT_NS = 10 * NS_PER_S  # young objects: a pass looks only at those made since the last one
COLLECT_ALL_PASSES = 60  # every tenth minute the old ones too
YOUNG, EVERYTHING = 1, 2  # generations, gc(3)


class Telemetry:
    """Watches the loop and the process. `run` samples; `health` is what the heartbeat carries.

    `on_lag` hears how late the loop was, at every sample; `lags` counts that.
    """

    def __init__(self, clock: Clock, spool: Spool) -> None:
        self._clock = clock
        self._spool = spool
        self.on_lag: Callable[[int], None] = lambda _: None
        self.lags = Durations()
        self._lags_ns: deque[int] = deque(maxlen=TICKS_KEPT)

    async def run(self) -> None:
        """Sample the loop's lag and collect garbage, both until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample())
            group.create_task(self._collect())

    def health(self) -> dict[str, Any]:
        """Return the snapshot that a heartbeat carries."""
        return {
            "loop_lag_ms_p99": self.lag_p99_ns() / NS_PER_MS,
            "rss_bytes": rss_bytes(),
            "fds": open_files(),
            "spool": {
                "rows": self._spool.rows,
                "bytes": self._spool.size_bytes,
                "oldest_ms": self.oldest_ns() // NS_PER_MS,
                "full": self._spool.is_full,  # nothing is claimed meanwhile
            },
            "clock": self._clock.quality().as_env(),
        }

    def oldest_ns(self) -> int:
        """Return how long the oldest result has waited in the spool."""
        oldest_ns = self._spool.oldest_ns
        # The wall clock may have been stepped back since the result was spooled.
        return 0 if oldest_ns is None else max(0, self._clock.realtime_ns() - oldest_ns)

    def lag_p99_ns(self) -> int:
        """Return the lag that one tick in a hundred exceeds; 0 before the first tick."""
        ordered = sorted(self._lags_ns)
        return ordered[max(0, -(-99 * len(ordered) // 100) - 1)] if ordered else 0

    async def _sample(self) -> None:
        while True:
            started_ns = self._clock.monotonic_ns()
            await self._clock.sleep(TICK_NS)
            lag_ns = max(0, self._clock.monotonic_ns() - started_ns - TICK_NS)
            self._lags_ns.append(lag_ns)
            self.lags.observe(lag_ns)
            self.on_lag(lag_ns)

    async def _collect(self) -> None:
        passes = 0
        while True:
            await self._clock.sleep(COLLECT_NS)
            passes += 1
            gc.collect(EVERYTHING if passes % COLLECT_ALL_PASSES == 0 else YOUNG)


def inventory(
    labels: Mapping[str, str], addresses: frozenset[str], capabilities: Mapping[str, bool]
) -> dict[str, Any]:
    """Describe this host for registration."""
    return {
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "mem_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "addresses": sorted(addresses),
        "capabilities": dict(capabilities),
        "labels": dict(labels),
    }


def boot_id() -> str | None:
    """Return what names this boot of the kernel, None where there is no such file."""
    return _first_line("/proc/sys/kernel/random/boot_id")


def rss_bytes() -> int:
    """Return the memory this process has resident, 0 where the kernel does not say."""
    fields = (_first_line("/proc/self/statm") or "").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def open_files() -> int:
    """Return how many descriptors this process has open, 0 where the kernel does not say."""
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # one is the listing's own
    except OSError:
        return 0


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text("ascii").partition("\n")[0]
    except OSError:
        return None
