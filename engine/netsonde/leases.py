"""The leases this agent holds: what runs, what must be extended when, what has ended. Pure.

Instants are nanoseconds of CLOCK_BOOTTIME and come in as arguments. Nothing here waits or sends:
the lease extender sleeps until `next_wake_ns`, sends what `due` names, gives the answer to `extend`
and cancels what `pop_expired` and `revoke` return. Races are answers, not errors: a worker that
starts or finishes a lease that has ended meanwhile is told False.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import compress
from random import Random
from typing import NamedTuple

from netsonde._native.deadlines import DONE, FULL, KNOWN, DeadlineHeap, spread
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.model import Lease

LEASES_MAX = 100_000  # in flight per agent, by the contract
BATCH_MAX = 1000  # lease ids per extend, by the contract; also how many expire at once
GATHER_NS = 500 * NS_PER_MS  # leases due this soon after the first go in the same call
ASK_AGAIN_MIN_NS = 500 * NS_PER_MS  # never ask faster than calls are gathered
STANDING_ASK_MIN_NS = 30 * NS_PER_S  # through an outage of hours: an answer is not urgent
NEVER_NS = 2**63 - 1
# An extension is due when this part of the term has passed, another one for each lease, so that
# leases granted together do not stay together.
FRACTION_MIN, FRACTION_MAX = 0.35, 0.45


class LeaseState(StrEnum):
    """Where a lease is in this agent; states follow in this order, and any of them may end."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"  # measured; its result waits for the control plane's acknowledgement
    ENDED = "ended"  # no longer held


class Grant(StrEnum):
    """What became of a granted lease."""

    GRANTED = "granted"
    DUPLICATE = "duplicate"  # held already, unchanged
    LATE = "late"  # its deadline had passed on arrival
    FULL = "full"  # the table holds `capacity` leases


_ANSWERS = {DONE: Grant.GRANTED, KNOWN: Grant.DUPLICATE, FULL: Grant.FULL}


class Ended(NamedTuple):
    """A lease the table let go, and where it was then; of a finished one nothing else is known."""

    lease_id: int
    state: LeaseState
    lease: Lease | None


@dataclass(slots=True)
class LeaseCounters:
    """What has happened since the table was made."""

    granted: int = 0
    refused: int = 0
    extended: int = 0
    unextended: int = 0  # answers that would not lengthen the lease
    unknown: int = 0  # ids of extend and revoke answers that are not held
    released: int = 0
    revoked: int = 0
    expired: int = 0


