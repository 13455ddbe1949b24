"""The HTTP transport against a real server on loopback."""

import asyncio
import gzip
import os
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from netsonde.control_plane.http import HELD_CONNECTIONS_MAX, HttpControlPlaneTransport
from netsonde.control_plane.transport import TransportRequest, TransportResponse
from netsonde.errors import TransportError
from netsonde.tls import ClientTls
from support.certificates import make_certificate
from support.transport_contract import (
    Connect,
    ConnectStream,
    Handler,
    Pieces,
    StreamContract,
    TransportContract,
    request,
)


def adapted(handler: Handler) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Serve a transport handler over HTTP; a TransportError of its breaks the connection."""

    async def serve(received: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await handler(
                TransportRequest(
                    method=received.method,
                    path=received.raw_path,
                    headers=received.headers,
                    body=await received.read(),
                    timeout_s=5.0,
                )
            )
        except TransportError:
            assert received.transport is not None
            received.transport.abort()
            return web.Response()
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    return serve


@asynccontextmanager
async def http_server(handler: Handler) -> AsyncIterator[int]:
    async with served(adapted(handler)) as port:
        yield port


@asynccontextmanager
async def served(
    serve: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> AsyncIterator[int]:
    server = web.Server(serve, handler_cancellation=True)
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[HttpControlPlaneTransport]:
    """Serve one connection by hand and give the transport that talks to it."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    transport = HttpControlPlaneTransport(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield transport
    finally:
        await transport.close()
        server.close()
        await server.wait_closed()


class TestHttpTransport(TransportContract):
    @pytest.fixture
    async def connect(self) -> AsyncIterator[Connect]:
        async with AsyncExitStack() as stack:

            async def connect(handler: Handler) -> HttpControlPlaneTransport:
                port = await stack.enter_async_context(http_server(handler))
                transport = HttpControlPlaneTransport(f"http://127.0.0.1:{port}")
                stack.push_async_callback(transport.close)
                return transport

            yield connect


