"""HTTP on one connection: aiohttp's protocol with our refusals, our limits and our count of it."""

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from netsonde.errors import ErrorCode, RequestError
from netsonde.server.api import ApiResponse, new_request_id, problem
from netsonde.server.door import Visitor

HEAD_TIMEOUT_S = 10.0  # from the first byte of a request to the end of its head
ANSWER_TIMEOUT_S = 120.0  # for the other side to take an answer

_log = logging.getLogger("netsonde.server")


def response_of(answer: ApiResponse) -> web.Response:
    """Turn an answer into one of HTTP."""
    return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))


class HttpServer(web.Server):
    """aiohttp's server, with our protocol so that its own refusals carry our envelope."""

    def protocol(self, visitor: Visitor) -> "Protocol":
        """Return the protocol of a new connection."""
        return Protocol(self, visitor, loop=self._loop, **self._kwargs)


class Protocol(RequestHandler):
    """aiohttp's HTTP protocol; what it refuses by itself is answered with the envelope.

    It tells its visitor what it is at, and waits neither for a request head that does not end nor
    for an answer that is not taken.
    """

    __slots__ = ("_head_timer", "_is_refused", "visitor")

    def __init__(self, manager: web.Server, visitor: Visitor, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self.visitor = visitor
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.visitor.transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._stop_head_timer()
        self.visitor.leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request head that they begin must end in time."""
        if self._is_refused:
            return  # each part would be parsed, refused and kept anew until the refusal has gone
        super().data_received(data)
        last = self._messages[-1][0] if self._messages else None
        if isinstance(last, _ErrInfo):
            self._is_refused = True
            last.exc.__traceback__ = None  # it holds what was parsed
        is_within_head = self._waiter is not None and not self._waiter.done()
        if not is_within_head:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_TIMEOUT_S, self._end_slow_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        text = f"the request's head took longer than {HEAD_TIMEOUT_S:g} s"
        answer = problem(RequestError(ErrorCode.TIMEOUT, text))
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        if self.transport is not None:
            self.transport.write(
                f"HTTP/1.1 {answer.status} Request Timeout\r\n{head}Connection: close\r\n"
                f"Content-Length: {len(answer.body)}\r\n\r\n".encode()
                + answer.body
            )
        self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; whoever does not take it is cut off."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.visitor.drop()
            return resp, True
        finally:
            self.visitor.rest()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed, or whose handler broke."""
        request_id = new_request_id()
        if status >= 500:
            fields = {"action": "request_failed", "request_id": request_id, "path": request.path}
            _log.error("broken request", exc_info=exc, extra=fields)
            error = RequestError(ErrorCode.BACKEND, "the control plane failed")
        else:
            error = RequestError(ErrorCode.VALIDATION, f"not HTTP: {_first_line(message)}")
        response = response_of(problem(error, request_id))
        response.force_close()
        return response


def _first_line(message: str | None) -> str:
    return (message or "unreadable request").strip().splitlines()[0][:200]
