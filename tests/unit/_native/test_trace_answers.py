"""What answers a trace's probe beside a quote, when it does, and what is kept of it."""

from typing import Any

import pytest

from native.trace_core import Hop, TraceCore
from netsonde._native import icmp
from netsonde.probe.trace.answers import Flag, Kind
from support.echo_host import NS_PER_HOUR, NS_PER_MS, NS_PER_S, RESPONDER, TARGET
from support.trace_host import WATCHED, Sent, TraceHost, credited, only, refused
from support.trace_packets import (
    ACK,
    FIN,
    LABEL,
    NAMED,
    RST,
    SYN,
    TIME_EXCEEDED,
    altered,
    echo_reply,
    error,
    extended,
    flipped,
    quote_of,
    segment,
    structure,
    word,
)

FAMILIES = (4, 6)
METHODS = ("icmp", "udp", "tcp")
TWO_ROUNDS: dict[str, Any] = {
    "flags": WATCHED | icmp.TRACE_ALL_ATTEMPTS,
    "attempts": 2,
    "interval_ns": 2 * NS_PER_S,
    "last_ttl": 1,
}


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def host(request: pytest.FixtureRequest) -> TraceHost:
    return TraceHost(request.param)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ── echo replies ─────────────────────────────────────────────────────────────────────────────────


def test_an_echo_reply_may_come_from_another_address(host: TraceHost) -> None:
    for sent in reversed(host.trace()):
        hop = credited(host.receive(echo_reply(sent.probe), responder=RESPONDER[host.family]), sent)
        assert (hop.kind, hop.responder) == (Kind.ECHO, RESPONDER[host.family])
    host.run_out()
    traced = host.take()
    assert (traced.stop, traced.end_ttl) == ("completed", 1)


def test_an_echo_reply_may_be_cut_behind_the_cookie(host: TraceHost) -> None:
    sent = host.trace(size=20)[3]
    for n in range(16):
        assert refused(host, echo_reply(sent.probe, payload=sent.probe.payload[:n])) == "forged"
    longer = sent.probe.payload + b"\0"
    assert refused(host, echo_reply(sent.probe, payload=longer)) == "forged"
    credited(host.receive(echo_reply(sent.probe, payload=sent.probe.payload[:16])), sent)


def test_every_bit_of_a_replys_name_counts(host: TraceHost) -> None:
    sent = host.trace()[3]
    right = echo_reply(sent.probe)
    for at in range(4, NAMED):  # identifier, sequence, slot, serial, cookie
        for bit in range(8):
            assert refused(host, flipped(right, at, 1 << bit)) in ("forged", "foreign")
    credited(host.receive(right), sent)


def test_a_reply_to_what_was_not_an_echo_request_is_foreign(host: TraceHost) -> None:
    sent = host.trace("udp")[0]
    icmp_probe = host.trace("icmp", token=2)[0].probe
    message = echo_reply(icmp_probe, payload=sent.probe.payload)
    assert refused(host, altered(message, 6, sent.probe.slot.to_bytes(2))) == "foreign"


# ── segments ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("flags", "kind"), [
    (SYN | ACK, Kind.SYN_ACK), (RST | ACK, Kind.RST), (RST | SYN | ACK, Kind.RST),
    (SYN, None), (RST, None), (ACK, None), (FIN | ACK, None), (0, None),
])  # fmt: skip
def test_a_segment_answers_by_its_flags(host: TraceHost, flags: int, kind: Kind | None) -> None:
    sent = host.trace("tcp")[2]
    if kind is None:
        assert refused(host, segment(sent.probe, flags), tcp=True) == "foreign"
        return
    host.wait(5)
    hop = credited(host.receive_segment(segment(sent.probe, flags)), sent)
    assert (hop.kind, hop.icmp_code, hop.rtt_ns) == (kind, flags, 5 * NS_PER_MS)
    assert hop.responder == TARGET[host.family]
    host.run_out()
    assert host.take().end_ttl == 3


def test_a_segment_must_acknowledge_the_probe_between_its_ports(host: TraceHost) -> None:
    sent = host.trace("tcp")[2]
    source, destination = word(sent.probe.transport, 0), word(sent.probe.transport, 2)
    wrong = [segment(sent.probe, step=1 + (1 << bit)) for bit in range(32)]
    wrong += [segment(sent.probe, step=0), segment(sent.probe, step=2)]
    wrong += [segment(sent.probe, sport=destination ^ 1 << bit) for bit in range(16)]
    wrong += [segment(sent.probe, dport=source ^ 1 << bit) for bit in range(16)]
    for data in wrong:
        assert refused(host, data, tcp=True) in ("forged", "foreign")
    assert refused(host, segment(sent.probe)[:19], tcp=True) == "malformed"
    credited(host.receive_segment(segment(sent.probe)), sent)


