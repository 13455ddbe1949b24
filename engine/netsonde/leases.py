"""The leases this agent holds: what runs, what must be extended when, what has ended. Pure.

Instants are nanoseconds of CLOCK_BOOTTIME and come in as arguments. Nothing here waits or sends:
the lease extender sleeps until `next_wake_ns`, sends what `due` names, gives the answer to `extend`
and cancels what `pop_expired` and `revoke` return. Races are answers, not errors: a worker that
starts or finishes a lease that has ended meanwhile is told False.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import NamedTuple

from msgspec import Struct

from netsonde._native.deadlines import DONE, DeadlineHeap
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.model import Lease, TaskKind

LEASES_MAX = 100_000  # in flight per agent, by the contract
BATCH_MAX = 1000  # lease ids per extend, by the contract; also how many expire at once
GATHER_NS = 500 * NS_PER_MS  # leases due this soon after the first go in the same call
ASK_AGAIN_MIN_NS = 500 * NS_PER_MS  # never ask faster than calls are gathered
STANDING_ASK_MIN_NS = 30 * NS_PER_S  # through an outage of hours: an answer is not urgent
NEVER_NS = 2**63 - 1
# An extension is due when this part of the term has passed, drawn for each lease and term, so that
# leases granted together do not stay together.
FRACTION_MIN, FRACTION_MAX = 0.35, 0.45


class LeaseState(StrEnum):
    """Where a lease is in this agent."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"  # measured; its result waits for the control plane's acknowledgement
    ENDED = "ended"  # no longer held


class LeaseEvent(StrEnum):
    """What happens to a lease."""

    START = "start"
    FINISH = "finish"
    RELEASE = "release"  # acknowledged, or handed back
    REVOKE = "revoke"  # their word
    EXPIRE = "expire"  # our clock


# Every transition there is; an event that is not here does nothing.
TRANSITIONS: dict[tuple[LeaseState, LeaseEvent], LeaseState] = {
    (LeaseState.QUEUED, LeaseEvent.START): LeaseState.RUNNING,
    (LeaseState.QUEUED, LeaseEvent.RELEASE): LeaseState.ENDED,
    (LeaseState.QUEUED, LeaseEvent.REVOKE): LeaseState.ENDED,
    (LeaseState.QUEUED, LeaseEvent.EXPIRE): LeaseState.ENDED,
    (LeaseState.RUNNING, LeaseEvent.FINISH): LeaseState.FINISHED,
    (LeaseState.RUNNING, LeaseEvent.RELEASE): LeaseState.ENDED,
    (LeaseState.RUNNING, LeaseEvent.REVOKE): LeaseState.ENDED,
    (LeaseState.RUNNING, LeaseEvent.EXPIRE): LeaseState.ENDED,
    (LeaseState.FINISHED, LeaseEvent.RELEASE): LeaseState.ENDED,
    (LeaseState.FINISHED, LeaseEvent.REVOKE): LeaseState.ENDED,
    (LeaseState.FINISHED, LeaseEvent.EXPIRE): LeaseState.ENDED,
}


class Grant(StrEnum):
    """What became of a granted lease."""

    GRANTED = "granted"
    DUPLICATE = "duplicate"  # held already, unchanged
    LATE = "late"  # its deadline had passed on arrival
    FULL = "full"  # the table holds `capacity` leases


# Members by plain names: looking them up in the class is most of what a transition costs.
_QUEUED = LeaseState.QUEUED
_START, _FINISH, _RELEASE, _REVOKE, _EXPIRE = LeaseEvent
_GRANTED, _DUPLICATE, _LATE, _FULL = Grant


class Ended(NamedTuple):
    """A lease the table let go, and where it was then."""

    lease: Lease
    state: LeaseState


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


class _Held(Struct, gc=False):  # half a million of them must not cost the collector anything
    lease: Lease
    state: LeaseState
    limit_ns: int | None  # max_lease_ms as an instant


