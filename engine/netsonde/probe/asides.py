"""Questions that block, on threads that nobody waits for.

On the event loop's few worker threads some that hang would hold up every other one, and the end of
the process too.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Asides:
    """Calls functions beside the event loop, at most so many at once, given up ones included.

    Use it on one event loop only.
    """

    def __init__(self, name: str, at_once: int) -> None:
        self._name = name
        self._slots = asyncio.Semaphore(at_once)

    async def call(self, function: Callable[[], T]) -> T:
        """Return what function returns, or raise what it raises; it cannot be cancelled itself.

        Raises:
            OSError: there is no thread for it.
        """
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T] = loop.create_future()

        def finish(settle: Callable[[Any], None], value: object) -> None:
            self._slots.release()
            if not answered.done():
                settle(value)

        def work() -> None:
            settle: Callable[[Any], None] = answered.set_result
            value: object
            try:
                value = function()
            except Exception as error:
                settle, value = answered.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finish, settle, value)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError as error:
            self._slots.release()
            raise OSError(str(error)) from error
        return await answered
