"""Results, as they come."""

from collections.abc import Sequence

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.errors import ErrorCode, RequestError
from netsonde.server import documents
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import encode_cursor, results_query
from netsonde.server.store import Store
from netsonde.server.store.results import ResultQuery, StoredResult


class ResultCalls(Calls):
    """The calls about results."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (Route("GET", "/v1/results", self._list_results),)

    async def _list_results(self, request: ApiRequest) -> ApiResponse:
        wanted, wait_ms = results_query(request.query, self._plane.registry)
        deadline_ns = request.received_ns + wait_ms * NS_PER_MS
        while True:
            pulse = self._plane.results_pulse.next()
            rows = await self._plane.writer.read(lambda store: kept_results(store, wanted))
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


def kept_results(store: Store, wanted: ResultQuery) -> list[StoredResult]:
    """Return results, unless some of those after the cursor have gone.

    Raises:
        RequestError: ERR_CURSOR_EXPIRED.
    """
    position = None if wanted.descending else wanted.position
    if position is not None and position + 1 < (first := store.first_result_id()):
        raise RequestError(
            ErrorCode.CURSOR_EXPIRED,
            f"results after this cursor have gone, {first - 1 - position} at most: begin again "
            "without one, at the oldest that is kept",
        )
    return store.results(wanted)
