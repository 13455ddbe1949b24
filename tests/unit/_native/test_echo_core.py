"""The echo engine's core without sockets: whose a packet is, and what a set wall clock changes."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from native.echo_core import Completion, EchoCore
from netsonde._native import icmp
from support import quotes
from support.echo_host import (
    NS_PER_HOUR,
    NS_PER_MS,
    NS_PER_S,
    READING_NS,
    RESPONDER,
    TARGET,
    EchoHost,
)

FAMILIES = (4, 6)
EARLY_NS = 100 * NS_PER_MS  # how far before its probe a kernel's stamp is still believed
LATE_NS = NS_PER_MS  # how far after it was read
UNSEEN_NS = 1_000 + 2 * READING_NS  # a smaller step is below what samples tell, or an RTT shows
STEPS_NS = (NS_PER_HOUR, -NS_PER_HOUR, 50 * NS_PER_MS, -50 * NS_PER_MS, 2_000, -2_000)


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def host(request: pytest.FixtureRequest) -> EchoHost:
    return EchoHost(request.param)


def only(done: object) -> Completion:
    assert isinstance(done, list), done
    assert len(done) == 1, done
    assert isinstance(done[0], Completion)
    return done[0]


# ── a wall clock that is set ─────────────────────────────────────────────────────────────────────


def test_without_a_step_the_kernels_stamp_counts(host: EchoHost) -> None:
    packet = host.send(1)
    host.now_ns += 10 * NS_PER_MS
    host.sample()
    done = only(host.receive(host.reply_to(packet), read_after_ns=400 * NS_PER_MS))
    assert (done.kind, done.rtt_ns, done.clocks) == (icmp.REPLY, 10 * NS_PER_MS, "kernel")


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_step_under_way_leaves_the_rtt_alone_and_is_said(host: EchoHost, step_ns: int) -> None:
    packet = host.send(1)
    host.now_ns += 10 * NS_PER_MS
    host.step_wall_clock(step_ns)
    host.sample()
    done = only(host.receive(host.reply_to(packet)))
    assert (done.kind, done.rtt_ns, done.clocks) == (icmp.REPLY, 10 * NS_PER_MS, "user")
    assert host.core.steps == 1


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_after_a_step_the_kernels_stamp_counts_again(host: EchoHost, step_ns: int) -> None:
    host.send(1)
    host.step_wall_clock(step_ns)
    host.sample()
    packet = host.send(2)
    host.now_ns += 10 * NS_PER_MS
    host.sample()
    done = only(host.receive(host.reply_to(packet), read_after_ns=NS_PER_MS))
    assert (done.token, done.rtt_ns, done.clocks) == (2, 10 * NS_PER_MS, "kernel")


@pytest.mark.parametrize("step_ns", [NS_PER_HOUR, -NS_PER_HOUR])
def test_a_step_nobody_has_noticed_yet_is_seen_in_the_stamp(host: EchoHost, step_ns: int) -> None:
    packet = host.send(1)
    host.now_ns += 10 * NS_PER_MS
    host.step_wall_clock(step_ns)
    done = only(host.receive(host.reply_to(packet)))
    assert (done.kind, done.rtt_ns, done.clocks) == (icmp.REPLY, 10 * NS_PER_MS, "user")
    assert host.core.steps == 0


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_step_between_sample_and_send_is_noticed_late_but_in_time(
    host: EchoHost, step_ns: int
) -> None:
    before = host.send(1)
    host.step_wall_clock(step_ns)
    after = host.send(2)  # the core still believes the old difference
    host.now_ns += 10 * NS_PER_MS
    host.sample()
    for packet in (before, after):
        done = only(host.receive(host.reply_to(packet)))
        assert (done.rtt_ns, done.clocks) == (10 * NS_PER_MS, "user")


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_step_there_and_back_between_samples_is_told_by_the_timer(
    host: EchoHost, step_ns: int
) -> None:
    packet = host.send(1)
    host.now_ns += 10 * NS_PER_MS
    host.step_wall_clock(step_ns)
    stamp_ns = host.now_ns + host.offset_ns
    host.step_wall_clock(-step_ns)
    host.sample()
    assert host.core.steps == 0, "no sample can tell"
    host.core.note_step()
    host.sample()
    done = only(host.receive(host.reply_to(packet), stamp_ns=stamp_ns))
    assert (done.rtt_ns, done.clocks) == (10 * NS_PER_MS, "user")


def test_every_step_there_and_back_counts_when_samples_see_it(host: EchoHost) -> None:
    packet = host.send(1)
    for _ in range(3):
        host.step_wall_clock(NS_PER_HOUR)
        host.sample()
        host.step_wall_clock(-NS_PER_HOUR)
        host.sample()
    assert host.core.steps == 6
    host.now_ns += 10 * NS_PER_MS
    done = only(host.receive(host.reply_to(packet)))
    assert (done.rtt_ns, done.clocks) == (10 * NS_PER_MS, "user")


@pytest.mark.parametrize("step_ns", [NS_PER_HOUR, -NS_PER_HOUR])
def test_a_step_invents_no_timeout_and_hides_none(host: EchoHost, step_ns: int) -> None:
    answered, late = host.send(1, timeout_ns=20 * NS_PER_MS), host.send(2, timeout_ns=NS_PER_MS)
    host.now_ns += 10 * NS_PER_MS
    host.step_wall_clock(step_ns)
    host.sample()
    assert only(host.receive(host.reply_to(answered))).kind == icmp.REPLY
    assert [c.kind for c in host.receive(host.reply_to(late))] == [icmp.TIMEOUT, icmp.LATE]


@given(
    st.sampled_from(FAMILIES),
    st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 50_000)), max_size=20),
)
def test_slewing_does_not_count(family: int, readings: list[tuple[int, int]]) -> None:
    """Both clocks are slewed alike, so each sample's interval holds the one difference."""
    host = EchoHost(family)
    packet = host.send(1)
    for early_ns, late_ns in readings:
        host.now_ns += NS_PER_MS
        host.sample(early_ns, late_ns)
    done = only(host.receive(host.reply_to(packet)))
    assert host.core.steps == 0
    assert done.clocks == "kernel"
    assert abs(done.rtt_ns - len(readings) * NS_PER_MS) <= READING_NS