class LeaseTable:
    """Leases by id, with their deadlines and the instants at which to ask for more time.

    Every lease has its deadline in one native heap; those queued or running, and no others, have in
    another the instant of their next extension. `rng` draws under which seed these spread within
    the contract's bounds. What is not so yet costs a lease nothing: one that neither runs nor has
    finished is queued, one without a limit was not extended. Of one that has finished only the id
    is kept, and its deadline.

    A standing lease's deadline is later than its term's end by what it may be worked on without the
    control plane; when to ask for more goes by the term, and is asked past its end too.
    """

    def __init__(self, rng: Random, *, capacity: int = LEASES_MAX) -> None:
        self.counters = LeaseCounters()
        self._seed = rng.getrandbits(64)
        self._held: dict[int, Lease | None] = {}  # None: finished
        self._running: set[int] = set()
        self._limits_ns: dict[int, int] = {}
        self._deadlines = DeadlineHeap(capacity)
        self._asks = DeadlineHeap(capacity)
        self._offline_ns: dict[int, int] = {}  # of standing leases

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._held

    def __iter__(self) -> Iterator[int]:
        """Iterate over the ids, in the order they were granted."""
        return iter(self._held)

    @property
    def capacity(self) -> int:
        """The most leases this table holds."""
        return self._deadlines.capacity

    @property
    def next_wake_ns(self) -> int | None:
        """The earliest instant at which `due` or `pop_expired` has something, or None."""
        ask_ns, deadline_ns = self._asks.next_ns, self._deadlines.next_ns
        if ask_ns is None or deadline_ns is None:
            return deadline_ns
        return min(ask_ns, deadline_ns)

    @property
    def next_deadline_ns(self) -> int | None:
        """The instant at which the first lease ends, or None."""
        return self._deadlines.next_ns

    def lease(self, lease_id: int) -> Lease | None:
        """Return a lease that is queued or runs."""
        return self._held.get(lease_id)

    def state(self, lease_id: int) -> LeaseState:
        """Return where a lease is; one that is not held has ended."""
        if lease_id in self._running:
            return LeaseState.RUNNING
        if lease_id not in self._held:
            return LeaseState.ENDED
        return LeaseState.FINISHED if self._held[lease_id] is None else LeaseState.QUEUED

    def deadline_ns(self, lease_id: int) -> int | None:
        """Return when a held lease ends."""
        return self._deadlines.deadline_of(lease_id)

    def grant(self, lease: Lease, deadline_ns: int, now_ns: int) -> Grant:
        """Take a lease into the table, queued."""
        return self.grant_many((lease,), (deadline_ns,), now_ns)[0]

    def grant_many(
        self, leases: Sequence[Lease], deadlines_ns: Sequence[int], now_ns: int
    ) -> list[Grant]:
        """Take leases with their deadlines into the table, queued; one answer each, in order."""
        if not leases:
            return []
        if min(deadlines_ns) <= now_ns:
            return [
                self._grant_one(lease, deadline_ns, now_ns)
                for lease, deadline_ns in zip(leases, deadlines_ns, strict=True)
            ]
        ids = [lease.lease_id for lease in leases]
        codes = self._file(ids, leases, array("q", deadlines_ns), now_ns)
        taken = codes.count(DONE)
        self.counters.granted += taken
        self.counters.refused += len(ids) - taken
        return [_ANSWERS[DONE]] * taken if taken == len(ids) else [_ANSWERS[one] for one in codes]

    def stand(self, lease: Lease) -> None:
        """Let a granted lease stand: it ends `offline_ms` later than it was granted for."""
        end_ns = self._deadlines.deadline_of(lease.lease_id)
        if end_ns is not None and lease.lease_id not in self._offline_ns:
            self._offline_ns[lease.lease_id] = lease.offline_ms * NS_PER_MS
            self._deadlines.extend_one(lease.lease_id, end_ns + lease.offline_ms * NS_PER_MS)

    def stands(self, lease_id: int) -> bool:
        """Whether a lease is held that its results do not end."""
        return lease_id in self._offline_ns

    def start(self, lease_id: int, now_ns: int) -> bool:
        """Mark a queued lease running; False: it has ended, or ends now, and must not start."""
        earliest_ns = self._deadlines.next_ns
        if earliest_ns is None or earliest_ns <= now_ns:  # some have ended: perhaps this one
            deadline_ns = self._deadlines.deadline_of(lease_id)
            if deadline_ns is None or deadline_ns <= now_ns:
                return False
        if self.state(lease_id) is not LeaseState.QUEUED:
            return False
        self._running.add(lease_id)
        return True

    def finish(self, lease_id: int) -> bool:
        """Mark a running lease measured: it is not extended any more; False: it has ended."""
        if lease_id not in self._running:
            return False
        self._running.discard(lease_id)
        self._asks.drop_one(lease_id)
        self._held[lease_id] = None
        return True

    def pass_many(self, lease_ids: Sequence[int], now_ns: int) -> list[int]:
        """Start and finish queued leases that take no time to measure; return those that might."""
        earliest_ns = self._deadlines.next_ns
        if earliest_ns is None or earliest_ns <= now_ns or not self._running.isdisjoint(lease_ids):
            return [one for one in lease_ids if self.start(one, now_ns) and self.finish(one)]
        codes = self._asks.drop(array("Q", lease_ids))
        passed = _done(lease_ids, codes)
        self._held.update(dict.fromkeys(passed))
        return passed

    def release(self, lease_id: int) -> bool:
        """Let a lease go that was acknowledged or handed back; False: it had ended."""
        return self.release_many((lease_id,)) == 1

    def release_many(self, lease_ids: Iterable[int]) -> int:
        """Let leases go that were acknowledged or handed back; return how many were held."""
        ids = [*lease_ids]
        ids = _done(ids, self._deadlines.drop(array("Q", ids)))
        self._forget(ids)
        self.counters.released += len(ids)
        return len(ids)

    def acknowledge_many(self, lease_ids: Iterable[int]) -> None:
        """Let leases go of which a result was acknowledged; one that stands stays."""
        if self._offline_ns:
            lease_ids = [lease_id for lease_id in lease_ids if lease_id not in self._offline_ns]
        self.release_many(lease_ids)

    def revoke(self, lease_ids: Iterable[int]) -> list[Ended]:
        """Let leases go that the control plane took back; unknown ids are counted."""
        lease_ids = tuple(lease_ids)
        ended = self._end(lease_ids)
        self.counters.revoked += len(ended)
        self.counters.unknown += len(lease_ids) - len(ended)
        return ended

    def pop_expired(self, now_ns: int, limit: int = BATCH_MAX) -> list[Ended]:
        """Let go what has reached its deadline, earliest first; call again while it is `limit`."""
        ended = self._end(self._deadlines.pop_due(now_ns, limit).tolist())
        self.counters.expired += len(ended)
        return ended

    def due(self, now_ns: int, limit: int = BATCH_MAX) -> list[int]:
        """Return the leases to extend in one call now; empty until the first of them is due.

        Each is due again later, in case the call fails: after a quarter of the time it has left.
        """
        first_ns = self._asks.next_ns
        if first_ns is None or first_ns > now_ns:
            return []
        ids = self._asks.pop_due(now_ns + GATHER_NS, limit)
        again_ns = array("q")
        for lease_id in ids:
            left_ns = (self._deadlines.deadline_of(lease_id) or now_ns) - now_ns
            offline_ns = self._offline_ns.get(lease_id)
            least_ns = ASK_AGAIN_MIN_NS if offline_ns is None else STANDING_ASK_MIN_NS
            again_ns.append(now_ns + max((left_ns - (offline_ns or 0)) // 4, least_ns))
        self._asks.push(ids, again_ns)
        return ids.tolist()

    def extend(self, deadlines_ns: Mapping[int, int], now_ns: int) -> int:
        """Move deadlines to where the control plane's answer puts them; return how many moved.

        A deadline never becomes earlier and never passes `max_lease_ms`. Ids that are not held
        are counted and ignored.
        """
        ids, ends_ns, limits_ns = array("Q"), array("q"), []
        for lease_id, deadline_ns in deadlines_ns.items():
            if lease_id in self._held:
                limit_ns = self._limit_ns(self._held[lease_id])
                ids.append(lease_id)
                ends_ns.append(deadline_ns if limit_ns is None else min(deadline_ns, limit_ns))
                limits_ns.append(limit_ns)
        codes = self._deadlines.extend(ids, self._last_ns(ids, ends_ns))
        moved, moved_ends_ns, last = array("Q"), array("q"), []
        for lease_id, end_ns, limit_ns, code in zip(ids, ends_ns, limits_ns, codes, strict=True):
            if code == DONE:
                if limit_ns is not None:
                    self._limits_ns[lease_id] = limit_ns
                    if end_ns == limit_ns:
                        last.append(len(moved))
                moved.append(lease_id)
                moved_ends_ns.append(end_ns)
        # Finished leases are not in it and stay out.
        self._asks.move(moved, self._asks_ns(moved, moved_ends_ns, last, now_ns))
        self.counters.extended += len(moved)
        self.counters.unextended += len(ids) - len(moved)
        self.counters.unknown += len(deadlines_ns) - len(ids)
        return len(moved)

    def _grant_one(self, lease: Lease, deadline_ns: int, now_ns: int) -> Grant:
        """Take one lease of a batch in which some may have ended on the way."""
        if deadline_ns > now_ns:
            return self.grant(lease, deadline_ns, now_ns)
        self.counters.refused += 1
        return Grant.DUPLICATE if lease.lease_id in self._held else Grant.LATE

    def _last_ns(self, ids: "array[int]", ends_ns: "array[int]") -> "array[int]":
        """Return the instants at which leases with these ends are let go."""
        offline_ns = self._offline_ns
        if not offline_ns:
            return ends_ns
        return array(
            "q",
            [
                end_ns + offline_ns.get(lease_id, 0)
                for lease_id, end_ns in zip(ids, ends_ns, strict=True)
            ],
        )

    def _file(
        self, ids: list[int], leases: Sequence[Lease], ends_ns: "array[int]", now_ns: int
    ) -> bytes:
        """Put leases where they belong; return the heap's code for each.

        The heap knows which ids are held and how many may be.
        """
        words = array("Q", ids)
        codes = self._deadlines.push(words, ends_ns)
        if codes.count(DONE) < len(codes):
            fresh = [code == DONE for code in codes]
            words, ends_ns = array("Q", compress(ids, fresh)), array("q", compress(ends_ns, fresh))
            ids, leases = list(compress(ids, fresh)), list(compress(leases, fresh))
        last = [
            at
            for at, lease in enumerate(leases)
            if lease.max_lease_ms is not None and lease.max_lease_ms <= lease.lease_until_ms
        ]
        try:
            self._asks.push(words, self._asks_ns(words, ends_ns, last, now_ns))
        except MemoryError:
            self._deadlines.drop(words)
            raise
        self._held.update(zip(ids, leases, strict=True))
        return codes

    def _asks_ns(
        self, ids: "array[int]", ends_ns: "array[int]", last: Iterable[int], now_ns: int
    ) -> "array[int]":
        """Return when to ask for more time; last: whose deadline cannot move."""
        asks_ns = array("q", spread(ids, ends_ns, now_ns, self._seed, FRACTION_MIN, FRACTION_MAX))
        for at in last:
            asks_ns[at] = NEVER_NS
        return asks_ns

    def _limit_ns(self, lease: Lease | None) -> int | None:
        """Return the instant past which a lease cannot be extended, None: there is no limit.

        Nobody works any more on one that has finished: the control plane alone says how long its
        result is waited for.

        The deadline that was granted less the term is the grant, early by the margin: so is the
        limit. It cuts no granted term, whatever the control plane says.
        """
        if lease is None or lease.max_lease_ms is None:
            return None
        known_ns = self._limits_ns.get(lease.lease_id)
        if known_ns is not None:
            return known_ns
        granted_ns = self._deadlines.deadline_of(lease.lease_id) or 0
        granted_ns -= self._offline_ns.get(lease.lease_id, 0)  # a standing one's deadline is later
        return granted_ns + max(lease.max_lease_ms - lease.lease_until_ms, 0) * NS_PER_MS

    def _end(self, lease_ids: Iterable[int]) -> list[Ended]:
        """Let leases go, whatever their state; return those that were held."""
        ended = [
            Ended(lease_id, self.state(lease_id), self._held[lease_id])
            for lease_id in dict.fromkeys(lease_ids)  # one may be named twice
            if lease_id in self._held
        ]
        ids = [one.lease_id for one in ended]
        self._deadlines.drop(array("Q", ids))
        self._forget(ids)
        return ended

    def _forget(self, lease_ids: Sequence[int]) -> None:
        """Forget what is known of leases but for their deadlines."""
        for lease_id in lease_ids:
            del self._held[lease_id]
        if self._running:
            self._running.difference_update(lease_ids)
        for kept in (self._limits_ns, self._offline_ns):
            if kept:
                for lease_id in lease_ids:
                    kept.pop(lease_id, None)
        if len(self._asks):  # nothing is asked for those that have finished
            self._asks.drop(array("Q", lease_ids))


def _done(lease_ids: Sequence[int], codes: bytes) -> list[int]:
    """Return those of a batch that a heap did what it was told with."""
    if codes.count(DONE) == len(codes):
        return [*lease_ids]
    return [one for one, code in zip(lease_ids, codes, strict=True) if code == DONE]
