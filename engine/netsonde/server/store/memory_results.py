"""Results in the store in memory."""

from collections.abc import Collection, Sequence

from netsonde.server.store.memory_rows import Results, matches, stored
from netsonde.server.store.results import (
    NewResult,
    ResultBounds,
    ResultQuery,
    StoredResult,
    page_of,
)


class MemoryResults:
    """Verbs over results."""

    _results: Results
    _specs: dict[int, bytes]

    def add_results(self, results: Sequence[NewResult]) -> None:
        """Append results; their lease ids are new."""
        for result in results:
            if result.tick is None:
                self._results.by_lease[result.lease_id] = result.agent_id
            else:
                self._results.ticks.add((result.task_id, result.scheduled_ns or 0))
            self._results.rows.append(result)

    def result_owners(self, lease_ids: Collection[int]) -> dict[int, int]:
        """Return the agent of each of these lease ids that has a result."""
        owners = self._results.by_lease
        return {lease_id: owners[lease_id] for lease_id in lease_ids if lease_id in owners}

    def results(self, query: ResultQuery) -> list[StoredResult]:
        """Return results in the order of commits."""
        low, high = self._span(query)
        gone = self._results.gone
        numbered = list(enumerate(self._results.rows[low - gone - 1 : high - gone], low))
        if query.descending:
            numbered.reverse()
        chosen = [(place, row) for place, row in numbered if matches(query, place, row)]
        return page_of(
            query, (stored(place, row, self._specs[row.spec_id]) for place, row in chosen)
        )

    def look_end(self, query: ResultQuery, rows_max: int) -> int | None:
        """Return the id that a look over so many rows ends with."""
        low, high = self._span(query)
        if high - low < rows_max:
            return None
        return high - rows_max + 1 if query.descending else low + rows_max - 1

    def _span(self, query: ResultQuery) -> tuple[int, int]:
        """Return the first and the last id that a query can be about."""
        bounds = self.result_bounds()
        low, high = bounds.oldest, bounds.newest
        if query.descending:
            low = max(low, query.through or low)
            high = high if query.position is None else min(high, query.position - 1)
        else:
            low = max(low, (query.position or 0) + 1)
            high = high if query.through is None else min(high, query.through)
        return low, max(high, low - 1)

    def result_bounds(self) -> ResultBounds:
        """Return from which id to which there are results."""
        gone = self._results.gone
        return ResultBounds(gone + 1, gone + len(self._results.rows))

    def next_result(self, position: int) -> int | None:
        """Return the id of the first result after a position."""
        bounds = self.result_bounds()
        following = max(position + 1, bounds.oldest)
        return following if following <= bounds.newest else None
