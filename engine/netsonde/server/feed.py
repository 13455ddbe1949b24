"""The feed of results: what was committed, and then what is, to any number of readers.

Ids of results are given inside transactions that run one after another, so that they become visible
in their order: whoever has looked at all ids up to one has missed none below it.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from netsonde.clock import NS_PER_MS
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.claims import PING_NS
from netsonde.server.core import ControlPlane
from netsonde.server.store import Store
from netsonde.server.store.results import ResultQuery, StoredResult, is_full

READERS_MAX = 100  # each holds a page, and what a socket's buffer takes
PAGE_ROWS = 250
PAGE_BYTES = 256 << 10  # and at most one more result, which has as much
SCAN_IDS = 20_000  # of one look: a filter that fits nothing must not hold up who else reads
LOOK_NS = NS_PER_MS  # between a reader's looks, times the readers: all of them share one thread
RETRY_AFTER_MS = 5_000


@dataclass(frozen=True, slots=True)
class Found:
    """Results in the order of commits; everything up to `position` has been looked at.

    None are found when nothing came for a while.
    """

    results: tuple[StoredResult, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stream's last event: why it ends, and where to go on."""

    reason: str
    position: int


class Feed:
    """Reads the results of one control plane to those who follow them."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._readers = 0

    async def check(self, query: ResultQuery) -> None:
        """Refuse a stream before it begins.

        Raises:
            RequestError: ERR_RATE_LIMITED, there are too many; ERR_CURSOR_EXPIRED.
        """
        self._require_room()
        await self._plane.writer.look(lambda store: require_kept(store, query.position))

    async def stream(
        self, query: ResultQuery, deadline_ns: int, limit_ns: int
    ) -> AsyncGenerator[Found | Stopped]:
        """Yield results after the query's position, and wait for more until deadline_ns.

        What there is comes after that too, but none past limit_ns.
        A reader that takes its time holds one page, and nobody waits for it.

        Raises:
            RequestError: ERR_RATE_LIMITED, there are too many; ERR_CURSOR_EXPIRED, also later, when
                results are deleted before they were read.
        """
        time, pulses = self._plane.time, self._plane.results_pulse
        position = await self._begin(query)
        with self._reading():
            said_ns: int | None = None
            while True:
                pulse, looked_ns = pulses.next(), time.now_ns()
                found, is_all = await self._look(replace(query, position=position))
                position = found.position
                if found.results or said_ns is None or time.now_ns() - said_ns >= PING_NS:
                    said_ns = time.now_ns()
                    yield found
                reason = self._reason(
                    time.now_ns(), min(deadline_ns, limit_ns) if is_all else limit_ns, is_all
                )
                if reason:
                    yield Stopped(reason, position)
                    return
                if is_all:
                    until_ns = min(deadline_ns, said_ns + PING_NS)
                    await self._plane.clock.wait(pulse, max(until_ns - time.now_ns(), 0))
                due_ns = looked_ns + self._readers * LOOK_NS
                await self._plane.clock.sleep(max(due_ns - time.now_ns(), 0))

    def _reason(self, now_ns: int, until_ns: int, is_all: bool) -> str:
        """Return why a stream ends now; nothing when it does not."""
        if self._plane.results_pulse.is_closed:
            return "shutdown"
        if now_ns < until_ns:
            return ""
        return "wait" if is_all else "time"

    async def _begin(self, query: ResultQuery) -> int:
        if query.position is not None:
            return query.position
        bounds = await self._plane.writer.look(lambda store: store.result_bounds())
        return bounds.oldest - 1

    def _require_room(self) -> None:
        if self._readers >= READERS_MAX:
            raise RequestError(
                ErrorCode.RATE_LIMITED,
                f"{READERS_MAX} streams of results are open, which is the limit",
                retry_after_ms=RETRY_AFTER_MS,
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._require_room()
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    async def _look(self, query: ResultQuery) -> tuple[Found, bool]:
        """Return what comes next, and whether that was all there is."""
        position = query.position or 0

        def operation(store: Store) -> tuple[Found, bool]:
            # First how far it goes, then what there is, then whether anything was deleted before
            # it was read: each sees at least what the one before it saw.
            newest = store.result_bounds().newest
            through = min(newest, position + SCAN_IDS)
            wanted = replace(query, through=through, limit=PAGE_ROWS, bytes_max=PAGE_BYTES)
            rows = store.results(wanted) if through > position else []
            end = rows[-1].result_id if is_full(wanted, rows) else max(through, position)
            if not rows and end < newest:
                # A restored database goes on many ids later: nobody waits while they are counted.
                end = min(store.next_result(end) or newest + 1, newest + 1) - 1
            require_kept(store, position)
            return Found(tuple(rows), end), end >= newest

        return await self._plane.writer.look(operation)


def require_kept(store: Store, position: int | None) -> None:
    """Refuse a position after which results are missing.

    Raises:
        RequestError: ERR_CURSOR_EXPIRED.
    """
    if position is None:
        return
    bounds = store.result_bounds()
    if position > bounds.newest:
        # The database was exchanged or restored: what comes would seem to have been read.
        raise _expired("the cursor is ahead of every result: it is another database's")
    if position < bounds.oldest - 1:
        gone = bounds.oldest - 1 - position
        raise _expired(f"results after the cursor are no longer kept, {gone} at most")


def _expired(why: str) -> RequestError:
    return RequestError(ErrorCode.CURSOR_EXPIRED, f"{why}; begin again without a cursor")
