"""How much may run at once: additive increase, multiplicative decrease (Chiu and Jain, 1989).

Pure; instants are ns of a monotonic clock and come in. A limit shrinks when this host or its uplink
is overloaded, never because a target is down: packets dropped here, a loop that lags, and timeouts
of targets that answered a moment ago. A target that times out shrinks its own limit only.
"""

from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum, auto

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.model import FailureSource, Measurement, Reason, TaskKind

DECREASE = 0.7  # as CUBIC's (RFC 9438 4.6): halving gives up more than a probe's burst costs
HOLD_NS = NS_PER_S  # one overload is answered once: what it hit is still on its way
LAG_MAX_NS = 50 * NS_PER_MS  # later than this a loop's own time stamps begin to mislead
SAMPLE = 32  # results of answering targets that a kind is judged by
TIMEOUT_SHARE = 0.25  # of them: more than paths lose by themselves
TARGETS_MAX = 10_000  # that are remembered
ANSWERED_NS = 300 * NS_PER_S  # a target that answered so recently is thought to be up


class Signal(Enum):
    """What a measurement says of congestion."""

    ANSWERED = auto()
    TIMEOUT = auto()
    LOCAL_DROP = auto()  # this host did not get it out
    NEITHER = auto()  # refused, denied, not resolved: no packet's fate is known


def signal_of(measurement: Measurement) -> Signal:
    """Read a measurement's signal."""
    error = measurement.error
    if error is None:
        return Signal.ANSWERED
    if error.reason is Reason.TIMEOUT:
        return Signal.TIMEOUT
    if error.reason is Reason.TX_ERROR and error.failure_source is FailureSource.SELF:
        return Signal.LOCAL_DROP
    return Signal.NEITHER


class Window:
    """A limit between 1 and `ceiling` that starts at the ceiling."""

    __slots__ = ("_ceiling", "_held_until_ns", "_size")

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._size = float(ceiling)
        self._held_until_ns = 0

    @property
    def limit(self) -> int:
        """How much may run at once."""
        return int(self._size)

    @property
    def is_open(self) -> bool:
        """Whether nothing is held back."""
        return self._size >= self._ceiling

    def resize(self, ceiling: int) -> None:
        """Move the ceiling; a limit that was at the old one is at the new one."""
        self._size = float(ceiling) if self.is_open else min(self._size, float(ceiling))
        self._ceiling = ceiling

    def grow(self, running: int) -> None:
        """Note a success: one more for every windowful, if half of it is used (RFC 7661)."""
        if 2 * running >= self.limit and not self.is_open:
            self._size = min(self._ceiling, self._size + 1 / self._size)

    def shrink(self, now_ns: int) -> bool:
        """Note an overload; return whether it counts: one that follows another does not."""
        if now_ns < self._held_until_ns or self._ceiling == 0:
            return False
        self._size = max(1.0, self._size * DECREASE)
        self._held_until_ns = now_ns + HOLD_NS
        return True


class _Target:
    __slots__ = ("answered_ns", "running", "window")

    def __init__(self, ceiling: int) -> None:
        self.window = Window(ceiling)
        self.running = 0
        self.answered_ns: int | None = None


class _Sample:
    """The latest results of targets that are up."""

    __slots__ = ("results", "timeouts")

    def __init__(self) -> None:
        self.results = self.timeouts = 0

    def add(self, is_timeout: bool) -> bool:
        """Count one result; return whether too many of the last ones were timeouts."""
        self.results += 1
        self.timeouts += is_timeout
        is_overload = self.timeouts >= TIMEOUT_SHARE * SAMPLE
        if is_overload or self.results >= SAMPLE:
            self.results = self.timeouts = 0
        return is_overload


