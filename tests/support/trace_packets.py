"""A trace's probes and what answers them, in plain Python: the oracle for the trace core.

Written from RFC 768, 791, 792, 1071, 4443, 4884, 8200 and 9293, byte by byte and without regard to
speed.
"""

import struct
from dataclasses import dataclass

from support.packets import checksum, ipv4, ipv6, with_checksum

IP_BYTES = {4: 20, 6: 40}
TIME_EXCEEDED = {4: 11, 6: 3}
UNREACHABLE = {4: 3, 6: 1}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
PORT_CODE = {4: 3, 6: 4}
ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
PROTOCOL = {(4, "icmp"): 1, (6, "icmp"): 58, (4, "udp"): 17, (6, "udp"): 17, (4, "tcp"): 6,
            (6, "tcp"): 6}  # fmt: skip
METHOD = {1: "icmp", 58: "icmp", 17: "udp", 6: "tcp"}
FIN, SYN, RST, ACK = 1, 2, 4, 16
DONT_FRAGMENT = 0x4000
NAMED = 24  # bytes behind the IP header that hold slot, serial and cookie
LABEL = bytes.fromhex("0008 0101 0001 0140")  # RFC 4950: label 16, bottom, TTL 64


def word(data: bytes, at: int, width: int = 2) -> int:
    """Read a big-endian number of `width` bytes."""
    return int.from_bytes(data[at : at + width])


@dataclass(frozen=True)
class Probe:
    """The fields of a probe that is whole and whose checksums are right."""

    packet: bytes
    version: int
    method: str
    source: bytes
    destination: bytes
    ttl: int
    tos: int
    ip_ident: int  # IPv4 only
    df: bool  # IPv4 only
    flow_label: int  # IPv6 only
    transport: bytes  # from its header on

    @property
    def flow(self) -> tuple[bytes, bytes, str, int, int, bytes]:
        """All that a router may balance by: addresses, protocol, class, label, ports; of ICMP what
        stands in their place, and the identifier.
        """
        first = self.transport[:6] if self.method == "icmp" else self.transport[:4]
        return self.source, self.destination, self.method, self.tos, self.flow_label, first

    @property
    def slot(self) -> int:
        """What names the probe where the payload is not quoted."""
        if self.method == "udp" and self.version == 4:
            return self.ip_ident - 1
        return word(self.transport, {"icmp": 6, "udp": 8, "tcp": 4}[self.method], self._slot_bytes)

    @property
    def _slot_bytes(self) -> int:
        return 4 if self.method == "udp" else 2

    @property
    def payload(self) -> bytes:
        """Slot (4), serial (4), cookie (8), balance (2), filler; of TCP the options."""
        return self.transport[20 if self.method == "tcp" else 8 :]

    @property
    def check(self) -> int:
        """The probe's own 16 bits outside its payload; of ICMP over IPv6 there are none: 0."""
        if self.method == "icmp":
            return self.ip_ident
        return word(self.transport, 6)


def _pseudo_header(version: int, packet: bytes, transport: bytes, protocol: int) -> bytes:
    if version == 4:
        return packet[12:20] + struct.pack("!BBH", 0, protocol, len(transport))
    return packet[8:40] + struct.pack("!II", len(transport), protocol)


def parse_probe(version: int, packet: bytes) -> Probe:
    """Read a probe; every length and checksum in it must be right."""
    header, transport = packet[: IP_BYTES[version]], packet[IP_BYTES[version] :]
    protocol = header[9] if version == 4 else header[6]
    pseudo = _pseudo_header(version, header, transport, protocol)
    assert checksum(transport if protocol == 1 else pseudo + transport) == 0
    if version == 4:
        assert (header[0], word(header, 2)) == (0x45, len(packet))
        assert checksum(header) == 0
        assert word(header, 6) & ~DONT_FRAGMENT == 0
        source, destination, ttl, tos = header[12:16], header[16:20], header[8], header[1]
    else:
        assert (header[0] >> 4, word(header, 4)) == (6, len(transport))
        source, destination, ttl, tos = header[8:24], header[24:40], header[7], word(header, 0) >> 4
    _check_transport(version, METHOD[protocol], transport)
    v4 = version == 4
    return Probe(
        packet, version, METHOD[protocol], source, destination, ttl, tos & 0xFF,
        word(header, 4) if v4 else 0, v4 and bool(word(header, 6) & DONT_FRAGMENT),
        0 if v4 else word(header, 0, 4) & 0xFFFFF, transport,
    )  # fmt: skip