@pytest.mark.parametrize(
    ("stamp_after_send_ns", "read_after_send_ns", "rtt_ns", "clocks"),
    [
        (5_000_000, 6_000_000, 5_000_000, "kernel"),
        (0, 6_000_000, 0, "kernel"),
        (-1, 6_000_000, 0, "kernel"),  # send stamps are interpolated: never a negative RTT
        (-EARLY_NS, 6_000_000, 0, "kernel"),
        (-EARLY_NS - 1, 6_000_000, 6_000_000, "user"),
        (6_000_000 + LATE_NS, 6_000_000, 6_000_000 + LATE_NS, "kernel"),
        (6_000_000 + LATE_NS + 1, 6_000_000, 6_000_000, "user"),  # from the future
        (-NS_PER_HOUR, 6_000_000, 6_000_000, "user"),
        (NS_PER_HOUR, 6_000_000, 6_000_000, "user"),
    ],
)
def test_a_stamp_that_makes_no_sense_is_not_believed(
    host: EchoHost, stamp_after_send_ns: int, read_after_send_ns: int, rtt_ns: int, clocks: str
) -> None:
    packet = host.send(1)
    stamp_ns = host.now_ns + host.offset_ns + stamp_after_send_ns
    done = only(
        host.receive(host.reply_to(packet), stamp_ns=stamp_ns, read_after_ns=read_after_send_ns)
    )
    assert (done.rtt_ns, done.clocks) == (rtt_ns, clocks)


def test_without_a_stamp_the_readers_clock_counts(host: EchoHost) -> None:
    packet = host.send(1)
    done = only(host.receive(host.reply_to(packet), stamp_ns=0, read_after_ns=7 * NS_PER_MS))
    assert (done.rtt_ns, done.clocks) == (7 * NS_PER_MS, "user")


@dataclass(frozen=True)
class Trip:
    """What the wall clock does while one probe is under way."""

    rtt_ns: int
    reader_late_ns: int
    step_before_send_ns: int
    step_under_way_ns: int
    reply_before_step: bool


STEP = st.one_of(st.just(0), st.sampled_from(STEPS_NS), st.integers(-NS_PER_HOUR, NS_PER_HOUR))
TRIPS = st.builds(
    Trip, st.integers(0, 500 * NS_PER_MS), st.integers(0, 300 * NS_PER_MS), STEP, STEP,
    st.booleans(),
)  # fmt: skip


