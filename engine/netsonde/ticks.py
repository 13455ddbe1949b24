"""When a standing task runs: the grid of ticks that control plane and agent both know. Pure.

Tick `n` is due at `anchor + n * every + offset(n)`. The offset, 0 to jitter, is a hash of the task
and the tick, so that both sides name the same instant without telling each other. Instants are ns
of the control plane's clock.
"""

import hashlib
from typing import NamedTuple

from netsonde.clock import NS_PER_MS, instant_ns, rfc3339
from netsonde.model import Lease, Repeat

INSTANT_MAX_NS = 2**62  # the year 2116


class Tick(NamedTuple):
    """One run of a standing task: its number, from 0, and when it was due, RFC 3339."""

    number: int
    scheduled_at: str


class Grid(NamedTuple):
    """The ticks of one task. `anchor_ns` is when tick 0 is due without its offset.

    Offsets stay below a period (`repeat.jitter_ms < repeat.every_ms`), so that ticks keep their
    order.
    """

    task_id: int
    anchor_ns: int
    repeat: Repeat

    def instant_ns(self, tick: int) -> int:
        """Return when a tick is due."""
        period_ns = self.repeat.every_ms * NS_PER_MS
        return self.anchor_ns + tick * period_ns + self._offset_ns(tick)

    def _offset_ns(self, tick: int) -> int:
        if not self.repeat.jitter_ms:
            return 0
        digest = hashlib.sha256(f"{self.task_id}/{tick}".encode()).digest()
        return int.from_bytes(digest[:8]) % (self.repeat.jitter_ms * NS_PER_MS + 1)

    def latest(self, now_ns: int) -> int:
        """Return the last tick that has come by now_ns, -1 before the first."""
        place = (now_ns - self.anchor_ns) // (self.repeat.every_ms * NS_PER_MS)
        if place >= 0 and self.instant_ns(place) > now_ns:
            place -= 1
        return max(min(place, self.last), -1)

    @property
    def last(self) -> int:
        """The number of the last tick; of a task without an end, one that never comes."""
        return INSTANT_MAX_NS if self.repeat.ticks is None else self.repeat.ticks - 1

    def stale_ns(self, tick: int) -> int:
        """Return the instant from which a tick that has not begun is missed."""
        next_ns = self.instant_ns(tick + 1)
        late_ms = self.repeat.stale_after_ms
        if late_ms is None:
            return next_ns
        return min(next_ns, self.instant_ns(tick) + late_ms * NS_PER_MS)

    def tick(self, number: int) -> Tick:
        """Return a tick as it is reported."""
        return Tick(number, rfc3339(self.instant_ns(number)))

    def is_tick(self, number: int, scheduled_at: str) -> bool:
        """Whether a tick with this number is due at this instant."""
        if not 0 <= number <= min(self.last, INSTANT_MAX_NS // NS_PER_MS // self.repeat.every_ms):
            return False
        try:
            return instant_ns(scheduled_at) == self.instant_ns(number)
        except ValueError:
            return False


def grid_of(lease: Lease) -> Grid | None:
    """Return the ticks of a standing lease, None for one that runs once."""
    if lease.repeat is None or lease.scheduled_at is None:
        return None
    return Grid(lease.task_id, instant_ns(lease.scheduled_at), lease.repeat)
