"""Many traces over a network that loses, repeats and forges, against a model in plain Python.

Time goes by in ticks of the timeout wheel, so the model knows to the instant what is waited for.
"""

import errno
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from native.trace_core import Hop, TraceCore
from netsonde._native import icmp
from netsonde.probe.trace.answers import Flag, Kind, Stop
from support.echo_host import NS_PER_MS, NS_PER_S
from support.trace_host import WATCHED, Sent, TraceHost, refused
from support.trace_packets import (
    IP_BYTES,
    NAMED,
    PORT_CODE,
    UNREACHABLE,
    echo_reply,
    error,
    extended,
    flipped,
    is_known,
    quote_of,
    segment,
    structure,
)

TICK_NS = 1 << 20
LINGER_TICKS = 60 * NS_PER_S >> 20
RETRY_MIN_NS = 250 * NS_PER_MS
TURNS_MAX = 10_000  # each ends what is in flight
WAITING, ANSWERED, SILENT, FORGOTTEN, REFUSED = "waiting", "answered", "silent", "forgotten", "no"


@dataclass
class Known:
    """A probe, and what the model says of it."""

    sent: Sent
    patience_ns: int
    state: str = WAITING
    settled_ns: int = 0

    def settle(self, state: str, now_ns: int) -> None:
        if self.state == WAITING:
            self.settled_ns = now_ns
        self.state = state


