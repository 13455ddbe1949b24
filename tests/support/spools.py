"""Spools for tests, without their thread where a manual clock's turns are all there is."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

import pytest

from netsonde.clock import Clock
from netsonde.errors import StorageError
from netsonde.spool import Spool, SpoolLimits, SpoolRecord

T = TypeVar("T")

EVERYTHING = 1 << 30  # bytes


class InlineExecutor(Executor):
    """Does the work where it is submitted; takes what a thread pool takes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.is_shut_down = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.is_shut_down = True


def inline_spools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every spool opened from now on work on the caller's thread."""
    monkeypatch.setattr("netsonde.spool.queue.ThreadPoolExecutor", InlineExecutor)


class SpoolFaults:
    """Lets a spool refuse, as a full disk would, for as long as `error` is set."""

    def __init__(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: StorageError | None = None
        self.refused = 0
        write = spool._file.write

        def faulty(group: Any) -> None:
            if self.error is not None:
                self.refused += 1
                raise self.error
            write(group)

        monkeypatch.setattr(spool._file, "write", faulty)


async def open_spool(folder: Path, clock: Clock, **limits: int) -> Spool:
    """Open a spool in folder."""
    return await Spool.open(folder / "spool.db", SpoolLimits(**limits), clock)


async def fill(spool: Spool, count: int, first: int = 1) -> None:
    """Append count results at once: they share commits."""
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            group.create_task(spool.append(number, b"body %d" % number, cancelled=number % 2 == 0))


async def everything(spool: Spool) -> list[SpoolRecord]:
    """Return all results that wait."""
    return [*await spool.pending(1_000_000, EVERYTHING)]
