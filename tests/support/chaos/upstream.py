"""The proxy's connection to the control plane, opened when it is needed."""

import asyncio
from collections.abc import AsyncIterator

from support.chaos.framing import Head, chunk, parse_head, read_chunks

PIECES = 20  # of a body that dribbles
LIMIT_BYTES = 4 << 20


class Upstream:
    """One kept-alive connection to the control plane; reopened when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(
        self, head: Head, body: bytes, *, part: int | None = None, seconds: float = 0.0
    ) -> None:
        """Send a request: whole, the first part of its body only, or in pieces over seconds."""
        writer = await self._opened()
        if seconds:
            await dribbled(writer, head.encode(len(body)), body, seconds)
        else:
            await written(writer, head.encode(len(body)) + (body if part is None else body[:part]))

    async def begin(self, head: Head) -> None:
        """Send the head of a request whose body comes in chunks; `write` sends them."""
        await written(await self._opened(), head.encode(None))

    async def write(self, data: bytes, *, seconds: float = 0.0) -> None:
        """Send bytes as they are, or a chunk of them in smaller ones over seconds."""
        assert self._streams is not None
        if seconds:
            await dribbled_chunks(self._streams[1], data, seconds)
        else:
            await written(self._streams[1], data)

    async def head(self) -> Head:
        """Read the head of one answer; its body is read by `body` or `chunks`.

        Raises:
            EOFError, OSError, FramingError: as `receive`.
        """
        assert self._streams is not None
        return parse_head(await self._streams[0].readuntil(b"\r\n\r\n"))

    async def body(self, head: Head) -> bytes:
        """Read an answer's body whose length its head tells."""
        assert self._streams is not None
        return await self._streams[0].readexactly(head.body_bytes)

    def chunks(self) -> AsyncIterator[bytes]:
        """Read an answer's body that comes in chunks."""
        assert self._streams is not None
        return read_chunks(self._streams[0])

    async def _opened(self) -> asyncio.StreamWriter:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self._port, limit=LIMIT_BYTES
            )
        return self._streams[1]

    async def receive(self) -> tuple[Head, bytes]:
        """Read one answer.

        Raises:
            EOFError: the server closed the connection.
            OSError: it broke.
            FramingError: the answer is none that can be passed on.
        """
        head = await self.head()
        body = await self.body(head)
        if head.is_last:
            self.close()
        return head, body

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def written(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write data and wait while too much is on its way.

    Raises:
        OSError: the connection is broken or closed.
    """
    if writer.transport.is_closing():
        raise ConnectionResetError("the connection was closed")
    writer.write(data)
    await writer.drain()


async def dribbled(writer: asyncio.StreamWriter, head: bytes, body: bytes, seconds: float) -> None:
    """Write a head at once and its body in pieces over seconds."""
    await written(writer, head)
    size = max(1, len(body) // PIECES)
    for at in range(0, len(body), size):
        await asyncio.sleep(seconds / PIECES)
        await written(writer, body[at : at + size])


async def dribbled_chunks(writer: asyncio.StreamWriter, data: bytes, seconds: float) -> None:
    """Write data as chunks over seconds."""
    size = max(1, len(data) // PIECES)
    for at in range(0, len(data), size):
        await asyncio.sleep(seconds / PIECES)
        await written(writer, chunk(data[at : at + size]))
