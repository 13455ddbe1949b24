"""The trace core without sockets: what it sends, whose an answer is, how a trace ends."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.trace_core import IDENT, PORTS, TraceCore
from netsonde._native import icmp
from netsonde.probe.trace.answers import Kind, Stop
from support.echo_host import NS_PER_MS, NS_PER_S, TARGET
from support.packets import siphash24
from support.trace_host import WATCHED, Sent, TraceHost
from support.trace_packets import IP_BYTES, Probe, error, quote_of, word

FAMILIES = (4, 6)
METHODS = ("icmp", "udp", "tcp")
KEY = bytes([7] * 16)  # TraceCore's, unless a test says otherwise
SLOTS = 65535
SIZES = (18, 19, 20, 21, 57, 227, 228, 229, 600, 1472)


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def host(request: pytest.FixtureRequest) -> TraceHost:
    return TraceHost(request.param)


addresses = {4: st.binary(min_size=4, max_size=4), 6: st.binary(min_size=16, max_size=16)}


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(st.data(), st.sampled_from(FAMILIES), st.sampled_from(METHODS))
def test_every_byte_of_a_probe_is_known(data: st.DataObject, family: int, method: str) -> None:
    destination = data.draw(addresses[family])
    source = data.draw(st.none() | addresses[family].filter(any))
    size, tos = data.draw(st.sampled_from(SIZES)), data.draw(st.integers(0, 255))
    flags = data.draw(st.sampled_from([0, icmp.TRACE_FORBID_FRAGMENTS]))
    host = TraceHost(family)
    checksum, source_port, flow_label = host.submit(
        method=method, destination=destination, source=source, port=4711, size=size, tos=tos,
        flags=flags, flow=data.draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip
    for at, sent in enumerate(host.turn()):
        probe = sent.probe
        assert (probe.method, probe.destination, probe.tos) == (method, destination, tos)
        assert (probe.ttl, sent.ttl, sent.attempt) == (at + 1, at + 1, 0)
        assert source in (None, probe.source)
        assert probe.df == (family == 4 and flags != 0)
        assert probe.flow_label == flow_label
        assert probe.slot == at
        if method == "icmp":
            assert (word(probe.transport, 2), word(probe.transport, 4)) == (checksum, IDENT)
        else:
            assert (word(probe.transport, 0), word(probe.transport, 2)) == (source_port, 4711)
        if method != "tcp":
            _check_payload(probe, size)


def _check_payload(probe: Probe, size: int) -> None:
    """Insist on slot, serial, a cookie by the paper, and filler behind the balance."""
    name, cookie, filler = probe.payload[:8], probe.payload[8:16], probe.payload[18:]
    assert len(probe.payload) == size
    assert word(name, 0, 4) == probe.slot
    keyed = siphash24(KEY, name + bytes(8))
    assert int.from_bytes(cookie) == keyed
    assert filler == bytes((16 + at) & 0xFF for at in range(len(filler)))
    check = 1 + (keyed & 0xFFFFFFFF) % 0xFFFE
    assert probe.check == (0 if probe.method == "icmp" and probe.version == 6 else check)


@pytest.mark.parametrize("method", METHODS)
def test_a_flow_is_one_and_its_probes_are_all_others(host: TraceHost, method: str) -> None:
    probes = [sent.probe for sent in (*host.trace(method), *host.trace(method, token=2))]
    probes += [sent.probe for sent in host.run_out()]
    assert len(probes) > 20
    assert len({probe.flow for probe in probes}) == 1
    assert len({probe.slot for probe in probes}) == len(probes)
    assert len({probe.transport[4:8] for probe in probes}) == len(probes)
    if method != "tcp":
        assert len({probe.payload[:16] for probe in probes}) == len(probes)
    if method != "icmp" or host.family == 4:
        assert len({probe.check for probe in probes}) == len(probes)


@pytest.mark.parametrize("method", METHODS)
def test_outside_of_its_own_fields_a_probe_is_as_the_last(host: TraceHost, method: str) -> None:
    """What differs: TTL, identification, header sum; the probe's name and check; the balance."""
    one, other = (sent.probe.packet for sent in host.trace(method)[:2])
    header = IP_BYTES[host.family]
    own = {4: {4, 5, 8, 10, 11}, 6: {7}}[host.family]
    names = {"icmp": range(6, 8), "udp": range(6, 8), "tcp": (*range(4, 8), 16, 17)}[method]
    own |= {header + at for at in names}
    own |= set() if method == "tcp" else set(range(header + 8, header + 26))
    assert {at for at in range(len(one)) if one[at] != other[at]} <= own


