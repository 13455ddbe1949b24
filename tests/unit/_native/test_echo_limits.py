"""What the echo engine's core does when something runs out: stamps, the queue, its buffers."""

import pytest

from native.echo_core import EchoCore
from netsonde._native import icmp
from support.echo_host import NS_PER_MS, NS_PER_S, EchoHost

FAMILIES = (4, 6)
STAMP_WAIT_NS = 2 * NS_PER_S  # for stamps under way; then some will never come
CLAIM_NS = 60 * NS_PER_S  # the longest timeout: what is older was the reply to no probe
SMALL_BYTES = 2048
LARGE_BYTES = 65_568
HEADERS_BYTES = 68  # the longest IPv4 header and ICMP's


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def host(request: pytest.FixtureRequest) -> EchoHost:
    return EchoHost(request.param)


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def exact(request: pytest.FixtureRequest) -> EchoHost:
    """A host whose engine awaits transmit stamps."""
    return EchoHost(request.param, EchoCore(request.param, exact=True))


# ── transmit stamps ──────────────────────────────────────────────────────────────────────────────


def stamp(host: EchoHost, number: int) -> None:
    """Let the kernel report that packet `number` left now, and be heard at once."""
    host.core.stamp(number, host.now_ns + host.offset_ns, host.now_ns)


def sent_ns(host: EchoHost, packet: bytes) -> int:
    """When a packet left, as its reply tells."""
    (done,) = host.receive(host.reply_to(packet))
    assert done.kind == icmp.REPLY
    return done.sent_ns


def test_a_stamp_is_put_on_the_packet_with_its_number(exact: EchoHost) -> None:
    first, second = exact.send(1), exact.send(2)
    exact.now_ns += 3 * NS_PER_MS
    stamp(exact, 1)
    assert sent_ns(exact, second) == exact.now_ns
    assert sent_ns(exact, first) == exact.now_ns - 3 * NS_PER_MS


def test_after_a_refusal_stamps_pause_until_those_under_way_have_come(exact: EchoHost) -> None:
    core = exact.core
    first, second = exact.send(1), exact.send(2)
    core.lose_stamps(exact.now_ns)
    exact.now_ns += NS_PER_MS
    for number in (0, 1):
        core.resume_stamps(exact.now_ns)
        exact.send(3 + number)
        assert not core.asks, f"{2 - number} are under way"
        stamp(exact, number)
    for packet in (first, second):
        assert sent_ns(exact, packet) == exact.now_ns  # they were asked for before
    core.resume_stamps(exact.now_ns)
    resumed = exact.send(5)
    assert core.asks
    exact.now_ns += NS_PER_MS
    stamp(exact, 0)  # the kernel counts anew
    assert sent_ns(exact, resumed) == exact.now_ns


def test_stamps_that_never_come_are_not_waited_for_long(exact: EchoHost) -> None:
    core = exact.core
    exact.send(1)
    core.lose_stamps(exact.now_ns)
    exact.now_ns += STAMP_WAIT_NS - 1
    core.resume_stamps(exact.now_ns)
    exact.send(2)
    assert not core.asks
    exact.now_ns += 1
    core.resume_stamps(exact.now_ns)
    exact.send(3)
    assert core.asks


def test_a_stamp_that_comes_after_all_is_nobodys(exact: EchoHost) -> None:
    """It has the number of a packet that was sent since, and is too old to be that one's."""
    core = exact.core
    exact.send(1)
    left_ns = exact.now_ns
    core.lose_stamps(exact.now_ns)
    exact.now_ns += STAMP_WAIT_NS
    core.resume_stamps(exact.now_ns)
    packet = exact.send(2)
    core.stamp(0, left_ns + exact.offset_ns, exact.now_ns)
    assert sent_ns(exact, packet) == exact.now_ns


def test_another_refusal_makes_the_pause_longer(exact: EchoHost) -> None:
    core = exact.core
    exact.send(1)
    core.lose_stamps(exact.now_ns)
    exact.now_ns += NS_PER_S
    core.lose_stamps(exact.now_ns)
    exact.now_ns += NS_PER_S
    core.resume_stamps(exact.now_ns)
    exact.send(2)
    assert not core.asks
    exact.now_ns += NS_PER_S
    core.resume_stamps(exact.now_ns)
    exact.send(3)
    assert core.asks


# ── a full receive queue ─────────────────────────────────────────────────────────────────────────


def excused(host: EchoHost) -> int:
    """Let all probes time out; how many of them the queue is to blame for."""
    host.core.expire(host.now_ns + 2 * NS_PER_S)
    kinds = [each.kind for each in host.core.completions()]
    assert set(kinds) <= {icmp.RX_DROP, icmp.TIMEOUT}
    return kinds.count(icmp.RX_DROP)


@pytest.mark.parametrize(
    ("age_ns", "excuses"), [(CLAIM_NS - NS_PER_S, 6), (CLAIM_NS + NS_PER_S, 1)]
)
def test_drops_excuse_no_probe_after_a_minute(host: EchoHost, age_ns: int, excuses: int) -> None:
    for token in range(10):
        host.send(token)
    host.core.overflow(5)
    host.core.age_overflow(age_ns)
    host.core.overflow(1)
    assert excused(host) == excuses
    assert host.core.counters["rx_drops"] == 6


def test_drops_of_nobodys_replies_excuse_no_later_probe(host: EchoHost) -> None:
    host.core.overflow(5)
    host.send(1)
    assert excused(host) == 0


def test_an_excuse_is_good_once(host: EchoHost) -> None:
    host.send(1)
    host.core.overflow(1)
    assert excused(host) == 1
    host.send(2)
    assert excused(host) == 0


# ── large replies ────────────────────────────────────────────────────────────────────────────────


def test_the_buffers_grow_with_the_first_reply_that_needs_it(host: EchoHost) -> None:
    core, fits = host.core, SMALL_BYTES - HEADERS_BYTES
    for size in (icmp.SIZE_MIN_BYTES, 1472, fits):
        assert core.can_receive(size)
        assert core.buffer_bytes == SMALL_BYTES
    for size in (fits + 1, icmp.SIZE_MAX_BYTES, 56):
        assert core.can_receive(size)
        assert core.buffer_bytes == LARGE_BYTES
    packet = host.send(1, size=icmp.SIZE_MAX_BYTES)
    (done,) = host.receive(host.reply_to(packet))
    assert (done.kind, done.size) == (icmp.REPLY, icmp.SIZE_MAX_BYTES)
