"""Runs a world on a virtual loop of its own, and the word for what must not happen in one."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from netsonde.agent import telemetry
from support.lease_world.virtual_time import VirtualLoop
from support.spools import InlineExecutor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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


def told(summary: "DataclassInstance") -> str:
    """Return a summary in one line."""
    parts = []
    for each in fields(summary):
        value = getattr(summary, each.name)
        if isinstance(value, Counter):
            value = f"({', '.join(f'{count} {what}' for what, count in sorted(value.items()))})"
        parts.append(f"{each.name} {value}")
    return ", ".join(parts)


def run_world(make: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run what `make` makes to its end; nobody waits for real time."""
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    try:
        with (
            mock.patch("netsonde.spool.queue.ThreadPoolExecutor", InlineExecutor),
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
