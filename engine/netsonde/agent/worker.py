"""One task per lease: measure, make the result durable, free the slot.

The worker knows nothing of renewal. Whoever ends a lease calls `cancel`; what was measured until
then is reported all the same.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from netsonde import __version__, wire
from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import SpoolFull, StorageError
from netsonde.leases import LeaseTable
from netsonde.model import (
    TARGET_FIELDS,
    Failure,
    FailureSource,
    Lease,
    Measurement,
    Outcome,
    Reason,
    TaskKind,
)
from netsonde.pacing import KeyedBuckets, Pacer
from netsonde.probe.base import Prober, Recorder, measure
from netsonde.spool import Spool
from netsonde.ticks import Tick

HOLD_RETRY_NS = 500 * NS_PER_MS  # how often a result that the spool refused is offered again
TARGETS_MAX = 10_000  # targets paced at once; those beyond share one bucket
TARGET_BURST = 10  # a check's targets often resolve to one host

_log = logging.getLogger("netsonde.agent")
_ENDINGS = {
    Reason.EXPIRED: "the lease ended before the measurement did",
    Reason.CANCELLED: "the lease was taken back before the measurement ended",
}


class _Phase(Enum):
    NEW = auto()  # its task has not run yet: cancelling it would skip its clean-up
    WAITING = auto()  # for its turn at the target
    MEASURING = auto()
    KEEPING = auto()  # the result is on its way to the disk


@dataclass(slots=True, eq=False)
class _Job:
    lease: Lease
    tick: Tick | None = None  # of a standing lease: its runs begin and end, it does not
    task: asyncio.Task[None] | None = None
    phase: _Phase = _Phase.NEW
    reason: Reason | None = None


@dataclass(slots=True)
class Lane:
    """One kind's slots: what runs, and what was granted beyond them and waits."""

    capacity: int
    running: int = 0
    queued: deque[_Job] = field(default_factory=deque)

    @property
    def free(self) -> int:
        """Slots that a claim may ask for."""
        return max(0, self.capacity - self.running - len(self.queued))


def target_pacer(starts_per_s: float) -> Pacer:
    """Make the pacer of measurements: a bucket per real target."""
    return Pacer(keyed=[KeyedBuckets(starts_per_s, TARGET_BURST, TARGETS_MAX)])


