"""Claims work that can start at once, and hands it to the worker.

A claim asks for the free slots of the kinds that no other claim still has credit for, so that a
full kind, or one without work, holds up none of the others. Leases come as the control plane grants
them, for as long as the claim is held.
"""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from netsonde.clock import NS_PER_S, Clock
from netsonde.control_plane import ClaimGrant, ClaimSink, ControlPlaneError, TransportError
from netsonde.leases import Grant, LeaseTable
from netsonde.model import Lease, TaskKind
from netsonde.spool import Spool
from netsonde.wire import RejectedLease

GRANTED = Grant.GRANTED  # looked up once: leases come by the thousand
REPEAT_NS = 600 * NS_PER_S  # for as long a control plane finds what a claim was granted
FULL_RETRY_NS = NS_PER_S  # how often a full spool is looked at

_log = logging.getLogger("netsonde.agent")


class Claims(Protocol):
    """What a dispatcher needs of a control plane."""

    async def claim_into(
        self,
        sink: ClaimSink,
        capacities: Mapping[str, int],
        *,
        claim_id: str,
        wait_ms: int | None = None,
    ) -> None:
        """Ask for work and hand the sink what comes until the claim ends.

        Raises:
            ControlPlaneError: the control plane refused.
            TransportError: there was no usable answer; more may have been granted than came.
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

    @property
    def per_turn(self) -> int:
        """How many leases it takes in one turn of the loop."""
        ...

    def submit_many(self, leases: Sequence[Lease]) -> None:
        """Take leases that were granted."""
        ...


class Dispatcher:
    """Keeps the worker's lanes filled. `run` owns the claims that are out.

    `is_alone` says that only one claim may be out at a time, `gap_ns` how far apart they must be;
    `on_granted` is called when leases entered the table, `on_standing` with each that repeats,
    `on_revoked` with those that the control plane takes back. Call `wake` when a slot or the spool
    became free.
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
        self.on_revoked: Callable[[Sequence[int]], None] = lambda _: None
        self.on_standing: Callable[[Lease], None] = lambda _: None
        self._clock = clock
        self._leases = leases
        self._spool = spool
        self._client = client
        self._lanes = lanes
        self._wait_ms = wait_ms
        self._changed = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._out: dict[str, _Claim] = {}
        self._broken: dict[str, _Claim] = {}
        self._next_claim_ns = 0
        self._is_stopped = False
        self._was_full = False

    def wake(self) -> None:
        """Look again at what could be claimed."""
        self._changed.set()

    def stop(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Claim no more.

        Return the ids of claims whose leases must be given back, and the leases that came of them:
        those are known.
        """
        self._is_stopped = True
        for claim in self._out.values():
            claim.is_over = True
            self._broken[claim.claim_id] = claim
            if claim.task is not None and not claim.is_taking:
                claim.task.cancel()
        # A task that is cancelled before it ran does not even say that it is over.
        self._out = {key: claim for key, claim in self._out.items() if claim.is_taking}
        self._changed.set()
        known = [lease_id for claim in self._broken.values() for lease_id in claim.taken]
        return tuple(self._broken), tuple(known)

    def resume(self) -> None:
        """Claim again; what was given back is not asked for any more.

        A `run` that has returned has to be run again.
        """
        self._is_stopped = False
        self._broken.clear()
        self._changed.set()

    def give_back(self, leases: Sequence[Lease]) -> None:
        """Let go of leases that wait for slots which there are none of any more."""
        self._leases.release_many([lease.lease_id for lease in leases])
        if self._group is not None:  # else they end by themselves
            refused = [_not_measured(lease) for lease in leases]
            self._group.create_task(self._hand_back(refused))

    async def run(self) -> None:
        """Claim until stopped or cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                await self._claim(self._group)
        finally:
            self._group = None

    async def _claim(self, group: asyncio.TaskGroup) -> None:
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
        """Return the free slots of kinds that no claim has credit for."""
        if self._out and self.is_alone():
            return {}
        covered = {kind for claim in self._out.values() for kind in claim.credits}
        room = self._leases.capacity - len(self._leases)
        wanted: dict[TaskKind, int] = {}
        for kind, slots in self._lanes.free().items():
            if kind not in covered and room > 0:
                wanted[kind] = min(slots, room)
                room -= wanted[kind]  # together no more than the table takes
        return wanted

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
        """Make a claim in a task of its own; one that broke off is repeated first."""
        claim = self._to_repeat(wanted)
        if claim is None:
            now_ns = self._clock.boottime_ns()
            claim = _Claim(self, group, str(uuid.uuid4()), frozenset(wanted), now_ns)
        claim.credits = {kind: slots for kind, slots in wanted.items() if kind in claim.kinds}
        self._out[claim.claim_id] = claim
        claim.task = group.create_task(self._follow(claim))

    def _to_repeat(self, wanted: Mapping[TaskKind, int]) -> "_Claim | None":
        """Take out a claim that broke off, for kinds that are wanted; old ones bring nothing."""
        oldest_ns = self._clock.boottime_ns() - REPEAT_NS
        for claim_id, claim in tuple(self._broken.items()):
            if claim.begun_ns < oldest_ns:
                del self._broken[claim_id]
            elif not claim.kinds.isdisjoint(wanted):
                return self._broken.pop(claim_id)
        return None

    async def _follow(self, claim: "_Claim") -> None:
        try:
            await self._client.claim_into(
                claim,
                {kind.value: slots for kind, slots in claim.credits.items()},
                claim_id=claim.claim_id,
                wait_ms=self._wait_ms,
            )
        except (ControlPlaneError, TransportError) as error:
            # The session tells the operator; here it only matters whether leases may be lost.
            self.counters["failed"] += 1
            if not claim.is_over and (isinstance(error, TransportError) or error.retryable):
                self._broken[claim.claim_id] = claim
        finally:
            self._out.pop(claim.claim_id, None)
            self._changed.set()

    async def take(self, claim: "_Claim", grant: ClaimGrant) -> None:
        """Take what a claim brought, some at a time; what cannot be worked on goes back."""
        rejected = [*grant.rejected]
        claim.is_taking = True
        per_turn = self._lanes.per_turn
        for begin in range(0, len(grant.leases), per_turn):
            granted = claim.new_of(grant.part(begin, begin + per_turn))
            rejected += self._refuse(granted) if claim.is_over else self._take(granted)
            await self._clock.sleep(0)
        if rejected:
            claim.group.create_task(self._hand_back(rejected))
        claim.is_taking = False
        if claim.is_over and claim.task is not None:
            claim.task.cancel()
        self._changed.set()

    @staticmethod
    def _refuse(granted: ClaimGrant) -> list[RejectedLease]:
        return [_refused(lease, "this agent is draining") for lease in granted.leases]

    def _take(self, granted: ClaimGrant) -> list[RejectedLease]:
        """Take leases into the table and the lanes; return those this agent cannot work on."""
        kinds = [lease.kind for lease in granted.leases]
        measured = {kind for kind in TaskKind if self._lanes.measures(kind)}
        usable, rejected = granted, list[RejectedLease]()
        if not measured.issuperset(kinds):
            usable = granted.where([kind in measured for kind in kinds])
            rejected = [
                _not_measured(lease) for lease in granted.leases if lease.kind not in measured
            ]
        now_ns = self._clock.boottime_ns()
        answers = self._leases.grant_many(usable.leases, usable.deadlines_ns, now_ns)
        counts = Counter(answers)
        for answer, count in counts.items():
            self.counters[f"lease_{answer.value}"] += count
        taken = usable.leases
        if counts[GRANTED] < len(taken):
            taken = usable.where([answer is GRANTED for answer in answers]).leases
        if counts[Grant.FULL]:
            rejected += [
                _refused(lease, "this agent holds as many leases as it can")
                for lease, answer in zip(usable.leases, answers, strict=True)
                if answer is Grant.FULL
            ]
        standing = [lease for lease in taken if lease.repeat is not None]
        for lease in standing:
            self.on_standing(lease)
        once = [lease for lease in taken if lease.repeat is None] if standing else taken
        self._lanes.submit_many(once)
        if usable.leases:
            self.on_granted()
        return rejected

    async def _hand_back(self, rejected: Sequence[RejectedLease]) -> None:
        self.counters["lease_rejected"] += len(rejected)
        _log.warning(
            "%d leases are handed back unworked, such as lease %s: %s",
            len(rejected),
            rejected[0].lease_id,
            rejected[0].message,
            extra={
                "action": "leases_rejected",
                "leases": len(rejected),
                "lease_id": rejected[0].lease_id,
                "task_id": rejected[0].task_id,
            },
        )
        try:
            await self._client.hand_back(rejected)
        except (ControlPlaneError, TransportError):
            self.counters["hand_back_failed"] += 1  # they end by themselves


@dataclass(slots=True, eq=False)
class _Claim:
    """One claim that is out: what it may still bring, and the leases that came."""

    dispatcher: Dispatcher
    group: asyncio.TaskGroup
    claim_id: str
    kinds: frozenset[TaskKind]
    begun_ns: int
    credits: dict[TaskKind, int] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    task: asyncio.Task[None] | None = None
    is_taking: bool = False
    is_over: bool = False  # what still comes of it goes back

    async def take(self, grant: ClaimGrant) -> None:
        """Take granted leases."""
        await self.dispatcher.take(self, grant)

    def revoke(self, lease_ids: Sequence[int]) -> None:
        """End leases that the control plane takes back."""
        self.dispatcher.on_revoked(lease_ids)

    def new_of(self, granted: ClaimGrant) -> ClaimGrant:
        """Take note of leases; return those that have not come before.

        One that comes again, by an answer that repeats a broken one, is worked on, or has ended
        here and its result is on its way: nothing is measured twice under one lease. A kind whose
        credit is used up may be claimed again.
        """
        for kind, count in Counter([lease.kind for lease in granted.leases]).items():
            left = self.credits.pop(kind, 0) - count
            if left > 0:
                self.credits[kind] = left
        lease_ids = [lease.lease_id for lease in granted.leases]
        alone = set(lease_ids)
        if len(alone) == len(lease_ids) and self.taken.isdisjoint(alone):
            self.taken |= alone
            return granted
        is_new = []
        for lease_id in lease_ids:
            is_new.append(lease_id not in self.taken)
            self.taken.add(lease_id)
        self.dispatcher.counters["lease_repeated"] += is_new.count(False)
        return granted.where(is_new)


def _refused(lease: Lease, why: str) -> RejectedLease:
    return RejectedLease(lease.lease_id, lease.task_id, why)


def _not_measured(lease: Lease) -> RejectedLease:
    return _refused(lease, f"this agent does not measure {lease.kind.value}")
