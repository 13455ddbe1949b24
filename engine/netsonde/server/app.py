"""The control plane on sockets: both listeners, the work behind them, and a clean end.

It turns HTTP into `ApiRequest` and back; bodies that are too large or too slow get the same
envelope as everything else.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl

from aiohttp import web

from netsonde import wire
from netsonde.clock import NS_PER_S, Clock, SystemClock
from netsonde.errors import ConfigError, ErrorCode, RequestError, StorageError
from netsonde.listening.connections import Connections
from netsonde.listening.door import Door, TlsNow, connection_limit, open_door
from netsonde.server.api import Api, ApiRequest, ApiResponse, problem
from netsonde.server.background import roll_forever, schedule_forever, sweep_forever
from netsonde.server.certificates import Certificates, watch_forever
from netsonde.server.config import ServerConfig, endpoint, is_loopback
from netsonde.server.core import ControlPlane
from netsonde.server.handlers import AgentApi
from netsonde.server.http_protocol import HttpServer, Protocol, response_of
from netsonde.server.operator import OperatorApi
from netsonde.server.retention import keep_in_bounds_forever
from netsonde.server.store import (
    InlineWriter,
    MemoryStore,
    SqliteStore,
    Store,
    StoreWriter,
    ThreadWriter,
)
from netsonde.server.unread import UnreadBodies

KEEPALIVE_S = 75.0  # longer than a held claim, so that an idle agent keeps its connection
SLOW_AFTER_NS = 5 * NS_PER_S  # a body may dawdle this long
SLOW_BYTES_PER_S = 1024  # and must come at least this fast after
CHUNK_TIMEOUT_S = 5.0
# Of a body that is coming: one buffer that grew with it would move, and leave holes behind.
PART_BYTES = 64 * 1024
LINES_IDLE_S = 15.0  # between two lines of a stream, whose sender may wait for an acknowledgement
STREAM_MAX_S = wire.STREAM_MAX_MS / 1000 + 5  # a stream, its last commit and its slow reader
HEADERS_MAX = 64
LINE_MAX_BYTES = 8190
QUERY_FIELDS_MAX = 32

_PLAIN_HTTP = (
    "%s %s is reachable from other hosts without TLS: tokens and results can be read on the way;"
    " give it a certificate and a key, or put TLS in front of it"
)
_log = logging.getLogger("netsonde.server")


@dataclass(frozen=True, slots=True)
class Server:
    """A running control plane."""

    agent_url: str
    operator_url: str
    plane: ControlPlane
    certificates: Certificates


@asynccontextmanager
async def serve(config: ServerConfig, clock: Clock | None = None) -> AsyncIterator[Server]:
    """Run a control plane for the duration of the block.

    At the end it turns away new work, ends what is held, answers what is being answered and
    commits what was reported.

    Raises:
        ConfigError: an address cannot be listened on; a token, certificate or key file cannot be
            used.
        StorageError: the database is unusable.
    """
    clock = clock or SystemClock()
    operator_token = config.operator_token()
    certificates = Certificates(config, clock)
    plane = open_plane(config, clock)
    try:
        agents = _Listener(AgentApi(plane), plane, config)
        operators = _Listener(OperatorApi(plane, operator_token), plane, config)
        try:
            async with AsyncExitStack() as stack:
                # Left in the opposite order: whoever is held is answered before a door is gone.
                agent_url = await stack.enter_async_context(
                    agents.listening("listen", config.listen, certificates.agents)
                )
                operator_url = await stack.enter_async_context(
                    operators.listening(
                        "operator_listen", config.operator_listen, certificates.operators
                    )
                )
                _tell_limit(config.connections_max)
                server = Server(agent_url, operator_url, plane, certificates)
                async with _working(plane, certificates):
                    yield server
        finally:
            await _persist(plane)
    finally:
        await plane.writer.close()


@asynccontextmanager
async def _working(plane: ControlPlane, certificates: Certificates) -> AsyncIterator[None]:
    """Do the work behind the listeners for the duration of the block, then turn away new work."""
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        work = [
            group.create_task(sweep_forever(plane), name="sweep"),
            group.create_task(schedule_forever(plane), name="schedule"),
            group.create_task(keep_in_bounds_forever(plane), name="bounds"),
            group.create_task(roll_forever(plane), name="rollups"),
            group.create_task(watch_forever(certificates), name="certificates"),
        ]
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:
            failure = error  # the caller's own failure is not one of the group
        plane.close()
        for task in work:
            task.cancel()
    if failure is not None:
        raise failure


def _tell_limit(wanted: int) -> None:
    limit = connection_limit(wanted)
    if limit < wanted:
        text = "each listener takes %d connections, not %d: this process may not open more files"
        _log.info(text, limit, wanted, extra={"action": "connections_limited"})


async def _persist(plane: ControlPlane) -> None:
    """Write down what is kept in memory between times; nothing of it was promised to anybody."""
    try:
        await plane.registry.flush_seen(at_once=True)
        await plane.fleet.flush(at_once=True)
        await plane.operators.flush_used(at_once=True)
        await plane.housekeep()
    except (RequestError, StorageError) as error:
        _log.warning("at shutdown: %s", error, extra={"action": "persist_failed"})


def open_plane(
    config: ServerConfig, clock: Clock, rng: random.Random | None = None
) -> ControlPlane:
    """Open the store that config names and make the control plane over it.

    Raises:
        StorageError: the database is unusable.
    """
    store: Store
    writer: StoreWriter
    if config.database is None:
        store = MemoryStore()
        writer = InlineWriter(store)
    else:
        store = database = SqliteStore.open(config.database)
        writer = ThreadWriter(database, database.reader, clock)
    return ControlPlane(config, clock, writer, store, rng or random.Random())  # noqa: S311 (jitter)


class _Listener:
    """One API on one address."""

    def __init__(self, api: Api, plane: ControlPlane, config: ServerConfig) -> None:
        self._api = api
        self._plane = plane
        self._connections_max = config.connections_max
        self._unread = UnreadBodies(plane.clock)
        self._server = HttpServer(
            self._answer,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,
            auto_decompress=False,
            max_headers=HEADERS_MAX,
            max_line_size=LINE_MAX_BYTES,
            max_field_size=LINE_MAX_BYTES,
            lingering_time=1.0,
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=config.shutdown_timeout_s)

    @asynccontextmanager
    async def listening(self, setting: str, text: str, tls: TlsNow | None) -> AsyncIterator[str]:
        """Listen for the duration of the block and give the real URL.

        At its end nobody new is let in, and what is being answered finishes.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        connections = Connections(connection_limit(self._connections_max))
        async with open_door(connections, self._server.protocol, tls) as door:
            await self._runner.setup()
            try:
                await _listen(door, setting, text)
                if tls is None and not is_loopback(text):
                    _log.warning(_PLAIN_HTTP, setting, text, extra={"action": "plain_http"})
                yield _url(door, is_tls=tls is not None)
            finally:
                self._plane.close()
                door.close()
                await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        received_ns = self._plane.time.now_ns()
        try:
            whole = await self._read(request, received_ns)
            cast("Protocol", request.protocol).visitor.work()
            answer = await self._api.dispatch(whole)
        except RequestError as error:
            answer = problem(error)
            response = response_of(answer)
            response.force_close()  # what is left of the body is of no use
            return response
        if answer.chunks is not None:
            return await _streamed(request, answer, answer.chunks)
        return response_of(answer)

    async def _read(self, request: web.BaseRequest, received_ns: int) -> ApiRequest:
        # As it was sent: an encoded path is another one, so that no filter in front is got round.
        path = _text(request.rel_url.raw_path)
        media_type = request.headers.get("Content-Type", "")
        is_lines = self._api.takes_lines(request.method, path, media_type)
        limit = wire.STREAM_MAX_BYTES
        if not is_lines:
            limit = self._api.body_limit(request.method, path)
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        headers = {name.lower(): _text(value) for name, value in request.headers.items()}
        is_proven = False
        if not is_lines and request.can_read_body:
            is_proven = self._api.check_sender(request.method, path, headers)
        expectation = request.headers.get("Expect", "")
        if expectation.lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # What was written is not yet the answer.
            request.writer.output_size = 0
        try:
            query = parse_qsl(
                request.query_string, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX
            )
        except ValueError as error:
            raise RequestError(
                ErrorCode.VALIDATION, f"at most {QUERY_FIELDS_MAX} parameters are allowed"
            ) from error
        chunks: AsyncIterator[bytes] | None = None
        body = b""
        if is_lines:
            chunks = _chunks(request)
        elif request.can_read_body:
            body = await self._whole_body(request, limit, is_proven=is_proven)
        return ApiRequest(
            method=request.method,
            path=path,
            chunks=chunks,
            headers=headers,
            query=query,
            body=body,
            received_ns=received_ns,
            remote=request.remote or "",
        )

    async def _whole_body(self, request: web.BaseRequest, limit: int, *, is_proven: bool) -> bytes:
        visitor = cast("Protocol", request.protocol).visitor
        parts = [bytearray()]
        try:
            with self._unread.reading(visitor, is_proven=is_proven) as grow:
                await self._read_body(request, limit, parts, grow)
            return b"".join(parts)
        finally:
            parts.clear()  # whoever still holds this frame, such as a traceback

    async def _read_body(
        self,
        request: web.BaseRequest,
        limit: int,
        parts: list[bytearray],
        grow: Callable[[int], None],
    ) -> None:
        clock = self._plane.clock
        started_ns = clock.monotonic_ns()
        size = 0
        while True:
            try:
                async with asyncio.timeout(CHUNK_TIMEOUT_S):
                    chunk = await request.content.readany()
            except TimeoutError as error:
                raise _too_slow() from error
            if not chunk:
                return
            if len(parts[-1]) >= PART_BYTES:
                parts.append(bytearray())
            parts[-1] += chunk
            size += len(chunk)
            grow(len(chunk))
            del chunk  # else it stays, uncounted, while the next one is waited for
            if size > limit:
                raise _too_large(limit)
            elapsed_ns = clock.monotonic_ns() - started_ns
            if elapsed_ns > SLOW_AFTER_NS and size * NS_PER_S < SLOW_BYTES_PER_S * elapsed_ns:
                raise _too_slow()


