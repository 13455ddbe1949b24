"""Turns the ticks of standing leases into runs, whether or not the control plane can be reached.

A lease holds no slot between its runs. What is kept goes by the task, so that a tick is neither run
twice nor lost when the task is granted again under another lease.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from netsonde.clock import NS_PER_S, Clock
from netsonde.leases import LeaseTable
from netsonde.model import Lease, Reason
from netsonde.ticks import Grid, Tick, grid_of

SLICE = 32  # runs begun in one turn of the loop, as many as the dispatcher begins leases
# The loop's timers stand still while the host sleeps, ticks do not: they are looked at this soon
# after it woke.
LOOK_NS = NS_PER_S


class Lanes(Protocol):
    """What standing leases need of a worker."""

    def submit(self, lease: Lease, tick: Tick | None = None) -> None:
        """Begin a run when its kind has a slot."""
        ...

    def cancel(self, lease_id: int, reason: Reason) -> None:
        """End a run."""
        ...


@dataclass(slots=True)
class _Standing:
    """One task: its current lease, its next tick, and the lease that a run of it goes on under."""

    lease: Lease
    grid: Grid
    next_tick: int
    due_ns: int = 0
    running: int | None = None


@dataclass(slots=True)
class _Left:
    """What stays known of a task that was given back: its next tick, and the lease of its run."""

    next_tick: int
    run: int | None
    is_over: bool  # the run


class StandingLeases:
    """Keeps the schedules of standing leases. `run` begins what is due.

    `server_now_ns` is the control plane's clock, which ticks are told by. Tell `end` of a lease the
    table let go and `ran` of a run that is over.
    """

    def __init__(
        self,
        clock: Clock,
        leases: LeaseTable,
        lanes: Lanes,
        server_now_ns: Callable[[], int],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._leases = leases
        self._lanes = lanes
        self._server_now_ns = server_now_ns
        self._tasks: dict[int, _Standing] = {}
        self._left: dict[int, _Left] = {}  # by task: of the last time that all were given back
        self._of_lease: dict[int, int] = {}  # current and running leases
        self._due: list[tuple[int, int]] = []  # (instant, task); stale where the task has another
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self, lease: Lease) -> None:
        """Follow a granted lease's ticks, from the first that no result is known of."""
        grid = grid_of(lease)
        if grid is None:
            raise ValueError(f"lease {lease.lease_id} does not repeat")
        self._leases.stand(lease)
        task = self._tasks.get(lease.task_id)
        if task is None:
            task = self._tasks[lease.task_id] = self._begun(lease, grid)
            self.counters["taken"] += 1
        else:
            self.counters["taken_again"] += 1
            self._let_go(task)
            task.lease, task.grid = lease, grid
            task.next_tick = max(task.next_tick, lease.next_tick)
        self._of_lease[lease.lease_id] = lease.task_id
        self._plan(task)
        self._changed.set()

    def _begun(self, lease: Lease, grid: Grid) -> _Standing:
        """Begin a task; one that was given back goes on with what is known of it."""
        left = self._left.pop(lease.task_id, None)
        if left is None:
            return _Standing(lease, grid, lease.next_tick)
        next_tick = max(left.next_tick, lease.next_tick)
        return _Standing(lease, grid, next_tick, running=None if left.is_over else left.run)

    def _let_go(self, task: _Standing) -> None:
        """Give up a task's lease for another; a run under it goes on and is reported under it."""
        self._leases.release(task.lease.lease_id)
        if task.running != task.lease.lease_id:
            del self._of_lease[task.lease.lease_id]

    def _plan(self, task: _Standing) -> None:
        if task.next_tick > task.grid.last:
            self._finish(task)
            return
        task.due_ns = task.grid.instant_ns(task.next_tick)
        heapq.heappush(self._due, (task.due_ns, task.lease.task_id))

    def _finish(self, task: _Standing) -> None:
        """Forget a task after its last tick, once that is over; its result tells the server."""
        if task.running is None:
            self._leases.release(task.lease.lease_id)
            self._forget(task)
            self.counters["finished"] += 1

    def _forget(self, task: _Standing) -> None:
        del self._tasks[task.lease.task_id]
        for lease_id in (task.lease.lease_id, task.running):
            if lease_id is not None:
                self._of_lease.pop(lease_id, None)

    def end(self, lease_id: int, reason: Reason) -> None:
        """Stop the work of a lease that was taken back or came to its end."""
        task = self._tasks.get(self._of_lease.get(lease_id, -1))
        if task is None or task.lease.lease_id != lease_id:
            return
        self._forget(task)
        self.counters["ended"] += 1
        if task.running is not None:
            self._lanes.cancel(task.running, reason)

    def ran(self, lease_id: int) -> None:
        """Take note that a run is over."""
        task_id = self._of_lease.get(lease_id, -1)
        task = self._tasks.get(task_id)
        if task is None and task_id in self._left:
            del self._of_lease[lease_id]
            self._left[task_id].is_over = True
        if task is None or task.running != lease_id:
            return
        task.running = None
        if task.lease.lease_id != lease_id:
            del self._of_lease[lease_id]
        if task.next_tick > task.grid.last:
            self._finish(task)

    def stop(self) -> list[int]:
        """Begin no more runs; return the leases to give back.

        Runs go on: their tasks begin no other before that is over, whatever lease comes.
        """
        lease_ids = [task.lease.lease_id for task in self._tasks.values()]
        self._left = {one: left for one, left in self._left.items() if not left.is_over}
        for task_id, task in self._tasks.items():
            self._left[task_id] = _Left(task.next_tick, task.running, task.running is None)
        self._of_lease = {
            left.run: task_id
            for task_id, left in self._left.items()
            if left.run is not None and not left.is_over
        }
        self._tasks.clear()
        self._due.clear()
        self._changed.set()
        return lease_ids

    def dropped(self, lease_ids: Iterable[int]) -> None:
        """Take note of runs that were let go after `stop`, before they measured anything."""
        gone = set(lease_ids)
        for task_id in [one for one, left in self._left.items() if left.run in gone]:
            self._of_lease.pop(self._left.pop(task_id).run or 0, None)

    async def run(self) -> None:
        """Begin runs as they come due, until cancelled."""
        while True:
            self._changed.clear()
            while self._begin_due(self._server_now_ns()):
                await self._clock.sleep(0)
            wait_ns = None
            if self._due:
                wait_ns = min(self._due[0][0] - self._server_now_ns(), LOOK_NS)
            await self._clock.wait(self._changed, wait_ns)

    def _begin_due(self, now_ns: int) -> bool:
        """Begin what is due, up to a slice; return whether there may be more."""
        for _ in range(SLICE):
            if not self._due or self._due[0][0] > now_ns:
                return False
            due_ns, task_id = heapq.heappop(self._due)
            task = self._tasks.get(task_id)
            if task is not None and task.due_ns == due_ns:
                self._tick(task, now_ns)
        return True

    def _tick(self, task: _Standing, now_ns: int) -> None:
        """Run the last tick that has come; those before it have passed and are not made up."""
        number = task.grid.latest(now_ns)
        self.counters["missed"] += number - task.next_tick
        task.next_tick = number + 1
        if now_ns >= task.grid.stale_ns(number):
            self.counters["missed"] += 1
        elif task.running is not None:
            self.counters["skipped"] += 1
        else:
            self.counters["begun"] += 1
            task.running = task.lease.lease_id
            self._lanes.submit(task.lease, task.grid.tick(number))
        if task.lease.task_id in self._tasks:  # a run may be over as soon as it was begun
            self._plan(task)
