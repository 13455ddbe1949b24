"""HTTP on one connection of a control plane: what cannot be served gets our envelope, too."""

import logging

from aiohttp import web

from netsonde.errors import ErrorCode, RequestError
from netsonde.listening import protocol
from netsonde.listening.door import Visitor
from netsonde.listening.protocol import TimedProtocol, TimedServer
from netsonde.server.api import ApiResponse, new_request_id, problem

_log = logging.getLogger("netsonde.server")


def response_of(answer: ApiResponse) -> web.Response:
    """Turn an answer into one of HTTP."""
    return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))


class HttpServer(TimedServer):
    """aiohttp's server, with our protocol so that its own refusals carry our envelope."""

    def protocol(self, visitor: Visitor) -> "Protocol":
        """Return the protocol of a new connection."""
        return Protocol(self, visitor, loop=self._loop, **self._kwargs)


class Protocol(TimedProtocol):
    """Our HTTP protocol; what it refuses by itself is answered with the envelope."""

    __slots__ = ()

    def slow_head_answer(self) -> bytes:
        """Return the envelope as it is sent."""
        text = f"the request's head took longer than {protocol.HEAD_TIMEOUT_S:g} s"
        answer = problem(RequestError(ErrorCode.TIMEOUT, text))
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        return (
            f"HTTP/1.1 {answer.status} Request Timeout\r\n{head}Connection: close\r\n"
            f"Content-Length: {len(answer.body)}\r\n\r\n".encode()
            + answer.body
        )

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
