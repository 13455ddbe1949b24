"""How often measurements may begin, and how long they may wait: bounds that can change at work."""

from collections.abc import Mapping, Sequence

from msgspec import structs

from netsonde.agent.lanes import target_of, targets_of
from netsonde.model import Lease, TaskKind, TaskSpec
from netsonde.pacing import KeyedBuckets, Pacer, TokenBucket

TARGETS_MAX = 10_000  # targets paced at once; those beyond share one bucket
TARGET_BURST = 10  # a check's targets often resolve to one host
KIND_BURST = 10


def target_pacer(starts_per_s: float) -> Pacer:
    """Make the pacer of measurements: a bucket per real target."""
    return Pacer(keyed=[KeyedBuckets(starts_per_s, TARGET_BURST, TARGETS_MAX)])


class Bounds:
    """The bounds of one worker: of every target, of whole kinds where they have any."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._kinds: dict[TaskKind, Pacer] = {}
        self._timeouts_ms: Mapping[TaskKind, int] = {}

    def pace(self, target_per_s: float, kinds_per_s: Mapping[TaskKind, float]) -> None:
        """Let so many begin a second from now on: at one target, and of kinds altogether."""
        targets = KeyedBuckets(target_per_s, TARGET_BURST, TARGETS_MAX)
        self._pacer = Pacer(keyed=[targets])
        self._kinds = {
            kind: Pacer([TokenBucket(rate, KIND_BURST)], [targets])
            for kind, rate in kinds_per_s.items()
        }

    def bound_timeouts(self, timeouts_ms: Mapping[TaskKind, int]) -> None:
        """Let measurements of these kinds wait no longer from now on, whatever was asked."""
        self._timeouts_ms = dict(timeouts_ms)

    def reserve(self, lease: Lease, now_ns: int) -> int:
        """Take a lease's turn; return how long it is until then."""
        return self._of(lease.kind).reserve((target_of(lease),), now_ns)

    def take_each(self, leases: Sequence[Lease], now_ns: int) -> list[bool]:
        """Take the turns of those that may begin now; return whether, lease by lease."""
        if not self._kinds:
            return self._pacer.take_each(targets_of(leases), now_ns)
        return [self._of(lease.kind).take((target_of(lease),), now_ns) == 0 for lease in leases]

    def specs(self, leases: Sequence[Lease]) -> list[TaskSpec]:
        """Return what leases ask for, within the bounds."""
        if not self._timeouts_ms:
            return [lease.spec for lease in leases]  # they come by the thousand
        return [*map(self.spec, leases)]

    def spec(self, lease: Lease) -> TaskSpec:
        """Return what a lease asks for, within the bounds."""
        most_ms = self._timeouts_ms.get(lease.kind)
        if most_ms is None or lease.spec.timeout_ms <= most_ms:
            return lease.spec
        return structs.replace(lease.spec, timeout_ms=most_ms)

    def _of(self, kind: TaskKind) -> Pacer:
        return self._kinds.get(kind, self._pacer)
