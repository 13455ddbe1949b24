"""The event loop of every command, and what signals do to it."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvloop

from netsonde.cli.exits import Exit

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop; Ctrl-C cancels it and comes out as KeyboardInterrupt."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    finally:
        main.close()  # without descriptors there is no loop, and Python warns of what never began


@contextmanager
def draining(drain: Callable[[], object]) -> Iterator[None]:
    """Call drain on the first SIGINT or SIGTERM; a second one ends the process at once.

    That is safe: whatever was promised to anybody is already on disk.
    """
    loop = asyncio.get_running_loop()
    signals = iter((drain,))

    def on_signal() -> None:
        first = next(signals, None)
        if first is None:
            os._exit(Exit.INTERRUPTED)
        first()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def until(stopped: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Run work until it ends or stopped is set; None says that it was stopped."""
    async with asyncio.TaskGroup() as group:
        worker = group.create_task(work)
        waiter = group.create_task(stopped.wait())
        await asyncio.wait((worker, waiter), return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        worker.cancel()
    return None if worker.cancelled() else worker.result()
