"""Makes results durable: those of one turn of the loop in one commit, however long it takes.

A result that the spool refuses is held in memory and offered again; those that come meanwhile wait
behind it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from netsonde import __version__, wire
from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import SpoolFull, StorageError
from netsonde.model import Failure, FailureSource, Measurement, Outcome, Reason
from netsonde.spool import GROUP_ROWS_MAX, Spool
from netsonde.wire import Result, ResultColumns

CANCELLED = Outcome.CANCELLED  # looked up once: results come by the thousand
HOLD_RETRY_NS = 500 * NS_PER_MS  # how often a result that the spool refused is offered again

_log = logging.getLogger("netsonde.agent")


class Keeper:
    """Takes results and tells `on_kept` of their leases once they are on the disk.

    `run` does the work. `counters` are shared with whoever owns the keeper.
    """

    def __init__(
        self,
        clock: Clock,
        spool: Spool,
        counters: Counter[str],
        on_kept: Callable[[Sequence[int]], None],
    ) -> None:
        self._clock = clock
        self._spool = spool
        self._counters = counters
        self._on_kept = on_kept
        self._changed = asyncio.Event()
        self._results: list[Result] = []
        self._lease_ids: list[int] = []
        self._items: list[bytes] = []
        self._outcomes: list[Outcome] = []
        self._is_holding = False

    def add(self, result: Result) -> None:
        """Take one lease's result."""
        self._results.append(result)
        self._changed.set()

    def add_columns(
        self, lease_ids: list[int], columns: ResultColumns, scheduled_at: Sequence[str | None]
    ) -> None:
        """Take the results of a batch of leases."""
        items = wire.encode_columns(lease_ids, columns, scheduled_at)
        self._lease_ids += lease_ids
        self._items += items
        self._outcomes += columns.outcomes
        self._changed.set()

    async def run(self) -> None:
        """Keep results until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._results or self._items:
                self._encode()
                await self._offer()

    def _encode(self) -> None:
        results, self._results = self._results, []
        if results:
            self._lease_ids += [result.lease_id for result in results]
            self._items += _encoded(results)
            self._outcomes += [result.measurement.outcome for result in results]

    async def _offer(self) -> None:
        """Give the spool what waits; it may take some, or none for now."""
        lease_ids, items = self._lease_ids[:GROUP_ROWS_MAX], self._items[:GROUP_ROWS_MAX]
        outcomes = self._outcomes[:GROUP_ROWS_MAX]
        cancelled = [outcome is CANCELLED for outcome in outcomes]
        try:
            count = await self._spool.append_many(lease_ids, items, cancelled)
        except StorageError as error:
            self._hold(error)
            await self._clock.sleep(HOLD_RETRY_NS)
            return
        self._is_holding = False
        del self._lease_ids[:count], self._items[:count], self._outcomes[:count]
        for outcome, kept in Counter(outcomes[:count]).items():
            self._counters[f"outcome_{outcome}"] += kept
        self._on_kept(lease_ids[:count])

    def _hold(self, error: StorageError) -> None:
        self._counters["spool_refusals"] += 1
        if self._is_holding:
            return
        self._is_holding = True
        action = "spool_full" if isinstance(error, SpoolFull) else "spool_failed"
        _log.error(
            "%s; results are held in memory with their slots, and offered again every %d ms",
            error,
            HOLD_RETRY_NS // NS_PER_MS,
            extra={"action": action},
        )


def _encoded(results: Sequence[Result]) -> list[bytes]:
    """Encode results; one that cannot be is replaced by one that says so."""
    try:
        return wire.encode_report_items(results)
    except Exception:  # one of them: whichever it is, the others are well
        return [_encoded_alone(result) for result in results]


def _encoded_alone(result: Result) -> bytes:
    try:
        return wire.encode_report_items([result])[0]
    except Exception as error:
        _log.exception(
            "a result cannot be encoded",
            extra={"action": "result_unencodable", "lease_id": result.lease_id},
        )
        failure = Failure(
            reason=Reason.PROTOCOL_ERROR,
            failure_source=FailureSource.SELF,
            message=f"internal error: the result cannot be encoded: {type(error).__name__}",
        )
        spare = Measurement(
            outcome=Outcome.AGENT_ERROR,
            started_at_ns=result.measurement.started_at_ns,
            duration_ns=result.measurement.duration_ns,
            observations=(),
            error=failure,
            env={"version": __version__},
        )
        return wire.encode_report_items([result._replace(measurement=spare)])[0]
