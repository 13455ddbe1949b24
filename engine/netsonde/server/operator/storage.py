"""How full the store is, and what of it is kept."""

from collections.abc import Sequence

from netsonde.clock import rfc3339
from netsonde.server.about import About
from netsonde.server.answers.health import Storage
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import Query
from netsonde.server.scopes import Scope
from netsonde.server.store import Store

COUNTERS = (
    "results_expired",
    "results_evicted",
    "dead_letters_expired",
    "keys_expired",
    "specs_dropped",
)


SHOW = About("Show how full the store is, and what of it is kept.", Storage)


class StorageCalls(Calls):
    """The call about storage."""

    def routes(self) -> Sequence[Route]:
        """Return the call."""
        return (Route("GET", "/v1/storage", self._storage, scope=Scope.READ, about=SHOW),)

    async def _storage(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()

        def look(store: Store) -> tuple[int, int | None, dict[str, int]]:
            return store.result_bounds().oldest, store.oldest_result_ns(), store.counters()

        first_id, oldest_ns, counters = await self._plane.writer.look(look)
        config = self._plane.config
        return ok(
            {
                **self._plane.storage.health(),
                **self._plane.storage.facts(),
                "retain_results_ms": config.retain_results_ms or None,
                "retain_dead_letters_ms": config.retain_dead_letters_ms or None,
                "first_result_id": first_id,
                "oldest_result_at": None if oldest_ns is None else rfc3339(oldest_ns),
                "counters": {name: counters.get(name, 0) for name in COUNTERS},
            }
        )