async def _listen(door: Door, setting: str, text: str) -> None:
    host, port = endpoint(setting, text)
    try:
        await door.listen(host, port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {text}: {reason}; choose another address for {setting}"
        ) from error


def _url(door: Door, *, is_tls: bool) -> str:
    host, port = door.address
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if is_tls else 'http'}://{shown}:{port}"


async def _streamed(
    request: web.BaseRequest, answer: ApiResponse, chunks: AsyncGenerator[bytes]
) -> web.StreamResponse:
    """Send an answer as it comes; whoever hangs up, or reads too slowly, asks again."""
    response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
    response.enable_chunked_encoding()
    async with aclosing(chunks):
        try:
            async with asyncio.timeout(STREAM_MAX_S):
                await response.prepare(request)
                async for chunk in chunks:
                    await response.write(chunk)
                await response.write_eof()
        except (ConnectionError, TimeoutError):
            response.force_close()
    if not request.content.at_eof():
        response.force_close()  # the rest of the body was not wanted
    return response


async def _chunks(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """Give a body as it comes.

    Raises:
        RequestError: ERR_TIMEOUT, nothing came for too long; ERR_TOO_LARGE; ERR_VALIDATION, it
            broke off.
    """
    left_bytes = wire.STREAM_MAX_BYTES
    while True:
        try:
            async with asyncio.timeout(LINES_IDLE_S):
                chunk = await request.content.readany()
        except TimeoutError as error:
            raise RequestError(
                ErrorCode.TIMEOUT, f"nothing came for {LINES_IDLE_S:g} s; end what is complete"
            ) from error
        except web.RequestPayloadError as error:
            raise RequestError(ErrorCode.VALIDATION, "the body broke off") from error
        if not chunk:
            return
        left_bytes -= len(chunk)
        if left_bytes < 0:
            raise _too_large(wire.STREAM_MAX_BYTES)
        yield chunk


def _text(value: str) -> str:
    """Replace bytes that are no UTF-8, which aiohttp hands on as surrogates."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _too_large(limit: int) -> RequestError:
    return RequestError(ErrorCode.TOO_LARGE, f"the body may have {limit} bytes")


def _too_slow() -> RequestError:
    return RequestError(
        ErrorCode.TIMEOUT, f"the body came slower than {SLOW_BYTES_PER_S} bytes a second"
    )