def adapted_stream(pieces: Pieces) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Serve pieces over HTTP; a TransportError of theirs breaks the connection."""

    async def serve(received: web.BaseRequest) -> web.StreamResponse:
        sent = TransportRequest(method=received.method, path=received.raw_path, timeout_s=5.0)
        response = web.StreamResponse(headers={"Netsonde-Protocol": "1"})
        async with aclosing(pieces(sent, received.content.iter_any())) as chunks:
            try:
                await response.prepare(received)
                async for chunk in chunks:
                    await response.write(chunk)
            except TransportError:
                assert received.transport is not None
                received.transport.abort()
        return response

    return serve


class TestHttpStreams(StreamContract):
    @pytest.fixture
    async def connect_stream(self) -> AsyncIterator[ConnectStream]:
        async with AsyncExitStack() as stack:

            async def connect(pieces: Pieces) -> HttpControlPlaneTransport:
                port = await stack.enter_async_context(served(adapted_stream(pieces)))
                transport = HttpControlPlaneTransport(f"http://127.0.0.1:{port}")
                stack.push_async_callback(transport.close)
                return transport

            yield connect


async def refusal_of(transport: HttpControlPlaneTransport, **changes: object) -> str:
    with pytest.raises(TransportError) as caught:
        await transport.call(request(**changes))  # type: ignore[arg-type]
    await transport.close()
    return str(caught.value)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_refused_connection_is_said_in_words() -> None:
    port = unused_port()

    said = await refusal_of(HttpControlPlaneTransport(f"http://127.0.0.1:{port}"))

    assert said == f"claim: connection refused by 127.0.0.1:{port}"


async def test_a_process_without_descriptors_says_what_to_do() -> None:
    transport = HttpControlPlaneTransport(f"http://127.0.0.1:{unused_port()}")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 8, before[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        said = await refusal_of(transport)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for each in taken:
            os.close(each)

    assert "too many open files: raise this process's limit (ulimit -n" in said


async def test_a_name_that_does_not_resolve_is_said_in_words() -> None:
    said = await refusal_of(HttpControlPlaneTransport("http://control.invalid:8080"))

    assert said.startswith("claim: the name in control.invalid:8080 cannot be resolved")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed the connection before it answered"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", "broke off"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", "does not speak HTTP"),
    ],
)
async def test_a_broken_answer_is_said_in_words(answer: bytes, said: str) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async with raw_server(serve) as transport:
        assert said in await refusal_of(transport)


async def test_a_reset_in_the_middle_of_a_body_is_a_broken_answer() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async with raw_server(serve) as transport:
        said = await refusal_of(transport)

    assert "127.0.0.1" in said
    assert "broke" in said


async def test_a_slow_body_ends_at_the_timeout() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not reader.at_eof():
            writer.write(b"x")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await reader.read(1)

    async with raw_server(serve) as transport:
        said = await refusal_of(transport, timeout_s=0.2)

    assert said.endswith("within 0.2 s")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 999999999999", b"Transfer-Encoding: chunked"]
)
async def test_an_endless_body_is_cut_short(framing: bytes) -> None:
    sent = 0

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        chunk = b"x" * 65_536
        if b"chunked" in framing:
            chunk = b"10000\r\n" + chunk + b"\r\n"
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)

    async with raw_server(serve) as transport:
        said = await refusal_of(transport, answer_max_bytes=100_000)

    assert said.endswith("larger than 100000 bytes")
    assert sent < 64 << 20


async def test_a_compressed_answer_is_refused_unread() -> None:
    bomb = gzip.compress(bytes(10 << 20))

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        writer.write(head.encode() + bomb)

    async with raw_server(serve) as transport:
        assert "compressed its answer (gzip)" in await refusal_of(transport)


async def test_a_redirect_is_an_answer_and_takes_no_token_along() -> None:
    asked: list[str] = []

    async def handler(request: TransportRequest) -> TransportResponse:
        asked.append(request.path)
        return TransportResponse(307, {"Location": "/elsewhere"})

    async with http_server(handler) as port:
        transport = HttpControlPlaneTransport(f"http://127.0.0.1:{port}")
        answer = await transport.call(request("/v1/agents/claim"))
        await transport.close()

    assert (answer.status, asked) == (307, ["/v1/agents/claim"])


async def test_the_certificate_is_verified(tmp_path: Path) -> None:
    """A server whose certificate nobody signed gets no request, unless it is trusted by name."""
    certificate, key = make_certificate(tmp_path, "127.0.0.1", "untrusted.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trusting = ClientTls(ca=certificate)
    served = 0

    async def serve(_: web.BaseRequest) -> web.StreamResponse:
        nonlocal served
        served += 1
        return web.Response()

    runner = web.ServerRunner(web.Server(serve), handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    address = f"https://127.0.0.1:{runner.addresses[0][1]}"

    said = await refusal_of(HttpControlPlaneTransport(address))
    assert "certificate of 127.0.0.1" in said
    assert served == 0

    transport = HttpControlPlaneTransport(address, tls=trusting)
    assert (await transport.call(request())).status == 200
    await transport.close()
    await runner.cleanup()


async def test_tls_with_a_server_that_has_none_is_said_in_words() -> None:
    async def handler(_: TransportRequest) -> TransportResponse:
        return TransportResponse(200)

    async with http_server(handler) as port:
        said = await refusal_of(HttpControlPlaneTransport(f"https://127.0.0.1:{port}"))

    assert said.startswith(f"claim: TLS with 127.0.0.1:{port} failed")


async def test_long_polls_do_not_take_the_others_connections() -> None:
    release = asyncio.Event()
    waiting = 0

    async def handler(request: TransportRequest) -> TransportResponse:
        nonlocal waiting
        if request.path == "/held":
            waiting += 1
            await release.wait()
        return TransportResponse(200)

    async with http_server(handler) as port:
        transport = HttpControlPlaneTransport(f"http://127.0.0.1:{port}")
        async with asyncio.TaskGroup() as group:
            for _ in range(HELD_CONNECTIONS_MAX + 3):
                group.create_task(transport.call(request("/held", is_held=True)))
            answers = [await transport.call(request("/quick")) for _ in range(20)]
            assert waiting == HELD_CONNECTIONS_MAX
            release.set()
        await transport.close()

    assert [answer.status for answer in answers] == [200] * 20


async def test_connections_are_kept() -> None:
    peers: set[object] = set()

    async def serve(received: web.BaseRequest) -> web.StreamResponse:
        assert received.transport is not None
        peers.add(received.transport.get_extra_info("peername"))
        return web.Response()

    runner = web.ServerRunner(web.Server(serve), handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    transport = HttpControlPlaneTransport(f"http://127.0.0.1:{runner.addresses[0][1]}")
    for _ in range(5):
        await transport.call(request())
    await transport.close()
    await runner.cleanup()

    assert len(peers) == 1


async def test_a_base_path_comes_before_the_path() -> None:
    async def handler(request: TransportRequest) -> TransportResponse:
        return TransportResponse(200, {}, request.path.encode())

    async with http_server(handler) as port:
        transport = HttpControlPlaneTransport(f"http://127.0.0.1:{port}/probes//")
        answer = await transport.call(request("/v1/agents/claim"))
        await transport.close()

    assert answer.body == b"/probes/v1/agents/claim"
