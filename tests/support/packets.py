"""Packets in plain Python, slow and obvious: the oracle for the native packet core.

Builders make what a peer would send; parsers answer what `netsonde._native.icmp` must answer.
"""

import struct
from ipaddress import ip_address

ECHO_REPLY = {4: 0, 6: 129}
ECHO_REQUEST = {4: 8, 6: 128}
PROTOCOL = {4: 1, 6: 58}
ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
QUOTE_MIN_BYTES = 128  # RFC 4884 4.5
EXTENSIONS_6 = (0, 43, 60, 135)  # hop-by-hop, routing, destination, mobility: (len + 1) * 8
FRAGMENT_6 = 44
FRAGMENT_OFFSET_4 = 0x1FFF
EXTENSION_HEADERS_MAX = 8

Ip = tuple[int, int, int, bytes, bytes, bytes]


def checksum(data: bytes) -> int:
    """RFC 1071, by the book: the complement of the one's complement sum of 16-bit words."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for (word,) in struct.iter_unpack("!H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def with_checksum(message: bytes) -> bytes:
    """Fill in an ICMP message's checksum."""
    bare = message[:2] + b"\0\0" + message[4:]
    return bare[:2] + struct.pack("!H", checksum(bare)) + bare[4:]


def icmp(type_: int, code: int, rest: bytes, payload: bytes) -> bytes:
    """An ICMP message with a right ICMPv4 checksum; rest: the header's last 4 bytes."""
    return with_checksum(struct.pack("!BBH", type_, code, 0) + rest + payload)


def echo(version: int, kind: str, ident: int, sequence: int, payload: bytes) -> bytes:
    """An echo request or reply."""
    type_ = {"request": ECHO_REQUEST, "reply": ECHO_REPLY}[kind][version]
    return icmp(type_, 0, struct.pack("!HH", ident, sequence), payload)


def icmp_error(type_: int, code: int, quoted: bytes) -> bytes:
    """An error that quotes a packet, without extensions."""
    return icmp(type_, code, bytes(4), quoted)


def ipv4(source: str, destination: str, body: bytes, *, protocol: int = 1, ttl: int = 64,
         tos: int = 0, options: bytes = b"") -> bytes:  # fmt: skip
    """An IPv4 packet; options in whole words."""
    words = 5 + len(options) // 4
    length = words * 4 + len(body)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | words, tos, length, 0, 0, ttl, protocol, 0,
        ip_address(source).packed, ip_address(destination).packed,
    )  # fmt: skip
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def ipv6(source: str, destination: str, body: bytes, *, next_header: int = 58, hops: int = 64,
         traffic_class: int = 0) -> bytes:  # fmt: skip
    """An IPv6 packet."""
    return (
        struct.pack("!IHBB", 6 << 28 | traffic_class << 20, len(body), next_header, hops)
        + ip_address(source).packed
        + ip_address(destination).packed
        + body
    )


def parse_ip(version: int, data: bytes, *, quoted: bool = False) -> Ip | str:
    """What the native parse_ip must answer."""
    return _parse_ipv4(data, quoted=quoted) if version == 4 else _parse_ipv6(data)


def _parse_ipv4(data: bytes, *, quoted: bool) -> Ip | str:
    if len(data) < 20:
        return "short"
    if data[0] >> 4 != 4:
        return "foreign"
    header, total = (data[0] & 15) * 4, int.from_bytes(data[2:4])
    if header < 20 or header > len(data):
        return "short"
    if not quoted and not header <= total <= len(data):
        return "short"
    if int.from_bytes(data[6:8]) & FRAGMENT_OFFSET_4:
        return "foreign"
    body = data[header:] if quoted else data[header:total]
    return data[9], data[1], data[8], data[12:16], data[16:20], body


def _parse_ipv6(data: bytes) -> Ip | str:
    if len(data) < 40:
        return "short"
    if data[0] >> 4 != 6:
        return "foreign"
    protocol, rest = data[6], data[40:]
    for _ in range(EXTENSION_HEADERS_MAX):
        if protocol not in (*EXTENSIONS_6, FRAGMENT_6):
            break
        if len(rest) < 8:
            return "short"
        length = 8 if protocol == FRAGMENT_6 else (rest[1] + 1) * 8
        if protocol == FRAGMENT_6 and int.from_bytes(rest[2:4]) >> 3:
            return "foreign"
        if len(rest) < length:
            return "short"
        protocol, rest = rest[0], rest[length:]
    traffic_class = int.from_bytes(data[0:2]) >> 4 & 0xFF
    return protocol, traffic_class, data[7], data[8:24], data[24:40], rest


def parse_message(
    version: int, data: bytes
) -> tuple[int, int, int, int, int, bytes, Ip | str | None] | str:
    """What the native parse_message must answer."""
    if len(data) < 8:
        return "short"
    type_, code, total, ident, sequence = struct.unpack("!BBHHH", data[:8])
    quote: Ip | str | None = None
    if type_ in ERRORS[version]:
        quoted = data[8:]
        claimed = data[5] * 4 if version == 4 else data[4] * 8 if type_ in (1, 3) else 0
        if QUOTE_MIN_BYTES <= claimed <= len(quoted):
            quoted = quoted[:claimed]
        quote = parse_ip(version, quoted, quoted=True) if quoted else "short"
    return type_, code, total, ident, sequence, data[8:], quote


def siphash24(key: bytes, data: bytes) -> int:
    """SipHash-2-4 (Aumasson and Bernstein, 2012), section 2."""
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    v: list[int] = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D,
         k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]  # fmt: skip

    def rotate(x: int, n: int) -> int:
        return (x << n | x >> (64 - n)) & mask

    def half(a: int, b: int, c: int, d: int, s: int, t: int) -> None:
        v[a] = (v[a] + v[b]) & mask
        v[c] = (v[c] + v[d]) & mask
        v[b] = rotate(v[b], s) ^ v[a]
        v[d] = rotate(v[d], t) ^ v[c]
        v[a] = rotate(v[a], 32)

    def rounds(count: int) -> None:
        for _ in range(count):
            half(0, 1, 2, 3, 13, 16)
            half(2, 1, 0, 3, 17, 21)

    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
