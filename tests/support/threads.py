"""The native threads of this process's echo engines."""

import contextlib
import time
from pathlib import Path

CPU_CLOCK = 6  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, linux/posix-timers.h


def _pump_threads() -> list[int]:
    """Return the ids of those there are."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (task / "comm").read_text() == "netsonde-pump\n":
                found.append(int(task.name))
    return found


def await_pump_threads(wanted: int) -> list[int]:
    """Return their ids once there are so many: they name themselves, and end, in their own time."""
    found: list[int] = []
    for _ in range(1000):
        found = _pump_threads()
        if len(found) == wanted:
            break
        time.sleep(0.005)
    assert len(found) == wanted
    return found


def cpu_ns(thread: int) -> int:
    """Return the processor time that a thread of this process has used."""
    return time.clock_gettime_ns(~thread << 3 | CPU_CLOCK)
