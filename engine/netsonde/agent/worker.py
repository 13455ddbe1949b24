"""One task per lease: measure, have the result kept, free the slot once it is durable.

Leases whose prober answers without waiting need no task: a batch of them is measured in one call.

The worker knows nothing of renewal. Whoever ends a lease calls `cancel`; what was measured until
then is reported all the same.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain, repeat
from typing import Any

from netsonde.agent.at_once import AtOnce, parted, parted_by_kind
from netsonde.agent.bounds import Bounds
from netsonde.agent.keeper import Keeper
from netsonde.agent.lanes import Lanes
from netsonde.clock import Clock
from netsonde.congestion import CongestionControl, Signal, signal_of
from netsonde.leases import LeaseTable
from netsonde.metrics import Durations
from netsonde.model import (
    FailureSource,
    Lease,
    Measurement,
    Outcome,
    Reason,
    TaskKind,
)
from netsonde.pacing import Pacer
from netsonde.probe.base import (
    Moment,
    Prober,
    Recorder,
    measure,
)
from netsonde.spool import Spool
from netsonde.ticks import Tick
from netsonde.wire import Result

# Leases begun in one turn of the loop. A thousand tasks at once would stop it for 80 ms; leases
# without one are a twentieth of the work.
TASKS_PER_TURN, INSTANTS_PER_TURN = 32, 256

_log = logging.getLogger("netsonde.agent")

_ENDINGS = {
    Reason.EXPIRED: "the lease ended before the measurement did",
    Reason.CANCELLED: "the lease was taken back before the measurement ended",
}


class _Phase(Enum):
    NEW = auto()  # its task has not run yet: cancelling it would skip its clean-up
    WAITING = auto()  # for its turn at the target
    MEASURING = auto()


@dataclass(slots=True, eq=False)
class _Job:
    lease: Lease
    tick: Tick | None = None  # of a standing lease: its runs begin and end, it does not
    task: asyncio.Task[None] | None = None
    phase: _Phase = _Phase.NEW
    reason: Reason | None = None


class Worker:
    """Runs granted leases under a limit per kind. `run` owns their tasks.

    `on_free` is called when a slot becomes free, `on_kept` when a result is durable, `on_ran` with
    a standing lease's id when a run of it is over, `on_stopped` with leases that cannot begin any
    more because their kind has no slots. `idle` is set while nothing runs or is queued.
    `is_columnar` says that whoever reads the results knows columns. `durations` are of measurements
    that took any time.
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
        self.durations = {kind: Durations() for kind in probers}
        self.idle = asyncio.Event()
        self.idle.set()
        self.on_free: Callable[[], None] = lambda: None
        self.on_kept: Callable[[], None] = lambda: None
        self.on_ran: Callable[[int], None] = lambda _: None
        self.on_stopped: Callable[[Sequence[Lease]], None] = lambda _: None
        self.is_columnar: Callable[[], bool] = lambda: True
        self.env: dict[str, Any] = {}
        self._clock = clock
        self._leases = leases
        self._keeper = Keeper(clock, spool, self.counters, self._free)
        self._probers = probers
        self.bounds = Bounds(pacer)
        self._at_once = AtOnce(clock, probers, self.bounds)
        self._lanes: Lanes[_Job] = Lanes({kind: capacities.get(kind, 0) for kind in probers})
        self._jobs: dict[int, _Job] = {}
        self._keeping: dict[int, TaskKind] = {}
        self._ticking: set[int] = set()  # of those that are kept
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keep the leases' tasks until cancelled; they are cancelled with it."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._keeper.run()
            finally:
                self._group = None

    @property
    def congestion(self) -> CongestionControl:
        """What limits how much runs at once."""
        return self._lanes.congestion

    def lagged(self, lag_ns: int) -> None:
        """Take note of how late the loop is: a host that cannot keep up begins less at once."""
        self._lanes.congestion.lagged(lag_ns, self._clock.monotonic_ns())

    def resize(self, capacities: Mapping[TaskKind, int]) -> None:
        """Let other numbers run at once from now on; what runs already goes on.

        Of a kind that is left without slots nothing waits: it might do so until it has some again.
        """
        self._lanes.resize(capacities)
        jobs = [job for job in self._lanes.queued() if not self.measures(job.lease.kind)]
        self._unqueue({job.lease.lease_id for job in jobs})
        if stopped := [job.lease for job in jobs if job.tick is None]:
            self.on_stopped(stopped)
        self._refill()

    def free(self) -> dict[TaskKind, int]:
        """Return the slots that a claim may ask for, of every kind that has any."""
        return self._lanes.free()

    def measures(self, kind: TaskKind) -> bool:
        """Whether this agent has slots of a kind at all."""
        return self._lanes.measures(kind)

    def running(self) -> dict[TaskKind, int]:
        """Return how many leases of each kind occupy a slot."""
        return self._lanes.taken()

    @property
    def held(self) -> int:
        """Leases whose result is measured and not durable yet."""
        return len(self._keeping)

    @property
    def per_turn(self) -> int:
        """How many leases it takes in one turn of the loop."""
        are_all_instant = self._at_once.kinds == self._probers.keys()
        return INSTANTS_PER_TURN if are_all_instant else TASKS_PER_TURN

    def submit(self, lease: Lease, tick: Tick | None = None) -> None:
        """Take a granted lease, or a tick of a standing one: it begins when its kind has a slot.

        One that is granted again while its measurement is being ended, or its result kept, is let
        go: what was seen is reported under its id. A tick of a kind without slots is over at once.
        """
        if tick is not None and not self.measures(lease.kind):
            self.counters["unstarted"] += 1
            self.on_ran(lease.lease_id)
            return
        self._queue(lease, tick)
        self._fill(lease.kind)

    def submit_many(self, leases: Sequence[Lease]) -> None:
        """Take leases that were granted together."""
        others = self._measure_at_once(leases) if self._at_once.kinds else leases
        for lease in others:
            self._queue(lease)
        for kind in {lease.kind: None for lease in others}:
            self._fill(kind)

    def cancel(self, lease_id: int, reason: Reason) -> None:
        """End a lease's measurement; unknown and measured leases are left alone."""
        job = self._jobs.get(lease_id)
        if job is None:
            self._unqueue({lease_id})
        elif job.reason is None:
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
        queued = [job.lease.lease_id for job in self._lanes.queued()]
        self._unqueue(set(queued))
        for lease_id in waiting:
            self.cancel(lease_id, Reason.CANCELLED)
        return waiting + queued

    def _unqueue(self, lease_ids: Collection[int]) -> None:
        for job in self._lanes.remove(lease_ids):
            self.counters["unstarted"] += 1
            self._note_ran(job)
        self._note_idle()

    def _queue(self, lease: Lease, tick: Tick | None = None) -> None:
        if lease.lease_id in self._jobs or lease.lease_id in self._keeping:
            self.counters["granted_again"] += 1
            self._leases.release(lease.lease_id)
            return
        self.idle.clear()
        self._lanes.queue(_Job(lease, tick))

    def _fill(self, kind: TaskKind) -> None:
        while self._group is not None and (job := self._lanes.begin(kind)) is not None:
            self._jobs[job.lease.lease_id] = job
            job.task = self._group.create_task(self._work(job))

    async def _work(self, job: _Job) -> None:
        lease = job.lease
        signal = Signal.NEITHER
        try:
            if wait_ns := self._until_turn_ns(job):
                await self._wait(job, wait_ns)
            if self._may_start(job):
                measurement = await self._measure(job)
                signal = signal_of(measurement)
                self.durations[lease.kind].observe(measurement.duration_ns)
                if measurement.outcome is Outcome.AGENT_ERROR:
                    _note_failure(lease, measurement)
                self._keeping[lease.lease_id] = lease.kind
                number, scheduled_at = job.tick or (None, lease.scheduled_at)
                if number is not None:
                    self._ticking.add(lease.lease_id)
                self._keeper.add(Result(lease.lease_id, measurement, scheduled_at, number))
        finally:
            del self._jobs[lease.lease_id]
            self._lanes.ended(lease, signal, self._clock.monotonic_ns())
            if lease.lease_id not in self._keeping:
                self._lanes.give_back(lease.kind)
                self._note_ran(job)
                self._refill()

    def _free(self, lease_ids: Sequence[int]) -> None:
        """Free the slots of leases whose results are durable."""
        for kind, count in Counter(map(self._keeping.pop, lease_ids)).items():
            self._lanes.give_back(kind, count)
        for lease_id in self._ticking.intersection(lease_ids):
            self._ticking.discard(lease_id)
            self.on_ran(lease_id)
        self.on_kept()
        self._refill()

    def _refill(self) -> None:
        """Use slots that became free, of whatever kind: there are limits on all together."""
        for kind in self._probers:
            self._fill(kind)
        self._note_idle()
        self.on_free()

    # ── without a task ──

    def _measure_at_once(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Measure what has a slot, is new and need not wait; return the others."""
        began, now_ns = Moment.now(self._clock), self._clock.boottime_ns()
        by_kind = parted_by_kind(leases)
        leases = [*chain.from_iterable(by_kind.values())]
        lease_ids = [lease.lease_id for lease in leases]
        ready, others = parted(leases, self._may_begin_at_once(by_kind, leases, lease_ids))
        turns = self.bounds.take_each(ready, now_ns)
        ready, waiting = parted(ready, turns)
        if len(ready) < len(leases):
            lease_ids = [lease.lease_id for lease in ready]
        begun = self._leases.pass_many(lease_ids, now_ns)
        if len(begun) < len(lease_ids):
            self.counters["unstarted"] += len(lease_ids) - len(begun)
            known = {*begun}
            ready = [lease for lease in ready if lease.lease_id in known]
        if ready:
            chosen = by_kind if len(ready) == len(leases) else parted_by_kind(ready)
            self._keep_columns(chosen, begun, began)
        return [*others, *waiting]

    def _may_begin_at_once(
        self,
        by_kind: Mapping[TaskKind, Sequence[Lease]],
        leases: Sequence[Lease],
        lease_ids: Sequence[int],
    ) -> Sequence[bool]:
        """Whether each is of a kind that answers at once and has room, and nothing of it is left.

        What is left of an earlier grant, a measurement or a result, has to end first.
        """
        kinds = {
            kind
            for kind, batch in by_kind.items()
            if kind in self._at_once.kinds
            and self._group is not None
            and self._lanes.room(kind) >= len(batch)
        }
        jobs, keeping = self._jobs, self._keeping
        is_new = jobs.keys().isdisjoint(lease_ids) and keeping.keys().isdisjoint(lease_ids)
        if is_new and kinds == by_kind.keys():
            return [True] * len(leases)
        return [
            lease.kind in kinds and lease.lease_id not in jobs and lease.lease_id not in keeping
            for lease in leases
        ]

    def _keep_columns(
        self, by_kind: Mapping[TaskKind, Sequence[Lease]], lease_ids: list[int], began: Moment
    ) -> None:
        """Measure leases, whose ids are in the order of their kinds; have their results kept."""
        columns = self._at_once.measure(by_kind, began, self.env)
        for kind, batch in by_kind.items():
            self._lanes.take(kind, len(batch))
        self.idle.clear()
        kinds = chain.from_iterable(repeat(kind, len(batch)) for kind, batch in by_kind.items())
        self._keeping.update(zip(lease_ids, kinds, strict=True))
        scheduled_at = [lease.scheduled_at for batch in by_kind.values() for lease in batch]
        self._keeper.add_columns(lease_ids, columns, scheduled_at if any(scheduled_at) else ())

    def _note_ran(self, job: _Job) -> None:
        if job.tick is not None:
            self.on_ran(job.lease.lease_id)

    def _until_turn_ns(self, job: _Job) -> int:
        """Take the target's next turn; return how long it is until then."""
        job.phase = _Phase.WAITING
        if job.reason is not None:
            return 0
        return self.bounds.reserve(job.lease, self._clock.boottime_ns())

    async def _wait(self, job: _Job, wait_ns: int) -> None:
        try:
            await self._clock.sleep(wait_ns)
        except asyncio.CancelledError:
            self._swallow(job)

    def _may_start(self, job: _Job) -> bool:
        """Whether the lease may be measured; if so it runs now."""
        if job.reason is None and (
            job.tick is not None
            or self._leases.start(job.lease.lease_id, self._clock.boottime_ns())
        ):
            return True
        self.counters["unstarted"] += 1
        return False

    async def _measure(self, job: _Job) -> Measurement:
        record = Recorder(self._clock, self.env, columnar=self.is_columnar())
        job.phase = _Phase.MEASURING
        try:
            await measure(self._probers[job.lease.kind], self.bounds.spec(job.lease), record)
        except asyncio.CancelledError:
            self._swallow(job)
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

    def _note_idle(self) -> None:
        if not self._jobs and not self._keeping and self._lanes.is_idle:
            self.idle.set()


def _note_failure(lease: Lease, measurement: Measurement) -> None:
    """Log, for whoever looks for the cause, a lease that could not be measured."""
    _log.debug(
        "lease %d could not be measured: %s",
        lease.lease_id,
        measurement.error.message if measurement.error else "no reason is known",
        extra={
            "action": "not_measured",
            "lease_id": lease.lease_id,
            "task_id": lease.task_id,
            "kind": lease.kind.value,
        },
    )
