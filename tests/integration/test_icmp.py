"""The native echo engine on real sockets, in namespaces whose hosts answer only what a test sends.

Loopback delivers within the send call, so nothing here waits: what was sent has arrived.
"""

import contextlib
import errno
import itertools
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroute2.netlink.exceptions import NetlinkError

from netsonde._native.icmp import (
    COMPLETION_FORMAT,
    DUPLICATE,
    ERROR,
    INTERVAL_MAX_NS,
    LATE,
    REPLY,
    RX_DROP,
    RX_KERNEL,
    SIZE_MAX_BYTES,
    TIMEOUT,
    TIMEOUT_MAX_NS,
    TX_ERROR,
    EchoEngine,
)
from support import packets
from support.icmp_peer import (
    SECOND_NS,
    TARGET,
    Done,
    Family,
    Peer,
    gather,
    is_quiet,
    poll,
    quote,
    reply_to,
    request,
    send_one,
    submit_all,
    unreachable,
)
from support.namespaces import Namespace, connect

pytestmark = [pytest.mark.raw, pytest.mark.netns]


Open = Callable[..., EchoEngine]


@pytest.fixture
def open_engine(quiet: Namespace, family: Family) -> Iterator[Open]:
    engines = []

    def make(**options: object) -> EchoEngine:
        engine = quiet.call(EchoEngine, family, **options)  # type: ignore[arg-type]
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(open_engine: Open) -> EchoEngine:
    return open_engine()


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────


def test_the_request_is_an_echo_request_with_slot_serial_and_cookie(
    open_engine: Open, peer: Peer, family: Family
) -> None:
    engine = open_engine(ident=65_535, secret=bytes(16))
    message = send_one(engine, peer, size=56)
    parsed = packets.parse_message(family, message)
    assert not isinstance(parsed, str)
    type_, code, _, ident, sequence, payload, _ = parsed
    assert (type_, code, ident, sequence) == (packets.ECHO_REQUEST[family], 0, 65_535, 0)
    assert len(payload) == 56
    assert payload[:4] == bytes(4)  # slot 0
    assert payload[16:] == bytes(range(16, 56))
    if family == 4:
        assert packets.checksum(message) == 0


@pytest.mark.parametrize("size", [16, 17, 1400, 1473, 9000, SIZE_MAX_BYTES])
def test_every_size_goes_there_and_back(engine: EchoEngine, peer: Peer, size: int) -> None:
    message = send_one(engine, peer, size=size)
    assert len(message) == 8 + size
    if size < 9000:  # raw IPPROTO_RAW does not fragment
        peer.send(reply_to(message, peer.family))
        (done,) = poll(engine)
        assert (done.kind, done.size) == (REPLY, size)


def test_large_replies_are_taken_whole(family: Family) -> None:
    host = Namespace("answering host")
    with host.call(EchoEngine, family) as engine:
        engine.submit(b"".join(request(n, TARGET[family], size=SIZE_MAX_BYTES) for n in range(3)))
        assert [(each.kind, each.size) for each in poll(engine)] == [(REPLY, SIZE_MAX_BYTES)] * 3
    host.close()


