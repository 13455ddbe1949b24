"""Packets, checksums, cookies and samples of the clocks, as the engines' cores read them."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from cookie cimport load_key, siphash24 as sip
from packet cimport (
    PARSE_FOREIGN, PARSE_OK, PARSE_SHORT, icmp_t, internet_checksum, ip_t, is_icmp_error,
    parse_icmp, parse_ipv4, parse_ipv6, parse_quote,
)
from stamps cimport wall_merge, wall_t


def checksum(bytes data not None):
    """Return the Internet checksum of data, its own checksum field 0 (RFC 1071)."""
    return internet_checksum(<const uint8_t *><const char *>data, <size_t>len(data))


def siphash24(bytes key not None, bytes data not None):
    """Return the SipHash-2-4 of data under a key of 16 bytes."""
    if len(key) != 16:
        raise ValueError(f"key must be 16 bytes, not {len(key)}")
    return sip(load_key(<const uint8_t *><const char *>key),
               <const uint8_t *><const char *>data, <size_t>len(data))


def count_steps(samples):
    """Return how many wall clock steps a series of (low_ns, high_ns) proves.

    Each sample is an interval in which CLOCK_REALTIME - CLOCK_MONOTONIC lay at that moment.
    """
    cdef wall_t wall
    cdef int64_t low_ns, high_ns
    memset(&wall, 0, sizeof(wall))
    for low_ns, high_ns in samples:
        wall_merge(&wall, low_ns, high_ns)
    return wall.steps


cdef str problem(int code):
    return {PARSE_SHORT: "short", PARSE_FOREIGN: "foreign"}[code]


cdef int address_bytes(int version) except -1:
    """Return how long an address is."""
    if version != 4 and version != 6:
        raise ValueError(f"version must be 4 or 6, not {version}")
    return 4 if version == 4 else 16


cdef tuple fields(const ip_t *ip, int width):
    return (ip.protocol, ip.tos, ip.ttl, ip.source[:width], ip.destination[:width],
            ip.body[:ip.body_bytes])


def parse_ip(int version, bytes data not None, *, bint quoted=False):
    """Read an IP packet: (protocol, tos, ttl, source, destination, body), or why it is not one.

    quoted: it is what an ICMP error quotes, so its end may be missing (IPv6: always allowed).
    The reason is "short" or "foreign".
    """
    cdef ip_t ip
    cdef const uint8_t *p = <const uint8_t *><const char *>data
    cdef int code, width = address_bytes(version)
    if version == 4:
        code = parse_ipv4(p, <size_t>len(data), quoted, &ip)
    else:
        code = parse_ipv6(p, <size_t>len(data), &ip)
    return fields(&ip, width) if code == PARSE_OK else problem(code)


def parse_message(int version, bytes data not None):
    """Read an ICMP message: (type, code, checksum, ident, sequence, payload, quote) or "short".

    quote is None for a message that is not an error, else what `parse_ip` makes of the packet it
    quotes (RFC 792, 4443, 4884).
    """
    cdef icmp_t icmp
    cdef ip_t ip
    cdef const uint8_t *p = <const uint8_t *><const char *>data
    cdef int code, width = address_bytes(version)
    if parse_icmp(p, <size_t>len(data), &icmp) != PARSE_OK:
        return "short"
    quote = None
    if is_icmp_error(version, icmp.type):
        code = parse_quote(version, p, <size_t>len(data), &ip)
        quote = fields(&ip, width) if code == PARSE_OK else problem(code)
    return (icmp.type, icmp.code, icmp.checksum, icmp.ident, icmp.sequence,
            icmp.payload[:icmp.payload_bytes], quote)
