"""Claims work that can start at once, and hands it to the worker.

A claim asks for the free slots of the kinds that no other claim is out for, so that a full kind, or
one without work, holds up none of the others.
"""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from netsonde import wire
from netsonde.clock import NS_PER_S, Clock
from netsonde.control_plane import ClaimGrant, ControlPlaneError, TransportError
from netsonde.leases import Grant, LeaseTable
from netsonde.model import Lease, TaskKind
from netsonde.spool import Spool
from netsonde.wire import RejectedLease

FULL_RETRY_NS = NS_PER_S  # how often a full spool is looked at
SLICE = 32  # leases begun in one turn of the loop: a thousand at once would stop it for 80 ms

_log = logging.getLogger("netsonde.agent")


class Claims(Protocol):
    """What a dispatcher needs of a control plane."""

    async def claim(
        self,
        capacities: Mapping[str, int],
        *,
        claim_id: str,
        max_leases: int | None = None,
        wait_ms: int | None = None,
    ) -> ClaimGrant:
        """Ask for work.

        Raises:
            ControlPlaneError: the control plane refused.
            TransportError: there was no usable answer; the claim may have been granted.
        """
        ...

    async def hand_back(self, rejected: Sequence[RejectedLease]) -> int:
        """Give back leases that cannot be worked on.

        Raises:
            ControlPlaneError, TransportError: they were not taken back; they end by themselves.
        """
        ...


class Lanes(Protocol):
    """What a dispatcher needs of a worker."""

    def free(self) -> dict[TaskKind, int]:
        """Return the free slots of every kind that has any."""
        ...

    def measures(self, kind: TaskKind) -> bool:
        """Whether this agent has slots of a kind at all."""
        ...

    def submit(self, lease: Lease) -> None:
        """Take a granted lease."""
        ...


