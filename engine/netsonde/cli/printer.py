"""Writing beside the event loop: a reader that does not read must not stop what is measured."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable

STUCK_AFTER_S = 1.0  # a write that takes longer waits for somebody who does not read


class Printer:
    """Runs one write at a time on a thread; whoever awaits it waits, the event loop does not."""

    def __init__(self) -> None:
        self._idle = threading.Event()
        self._idle.set()

    async def write(self, write: Callable[[], None]) -> None:
        """Run a write and wait for it.

        Raises:
            OSError: what write raised, such as BrokenPipeError.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: OSError | None) -> None:
            if done.done():
                return  # who waited was cancelled
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def work() -> None:
            error = None
            try:
                write()
            except OSError as caught:
                error = caught
            finally:
                self._idle.set()
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
                loop.call_soon_threadsafe(settle, error)

        self._idle.clear()
        # A daemon, because a write that never ends must not keep the process.
        threading.Thread(target=work, name="printer", daemon=True).start()
        await done

    def leave(self, code: int) -> None:
        """End the process with code if a write is stuck, which holds what an orderly end needs."""
        if not self._idle.wait(STUCK_AFTER_S):
            os._exit(code)
