"""Build and parse IPv4, IPv6, ICMP and ICMPv6 in place: RFC 791, 8200, 792, 4443, 4884, 1071.

Nothing is copied: what a parser fills points into the caller's bytes. Every parser takes any
bytes whatever and answers with a PARSE_ code; none reads past `n`.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "<endian.h>" nogil:
    uint16_t be16toh(uint16_t x)
    uint32_t be32toh(uint32_t x)
    uint64_t be64toh(uint64_t x)
    uint16_t htobe16(uint16_t x)
    uint32_t htobe32(uint32_t x)
    uint64_t htobe64(uint64_t x)

cdef enum:
    PARSE_OK = 0
    PARSE_SHORT = -1     # fewer bytes than the headers claim
    PARSE_FOREIGN = -2   # well formed, another version or protocol than asked for
    PARSE_CHECKSUM = -3  # damaged on the way

cdef enum:
    IPV4_HEADER_BYTES = 20
    IPV6_HEADER_BYTES = 40
    ICMP_HEADER_BYTES = 8

cdef enum:
    PROTOCOL_ICMP = 1
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_ICMPV6 = 58

cdef enum:  # RFC 792
    ICMP4_ECHO_REPLY = 0
    ICMP4_UNREACHABLE = 3
    ICMP4_ECHO_REQUEST = 8
    ICMP4_TIME_EXCEEDED = 11
    ICMP4_PARAMETER_PROBLEM = 12

cdef enum:  # RFC 4443
    ICMP6_UNREACHABLE = 1
    ICMP6_TOO_BIG = 2
    ICMP6_TIME_EXCEEDED = 3
    ICMP6_PARAMETER_PROBLEM = 4
    ICMP6_ECHO_REQUEST = 128
    ICMP6_ECHO_REPLY = 129

ctypedef struct ip_t:
    int version                 # 4 or 6
    uint8_t tos                 # IPv4 TOS, IPv6 traffic class: DSCP and ECN
    uint8_t ttl                 # IPv6: hop limit
    uint8_t protocol            # of body; IPv6: after its extension headers
    uint16_t ident              # IPv4 only
    uint32_t flow_label         # IPv6 only
    uint32_t total_bytes        # as the header says, header included
    const uint8_t *source       # 4 or 16 bytes
    const uint8_t *destination
    const uint8_t *body
    size_t body_bytes           # present; of a whole IPv4 packet what its header says

ctypedef struct icmp_t:
    uint8_t type
    uint8_t code
    uint16_t checksum
    uint16_t ident              # echo only; else the two halves of the rest of the header
    uint16_t sequence
    const uint8_t *payload
    size_t payload_bytes


cdef inline uint16_t load_be16(const uint8_t *p) noexcept nogil:
    cdef uint16_t x
    memcpy(&x, p, sizeof(x))
    return be16toh(x)


cdef inline uint32_t load_be32(const uint8_t *p) noexcept nogil:
    cdef uint32_t x
    memcpy(&x, p, sizeof(x))
    return be32toh(x)


cdef inline uint64_t load_be64(const uint8_t *p) noexcept nogil:
    cdef uint64_t x
    memcpy(&x, p, sizeof(x))
    return be64toh(x)


cdef inline void store_be16(uint8_t *p, uint16_t x) noexcept nogil:
    x = htobe16(x)
    memcpy(p, &x, sizeof(x))


cdef inline void store_be32(uint8_t *p, uint32_t x) noexcept nogil:
    x = htobe32(x)
    memcpy(p, &x, sizeof(x))


cdef inline void store_be64(uint8_t *p, uint64_t x) noexcept nogil:
    x = htobe64(x)
    memcpy(p, &x, sizeof(x))


cdef inline uint64_t checksum_add(uint64_t total, const uint8_t *p, size_t n) noexcept nogil:
    """Add n bytes to a running one's complement sum (RFC 1071).

    All but the last piece of a packet must have an even length. 64 bits hold the sum of any packet.
    """
    cdef size_t i, even = n & ~<size_t>3
    for i in range(0, even, 4):
        total += load_be32(p + i)
    if n - even >= 2:
        total += load_be16(p + even)
        even += 2
    if n > even:
        total += <uint64_t>p[even] << 8
    return total


cdef inline uint64_t store_summed(uint64_t total, uint8_t *p, uint64_t x) noexcept nogil:
    """Store 8 bytes and add them to a running sum.

    Reading them back for it would wait until they are in the cache: they are stored in parts.
    """
    store_be64(p, x)
    return total + (x >> 32) + (x & 0xFFFFFFFFULL)


cdef inline uint16_t checksum_fold(uint64_t total) noexcept nogil:
    """Fold a running sum into 16 bits, not yet complemented."""
    total = (total & 0xFFFFFFFFULL) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16 & 0xFFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total


cdef inline uint16_t internet_checksum(const uint8_t *p, size_t n) noexcept nogil:
    """Return the checksum to write into a packet whose checksum field is 0 (RFC 1071).

    Over a packet that already carries a right one it is 0.
    """
    return <uint16_t>(~checksum_fold(checksum_add(0, p, n)) & 0xFFFF)


cdef inline uint64_t pseudo_header_sum(
    const uint8_t *source, const uint8_t *destination, size_t address_bytes,
    uint32_t length, uint8_t protocol,
) noexcept nogil:
    """Return the running sum of the pseudo header of UDP, TCP and ICMPv6 (RFC 8200 8.1)."""
    cdef uint64_t total = checksum_add(0, source, address_bytes)
    return checksum_add(total, destination, address_bytes) + length + protocol


cdef inline uint64_t echo_header(
    uint8_t type_, uint16_t checksum, uint16_t ident, uint16_t sequence,
) noexcept nogil:
    """Return an echo header, for store_be64."""
    return (<uint64_t>type_ << 56 | <uint64_t>checksum << 32 | <uint64_t>ident << 16
            | <uint64_t>sequence)


cdef inline void build_ipv4_header(
    uint8_t *p, const uint8_t *source, const uint8_t *destination, uint16_t total,
    uint8_t protocol, uint8_t tos, uint8_t ttl, uint16_t ident, bint df,
) noexcept nogil:
    """Write an IPv4 header of 20 bytes (RFC 791). total: its length field."""
    cdef uint64_t first = (
        <uint64_t>(0x45000000U | <uint32_t>tos << 16 | total) << 32 | <uint64_t>ident << 16
        | (0x4000U if df else 0))
    cdef uint32_t third = <uint32_t>ttl << 24 | <uint32_t>protocol << 16
    cdef uint64_t addresses = <uint64_t>load_be32(source) << 32 | load_be32(destination)
    cdef uint64_t sum = store_summed(store_summed(third, p, first), p + 12, addresses)
    store_be32(p + 8, third | <uint16_t>~checksum_fold(sum))


cdef inline void build_ipv6_header(
    uint8_t *p, const uint8_t *source, const uint8_t *destination, uint16_t payload,
    uint8_t protocol, uint8_t traffic_class, uint8_t hop_limit, uint32_t flow_label,
) noexcept nogil:
    """Write an IPv6 header of 40 bytes (RFC 8200). payload: its length field."""
    store_be32(p, 0x60000000U | <uint32_t>traffic_class << 20 | flow_label)
    store_be16(p + 4, payload)
    p[6] = protocol
    p[7] = hop_limit
    memcpy(p + 8, source, 16)
    memcpy(p + 24, destination, 16)


cdef inline int parse_ipv4(const uint8_t *p, size_t n, bint quoted, ip_t *out) noexcept nogil:
    """Read an IPv4 header, options skipped (RFC 791).

    quoted: the packet is what an ICMP error quotes, so it may be cut anywhere after its header,
    and some routers have already changed its length field; otherwise it must be whole. A fragment
    that is not the first has no transport header: PARSE_FOREIGN.
    """
    cdef size_t header, total
    memset(out, 0, sizeof(ip_t))
    if n < IPV4_HEADER_BYTES:
        return PARSE_SHORT
    if p[0] >> 4 != 4:
        return PARSE_FOREIGN
    header = (p[0] & 0x0F) * 4
    total = load_be16(p + 2)
    if header < IPV4_HEADER_BYTES or header > n:
        return PARSE_SHORT
    if not quoted and (total < header or total > n):
        return PARSE_SHORT
    if load_be16(p + 6) & 0x1FFF:  # fragment offset
        return PARSE_FOREIGN
    out.version = 4
    out.tos = p[1]
    out.ttl = p[8]
    out.protocol = p[9]
    out.ident = load_be16(p + 4)
    out.total_bytes = <uint32_t>total
    out.source = p + 12
    out.destination = p + 16
    out.body = p + header
    out.body_bytes = (n if quoted else total) - header
    return PARSE_OK


cdef inline bint is_ipv6_extension(uint8_t protocol) noexcept nogil:
    """Whether a next-header value is an extension that says its own length (RFC 8200 4)."""
    return protocol == 0 or protocol == 43 or protocol == 60 or protocol == 135


cdef inline int parse_ipv6(const uint8_t *p, size_t n, ip_t *out) noexcept nogil:
    """Read an IPv6 header and skip its extension headers (RFC 8200).

    The packet may be cut anywhere after its fixed header, as in a quote; a cut inside the extension
    headers is PARSE_SHORT. A fragment that is not the first has no transport header: PARSE_FOREIGN.
    """
    cdef size_t at = IPV6_HEADER_BYTES
    cdef size_t step
    cdef int _
    memset(out, 0, sizeof(ip_t))
    if n < IPV6_HEADER_BYTES:
        return PARSE_SHORT
    if p[0] >> 4 != 6:
        return PARSE_FOREIGN
    out.version = 6
    out.tos = <uint8_t>(load_be16(p) >> 4 & 0xFF)
    out.flow_label = load_be32(p) & 0xFFFFF
    out.total_bytes = IPV6_HEADER_BYTES + <uint32_t>load_be16(p + 4)
    out.protocol = p[6]
    out.ttl = p[7]
    out.source = p + 8
    out.destination = p + 24
    for _ in range(8):  # more extension headers than any real packet has
        if is_ipv6_extension(out.protocol):
            if at + 8 > n:
                return PARSE_SHORT
            step = (<size_t>p[at + 1] + 1) * 8
        elif out.protocol == 44:  # fragment
            if at + 8 > n:
                return PARSE_SHORT
            if load_be16(p + at + 2) >> 3:
                return PARSE_FOREIGN
            step = 8
        else:
            break
        out.protocol = p[at]
        at += step
        if at > n:
            return PARSE_SHORT
    out.body = p + at
    out.body_bytes = n - at
    return PARSE_OK


cdef inline int parse_icmp(const uint8_t *p, size_t n, icmp_t *out) noexcept nogil:
    """Read an ICMP or ICMPv6 header; the checksum is only read, not verified."""
    memset(out, 0, sizeof(icmp_t))
    if n < ICMP_HEADER_BYTES:
        return PARSE_SHORT
    out.type = p[0]
    out.code = p[1]
    out.checksum = load_be16(p + 2)
    out.ident = load_be16(p + 4)
    out.sequence = load_be16(p + 6)
    out.payload = p + ICMP_HEADER_BYTES
    out.payload_bytes = n - ICMP_HEADER_BYTES
    return PARSE_OK


cdef inline bint is_icmp_error(int version, uint8_t type_) noexcept nogil:
    """Whether a message of this type quotes the packet that caused it."""
    if version == 4:
        return (type_ == ICMP4_UNREACHABLE or type_ == ICMP4_TIME_EXCEEDED
                or type_ == ICMP4_PARAMETER_PROBLEM)
    return ICMP6_UNREACHABLE <= type_ <= ICMP6_PARAMETER_PROBLEM


cdef inline size_t quote_bytes(int version, const uint8_t *p, size_t n) noexcept nogil:
    """Return how many bytes after the header of an ICMP error are quote (RFC 4884 4.5).

    p, n: the whole ICMP message. The rest, if any, is extensions. A length field that is 0 or that
    claims less than the RFC's 128 bytes or more than there is means that all of it is quote.
    """
    cdef size_t present = n - ICMP_HEADER_BYTES if n > ICMP_HEADER_BYTES else 0
    cdef size_t claimed
    if present == 0:
        return 0
    claimed = <size_t>p[5] * 4 if version == 4 else <size_t>p[4] * 8
    if version == 6 and p[0] != ICMP6_UNREACHABLE and p[0] != ICMP6_TIME_EXCEEDED:
        claimed = 0  # there the octet belongs to an MTU or a pointer
    if claimed < 128 or claimed > present:
        return present
    return claimed


cdef inline int parse_quote(int version, const uint8_t *p, size_t n, ip_t *out) noexcept nogil:
    """Read the IP packet an ICMP error quotes. p, n: the whole ICMP message, its type an error."""
    cdef size_t quoted = quote_bytes(version, p, n)
    if quoted == 0:
        return PARSE_SHORT
    if version == 4:
        return parse_ipv4(p + ICMP_HEADER_BYTES, quoted, True, out)
    return parse_ipv6(p + ICMP_HEADER_BYTES, quoted, out)
