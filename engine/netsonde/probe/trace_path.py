"""The path of one trace as it becomes known: what to send next, when it is done, where it ends.

No I/O: instants and answers come in, probes to send come out. Every attempt at a TTL is a probe of
its own, so answers may come in any order and each retry is timed by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple

from netsonde.clock import NS_PER_MS
from netsonde.model import TraceSpec

# TTLs in flight beyond the farthest one that answered: most paths are shorter, so one window finds
# the end in one round trip, and a near end costs few probes.
WINDOW_HOPS = 16
# The window leaves in bursts: a destination nearer than the gap answers before the next one.
BURST_HOPS = 4
BURST_GAP_NS = NS_PER_MS
# A hop that owes an answer is asked again well before its timeout: attempts are told apart by
# their sequence, so the first one's answer still counts when it comes.
RETRY_RTTS = 3
RETRY_MIN_NS = 250 * NS_PER_MS
# One address at this many separate TTLs is a loop and not two paths: nothing new is sent.
LOOP_REPEATS = 3
# Late and duplicate answers listed per trace; the rest is counted only, to bound a result's size.
EXTRA_ANSWERS_MAX = 256
NEVER_NS = 2**62  # handed over, not known to have left yet

DUPLICATE, USER_CLOCK, TRANSLATED = 1, 2, 4  # the flags of netsonde._native.trace

ECHO_REPLY = {4: 0, 6: 129}  # RFC 792, RFC 4443
TIME_EXCEEDED = {4: 11, 6: 3}


class Stop(StrEnum):
    """Why a trace ended; the last three before it began."""

    COMPLETED = "completed"
    GAP_LIMIT = "gap_limit"
    MAX_HOPS = "max_hops"
    UNREACHABLE = "unreachable"
    LOOP = "loop"
    TX_ERROR = "tx_error"
    CANCELLED = "cancelled"
    DENIED = "denied"
    RESOLVE_FAILED = "resolve_failed"
    NO_ROUTE = "no_route"


class Answer(NamedTuple):
    """What answered one probe, as the native socket tells it; instants are CLOCK_MONOTONIC."""

    trace: int
    ttl: int
    attempt: int
    icmp_type: int
    icmp_code: int
    responder: bytes
    tx_ns: int
    rx_ns: int
    reply_ttl: int
    quoted_ttl: int
    quoted_tos: int
    flags: int

    @property
    def rtt_ns(self) -> int:
        """Receive minus send."""
        return self.rx_ns - self.tx_ns

    @property
    def address(self) -> str:
        """The responder as text."""
        family = AF_INET if len(self.responder) == 4 else AF_INET6
        return inet_ntop(family, self.responder)


class Refusal(NamedTuple):
    """A probe the kernel did not take."""

    trace: int
    ttl: int
    attempt: int
    errno: int


@dataclass(slots=True)
class Hop:
    """What is known at one TTL."""

    ttl: int
    attempts: int = 0  # handed over to be sent
    handed_ns: int = 0
    sent_ns: int = 0  # the last of them
    answer: Answer | None = None  # the first one in time
    others: list[Answer] = field(default_factory=list)  # of another attempt, late, duplicate
    refusals: dict[int, int] = field(default_factory=dict)  # attempt: errno

    @property
    def owes(self) -> bool:
        """Whether a probe that left has no answer in time yet."""
        return self.answer is None and len(self.refusals) < self.attempts


class Path:
    """One trace: a hop per TTL, and the decisions.

    A hop is settled when it answered, or when the last of `probes_per_hop` attempts timed out; it
    is asked again only while it owes an answer. The trace is done when every hop up to its end is
    settled. The end is where the destination answered, else where a router refused to go on and
    nothing answered from beyond, else `gap_limit` TTLs after the farthest answer, else `max_hops`.
    """

    def __init__(self, spec: TraceSpec, version: int) -> None:
        self.first_ttl = min(spec.first_hop, spec.max_hops)
        self.last_ttl = spec.max_hops
        self.version = version
        self.timeout_ns = spec.timeout_ms * NS_PER_MS
        self._gap_limit = spec.gap_limit
        self._attempts_max = spec.probes_per_hop
        self._echo_reply = ECHO_REPLY[version]
        self._time_exceeded = TIME_EXCEEDED[version]
        self._hops = [Hop(ttl) for ttl in range(self.first_ttl, self.last_ttl + 1)]
        self._unconfirmed: list[Hop] = []
        self._burst_ns = -BURST_GAP_NS
        self._rtt_max_ns = 0
        self._extra = 0
        self._farthest_ttl = self.first_ttl - 1
        self._refused_ttls: list[int] = []
        self._expired_ttl = 0  # the highest TTL that expired on the way
        self._expired_at: dict[bytes, list[int]] = {}  # responder: TTLs
        self._loop_runs = 1  # separate TTLs of the router met most often
        self.reached: Hop | None = None  # the lowest TTL the destination answered
        self.end_ttl: int | None = None  # where the path is known to end
        self.sent = self.late = self.duplicates = self.tx_errors = 0
        self.is_translated = False
        self.is_user_clock = False

    # ── what to send ──

    def due(self, now_ns: int) -> list[tuple[int, bytes]]:
        """Return the probes to send now, TTLs by attempt, and count them as handed over."""
        fresh = self._due_fresh(now_ns)
        retries = [hop for hop in self._retriable() if now_ns >= hop.sent_ns + self._retry_ns]
        if fresh:
            self._burst_ns = now_ns
        by_attempt: dict[int, bytearray] = {}
        for hop in fresh + retries:
            by_attempt.setdefault(hop.attempts, bytearray()).append(hop.ttl)
            hop.attempts += 1
            hop.handed_ns = now_ns
            hop.sent_ns = NEVER_NS
            self._unconfirmed.append(hop)
        self.sent += len(fresh) + len(retries)
        return [(attempt, bytes(ttls)) for attempt, ttls in by_attempt.items()]

    def withdraw(self, ttls: bytes) -> None:
        """Take back probes of the last `due` that found no room; they are due again."""
        for ttl in ttls:
            hop = self._hop(ttl)
            hop.attempts -= 1
            hop.sent_ns = hop.handed_ns
            self._unconfirmed.remove(hop)
        self.sent -= len(ttls)

    def confirm(self, waiting: int, last_sent_ns: int) -> None:
        """Learn when the probes handed over left; their timeouts count from there."""
        if waiting:
            return
        for hop in self._unconfirmed:
            hop.sent_ns = max(hop.handed_ns, last_sent_ns)
        self._unconfirmed.clear()

    def _hop(self, ttl: int) -> Hop:
        return self._hops[ttl - self.first_ttl]

    def up_to(self, ttl: int) -> list[Hop]:
        """Return the hops whose TTL is at most ttl."""
        return self._hops[: max(ttl - self.first_ttl + 1, 0)]

    def _untried(self) -> list[Hop]:
        """Return the TTLs of the window that were never probed."""
        if self.is_looping:
            return []
        window = max(WINDOW_HOPS, self._gap_limit)
        limit = self.end_ttl or min(self._farthest_ttl + window, self.last_ttl)
        return [hop for hop in self.up_to(limit) if hop.attempts == 0]

    def _due_fresh(self, now_ns: int) -> list[Hop]:
        """Return the next burst, when the gap is over or everything so far has been answered."""
        untried = self._untried()
        if now_ns < self._burst_ns + BURST_GAP_NS and any(hop.owes for hop in self._hops):
            return []
        return untried[:BURST_HOPS]

    def _retriable(self) -> Iterator[Hop]:
        if not self.is_looping:
            for hop in self.up_to(self.horizon):
                if hop.answer is None and 0 < hop.attempts < self._attempts_max:
                    yield hop

    @property
    def _retry_ns(self) -> int:
        return min(self.timeout_ns, max(RETRY_MIN_NS, RETRY_RTTS * self._rtt_max_ns))

    # ── what came ──

    def take_answer(self, answer: Answer) -> None:
        """Note one answer; late and duplicate ones never settle a hop."""
        hop = self._hop(answer.ttl)
        is_duplicate = bool(answer.flags & DUPLICATE)
        is_late = self.is_late(answer)
        self.duplicates += is_duplicate
        self.late += is_late
        self.is_translated |= bool(answer.flags & TRANSLATED)
        self.is_user_clock |= bool(answer.flags & USER_CLOCK)
        if is_duplicate or is_late:
            self._extra += 1
            if self._extra <= EXTRA_ANSWERS_MAX:
                hop.others.append(answer)
        elif hop.answer is None:
            self._settle(hop, answer)
        else:
            hop.others.append(answer)

    def is_late(self, answer: Answer) -> bool:
        """Whether an answer took longer than the timeout."""
        return answer.rtt_ns > self.timeout_ns

    def _settle(self, hop: Hop, answer: Answer) -> None:
        hop.answer = answer
        self._farthest_ttl = max(self._farthest_ttl, hop.ttl)
        self._rtt_max_ns = max(self._rtt_max_ns, answer.rtt_ns)
        if self.is_echo(answer):
            if self.reached is None or hop.ttl < self.reached.ttl:
                self.reached = hop
        elif answer.icmp_type == self._time_exceeded:
            self._expired_ttl = max(self._expired_ttl, hop.ttl)
            self._note_expiry(answer.responder, hop.ttl)
        else:
            self._refused_ttls.append(hop.ttl)
        end = self.reached or self.refused
        self.end_ttl = end.ttl if end else None

    def _note_expiry(self, responder: bytes, ttl: int) -> None:
        ttls = self._expired_at.setdefault(responder, [])
        ttls.append(ttl)
        if len(ttls) > 1:
            # A TTL that answers later may join two runs, so all are counted again.
            self._loop_runs = max(map(_separate, self._expired_at.values()))

    def take_refusal(self, refusal: Refusal) -> None:
        """Note that the kernel did not take a probe; the hop is asked again as after a loss."""
        self._hop(refusal.ttl).refusals[refusal.attempt] = refusal.errno
        self.tx_errors += 1
        self.sent -= 1

    # ── where it ends ──

    def is_echo(self, answer: Answer) -> bool:
        """Whether the destination answered the echo request."""
        return answer.icmp_type == self._echo_reply

    def is_refusal(self, answer: Answer) -> bool:
        """Whether an answer is neither the destination's nor a router's for an expired TTL."""
        return answer.icmp_type not in (self._echo_reply, self._time_exceeded)

    @property
    def refused(self) -> Hop | None:
        """The lowest TTL at which a router refused and beyond which no TTL expired."""
        ttl = min((ttl for ttl in self._refused_ttls if ttl > self._expired_ttl), default=None)
        return None if ttl is None else self._hop(ttl)

    @property
    def farthest(self) -> Hop | None:
        """The last hop that answered."""
        return self._hop(self._farthest_ttl) if self._farthest_ttl >= self.first_ttl else None

    @property
    def horizon(self) -> int:
        """The last TTL that has to be settled, as far as is known."""
        return self.end_ttl or min(self._farthest_ttl + self._gap_limit, self.last_ttl)

    @property
    def is_looping(self) -> bool:
        """Whether one router was met so often that the path goes in circles."""
        return self._loop_runs >= LOOP_REPEATS

    @property
    def has_loop(self) -> bool:
        """Whether one router answered at two TTLs and not at one between them."""
        return self._loop_runs > 1

    def wake_ns(self, now_ns: int) -> int | None:
        """Return when to look again, None when done; before then only an answer changes anything.

        An instant that is not after now_ns says that probes are due.
        """
        needed = self.up_to(self.end_ttl or self.last_ttl)
        timeouts = (hop.sent_ns + self.timeout_ns for hop in needed if hop.owes)
        instants = [instant for instant in timeouts if instant > now_ns]
        instants += [hop.sent_ns + self._retry_ns for hop in self._retriable()]
        if self._untried():
            instants.append(self._burst_ns + BURST_GAP_NS)
        return min(instants, default=None)

    @property
    def stop(self) -> Stop:
        """Why a trace that is done ended."""
        if self.reached:
            return Stop.COMPLETED
        if self.refused:
            return Stop.UNREACHABLE
        if self.is_looping:
            return Stop.LOOP
        if self.sent == 0:
            return Stop.TX_ERROR
        silent = self.last_ttl - self._farthest_ttl
        return Stop.GAP_LIMIT if silent >= self._gap_limit else Stop.MAX_HOPS

    @property
    def last_errno(self) -> int | None:
        """Why the kernel refused a probe, or None when it took them all."""
        found = [code for hop in self._hops for code in hop.refusals.values()]
        return found[-1] if found else None

    def shown(self) -> list[Hop]:
        """Return the hops that were probed, up to the end of the path."""
        return [hop for hop in self.up_to(self.horizon) if hop.attempts]


def _separate(ttls: list[int]) -> int:
    """Count the runs of neighbouring TTLs: 3, 4, 9 are two."""
    return sum(ttl - 1 not in ttls for ttl in ttls)