@dataclass
class Trace:
    """What was asked for, and what the model has seen of it."""

    method: str
    attempts: int
    timeout_ns: int
    all_attempts: bool
    heard: list[Hop] = field(default_factory=list)
    sent: Counter[int] = field(default_factory=Counter)  # by TTL
    refused: int = 0
    rtt_max_ns: int = 0
    first: dict[int, bool] = field(default_factory=dict)  # by TTL: whether the end answered first

    def patience_ns(self, attempt: int) -> int:
        """How long an attempt is waited for, in whole us: three round trips within the timeout."""
        patience_ns = max(3 * self.rtt_max_ns, RETRY_MIN_NS)
        if self.all_attempts or attempt + 1 >= self.attempts or patience_ns > self.timeout_ns:
            patience_ns = self.timeout_ns
        return -(-patience_ns // 1000) * 1000


class Traces(RuleBasedStateMachine):
    """Any order of traces, answers, forgeries and time."""

    @initialize(family=st.sampled_from((4, 6)), slots=st.sampled_from((0, 1, 3, 40)))
    def open(self, family: int, slots: int) -> None:
        self.host = TraceHost(family, TraceCore(family, slots=slots))
        self.host.now_ns = 100 << 30
        self.stranger = TraceHost(family, TraceCore(family, secret=8))
        self.traces: dict[int, Trace] = {}
        self.known: list[Known] = []
        self.owners: dict[int, Known] = {}  # by slot
        self.done: set[int] = set()

    # ── operations ──

    @rule(
        method=st.sampled_from(("icmp", "udp", "tcp")), last_ttl=st.integers(1, 20),
        attempts=st.integers(1, 3), gap_limit=st.integers(1, 6), rounds=st.booleans(),
        timeout_ticks=st.sampled_from((1, 300, 1500, 50_000)), flow=st.integers(0, 1),
        at_once=st.booleans(),
    )  # fmt: skip
    def submit(
        self, method: str, last_ttl: int, attempts: int, gap_limit: int, timeout_ticks: int,
        flow: int, *, rounds: bool, at_once: bool,
    ) -> None:  # fmt: skip
        token, timeout_ns = len(self.traces), timeout_ticks * TICK_NS
        self.traces[token] = Trace(method, attempts, timeout_ns, rounds)
        self.host.submit(
            token, method, last_ttl=last_ttl, attempts=attempts, gap_limit=gap_limit, flow=flow,
            timeout_ns=timeout_ns, interval_ns=10 * TICK_NS if rounds else 0,
            flags=WATCHED | (icmp.TRACE_ALL_ATTEMPTS if rounds else 0),
        )  # fmt: skip
        if at_once:
            self.turn(0)

    @rule(refusal=st.sampled_from((0, 0, 0, 0, errno.ENOBUFS)))
    def turn(self, refusal: int) -> None:
        for sent in self.host.turn(refused=refusal):
            trace = self.traces[sent.token]
            assert (sent.probe.ttl, sent.probe.method) == (sent.ttl, trace.method)
            assert sent.attempt == trace.sent[sent.ttl] < trace.attempts
            known = Known(sent, trace.patience_ns(sent.attempt))
            trace.sent[sent.ttl] += 1
            if refusal:
                known.state = REFUSED
                trace.refused += 1
            self.known.append(known)
            self.owners[sent.probe.slot] = known

    @rule(ticks=st.one_of(st.integers(0, 5), st.sampled_from((100, 300, 1500, 60_000))))
    def wait(self, ticks: int) -> None:
        self.host.now_ns += ticks * TICK_NS

    @rule()
    def expire(self) -> None:
        now_ns = self.host.now_ns
        self.host.expire()
        for known in self.known:
            if known.state == WAITING and now_ns >= known.sent.sent_ns + known.patience_ns:
                known.settle(SILENT, now_ns)
            elif known.state in (ANSWERED, SILENT) and (
                    now_ns - known.settled_ns) // TICK_NS > LINGER_TICKS:  # fmt: skip
                known.state = FORGOTTEN

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        token = data.draw(st.integers(0, 30))
        self.host.core.cancel(token)
        self.turn(0)
        waits = token in self.traces and not self.traces[token].sent
        assert token not in self.traces or self._is_over(token) or waits

    @precondition(lambda self: self.known)
    @rule(data=st.data(), padded=st.booleans(), quoted=st.sampled_from((None, 8, 23, NAMED, 28)))
    def routers(self, data: st.DataObject, quoted: int | None, *, padded: bool) -> None:
        for known in self._pick(data):
            probe = known.sent.probe
            quote, version = quote_of(probe, quoted), probe.version
            message = extended(version, quote, structure()) if padded else error(version, quote)
            is_enough = is_known(version, probe.method, quoted, padded=padded)
            self._receive(known, message, Kind.ERROR, is_end=False, is_enough=is_enough)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def destination(self, data: st.DataObject) -> None:
        for known in self._pick(data):
            probe = known.sent.probe
            if probe.method == "icmp":
                self._receive(known, echo_reply(probe), Kind.ECHO)
            elif probe.method == "tcp":
                self._receive(known, segment(probe), Kind.SYN_ACK)
            else:
                kind, code = UNREACHABLE[probe.version], PORT_CODE[probe.version]
                quote = error(probe.version, probe.packet, kind=kind, code=code)
                self._receive(known, quote, Kind.ERROR)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), bit=st.integers(0, 7))
    def forged(self, data: st.DataObject, bit: int) -> None:
        """A cookie with one bit changed; in its last byte it might look like padding."""
        for known in self._pick(data):
            probe, at = known.sent.probe, data.draw(st.integers(0, 6))
            if probe.method == "tcp":
                step = 1 + (1 << at + bit)
                assert refused(self.host, segment(probe, step=step), tcp=True)
            elif probe.payload[15]:
                place = IP_BYTES[probe.version] + 16 + at
                forgery = flipped(probe.packet, place, 1 << bit)
                assert refused(self.host, error(probe.version, forgery))

    @rule(
        method=st.sampled_from(("icmp", "udp", "tcp")), quoted=st.sampled_from((None, 8, 28)),
        noise=st.binary(max_size=100),
    )  # fmt: skip
    def strange(self, method: str, quoted: int | None, noise: bytes) -> None:
        """What another engine with another key has sent, and what nobody has."""
        assert refused(self.host, noise)
        token = len(self.stranger.ended) + 1
        sent = self.stranger.trace(method, token=token, last_ttl=1, attempts=1)[0]
        self.stranger.run_out()
        assert refused(self.host, error(self.host.family, quote_of(sent.probe, quoted)))

    @rule()
    def take(self) -> None:
        """Read what has ended: all that the model has counted, and nothing else."""
        for token in tuple(self.host.ended):
            trace, traced = self.traces[token], self.host.take(token)
            self.done.add(token)
            answers = [each for each in traced.answers if each.kind != Kind.REFUSED]
            assert len(traced.answers) - len(answers) == traced.tx_errors == trace.refused
            assert traced.sent == trace.sent.total() - trace.refused
            assert dict(enumerate(traced.attempts, traced.first_ttl)) == dict(trace.sent)
            for answer, hop in zip(answers, trace.heard, strict=True):
                assert (answer.ttl, answer.attempt, answer.kind) == hop[1:4]
                assert (answer.flags, answer.responder) == hop[6:8]
                assert (answer.sent_ns, answer.rtt_ns) == hop[8:]
            flags = Counter(Flag(each.flags) for each in answers)
            assert (traced.duplicates, traced.late) == (flags[Flag.DUPLICATE], flags[Flag.LATE])
            reached = [ttl for ttl, is_end in trace.first.items() if is_end]
            assert traced.end_ttl == min(reached, default=0)
            if traced.stop != Stop.CANCELLED:
                assert (traced.stop == Stop.COMPLETED) == bool(reached)

    # ── the model ──

    def _pick(self, data: st.DataObject) -> list[Known]:
        """Choose a few probes, some of them twice."""
        backs = st.lists(st.integers(1, len(self.known)), min_size=1, max_size=6)
        return [self.known[-back] for back in data.draw(backs)]

    def _is_over(self, token: int) -> bool:
        return token in self.host.ended or token in self.done

    def _receive(
        self, known: Known, message: bytes, kind: Kind, *, is_end: bool = True,
        is_enough: bool = True,
    ) -> None:  # fmt: skip
        """Insist that a right answer is its probe's, or nobody's where that is forgotten."""
        sent, is_segment = known.sent, kind == Kind.SYN_ACK
        is_owner = self.owners[sent.probe.slot] is known
        if not (is_enough and is_owner) or self._is_over(sent.token) or (
                known.state in (FORGOTTEN, REFUSED)):  # fmt: skip
            assert refused(self.host, message, tcp=is_segment)
            return
        flags = self._note(known, is_end=is_end)
        hops = self.host.receive_segment(message) if is_segment else self.host.receive(message)
        (hop,) = hops
        assert (hop.token, hop.ttl, hop.attempt, hop.kind) == (*sent.name, kind)
        assert (Flag(hop.flags), hop.rtt_ns) == (flags, self.host.now_ns - sent.sent_ns)
        self.traces[sent.token].heard.append(hop)

    def _note(self, known: Known, *, is_end: bool) -> Flag:
        """Note an answer to a probe; return what is to be said of it."""
        trace, rtt_ns = self.traces[known.sent.token], self.host.now_ns - known.sent.sent_ns
        was = known.state
        known.settle(ANSWERED, self.host.now_ns)
        if was == ANSWERED:
            return Flag.DUPLICATE
        if rtt_ns > trace.timeout_ns:
            return Flag.LATE
        trace.rtt_max_ns = max(trace.rtt_max_ns, rtt_ns)
        trace.first.setdefault(known.sent.ttl, is_end)
        return Flag(0)

    @invariant()
    def what_is_waited_for_is_what_the_model_waits_for(self) -> None:
        if not hasattr(self, "host"):
            return
        waiting = [known.sent for known in self.known if known.state == WAITING]
        assert self.host.core.in_flight == len(waiting)
        live = Counter((sent.token, sent.ttl) for sent in waiting if not self._is_over(sent.token))
        assert self.host.core.waiting() == live

    def teardown(self) -> None:
        """Without another answer everything ends, once."""
        if not hasattr(self, "host"):
            return
        for _ in range(TURNS_MAX):
            self.turn(0)
            if all(self._is_over(token) for token in self.traces):
                break
            self.wait(60_000)
            self.expire()
        self.take()
        assert self.done == set(self.traces)


def test_every_answer_is_its_probes_and_every_trace_ends() -> None:
    run_state_machine_as_test(Traces)
