"""Runs a world on a virtual loop of its own, and the word for what must not happen in one."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar
from unittest import mock

from netsonde.agent import telemetry
from support.lease_world.virtual_time import VirtualLoop
from support.spools import InlineExecutor

T = TypeVar("T")


class WrongError(AssertionError):
    """Something happened that must not, or did not happen that must."""


def must(holds: bool, what: str) -> None:
    """Raise unless it holds.

    Raises:
        WrongError: it does not.
    """
    if not holds:
        raise WrongError(what)


def run_world(make: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run what `make` makes to its end; nobody waits for real time."""
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    try:
        with (
            mock.patch("netsonde.spool.ThreadPoolExecutor", InlineExecutor),
            mock.patch("netsonde.agent.agent.quiet_collector", nullcontext),  # nobody is timed
            mock.patch.object(telemetry, "EVERYTHING", telemetry.YOUNG),
        ):
            asyncio.set_event_loop(loop)
            return loop.run_until_complete(_to_the_end(make(loop)))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        logging.disable(logging.NOTSET)


async def while_watched(work: Coroutine[Any, Any, None], watch: Coroutine[Any, Any, None]) -> None:
    """Wait for work to end; raise at once what watch raises."""
    loop = asyncio.get_running_loop()
    working, watching = loop.create_task(work), loop.create_task(watch)
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Leave no task behind, so that the loop can be closed."""
    try:
        return await work
    finally:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
