"""A relay between real sockets that cuts connections at random places."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

READ_BYTES = 4096


class CuttingRelay:
    """Passes bytes on to a port, and breaks its next `left` connections after some of them.

    Where a connection breaks is drawn anew for each: after up to `most` bytes, both ways together.
    Half of them are reset, half are closed.
    """

    def __init__(self, port: int, rng: Random, *, cuts: int, most: int) -> None:
        self.left = cuts
        self._port = port
        self._rng = rng
        self._most = most
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve; yields the relay's URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for each in self._open:
                each.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        budget = _Budget(self._rng.randint(1, self._most) if self.left > 0 else None)
        ends = {writer, up_writer}
        self._open |= ends
        async with asyncio.TaskGroup() as group:
            ways = [
                group.create_task(_pass(reader, up_writer, budget)),
                group.create_task(_pass(up_reader, writer, budget)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        self._open -= ends
        self.left -= budget.is_spent
        for each in ends:
            if budget.is_spent and self._rng.random() < 0.5:
                each.transport.abort()
            else:
                each.close()


class _Budget:
    """How many bytes may pass; None: any number."""

    def __init__(self, left: int | None) -> None:
        self._left = left

    @property
    def is_spent(self) -> bool:
        return self._left == 0

    def take(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        return data


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: _Budget
) -> None:
    with suppress(OSError):
        while not budget.is_spent and (data := await reader.read(READ_BYTES)):
            writer.write(budget.take(data))
            await writer.drain()
