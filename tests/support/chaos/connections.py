"""The agents' side of the proxy: connections that tell when an agent has left."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

READ_BYTES = 65_536
AWAY_S = 2.0  # what an agent sends still, after it was answered, is read for so long


class LeftError(Exception):
    """The agent closed its connection before it had an answer."""


# How a connection may end: by either side, by bytes that are no message or make no sense, with the
# rig.
OVER = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    LeftError,
    asyncio.LimitOverrunError,
    asyncio.CancelledError,
)


class AgentReader(asyncio.StreamReader):
    """A stream that tells when its other end has closed it, without reading what is in it."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.left = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.left.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.left.set()


async def read_away(reader: asyncio.StreamReader) -> None:
    """Read what still comes until the agent leaves, not for long.

    Closing with bytes unread is a reset, and would take away the answer that was just written.
    """
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(AWAY_S):
            while await reader.read(READ_BYTES):
                pass


async def until_left(reader: AgentReader, work: Coroutine[Any, Any, bool]) -> bool:
    """Do work unless the agent closes its connection first, which ends it.

    Raises:
        LeftError: it did.
        OSError: work did, as the way to the server broke.
    """
    failures: list[Exception] = []

    async def guarded() -> bool:
        try:
            return await work
        except (OSError, EOFError, ValueError, LookupError) as error:
            failures.append(error)
            return False

    async with asyncio.TaskGroup() as group:
        working = group.create_task(guarded())
        leaving = group.create_task(reader.left.wait())
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        working.cancel()
    if failures:
        raise failures[0]
    if working.cancelled():
        raise LeftError
    return working.result()