@given(addresses[6], st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_flow_is_its_destination_and_number(target: bytes, number: int, other: int) -> None:
    core, again, stranger = TraceCore(6), TraceCore(6), TraceCore(6, secret=8)
    for method in METHODS:
        flow = core.submit(1, target, method=method, flow=number)
        assert again.submit(9, target, method=method, flow=number, size=99, tos=4) == flow
        assert stranger.submit(1, target, method=method, flow=number) != flow
        assert (core.submit(2, target, method=method, flow=other) == flow) == (other == number)


@pytest.mark.parametrize("family", FAMILIES)
def test_flow_numbers_spread_over_all_there_is(family: int) -> None:
    core = TraceCore(family)
    for method in METHODS:
        flows = [core.submit(1, TARGET[family], method=method, flow=n) for n in range(400)]
        checksums, ports, labels = (set(values) for values in zip(*flows, strict=True))
        assert not checksums & {0, 0xFFFF}
        assert len(checksums) > 390
        first, count = (PORTS, 1024) if method == "tcp" else (32768, 32768)
        assert ports <= set(range(first, first + count))
        assert len(ports) > 300
        assert labels <= set(range(1, 1 << 20)) if family == 6 else labels == {0}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_socket_gets_the_message_and_is_told_its_ttl(family: int) -> None:
    host = TraceHost(family, TraceCore(family, datagram=True))
    for at, sent in enumerate(host.trace(tos=0xB8)):
        assert (sent.probe.ttl, sent.probe.tos) == (sent.ttl, 0xB8)
        assert (sent.probe.slot, word(sent.probe.transport, 4)) == (at, IDENT)
        assert word(sent.probe.payload, 0, 4) == at
        assert word(sent.probe.payload, 8, 8) == siphash24(KEY, sent.probe.payload[:8] + bytes(8))


def test_all_slots_are_used_and_none_is_named_zero() -> None:
    """IPv4's identification names a UDP probe; the kernel would replace a zero (raw(7))."""
    core, now_ns = TraceCore(4), NS_PER_S
    for token in range(SLOTS // 255 + 1):
        core.submit(token, TARGET[4], method="udp", attempts=1, last_ttl=255, gap_limit=255)
    named: list[int] = []
    while core.in_flight < SLOTS:
        named += [word(sent.packet, 4) for sent in core.turn(now_ns)]
        now_ns += NS_PER_MS
    assert not core.turn(now_ns), "the others wait for a slot"
    assert sorted(named) == list(range(1, SLOTS + 1))


# ── how it ends ──────────────────────────────────────────────────────────────────────────────────


def answer(host: TraceHost, sent: Sent) -> None:
    """Let a router say that the TTL of a probe has expired."""
    assert len(host.receive(error(host.family, quote_of(sent.probe)))) == 1


@pytest.mark.parametrize("method", METHODS)
def test_silence_ends_at_the_gap_and_everything_is_counted(host: TraceHost, method: str) -> None:
    host.submit(method=method, attempts=2, gap_limit=3)
    sent = host.run_out()
    traced = host.take()
    assert (traced.stop, traced.end_ttl) == (Stop.GAP_LIMIT, 0)
    assert (traced.sent, traced.tx_errors) == (len(sent), 0)
    assert traced.attempts == bytes([2, 2, 2, *[1] * 13])
    assert not traced.answers
    assert host.core.waiting() == {}


@pytest.mark.parametrize("first", [1, 28])
def test_silence_at_the_last_ttl_is_no_gap(host: TraceHost, first: int) -> None:
    host.submit(first_ttl=first, last_ttl=30, gap_limit=5)
    host.run_out()
    assert host.take().stop == (Stop.GAP_LIMIT if first == 1 else Stop.MAX_HOPS)


def test_a_trace_without_a_route_ends_and_says_why(host: TraceHost) -> None:
    host.submit(error=errno.ENETUNREACH)
    assert not host.turn()
    traced = host.take()
    assert (traced.stop, traced.errno, traced.sent) == (Stop.TX_ERROR, errno.ENETUNREACH, 0)
    assert traced.attempts == b""


def test_what_the_kernel_refuses_is_told_and_tried_again(host: TraceHost) -> None:
    host.submit(last_ttl=2, attempts=2)
    refused = host.turn(refused=errno.EPERM)
    assert [(sent.ttl, sent.attempt) for sent in refused] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    traced = host.take()
    assert (traced.stop, traced.sent, traced.tx_errors) == (Stop.TX_ERROR, 0, 4)
    assert traced.errno == errno.EPERM
    for sent, told in zip(refused, traced.answers, strict=True):
        assert (told.ttl, told.attempt, told.kind) == (sent.ttl, sent.attempt, Kind.REFUSED)
        assert (told.icmp_code, told.rtt_ns, told.sent_ns) == (errno.EPERM, -1, host.now_ns)
    assert host.core.in_flight == 0


def test_a_refusal_that_passes_costs_an_attempt(host: TraceHost) -> None:
    host.submit(last_ttl=1, attempts=3)
    host.core.turn(host.now_ns, refused=errno.ENOBUFS)
    assert host.turn() == []
    assert host.ended
    host.submit(2, last_ttl=1, attempts=3)
    (sent,) = host.turn()
    answer(host, sent)
    assert host.take(2).stop == Stop.MAX_HOPS


def test_a_cancelled_trace_ends_at_once_with_what_it_saw(host: TraceHost) -> None:
    sent = host.trace()
    answer(host, sent[1])
    host.core.cancel(1)
    host.turn()
    traced = host.take()
    assert (traced.stop, traced.sent, len(traced.answers)) == (Stop.CANCELLED, 4, 1)
    assert host.core.in_flight == 3, "they are still waited for, but for nobody"
    assert not host.run_out()


def test_a_trace_that_waits_for_its_next_round_is_cancelled_at_once(host: TraceHost) -> None:
    flags = WATCHED | icmp.TRACE_ALL_ATTEMPTS
    (sent,) = host.trace(last_ttl=1, flags=flags, interval_ns=3600 * NS_PER_S)
    answer(host, sent)
    host.turn()
    host.core.cancel(1)
    host.turn()
    assert host.take().stop == Stop.CANCELLED
    assert not host.run_out()


def test_a_trace_is_cancelled_before_it_is_taken_up(host: TraceHost) -> None:
    host.submit(1)
    host.core.cancel(1)
    assert host.turn() == []
    assert (host.take().stop, host.core.in_flight) == (Stop.CANCELLED, 0)


def test_a_number_is_used_again_and_again(host: TraceHost) -> None:
    for token in range(20):
        (sent,) = host.trace(token=token, last_ttl=1)
        answer(host, sent)
        assert host.ended[token] == 0
        traced = host.take(token)
        assert (traced.token, traced.sent, len(traced.answers)) == (token, 1, 1)


def test_who_watches_hears_what_is_told_in_the_end(host: TraceHost) -> None:
    heard, sent = [], host.trace()
    for each in reversed(sent):
        host.wait(3)
        heard += host.receive(error(host.family, quote_of(each.probe)))
    host.run_out()
    traced = host.take()
    assert len(heard) == 4
    for hop, told in zip(heard, traced.answers, strict=True):
        assert hop[1:4] == (told.ttl, told.attempt, told.kind)
        assert hop[4:7] == (told.icmp_type, told.icmp_code, told.flags)
        assert hop[7:] == (told.responder, told.sent_ns, told.rtt_ns)
    host.submit(2, flags=0, last_ttl=4)
    for each in host.turn():
        assert not host.receive(error(host.family, quote_of(each.probe))), "nobody watches"
    assert len(host.take(2).answers) == 4


def test_dropped_packets_excuse_as_many_probes(host: TraceHost) -> None:
    host.submit(1, last_ttl=3, attempts=1)
    host.turn()
    host.core.overflow(1)
    host.core.overflow(1)
    host.run_out()
    assert host.take(1).rx_drops == 2
    host.submit(2, last_ttl=3, attempts=1)
    host.run_out()
    assert host.take(2).rx_drops == 0
