"""What answers a probe, in plain Python.

Written from RFC 791, 792, 1071, 4443, 4884 and 8200, byte by byte and without regard to speed.
"""

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
