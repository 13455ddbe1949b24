"""Whose probe an answer to a trace is: packets that are right, changed on the way, or forged."""

from collections.abc import Iterator

import pytest

from native.trace_core import TraceCore
from netsonde.probe.trace.answers import Answer, Flag, Kind
from support.echo_host import NS_PER_MS, RESPONDER
from support.trace_host import Sent, TraceHost, credited, refused
from support.trace_packets import (
    IP_BYTES,
    NAMED,
    PORT_CODE,
    TIME_EXCEEDED,
    TOO_BIG,
    UNREACHABLE,
    altered,
    error,
    extended,
    flipped,
    is_known,
    quote_of,
    structure,
    with_header_6,
    word,
)

FAMILIES = (4, 6)
METHODS = ("icmp", "udp", "tcp")
SOURCE_AT, DESTINATION_AT = {4: 12, 6: 8}, {4: 16, 6: 24}
IDENT_AT = 4  # of IPv4's identification


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def host(request: pytest.FixtureRequest) -> TraceHost:
    return TraceHost(request.param)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def told(host: TraceHost, token: int = 1) -> tuple[Answer, ...]:
    """End a trace; return its answers."""
    host.run_out()
    return host.take(token).answers


# ── quotes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("quoted", [None, 8, 9, 16, 20, 23, NAMED, 28])
def test_a_quote_names_its_probe(host: TraceHost, method: str, quoted: int | None) -> None:
    for sent in host.trace(method):
        message = error(host.family, quote_of(sent.probe, quoted))
        if not is_known(host.family, method, quoted, padded=False):
            assert refused(host, message) in ("forged", "foreign")
            continue
        hop = credited(host.receive(message), sent)
        assert (hop.kind, hop.icmp_type, hop.icmp_code) == (
            Kind.ERROR, TIME_EXCEEDED[host.family], 0)  # fmt: skip
        assert hop.responder == RESPONDER[host.family]


@pytest.mark.parametrize("quoted", [8, 12, 16, 18, 20, 22, 23, NAMED, 28])
def test_a_padded_quote_names_its_probe(host: TraceHost, method: str, quoted: int) -> None:
    """A cookie that ends in padding is half a cookie, not a forged one (RFC 4884 5.1)."""
    sent = host.trace(method)[1]
    message = extended(host.family, quote_of(sent.probe, quoted), structure())
    if not is_known(host.family, method, quoted, padded=True):
        assert refused(host, message) in ("forged", "foreign")
        return
    credited(host.receive(message), sent)
    assert told(host)[0].extension == structure()


def test_an_answer_says_all_that_it_is(host: TraceHost, method: str) -> None:
    sent = host.trace(method, tos=0xB8)[2]
    host.wait(12)
    quote = sent.probe.packet
    if host.family == 4:
        quote = altered(altered(quote, 8, b"\x01"), 1, b"\x28")
    else:
        quote = altered(altered(quote, 7, b"\x01"), 0, bytes([0x62, quote[1] & 15 | 0x80]))
    credited(host.receive(error(host.family, quote), ttl=250), sent)
    (answer,) = told(host)
    assert answer == Answer(
        ttl=3, attempt=0, kind=Kind.ERROR, responder=RESPONDER[host.family],
        icmp_type=TIME_EXCEEDED[host.family], icmp_code=0, sent_ns=sent.sent_ns,
        rtt_ns=12 * NS_PER_MS, reply_ttl=250, quoted_ttl=1, quoted_tos=0x28, flags=0, mtu=0,
        extension=b"",
    )  # fmt: skip


def test_a_too_big_message_says_the_mtu(host: TraceHost, method: str) -> None:
    kind, code = TOO_BIG[host.family]
    sent = host.trace(method)[0]
    rest = (1280).to_bytes(4)
    host.receive(error(host.family, quote_of(sent.probe), kind=kind, code=code, rest=rest))
    (answer,) = told(host)
    assert (answer.mtu, answer.icmp_type, answer.icmp_code) == (1280, kind, code)


def test_an_extension_header_on_the_way_hides_nothing() -> None:
    host = TraceHost(6)
    for token, method in enumerate(METHODS):
        sent = host.trace(method, token=token)[0]
        quote = with_header_6(sent.probe, 60, bytes([0, 1, 4, 0, 0, 0, 0]))
        credited(host.receive(error(6, quote)), sent)


@pytest.mark.parametrize("method_", ["icmp", "udp"])
def test_a_swapped_identification_is_the_same(method_: str) -> None:
    """Some routers quote it as their processor has it."""
    host = TraceHost(4)
    for sent in host.trace(method_):
        word_ = sent.probe.packet[IDENT_AT : IDENT_AT + 2]
        quote = altered(quote_of(sent.probe, 8), IDENT_AT, word_[::-1])
        credited(host.receive(error(4, quote)), sent)


def test_an_error_means_the_end_where_it_says_so(host: TraceHost, method: str) -> None:
    """A port that is unreachable is UDP's destination; every other refusal ends the path too."""
    sent = host.trace(method)[1]
    message = error(
        host.family, quote_of(sent.probe), kind=UNREACHABLE[host.family],
        code=PORT_CODE[host.family],
    )  # fmt: skip
    credited(host.receive(message), sent)
    host.run_out()
    traced = host.take()
    assert traced.end_ttl == 2
    assert traced.stop == ("completed" if method == "udp" else "unreachable")


