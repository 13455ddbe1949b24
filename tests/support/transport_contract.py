"""What every transport must do: the HTTP one and its twin in memory run the same tests."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import pytest

from netsonde.control_plane.transport import (
    ControlPlaneTransport,
    Headers,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.errors import TransportError

Handler = Callable[[TransportRequest], Awaitable[TransportResponse]]
Connect = Callable[[Handler], Awaitable[ControlPlaneTransport]]
# Gets the request and its body as it comes; yields the answer's pieces, or breaks it off.
Pieces = Callable[[TransportRequest, AsyncIterator[bytes]], AsyncGenerator[bytes]]
ConnectStream = Callable[[Pieces], Awaitable[ControlPlaneTransport]]
PATIENCE_S = 5.0


def request(
    path: str = "/v1/agents/claim", body: bytes = b"{}", **changes: object
) -> TransportRequest:
    fields: dict[str, object] = {"method": "POST", "path": path, "body": body, "timeout_s": 5.0}
    return TransportRequest(**(fields | {"operation": "claim"} | changes))  # type: ignore[arg-type]


class TransportContract:
    """Inherit and give a `connect` fixture: handler in, transport out."""

    async def test_a_request_arrives_whole(self, connect: Connect) -> None:
        seen: list[TransportRequest] = []

        async def handler(request: TransportRequest) -> TransportResponse:
            seen.append(request)
            return TransportResponse(200)

        transport = await connect(handler)
        body = bytes(range(256)) * 4096
        await transport.call(request("/v1/x?a=1&b=%20", body, headers={"X-Agent-Token": "secret"}))

        assert (seen[0].method, seen[0].path) == ("POST", "/v1/x?a=1&b=%20")
        assert seen[0].body == body
        assert Headers(seen[0].headers)["x-agent-token"] == "secret"

    @pytest.mark.parametrize("status", [200, 202, 204, 301, 304, 400, 404, 413, 429, 500, 503])
    async def test_every_status_is_an_answer(self, connect: Connect, status: int) -> None:
        body = b"" if status in (204, 304) else b'{"a":1}'

        async def handler(_: TransportRequest) -> TransportResponse:
            return TransportResponse(status, {"Netsonde-Protocol": "1", "Location": "/x"}, body)

        answer = await (await connect(handler)).call(request())

        assert (answer.status, answer.body) == (status, body)
        assert answer.headers["netsonde-protocol"] == "1"
        assert answer.headers.get("NETSONDE-PROTOCOL") == "1"
        assert answer.headers.get("Retry-After") is None

    async def test_a_broken_connection_is_a_transport_error(self, connect: Connect) -> None:
        async def handler(_: TransportRequest) -> TransportResponse:
            raise TransportError("server", "goes away")

        transport = await connect(handler)
        with pytest.raises(TransportError) as caught:
            await transport.call(request())

        assert caught.value.operation in ("claim", "server")

    async def test_a_late_answer_is_a_transport_error(self, connect: Connect) -> None:
        release = asyncio.Event()

        async def handler(_: TransportRequest) -> TransportResponse:
            await release.wait()
            return TransportResponse(200)

        transport = await connect(handler)
        with pytest.raises(TransportError, match=r"claim: no complete answer .*within 0\.05 s"):
            await transport.call(request(timeout_s=0.05))

        release.set()
        assert (await transport.call(request())).status == 200

    async def test_an_answer_has_a_largest_size(self, connect: Connect) -> None:
        async def handler(request: TransportRequest) -> TransportResponse:
            return TransportResponse(200, {}, b"x" * int(request.body))

        transport = await connect(handler)

        fits = await transport.call(request(body=b"100000", answer_max_bytes=100_000))
        with pytest.raises(TransportError, match="larger than 100000 bytes"):
            await transport.call(request(body=b"100001", answer_max_bytes=100_000))

        assert len(fits.body) == 100_000
        assert (await transport.call(request(body=b"5"))).body == b"xxxxx"

    async def test_calls_run_side_by_side(self, connect: Connect) -> None:
        everybody = asyncio.Barrier(3)

        async def handler(request: TransportRequest) -> TransportResponse:
            await everybody.wait()
            return TransportResponse(200, {}, request.body)

        transport = await connect(handler)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(transport.call(request(body=body, is_held=body == b"2")))
                for body in (b"0", b"1", b"2")
            ]

        assert [task.result().body for task in tasks] == [b"0", b"1", b"2"]

    async def test_a_cancelled_call_leaves_the_transport_usable(self, connect: Connect) -> None:
        reached, release = asyncio.Event(), asyncio.Event()

        async def handler(_: TransportRequest) -> TransportResponse:
            reached.set()
            await release.wait()
            return TransportResponse(200)

        transport = await connect(handler)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(transport.call(request()))
            await reached.wait()
            task.cancel()
        assert task.cancelled()

        release.set()
        assert (await transport.call(request())).status == 200

    async def test_a_closed_transport_says_so(self, connect: Connect) -> None:
        async def handler(_: TransportRequest) -> TransportResponse:
            return TransportResponse(200)

        transport = await connect(handler)
        await transport.call(request())
        await transport.close()
        await transport.close()

        with pytest.raises(TransportError, match="claim: the transport is closed"):
            await transport.call(request())


def stream_request(body: bytes = b"{}") -> TransportRequest:
    return request(body=body, idle_timeout_s=PATIENCE_S)


class StreamContract:
    """Inherit and give a `connect_stream` fixture: pieces in, transport out."""

    async def test_pieces_come_as_they_are_sent(self, connect_stream: ConnectStream) -> None:
        more = asyncio.Event()

        async def pieces(_: TransportRequest, __: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            yield b"one\n"
            await more.wait()
            yield b"two\n"

        transport = await connect_stream(pieces)
        async with transport.stream(stream_request()) as answer:
            first = await anext(answer.chunks)
            more.set()
            rest = b"".join([chunk async for chunk in answer.chunks])

        assert (answer.status, first, rest) == (200, b"one\n", b"two\n")
        assert answer.headers["netsonde-protocol"] == "1"

    async def test_lines_go_up_while_the_answer_comes_down(
        self, connect_stream: ConnectStream
    ) -> None:
        echoed = asyncio.Event()

        async def pieces(_: TransportRequest, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            async for chunk in body:
                yield chunk

        async def lines() -> AsyncIterator[bytes]:
            yield b"one\n"
            await echoed.wait()
            yield b"two\n"

        transport = await connect_stream(pieces)
        async with transport.stream(stream_request(body=b""), lines()) as answer:
            first = await anext(answer.chunks)
            echoed.set()
            rest = b"".join([chunk async for chunk in answer.chunks])

        assert (first, rest) == (b"one\n", b"two\n")

    async def test_a_stream_that_breaks_off_is_a_transport_error(
        self, connect_stream: ConnectStream
    ) -> None:
        async def pieces(_: TransportRequest, __: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            yield b"one\n"
            raise TransportError("server", "goes away")

        transport = await connect_stream(pieces)
        got = []
        with pytest.raises(TransportError):
            async with transport.stream(stream_request()) as answer:
                got += [chunk async for chunk in answer.chunks]
        assert got in ([], [b"one\n"])

    async def test_silence_ends_a_stream(self, connect_stream: ConnectStream) -> None:
        forever = asyncio.Event()

        async def pieces(_: TransportRequest, __: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            yield b"one\n"
            await forever.wait()

        transport = await connect_stream(pieces)
        async with transport.stream(request(idle_timeout_s=0.05)) as answer:
            assert await anext(answer.chunks) == b"one\n"
            with pytest.raises(TransportError, match=r"0\.05 s"):
                await anext(answer.chunks)

    async def test_leaving_the_block_ends_the_server_s_work(
        self, connect_stream: ConnectStream
    ) -> None:
        ended = asyncio.Event()

        async def pieces(_: TransportRequest, __: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            try:
                yield b"one\n"
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def lines() -> AsyncIterator[bytes]:
            yield b"one\n"
            await asyncio.Event().wait()

        transport = await connect_stream(pieces)
        async with transport.stream(stream_request(body=b""), lines()) as answer:
            await anext(answer.chunks)
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()

    async def test_an_answer_in_one_piece_is_a_stream_too(
        self, connect_stream: ConnectStream
    ) -> None:
        async def pieces(_: TransportRequest, __: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            yield b"x" * 1000

        transport = await connect_stream(pieces)
        async with transport.stream(stream_request()) as answer:
            whole = await answer.response(2000)
        async with transport.stream(stream_request()) as answer:
            cut = await answer.response(10)

        assert (whole.status, whole.body, cut.body) == (200, b"x" * 1000, b"x" * 10)

    async def test_a_closed_transport_streams_nothing(self, connect_stream: ConnectStream) -> None:
        async def pieces(_: TransportRequest, __: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            yield b"one\n"

        transport = await connect_stream(pieces)
        await transport.close()
        with pytest.raises(TransportError, match="the transport is closed"):
            async with transport.stream(stream_request()):
                pass


def streamed(pieces: AsyncGenerator[bytes]) -> TransportStream:
    """Make the answer of these pieces."""
    return TransportStream(200, Headers({"Netsonde-Protocol": "1"}), pieces)
