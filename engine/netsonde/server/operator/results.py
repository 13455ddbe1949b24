"""Results, as they come."""

from collections.abc import Sequence

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.server import documents
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import encode_cursor, results_query
from netsonde.server.scopes import Scope


class ResultCalls(Calls):
    """The calls about results."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (Route("GET", "/v1/results", self._list_results, scope=Scope.READ),)

    async def _list_results(self, request: ApiRequest) -> ApiResponse:
        wanted, wait_ms = results_query(request.query, self._plane.registry)
        deadline_ns = request.received_ns + wait_ms * NS_PER_MS
        while True:
            pulse = self._plane.results_pulse.next()
            rows = await self._plane.writer.read(lambda store: store.results(wanted))
            remaining_ns = deadline_ns - self._plane.time.now_ns()
            if rows or remaining_ns <= 0 or self._plane.results_pulse.is_closed:
                break
            await self._plane.clock.wait(pulse, remaining_ns)
        position = rows[-1].result_id if rows else wanted.position or 0
        return ok(
            {
                "results": [wire.fragment(documents.result(row)) for row in rows],
                "cursor": encode_cursor(position),
            }
        )
