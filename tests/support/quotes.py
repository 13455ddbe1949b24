"""What answers a probe, in plain Python: the oracle for `netsonde._native.trace`, and a forger.

Written from RFC 791, 792, 1071, 4443, 4884 and 8200, byte by byte and without regard to speed.
"""

from dataclasses import dataclass
from ipaddress import ip_address

ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
TIME_EXCEEDED = {4: 11, 6: 3}
UNREACHABLE = {4: 3, 6: 1}
ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
IP_HEADER_BYTES = {4: 20, 6: 40}


def ones_complement_sum(data: bytes) -> int:
    """Return the 16-bit one's complement sum (RFC 1071)."""
    total = 0
    for position in range(0, len(data), 2):
        total += int.from_bytes(data[position : position + 2].ljust(2, b"\0"), "big")
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """Return the checksum to write where data has two zero bytes."""
    return 0xFFFF - ones_complement_sum(data)


def pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    """Return what an ICMPv6 checksum covers beside the message (RFC 8200 8.1)."""
    return source + destination + length.to_bytes(4, "big") + bytes([0, 0, 0, 58])


@dataclass(frozen=True)
class Read:
    """The fields of `netsonde._native.trace.parse`, in its order."""

    type: int
    code: int
    reply_ttl: int
    ident: int
    sequence: int
    checksum: int = 0
    quoted_ttl: int = 0
    quoted_tos: int = 0
    source: bytes = b""
    destination: bytes = b""
    cookie: bytes = b""


def read(version: int, packet: bytes) -> Read | None:
    """Read an answer; None when packet is none."""
    if version == 6:
        return _read_message(6, packet, 0)
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    header = (packet[0] & 15) * 4
    total = int.from_bytes(packet[2:4], "big")
    if header < 20 or header > len(packet) or total < header or total > len(packet):
        return None
    body = packet[header:total]
    if _is_later_fragment(packet):
        return None
    if packet[9] != 1 or not body or ones_complement_sum(body) != 0xFFFF:
        return None
    return _read_message(4, body, packet[8])


def _is_later_fragment(packet: bytes) -> bool:
    """Whether an IPv4 packet is a fragment behind the first, which has no transport header."""
    return int.from_bytes(packet[6:8], "big") & 0x1FFF != 0


def _read_message(version: int, message: bytes, reply_ttl: int) -> Read | None:
    if len(message) < 8:
        return None
    kind, code = message[0], message[1]
    if kind in ERRORS[version]:
        return _read_quote(version, message, reply_ttl)
    if kind != ECHO_REPLY[version] or len(message) < 16:
        return None
    ident, sequence = message[4:6], message[6:8]
    return Read(
        kind,
        code,
        reply_ttl,
        int.from_bytes(ident, "big"),
        int.from_bytes(sequence, "big"),
        cookie=message[8:16],
    )


def _quote(version: int, message: bytes) -> bytes:
    """Return what an error quotes, without RFC 4884 extensions."""
    quote = message[8:]
    length = 0
    if version == 4:
        length = message[5] * 4
    elif message[0] in (1, 3):
        length = message[4] * 8
    return quote[:length] if 128 <= length <= len(quote) else quote


def _transport(version: int, quote: bytes) -> tuple[int, bytes] | None:
    """Return protocol and payload of a quoted packet."""
    if len(quote) < IP_HEADER_BYTES[version] or quote[0] >> 4 != version:
        return None
    if version == 4:
        header = (quote[0] & 15) * 4
        is_whole = 20 <= header <= len(quote) and not _is_later_fragment(quote)
        return (quote[9], quote[header:]) if is_whole else None
    protocol, rest = quote[6], quote[40:]
    for _ in range(8):
        if protocol in (0, 43, 60, 135):
            if len(rest) < 8:
                return None
            step = (rest[1] + 1) * 8
        elif protocol == 44:
            if len(rest) < 8 or int.from_bytes(rest[2:4], "big") >> 3:
                return None
            step = 8
        else:
            break
        if step > len(rest):
            return None
        protocol, rest = rest[0], rest[step:]
    return protocol, rest


def _read_quote(version: int, message: bytes, reply_ttl: int) -> Read | None:
    quote = _quote(version, message)
    found = _transport(version, quote)
    if found is None:
        return None
    protocol, icmp = found
    if protocol != (1 if version == 4 else 58) or len(icmp) < 8:
        return None
    if icmp[0] != ECHO_REQUEST[version]:
        return None
    cookie = icmp[8:16] if len(icmp) >= 16 and any(icmp[8:16]) else b""
    v4 = version == 4
    return Read(
        message[0],
        message[1],
        reply_ttl,
        int.from_bytes(icmp[4:6], "big"),
        int.from_bytes(icmp[6:8], "big"),
        int.from_bytes(icmp[2:4], "big"),
        quote[8] if v4 else quote[7],
        quote[1] if v4 else int.from_bytes(quote[:2], "big") >> 4 & 0xFF,
        quote[12:16] if v4 else quote[8:24],
        quote[16:20] if v4 else quote[24:40],
        cookie,
    )


# ── making answers ──


def receive(version: int, message: bytes, *, ttl: int = 60, responder: str = "") -> bytes:
    """Return a message as a raw socket hands it out: with a right checksum, IPv4 with its header.

    The kernel checks ICMPv6 sums before we see them, so there it stays as it is.
    """
    if version == 6:
        return message
    message = message[:2] + b"\0\0" + message[4:]
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    source = ip_address(responder or "192.0.2.1").packed
    header = bytes([0x45, 0]) + (20 + len(message)).to_bytes(2, "big") + bytes(4)
    header += bytes([ttl, 1, 0, 0]) + source + bytes([192, 0, 2, 99])
    return header + message


def echo_reply(version: int, probe: bytes) -> bytes:
    """Answer a probe as its destination does."""
    message = probe[IP_HEADER_BYTES[version] :]
    return receive(version, bytes([ECHO_REPLY[version]]) + message[1:])


def error(
    version: int,
    probe: bytes,
    *,
    kind: int | None = None,
    code: int = 0,
    quoted_bytes: int | None = None,
    responder: str = "",
) -> bytes:
    """Answer a probe as a router does, by default because its TTL expired.

    quoted_bytes: how much of what follows the probe's IP header is quoted; None: all of it.
    """
    header = IP_HEADER_BYTES[version]
    quote = probe if quoted_bytes is None else probe[: header + quoted_bytes]
    return receive(
        version,
        bytes([TIME_EXCEEDED[version] if kind is None else kind, code]) + bytes(6) + quote,
        responder=responder,
    )


def with_extensions(version: int, probe: bytes, *, quoted_bytes: int = 8) -> bytes:
    """Answer with a quote filled up with zeros to 128 bytes and an extension (RFC 4884 4.5, 7)."""
    quote = probe[: IP_HEADER_BYTES[version] + quoted_bytes].ljust(128, b"\0")
    length = bytes([0, 32]) if version == 4 else bytes([16, 0])
    extension = bytes.fromhex("2000 0000 0008 0101 0001 0140")
    kind = bytes([TIME_EXCEEDED[version], 0, 0, 0])
    return receive(version, kind + length + bytes(2) + quote + extension)