def test_what_is_no_segment_is_malformed() -> None:
    host = TraceHost(4)
    sent = host.trace("tcp")[0]
    packet = error(4, b"")
    host.core.arrive(packet, 0, host.now_ns, tcp=True)
    host.core.arrive(sent.probe.packet[:30], 0, host.now_ns, tcp=True)
    host.receive_segment(b"")
    assert host.refusals() == {"malformed": 3}


# ── the error queue ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quoted", [None, 8, 16, 23, NAMED])
def test_an_error_queue_names_the_probe(family: int, quoted: int | None) -> None:
    host, kind = TraceHost(family, TraceCore(family, datagram=True)), TIME_EXCEEDED[family]
    is_named = quoted is None or quoted >= NAMED
    for sent in host.trace():
        message = sent.probe.transport[:quoted]
        assert not host.report(flipped(message, 4), kind=kind), "another identifier"
        if not is_named:
            assert not host.report(flipped(message, 3), kind=kind), "another checksum"
        if not is_named and family == 6:
            assert not host.report(message, kind=kind)
            continue
        hop = credited(host.report(message, kind=kind), sent)
        assert (hop.kind, hop.responder) == (Kind.ERROR, RESPONDER[family])
        for at in (7, *range(8, NAMED)) if is_named else ():
            assert not host.report(flipped(message, at), kind=kind)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_socket_hands_out_replies_without_a_header(family: int) -> None:
    host = TraceHost(family, TraceCore(family, datagram=True))
    for sent in reversed(host.trace()):
        hop = credited(host.receive_bare(echo_reply(sent.probe)), sent)
        assert (hop.kind, hop.responder) == (Kind.ECHO, RESPONDER[family])


# ── when ─────────────────────────────────────────────────────────────────────────────────────────


def answer_to(host: TraceHost, sent: Sent) -> list[Hop]:
    return host.receive(error(host.family, sent.probe.packet))


def test_the_second_answer_is_a_duplicate_whatever_it_is(host: TraceHost) -> None:
    sent = host.trace()[1]
    credited(answer_to(host, sent), sent)
    host.wait(1)
    credited(answer_to(host, sent), sent, Flag.DUPLICATE)
    credited(host.receive(echo_reply(sent.probe)), sent, Flag.DUPLICATE)
    host.run_out()
    traced = host.take()
    assert (traced.duplicates, len(traced.answers)) == (2, 3)
    assert traced.end_ttl == 0, "a duplicate decides nothing"


def test_an_answer_to_a_first_attempt_counts_after_the_second_was_sent(host: TraceHost) -> None:
    (first,) = host.trace(last_ttl=1)
    host.wait(300)
    host.expire()
    (second,) = host.turn()
    assert second.name == (1, 1, 1)
    credited(answer_to(host, first), first)
    host.run_out()
    traced = host.take()
    assert [(a.ttl, a.attempt, a.flags) for a in traced.answers] == [(1, 0, 0)]
    assert traced.sent == 2


@pytest.mark.parametrize("expired", [False, True])
def test_an_answer_beyond_the_timeout_is_late(host: TraceHost, *, expired: bool) -> None:
    (sent,) = host.trace(**TWO_ROUNDS)
    host.wait(1500)
    host.now_ns += 1
    if expired:
        host.wait(2)
        host.expire()
        assert host.core.in_flight == 0
    credited(answer_to(host, sent), sent, Flag.LATE)
    credited(answer_to(host, sent), sent, Flag.DUPLICATE)
    (again,) = [*host.turn(), *host.run_out()]
    assert again.attempt == 1, "a late answer settles nothing"
    traced = host.take()
    assert (traced.late, traced.duplicates) == (1, 1)


def test_an_answer_just_in_time_is_not_late(host: TraceHost) -> None:
    (sent,) = host.trace(**TWO_ROUNDS)
    host.wait(1500)
    credited(answer_to(host, sent), sent)


