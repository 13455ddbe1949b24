"""The control plane on sockets: both listeners, the work behind them, and a clean end.

The only module of the server that knows aiohttp. It turns HTTP into `ApiRequest` and back; bytes
that are no HTTP, bodies that are too large or too slow get the same envelope as everything else.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from netsonde import wire
from netsonde.clock import NS_PER_S, Clock, SystemClock
from netsonde.errors import ConfigError, ErrorCode, RequestError, StorageError
from netsonde.server.api import Api, ApiRequest, ApiResponse, problem
from netsonde.server.background import schedule_forever, sweep_forever
from netsonde.server.config import ServerConfig, endpoint
from netsonde.server.core import ControlPlane
from netsonde.server.handlers import AgentApi
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

KEEPALIVE_S = 75.0  # longer than a held claim, so that an idle agent keeps its connection
SLOW_AFTER_NS = 5 * NS_PER_S  # a body may dawdle this long
SLOW_BYTES_PER_S = 1024  # and must come at least this fast after
CHUNK_TIMEOUT_S = 5.0
LINES_IDLE_S = 15.0  # between two lines of a stream, whose sender may wait for an acknowledgement
STREAM_MAX_S = wire.STREAM_MAX_MS / 1000 + 5  # a stream, its last commit and its slow reader
HEADERS_MAX = 64
LINE_MAX_BYTES = 8190
BACKLOG = 1024
QUERY_FIELDS_MAX = 32

_log = logging.getLogger("netsonde.server")


@dataclass(frozen=True, slots=True)
class Server:
    """A running control plane."""

    agent_url: str
    operator_url: str
    plane: ControlPlane


@asynccontextmanager
async def serve(config: ServerConfig, clock: Clock | None = None) -> AsyncIterator[Server]:
    """Run a control plane for the duration of the block.

    At the end it turns away new work, ends what is held, answers what is being answered and
    commits what was reported.

    Raises:
        ConfigError: an address cannot be listened on, a token file cannot be read.
        StorageError: the database is unusable.
    """
    clock = clock or SystemClock()
    operator_token = config.operator_token()
    plane = open_plane(config, clock)
    try:
        agents = _Listener(AgentApi(plane), plane, config)
        operators = _Listener(OperatorApi(plane, operator_token), plane, config)
        try:
            agent_url = await agents.start("listen", config.listen)
            operator_url = await operators.start("operator_listen", config.operator_listen)
            failure: BaseException | None = None
            async with asyncio.TaskGroup() as group:
                work = [
                    group.create_task(sweep_forever(plane), name="sweep"),
                    group.create_task(schedule_forever(plane), name="schedule"),
                    group.create_task(keep_in_bounds_forever(plane), name="bounds"),
                ]
                try:
                    yield Server(agent_url, operator_url, plane)
                except (Exception, asyncio.CancelledError) as error:
                    failure = error  # the caller's own failure is not one of the group
                plane.close()
                for task in work:
                    task.cancel()
            if failure is not None:
                raise failure
        finally:
            plane.close()
            await agents.stop()
            await operators.stop()
            await _persist(plane)
    finally:
        await plane.writer.close()


async def _persist(plane: ControlPlane) -> None:
    """Write down what is kept in memory between times; nothing of it was promised to anybody."""
    try:
        await plane.registry.flush_seen(at_once=True)
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
        writer = ThreadWriter(database, database.reader(), clock)
    return ControlPlane(config, clock, writer, store, rng or random.Random())  # noqa: S311 (jitter)


class _Listener:
    """One API on one address."""

    def __init__(self, api: Api, plane: ControlPlane, config: ServerConfig) -> None:
        self._api = api
        self._plane = plane
        self._runner = web.ServerRunner(
            _HttpServer(
                self._answer,
                handler_cancellation=True,
                keepalive_timeout=KEEPALIVE_S,
                access_log=None,
                auto_decompress=False,
                max_headers=HEADERS_MAX,
                max_line_size=LINE_MAX_BYTES,
                max_field_size=LINE_MAX_BYTES,
                lingering_time=1.0,
            ),
            shutdown_timeout=config.shutdown_timeout_s,
        )

    async def start(self, setting: str, text: str) -> str:
        """Listen and return the real URL.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        host, port = endpoint(setting, text)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=BACKLOG, reuse_address=True)
        try:
            await site.start()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot listen on {text}: {reason}; choose another address for {setting}"
            ) from error
        bound = self._runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        return f"http://{shown}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening, let what is being answered finish."""
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        received_ns = self._plane.time.now_ns()
        try:
            answer = await self._api.dispatch(await self._read(request, received_ns))
        except RequestError as error:
            answer = problem(error)
            response = _response(answer)
            response.force_close()  # what is left of the body is of no use
            return response
        if answer.chunks is not None:
            return await _streamed(request, answer, answer.chunks)
        return _response(answer)

    async def _read(self, request: web.BaseRequest, received_ns: int) -> ApiRequest:
        path = _text(request.path)
        media_type = request.headers.get("Content-Type", "")
        is_lines = self._api.takes_lines(request.method, path, media_type)
        limit = wire.STREAM_MAX_BYTES
        if not is_lines:
            limit = self._api.body_limit(request.method, path)
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
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
            body = await self._read_body(request, limit)
        return ApiRequest(
            method=request.method,
            path=path,
            chunks=chunks,
            headers={name.lower(): _text(value) for name, value in request.headers.items()},
            query=query,
            body=body,
            received_ns=received_ns,
            remote=request.remote or "",
        )

    async def _read_body(self, request: web.BaseRequest, limit: int) -> bytes:
        clock = self._plane.clock
        started_ns = clock.monotonic_ns()
        body = bytearray()
        while True:
            try:
                async with asyncio.timeout(CHUNK_TIMEOUT_S):
                    chunk = await request.content.readany()
            except TimeoutError as error:
                raise _too_slow() from error
            if not chunk:
                return bytes(body)
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
            elapsed_ns = clock.monotonic_ns() - started_ns
            if elapsed_ns > SLOW_AFTER_NS and len(body) * NS_PER_S < SLOW_BYTES_PER_S * elapsed_ns:
                raise _too_slow()


class _HttpServer(web.Server):
    """aiohttp's server, with our protocol so that its own refusals carry our envelope."""

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(RequestHandler):
    """aiohttp's HTTP protocol; what it refuses by itself is answered with the envelope."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed, or whose handler broke."""
        if status >= 500:
            _log.error("broken request", exc_info=exc, extra={"action": "request_failed"})
            error = RequestError(ErrorCode.BACKEND, "the control plane failed")
        else:
            error = RequestError(ErrorCode.VALIDATION, f"not HTTP: {_first_line(message)}")
        response = _response(problem(error))
        response.force_close()
        return response


def _response(answer: ApiResponse) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))


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


def _first_line(message: str | None) -> str:
    return (message or "unreadable request").strip().splitlines()[0][:200]


def _too_large(limit: int) -> RequestError:
    return RequestError(ErrorCode.TOO_LARGE, f"the body may have {limit} bytes")


def _too_slow() -> RequestError:
    return RequestError(
        ErrorCode.TIMEOUT, f"the body came slower than {SLOW_BYTES_PER_S} bytes a second"
    )
