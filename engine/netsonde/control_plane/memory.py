"""The transport's twin in memory: a handler instead of a network, and faults by script.

Under a manual clock a call takes no time unless a fault or the handler waits, so that every lost
request and every late answer is an ordinary, repeatable test.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from netsonde.clock import NS_PER_S, Clock, SystemClock
from netsonde.control_plane.transport import (
    Headers,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.errors import TransportError

REQUESTS_KEPT = 1000  # the last ones, for whoever looks; a simulation makes millions
# Turns of the loop in which a handler that waits for nothing answers; only a longer one has a
# timer, so that a manual clock does not jump to the timeout of a call that was merely queued.
# Well below the turns that a manual clock gives everybody before it moves.
PROMPT_TURNS = 8

T = TypeVar("T")
Handler = Callable[[TransportRequest], Awaitable[TransportResponse]]
Streamer = Callable[[TransportRequest, AsyncIterator[bytes] | None], Awaitable[TransportStream]]


@dataclass(frozen=True, slots=True)
class LostRequest:
    """The request never arrives; the handler does not run."""


@dataclass(frozen=True, slots=True)
class LostResponse:
    """The handler runs, its answer never arrives."""


@dataclass(frozen=True, slots=True)
class Delayed:
    """The request takes so long to arrive and the answer so long to come back."""

    request_ns: int = 0
    response_ns: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """Something in between answers; the handler does not run."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Garbled:
    """The handler runs; its answer arrives with this body."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    """The handler runs; only so many bytes of its answer arrive, and look complete."""

    keep_bytes: int


@dataclass(frozen=True, slots=True)
class BrokenOff:
    """The handler runs; after so many bytes of its answer the connection breaks."""

    keep_bytes: int


@dataclass(frozen=True, slots=True)
class Oversized:
    """The handler runs; its answer is one byte larger than the request allows."""


Fault = (
    LostRequest | LostResponse | Delayed | Answered | Garbled | Truncated | BrokenOff | Oversized
)


@dataclass(slots=True)
class _Scripted:
    fault: Fault
    path_end: str
    times: int


class MemoryControlPlaneTransport:
    """Carries requests to a handler in this process, and streams to a streamer.

    Without a streamer a stream is one request to the handler, answered in one piece. `requests` are
    the last ones that were made, in order, lost ones included. While `is_partitioned` is set
    nothing arrives.
    """

    def __init__(
        self,
        handler: Handler,
        clock: Clock | None = None,
        base_url: str = "memory:",
        streamer: Streamer | None = None,
    ) -> None:
        self.requests: deque[TransportRequest] = deque(maxlen=REQUESTS_KEPT)
        self.is_partitioned = False
        self._base_url = base_url
        self._handler = handler
        self._streamer = streamer or self._in_one_piece
        self._clock = clock or SystemClock()
        self._script: list[_Scripted] = []
        self._is_closed = False

    @property
    def base_url(self) -> str:
        """The address this transport goes by."""
        return self._base_url

    def inject(self, fault: Fault, *, path_end: str = "", times: int = 1) -> None:
        """Let the next `times` requests whose path ends so meet a fault, in the order injected."""
        self._script.append(_Scripted(fault, path_end, times))

    async def call(self, request: TransportRequest) -> TransportResponse:
        """Send request and return the complete answer; nothing is retried.

        Raises:
            TransportError: no complete answer came; the message says why in words.
        """
        fault = self._begin(request)
        response = await self._bounded(request, self._serve(request, fault), request.timeout_s)
        if len(response.body) > request.answer_max_bytes:
            raise TransportError(
                request.operation, f"the answer is larger than {request.answer_max_bytes} bytes"
            )
        return response

    @asynccontextmanager
    async def stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None = None
    ) -> AsyncIterator[TransportStream]:
        """Send request, its body from `lines` when given, and bring the answer piece by piece.

        Raises:
            TransportError: no answer came; the message says why in words.
        """
        fault = self._begin(request)
        answer = await self._bounded(
            request, self._serve_stream(request, lines, fault), request.timeout_s
        )
        async with aclosing(self._arriving(request, lines, answer, fault)) as chunks:
            yield TransportStream(answer.status, answer.headers, chunks)

    async def close(self) -> None:
        """Refuse later calls. Idempotent."""
        self._is_closed = True

    def _next_fault(self, path: str) -> Fault | None:
        path = path.partition("?")[0]
        for scripted in self._script:
            if path.endswith(scripted.path_end):
                scripted.times -= 1
                if scripted.times == 0:
                    self._script.remove(scripted)
                return scripted.fault
        return None

    def _begin(self, request: TransportRequest) -> Fault | None:
        """Take note of a request and return what happens to it."""
        if self._is_closed:
            raise TransportError(request.operation, "the transport is closed")
        self.requests.append(request)
        return LostRequest() if self.is_partitioned else self._next_fault(request.path)

    async def _bounded(
        self, request: TransportRequest, work: Coroutine[Any, Any, T], limit_s: float
    ) -> T:
        """Do work within a time limit."""
        done = asyncio.Event()
        served: list[T | TransportError] = []

        async def serve() -> None:
            try:
                served.append(await work)
            except TransportError as error:
                served.append(error)
            done.set()

        async with asyncio.TaskGroup() as group:
            serving = group.create_task(serve())
            for _ in range(PROMPT_TURNS):
                if done.is_set():
                    break
                await asyncio.sleep(0)
            if not await self._clock.wait(done, round(limit_s * NS_PER_S)):
                serving.cancel()
        if not served:
            raise TransportError(request.operation, f"no complete answer within {limit_s:g} s")
        if isinstance(served[0], TransportError):
            raise served[0]
        return served[0]

    async def _serve_stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None, fault: Fault | None
    ) -> TransportStream:
        match fault:
            case LostRequest():
                raise TransportError(request.operation, "the connection broke: reset by peer")
            case Answered():
                return _piece(TransportResponse(fault.status, fault.headers, fault.body))
            case Delayed():
                await self._clock.sleep(fault.request_ns)
        return await self._streamer(request, lines)

    async def _in_one_piece(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> TransportStream:
        body = request.body
        if lines is not None:
            body = b"".join([line async for line in lines])
        return _piece(await self._handler(replace(request, body=body)))

    async def _arriving(
        self,
        request: TransportRequest,
        lines: AsyncIterator[bytes] | None,
        answer: TransportStream,
        fault: Fault | None,
    ) -> AsyncGenerator[bytes]:
        """Pass the chunks on as they come, and none while nothing arrives."""
        left = fault.keep_bytes if isinstance(fault, BrokenOff | Truncated) else None
        end_ns = self._clock.boottime_ns() + round(request.timeout_s * NS_PER_S)
        try:
            while (chunk := await self._next_chunk(request, answer, fault, end_ns)) is not None:
                if left is not None and len(chunk) >= left:
                    yield chunk[:left]
                    break
                left = None if left is None else left - len(chunk)
                yield chunk
            if isinstance(fault, BrokenOff):
                raise TransportError(request.operation, "the answer broke off")
        finally:
            for each in (answer.chunks, lines):
                if isinstance(each, AsyncGenerator):
                    await each.aclose()

    async def _next_chunk(
        self, request: TransportRequest, answer: TransportStream, fault: Fault | None, end_ns: int
    ) -> bytes | None:
        left_s = (end_ns - self._clock.boottime_ns()) / NS_PER_S
        limit_s = min(left_s, request.idle_timeout_s or left_s)

        async def arrive() -> bytes | None:
            chunk = await anext(answer.chunks, None)
            if isinstance(fault, Delayed):
                await self._clock.sleep(fault.response_ns)
            if isinstance(fault, LostResponse):
                raise TransportError(request.operation, "the server closed the connection")
            if self.is_partitioned:
                await asyncio.get_running_loop().create_future()  # until the time is over
            return fault.body if isinstance(fault, Garbled) and chunk is not None else chunk

        return await self._bounded(request, arrive(), limit_s)

    async def _serve(self, request: TransportRequest, fault: Fault | None) -> TransportResponse:
        match fault:
            case LostRequest():
                raise TransportError(request.operation, "the connection broke: reset by peer")
            case Answered():
                return TransportResponse(fault.status, fault.headers, fault.body)
            case Delayed():
                await self._clock.sleep(fault.request_ns)
                response = await self._handler(request)
                await self._clock.sleep(fault.response_ns)
                return response
        response = await self._handler(request)
        match fault:
            case LostResponse():
                raise TransportError(request.operation, "the server closed the connection")
            case Garbled():
                return TransportResponse(response.status, response.headers, fault.body)
            case Truncated():
                body = response.body[: fault.keep_bytes]
                return TransportResponse(response.status, response.headers, body)
            case BrokenOff():
                raise TransportError(request.operation, "the answer broke off")
            case Oversized():
                body = b" " * (request.answer_max_bytes + 1)
                return TransportResponse(response.status, response.headers, body)
        return response


def _piece(response: TransportResponse) -> TransportStream:
    async def chunks() -> AsyncIterator[bytes]:
        if response.body:
            yield response.body

    return TransportStream(response.status, Headers(response.headers), chunks())
