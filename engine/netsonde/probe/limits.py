"""How long a probe waits: a time-out that a standstill of this host does not bring about."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from netsonde.clock import NS_PER_S

LATE_S = 0.01  # a timer that fires later than this tells of a loop that stood still
GRACE_S = 0.05  # in which a loop that runs again reads all that came


@asynccontextmanager
async def time_limit(timeout_ns: int) -> AsyncIterator[None]:
    """Raise TimeoutError once the block has taken timeout_ns, as `asyncio.timeout` does.

    A loop that stood still (a stopped process, a host without a processor to spare) finds its
    timers due before it has read what came meanwhile, and a target would be blamed that had
    answered in time. Then the block has GRACE_S more.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + max(timeout_ns, 0) / NS_PER_S
    async with asyncio.timeout(None) as scope:

        def expire() -> None:
            now = loop.time()
            scope.reschedule(now + GRACE_S if now - due > LATE_S else now)

        timer = loop.call_at(due, expire)
        try:
            yield
        finally:
            timer.cancel()