@given(st.sampled_from(FAMILIES), st.lists(TRIPS, min_size=1, max_size=8))
def test_no_step_makes_an_rtt_wrong(family: int, trips: list[Trip]) -> None:
    """The clocks are sampled where a turn does it: before it sends, and after it has read."""
    host = EchoHost(family)
    for token, trip in enumerate(trips):
        host.step_wall_clock(trip.step_before_send_ns)
        host.sample()
        packet = host.send(token)
        host.now_ns += trip.rtt_ns
        stamps = [host.now_ns + host.offset_ns]
        host.step_wall_clock(trip.step_under_way_ns)
        stamps.append(host.now_ns + host.offset_ns)
        host.sample()
        done = only(
            host.receive(
                host.reply_to(packet),
                stamp_ns=stamps[not trip.reply_before_step],
                read_after_ns=trip.reader_late_ns,
            )
        )
        if done.clocks == "kernel":
            assert abs(trip.step_under_way_ns) <= UNSEEN_NS
            assert abs(done.rtt_ns - trip.rtt_ns) <= UNSEEN_NS
        else:
            assert trip.step_under_way_ns != 0
            assert done.rtt_ns == trip.rtt_ns + trip.reader_late_ns


# ── edges of the match ───────────────────────────────────────────────────────────────────────────


def test_a_router_that_pads_a_short_quote_still_names_the_probe() -> None:
    host = EchoHost(4)
    done = only(host.receive(quotes.with_extensions(4, host.send(1))))
    assert (done.kind, done.icmp_type) == (icmp.ERROR, 11)


def test_a_padded_quote_that_holds_the_cookie_names_the_probe(host: EchoHost) -> None:
    message = quotes.with_extensions(host.family, host.send(1), quoted_bytes=64)
    assert only(host.receive(message)).kind == icmp.ERROR


@pytest.mark.parametrize("sequence", [1, 1023, 1024, 1025, 0xFFFF])
def test_an_error_may_name_a_slot_that_is_not_there(sequence: int) -> None:
    host = EchoHost(4)
    packet = bytearray(host.send(1))
    packet[26:28] = sequence.to_bytes(2)
    assert not host.receive(quotes.error(4, bytes(packet), quoted_bytes=8))
    assert host.core.counters["foreign"] == 1


def test_a_slot_that_is_only_reserved_is_nobodys(host: EchoHost) -> None:
    core = EchoCore(host.family, capacity=1)
    assert core.hold_slot()
    assert core.send(1, TARGET[host.family], host.now_ns) is None
    assert not core.completions()


def test_a_full_slab_reuses_what_settled_first(host: EchoHost) -> None:
    core = EchoCore(host.family, capacity=2)
    host = EchoHost(host.family, core)
    first, second = host.send(1), host.send(2)
    assert core.send(3, TARGET[host.family], host.now_ns) is None
    assert [only(host.receive(host.reply_to(p))).token for p in (second, first)] == [2, 1]
    host.send(3)
    assert not host.receive(host.reply_to(second)), "its slot is another probe's now"
    assert core.counters["stale"] == 1
    assert only(host.receive(host.reply_to(first))).kind == icmp.DUPLICATE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_socket_tells_errors_by_its_queue(family: int) -> None:
    core = EchoCore(family, datagram=True)
    host = EchoHost(family, core)
    message = host.send(1)[20 if family == 4 else 40 :]
    core.report(
        message, host.now_ns + host.offset_ns, host.now_ns, type_=quotes.UNREACHABLE[family],
        code=1, destination=TARGET[family], offender=RESPONDER[family],
    )  # fmt: skip
    done = only(core.completions())
    assert (done.kind, done.icmp_code, done.responder) == (icmp.ERROR, 1, RESPONDER[family])


def test_drops_of_the_receive_queue_excuse_as_many_probes(host: EchoHost) -> None:
    for token in range(3):
        host.send(token)
    host.core.overflow(2)
    host.core.expire(host.now_ns + 2 * NS_PER_S)
    kinds = sorted(c.kind for c in host.core.completions())
    assert kinds == sorted([icmp.RX_DROP, icmp.RX_DROP, icmp.TIMEOUT])


# ── a model of the match ─────────────────────────────────────────────────────────────────────────

