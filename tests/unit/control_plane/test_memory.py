"""The transport's twin in memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.control_plane.memory import (
    Answered,
    BrokenOff,
    Delayed,
    Fault,
    Garbled,
    LostRequest,
    LostResponse,
    MemoryControlPlaneTransport,
    Oversized,
    Truncated,
)
from netsonde.control_plane.transport import TransportRequest, TransportResponse, TransportStream
from netsonde.errors import TransportError
from support.transport_contract import (
    Connect,
    ConnectStream,
    Handler,
    Pieces,
    StreamContract,
    TransportContract,
    request,
    stream_request,
    streamed,
)


class TestMemoryTransport(TransportContract):
    @pytest.fixture
    def connect(self) -> Connect:
        async def connect(handler: Handler) -> MemoryControlPlaneTransport:
            return MemoryControlPlaneTransport(handler)

        return connect


async def nothing() -> AsyncIterator[bytes]:
    for chunk in list[bytes]():
        yield chunk


def streaming(pieces: Pieces, clock: ManualClock | None = None) -> MemoryControlPlaneTransport:
    async def streamer(
        request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> TransportStream:
        return streamed(pieces(request, lines or nothing()))

    return MemoryControlPlaneTransport(Counting(), clock, streamer=streamer)


class TestMemoryStreams(StreamContract):
    @pytest.fixture
    def connect_stream(self) -> ConnectStream:
        async def connect(pieces: Pieces) -> MemoryControlPlaneTransport:
            return streaming(pieces)

        return connect


class Counting:
    def __init__(self) -> None:
        self.served = 0

    async def __call__(self, request: TransportRequest) -> TransportResponse:
        self.served += 1
        return TransportResponse(200, {"Netsonde-Protocol": "1"}, b'{"leases":[]}')


@pytest.mark.parametrize(
    ("fault", "served"), [(LostRequest(), 0), (LostResponse(), 1), (Oversized(), 1)]
)
async def test_a_lost_call_tells_whether_the_server_saw_it(fault: Fault, served: int) -> None:
    handler = Counting()
    transport = MemoryControlPlaneTransport(handler)
    transport.inject(fault)

    with pytest.raises(TransportError):
        await transport.call(request())
    assert handler.served == served

    assert (await transport.call(request())).status == 200


@pytest.mark.parametrize(
    ("fault", "status", "body", "served"),
    [
        (Answered(502, b"<html>bad gateway"), 502, b"<html>bad gateway", 0),
        (Garbled(b"<html>"), 200, b"<html>", 1),
        (Truncated(5), 200, b'{"lea', 1),
    ],
)
async def test_what_is_in_between_can_change_an_answer(
    fault: Fault, status: int, body: bytes, served: int
) -> None:
    handler = Counting()
    transport = MemoryControlPlaneTransport(handler)
    transport.inject(fault)

    answer = await transport.call(request())

    assert (answer.status, answer.body, handler.served) == (status, body, served)


async def test_faults_are_met_in_order_by_the_paths_they_name() -> None:
    transport = MemoryControlPlaneTransport(Counting())
    transport.inject(Answered(501), path_end="/report")
    transport.inject(Answered(502), path_end="/claim", times=2)
    transport.inject(Answered(503), path_end="/claim")

    statuses = [(await transport.call(request("/v1/claim?x"))).status for _ in range(4)]

    assert statuses == [502, 502, 503, 200]
    assert (await transport.call(request("/v1/report"))).status == 501


async def test_a_partition_stops_everything_until_it_heals() -> None:
    handler = Counting()
    transport = MemoryControlPlaneTransport(handler)
    transport.is_partitioned = True

    with pytest.raises(TransportError):
        await transport.call(request())
    transport.is_partitioned = False
    await transport.call(request())

    assert handler.served == 1
    assert len(transport.requests) == 2


async def test_delays_pass_on_the_clock() -> None:
    clock = ManualClock(start_ns=0)
    transport = MemoryControlPlaneTransport(Counting(), clock)
    transport.inject(Delayed(request_ns=2 * NS_PER_S, response_ns=NS_PER_S))
    async with asyncio.TaskGroup() as group:
        call = group.create_task(transport.call(request()))
        await clock.advance(2 * NS_PER_S)
        assert not call.done()
        await clock.advance(NS_PER_S)

    assert call.result().status == 200


async def test_a_delay_beyond_the_timeout_is_a_lost_answer() -> None:
    clock = ManualClock(start_ns=0)
    handler = Counting()
    transport = MemoryControlPlaneTransport(handler, clock)
    transport.inject(Delayed(response_ns=60 * NS_PER_S))

    async def expect_timeout() -> None:
        with pytest.raises(TransportError, match="within 5 s"):
            await transport.call(request())

    async with asyncio.TaskGroup() as group:
        group.create_task(expect_timeout())
        await clock.advance(5 * NS_PER_S)

    assert handler.served == 1


# ── streams ──


async def two_lines(_: TransportRequest, __: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield b"one\n"
    yield b"two\n"


async def came(transport: MemoryControlPlaneTransport) -> bytes:
    async with transport.stream(stream_request()) as answer:
        return (await answer.response(1000)).body


@pytest.mark.parametrize(
    ("fault", "body"),
    [
        (Truncated(6), b"one\ntw"),
        (Garbled(b"<html>"), b"<html>" * 2),
        (Answered(503, b"busy"), b"busy"),
        (Delayed(), b"one\ntwo\n"),
    ],
)
async def test_a_stream_meets_the_same_faults(fault: Fault, body: bytes) -> None:
    transport = streaming(two_lines)
    transport.inject(fault)
    assert await came(transport) == body
    assert await came(transport) == b"one\ntwo\n"


@pytest.mark.parametrize("fault", [LostRequest(), BrokenOff(6)])
async def test_a_stream_can_break(fault: Fault) -> None:
    transport = streaming(two_lines)
    transport.inject(fault)
    with pytest.raises(TransportError):
        await came(transport)


async def test_a_partition_holds_the_pieces_of_an_open_stream() -> None:
    clock = ManualClock()
    transport = streaming(two_lines, clock)

    async def read() -> list[bytes]:
        async with transport.stream(stream_request()) as answer:
            first = await anext(answer.chunks)
            transport.is_partitioned = True
            return [first, *[chunk async for chunk in answer.chunks]]

    waiting = asyncio.get_running_loop().create_task(read())
    await clock.advance(4 * NS_PER_S)
    assert not waiting.done()
    await clock.advance(2 * NS_PER_S)
    with pytest.raises(TransportError, match="within 5 s"):
        await waiting


async def test_without_a_streamer_a_stream_is_one_request() -> None:
    seen: list[bytes] = []

    async def handler(request: TransportRequest) -> TransportResponse:
        seen.append(request.body)
        return TransportResponse(200, {}, b'{"leases":[]}')

    async def lines() -> AsyncIterator[bytes]:
        yield b"one\n"
        yield b"two\n"

    transport = MemoryControlPlaneTransport(handler)
    async with transport.stream(stream_request(), lines()) as answer:
        assert [chunk async for chunk in answer.chunks] == [b'{"leases":[]}']
    assert seen == [b"one\ntwo\n"]
