"""A history of leases to time deadline structures with: who is granted, extended, removed, due."""

import random
from array import array
from typing import NamedTuple

from netsonde._native.deadlines import DeadlineHeap
from netsonde.clock import NS_PER_S

TERMS_NS = [seconds * NS_PER_S for seconds in (20, 20, 45, 45, 90)]  # dns tcp http ping trace
FOREVER_NS = 2**63 - 1


class Batch(NamedTuple):
    """Ids and, but for removals, their deadlines."""

    ids: "array[int]"
    ends_ns: "array[int]"


class Round(NamedTuple):
    """What happens from one instant to the next: a batch of each operation."""

    push: Batch
    extends: tuple[Batch, Batch]
    remove: Batch
    now_ns: int
    due: list[int]  # what pop must return at now_ns, in order
    refill: Batch  # as many again: push and refill make up for remove and pop


class History(NamedTuple):
    """Batches that fill a heap, and the rounds after that."""

    fill: list[Batch]
    rounds: list[Round]


class Historian:
    """Simulates a control plane and its agents, so that what is extended or removed is held."""

    def __init__(self, leases: int, rounds: int, batch: int) -> None:
        self._rng = random.Random(20)
        self._ids = self._rng.sample(range(2**62), leases + 2 * rounds * batch)
        self._granted = 0
        self._held = DeadlineHeap(leases + 2 * batch)
        self._now_ns = 0
        self._shape = leases, rounds, batch

    def write(self) -> History:
        """Return the history: as many leases as asked for, in the middle of their terms."""
        leases, rounds, batch = self._shape
        fill = [self._grant(batch, aged=True) for _ in range(leases // batch)]
        return History(fill, [self._round(batch) for _ in range(rounds)])

    def _round(self, batch: int) -> Round:
        push = self._grant(batch, aged=False)
        extends = self._extend(batch), self._extend(batch)
        remove = self._remove(batch)
        due = self._held.pop_due(FOREVER_NS, batch - 1).tolist()
        last = self._held.peek()
        assert last is not None
        self._now_ns = last[1]
        due += self._held.pop_due(self._now_ns, batch).tolist()
        return Round(push, extends, remove, self._now_ns, due, self._grant(batch, aged=False))

    def _grant(self, count: int, *, aged: bool) -> Batch:
        ids = array("Q", self._ids[self._granted : self._granted + count])
        self._granted += count
        ends_ns = array("q")
        for _ in ids:
            left_ns = self._rng.choice(TERMS_NS) - self._rng.randrange(NS_PER_S)
            ends_ns.append(self._now_ns + int(left_ns * (self._rng.random() if aged else 1)))
        self._held.push(ids, ends_ns)
        return Batch(ids, ends_ns)

    def _extend(self, count: int) -> Batch:
        ids = array("Q", (self._any_held() for _ in range(count)))
        ends_ns = array("q")
        for lease_id in ids:
            longer_ns = (self._held.deadline_of(lease_id) or 0) + 1
            term_ns = self._rng.choice(TERMS_NS) - self._rng.randrange(NS_PER_S)
            ends_ns.append(max(longer_ns, self._now_ns + term_ns))
        self._held.extend(ids, ends_ns)
        return Batch(ids, ends_ns)

    def _remove(self, count: int) -> Batch:
        ids = array("Q")
        for _ in range(count):
            ids.append(self._any_held())
            self._held.drop_one(ids[-1])
        return Batch(ids, array("q"))

    def _any_held(self) -> int:
        while True:
            lease_id = self._ids[self._rng.randrange(self._granted)]
            if lease_id in self._held:
                return lease_id
