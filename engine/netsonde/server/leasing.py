"""What becomes of a task: terms, grace, attempts, fences. Pure: instants come in, decisions go out.

Instants are ns of the server's clock (`ServerTime`), never an agent's.
"""

import random
from collections.abc import Mapping
from enum import IntEnum, StrEnum

from msgspec import Struct

from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.model import MINTED_ID_MAX, Outcome, ReportStatus, TaskKind
from netsonde.server.config import ServerConfig

GRACE_FRACTION = 20  # 5 % of a term: clocks that drift, reports in flight
RETURNS_MAX = 10  # free returns of one task; a task that kills its agents must still die
RESUME_WINDOW_NS = 600 * NS_PER_S  # how long a repeated claim_id finds its leases
LEASE_ID_EPOCH_S = 1_735_689_600  # 2025-01-01; 31 bits of seconds last until 2093
LEASE_ID_COUNTER_BITS = 22
STALL_MIN_NS = NS_PER_S  # a loop this late is stalled; less is scheduling noise under a short grace


class TaskState(IntEnum):
    """Where a live task stands; a task that has ended leaves the queue."""

    READY = 0
    LEASED = 1
    REVOKED = 2  # leased, and the work no longer wanted


class ExtendStatus(StrEnum):
    """What became of one lease id of an extend request."""

    EXTENDED = "extended"
    FENCED = "fenced"
    UNKNOWN = "unknown"
    CAPPED = "capped"
    CANCELLED = "cancelled"


class HeldTask(Struct, frozen=True, kw_only=True, gc=False):
    """A task that carries a lease id, as the policy sees it.

    A READY task that still carries one was taken back: until it is granted again its last holder
    may yet report it or extend it.
    """

    task_id: int
    lease_id: int
    agent_id: int
    state: TaskState
    kind: TaskKind
    attempt: int
    max_attempts: int
    returns: int
    granted_ns: int
    until_ns: int
    check_id: int | None = None
    spec_id: int = 0
    scheduled_ns: int | None = None
    queue: int = 0
    is_standing: bool = False


class StandingLease(Struct, frozen=True, kw_only=True, gc=False):
    """A lease of a standing task, and what its runs are stored with; it outlives the task.

    `ended_ns` is when the work was called off. `next_tick` follows the last tick that has a
    result; None once the task is gone.
    """

    lease_id: int
    task_id: int
    agent_id: int
    kind: TaskKind
    anchor_ns: int
    repeat: str
    spec_id: int
    granted_ns: int
    check_id: int | None = None
    ended_ns: int | None = None
    next_tick: int | None = None


class Requeued(Struct, frozen=True, gc=False):
    """The task goes back to the queue; without `keeps_lease` its lease id is forgotten."""

    task_id: int
    run_ns: int
    attempt: int
    returns: int
    keeps_lease: bool


class Died(Struct, frozen=True, gc=False):
    """The task will not be tried again."""

    task_id: int
    reason: str


class Finished(Struct, frozen=True, gc=False):
    """The task has its result."""

    task_id: int


class Unchanged(Struct, frozen=True, gc=False):
    """The task stays as it is, only its lease id is used up."""

    task_id: int


Change = Requeued | Died | Finished | Unchanged


class Verdict(Struct, frozen=True):
    """What a reported result does: its status, the task's change, and whether it is the last."""

    status: ReportStatus
    change: Change | None = None
    is_final: bool = False


class Extension(Struct, frozen=True, gc=False):
    """What an extend request does to one lease; `until_ns` is None when the lease is lost."""

    status: ExtendStatus
    until_ns: int | None = None


