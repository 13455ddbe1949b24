"""The rig's processes: started in sessions of their own, ended by pid, gone when the rig is."""

import asyncio
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, Signals
from time import CLOCK_BOOTTIME, clock_gettime_ns

from support.chaos.evidence import Lived, Sampled
from support.chaos.journal import Journal

TESTS = Path(__file__).resolve().parents[2]
# What is tested is this tree, whatever is installed: its commit is what a run names.
SOURCES = f"{TESTS}{os.pathsep}{TESTS.parent / 'engine'}"
END_TIMEOUT_S = 40.0  # an agent drains for 20 s and flushes for 5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def now_ns() -> int:
    """Return this host's CLOCK_BOOTTIME."""
    return clock_gettime_ns(CLOCK_BOOTTIME)


class Process:
    """One program that is started again and again; each life is written down."""

    def __init__(self, who: str, arguments: list[str], log: Path, events: Journal) -> None:
        self.who = who
        self._command = [sys.executable, "-m", *arguments]
        setpriv = shutil.which("setpriv")
        if setpriv is not None:  # the kernel ends it with the rig, however that ends
            self._command = [setpriv, "--pdeathsig", "KILL", "--", *self._command]
        self._log = log
        self._events = events
        self._running: asyncio.subprocess.Process | None = None
        self.begun_ns = 0  # when it was started last

    @property
    def pid(self) -> int:
        """The pid of the running process."""
        assert self._running is not None
        return self._running.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended by itself."""
        return self._running is not None and self._running.returncode is None

    @property
    def has_died(self) -> bool:
        """Whether it was started and has ended by itself."""
        return self._running is not None and self._running.returncode is not None

    async def start(self) -> None:
        """Start it; it must not be running."""
        assert self._running is None
        self.begun_ns = now_ns()
        with self._log.open("ab") as log:
            self._running = await asyncio.create_subprocess_exec(
                *self._command,
                env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": SOURCES},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: Signals) -> None:
        """Send a signal to it, where it still runs."""
        if self.is_running:
            os.kill(self.pid, number)

    async def end(self, number: Signals = SIGKILL) -> int:
        """Send a signal and wait for the end, not for ever; return the exit status."""
        running, self._running = self._running, None
        assert running is not None
        how = number.name
        if running.returncode is None:
            os.kill(running.pid, number)
            os.kill(running.pid, SIGCONT)
        else:
            how = "by itself"
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                status = await running.wait()
        except TimeoutError:
            how += ", then SIGKILL"
            os.kill(running.pid, SIGKILL)
            status = await running.wait()
        finally:
            if running.returncode is None:
                os.kill(running.pid, SIGKILL)
        self._events.write(
            Lived(
                who=self.who, pid=running.pid, begun=self.begun_ns, ended=now_ns(), how=how,
                status=status,
            )
        )  # fmt: skip
        return status

    @contextmanager
    def limited(self, which: int, soft: int) -> Iterator[None]:
        """Lower a soft resource limit of the running process for the duration of the block.

        Raises:
            ProcessLookupError: it has ended.
        """
        pid = self.pid
        before, hard = resource.prlimit(pid, which)
        resource.prlimit(pid, which, (soft, hard))
        try:
            yield
        finally:
            if self.is_running:  # it may have ended for want of what it was denied
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, which, (before, hard))

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 (names are enough)

    def sample(self) -> Sampled:
        """Measure its size now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return Sampled(
            at=now_ns(), who=self.who, rss_bytes=pages * PAGE_BYTES, fds=self.descriptors()
        )
