"""Following results: one stream after another, each from where the one before it stopped."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlencode

from netsonde import wire
from netsonde.backoff import BackoffPolicy
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane.streaming import is_streamed
from netsonde.control_plane.transport import ControlPlaneTransport, TransportRequest
from netsonde.errors import ControlPlaneError, ErrorCode, TransportError

STREAM_PATH = "/v1/results/stream"
STREAM_TIMEOUT_S = wire.STREAM_MAX_MS / 1000 + 15
IDLE_TIMEOUT_S = 25.0  # the server says something every 10 s
REFUSAL_MAX_BYTES = 64 << 10
RETRY_BASE_MS = 250
RETRY_CAP_MS = 5_000  # a person who follows results sees the server's return within seconds
SHORT_NS = NS_PER_S  # a stream that is over sooner has not waited for anything
_NO_LIMIT = 1 << 62  # of a stream's lines: its time bounds them, and none is kept


@dataclass(frozen=True, slots=True)
class Outage:
    """Results come no more for now; they are asked for again."""

    error: ControlPlaneError | TransportError | wire.DecodeError


@dataclass(frozen=True, slots=True)
class Resumed:
    """Results come again. None was missed or repeated, save where `is_anew`: from the earliest."""

    after_ms: int
    is_anew: bool


Followed = dict[str, Any] | Outage | Resumed


class Follower:
    """Follows the results of one query, for ever."""

    def __init__(
        self,
        transport: ControlPlaneTransport,
        headers: Mapping[str, str],
        query: Mapping[str, Any],
        clock: Clock,
        rng: Random,
    ) -> None:
        self._transport = transport
        self._headers = {**headers, "Accept": wire.NDJSON}
        self._query = {name: value for name, value in query.items() if value is not None}
        self._clock = clock
        self._rng = rng
        self._backoff = BackoffPolicy(RETRY_BASE_MS, RETRY_CAP_MS)
        self._has_begun = False
        self._failures = 0
        self._lost_ns = 0
        self._is_anew = False

    async def items(self) -> AsyncGenerator[Followed, None]:
        """Yield results in the order of commits, beginning after the query's cursor.

        An outage is told once, and so is its end.

        Raises:
            ControlPlaneError: the server refuses the query.
            DecodeError: what answers is no such server.
        """
        while True:
            began_ns = self._clock.boottime_ns()
            try:
                async with aclosing(self._stream()) as parts:
                    async for part in parts:
                        if self._failures:
                            yield self._resumed()
                        if isinstance(part, dict):
                            yield part
                if self._clock.boottime_ns() - began_ns < SHORT_NS:
                    await self._clock.sleep(RETRY_BASE_MS * NS_PER_MS)
            except (ControlPlaneError, TransportError, wire.DecodeError) as error:
                self._refuse_for_good(error)
                if self._failures == 0:
                    self._lost_ns = self._clock.boottime_ns()
                    yield Outage(error)
                await self._clock.sleep(self._delay_ns(error))
                self._failures += 1

    async def _stream(self) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Yield the results of one stream, and None for a line that has none."""
        request = TransportRequest(
            method="GET",
            path=f"{STREAM_PATH}?{urlencode(self._query)}" if self._query else STREAM_PATH,
            headers=self._headers,
            timeout_s=STREAM_TIMEOUT_S,
            idle_timeout_s=IDLE_TIMEOUT_S,
            is_held=True,
        )
        async with self._transport.stream(request) as answer:
            if answer.status != 200:
                refusal = await answer.response(REFUSAL_MAX_BYTES)
                hint = refusal.headers.get("Retry-After")
                raise wire.decode_error(refusal.status, refusal.body, hint)
            if not is_streamed(answer):
                raise wire.DecodeError("the answer is no stream of results")
            lines = wire.Lines(wire.RESULT_LINE_MAX_BYTES, _NO_LIMIT)
            async for chunk in answer.chunks:
                for line in lines.feed(chunk):
                    part = wire.read_feed_line(line)
                    if isinstance(part, wire.FeedEnd):
                        self._take_end(request, part)
                        return
                    if part is not None:
                        self._query["cursor"] = part.cursor
                    self._has_begun = True
                    yield part.result if isinstance(part, wire.FeedResult) else None
            raise TransportError(request.operation, "the stream stopped before its end")

    def _take_end(self, request: TransportRequest, end: wire.FeedEnd) -> None:
        if end.cursor is not None:
            self._query["cursor"] = end.cursor
        if end.error is not None:
            raise end.error
        if end.reason == "shutdown":
            raise TransportError(request.operation, "the control plane is shutting down")

    def _refuse_for_good(
        self, error: ControlPlaneError | TransportError | wire.DecodeError
    ) -> None:
        """Raise what asking again does not mend; results that are gone are begun after."""
        if isinstance(error, wire.DecodeError) and not self._has_begun:
            raise error
        if not isinstance(error, ControlPlaneError) or error.retryable:
            return
        if error.code != ErrorCode.CURSOR_EXPIRED or "cursor" not in self._query:
            raise error
        del self._query["cursor"]
        self._is_anew = True

    def _resumed(self) -> Resumed:
        after_ms = (self._clock.boottime_ns() - self._lost_ns) // NS_PER_MS
        told = Resumed(after_ms, self._is_anew)
        self._failures, self._is_anew = 0, False
        return told

    def _delay_ns(self, error: Exception) -> int:
        hint_ms = error.retry_after_ms if isinstance(error, ControlPlaneError) else None
        return self._backoff.delay_ms(self._failures, self._rng, hint_ms) * NS_PER_MS