# ── what has been changed on the way ─────────────────────────────────────────────────────────────


def fields(family: int, method: str) -> Iterator[tuple[str, int]]:
    """Yield the bytes that identify a probe before its payload: a field and a place."""
    ip = IP_BYTES[family]
    width = {4: 4, 6: 16}[family]
    yield from (("source", SOURCE_AT[family] + at) for at in range(width))
    yield from (("destination", DESTINATION_AT[family] + at) for at in range(width))
    if family == 4:
        yield from (("identification", IDENT_AT + at) for at in (0, 1))
    if method == "icmp":
        places = {"checksum": range(2, 4), "ident": range(4, 6), "sequence": range(6, 8)}
    else:
        places = {"source port": range(2), "destination port": range(2, 4)}
        places |= {"checksum": range(6, 8)} if method == "udp" else {"sequence": range(4, 8)}
    for field, ats in places.items():
        yield from ((field, ip + at) for at in ats)


FLOW = {  # what a translator changes
    "icmp": ("source", "destination", "checksum"),
    "udp": ("source", "destination", "source port", "destination port", "checksum"),
    "tcp": ("source", "source port", "destination port"),
}
MINOR = {  # what may change where the cookie is not quoted, and is told
    "icmp": ("source", "checksum"),
    "udp": ("source",),
    "tcp": FLOW["tcp"],
}


def test_what_was_translated_is_told_where_the_cookie_is_quoted(host: TraceHost) -> None:
    for token, method in enumerate(("icmp", "udp")):
        sent, flags = host.trace(method, token=token, last_ttl=4)[0], Flag(0)
        for field, at in fields(host.family, method):
            quote = flipped(sent.probe.packet, at, 0x81)
            translated = Flag.TRANSLATED if field in FLOW[method] else Flag(0)
            credited(host.receive(error(host.family, quote)), sent, translated | flags)
            flags = Flag.DUPLICATE


def test_without_the_cookie_the_probes_own_bits_must_fit(host: TraceHost, method: str) -> None:
    """Every bit of every identifying field, in a quote of 8 bytes."""
    sent = host.trace(method)[3]
    short, flags = quote_of(sent.probe, 8), Flag(0)
    known = is_known(host.family, method, 8, padded=False)
    for field, at in fields(host.family, method):
        for bit in range(8):
            message = error(host.family, flipped(short, at, 1 << bit))
            if known and field in MINOR[method]:
                credited(host.receive(message), sent, Flag.TRANSLATED | flags)
                flags = Flag.DUPLICATE
            elif (field, method) == ("identification", "tcp"):
                credited(host.receive(message), sent, flags)  # the sequence number names it
            else:
                assert refused(host, message) in ("forged", "foreign")
    if known:
        credited(host.receive(error(host.family, short)), sent, flags)


def test_udp_checksums_that_are_all_changed_alike_are_translated() -> None:
    """A translator's change is the same for each (RFC 1624); one such quote proves nothing."""
    host, by = TraceHost(4), 0x1234

    def shifted(sent: Sent, shift: int) -> bytes:
        changed = (word(sent.probe.transport, 6) + shift) % 0xFFFF
        return error(4, altered(quote_of(sent.probe, 8), 26, changed.to_bytes(2)))

    first, second, third, fourth = host.trace("udp")
    assert refused(host, shifted(first, by)) == "forged"
    assert refused(host, shifted(first, by)) == "forged", "the same again is no second one"
    assert refused(host, shifted(second, by + 1)) == "forged"
    assert refused(host, shifted(first, by)) == "forged"
    credited(host.receive(shifted(second, by)), second, Flag.TRANSLATED)
    credited(host.receive(shifted(first, by)), first, Flag.TRANSLATED)
    assert refused(host, shifted(third, by + 1)) == "forged"
    assert refused(host, shifted(fourth, by + 1)) == "forged", "there is one translator's change"
    credited(host.receive(shifted(third, by)), third, Flag.TRANSLATED)
    credited(host.receive(error(4, quote_of(fourth.probe, 8))), fourth)


def test_a_name_that_is_not_ours_is_forged(host: TraceHost) -> None:
    """Every bit of slot, serial and cookie; not what looks like padding."""
    for token, method in enumerate(("icmp", "udp")):
        sent = next(
            each for each in host.trace(method, token=token)
            if each.probe.payload[15].bit_count() > 1
        )  # fmt: skip
        first = IP_BYTES[host.family] + 8
        for at in range(first, first + 16):
            for bit in range(8):
                message = error(host.family, flipped(sent.probe.packet, at, 1 << bit))
                assert refused(host, message) in ("forged", "foreign")
        credited(host.receive(error(host.family, sent.probe.packet)), sent)


def test_a_probe_of_another_method_or_engine_is_not_ours(host: TraceHost) -> None:
    stranger = TraceHost(host.family, TraceCore(host.family, secret=8))
    ours = {method: host.trace(method, token=t)[0] for t, method in enumerate(METHODS)}
    for token, method in enumerate(METHODS):
        for quoted in (None, 8, 28):
            message = error(host.family, quote_of(stranger.trace(
                method, token=1000 + 10 * token + (quoted or 0))[0].probe, quoted))  # fmt: skip
            assert refused(host, message) in ("forged", "foreign")
    for sent in ours.values():
        credited(host.receive(error(host.family, sent.probe.packet)), sent)
