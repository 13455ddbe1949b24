"""Who waits for what: held claims by queue and kind, and readers of new results."""

import asyncio
import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from netsonde.model import TaskKind

DELAYED_STEP_NS = 10_000_000  # instants closer than this share one wake-up


@dataclass(slots=True, eq=False)
class Waiter:
    """One held claim: the queues it may draw from and how much of each kind it takes.

    One that `is_over` is granted nothing more: its agent has asked again or gone, and this answer
    would reach nobody. One that `is_owing` was woken for work that it has not looked for yet. A
    stream `hears_revocations`, and of configurations (`is_config_new`); one with a `budget` takes
    more when what its agent holds becomes less.
    """

    queues: frozenset[int]
    capacities: Mapping[TaskKind, int]
    agent_id: int
    claim_key: int
    event: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False
    is_owing: bool = False
    hears_revocations: bool = False
    revoked: tuple[int, ...] = ()
    is_config_new: bool = False
    budget: Mapping[TaskKind, int] | None = None

    def wants(self, queue: int, kind: TaskKind) -> int:
        """Return how many tasks of this kind the claim would take from queue."""
        return self.capacities.get(kind, 0) if queue in self.queues else 0


class Waiters:
    """Held claims in the order in which they came.

    A wake-up is a hint: whoever is woken asks the store. Work for n tasks wakes as many claims as
    it takes to hand out n, so that a fleet is not woken for one task.
    """

    def __init__(self) -> None:
        self._waiting: dict[Waiter, None] = {}
        self._budgeted: dict[Waiter, None] = {}  # those of original agents, which are few
        self._later: list[tuple[int, int, TaskKind]] = []
        self._known: set[tuple[int, int, TaskKind]] = set()
        self.is_closed = False
        self.sooner = asyncio.Event()  # set when `next_ns` has come closer

    def add(self, waiter: Waiter) -> None:
        """Begin to wait."""
        self._waiting[waiter] = None
        if waiter.budget is not None:
            self._budgeted[waiter] = None
        if self.is_closed:
            waiter.event.set()

    def remove(self, waiter: Waiter) -> None:
        """Wait no longer. Idempotent."""
        self._waiting.pop(waiter, None)
        self._budgeted.pop(waiter, None)

    def end(self, agent_id: int, claim_keys: Collection[int] | None = None) -> None:
        """End an agent's held claims, or those under some of its claim ids."""
        for waiter in self._waiting:
            if waiter.agent_id == agent_id and (
                claim_keys is None or waiter.claim_key in claim_keys
            ):
                waiter.is_over = True
                waiter.event.set()

    def refill(self, agent_ids: Collection[int]) -> None:
        """Wake the claims with a budget of agents that hold less than they did."""
        for waiter in self._budgeted:
            if waiter.agent_id in agent_ids:
                waiter.event.set()

    def announce(self, queue: int, kind: TaskKind, count: int) -> None:
        """Wake the claims that can take count tasks, the longest waiting first."""
        for waiter in self._waiting:
            if count <= 0:
                return
            wanted = waiter.wants(queue, kind)
            if wanted and not waiter.event.is_set():
                waiter.event.set()
                count -= wanted

    def announce_at(self, run_ns: int, queue: int, kind: TaskKind) -> None:
        """Remember to announce a task once run_ns has come."""
        instant = -(-run_ns // DELAYED_STEP_NS) * DELAYED_STEP_NS
        entry = (instant, queue, kind)
        if entry not in self._known:
            self._known.add(entry)
            heapq.heappush(self._later, entry)
            if self._later[0] == entry:
                self.sooner.set()

    def announce_due(self, now_ns: int) -> None:
        """Announce what has become ready meanwhile."""
        while self._later and self._later[0][0] <= now_ns:
            entry = heapq.heappop(self._later)
            self._known.discard(entry)
            _, queue, kind = entry
            self.announce(queue, kind, sum(w.wants(queue, kind) for w in self._waiting) or 1)

    @property
    def next_ns(self) -> int | None:
        """When `announce_due` has something to announce."""
        return self._later[0][0] if self._later else None

    def revoke(self, leases: Collection[tuple[int, int]]) -> None:
        """Tell streams which of their agents' leases, `(agent_id, lease_id)`, were revoked.

        Who has no stream open learns it from the next heartbeat or extension.
        """
        lost: dict[int, list[int]] = {}
        for agent_id, lease_id in leases:
            lost.setdefault(agent_id, []).append(lease_id)
        for waiter in self._waiting if lost else ():
            if waiter.hears_revocations and waiter.agent_id in lost:
                waiter.revoked += tuple(lost[waiter.agent_id])
                waiter.event.set()

    def tell_config(self) -> None:
        """Tell streams that a configuration was published."""
        for waiter in self._waiting:
            if waiter.hears_revocations:
                waiter.is_config_new = True
                waiter.event.set()

    def wake_all(self, queues: Collection[int] | None = None) -> None:
        """Wake every claim, or those that may draw from one of these queues."""
        for waiter in self._waiting:
            if queues is None or not waiter.queues.isdisjoint(queues):
                waiter.event.set()

    def close(self) -> None:
        """End every wait, now and from now on."""
        self.is_closed = True
        self.wake_all()


class Pulse:
    """Wakes everybody who waits for the next occurrence of something."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.is_closed = False

    def next(self) -> asyncio.Event:
        """Return the event that the next occurrence sets; take it before looking."""
        return self._event

    def fire(self) -> None:
        """Wake who waits."""
        self._event.set()
        if not self.is_closed:
            self._event = asyncio.Event()

    def close(self) -> None:
        """Wake who waits, now and from now on."""
        self.is_closed = True
        self.fire()
