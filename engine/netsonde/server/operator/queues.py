"""Queues: what waits and what runs."""

from collections.abc import Sequence

from netsonde.server import documents
from netsonde.server.about import About
from netsonde.server.answers.queues import Queues
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import Query
from netsonde.server.scopes import Scope
from netsonde.server.store import Store
from netsonde.server.store.tasks import QueueDepth

LIST = About("Show what waits and what runs.", Queues)


class QueueCalls(Calls):
    """The calls about queues."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (Route("GET", "/v1/queues", self._list_queues, scope=Scope.READ, about=LIST),)

    async def _list_queues(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        now_ns = self._plane.time.now_ns()

        def look(store: Store) -> tuple[list[QueueDepth], dict[int, bytes], dict[str, int], int]:
            depths, labels = store.depths(now_ns), store.label_queues()
            return depths, labels, store.counters(), store.dead_count()

        depths, labels, counters, dead = await self._plane.writer.look(look)
        return ok(
            {
                "queues": [documents.queue(depth, labels, now_ns) for depth in depths],
                "totals": documents.totals(depths, now_ns),
                "dead_letters": dead,
                "counters": counters,
            }
        )
