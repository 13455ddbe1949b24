"""Read what answers a probe: an echo reply, or an ICMP error and the probe it quotes.

RFC 792, RFC 4443, and RFC 4884 for where the quote ends. Pointers go into the caller's bytes. Takes
any bytes whatever and answers with a PARSE_ code.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memset

from packet cimport (
    ICMP4_ECHO_REPLY, ICMP4_ECHO_REQUEST, ICMP6_ECHO_REPLY, ICMP6_ECHO_REQUEST, PARSE_CHECKSUM,
    PARSE_FOREIGN, PARSE_OK, PARSE_SHORT, PROTOCOL_ICMP, PROTOCOL_ICMPV6, icmp_t,
    internet_checksum, ip_t, is_icmp_error, load_be64, parse_icmp, parse_ipv4, parse_quote,
)

cdef enum:
    COOKIE_BYTES = 8  # the first bytes of a probe's payload

ctypedef struct answer_t:
    bint is_error                # an ICMP error; else an echo reply
    uint8_t type
    uint8_t code
    uint8_t reply_ttl            # IPv4 only: IPv6 raw sockets hand out no header
    const uint8_t *responder     # IPv4 only, 4 bytes
    # Of the probe: echoed, or quoted by an error.
    uint16_t ident
    uint16_t sequence
    const uint8_t *cookie        # NULL when an error quotes too little
    # Quoted by an error only.
    uint16_t checksum
    uint8_t quoted_ttl
    uint8_t quoted_tos
    const uint8_t *source        # 4 or 16 bytes
    const uint8_t *destination


cdef inline int parse_quoted_probe(
    int version, const uint8_t *p, size_t n, answer_t *out,
) noexcept nogil:
    """Read the echo request an ICMP error quotes. p, n: the whole ICMP message."""
    cdef ip_t ip
    cdef icmp_t icmp
    cdef int status = parse_quote(version, p, n, &ip)
    if status != PARSE_OK:
        return status
    if ip.protocol != (PROTOCOL_ICMP if version == 4 else PROTOCOL_ICMPV6):
        return PARSE_FOREIGN
    status = parse_icmp(ip.body, ip.body_bytes, &icmp)
    if status != PARSE_OK:
        return status
    if icmp.type != (ICMP4_ECHO_REQUEST if version == 4 else ICMP6_ECHO_REQUEST):
        return PARSE_FOREIGN
    out.ident = icmp.ident
    out.sequence = icmp.sequence
    out.checksum = icmp.checksum
    out.quoted_ttl = ip.ttl
    out.quoted_tos = ip.tos
    out.source = ip.source
    out.destination = ip.destination
    # A router that quotes 8 bytes and adds extensions fills up with zeros (RFC 4884 5.1), and no
    # cookie is zero.
    if icmp.payload_bytes >= COOKIE_BYTES and load_be64(icmp.payload) != 0:
        out.cookie = icmp.payload
    return PARSE_OK


cdef inline int parse_message(
    int version, const uint8_t *p, size_t n, answer_t *out,
) noexcept nogil:
    """Read one ICMP or ICMPv6 message."""
    cdef icmp_t icmp
    cdef int status = parse_icmp(p, n, &icmp)
    if status != PARSE_OK:
        return status
    out.type = icmp.type
    out.code = icmp.code
    if is_icmp_error(version, icmp.type):
        out.is_error = True
        return parse_quoted_probe(version, p, n, out)
    if icmp.type != (ICMP4_ECHO_REPLY if version == 4 else ICMP6_ECHO_REPLY):
        return PARSE_FOREIGN
    if icmp.payload_bytes < COOKIE_BYTES:
        return PARSE_FOREIGN
    out.ident = icmp.ident
    out.sequence = icmp.sequence
    out.cookie = icmp.payload
    return PARSE_OK


cdef inline int parse_answer(
    int version, const uint8_t *p, size_t n, answer_t *out,
) noexcept nogil:
    """Read what a raw ICMP socket received.

    IPv4: the packet with its header; the kernel leaves the ICMP checksum to us. IPv6: the ICMPv6
    message alone, its checksum verified by the kernel (RFC 3542 3.1).
    """
    cdef ip_t ip
    cdef int status
    memset(out, 0, sizeof(answer_t))
    if version == 6:
        return parse_message(6, p, n, out)
    status = parse_ipv4(p, n, False, &ip)
    if status != PARSE_OK:
        return status
    if ip.protocol != PROTOCOL_ICMP:
        return PARSE_FOREIGN
    if ip.body_bytes == 0:
        return PARSE_SHORT
    if internet_checksum(ip.body, ip.body_bytes) != 0:
        return PARSE_CHECKSUM
    out.reply_ttl = ip.ttl
    out.responder = ip.source
    return parse_message(4, ip.body, ip.body_bytes, out)