class LeasingPolicy:
    """The rules of one control plane's leases."""

    def __init__(self, config: ServerConfig, rng: random.Random) -> None:
        self._rng = rng
        self._terms_ns = {kind: config.terms_ms[kind] * NS_PER_MS for kind in TaskKind}
        self._grace_floor_ns = config.grace_ms * NS_PER_MS
        self._max_lease_ns = config.max_lease_ms * NS_PER_MS
        self._standing_ns = config.standing_term_ms * NS_PER_MS
        self._offline_ns = config.offline_ms * NS_PER_MS
        self._base_ns = config.requeue_base_ms * NS_PER_MS
        self._cap_ns = config.requeue_cap_ms * NS_PER_MS

    def term_ns(self, kind: TaskKind) -> int:
        """Return how long a lease of this kind lasts."""
        return self._terms_ns[kind]

    @property
    def terms_ns(self) -> Mapping[TaskKind, int]:
        """The term of every kind."""
        return self._terms_ns

    @property
    def max_lease_ns(self) -> int:
        """How long one lease lasts at most, extensions included."""
        return self._max_lease_ns

    @property
    def standing_term_ns(self) -> int:
        """How long a standing lease lasts unless it is extended."""
        return self._standing_ns

    @property
    def offline_ns(self) -> int:
        """How long past its end a standing lease is worked on."""
        return self._offline_ns

    def due_ns(self, kind: TaskKind, until_ns: int, *, is_standing: bool = False) -> int:
        """Return when a lease that ends at until_ns is taken back."""
        term_ns = self._standing_ns if is_standing else self._terms_ns[kind]
        return until_ns + max(self._grace_floor_ns, term_ns // GRACE_FRACTION)

    @property
    def grace_max_ns(self) -> int:
        """The longest grace of any kind."""
        return max(self.due_ns(kind, 0) for kind in TaskKind)

    def extend(self, held: HeldTask | None, agent_id: int, by_ns: int, now_ns: int) -> Extension:
        """Decide an extension: it never shortens, and revives what nobody else was granted."""
        if held is None or held.agent_id != agent_id:
            return Extension(ExtendStatus.FENCED)
        if held.state is TaskState.REVOKED:
            return Extension(ExtendStatus.CANCELLED)
        if held.is_standing:  # for as long as its check wants it
            until_ns = max(held.until_ns, now_ns + min(max(by_ns, 0), self._standing_ns))
            return Extension(ExtendStatus.EXTENDED, until_ns)
        cap_ns = held.granted_ns + self._max_lease_ns
        wanted_ns = max(held.until_ns, now_ns + min(max(by_ns, 0), self._terms_ns[held.kind]))
        until_ns = max(held.until_ns, min(wanted_ns, cap_ns))
        if until_ns <= now_ns:
            return Extension(ExtendStatus.CAPPED)
        status = ExtendStatus.CAPPED if wanted_ns > cap_ns else ExtendStatus.EXTENDED
        return Extension(status, until_ns)

    def extend_earlier(self, lease: StandingLease, by_ns: int, now_ns: int) -> Extension:
        """Decide the extension of a standing lease of this agent that has been followed by another.

        The agent is still to hear of that one: told to stop, it would miss ticks. Nothing is moved.
        """
        if lease.ended_ns is not None:
            return Extension(ExtendStatus.CANCELLED)
        if lease.next_tick is None:
            return Extension(ExtendStatus.FENCED)
        until_ns = now_ns + min(max(by_ns, 0), self._standing_ns)
        return Extension(ExtendStatus.EXTENDED, until_ns)

    def expire(self, held: HeldTask, now_ns: int) -> Change:
        """Decide what becomes of a lease whose grace is over."""
        if held.state is TaskState.REVOKED:
            return Finished(held.task_id)
        if held.is_standing:
            return self._stand_by(held, now_ns, keeps_lease=True)
        return self._try_again(held, now_ns, "the lease expired without a report", True)

    def give_back(self, held: HeldTask, now_ns: int, *, keeps_lease: bool) -> Change:
        """Decide what becomes of a task that came back unworked: no attempt, up to a bound."""
        if held.state is TaskState.REVOKED:
            return Finished(held.task_id)
        if held.is_standing:
            return self._stand_by(held, now_ns, keeps_lease=keeps_lease)
        if held.returns >= RETURNS_MAX:
            reason = f"it came back unworked more than {RETURNS_MAX} times"
            return self._try_again(held, now_ns, reason, keeps_lease)
        return Requeued(
            held.task_id, now_ns, max(held.attempt - 1, 0), held.returns + 1, keeps_lease
        )

    def report(self, held: HeldTask, outcome: Outcome, now_ns: int) -> Verdict:
        """Decide what a result does to the task whose current lease it was made under."""
        if held.state is TaskState.REVOKED:
            return Verdict(ReportStatus.FENCED, Finished(held.task_id))
        if held.state is TaskState.READY:
            return self._late(held, outcome)
        is_late = held.until_ns < now_ns
        status = ReportStatus.LATE_ACCEPTED if is_late else ReportStatus.ACCEPTED
        if outcome is Outcome.CANCELLED:
            change = self.give_back(held, now_ns, keeps_lease=False)
        elif outcome is Outcome.AGENT_ERROR:
            change = self._try_again(held, now_ns, "the agent could not measure", False)
        else:
            change = Finished(held.task_id)
        return Verdict(status, change, is_final=isinstance(change, Finished | Died))

    def report_run(
        self, lease: StandingLease, held: HeldTask | None, scheduled_ns: int, now_ns: int
    ) -> ReportStatus:
        """Decide about the result of a tick, made under a standing lease of the agent that reports.

        Nobody else could have measured it, so that any of the task's leases will do. What was due
        after the work was called off is not wanted. `held` is the task if the lease is its last.
        """
        if lease.ended_ns is not None and scheduled_ns > lease.ended_ns:
            return ReportStatus.FENCED
        is_current = held is not None and held.state is TaskState.LEASED and held.until_ns >= now_ns
        return ReportStatus.ACCEPTED if is_current else ReportStatus.LATE_ACCEPTED

    def _stand_by(self, held: HeldTask, now_ns: int, *, keeps_lease: bool) -> Requeued:
        """Let a standing task wait for its agent, however often: only its agent can have it.

        An outage is no failure of the task, nor is a drain: no attempt is consumed.
        """
        return Requeued(held.task_id, now_ns, 0, held.returns, keeps_lease)

    def _late(self, held: HeldTask, outcome: Outcome) -> Verdict:
        """Take a result for a task that was taken back and not granted again."""
        if outcome in (Outcome.CANCELLED, Outcome.AGENT_ERROR):
            return Verdict(ReportStatus.LATE_ACCEPTED, Unchanged(held.task_id))
        return Verdict(ReportStatus.LATE_ACCEPTED, Finished(held.task_id), is_final=True)

    def _try_again(self, held: HeldTask, now_ns: int, why: str, keeps_lease: bool) -> Change:
        if held.attempt >= held.max_attempts:
            return Died(held.task_id, f"{why}, attempt {held.attempt} of {held.max_attempts}")
        bound_ns = min(self._cap_ns, self._base_ns << min(held.attempt, 32))
        run_ns = now_ns + self._rng.randrange(bound_ns + 1)
        return Requeued(held.task_id, run_ns, held.attempt, held.returns, keeps_lease)


class ServerTime:
    """The server's clock: begins at the wall clock, or later where it once stood; never steps."""

    def __init__(self, clock: Clock, persisted_ns: int) -> None:
        self._clock = clock
        self._offset_ns = max(clock.realtime_ns(), persisted_ns) - clock.boottime_ns()

    def now_ns(self) -> int:
        """Return the server's instant; usable from any thread."""
        return self._clock.boottime_ns() + self._offset_ns


class LeaseIds:
    """Mints lease ids: time-ordered, never repeated, below 2^53."""

    def __init__(self, last: int) -> None:
        self.last = last

    def next(self, now_ns: int, room: int) -> int:
        """Return the first of room free ids; `last` moves when they are used.

        Raises:
            OverflowError: the ids would leave the range that every JSON reader keeps exact.
        """
        seconds = max(now_ns // NS_PER_S - LEASE_ID_EPOCH_S, 0)
        first = max(self.last + 1, seconds << LEASE_ID_COUNTER_BITS, 1)
        if first + room > MINTED_ID_MAX:
            raise OverflowError("lease ids are used up: the clock is past 2093")
        return first

    def may_have_minted(self, lease_id: int) -> bool:
        """Whether lease_id could be one of ours."""
        return 0 < lease_id <= self.last

    @staticmethod
    def first_of(instant_ns: int) -> int:
        """Return the least lease id that can have been minted at an instant, to the second."""
        return max(instant_ns // NS_PER_S - LEASE_ID_EPOCH_S, 0) << LEASE_ID_COUNTER_BITS

    @staticmethod
    def minted_ns(lease_id: int) -> int:
        """Return when a lease id was minted, to the second."""
        return ((lease_id >> LEASE_ID_COUNTER_BITS) + LEASE_ID_EPOCH_S) * NS_PER_S


class SweepGate:
    """Holds expiry back after a start or a stall, so that a paused server expires nobody's work."""

    def __init__(self, grace_ns: int) -> None:
        self._grace_ns = grace_ns
        self._planned_ns: int | None = None
        self._open_ns = 0

    def plan(self, instant_ns: int) -> None:
        """Note when the sweeper means to run again: a stall is what it is late by."""
        self._planned_ns = instant_ns

    def may_expire(self, now_ns: int) -> bool:
        """Note that the sweeper runs at now_ns; return whether it may take leases back."""
        stall_ns = max(self._grace_ns, STALL_MIN_NS)
        if self._planned_ns is None or now_ns - self._planned_ns > stall_ns:
            self._open_ns = now_ns + self._grace_ns
        self._planned_ns = now_ns
        return now_ns >= self._open_ns
