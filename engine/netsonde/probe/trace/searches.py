"""Carries searches, which decide from answer to answer what to send next, over an engine."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from netsonde.probe.trace.answers import Answer, Stop
from netsonde.probe.trace.driver import TraceDriver, TraceRun

ProbeT = TypeVar("ProbeT")

IN_FLIGHT_MAX = 512  # probes of one search: a run, a task and a future each


class Search(Protocol[ProbeT]):
    """What to send next, decided without I/O."""

    def due(self) -> Sequence[ProbeT]:
        """Return the probes that may be sent now; none twice."""
        ...

    def take(self, probe: ProbeT, answer: Answer | None) -> None:
        """Learn what came of one; None: nothing, however often it was asked."""
        ...


async def carry(
    driver: TraceDriver, search: Search[ProbeT], run_of: Callable[[ProbeT], TraceRun]
) -> None:
    """Send what a search asks for until it asks for nothing more and nothing is under way.

    Raises:
        NetsondeError: the engine cannot send it, or was closed.
    """
    waiting: deque[ProbeT] = deque()
    ended: deque[tuple[ProbeT, Answer | None]] = deque()
    news = asyncio.Event()
    under_way = 0

    async def ask(probe: ProbeT) -> None:
        ended.append((probe, await _ask(driver, run_of(probe))))
        news.set()

    try:
        async with asyncio.TaskGroup() as group:
            while True:
                waiting.extend(search.due())
                while waiting and under_way < IN_FLIGHT_MAX:
                    group.create_task(ask(waiting.popleft()))
                    under_way += 1
                if not under_way:
                    return
                await news.wait()
                news.clear()
                under_way -= len(ended)
                while ended:
                    search.take(*ended.popleft())
    except ExceptionGroup as failures:  # one engine's: they are all the same
        raise failures.exceptions[0] from None


async def _ask(driver: TraceDriver, run: TraceRun) -> Answer | None:
    """Send the probe of one TTL, again while it owes an answer; return the first in time."""
    traced = await driver.run(run)
    if traced.stop is Stop.TX_ERROR:
        return None
    return next((each for each in traced.answers if each.is_counted), None)