class CongestionControl:
    """The limits of one agent: of each kind, of each target, and of all together."""

    def __init__(self, capacities: Mapping[TaskKind, int]) -> None:
        self._capacities = {kind: slots for kind, slots in capacities.items() if slots > 0}
        self._windows = {kind: Window(slots) for kind, slots in self._capacities.items()}
        self._all = Window(sum(self._capacities.values()))
        self._samples = {kind: _Sample() for kind in self._capacities}
        self._running = dict.fromkeys(self._capacities, 0)
        self._running_all = 0
        self._targets: OrderedDict[tuple[TaskKind, str], _Target] = OrderedDict()
        self.shrunk: dict[str, int] = dict.fromkeys(("all", "target", *self._capacities), 0)

    def resize(self, capacities: Mapping[TaskKind, int]) -> None:
        """Move the ceilings of kinds that had one; whoever gives the slots holds a kind at none."""
        known = {kind: max(capacities.get(kind, 0), 1) for kind in self._capacities}
        self._capacities = known
        for kind, slots in known.items():
            self._windows[kind].resize(slots)
        self._all.resize(sum(known.values()))
        for (kind, _), target in self._targets.items():
            target.window.resize(known[kind])

    def limit(self, kind: TaskKind) -> int:
        """How many of a kind may run at once."""
        window = self._windows.get(kind)
        return window.limit if window else 0

    @property
    def limit_of_all(self) -> int:
        """How many may run at once, of all kinds together."""
        return self._all.limit

    def may_start(self, kind: TaskKind, target: str) -> bool:
        """Whether a target can take one more."""
        known = self._targets.get((kind, target))
        return known is None or known.running < known.window.limit

    def started(self, kind: TaskKind, target: str) -> None:
        """Note that a measurement has a slot."""
        self._running[kind] += 1
        self._running_all += 1
        key = kind, target
        known = self._targets.get(key)
        if known is None:
            known = self._targets[key] = _Target(self._capacities[kind])
            self._forget()
        self._targets.move_to_end(key)
        known.running += 1

    def ended(self, kind: TaskKind, target: str, signal: Signal, now_ns: int) -> None:
        """Note that a measurement gave its slot back, and what it said."""
        running, everything = self._running[kind], self._running_all
        self._running[kind] -= 1
        self._running_all -= 1
        known = self._targets.get((kind, target))
        if known is None:  # it cannot be forgotten while it runs
            raise KeyError(f"{kind} {target} was not started")
        known.running -= 1
        if signal is Signal.ANSWERED:
            self._windows[kind].grow(running)
            self._all.grow(everything)
            known.window.grow(known.running + 1)
            known.answered_ns = now_ns
            self._samples[kind].add(is_timeout=False)
        elif signal is Signal.TIMEOUT:
            self._timed_out(kind, known, now_ns)
        elif signal is Signal.LOCAL_DROP:
            self._shrink(kind, now_ns)
            self._shrink_all(now_ns)

    def lagged(self, lag_ns: int, now_ns: int) -> None:
        """Note how late the loop is at worst; too late shrinks what all may do together."""
        if lag_ns > LAG_MAX_NS:
            self._shrink_all(now_ns)

    def _timed_out(self, kind: TaskKind, known: _Target, now_ns: int) -> None:
        self.shrunk["target"] += known.window.shrink(now_ns)
        answered_ns = known.answered_ns
        is_up = answered_ns is not None and now_ns - answered_ns <= ANSWERED_NS
        if is_up and self._samples[kind].add(is_timeout=True):
            self._shrink(kind, now_ns)

    def _shrink(self, kind: TaskKind, now_ns: int) -> None:
        self.shrunk[kind] += self._windows[kind].shrink(now_ns)

    def _shrink_all(self, now_ns: int) -> None:
        self.shrunk["all"] += self._all.shrink(now_ns)

    def _forget(self) -> None:
        """Keep the number of targets bounded; the longest unused that nothing runs at goes."""
        if len(self._targets) <= TARGETS_MAX:
            return
        for key, known in self._targets.items():
            if known.running == 0:
                del self._targets[key]
                return
