"""Name look-ups by the C library, on threads that nobody waits for.

getaddrinfo(3) cannot be cancelled and takes as long as resolv.conf says, a minute if no name server
answers. On the event loop's few worker threads some dead names would hold up every other name, and
the end of the process too.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from socket import SOCK_STREAM, getaddrinfo
from typing import Any

LOOKUPS_MAX = 128  # at once, given up ones included; a thread that waits takes about 50 KiB

Entry = tuple[Any, ...]  # what getaddrinfo returns, a socket address last


class SystemLookUp:
    """Looks names up with the system's resolver. Call it on one event loop only."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(LOOKUPS_MAX)

    async def __call__(self, name: str, family: int) -> Sequence[Entry]:
        """Return getaddrinfo's entries for name.

        Raises:
            OSError: it has none, or there is no thread for it.
        """
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Sequence[Entry]] = loop.create_future()

        def finish(settle: Callable[[Any], None], value: object) -> None:
            self._slots.release()
            if not answered.done():
                settle(value)

        def work() -> None:
            settle: Callable[[Any], None] = answered.set_result
            value: object
            try:
                value = getaddrinfo(name, None, family=family, type=SOCK_STREAM)
            except Exception as error:
                settle, value = answered.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finish, settle, value)

        try:
            threading.Thread(target=work, name="netsonde-lookup", daemon=True).start()
        except RuntimeError as error:
            self._slots.release()
            raise OSError(str(error)) from error
        return await answered