class Dispatcher:
    """Keeps the worker's lanes filled. `run` owns the claims that are out.

    `is_alone` says that only one claim may be out at a time, `gap_ns` how far apart they must be;
    `on_granted` is called when leases entered the table, `on_standing` with each that repeats. Call
    `wake` when a slot or the spool became free.
    """

    def __init__(
        self,
        clock: Clock,
        leases: LeaseTable,
        spool: Spool,
        client: Claims,
        lanes: Lanes,
        wait_ms: int | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.gap_ns: Callable[[], int] = lambda: 0
        self.is_alone: Callable[[], bool] = lambda: False
        self.on_granted: Callable[[], None] = lambda: None
        self.on_standing: Callable[[Lease], None] = lambda _: None
        self._clock = clock
        self._leases = leases
        self._spool = spool
        self._client = client
        self._lanes = lanes
        self._wait_ms = wait_ms
        self._changed = asyncio.Event()
        self._covered: set[TaskKind] = set()
        self._out: dict[str, asyncio.Task[None]] = {}
        self._unanswered: list[str] = []
        self._next_claim_ns = 0
        self._is_stopped = False
        self._was_full = False

    def wake(self) -> None:
        """Look again at what could be claimed."""
        self._changed.set()

    def stop(self) -> tuple[str, ...]:
        """Claim no more; return the ids of claims whose leases, if any, must be given back."""
        self._is_stopped = True
        self._unanswered += self._out
        for task in self._out.values():
            task.cancel()
        self._changed.set()
        return tuple(self._unanswered)

    async def run(self) -> None:
        """Claim until stopped or cancelled."""
        async with asyncio.TaskGroup() as group:
            while not self._is_stopped:
                self._changed.clear()
                wait_ns: int | None = None
                if self._is_spool_full():
                    wait_ns = FULL_RETRY_NS
                elif wanted := self._wanted():
                    wait_ns = self._next_claim_ns - self._clock.boottime_ns()
                    if wait_ns <= 0:
                        self._next_claim_ns = self._clock.boottime_ns() + self.gap_ns()
                        self._send(group, wanted)
                        continue
                await self._clock.wait(self._changed, wait_ns)

    def _wanted(self) -> dict[TaskKind, int]:
        """Return the free slots that no claim is out for."""
        if self._out and self.is_alone():
            return {}
        room = self._leases.capacity - len(self._leases)
        free = self._lanes.free()
        return {
            kind: min(slots, room)
            for kind, slots in free.items()
            if kind not in self._covered and room > 0
        }

    def _is_spool_full(self) -> bool:
        is_full = self._spool.is_full
        if is_full and not self._was_full:
            _log.warning(
                "the spool is full: %d results, %d bytes; no work is claimed until the control"
                " plane has taken some",
                self._spool.rows,
                self._spool.size_bytes,
                extra={"action": "claiming_paused"},
            )
        elif self._was_full and not is_full:
            _log.info("the spool has room: work is claimed", extra={"action": "claiming_resumed"})
        self._was_full = is_full
        return is_full

    def _send(self, group: asyncio.TaskGroup, wanted: Mapping[TaskKind, int]) -> None:
        """Make a claim in a task of its own; one that got no answer is repeated first."""
        claim_id = self._unanswered.pop() if self._unanswered else str(uuid.uuid4())
        self._covered.update(wanted)
        self._out[claim_id] = group.create_task(self._claim(group, claim_id, wanted))

    async def _claim(
        self, group: asyncio.TaskGroup, claim_id: str, wanted: Mapping[TaskKind, int]
    ) -> None:
        try:
            grant = await self._client.claim(
                {kind.value: slots for kind, slots in wanted.items()},
                claim_id=claim_id,
                max_leases=min(sum(wanted.values()), wire.LEASES_PER_CLAIM_MAX),
                wait_ms=self._wait_ms,
            )
        except (ControlPlaneError, TransportError) as error:
            # The session tells the operator; here it only matters whether leases may be lost.
            self.counters["failed"] += 1
            if isinstance(error, TransportError) or error.retryable:
                self._unanswered.append(claim_id)
        else:
            del self._out[claim_id]  # answered: from here on its leases are accounted for
            rejected = [*grant.rejected]
            for start in range(0, len(grant.leases), SLICE):
                rejected += self._take(grant.leases[start : start + SLICE])
                await self._clock.sleep(0)
            if rejected:
                group.create_task(self._hand_back(rejected))
        finally:
            self._out.pop(claim_id, None)
            self._covered.difference_update(wanted)
            self._changed.set()

    def _take(self, granted: Sequence[tuple[Lease, int]]) -> list[RejectedLease]:
        """Take leases into the table and the lanes; return those this agent cannot work on."""
        if self._is_stopped:
            return [_refused(lease, "this agent is draining") for lease, _ in granted]
        rejected, usable = [], []
        for lease, deadline_ns in granted:
            if self._lanes.measures(lease.kind):
                usable.append((lease, deadline_ns))
            else:
                rejected.append(_refused(lease, f"this agent does not measure {lease.kind.value}"))
        answers = self._leases.grant_many(usable, self._clock.boottime_ns())
        for (lease, _), answer in zip(usable, answers, strict=True):
            self.counters[f"lease_{answer.value}"] += 1
            if answer is Grant.GRANTED and lease.repeat is not None:
                self.on_standing(lease)
            elif answer is Grant.GRANTED:
                self._lanes.submit(lease)
            elif answer is Grant.FULL:
                rejected.append(_refused(lease, "this agent holds as many leases as it can"))
        if usable:
            self.on_granted()
        return rejected

    async def _hand_back(self, rejected: Sequence[RejectedLease]) -> None:
        self.counters["lease_rejected"] += len(rejected)
        _log.warning(
            "%d leases are handed back unworked, such as lease %s: %s",
            len(rejected),
            rejected[0].lease_id,
            rejected[0].message,
            extra={"action": "leases_rejected"},
        )
        try:
            await self._client.hand_back(rejected)
        except (ControlPlaneError, TransportError):
            self.counters["hand_back_failed"] += 1  # they end by themselves


def _refused(lease: Lease, why: str) -> RejectedLease:
    return RejectedLease(lease.lease_id, lease.task_id, why)
