"""How the original agent runs leases: one dispatcher, a queue and a pool per kind, one extender.

Every queue is bounded, and whoever finds one full waits; that is how one call that never succeeds
comes to stop everything.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from support.original.client import OriginalClient
from support.original.messages import Lease

POOLS: Mapping[str, int] = {"dns": 4, "http": 2, "tcp": 2, "ping": 2, "trace": 1}
DISPATCH_QUEUE = 64
KIND_QUEUE = 32
COMMAND_QUEUE = 128
EXTEND_EVERY_S = 2.0
EXTEND_BY_MS = 500


@dataclass(eq=False, slots=True)
class Assignment:
    """A lease, and what says that it must not be worked on any more."""

    lease: Lease
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Tracked:
    assignment: Assignment
    deadline_s: float


class Extender:
    """Extends whatever is tracked; cancels what has expired when it next does anything.

    While a call is being retried it does nothing else, and its queue fills.
    """

    def __init__(self, client: OriginalClient) -> None:
        self.commands: asyncio.Queue[Assignment | int] = asyncio.Queue(COMMAND_QUEUE)
        self.tracked: dict[int, _Tracked] = {}
        self._client = client

    async def track(self, assignment: Assignment) -> None:
        """Begin to extend a lease."""
        await self.commands.put(assignment)

    async def finish(self, lease_id: int) -> None:
        """Extend a lease no longer."""
        await self.commands.put(lease_id)

    async def run(self) -> None:
        """Work for ever. The first tick is due at once, a late one puts the next ones off."""
        now = asyncio.get_running_loop().time
        next_tick_s = now()
        while True:
            left_s = max(next_tick_s - now(), 0.0) if self.tracked else None
            try:
                async with asyncio.timeout(left_s):
                    command = await self.commands.get()
            except TimeoutError:
                next_tick_s = now() + EXTEND_EVERY_S
                await self._extend()
            else:
                self._obey(command, now())
            self._cancel_expired(now())

    def _obey(self, command: Assignment | int, now_s: float) -> None:
        if isinstance(command, int):
            self.tracked.pop(command, None)
        else:
            lease = command.lease
            self.tracked[lease.lease_id] = _Tracked(command, now_s + lease.lease_until_ms / 1000)

    async def _extend(self) -> None:
        outcomes = await self._client.extend(list(self.tracked), EXTEND_BY_MS)
        now_s = asyncio.get_running_loop().time()
        for outcome in outcomes:
            tracked = self.tracked.get(outcome.lease_id)
            if tracked is not None:
                tracked.deadline_s = now_s + outcome.new_deadline_ms / 1000

    def _cancel_expired(self, now_s: float) -> None:
        for lease_id, tracked in list(self.tracked.items()):
            if tracked.deadline_s <= now_s:
                tracked.assignment.cancelled.set()
                del self.tracked[lease_id]


class Windows:
    """How much may run at once: a window per kind, halved by an error, one wider after a success.

    The sum over all kinds is bounded too, by the sum of the pools.
    """

    def __init__(self, pools: Mapping[str, int]) -> None:
        self.running = dict.fromkeys(pools, 0)
        self._most = dict(pools)
        self._windows = {kind: float(size) for kind, size in pools.items()}
        self._changed = asyncio.Condition()

    async def acquire(self, kind: str) -> None:
        """Wait for room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_room(kind))
            self.running[kind] += 1

    async def release(self, kind: str) -> None:
        """Give room back."""
        async with self._changed:
            self.running[kind] -= 1
            self._changed.notify_all()

    def succeeded(self, kind: str) -> None:
        """Widen a kind's window."""
        self._windows[kind] = min(self._windows[kind] + 1, self._most[kind])

    def failed(self, kind: str) -> None:
        """Halve a kind's window."""
        self._windows[kind] = max(self._windows[kind] / 2, 1)

    def _has_room(self, kind: str) -> bool:
        return sum(self.running.values()) < sum(self._most.values()) and self.running[kind] < int(
            self._windows[kind]
        )
