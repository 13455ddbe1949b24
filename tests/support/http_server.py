"""An HTTP server for tests that says exactly the bytes a test wants, plain or over TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

# Writes the answer to one request; the connection is closed afterwards.
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class HttpServer:
    """Where the server listens and what it was asked: whole request heads."""

    address: str
    port: int
    scheme: str
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The root of the server, without a slash at the end."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{host}:{self.port}"


def says(*chunks: bytes, pause_s: float = 0) -> Answer:
    """Answer with these bytes, pausing before each."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            if pause_s:
                await asyncio.sleep(pause_s)
            writer.write(chunk)
            await writer.drain()

    return answer


def response(status: str, body: bytes = b"", **headers: str) -> Answer:
    """Answer with a whole response; header names have underscores for dashes."""
    fields = {"Content-Length": str(len(body))}
    fields |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    return says(head.encode("latin-1") + b"\r\n" + body)


async def never(writer: asyncio.StreamWriter) -> None:
    """Answer nothing for as long as the test runs."""
    await asyncio.Event().wait()


@asynccontextmanager
async def http_server(
    routes: Mapping[str, Answer],
    *,
    address: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[HttpServer]:
    """Serve routes (by path, 404 for others) on a free port while the block runs."""
    known = HttpServer(address, 0, "https" if tls else "http")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            known.requests.append(head)
            answer = routes.get(head.split(" ")[1].partition("?")[0], response("404 Not Found"))
            await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client had seen enough
        finally:
            writer.close()

    server = await asyncio.start_server(serve, address, 0, ssl=tls)
    known.port = server.sockets[0].getsockname()[1]
    async with server:
        yield known