def test_ttl_and_traffic_class_reach_the_wire(quiet: Namespace, family: Family) -> None:
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
    wire = quiet.call(socket.socket, domain, socket.SOCK_RAW, protocol)
    if family == 6:
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    with wire, quiet.call(EchoEngine, family) as engine:
        for ttl, tos in ((64, 0), (3, 0xB8), (255, 0)):
            engine.submit(request(1, TARGET[family], ttl=ttl, tos=tos))
            data, control, _, _ = wire.recvmsg(2000, 200)
            if family == 4:
                assert (data[8], data[1]) == (ttl, tos)
            else:
                found = {kind: struct.unpack("i", value)[0] for _, kind, value in control}
                assert found[socket.IPV6_HOPLIMIT] == ttl
                assert found[socket.IPV6_TCLASS] == tos


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (request(1, "127.0.0.1", timeout_ns=0), "request 1: timeout_ns"),
        (request(1, "127.0.0.1", timeout_ns=TIMEOUT_MAX_NS + 1), "request 1: timeout_ns"),
        (request(1, "127.0.0.1", size=15), "request 1: size"),
        (request(1, "127.0.0.1", size=SIZE_MAX_BYTES + 1), "request 1: size"),
        (request(1, "127.0.0.1", ttl=0), "request 1: ttl"),
        (request(1, "127.0.0.1", count=0), "request 1: count"),
        (request(1, "127.0.0.1", interval_ns=INTERVAL_MAX_NS + 1), "request 1: interval_ns"),
        (request(1, "127.0.0.1", path=1), "request 1: no path 1"),
        (request(1, "127.0.0.1", flags=2), "request 1: flags"),
        (b"\0" * 55, "whole records"),
    ],
)
def test_a_bad_request_sends_nothing(engine: EchoEngine, record: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.submit(request(0, "127.0.0.1") + record)
    assert engine.counters["sent"] == 0
    assert engine.in_flight == 0


def test_no_route_is_a_tx_error_at_once(engine: EchoEngine, family: Family) -> None:
    nowhere = "198.51.100.1" if family == 4 else "2001:db8::1"
    assert engine.submit(request(5, nowhere) + request(6, TARGET[family])) == 2
    (done,) = poll(engine)
    assert (done.token, done.kind, done.errno, done.rtt_ns) == (5, TX_ERROR, errno.ENETUNREACH, -1)
    assert (engine.counters["sent"], engine.counters["tx_errors"]) == (1, 1)
    assert engine.in_flight == 1


# ── replies ──────────────────────────────────────────────────────────────────────────────────────


def test_a_reply_completes_its_probe_with_the_kernels_stamp(engine: EchoEngine, peer: Peer) -> None:
    before_ns = time.monotonic_ns()
    message = send_one(engine, peer, token=2**64 - 1)
    assert engine.in_flight == 1
    peer.send(reply_to(message, peer.family))
    (done,) = poll(engine)
    assert (done.token, done.kind, done.ttl, done.size) == (2**64 - 1, REPLY, 61, 56)
    assert done.address(peer.family) == TARGET[peer.family]
    assert before_ns <= done.sent_ns <= done.sent_ns + done.rtt_ns <= time.monotonic_ns()
    assert done.clocks & RX_KERNEL
    assert (engine.in_flight, engine.next_turn_ns) == (0, None)


def test_one_changed_payload_byte_is_not_believed(engine: EchoEngine, peer: Peer) -> None:
    good = reply_to(send_one(engine, peer), peer.family)
    for position in range(8, len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << position % 8
        peer.send(packets.with_checksum(bytes(changed)))
    assert poll(engine) == []
    refused = engine.counters
    assert refused["forged"] + refused["stale"] == 56
    peer.send(good)
    assert [each.kind for each in poll(engine)] == [REPLY]


def test_a_cookie_is_good_for_its_own_engine_only(open_engine: Open, peer: Peer) -> None:
    one = open_engine(secret=bytes(16), ident=9)
    other = open_engine(secret=bytes(16), ident=9)
    message = send_one(one, peer)
    send_one(other, peer)
    peer.send(reply_to(message, peer.family))
    assert len(poll(one)) == 1
    assert poll(other) == []
    assert other.counters["forged"] == 1


def test_longer_than_sent_is_refused_and_cut_short_is_taken(engine: EchoEngine, peer: Peer) -> None:
    reply = reply_to(send_one(engine, peer), peer.family)
    peer.send(packets.with_checksum(reply + b"\0"))
    peer.send(packets.with_checksum(reply[: 8 + 15]))
    assert poll(engine) == []
    peer.send(packets.with_checksum(reply[: 8 + 16]))
    (done,) = poll(engine)
    assert (done.kind, done.size) == (REPLY, 16)


def test_a_damaged_reply_is_not_believed(engine: EchoEngine, peer: Peer) -> None:
    reply = bytearray(reply_to(send_one(engine, peer), peer.family))
    reply[2] ^= 1
    if peer.family == 4:  # ICMPv6's is recomputed by `send`, and verified by the kernel
        peer.send(bytes(reply))
        assert poll(engine) == []
        assert engine.counters["malformed"] == 1


def test_a_reply_from_another_address_is_recorded(
    quiet: Namespace, engine: EchoEngine, peer: Peer
) -> None:
    elsewhere = "127.9.9.9" if peer.family == 4 else "fd00::9"
    if peer.family == 6:
        quiet.address("lo", elsewhere, 128)
    peer.send(reply_to(send_one(engine, peer), peer.family), source=elsewhere)
    (done,) = poll(engine)
    assert (done.kind, done.address(peer.family)) == (REPLY, elsewhere)


def test_another_identifier_or_sequence_is_refused(engine: EchoEngine, peer: Peer) -> None:
    reply = reply_to(send_one(engine, peer), peer.family)
    for position in range(4, 8):
        changed = bytearray(reply)
        changed[position] ^= 1
        peer.send(packets.with_checksum(bytes(changed)))
    assert poll(engine) == []
    assert engine.counters["forged"] == 4
    peer.send(reply)
    assert [each.kind for each in poll(engine)] == [REPLY]


def test_duplicates_are_not_received_twice(engine: EchoEngine, peer: Peer) -> None:
    reply = reply_to(send_one(engine, peer), peer.family)
    for _ in range(3):
        peer.send(reply)
    assert [each.kind for each in poll(engine)] == [REPLY, DUPLICATE, DUPLICATE]


def test_after_the_timeout_a_reply_is_late_and_then_a_duplicate(
    engine: EchoEngine, peer: Peer
) -> None:
    reply = reply_to(send_one(engine, peer), peer.family)
    assert poll(engine) == []
    assert [each.kind for each in poll(engine, later_ns=SECOND_NS + 5_000_000)] == [TIMEOUT]
    peer.send(reply)
    peer.send(reply)
    late, duplicate = poll(engine)
    assert (late.kind, duplicate.kind) == (LATE, DUPLICATE)
    assert late.rtt_ns > 0


def test_a_reply_beyond_the_timeout_is_late_however_late_we_look(
    engine: EchoEngine, peer: Peer
) -> None:
    reply = reply_to(send_one(engine, peer, timeout_ns=1), peer.family)
    peer.send(reply)
    assert [each.kind for each in poll(engine)] == [TIMEOUT, LATE]


def test_a_probe_is_forgotten_in_the_end(open_engine: Open, peer: Peer) -> None:
    engine = open_engine(linger_ns=10_000_000)
    reply = reply_to(send_one(engine, peer), peer.family)
    peer.send(reply)
    assert [each.kind for each in poll(engine)] == [REPLY]
    poll(engine, later_ns=SECOND_NS)
    peer.send(reply)
    assert poll(engine) == []
    assert engine.counters["stale"] == 1


def test_a_slots_next_probe_does_not_take_its_predecessors_reply(
    open_engine: Open, peer: Peer
) -> None:
    engine = open_engine(capacity=1)
    old = reply_to(send_one(engine, peer, token=1), peer.family)
    assert [each.kind for each in poll(engine, later_ns=2 * SECOND_NS)] == [TIMEOUT]
    new = reply_to(send_one(engine, peer, token=2), peer.family)
    assert old[4:8] == new[4:8]  # the same identifier and sequence
    peer.send(old)
    assert poll(engine) == []
    peer.send(new)
    assert [(each.token, each.kind) for each in poll(engine)] == [(2, REPLY)]


def test_a_clock_step_falls_back_to_user_stamps_and_says_so(engine: EchoEngine, peer: Peer) -> None:
    before = reply_to(send_one(engine, peer, token=1), peer.family)
    engine.note_clock_step()
    after = reply_to(send_one(engine, peer, token=2), peer.family)
    peer.send(before)
    peer.send(after)
    stepped, clean = poll(engine)
    assert (stepped.token, stepped.clocks & RX_KERNEL) == (1, 0)
    assert (clean.token, clean.clocks & RX_KERNEL) == (2, RX_KERNEL)
    assert 0 <= stepped.rtt_ns < SECOND_NS
    assert engine.counters["clock_steps"] == 1


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def test_an_error_that_quotes_the_probe_ends_it(engine: EchoEngine, peer: Peer) -> None:
    message = send_one(engine, peer, token=3)
    peer.send(unreachable(message, peer.family))
    (done,) = poll(engine)
    assert (done.token, done.kind, done.code) == (3, ERROR, 1)
    assert done.icmp_type == (3 if peer.family == 4 else 1)
    peer.send(reply_to(message, peer.family))
    assert [each.kind for each in poll(engine)] == [LATE]


def test_eight_quoted_bytes_are_enough_for_ipv4_only(engine: EchoEngine, peer: Peer) -> None:
    message = send_one(engine, peer)
    peer.send(unreachable(message, peer.family, keep=8))
    kinds = [each.kind for each in poll(engine)]
    assert kinds == ([ERROR] if peer.family == 4 else [])
    assert engine.counters["foreign"] == (0 if peer.family == 4 else 1)


def test_errors_about_other_probes_are_nobodys(engine: EchoEngine, peer: Peer) -> None:
    message = send_one(engine, peer)
    elsewhere = "127.0.0.2" if peer.family == 4 else "::2"
    foreign = packets.echo(peer.family, "request", 1, 1, message[8:])
    type_, ident, sequence, total = message[0], message[4:6], message[6:8], message[2:4]
    udp = bytes(8)
    for keep in (8, 1000):
        for quoted, to in (
            (message, elsewhere),
            (foreign[:8] + b"\xff" * 56, None),  # the cookie, or the checksum
            (bytes([type_, 0]) + total + b"\0\0" + sequence + b"\xff" * 56, None),
            (bytes([type_, 0]) + total + ident + b"\x7f\xff" + b"\xff" * 56, None),
            (bytes([0, 0]) + message[2:], None),  # not a request
        ):
            peer.send(unreachable(quoted, peer.family, to=to, keep=keep))
    if peer.family == 4:
        packet = packets.ipv4("127.0.0.1", "127.0.0.1", udp, protocol=17)
        peer.send(packets.icmp_error(3, 3, packet))
    assert poll(engine) == []
    assert engine.in_flight == 1
    peer.send(reply_to(message, peer.family))
    assert [each.kind for each in poll(engine)] == [REPLY]


def test_an_error_about_a_settled_probe_only_counts(engine: EchoEngine, peer: Peer) -> None:
    message = send_one(engine, peer)
    peer.send(reply_to(message, peer.family))
    peer.send(unreachable(message, peer.family))
    assert [each.kind for each in poll(engine)] == [REPLY]
    assert engine.counters["late_errors"] == 1


def test_other_peoples_errors_neither_refuse_our_sends_nor_keep_us_awake(
    engine: EchoEngine, peer: Peer
) -> None:
    foreign = packets.echo(peer.family, "request", 1, 1, b"somebody else's ping" * 3)
    for _ in range(50):
        peer.send(unreachable(foreign, peer.family))
    assert select.select([engine], [], [], 0)[0] == [engine]
    requests = b"".join(request(n, TARGET[peer.family]) for n in range(40))
    assert engine.submit(requests) == 40
    assert poll(engine) == []
    assert (engine.counters["sent"], engine.counters["tx_errors"]) == (40, 0)
    assert is_quiet(engine)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_garbage_is_a_counter_and_never_an_exception(quiet: Namespace, family: Family) -> None:
    peer = quiet.call(Peer, family)
    types = (*packets.ERRORS[family], packets.ECHO_REPLY[family])
    with quiet.call(EchoEngine, family) as engine:
        good = reply_to(send_one(engine, peer), family)

        @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.sampled_from(types), st.binary(max_size=300), st.booleans(), st.integers(0, 90))
        def throw(type_: int, data: bytes, ours: bool, cut: int) -> None:
            body = bytes([type_, 0, 0, 0]) + (good[4:cut] + data if ours else data)
            if ours and type_ != good[0]:
                body = packets.icmp_error(type_, 0, quote(good, family)[:cut] + data)
            peer.send(packets.with_checksum(body.ljust(4, b"\0")))
            assert all(each.token == 7 for each in poll(engine))

        throw()
    peer.close()


def test_the_sixteen_bit_edges_of_ident_and_sequence(open_engine: Open, family: Family,
                                                     quiet: Namespace) -> None:  # fmt: skip
    engine = open_engine(ident=65_535, capacity=70_000)
    target = TARGET[family]
    first = b"".join(request(n, target, timeout_ns=60 * SECOND_NS) for n in range(65_534))
    assert submit_all(engine, first) == []
    while engine.counters["sent"] < 65_534:
        assert poll(engine) == []
    peer = quiet.call(Peer, family)
    edge = b"".join(request(n, target, timeout_ns=60 * SECOND_NS) for n in range(65_534, 65_539))
    assert engine.submit(edge) == 5
    messages = peer.requests()
    named = [struct.unpack("!HH", message[4:8]) for message in messages]
    assert named == [(65_535, 65_534), (65_535, 65_535), (0, 0), (0, 1), (0, 2)]
    peer.send(reply_to(messages[0], family))
    peer.send(reply_to(messages[2], family))
    peer.send(unreachable(messages[1], family, keep=8 if family == 4 else 100))
    peer.send(unreachable(messages[3], family, keep=8 if family == 4 else 100))
    ended = {each.token: each.kind for each in poll(engine)}
    assert ended == {65_534: REPLY, 65_535: ERROR, 65_536: REPLY, 65_537: ERROR}
    assert engine.in_flight == 65_539 - 4
    peer.close()


def test_requests_wait_while_every_slot_is_in_flight(open_engine: Open, peer: Peer) -> None:
    engine = open_engine(capacity=10)
    requests = [request(n, TARGET[peer.family]) for n in range(25)]
    assert engine.submit(b"".join(requests)) == 25
    assert poll(engine) == []
    messages = peer.requests()
    assert (len(messages), engine.in_flight, engine.counters["sent"]) == (10, 10, 10)
    for message in messages[:4]:
        peer.send(reply_to(message, peer.family))
    assert {each.kind for each in gather(engine, 4)} == {REPLY}
    while engine.counters["sent"] < 14:
        select.select([engine], [], [], 1)
        assert poll(engine) == []
    assert (len(peer.requests()), engine.in_flight) == (4, 10)


def test_what_waits_for_a_slot_gets_it_by_a_timeout_too(open_engine: Open, family: Family) -> None:
    engine = open_engine(capacity=3)
    engine.submit(b"".join(request(n, TARGET[family], timeout_ns=5_000_000) for n in range(20)))
    done = gather(engine, 20)
    assert [each.kind for each in done] == [TIMEOUT] * 20
    assert sorted(each.token for each in done) == list(range(20))


def test_timeouts_come_in_time_and_in_order(engine: EchoEngine, family: Family) -> None:
    timeouts_ms = [random.Random(4).randint(1, 60_000) for _ in range(500)]
    engine.submit(
        b"".join(request(ms, TARGET[family], timeout_ns=ms * 1_000_000) for ms in timeouts_ms)
    )
    started_ns = time.monotonic_ns()
    seen: list[int] = []
    for second in range(1, 62):
        expected = sum(ms <= second * 1000 - 100 for ms in timeouts_ms)
        done = engine.poll(now_ns=started_ns + second * SECOND_NS)
        seen += [Done(*each).token for each in struct.iter_unpack(COMPLETION_FORMAT, done)]
        assert expected <= len(seen) <= sum(ms <= second * 1000 + 100 for ms in timeouts_ms)
    assert sorted(seen) == sorted(timeouts_ms)


def test_a_flood_does_not_hold_up_timeouts(engine: EchoEngine, peer: Peer) -> None:
    packets_sent, packets_read, polls = 1200, 64, 15
    send_one(engine, peer, timeout_ns=1)
    foreign = packets.echo(peer.family, "reply", 1, 1, b"")
    for _ in range(packets_sent):  # takes some milliseconds
        peer.send(foreign)
    ended: list[Done] = []
    for _ in range(polls):
        done = engine.poll(now_ns=time.monotonic_ns(), limit=packets_read)
        ended += [Done(*each) for each in struct.iter_unpack(COMPLETION_FORMAT, done)]
    assert engine.counters["packets"] < packets_sent
    assert [each.kind for each in ended] == [TIMEOUT]


def test_a_reply_behind_a_flood_is_not_late(engine: EchoEngine, peer: Peer) -> None:
    """Whoever reads slowly does not take the answers that wait in the queue for lost."""
    message = send_one(engine, peer)
    foreign = packets.echo(peer.family, "reply", 1, 1, b"")
    for _ in range(200):
        peer.send(foreign)
    peer.send(reply_to(message, peer.family))
    for _ in range(200):
        peer.send(foreign)
    ended: list[Done] = []
    for _ in range(10):
        done = engine.poll(now_ns=time.monotonic_ns() + 2 * SECOND_NS, limit=64)
        ended += [Done(*each) for each in struct.iter_unpack(COMPLETION_FORMAT, done)]
    assert [each.kind for each in ended] == [REPLY]


def test_the_next_deadline_is_the_earliest_timeout(engine: EchoEngine, family: Family) -> None:
    assert engine.next_turn_ns is None
    now_ns = time.monotonic_ns()
    for ms in (40_000, 700, 3_000):
        engine.submit(request(1, TARGET[family], timeout_ns=ms * 1_000_000))
    deadline_ns = engine.next_turn_ns
    assert deadline_ns is not None
    assert 700_000_000 <= deadline_ns - now_ns <= 750_000_000
    assert poll(engine, later_ns=0) == []
    assert len(engine.poll(now_ns=deadline_ns)) == struct.calcsize(COMPLETION_FORMAT)


def test_our_own_dropped_replies_are_not_loss(open_engine: Open, peer: Peer) -> None:
    engine = open_engine(receive_buffer_bytes=1)  # the kernel's minimum: two or three packets
    sent = 50
    engine.submit(b"".join(request(n, TARGET[peer.family]) for n in range(sent)))
    for message in peer.requests():
        peer.send(reply_to(message, peer.family))
    received = [each for each in poll(engine) if each.kind == REPLY]
    ended = [each.kind for each in poll(engine, later_ns=2 * SECOND_NS)]
    assert 0 < len(received) < sent
    assert ended == [RX_DROP] * (sent - len(received))
    assert engine.counters["rx_drops"] == sent - len(received)


def test_a_full_queue_is_a_tx_error_and_not_silence(family: Family) -> None:
    here, there, bits = ("10.0.0.1", "10.0.0.2", 24) if family == 4 else ("fd00::1", "fd00::2", 64)
    left, right = Namespace("left"), Namespace("right")
    connect(left, right, "l", "r")
    left.address("l", here, bits)
    right.address("r", there, bits)
    left.route.neigh(
        "add",
        dst=there,
        lladdr="02:00:00:00:00:02",
        ifindex=left.index("l"),
        state="permanent",
    )
    try:
        left.route.tc(
            "add", "tbf", index=left.index("l"), rate="8kbit", burst=1600, limit=3000, latency=0
        )
    except NetlinkError as error:
        pytest.skip(f"this kernel has no tbf queue: {error}")
    with left.call(EchoEngine, family) as engine:
        assert engine.submit(b"".join(request(n, there) for n in range(500))) == 500
        errors = [each.errno for each in poll(engine) if each.kind == TX_ERROR]
        assert len(errors) > 400
        assert set(errors) == {errno.ENOBUFS}
        assert engine.counters["sent"] == 500 - len(errors)
    left.close()
    right.close()


def test_twenty_thousand_targets_are_never_mixed_up() -> None:
    host = Namespace("answering host")
    base = int(ip_address("127.0.0.1"))
    targets = [str(ip_address(base + n)) for n in range(20_000)]
    with host.call(EchoEngine, 4) as engine:
        done = submit_all(engine, b"".join(map(request, itertools.count(), targets)))
        done += gather(engine, len(targets) - len(done))
        assert len(done) == len(targets)
        assert all(each.kind == REPLY and each.rtt_ns >= 0 for each in done)
        assert all(each.address(4) == targets[each.token] for each in done)
    host.close()


# ── life ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_engine_says_so(engine: EchoEngine) -> None:
    engine.close()
    engine.close()
    for use in (engine.fileno, lambda: engine.poll(now_ns=0), lambda: engine.submit(b"")):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_second_thread_is_refused_while_the_first_sends_without_the_gil() -> None:
    host = Namespace("answering host")
    requests = b"".join(request(n, "127.0.0.1") for n in range(4000))
    with host.call(EchoEngine, 4) as engine:

        def send_and_poll() -> None:
            for _ in range(25):
                with contextlib.suppress(RuntimeError):
                    engine.submit(requests)
                with contextlib.suppress(RuntimeError):
                    engine.poll(now_ns=0)

        uses: tuple[Callable[[], object], ...] = (
            lambda: engine.poll(now_ns=0),
            engine.note_clock_step,
            lambda: engine.counters,
            lambda: engine.next_turn_ns,
        )
        refusals = 0
        sender = threading.Thread(target=send_and_poll)
        sender.start()
        while sender.is_alive():
            refused = 0
            for use in uses:
                try:
                    use()
                except RuntimeError:
                    refused += 1
            refusals += refused == len(uses)
        sender.join()
        assert refusals > 10
    host.close()


def test_requests_that_could_change_while_they_are_read_are_not_taken(engine: EchoEngine) -> None:
    for requests in (bytearray(56), memoryview(bytearray(56)), None):
        with pytest.raises(TypeError):
            engine.submit(requests)  # type: ignore[arg-type]


def test_an_engine_left_open_warns(quiet: Namespace) -> None:
    engine = quiet.call(EchoEngine, 4)
    with pytest.warns(ResourceWarning, match="unclosed EchoEngine"):
        del engine
