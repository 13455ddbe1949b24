"""What an ICMP error quotes and carries: the native parsers on bytes, against plain Python."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native import quote_core
from native.quote_core import ProbeQuote
from support.packets import checksum, ipv4, ipv6, parse_ip

FAMILIES = (4, 6)
SOURCE = {4: "192.0.2.1", 6: "2001:db8::1"}
TARGET = {4: "198.51.100.7", 6: "2001:db8:7::7"}
UNREACHABLE = {4: 3, 6: 1}
TIME_EXCEEDED = {4: 11, 6: 3}
EXTENDED = {4: (3, 11, 12), 6: (1, 3)}  # RFC 4884 4
ECHO_REQUEST = {4: 8, 6: 128}
ICMP = {4: 1, 6: 58}
UDP, TCP = 17, 6
IP_BYTES = {4: 20, 6: 40}
PAYLOAD = bytes(range(1, 21))
LABELS = bytes.fromhex("0008 0101 0001 0140")  # RFC 4950: label 16, bottom, TTL 64


def echo(version: int, payload: bytes = PAYLOAD) -> bytes:
    return struct.pack("!BBHHH", ECHO_REQUEST[version], 0, 0xC0DE, 0x1D1D, 77) + payload


def udp(payload: bytes = PAYLOAD) -> bytes:
    return struct.pack("!HHHH", 40000, 33434, 8 + len(payload), 0xBEEF) + payload


def tcp(payload: bytes = b"", *, words: int = 6) -> bytes:
    head = struct.pack("!HHIIBBHHH", 40001, 80, 0x00070F0F, 0, words << 4, 2, 64240, 0, 0)
    return head + bytes.fromhex("020405b4") + payload


def datagram(version: int, protocol: int, body: bytes) -> bytes:
    """A probe as a router sees it, with every field that is read set."""
    if version == 4:
        packet = ipv4(SOURCE[4], TARGET[4], body, protocol=protocol, ttl=1, tos=0xB8)
        return packet[:4] + bytes([0x12, 0x34]) + packet[6:]
    packet = ipv6(SOURCE[6], TARGET[6], body, next_header=protocol, hops=1, traffic_class=0xB8)
    return packet[:1] + bytes([packet[1] | 0x0A, 0xBC, 0xDE]) + packet[4:]


def probes(version: int) -> dict[str, bytes]:
    return {
        "icmp": datagram(version, ICMP[version], echo(version)),
        "udp": datagram(version, UDP, udp()),
        "tcp": datagram(version, TCP, tcp()),
    }


def error(version: int, quote: bytes, *, kind: int | None = None, code: int = 0,
          rest: bytes = bytes(4)) -> bytes:  # fmt: skip
    """An ICMP error; rest: the header's last 4 bytes. Its checksum is nobody's business here."""
    return bytes([TIME_EXCEEDED[version] if kind is None else kind, code, 0, 0]) + rest + quote


def structure(objects: bytes = LABELS, *, version: int = 2, total: int | None = None) -> bytes:
    """An extension structure; total: a checksum instead of the right one."""
    bare = bytes([version << 4, 0, 0, 0]) + objects
    right = checksum(bare) if total is None else total
    return bare[:2] + struct.pack("!H", right) + bare[4:]


def length_field(version: int, quoted: int) -> bytes:
    return bytes([0, quoted // 4, 0, 0]) if version == 4 else bytes([quoted // 8, 0, 0, 0])


def extended(version: int, quote: bytes, attached: bytes, *, width: int = 128) -> bytes:
    """An error as RFC 4884 wants it: the quote filled up with zeros, its length told."""
    return error(version, quote.ljust(width, b"\0") + attached, rest=length_field(version, width))


def legacy(version: int, quote: bytes, attached: bytes) -> bytes:
    """An error of a router from before RFC 4884 (5.5)."""
    return error(version, quote.ljust(128, b"\0") + attached)


each_family = pytest.mark.parametrize("version", FAMILIES)
each_method = pytest.mark.parametrize("method", ["icmp", "udp", "tcp"])


# ── what is quoted ───────────────────────────────────────────────────────────────────────────────


@each_family
@each_method
def test_every_field_of_the_ip_header_is_read(version: int, method: str) -> None:
    read = quote_core.parse(version, error(version, probes(version)[method]))
    protocol = {"icmp": ICMP[version], "udp": UDP, "tcp": TCP}[method]
    assert (read.status, read.version, read.protocol) == (quote_core.OK, version, protocol)
    assert (read.ttl, read.tos, read.is_cut) == (1, 0xB8, False)
    assert (read.ip_ident, read.flow_label) == ((0x1234, 0) if version == 4 else (0, 0xABCDE))
    at = 12 if version == 4 else 8
    width = 4 if version == 4 else 16
    assert read.source == probes(version)[method][at : at + width]
    assert read.destination == probes(version)[method][at + width : at + 2 * width]
    assert (read.mtu, read.extension) == (0, b"")


@each_family
def test_every_field_of_the_transport_is_read(version: int) -> None:
    sent = probes(version)
    icmp, udp_, tcp_ = (quote_core.parse(version, error(version, each)) for each in sent.values())
    assert (icmp.icmp_checksum, icmp.ident, icmp.sequence) == (0xC0DE, 0x1D1D, 77)
    assert (udp_.source_port, udp_.destination_port) == (40000, 33434)
    assert (udp_.udp_length, udp_.udp_checksum) == (28, 0xBEEF)
    assert (tcp_.source_port, tcp_.destination_port) == (40001, 80)
    assert tcp_.tcp_sequence == 0x00070F0F
    assert (icmp.payload, udp_.payload, tcp_.payload) == (PAYLOAD, PAYLOAD, b"")


@each_family
@each_method
def test_a_quote_may_be_cut_anywhere(version: int, method: str) -> None:
    sent = probes(version)[method]
    whole = quote_core.parse(version, error(version, sent))
    header = IP_BYTES[version]
    for kept in range(len(sent)):
        read = quote_core.parse(version, error(version, sent[:kept]))
        if kept < header + 8:
            assert (read.status, read.is_cut) == (quote_core.SHORT, kept >= header), kept
            continue
        present = sent[header + 8 : kept] if method != "tcp" else b""
        assert read == whole._replace(payload=present), kept


@each_family
@each_method
def test_filling_up_with_zeros_is_not_payload(version: int, method: str) -> None:
    sent = probes(version)[method]
    whole = quote_core.parse(version, error(version, sent))
    read = quote_core.parse(version, extended(version, sent, structure()))
    assert read == whole._replace(extension=structure())


@each_family
def test_a_length_that_a_router_changed_costs_the_payload_only(version: int) -> None:
    at = 2 if version == 4 else 4
    sent = probes(version)["udp"]
    mangled = sent[:at] + bytes(2) + sent[at + 2 :]
    read = quote_core.parse(version, error(version, mangled))
    assert (read.status, read.udp_checksum, read.payload) == (quote_core.OK, 0xBEEF, b"")


@each_family
@pytest.mark.parametrize(
    ("words", "payload"),
    [(5, bytes.fromhex("020405b4") + b"data"), (6, b"data"), (7, b""), (4, b""), (15, b"")],
)
def test_a_tcp_payload_begins_behind_the_options(version: int, words: int, payload: bytes) -> None:
    sent = datagram(version, TCP, tcp(b"data", words=words))
    assert quote_core.parse(version, error(version, sent)).payload == payload


@each_family
def test_other_packets_are_foreign(version: int) -> None:
    reply = bytes([0 if version == 4 else 129]) + echo(version)[1:]
    for sent in (
        datagram(version, ICMP[version], reply),
        datagram(version, 47, udp()),
        datagram(version, ICMP[10 - version], echo(10 - version)),
        probes(10 - version)["udp"] + bytes(20),
    ):
        assert quote_core.parse(version, error(version, sent)).status == quote_core.FOREIGN


def test_a_later_ipv4_fragment_is_foreign() -> None:
    sent = probes(4)["udp"]
    for flags, status in ((0x2000, quote_core.OK), (0x2001, quote_core.FOREIGN)):
        fragment = sent[:6] + struct.pack("!H", flags) + sent[8:]
        assert quote_core.parse(4, error(4, fragment)).status == status


def test_ipv4_options_are_skipped() -> None:
    sent = ipv4(SOURCE[4], TARGET[4], udp(), protocol=UDP, options=bytes(8))
    assert quote_core.parse(4, error(4, sent)).payload == PAYLOAD


@pytest.mark.parametrize("number", [0, 43, 60, 44], ids=["hop", "routing", "destination", "first"])
def test_ipv6_extension_headers_are_skipped(number: int) -> None:
    headers = bytes([60, 0, *bytes(6)]) + bytes([UDP, 1, *bytes(14)])
    sent = datagram(6, number, headers + udp())
    read = quote_core.parse(6, error(6, sent))
    assert (read.status, read.protocol, read.payload) == (quote_core.OK, UDP, PAYLOAD)
    cut = quote_core.parse(6, error(6, sent[:60]))
    assert (cut.status, cut.is_cut) == (quote_core.SHORT, False)


def test_a_later_ipv6_fragment_is_foreign() -> None:
    sent = datagram(6, 44, bytes([UDP, 0, 0, 8, *bytes(4)]) + udp())
    assert quote_core.parse(6, error(6, sent)).status == quote_core.FOREIGN


@pytest.mark.parametrize(
    ("version", "kind", "code", "mtu"),
    [(4, 3, 4, 1400), (4, 3, 1, 0), (4, 11, 4, 0), (6, 2, 0, 0x10000 + 1400), (6, 1, 0, 0)],
)
def test_the_mtu_of_a_too_big_message(version: int, kind: int, code: int, mtu: int) -> None:
    rest = struct.pack("!HH", version == 6, 1400)
    quote = probes(version)["icmp"]
    message = error(version, quote, kind=kind, code=code, rest=rest)
    assert quote_core.parse(version, message).mtu == mtu
    assert quote_core.parse(version, message[:30]).mtu == mtu


# ── where extensions are ─────────────────────────────────────────────────────────────────────────


@each_family
@pytest.mark.parametrize("width", [128, 136, 256])
def test_the_length_field_says_where_the_structure_is(version: int, width: int) -> None:
    for attached in (structure(), structure(version=1), structure(total=1), b"\x20", b""):
        message = extended(version, probes(version)["udp"], attached, width=width)
        assert quote_core.find(version, message) == attached


@each_family
@pytest.mark.parametrize("claimed", [8, 120, 160, 1016])
def test_a_length_field_that_lies_says_nothing(version: int, claimed: int) -> None:
    quote = probes(version)["udp"].ljust(128, b"\0") + structure()
    message = error(version, quote, rest=length_field(version, claimed))
    assert quote_core.find(version, message) == b""
    assert quote_core.parse(version, message).payload == PAYLOAD


@each_family
def test_without_a_length_field_only_a_certain_structure_counts(version: int) -> None:
    quote = datagram(version, UDP, udp(bytes(400)))[:128]
    read = quote_core.parse(version, legacy(version, quote, structure()))
    assert read.extension == structure()
    assert read.payload == quote[IP_BYTES[version] + 8 :]
    sums_up = structure(bytes.fromhex("0008 0101 def6 0000"), total=0)
    assert checksum(sums_up) == 0
    uncertain = (
        structure(version=1),
        structure(total=1),
        structure(total=0),
        sums_up,
        structure()[:-1],
        b"\x20\0",
    )
    for attached in uncertain:
        message = legacy(version, quote, attached)
        assert quote_core.find(version, message) == b""
        assert quote_core.parse(version, message).payload == message[8 + IP_BYTES[version] + 8 :]


@each_family
def test_only_some_errors_have_extensions(version: int) -> None:
    quote = probes(version)["udp"].ljust(128, b"\0") + structure()
    for kind in range(256):
        for rest in (length_field(version, 128), bytes(4)):
            found = quote_core.find(version, error(version, quote, kind=kind, rest=rest))
            assert found == (structure() if kind in EXTENDED[version] else b"")


# ── what extensions are worth ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        (structure(), quote_core.TRUSTED),
        (structure(total=0), quote_core.TRUSTED),
        (structure(LABELS + bytes.fromhex("0004 f7f8")), quote_core.TRUSTED),
        (structure(version=1), quote_core.BAD_VERSION),
        (structure(version=3, total=1), quote_core.BAD_VERSION),
        (structure(total=1), quote_core.BAD_CHECKSUM),
        (structure(b""), quote_core.BAD_LENGTH),
        (structure()[:3], quote_core.BAD_LENGTH),
        (b"", quote_core.BAD_LENGTH),
        (structure(LABELS + bytes.fromhex("0008 0102 0000 00")), quote_core.BAD_LENGTH),
        (structure(LABELS + bytes.fromhex("0008")), quote_core.BAD_LENGTH),
        (structure(bytes.fromhex("0000 0101")), quote_core.BAD_LENGTH),
        (structure(bytes.fromhex("0003 0101")), quote_core.BAD_LENGTH),
        (structure(bytes.fromhex("0006 0101 0000 0000")), quote_core.BAD_LENGTH),
        (structure(bytes.fromhex("ffff 0101 0000 0000")), quote_core.BAD_LENGTH),
    ],
)
def test_what_is_wrong_with_a_structure(raw: bytes, verdict: int) -> None:
    assert quote_core.check(raw) == verdict


def test_a_walk_gives_the_objects_up_to_the_first_lie() -> None:
    objects = LABELS + bytes.fromhex("0004 f7f8") + bytes.fromhex("000c 0203 0102 0304")
    first = [(1, 1, LABELS[4:]), (0xF7, 0xF8, b"")]
    assert quote_core.walk(structure(objects)) == (first, False)
    last = [(2, 3, bytes([1, 2, 3, 4, 5, 6, 7, 8]))]
    assert quote_core.walk(structure(objects + bytes([5, 6, 7, 8]))) == (first + last, True)


# ── any bytes whatever ───────────────────────────────────────────────────────────────────────────


def expected_structure(version: int, message: bytes) -> bytes:
    """What quote_core.find must answer."""
    if message[0] not in EXTENDED[version]:
        return b""
    rest = message[8:]
    field = message[5] if version == 4 else message[4]
    if field == 0:
        found = rest[128:]
        certain = len(found) >= 4 and found[0] >> 4 == 2 and any(found[2:4])
        return found if certain and checksum(found) == 0 else b""
    quoted = field * (4 if version == 4 else 8)
    return rest[quoted:] if 128 <= quoted <= len(rest) else b""


def expected_mtu(version: int, message: bytes) -> int:
    if version == 6:
        return int.from_bytes(message[4:8]) if message[0] == 2 else 0
    return int.from_bytes(message[6:8]) if message[:2] == b"\x03\x04" else 0


def expected(version: int, message: bytes) -> ProbeQuote:
    """What quote_core.parse must answer."""
    read = ProbeQuote(
        quote_core.SHORT, 0, 0, 0, 0, False, 0, 0, b"", b"", 0, 0, 0, 0, 0, 0, 0, 0, b"", 0, b""
    )
    if len(message) <= 8:
        return read
    attached = expected_structure(version, message)
    quote = message[8 : len(message) - len(attached)]
    read = read._replace(mtu=expected_mtu(version, message), extension=attached)
    ip = parse_ip(version, quote, quoted=True)
    if isinstance(ip, str):
        return read._replace(status={"short": quote_core.SHORT, "foreign": quote_core.FOREIGN}[ip])
    protocol, tos, ttl, source, destination, body = ip
    v4 = version == 4
    total = int.from_bytes(quote[2:4]) if v4 else 40 + int.from_bytes(quote[4:6])
    read = read._replace(
        status=quote_core.FOREIGN, version=version, protocol=protocol, tos=tos, ttl=ttl,
        source=source, destination=destination,
        ip_ident=int.from_bytes(quote[4:6]) if v4 else 0,
        flow_label=0 if v4 else int.from_bytes(quote[1:4]) & 0xFFFFF,
    )  # fmt: skip
    if len(body) < 8:
        return read._replace(status=quote_core.SHORT, is_cut=True)
    transport = body[: max(total - (len(quote) - len(body)), 0)]
    return expected_transport(version, read, body, transport)


def expected_transport(version: int, read: ProbeQuote, body: bytes, transport: bytes) -> ProbeQuote:
    first, second, third, fourth = struct.unpack("!HHHH", body[:8])
    if read.protocol == ICMP[version] and body[0] == ECHO_REQUEST[version]:
        return read._replace(
            status=quote_core.OK, icmp_checksum=second, ident=third, sequence=fourth,
            payload=transport[8:],
        )  # fmt: skip
    if read.protocol == UDP:
        return read._replace(
            status=quote_core.OK, source_port=first, destination_port=second, udp_length=third,
            udp_checksum=fourth, payload=transport[8:],
        )  # fmt: skip
    if read.protocol == TCP:
        header = (transport[12] >> 4) * 4 if len(transport) > 20 else 0
        return read._replace(
            status=quote_core.OK, source_port=first, destination_port=second,
            tcp_sequence=third << 16 | fourth,
            payload=transport[header:] if header >= 20 else b"",
        )  # fmt: skip
    return read


@st.composite
def errors(draw: st.DrawFn, version: int) -> bytes:
    """Errors of all layouts, cut and damaged here and there."""
    payload = draw(st.binary(max_size=200))
    body = draw(st.sampled_from([echo(version, payload), udp(payload), tcp(payload)]))
    protocol = draw(st.sampled_from([ICMP[version], UDP, TCP, 47]))
    if version == 6 and draw(st.booleans()):
        number = draw(st.sampled_from([0, 43, 44, 60]))
        body = bytes([protocol, 0, 0, *draw(st.binary(min_size=5, max_size=5))]) + body
        protocol = number
    sent = datagram(version, protocol, body)
    quote = sent[: draw(st.integers(IP_BYTES[version], len(sent)))]
    layout = draw(st.sampled_from([extended, legacy]))
    attached = structure(LABELS, total=draw(st.sampled_from([None, 0, 1])))
    message = bytearray(layout(version, quote[:128], draw(st.sampled_from([attached, b""]))))
    if draw(st.booleans()):
        message = bytearray(error(version, quote, kind=draw(st.sampled_from([1, 2, 3, 4, 11, 12]))))
    for at in draw(st.lists(st.integers(0, len(message) - 1), max_size=3)):
        message[at] = draw(st.integers(0, 255))
    return bytes(message[: draw(st.integers(0, len(message)) | st.just(len(message)))])


@each_family
@given(st.data())
def test_an_error_is_read_as_plain_python_reads_it(version: int, data: st.DataObject) -> None:
    message = data.draw(errors(version) | st.binary(max_size=300))
    assert quote_core.parse(version, message) == expected(version, message)
