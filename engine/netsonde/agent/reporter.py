"""Takes results from the spool to the control plane, and forgets those that were answered for."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Protocol

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane import (
    ControlPlaneError,
    ReportResponse,
    ReportSource,
    TransportError,
)
from netsonde.errors import StorageError
from netsonde.leases import LeaseTable
from netsonde.model import ReportStatus
from netsonde.spool import Spool, SpoolRecords

BATCH_BYTES_MAX = wire.REPORT_MAX_BYTES - 64 * 1024  # less the envelope and the commas
RETRY_MIN_NS = 5 * NS_PER_S  # until an item that was answered `retry` is sent again
RETRY_MAX_NS = 300 * NS_PER_S
STORAGE_RETRY_NS = NS_PER_S
GATHER_MIN_NS = 200 * NS_PER_MS  # however soon a lease ends: not a report for every result
LEAD_NS = 2 * NS_PER_S  # how long before a lease ends its result is on its way
LOOK_NS = NS_PER_S  # how often, while results gather, it is looked whether one has to go
SETTLE_NS = NS_PER_S  # how long acknowledgements wait for results to reach the disk with

# What ends an item's life in the spool. A status nobody knows yet keeps it: nothing says that the
# result is safe.
FINAL = frozenset(status.value for status in ReportStatus) - {ReportStatus.RETRY.value}

_log = logging.getLogger("netsonde.agent")


class Reports(Protocol):
    """What a reporter needs of a control plane."""

    async def report_from(self, source: ReportSource) -> bool:
        """Hand in what source has as a stream; False: there are no streams, use `report`.

        Raises:
            ControlPlaneError: the control plane refused, or ended the stream with an error.
            StorageError: the source failed.
            TransportError: there was no usable answer, or it broke off.
        """
        ...

    async def report(
        self, completed: Sequence[bytes], cancelled: Sequence[bytes]
    ) -> ReportResponse:
        """Hand in items; the answer has one result each, completed ones first.

        Raises:
            ControlPlaneError: the control plane refused.
            TransportError: there was no usable answer.
        """
        ...


class Reporter:
    """Reports what the spool holds, old results first.

    `interval_ns` is how long a first result waits for others, unless a lease ends before; `gap_ns`
    says how far apart reports must be; `on_room` is called when results have left. Call `wake` when
    one was spooled. `caught_up` is set once all that an earlier run left was sent, `flushed` while
    the spool is empty.
    """

    def __init__(
        self,
        clock: Clock,
        spool: Spool,
        leases: LeaseTable,
        client: Reports,
        interval_ns: int,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.caught_up = asyncio.Event()
        self.flushed = asyncio.Event()
        self.gap_ns: Callable[[], int] = lambda: 0
        self.on_room: Callable[[], None] = lambda: None
        self._clock = clock
        self._spool = spool
        self._leases = leases
        self._client = client
        self.interval_ns = interval_ns
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._cursor = 0
        self._sent: dict[int, int] = {}  # of the stream that is open: lease ids by seq
        self._next_report_ns = 0
        self._again_ns: int | None = None
        self._again_delay_ns = RETRY_MIN_NS
        self._is_failing = False

    def wake(self) -> None:
        """Take note that a result was spooled."""
        self.flushed.clear()
        self._changed.set()

    def hurry(self) -> None:
        """Gather no longer: what is spooled from now on is reported at once."""
        self._hurry.set()

    async def run(self) -> None:
        """Report until cancelled, beginning with what an earlier run left."""
        while True:
            self._changed.clear()
            await self._empty()
            self.caught_up.set()
            self._note_flushed()
            if await self._is_quiet() and await self._is_settled():
                await self._clock.wait(self._changed, self._until_again_ns())
            await self._gather()

    async def _gather(self) -> None:
        """Let results gather, for as long as no lease ends: its task would be measured again."""
        begun_ns = now_ns = self._clock.boottime_ns()
        while not self._hurry.is_set():
            until_ns = begun_ns + self.interval_ns
            if (end_ns := self._leases.next_deadline_ns) is not None:
                least_ns = begun_ns + min(self.interval_ns, GATHER_MIN_NS)
                until_ns = min(until_ns, max(end_ns - LEAD_NS - self.gap_ns(), least_ns))
            if now_ns >= until_ns:
                return
            await self._clock.wait(self._hurry, min(until_ns - now_ns, LOOK_NS))
            now_ns = self._clock.boottime_ns()

    async def _is_quiet(self) -> bool:
        """Wait a moment for results; return whether none came."""
        again_ns = self._until_again_ns()
        quiet_ns = SETTLE_NS if again_ns is None else min(SETTLE_NS, again_ns)
        return not await self._clock.wait(self._changed, quiet_ns)

    async def _is_settled(self) -> bool:
        """Let the disk know of what was acknowledged; return whether it does.

        New results take that along. Until it is known its bytes count, and a disk that was full is
        thought to be.
        """
        try:
            await self._spool.flush()
        except StorageError as error:
            self._storage_failed(error)
            return False
        self._is_failing = False
        self.on_room()
        return True

    async def _empty(self) -> None:
        """Report batch after batch until nothing new waits."""
        while True:
            try:
                if not await self._next_batch():
                    return
            except StorageError as error:
                self._storage_failed(error)
                await self._clock.sleep(STORAGE_RETRY_NS)
            except (ControlPlaneError, TransportError):
                # The session tells the operator, the client keeps the attempts apart. An outage
                # may last: what was acknowledged before it does not wait for its end.
                self.counters["failed"] += 1
                await self._is_settled()

    async def _next_batch(self) -> bool:
        """Report what waits, a stream or a batch of it; return whether there was anything."""
        wait_ns = self._next_report_ns - self._clock.boottime_ns()
        if wait_ns > 0 and self._spool.rows:
            await self._clock.sleep(wait_ns)
        now_ns = self._clock.boottime_ns()
        if self._again_ns is not None and now_ns >= self._again_ns:
            self._cursor, self._again_ns = 0, None
        records = await self._pending(wire.REPORT_ITEMS_MAX, BATCH_BYTES_MAX)
        if not records:
            return False
        self._next_report_ns = now_ns + self.gap_ns()
        if not await self._stream():
            await self._batch(records)
        return True

    def _storage_failed(self, error: StorageError) -> None:
        self.counters["storage_failed"] += 1
        if not self._is_failing:
            _log.error("%s", error, extra={"action": "spool_failed"})
        self._is_failing = True

    async def _pending(self, items: int, size_bytes: int) -> SpoolRecords:
        return await self._spool.pending(items, size_bytes, after_seq=self._cursor)

    # ── as a stream ──

    async def _stream(self) -> bool:
        """Report all that waits, and what comes meanwhile; return False where nobody streams."""
        try:
            is_streamed = await self._client.report_from(self)
        except (ControlPlaneError, TransportError, StorageError):
            self.begin()
            raise
        if not is_streamed:
            self.begin()
        elif self._sent:  # it ended well, without a word about these
            self._sent.clear()
            self._again_later()
        return is_streamed

    def begin(self) -> None:
        """Go back to the first item that is not settled."""
        if self._sent:
            self._cursor = next(iter(self._sent)) - 1
            self._sent.clear()

    async def more(self, items: int, size_bytes: int) -> tuple[Sequence[int], Sequence[bytes]]:
        """Return the numbers and bodies of the next items; none when nothing waits any more."""
        records = await self._pending(items, size_bytes)
        if records:
            self._cursor = records.seqs[-1]
        self._sent.update(zip(records.seqs, records.lease_ids, strict=True))
        return records.seqs, records.bodies

    async def settle(self, seqs: Sequence[int], statuses: Sequence[str]) -> None:
        """Forget what was answered for; the rest is sent again later."""
        found = [self._sent.pop(seq, None) for seq in seqs]
        lease_ids = [lease_id for lease_id in found if lease_id is not None]
        if len(lease_ids) < len(found):  # some are not under way any more
            known = [lease_id is not None for lease_id in found]
            seqs, statuses = [*compress(seqs, known)], [*compress(statuses, known)]
        self._settle(seqs, lease_ids, statuses)

    # ── in batches ──

    async def _batch(self, records: SpoolRecords) -> None:
        last_seq = records.seqs[-1]
        completed = len(records) - sum(records.cancelled)
        if completed < len(records):  # the completed ones go first, as they are reported
            records = records.at(sorted(range(len(records)), key=records.cancelled.__getitem__))
        response = await self._client.report(records.bodies[:completed], records.bodies[completed:])
        statuses = [result.status for result in response.results]
        statuses += [ReportStatus.RETRY.value] * (len(records) - len(statuses))
        self._settle(records.seqs, records.lease_ids, statuses)
        self._cursor = last_seq

    def _settle(
        self, seqs: Sequence[int], lease_ids: Sequence[int], statuses: Sequence[str]
    ) -> None:
        """Forget items that were answered for."""
        counts = Counter(statuses)
        for status, count in counts.items():
            self.counters[f"status_{status}"] += count
        if counts.keys() <= FINAL:
            if self._again_ns is None:
                self._again_delay_ns = RETRY_MIN_NS
        else:
            final = [status in FINAL for status in statuses]
            seqs, lease_ids = [*compress(seqs, final)], [*compress(lease_ids, final)]
            self._again_later()
        self._leases.acknowledge_many(lease_ids)
        self._spool.acknowledge(seqs)
        self.on_room()

    def _again_later(self) -> None:
        if self._again_ns is None:
            self._again_ns = self._clock.boottime_ns() + self._again_delay_ns
            self._again_delay_ns = min(2 * self._again_delay_ns, RETRY_MAX_NS)

    def _until_again_ns(self) -> int | None:
        if self._again_ns is None:
            return None
        return self._again_ns - self._clock.boottime_ns()

    def _note_flushed(self) -> None:
        if self._spool.rows == 0:
            self.flushed.set()
