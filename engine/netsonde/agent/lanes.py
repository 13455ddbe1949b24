"""Slots by kind: what waits for one, what has one, and how many there may be under congestion."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from netsonde.congestion import CongestionControl, Signal
from netsonde.model import TARGET_FIELDS, Lease, TaskKind


class Waiting(Protocol):
    """What can wait for a slot."""

    @property
    def lease(self) -> Lease:
        """The lease that it is about."""
        ...


J = TypeVar("J", bound=Waiting)
_TARGETS = {kind: attrgetter(name) for kind, name in TARGET_FIELDS.items()}


@dataclass(slots=True)
class _Lane(Generic[J]):
    capacity: int
    taken: int = 0
    queued: deque[J] = field(default_factory=deque)


def _shared(room: Mapping[TaskKind, int], left: int, turn: int) -> dict[TaskKind, int]:
    """Divide slots among kinds evenly, to none more than its room; the odd ones in turn.

    A host that congestion leaves few slots must not measure one kind alone.
    """
    kinds = list(room)
    start = turn % len(kinds)
    in_turn = kinds[start:] + kinds[:start]
    if left < len(kinds):
        return dict.fromkeys(in_turn[:left], 1)
    shares: dict[TaskKind, int] = {}
    for at, kind in enumerate(sorted(in_turn, key=room.__getitem__)):
        shares[kind] = min(room[kind], left // (len(kinds) - at))
        left -= shares[kind]
    return shares


class Lanes(Generic[J]):
    """One lane per kind. A slot is taken by `begin` or `take` and given back by `give_back`.

    A job whose target can take no more waits, and lets those behind it pass.
    """

    def __init__(self, capacities: Mapping[TaskKind, int]) -> None:
        self.congestion = CongestionControl(capacities)
        self._lanes: dict[TaskKind, _Lane[J]] = {
            kind: _Lane(slots) for kind, slots in capacities.items()
        }
        self._taken = 0  # of all kinds
        self._turn = 0  # which kinds come first while there are fewer slots than kinds

    def resize(self, capacities: Mapping[TaskKind, int]) -> None:
        """Change how many slots there are; those that are taken beyond them are waited for."""
        for kind, lane in self._lanes.items():
            lane.capacity = capacities.get(kind, 0)
        self.congestion.resize({kind: lane.capacity for kind, lane in self._lanes.items()})

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for a slot."""
        return not any(lane.queued for lane in self._lanes.values())

    def measures(self, kind: TaskKind) -> bool:
        """Whether there are slots of a kind at all."""
        return kind in self._lanes and self._lanes[kind].capacity > 0

    def taken(self) -> dict[TaskKind, int]:
        """Return how many slots of each kind are taken, where any are."""
        return {kind: lane.taken for kind, lane in self._lanes.items() if lane.taken}

    def free(self) -> dict[TaskKind, int]:
        """Return what a claim may ask for: slots that nothing has, waits for, or must not use."""
        # What waits beyond the slots of its kind is no burden on the others.
        left = self.congestion.limit_of_all - sum(
            min(lane.taken + len(lane.queued), lane.capacity) for lane in self._lanes.values()
        )
        room = {kind: slots for kind in self._lanes if (slots := self.room(kind)) > 0}
        if not room or left >= sum(room.values()):
            return room
        self._turn += 1
        return _shared(room, max(left, 0), self._turn)

    def queue(self, job: J) -> None:
        """Let a job wait."""
        self._lanes[job.lease.kind].queued.append(job)

    def queued(self) -> Iterator[J]:
        """Iterate over what waits."""
        for lane in self._lanes.values():
            yield from lane.queued

    def remove(self, lease_ids: Collection[int]) -> list[J]:
        """Let jobs wait no longer; return them."""
        removed: list[J] = []
        for lane in self._lanes.values():
            queued, lane.queued = lane.queued, deque()
            for job in queued:
                (removed if job.lease.lease_id in lease_ids else lane.queued).append(job)
        return removed

    def begin(self, kind: TaskKind) -> J | None:
        """Give the next job of a kind that may begin its slot; None: nothing may."""
        lane = self._lanes[kind]
        if not lane.queued or lane.taken >= self._slots(kind):
            return None
        if self._taken >= self.congestion.limit_of_all:
            return None
        for _ in range(len(lane.queued)):
            job = lane.queued.popleft()
            target = target_of(job.lease)
            if self.congestion.may_start(kind, target):
                self.take(kind, 1)
                self.congestion.started(kind, target)
                return job
            lane.queued.append(job)
        return None

    def ended(self, lease: Lease, signal: Signal, now_ns: int) -> None:
        """Note what a job that began said of congestion; it keeps its slot."""
        self.congestion.ended(lease.kind, target_of(lease), signal, now_ns)

    def room(self, kind: TaskKind) -> int:
        """Return the slots of a kind that nothing has or waits for."""
        lane = self._lanes[kind]
        return self._slots(kind) - lane.taken - len(lane.queued)

    def take(self, kind: TaskKind, count: int) -> None:
        """Take slots for what is measured already and not kept yet."""
        self._lanes[kind].taken += count
        self._taken += count

    def give_back(self, kind: TaskKind, count: int = 1) -> None:
        """Give slots back."""
        self._lanes[kind].taken -= count
        self._taken -= count

    def _slots(self, kind: TaskKind) -> int:
        return min(self._lanes[kind].capacity, self.congestion.limit(kind))


def targets_of(leases: Sequence[Lease]) -> list[str]:
    """Return what each of a batch of leases measures."""
    return [_TARGETS[lease.kind](lease.spec) for lease in leases]


def target_of(lease: Lease) -> str:
    """Return what a lease measures, as it is named there."""
    target: str = _TARGETS[lease.kind](lease.spec)
    return target
