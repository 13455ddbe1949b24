"""Queues and dead letters: what waits, and what was given up."""

from collections.abc import Sequence

from netsonde.server import documents
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import Query, decode_cursor, encode_cursor
from netsonde.server.scopes import Scope


class QueueCalls(Calls):
    """The calls about queues."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (
            Route("GET", "/v1/queues", self._list_queues, scope=Scope.READ),
            Route("GET", "/v1/dead-letters", self._list_dead_letters, scope=Scope.READ),
        )

    async def _list_queues(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        now_ns = self._plane.time.now_ns()
        depths, labels, counters = await self._plane.writer.read(
            lambda store: (store.depths(now_ns), store.label_queues(), store.counters())
        )
        queues = [documents.queue(depth, labels, now_ns) for depth in depths]
        return ok({"queues": queues, "counters": counters})

    async def _list_dead_letters(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, before = query.limit(), decode_cursor(query.take("cursor"))
        query.end()
        rows = await self._plane.writer.read(lambda store: store.dead_letters(before, limit))
        cursor = encode_cursor(rows[-1].task_id) if len(rows) == limit else None
        return ok({"dead_letters": [documents.dead_letter(row) for row in rows], "cursor": cursor})
