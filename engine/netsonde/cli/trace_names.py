"""Reverse DNS of the addresses that traces met, asked for when nothing is timed any more."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

from netsonde.probe.dns.reverse import ReverseResolver

AT_ONCE_MAX = 32  # questions
WAIT_S = 4.0  # for all addresses of a trace
KEPT_MAX = 4096  # addresses whose names are remembered

Ask = Callable[[str], Awaitable[str | None]]


class ReverseNames:
    """Finds the names of addresses, and asks for each only once; used as a context.

    ask: returns an address's name, None for none; it raises nothing.
    """

    def __init__(self, ask: Ask | None = None, *, wait_s: float = WAIT_S) -> None:
        self._ask = ask or ReverseResolver().name_of
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._asked: dict[str, asyncio.Task[str | None]] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        """Give up what is still being asked."""
        for task in self._asked.values():
            task.cancel()
        await self._group.__aexit__(*error)

    async def of(self, addresses: Iterable[str]) -> dict[str, str]:
        """Return the names that are known in time, by address."""
        wanted = {address: self._question(address) for address in dict.fromkeys(addresses)}
        if wanted:
            await asyncio.wait(wanted.values(), timeout=self._wait_s)
        found = ((address, task.result()) for address, task in wanted.items() if task.done())
        return {address: name for address, name in found if name}

    def _question(self, address: str) -> asyncio.Task[str | None]:
        """Return the question for an address's name, asked now unless it has been."""
        if address not in self._asked:
            self._forget()
            self._asked[address] = self._group.create_task(self._answer(address))
        return self._asked[address]

    def _forget(self) -> None:
        """Make room for one more; a question under way keeps its place."""
        if len(self._asked) >= KEPT_MAX:
            oldest = next((name for name, task in self._asked.items() if task.done()), None)
            if oldest is not None:
                del self._asked[oldest]

    async def _answer(self, address: str) -> str | None:
        async with self._slots:
            return await self._ask(address)
