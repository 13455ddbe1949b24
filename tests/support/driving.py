"""Run a coroutine to its end under a manual clock."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from netsonde.clock import NS_PER_S, ManualClock

T = TypeVar("T")

TURNS = 400  # of the loop: more than any chain of calls that waits for nothing needs


async def finish(
    clock: ManualClock, work: Coroutine[Any, Any, T], limit_ns: int = 86_400 * NS_PER_S
) -> T:
    """Return what work returns, moving the clock whenever everybody sleeps."""
    end_ns = clock.boottime_ns() + limit_ns
    failure: list[Exception] = []
    results: list[T] = []

    async def run() -> None:
        try:
            results.append(await work)
        except Exception as error:
            failure.append(error)  # raised below, out of the group

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        while True:
            await clock.settle(TURNS)
            if task.done():
                break
            wake_ns = clock.next_wake_ns
            assert wake_ns is not None, "everybody waits, and nobody for the clock"
            assert wake_ns <= end_ns, "still not done"
            await clock.advance(wake_ns - clock.boottime_ns())
    if failure:
        raise failure[0]
    return results[0]