IN_FLIGHT, ANSWERED, UNANSWERED, FORGOTTEN = "in flight", "answered", "unanswered", "forgotten"
TICK_NS = 1 << 20
LINGER_NS = NS_PER_S


@dataclass
class Probe:
    token: int
    packet: bytes
    sent_ns: int
    timeout_ns: int
    state: str = IN_FLIGHT
    settled_ns: int = 0

    def settle(self, state: str, now_ns: int) -> None:
        self.state = state
        self.settled_ns = now_ns


@dataclass
class Expected:
    """What an operation must complete and count."""

    done: list[tuple[int, int, int]] = field(default_factory=list)  # token, kind, RTT
    counted: str | None = None  # the reason for refusing it; "refused": forged or foreign


class Matcher(RuleBasedStateMachine):
    """Any order of sends, answers, forgeries and time, against a model of a few lines."""

    @initialize(family=st.sampled_from(FAMILIES))
    def open(self, family: int) -> None:
        self.host = EchoHost(family, EchoCore(family, linger_ns=LINGER_NS))
        self.stranger = EchoHost(family, EchoCore(family, secret=8))
        self.header = quotes.IP_HEADER_BYTES[family]
        self.probes: list[Probe] = []

    # ── operations ──

    @rule(
        timeout_ms=st.sampled_from([1, 7, 1000, 60_000]), size=st.sampled_from([16, 17, 56, 1000])
    )
    def send(self, timeout_ms: int, size: int) -> None:
        token, timeout_ns = len(self.probes), timeout_ms * NS_PER_MS
        packet = self.host.send(token, timeout_ns=timeout_ns, size=size)
        self.probes.append(Probe(token, packet, self.host.now_ns, timeout_ns))

    @rule(ns=st.one_of(st.integers(0, 5 * NS_PER_MS), st.sampled_from([NS_PER_S, 70 * NS_PER_S])))
    def wait(self, ns: int) -> None:
        self.host.now_ns += ns

    @rule()
    def expire(self) -> None:
        now_ns = self.host.now_ns
        self.host.core.expire(now_ns)
        done = self.host.core.completions()
        ended = {c.token for c in done}
        assert len(ended) == len(done)
        assert all(c.kind == icmp.TIMEOUT and c.rtt_ns == -1 for c in done)
        for probe in self.probes:
            overdue_ns = now_ns - probe.sent_ns - probe.timeout_ns
            if probe.token in ended:
                assert probe.state == IN_FLIGHT
                assert overdue_ns >= 0, "a timeout is never early"
                probe.settle(UNANSWERED, now_ns)
            elif probe.state == IN_FLIGHT:
                assert overdue_ns < TICK_NS, "and at most a tick late"
            elif now_ns >> 20 > (probe.settled_ns >> 20) + (LINGER_NS >> 20):
                probe.state = FORGOTTEN

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        probe = self._pick(data)
        cut = data.draw(st.integers(0, len(probe.packet) - self.header - 8 - 16))
        packet = probe.packet[: len(probe.packet) - cut]
        self._check(self.host.reply_to(packet), self._after_reply(probe))

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def error(self, data: st.DataObject) -> None:
        probe = self._pick(data)
        quoted = data.draw(st.integers(8, len(probe.packet) - self.header))
        message = quotes.error(self.host.family, probe.packet, quoted_bytes=quoted)
        self._check(message, self._after_error(probe, has_cookie=quoted >= 24))

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), quoted=st.sampled_from([8, 24, 60]))
    def error_with_extensions(self, data: st.DataObject, quoted: int) -> None:
        probe = self._pick(data)
        message = quotes.with_extensions(self.host.family, probe.packet, quoted_bytes=quoted)
        self._check(message, self._after_error(probe, has_cookie=quoted >= 24))

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), mask=st.integers(1, 255))
    def forged_reply(self, data: st.DataObject, mask: int) -> None:
        probe = self._pick(data)
        packet = bytearray(probe.packet)
        packet[data.draw(st.integers(self.header + 8, len(packet) - 1))] ^= mask
        is_forgotten = probe.state == FORGOTTEN  # its cookie may be right yet
        reason = "refused or stale" if is_forgotten else "refused"
        self._check(self.host.reply_to(bytes(packet)), Expected(counted=reason))

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), mask=st.integers(1, 255), quoted=st.sampled_from([8, 24]))
    def error_about_another_target(self, data: st.DataObject, mask: int, quoted: int) -> None:
        packet = bytearray(self._pick(data).packet)
        packet[self.header - 1] ^= mask
        message = quotes.error(self.host.family, bytes(packet), quoted_bytes=quoted)
        self._check(message, Expected(counted="refused or stale"))

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), at=st.sampled_from([2, 3]), mask=st.integers(1, 255))
    def error_with_another_checksum(self, data: st.DataObject, at: int, mask: int) -> None:
        packet = bytearray(self._pick(data).packet)
        packet[self.header + at] ^= mask
        message = quotes.error(self.host.family, bytes(packet), quoted_bytes=8)
        self._check(message, Expected(counted="refused"))

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def reply_cut_below_the_cookie(self, data: st.DataObject) -> None:
        packet = self._pick(data).packet[: self.header + 8 + data.draw(st.integers(0, 15))]
        self._check(self.host.reply_to(packet), Expected(counted="foreign"))

    @rule(token=st.integers(0, 1000))
    def reply_to_a_stranger(self, token: int) -> None:
        packet = self.stranger.send(token)
        self.stranger.core.expire(self.stranger.now_ns)
        self._check(self.host.reply_to(packet), Expected(counted="refused"))

    @rule(noise=st.binary(max_size=100))
    def noise(self, noise: bytes) -> None:
        self._check(noise, Expected(counted="any"))

    # ── the model ──

    def _pick(self, data: st.DataObject) -> Probe:
        return self.probes[data.draw(st.integers(0, len(self.probes) - 1))]

    def _time_out(self, probe: Probe) -> list[tuple[int, int, int]]:
        now_ns = self.host.now_ns
        if probe.state != IN_FLIGHT or now_ns - probe.sent_ns <= probe.timeout_ns:
            return []
        probe.settle(UNANSWERED, now_ns)
        return [(probe.token, icmp.TIMEOUT, -1)]

    def _after_reply(self, probe: Probe) -> Expected:
        if probe.state == FORGOTTEN:
            return Expected(counted="stale")
        done = self._time_out(probe)
        kind = {IN_FLIGHT: icmp.REPLY, UNANSWERED: icmp.LATE, ANSWERED: icmp.DUPLICATE}
        done.append((probe.token, kind[probe.state], self.host.now_ns - probe.sent_ns))
        if probe.state == IN_FLIGHT:
            probe.settled_ns = self.host.now_ns
        probe.state = ANSWERED
        return Expected(done)

    def _after_error(self, probe: Probe, *, has_cookie: bool) -> Expected:
        if self.host.family == 6 and not has_cookie:
            return Expected(counted="foreign")
        if probe.state == FORGOTTEN:
            return Expected(counted="stale" if has_cookie else "foreign")
        done = self._time_out(probe)
        if probe.state != IN_FLIGHT:
            return Expected(done, counted="late_errors")
        probe.settle(UNANSWERED, self.host.now_ns)
        return Expected([(probe.token, icmp.ERROR, self.host.now_ns - probe.sent_ns)])

    def _check(self, message: bytes, expected: Expected) -> None:
        before = self.host.core.counters
        done = self.host.receive(message)
        after = self.host.core.counters
        assert [(c.token, c.kind, c.rtt_ns) for c in done] == expected.done
        assert all(c.clocks == "kernel" for c in done if c.rtt_ns >= 0)
        counted = {name for name in after if after[name] != before[name]} - {"packets"}
        assert after["packets"] == before["packets"] + 1
        allowed = {
            None: set(),
            "refused": {"forged", "foreign"},
            "refused or stale": {"forged", "foreign", "stale"},
            "any": {"foreign", "malformed"},
        }.get(expected.counted, {expected.counted})
        assert counted <= allowed
        assert len(counted) == (expected.counted is not None)

    @invariant()
    def counts_agree(self) -> None:
        states = [probe.state for probe in getattr(self, "probes", ())]
        if states:
            assert self.host.core.in_flight == states.count(IN_FLIGHT)
            assert self.host.core.settled == states.count(ANSWERED) + states.count(UNANSWERED)


def test_the_match_agrees_with_its_model() -> None:
    run_state_machine_as_test(Matcher)