class Worker:
    """Runs granted leases under a limit per kind. `run` owns their tasks.

    `on_free` is called when a slot becomes free, `on_kept` when a result is durable, `on_ran` with
    a standing lease's id when a run of it is over. `idle` is set while nothing runs or is queued.
    `is_columnar` says that whoever reads the results knows columns.
    """

    def __init__(
        self,
        clock: Clock,
        leases: LeaseTable,
        spool: Spool,
        probers: Mapping[TaskKind, Prober[Any]],
        capacities: Mapping[TaskKind, int],
        pacer: Pacer,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.idle = asyncio.Event()
        self.idle.set()
        self.on_free: Callable[[], None] = lambda: None
        self.on_kept: Callable[[], None] = lambda: None
        self.on_ran: Callable[[int], None] = lambda _: None
        self.is_columnar: Callable[[], bool] = lambda: True
        self.env: dict[str, Any] = {}
        self._clock = clock
        self._leases = leases
        self._spool = spool
        self._probers = probers
        self._pacer = pacer
        self._lanes = {kind: Lane(capacities.get(kind, 0)) for kind in probers}
        self._jobs: dict[int, _Job] = {}
        self._group: asyncio.TaskGroup | None = None
        self._is_holding = False

    async def run(self) -> None:
        """Keep the leases' tasks until cancelled; they are cancelled with it."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def free(self) -> dict[TaskKind, int]:
        """Return the free slots of every kind that has any."""
        return {kind: lane.free for kind, lane in self._lanes.items() if lane.free}

    def measures(self, kind: TaskKind) -> bool:
        """Whether this agent has slots of a kind at all."""
        return kind in self._lanes and self._lanes[kind].capacity > 0

    def running(self) -> dict[TaskKind, int]:
        """Return how many leases of each kind occupy a slot."""
        return {kind: lane.running for kind, lane in self._lanes.items() if lane.running}

    @property
    def held(self) -> int:
        """Leases whose result is measured and not durable yet."""
        return sum(job.phase is _Phase.KEEPING for job in self._jobs.values())

    def submit(self, lease: Lease, tick: Tick | None = None) -> None:
        """Take a granted lease, or a tick of a standing one: it begins when its kind has a slot.

        One that is granted again while its measurement is being ended, or its result kept, is let
        go: what was seen is reported under its id.
        """
        if lease.lease_id in self._jobs:
            self.counters["granted_again"] += 1
            self._leases.release(lease.lease_id)
            return
        lane = self._lanes[lease.kind]
        self.idle.clear()
        lane.queued.append(_Job(lease, tick))
        self._fill(lane)

    def cancel(self, lease_id: int, reason: Reason) -> None:
        """End a lease's measurement; unknown and measured leases are left alone."""
        job = self._jobs.get(lease_id)
        if job is None:
            self._unqueue({lease_id})
        elif job.phase is not _Phase.KEEPING and job.reason is None:
            job.reason = reason
            if job.phase is not _Phase.NEW and job.task is not None:
                job.task.cancel()

    def cancel_all(self, reason: Reason) -> None:
        """End every measurement."""
        for lease_id in tuple(self._jobs):
            self.cancel(lease_id, reason)

    def drop_unstarted(self) -> list[int]:
        """Let go every lease that has not begun to measure; return their ids, to be given back."""
        waiting = [lease_id for lease_id, job in self._jobs.items() if job.phase is _Phase.WAITING]
        queued = [job.lease.lease_id for lane in self._lanes.values() for job in lane.queued]
        self._unqueue(set(queued))
        for lease_id in waiting:
            self.cancel(lease_id, Reason.CANCELLED)
        return waiting + queued

    def _unqueue(self, lease_ids: Iterable[int]) -> None:
        for lane in self._lanes.values():
            queued, lane.queued = lane.queued, deque[_Job]()
            for job in queued:
                if job.lease.lease_id not in lease_ids:
                    lane.queued.append(job)
                else:
                    self.counters["unstarted"] += 1
                    self._note_ran(job)
        self._note_idle()

    def _fill(self, lane: Lane) -> None:
        while lane.queued and lane.running < lane.capacity and self._group is not None:
            job = lane.queued.popleft()
            lane.running += 1
            self._jobs[job.lease.lease_id] = job
            job.task = self._group.create_task(self._work(job, lane))

    async def _work(self, job: _Job, lane: Lane) -> None:
        try:
            if await self._begin(job):
                await self._keep(job, await self._measure(job))
        finally:
            del self._jobs[job.lease.lease_id]
            lane.running -= 1
            self._note_ran(job)
            self._fill(lane)
            self._note_idle()
            self.on_free()

    def _note_ran(self, job: _Job) -> None:
        if job.tick is not None:
            self.on_ran(job.lease.lease_id)

    async def _begin(self, job: _Job) -> bool:
        """Wait for the target's turn; return whether the lease may start."""
        lease = job.lease
        job.phase = _Phase.WAITING
        if job.reason is None:
            target = getattr(lease.spec, TARGET_FIELDS[lease.kind])
            wait_ns = self._pacer.reserve((target,), self._clock.boottime_ns())
            try:
                if wait_ns:
                    await self._clock.sleep(wait_ns)
            except asyncio.CancelledError:
                self._swallow(job)
        if job.reason is None and (
            job.tick is not None or self._leases.start(lease.lease_id, self._clock.boottime_ns())
        ):
            return True
        self.counters["unstarted"] += 1
        return False

    async def _measure(self, job: _Job) -> Measurement:
        record = Recorder(self._clock, self.env, columnar=self.is_columnar())
        job.phase = _Phase.MEASURING
        try:
            await measure(self._probers[job.lease.kind], job.lease.spec, record)
        except asyncio.CancelledError:
            self._swallow(job)
        job.phase = _Phase.KEEPING
        if job.reason is not None:
            record.fail(Outcome.CANCELLED, job.reason, FailureSource.SELF, _ENDINGS[job.reason])
        if job.tick is None:
            self._leases.finish(job.lease.lease_id)
        return record.measurement()

    def _swallow(self, job: _Job) -> None:
        """Take note that `cancel` ended the wait; anybody else's cancellation goes on.

        Raises:
            CancelledError: the whole agent is being stopped.
        """
        if job.task is None or job.reason is None or self._group is None:
            raise asyncio.CancelledError
        job.task.uncancel()

    async def _keep(self, job: _Job, measurement: Measurement) -> None:
        """Make a result durable, however long the spool refuses it."""
        body = _encoded(job, measurement)
        cancelled = measurement.outcome is Outcome.CANCELLED
        while True:
            try:
                await self._spool.append(job.lease.lease_id, body, cancelled=cancelled)
            except StorageError as error:
                self._hold(error)
                await self._clock.sleep(HOLD_RETRY_NS)
            else:
                break
        self._is_holding = False
        self.counters[f"outcome_{measurement.outcome}"] += 1
        self.on_kept()

    def _hold(self, error: StorageError) -> None:
        self.counters["spool_refusals"] += 1
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

    def _note_idle(self) -> None:
        if not self._jobs and not any(lane.queued for lane in self._lanes.values()):
            self.idle.set()


def _encoded(job: _Job, measurement: Measurement) -> bytes:
    """Encode a result; one that cannot be is replaced by one that says so."""
    lease_id = job.lease.lease_id
    tick, scheduled_at = job.tick or (None, job.lease.scheduled_at)
    try:
        return wire.encode_report_item(lease_id, measurement, scheduled_at=scheduled_at, tick=tick)
    except Exception as error:
        _log.exception("a result cannot be encoded", extra={"action": "result_unencodable"})
        failure = Failure(
            reason=Reason.PROTOCOL_ERROR,
            failure_source=FailureSource.SELF,
            message=f"internal error: the result cannot be encoded: {type(error).__name__}",
        )
        spare = Measurement(
            outcome=Outcome.AGENT_ERROR,
            started_at_ns=measurement.started_at_ns,
            duration_ns=measurement.duration_ns,
            observations=(),
            error=failure,
            env={"version": __version__},
        )
        return wire.encode_report_item(lease_id, spare, scheduled_at=scheduled_at, tick=tick)