def _check_transport(version: int, method: str, transport: bytes) -> None:
    """Insist on what does not change from probe to probe, beside the flow."""
    if method == "icmp":
        assert transport[:2] == bytes([ECHO_REQUEST[version], 0])
    elif method == "udp":
        assert word(transport, 4) == len(transport)
        assert word(transport, 6) != 0, "a UDP checksum of 0 is none (RFC 768)"
    else:
        assert transport[8:12] == bytes(4), "nothing is acknowledged"
        assert transport[12] >> 4 == len(transport) // 4
        assert transport[13] == SYN
        assert word(transport, 18) == 0, "nothing is urgent"
        assert transport[20:22] == bytes([2, 4]), "one option: a segment size (RFC 9293 3.2)"


# ── making answers ───────────────────────────────────────────────────────────────────────────────


def as_received(version: int, message: bytes, responder: bytes, *, ttl: int = 60) -> bytes:
    """Return an ICMP message as a raw socket hands it out: IPv4 with its header and a right sum.

    The kernel checks ICMPv6 sums before we see them, so there it stays as it is.
    """
    if version == 6:
        return message
    return _from(responder, with_checksum(message), protocol=1, ttl=ttl)


def _from(responder: bytes, body: bytes, *, protocol: int, ttl: int) -> bytes:
    dotted = ".".join(map(str, responder))
    return ipv4(dotted, "192.0.2.99", body, protocol=protocol, ttl=ttl)


def structure(objects: bytes = LABEL, *, version: int = 2, total: int | None = None) -> bytes:
    """Return an extension structure; total: a checksum instead of the right one (RFC 4884 7)."""
    bare = bytes([version << 4, 0, 0, 0]) + objects
    right = checksum(bare) if total is None else total
    return bare[:2] + right.to_bytes(2) + bare[4:]


def error(version: int, quote: bytes, *, kind: int | None = None, code: int = 0,
          rest: bytes = bytes(4)) -> bytes:  # fmt: skip
    """Return an ICMP error, by default that the TTL expired. rest: its header's last 4 bytes."""
    type_ = TIME_EXCEEDED[version] if kind is None else kind
    return bytes([type_, code, 0, 0]) + rest + quote


def extended(version: int, quote: bytes, attached: bytes, *, width: int = 128) -> bytes:
    """Return an error as RFC 4884 wants it: the quote filled up with zeros, its length told."""
    told = bytes([0, width // 4, 0, 0]) if version == 4 else bytes([width // 8, 0, 0, 0])
    return error(version, quote.ljust(width, b"\0") + attached, rest=told)


def quote_of(probe: Probe, quoted: int | None = None) -> bytes:
    """Return what an error quotes of a probe: `quoted` bytes behind the IP header, None: all."""
    return probe.packet if quoted is None else probe.packet[: IP_BYTES[probe.version] + quoted]


def is_known(family: int, method: str, quoted: int | None, *, padded: bool) -> bool:
    """Whether so much of a probe is enough: IPv6 has no identification, so it takes more."""
    if method == "tcp" or family == 4 or quoted is None or quoted >= NAMED:
        return True
    return method == "udp" and padded and quoted >= 16  # slot and serial, and UDP's checksum


def altered(data: bytes, at: int, new: bytes) -> bytes:
    """Return data with other bytes from `at` on."""
    return data[:at] + new + data[at + len(new) :]


def flipped(data: bytes, at: int, mask: int = 1) -> bytes:
    """Return data with some bits of one byte changed."""
    return altered(data, at, bytes([data[at] ^ mask]))


def echo_reply(probe: Probe, *, payload: bytes | None = None) -> bytes:
    """Return the message that answers an echo request."""
    returned = probe.payload if payload is None else payload
    return bytes([ECHO_REPLY[probe.version], 0, 0, 0]) + probe.transport[4:8] + returned


def segment(probe: Probe, flags: int = SYN | ACK, *, step: int = 1, sport: int | None = None,
            dport: int | None = None) -> bytes:  # fmt: skip
    """Return the segment that answers a SYN. step: what is acknowledged, beyond the sequence."""
    source, destination = word(probe.transport, 0), word(probe.transport, 2)
    acknowledged = (word(probe.transport, 4, 4) + step) % (1 << 32)
    return struct.pack(
        "!HHIIBBHHH", destination if sport is None else sport, source if dport is None else dport,
        0x12345678, acknowledged, 5 << 4, flags, 1000, 0, 0,
    )  # fmt: skip


def segment_as_received(version: int, data: bytes, responder: bytes, *, ttl: int = 60) -> bytes:
    """Return a segment as a raw TCP socket hands it out."""
    return data if version == 6 else _from(responder, data, protocol=6, ttl=ttl)


def with_header_6(probe: Probe, header: int, extra: bytes) -> bytes:
    """Return a quote of an IPv6 probe that got an extension header on the way."""
    body = bytes([PROTOCOL[6, probe.method]]) + extra + probe.transport
    return ipv6("2001:db8::99", "2001:db8::7", body, next_header=header, hops=1)
