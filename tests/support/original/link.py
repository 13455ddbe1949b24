"""The way between an agent and a control plane on a virtual loop, with its outages."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from random import Random

from netsonde.control_plane import TransportRequest, TransportResponse, TransportStream
from netsonde.errors import TransportError

Handler = Callable[[TransportRequest], Awaitable[TransportResponse]]
LATENCY_MAX_S = 0.04


class WithoutStreams:
    """A way that carries no streams: nobody asks an original control plane for one."""

    def stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None = None
    ) -> AbstractAsyncContextManager[TransportStream]:
        """Fail the test."""
        raise AssertionError(f"{request.operation} was asked for as a stream")


class Link(WithoutStreams):
    """Carries requests to `handler`, and is a transport of our agent's too.

    While it is `cut` nothing goes through and nobody hears so: what is under way arrives when it
    heals, as TCP sees to, unless its caller has given up. `reset` breaks what is under way, `down`
    refuses what comes; both are heard of at once. `on_lost` gets the answers that never arrived.
    """

    def __init__(self, handler: Handler, rng: Random, base_url: str = "http://192.0.2.10") -> None:
        self.handler = handler
        self.base_url = base_url
        self.is_down = False
        self.on_lost: Callable[[TransportRequest, TransportResponse], None] = lambda _, __: None
        self._rng = rng
        self._whole = asyncio.Event()
        self._whole.set()
        self._flying: dict[
            asyncio.Task[TransportResponse], None
        ] = {}  # in order: a seed is one world

    @property
    def is_cut(self) -> bool:
        """Whether nothing goes through."""
        return not self._whole.is_set()

    def cut(self) -> None:
        """Let nothing through from now on."""
        self._whole.clear()

    def heal(self) -> None:
        """Let everything through again."""
        self._whole.set()

    def reset(self) -> None:
        """Break every connection."""
        for task in tuple(self._flying):
            task.cancel()

    async def call(self, request: TransportRequest) -> TransportResponse:
        """Carry one request and its answer.

        Raises:
            TransportError: no complete answer came.
        """
        task = asyncio.get_running_loop().create_task(self._carry(request))
        self._flying[task] = None
        timeout_s = None if math.isinf(request.timeout_s) else request.timeout_s
        try:
            await asyncio.wait((task,), timeout=timeout_s)
        finally:
            self._flying.pop(task, None)
            task.cancel()
        if not task.done():
            raise TransportError(request.operation, f"no answer within {timeout_s} s")
        if task.cancelled():
            raise TransportError(request.operation, "connection reset by peer")
        return task.result()

    async def close(self) -> None:
        """Nothing is open."""

    async def _carry(self, request: TransportRequest) -> TransportResponse:
        await self._travel()
        if self.is_down:
            raise TransportError(request.operation, "connection refused")
        response = await self.handler(request)
        try:
            await self._travel()
        except asyncio.CancelledError:
            self.on_lost(request, response)
            raise
        return response

    async def _travel(self) -> None:
        await asyncio.sleep(self._rng.random() * LATENCY_MAX_S)
        await self._whole.wait()
