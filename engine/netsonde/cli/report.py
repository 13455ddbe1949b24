"""What reports of any number of targets share: the exit code, the progress, and why it ends."""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Protocol

from netsonde.cli.exits import Exit
from netsonde.cli.loop import until
from netsonde.cli.measuring import exit_of
from netsonde.cli.output import Outlet, Progress, explain, has_colour, printable, uncoloured, warn
from netsonde.clock import Clock
from netsonde.errors import PrivilegeError
from netsonde.model import Failure, Outcome, TaskKind
from netsonde.probe.base import RunFailure

REDRAW_S = 0.1


class Drawn(Protocol):
    """What shows how far it is, where somebody watches."""

    is_wanted: bool

    def show(self, text: str) -> None:
        """Draw text in place of what was drawn before."""
        ...

    def clear(self) -> None:
        """Erase what is drawn, before something else is written."""
        ...


class Report(ABC):
    """Writes results as they come and keeps the exit code.

    `ended` is set when nothing can be gone on with; `check` says why. drawn: where the progress is
    shown, a line on standard error unless told otherwise.
    """

    def __init__(self, clock: Clock, kind: TaskKind, drawn: Drawn | None = None) -> None:
        self.code = Exit.OK
        self.total: int | None = None  # targets, where that is known
        self._clock = clock
        self._kind = kind
        self._progress = drawn or Progress()
        self._outlet = Outlet(self._progress.clear)
        self._has_colour = has_colour(sys.stdout)
        self._is_explained = False
        self._warned: set[str] = set()
        self._failure: PrivilegeError | None = None
        self._began_ns: int | None = None

    @property
    def ended(self) -> asyncio.Event:
        """Set when there is no use in going on."""
        return self._outlet.failed

    def begin(self) -> None:
        """Start the clock; what was asked for makes sense."""
        self._began_ns = self._clock.monotonic_ns()

    def check(self) -> None:
        """Raise what has ended it.

        Raises:
            PrivilegeError: no packet can be sent.
            OSError: nobody reads any more.
        """
        if (error := self._failure or self._outlet.error) is not None:
            raise error

    def give_up(self, error: PrivilegeError) -> None:
        """Go no further: every other target would end like this one."""
        self._failure = error
        self.ended.set()

    def warn(self, text: str) -> None:
        """Write a sentence on standard error, once."""
        if text in self._warned:
            return
        self._warned.add(text)
        self._progress.clear()
        warn(text)

    async def draw_progress(self) -> None:
        """Draw how far it is, until cancelled."""
        while self._progress.is_wanted:
            await asyncio.sleep(REDRAW_S)
            self._progress.show(self._progress_text())

    @abstractmethod
    def _progress_text(self) -> str:
        """Say how far it is."""

    def _write(self, text: str) -> None:
        """Write text with its colours, or without where none are wanted."""
        self._outlet.write(text if self._has_colour else uncoloured(text))

    def _judge(self, target: str, outcome: Outcome, failure: RunFailure | Failure) -> None:
        """Take a target's exit code; of what could not be measured the first is explained."""
        code = exit_of(outcome, failure.failure_source)
        self.code = max(self.code, code)
        if code > Exit.TARGET_FAILED and not self._is_explained:
            self._is_explained = True
            self._progress.clear()
            explain(f"{self._kind} {printable(target)}: {failure.message}")

    def _elapsed_ns(self) -> int:
        return self._clock.monotonic_ns() - (self._began_ns or 0)

    def _done_text(self, done: int) -> str:
        return f"{done} done" if self.total is None else f"{done} of {self.total} done"


async def watched(work: Coroutine[Any, Any, None], report: Report) -> None:
    """Do the work with its progress beside it, until it ends or nobody wants it any more."""
    async with asyncio.TaskGroup() as group:
        drawing = group.create_task(report.draw_progress())
        try:
            await until(report.ended, work)
        finally:
            drawing.cancel()
