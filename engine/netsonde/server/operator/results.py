"""Results: page by page, or as a stream that goes on with what comes."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.errors import ErrorCode
from netsonde.server import documents
from netsonde.server.about import (
    AGENT,
    CHECK_ID,
    CURSOR,
    KIND,
    LIMIT,
    TASK_ID,
    About,
    choice,
    instant,
    number,
    words_of,
)
from netsonde.server.answers.results import CursorLine, ResultEndLine, ResultLine, ResultPage
from netsonde.server.api import ApiRequest, ApiResponse, Route, lines, ok
from netsonde.server.config import CLAIM_WAIT_MAX_MS
from netsonde.server.core import ControlPlane
from netsonde.server.feed import Feed, Found, Stopped, require_kept
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import (
    OUTCOME_MAX_CHARS,
    RESULT_CURSOR,
    encode_cursor,
    feed_query,
    results_query,
)
from netsonde.server.scopes import Scope
from netsonde.server.store import Store
from netsonde.server.store.results import ResultQuery, StoredResult, is_full

CHUNK_BYTES = 64 << 10  # of lines sent at once
LOOK_ROWS = 20_000  # of one look at a page's filters, so that it holds up nobody who reads
PAGE_BYTES = 4 << 20  # of a page, and at most one more result: it is held and written at once
LOOKS_MAX = 50  # of one page; then it is answered as it is

FILTERS = (
    CHECK_ID,
    TASK_ID,
    AGENT,
    KIND,
    words_of("outcome", 1, OUTCOME_MAX_CHARS, "How it ended: ok, target_error, …"),
    instant("from", "Accepted at this instant or later."),
    instant("to", "Accepted before this instant."),
    choice("final", ("true", "any"), "any: those of attempts that were tried again, too."),
    CURSOR,
)
LIST = About(
    "List results, page by page.",
    ResultPage,
    query=(
        *FILTERS,
        LIMIT,
        choice("order", ("asc", "desc"), "desc: the newest first."),
        number("wait_ms", 0, CLAIM_WAIT_MAX_MS, "How long an empty answer is held; 0 unless told."),
    ),
    refuses=(ErrorCode.CURSOR_EXPIRED,),
)
STREAM = About(
    "Follow results as a stream.",
    query=(
        *FILTERS,
        number("wait_ms", 0, wire.STREAM_MAX_MS, "How long the stream lasts at most."),
    ),
    answer_line=ResultLine | CursorLine | ResultEndLine,
    refuses=(ErrorCode.CURSOR_EXPIRED, ErrorCode.RATE_LIMITED),
    text="Go on with the cursor of the last line that was read.",
)


class ResultCalls(Calls):
    """The calls about results."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane)
        self._feed = Feed(plane)

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (
            Route("GET", "/v1/results", self._list_results, scope=Scope.READ, about=LIST),
            Route(
                "GET", "/v1/results/stream", self._stream_results, scope=Scope.READ, about=STREAM
            ),
        )

    async def _list_results(self, request: ApiRequest) -> ApiResponse:
        wanted, wait_ms = results_query(request.query, self._plane.registry)
        deadline_ns = request.received_ns + wait_ms * NS_PER_MS
        while True:
            pulse = self._plane.results_pulse.next()
            page = await self._page(wanted)
            remaining_ns = deadline_ns - self._plane.time.now_ns()
            if page.rows or page.is_more or remaining_ns <= 0:
                break
            if self._plane.results_pulse.is_closed:
                break
            wanted = replace(wanted, position=page.position)
            await self._plane.clock.wait(pulse, remaining_ns)
        return ok(
            {
                "results": [wire.fragment(documents.result(row)) for row in page.rows],
                "cursor": encode_cursor(page.position, RESULT_CURSOR),
                "more": page.is_more,
            }
        )

    async def _page(self, wanted: ResultQuery) -> "_Page":
        """Look until a page is full, all has been seen, or it has been looked for long enough.

        Others read between one look and the next.
        """
        rows: list[StoredResult] = []
        query = wanted = replace(wanted, bytes_max=PAGE_BYTES)
        for _ in range(LOOKS_MAX):
            found, end, last = await self._plane.writer.look(partial(_look, query))
            rows += found
            page_is_full = is_full(wanted, rows)
            if page_is_full or end is None:
                return _Page(rows, rows[-1].result_id if rows else last, is_more=page_is_full)
            query = replace(query, position=end, limit=wanted.limit - len(rows))
        return _Page(rows, query.position or 0, is_more=True)

    async def _stream_results(self, request: ApiRequest) -> ApiResponse:
        wanted, wait_ms = feed_query(request.query, self._plane.registry)
        await self._feed.check(wanted)
        deadline_ns = request.received_ns + wait_ms * NS_PER_MS
        limit_ns = request.received_ns + wire.STREAM_MAX_MS * NS_PER_MS
        events = self._feed.stream(wanted, deadline_ns, limit_ns)
        return lines(_lines(events, partial(self._plane.operators.check, request.principal)))


@dataclass(frozen=True, slots=True)
class _Page:
    rows: Sequence[StoredResult]
    position: int  # where to go on
    is_more: bool  # that is there already


def _look(query: ResultQuery, store: Store) -> tuple[list[StoredResult], int | None, int]:
    """Return results, where the look ended before the end, and where one goes on after the end."""
    bounds = store.result_bounds()
    last = bounds.newest
    if query.descending:
        last = bounds.oldest - 1 if query.position is None else query.position
    end = store.look_end(query, LOOK_ROWS)
    rows = store.results(replace(query, through=end))
    if not query.descending:
        require_kept(store, query.position)
    return rows, end, last


async def _lines(
    events: AsyncGenerator[Found | Stopped], check: Callable[[], None]
) -> AsyncGenerator[bytes]:
    """Write events as lines, as long as check lets who follows go on."""
    async with aclosing(events):
        async for event in events:
            check()
            cursor = encode_cursor(event.position, RESULT_CURSOR)
            if isinstance(event, Stopped):
                yield wire.feed_end_line(event.reason, cursor)
            elif not event.results:
                yield wire.cursor_line(cursor)
            else:
                for chunk in _chunks(event.results):
                    yield chunk


def _chunks(rows: Sequence[StoredResult]) -> Iterator[bytes]:
    """Encode results as lines, so many at once that each chunk is worth a packet or some."""
    chunk = bytearray()
    for row in rows:
        chunk += wire.result_line(
            encode_cursor(row.result_id, RESULT_CURSOR), documents.result(row)
        )
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)