class LeaseTable:
    """Leases by id, with their deadlines and the instants at which to ask for more time.

    Every lease has its deadline in one native heap; those queued or running have in another the
    instant of their next extension. `rng` draws when, within the contract's bounds.

    A standing lease's deadline is later than its term's end by what it may be worked on without the
    control plane; when to ask for more goes by the term, and is asked past its end too.
    """

    def __init__(self, rng: Random, *, capacity: int = LEASES_MAX) -> None:
        self.counters = LeaseCounters()
        self._rng = rng
        self._capacity = capacity
        self._held: dict[int, _Held] = {}
        self._deadlines = DeadlineHeap(capacity)
        self._asks = DeadlineHeap(capacity)
        self._offline_ns: dict[int, int] = {}  # of standing leases
        self._counts = {state: dict.fromkeys(TaskKind, 0) for state in LeaseState}

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
        return self._capacity

    @property
    def next_wake_ns(self) -> int | None:
        """The earliest instant at which `due` or `pop_expired` has something, or None."""
        ask_ns, deadline_ns = self._asks.next_ns, self._deadlines.next_ns
        if ask_ns is None or deadline_ns is None:
            return deadline_ns
        return min(ask_ns, deadline_ns)

    def lease(self, lease_id: int) -> Lease | None:
        """Return a held lease."""
        held = self._held.get(lease_id)
        return held.lease if held else None

    def state(self, lease_id: int) -> LeaseState:
        """Return where a lease is; one that is not held has ended."""
        held = self._held.get(lease_id)
        return held.state if held else LeaseState.ENDED

    def deadline_ns(self, lease_id: int) -> int | None:
        """Return when a held lease ends."""
        return self._deadlines.deadline_of(lease_id)

    def count(self, kind: TaskKind | None = None, state: LeaseState | None = None) -> int:
        """Count the leases held of this kind and in this state; None: of any."""
        return sum(
            counts[its_kind]
            for its_state, counts in self._counts.items()
            for its_kind in counts
            if kind in (None, its_kind) and state in (None, its_state)
        )

    def grant(self, lease: Lease, deadline_ns: int, now_ns: int) -> Grant:
        """Take a lease into the table, queued."""
        return self.grant_many([(lease, deadline_ns)], now_ns)[0]

    def grant_many(self, grants: Sequence[tuple[Lease, int]], now_ns: int) -> list[Grant]:
        """Take leases and their deadlines into the table, queued; one answer each, in order."""
        answers = []
        held, fresh = self._held, dict[int, _Held]()
        deadlines_ns: list[int] = []
        room = self._capacity - len(held)
        limits_ns: dict[tuple[int, int, int | None], int | None] = {}  # a batch has few terms
        for lease, deadline_ns in grants:
            lease_id = lease.lease_id
            if lease_id in held or lease_id in fresh:
                answers.append(_DUPLICATE)
            elif deadline_ns <= now_ns:
                answers.append(_LATE)
            elif len(fresh) == room:
                answers.append(_FULL)
            else:
                answers.append(_GRANTED)
                term = deadline_ns, lease.lease_until_ms, lease.max_lease_ms
                if term not in limits_ns:
                    limits_ns[term] = _limit_ns(lease, deadline_ns)
                fresh[lease_id] = _Held(lease, _QUEUED, limits_ns[term])
                deadlines_ns.append(deadline_ns)
        asks_ns = self._asks_ns(deadlines_ns, [one.limit_ns for one in fresh.values()], now_ns)
        self._push(fresh, array("q", deadlines_ns), asks_ns)
        self.counters.granted += len(fresh)
        self.counters.refused += len(answers) - len(fresh)
        return answers

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
        return self._change(lease_id, _START)

    def finish(self, lease_id: int) -> bool:
        """Mark a running lease measured: it is not extended any more; False: it has ended."""
        if not self._change(lease_id, _FINISH):
            return False
        self._asks.drop_one(lease_id)
        return True

    def release(self, lease_id: int) -> bool:
        """Let a lease go that was acknowledged or handed back; False: it had ended."""
        return self.release_many((lease_id,)) == 1

    def release_many(self, lease_ids: Iterable[int]) -> int:
        """Let leases go that were acknowledged or handed back; return how many were held."""
        released = len(self._end(lease_ids, _RELEASE))
        self.counters.released += released
        return released

    def revoke(self, lease_ids: Iterable[int]) -> list[Ended]:
        """Let leases go that the control plane took back; unknown ids are counted."""
        lease_ids = tuple(lease_ids)
        ended = self._end(lease_ids, _REVOKE)
        self.counters.revoked += len(ended)
        self.counters.unknown += len(lease_ids) - len(ended)
        return [Ended(held.lease, held.state) for held in ended]

    def pop_expired(self, now_ns: int, limit: int = BATCH_MAX) -> list[Ended]:
        """Let go what has reached its deadline, earliest first; call again while it is `limit`."""
        ended = self._end(self._deadlines.pop_due(now_ns, limit).tolist(), _EXPIRE)
        self.counters.expired += len(ended)
        return [Ended(held.lease, held.state) for held in ended]

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
            held = self._held.get(lease_id)
            if held is not None:
                limit_ns = held.limit_ns
                ids.append(lease_id)
                ends_ns.append(deadline_ns if limit_ns is None else min(deadline_ns, limit_ns))
                limits_ns.append(limit_ns)
        codes = self._deadlines.extend(ids, self._last_ns(ids, ends_ns))
        moved = array("Q")
        moved_ends_ns, moved_limits_ns = [], []
        for lease_id, end_ns, limit_ns, code in zip(ids, ends_ns, limits_ns, codes, strict=True):
            if code == DONE:
                moved.append(lease_id)
                moved_ends_ns.append(end_ns)
                moved_limits_ns.append(limit_ns)
        asks_ns = self._asks_ns(moved_ends_ns, moved_limits_ns, now_ns)
        self._asks.move(moved, asks_ns)  # finished leases are not in it and stay out
        self.counters.extended += len(moved)
        self.counters.unextended += len(ids) - len(moved)
        self.counters.unknown += len(deadlines_ns) - len(ids)
        return len(moved)

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

    def _asks_ns(
        self, deadlines_ns: Sequence[int], limits_ns: Sequence[int | None], now_ns: int
    ) -> "array[int]":
        """Return when to ask for more time: never when there is none to be had."""
        draw = self._rng.random
        span = FRACTION_MAX - FRACTION_MIN
        return array(
            "q",
            [
                deadline_ns - int((1.0 - (FRACTION_MIN + span * draw())) * (deadline_ns - now_ns))
                if limit_ns is None or deadline_ns < limit_ns
                else NEVER_NS
                for deadline_ns, limit_ns in zip(deadlines_ns, limits_ns, strict=True)
            ],
        )

    def _push(
        self, fresh: dict[int, _Held], deadlines_ns: "array[int]", asks_ns: "array[int]"
    ) -> None:
        ids = array("Q", fresh)
        self._deadlines.push(ids, deadlines_ns)
        try:
            self._asks.push(ids, asks_ns)
        except MemoryError:
            self._deadlines.drop(ids)
            raise
        self._held |= fresh
        counts = self._counts[_QUEUED]
        for kind, count in Counter([held.lease.kind for held in fresh.values()]).items():
            counts[kind] += count

    def _change(self, lease_id: int, event: LeaseEvent) -> bool:
        """Apply an event that does not end a lease; False: it changes nothing."""
        held = self._held.get(lease_id)
        if held is None or (state := TRANSITIONS.get((held.state, event))) is None:
            return False
        kind = held.lease.kind
        self._counts[held.state][kind] -= 1
        self._counts[state][kind] += 1
        held.state = state
        return True

    def _end(self, lease_ids: Iterable[int], event: LeaseEvent) -> list[_Held]:
        """Let leases go; return those that were held, in the states they were in."""
        ended, ids = [], array("Q")
        for lease_id in lease_ids:
            held = self._held.get(lease_id)
            if held is not None and (held.state, event) in TRANSITIONS:
                del self._held[lease_id]
                if self._offline_ns:
                    self._offline_ns.pop(lease_id, None)
                self._counts[held.state][held.lease.kind] -= 1
                ended.append(held)
                ids.append(lease_id)
        self._deadlines.drop(ids)
        self._asks.drop(ids)
        return ended


def _limit_ns(lease: Lease, deadline_ns: int) -> int | None:
    """Return the instant past which a lease cannot be extended, None: no limit was told.

    The deadline less the term is the grant, early by the margin: so is the limit. It cuts no
    granted term, whatever the control plane says.
    """
    if lease.max_lease_ms is None:
        return None
    return deadline_ns + max(lease.max_lease_ms - lease.lease_until_ms, 0) * NS_PER_MS
