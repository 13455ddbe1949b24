"""Reported ticks of standing tasks: one result each, under whichever of the task's leases."""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from netsonde import wire
from netsonde.errors import ErrorCode
from netsonde.model import Repeat, ReportStatus
from netsonde.server.leasing import HeldTask, LeasingPolicy, StandingLease
from netsonde.server.store import Store
from netsonde.server.store.results import NewResult
from netsonde.ticks import Grid

Answer = tuple[ReportStatus, str | None]
FENCED: Answer = (ReportStatus.FENCED, ErrorCode.LEASE_FENCED)


@functools.lru_cache(maxsize=1024)
def read_repeat(text: str) -> Repeat:
    """Decode how a stored task repeats; a fleet's checks have few ways."""
    return msgspec.json.decode(text, type=Repeat)


def write_repeat(
    every_ms: int, jitter_ms: int, stale_after_ms: int | None, ticks: int | None = None
) -> str:
    """Write how a standing task repeats, as its lease says it."""
    optional = {"stale_after_ms": stale_after_ms, "ticks": ticks}
    given = {name: value for name, value in optional.items() if value is not None}
    return wire.encode({"every_ms": every_ms, "jitter_ms": jitter_ms} | given).decode()


class RunGroup:
    """The items of one report that are ticks of standing tasks, decided in one transaction.

    `leases` are those of the agent's leases among `lease_ids` that are a standing task's, `held`
    the tasks by their current leases.
    """

    def __init__(
        self,
        store: Store,
        agent_id: int,
        lease_ids: Collection[int],
        policy: LeasingPolicy,
        now_ns: int,
    ) -> None:
        self.leases = {
            lease_id: lease
            for lease_id, lease in (store.standing_leases(lease_ids) if lease_ids else {}).items()
            if lease.agent_id == agent_id
        }
        self.results: list[NewResult] = []
        self._store = store
        self._policy = policy
        self._now_ns = now_ns
        self._floor_ns = store.key_floor().scheduled_ns
        self._done: set[tuple[int, int]] = set()
        self._over: list[int] = []
        self._missed: Counter[int | None] = Counter()
        self._next_ticks = {
            lease.task_id: lease.next_tick
            for lease in self.leases.values()
            if lease.next_tick is not None
        }

    def look_up(self, items: Sequence[wire.ReportItem]) -> None:
        """Find out which of the ticks have a result already."""
        keys = {key for item in items if (key := self._key(item)) is not None}
        if keys:
            self._done |= self._store.have_run(keys)

    def _key(self, item: wire.ReportItem) -> tuple[int, int] | None:
        """Return a tick's task and instant, None when the item is no tick of its lease's task."""
        lease = self.leases.get(item.lease_id)
        if lease is None or item.tick is None or item.scheduled_at is None:
            return None
        grid = _grid(lease)
        if not grid.is_tick(item.tick, item.scheduled_at):
            return None
        return lease.task_id, grid.instant_ns(item.tick)

    def decide(self, item: wire.ReportItem, held: Mapping[int, HeldTask], outcome: str) -> Answer:
        """Decide about one tick, and keep its result if it is the first."""
        lease, key = self.leases[item.lease_id], self._key(item)
        if key is None or item.tick is None:
            message = "the lease repeats: tick and scheduled_at must name one of its ticks"
            return ReportStatus.INVALID, f"{ErrorCode.VALIDATION}: {message}"
        if key in self._done:
            return ReportStatus.DUPLICATE, None
        _, scheduled_ns = key
        if scheduled_ns < self._floor_ns:
            return FENCED  # nobody remembers any more whether it has had its result
        status = self._policy.report_run(lease, held.get(item.lease_id), scheduled_ns, self._now_ns)
        if status is ReportStatus.FENCED:
            return FENCED
        self._done.add(key)
        self._follow(lease, item.tick)
        self.results.append(
            NewResult(
                lease_id=lease.lease_id,
                task_id=lease.task_id,
                agent_id=lease.agent_id,
                kind=lease.kind,
                outcome=outcome,
                attempt=1,
                received_ns=self._now_ns,
                is_final=True,
                spec_id=lease.spec_id,
                body=wire.timed_item(item, lease.granted_ns, self._now_ns),
                check_id=lease.check_id,
                scheduled_ns=scheduled_ns,
                tick=item.tick,
            )
        )
        return status, None

    def _follow(self, lease: StandingLease, tick: int) -> None:
        """Count what lies between this tick and those before it.

        One that comes after all is no longer missed.
        """
        next_tick = self._next_ticks.get(lease.task_id)
        if next_tick is not None:
            self._missed[lease.check_id] += tick - next_tick if tick >= next_tick else -1
            self._next_ticks[lease.task_id] = max(next_tick, tick + 1)
        if tick == _grid(lease).last:
            self._over.append(lease.task_id)

    def write(self) -> None:
        """Write how far the tasks are; the results are the caller's to write."""
        if not self.results:
            return
        ran = {result.task_id for result in self.results}
        self._store.ran({task: tick for task, tick in self._next_ticks.items() if task in ran})
        for check_id, missed in self._missed.items():
            self._store.count("missed", missed)
            if check_id is not None and missed:
                self._store.add_missed(check_id, missed)
        self._store.withdraw(self._over, self._now_ns)


def _grid(lease: StandingLease) -> Grid:
    return Grid(lease.task_id, lease.anchor_ns, read_repeat(lease.repeat))
