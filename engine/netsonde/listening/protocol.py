"""HTTP on one connection: aiohttp's protocol with our time limits and our count of it."""

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from netsonde.listening.door import Visitor

HEAD_TIMEOUT_S = 10.0  # from the first byte of a request to the end of its head
ANSWER_TIMEOUT_S = 120.0  # for the other side to take an answer


class TimedProtocol(RequestHandler):
    """aiohttp's HTTP protocol on a connection that is counted.

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
        if self._waiter is None:  # at work, or not yet begun to wait for the first request
            is_within_head = self._request_count == 0
        else:
            is_within_head = not self._waiter.done()
        if not is_within_head:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_TIMEOUT_S, self._end_slow_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        if self.transport is not None:
            self.transport.write(self.slow_head_answer())
        self.force_close()

    def slow_head_answer(self) -> bytes:
        """Return what a head that took too long is answered with, as it is sent."""
        return b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

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


class TimedServer(web.Server):
    """aiohttp's server, whose connections come in by a door."""

    def protocol(self, visitor: Visitor) -> TimedProtocol:
        """Return the protocol of a new connection."""
        return TimedProtocol(self, visitor, loop=self._loop, **self._kwargs)