def test_after_the_end_an_answer_is_stale(host: TraceHost, method: str) -> None:
    sent = host.trace(method, last_ttl=2)
    for each in sent:
        credited(answer_to(host, each), each)
    assert list(host.ended) == [1]
    assert refused(host, error(host.family, sent[0].probe.packet)) == "stale"
    host.take()
    assert refused(host, error(host.family, sent[0].probe.packet)) == "stale"
    if method == "icmp":
        assert refused(host, echo_reply(sent[0].probe)) == "stale"
    if method == "tcp":
        assert refused(host, segment(sent[0].probe), tcp=True) == "stale"


def test_a_slot_that_is_another_probes_now_answers_for_none(host: TraceHost, method: str) -> None:
    """The same flow, the same slot: only the probe's own bits tell."""
    host = TraceHost(host.family, TraceCore(host.family, slots=1))
    old: list[Sent] = []
    for token in range(40):
        (sent,) = host.trace(method, token=token, last_ttl=1, attempts=1)
        assert sent.probe.slot == 0
        for each in old[-3:]:
            for quoted in (None, 8, 23, NAMED):
                message = error(host.family, quote_of(each.probe, quoted))
                assert refused(host, message) in ("forged", "foreign", "stale")
            if method == "icmp":
                assert refused(host, echo_reply(each.probe)) == "forged"
            if method == "tcp":
                assert refused(host, segment(each.probe), tcp=True) == "forged"
        old.append(sent)
        host.run_out()
        assert not host.take(token).answers


@pytest.mark.parametrize("step_ns", [NS_PER_HOUR, -NS_PER_HOUR, 50 * NS_PER_MS])
def test_a_wall_clock_that_is_set_leaves_the_rtt_alone(host: TraceHost, step_ns: int) -> None:
    sent = host.trace()
    host.wait(10)
    message = error(host.family, sent[0].probe.packet)
    hop = credited(host.receive(message, late_ns=NS_PER_S), sent[0])
    assert hop.rtt_ns == 10 * NS_PER_MS, "the kernel's stamp counts, however late it is read"
    host.offset_ns += step_ns
    host.sample()
    assert host.core.steps == 1
    hop = credited(answer_to(host, sent[1]), sent[1], Flag.USER_CLOCK)
    assert hop.rtt_ns == 10 * NS_PER_MS
    host.core.note_step()
    credited(answer_to(host, sent[2]), sent[2], Flag.USER_CLOCK)
    message = error(host.family, sent[3].probe.packet)
    credited(host.receive(message, stamp_ns=0), sent[3], Flag.USER_CLOCK)


# ── extensions ───────────────────────────────────────────────────────────────────────────────────


def extension_of(host: TraceHost, attached: bytes) -> tuple[bytes, Flag]:
    """Receive an error with a structure; return what is kept of it, and the flags."""
    (sent,) = host.trace(last_ttl=1)
    hop = only(host.receive(extended(host.family, sent.probe.packet, attached)))
    (answer,) = host.take().answers
    assert answer.flags == hop.flags
    return answer.extension, Flag(answer.flags)


@pytest.mark.parametrize(("attached", "flag"), [
    (structure(), Flag(0)),
    (structure(LABEL * 3), Flag(0)),
    (structure(total=0), Flag(0)),
    (structure(total=0x1234), Flag.EXTENSION_BAD),
    (structure(version=3), Flag.EXTENSION_BAD),
    (structure(bytes.fromhex("0009 0101 0001 0140")), Flag.EXTENSION_BAD),
    (b"\x20", Flag.EXTENSION_BAD),
    (structure(bytes.fromhex("01fc 0402") + bytes(504)), Flag(0)),
])  # fmt: skip
def test_an_extension_is_kept_as_it_came(host: TraceHost, attached: bytes, flag: Flag) -> None:
    assert extension_of(host, attached) == (attached, flag)


def test_a_long_extension_is_cut_and_that_is_told(host: TraceHost) -> None:
    attached = structure(bytes.fromhex("0400 0402") + bytes(1020))
    assert extension_of(host, attached) == (attached[:512], Flag.TRUNCATED)


def test_extensions_of_one_trace_have_a_limit(host: TraceHost) -> None:
    sent = host.trace(last_ttl=2)[0]
    attached = structure(bytes.fromhex("01fc 0402") + bytes(504))
    message = extended(host.family, sent.probe.packet, attached)
    hops = [only(host.receive(message)) for _ in range(2050)]
    kept = [not hop.flags & Flag.TRUNCATED for hop in hops]
    assert kept == [True] * 2048 + [False] * 2, "1 MiB of them"
    host.run_out()
    answers = host.take().answers
    assert answers[2047].extension == attached
    assert answers[2048].extension == b""
