"""The probe that an ICMP error quotes: an echo request, a UDP datagram or a TCP segment.

RFC 792, 4443, 768, 9293 for the headers, RFC 4884 for where the quote ends. Pointers go into the
caller's bytes, and nothing is read past `n`.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from extensions cimport find_extensions
from packet cimport (
    ICMP4_ECHO_REQUEST, ICMP4_UNREACHABLE, ICMP6_ECHO_REQUEST, ICMP6_TOO_BIG, ICMP_HEADER_BYTES,
    PARSE_FOREIGN, PARSE_OK, PARSE_SHORT, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP,
    PROTOCOL_UDP, ip_t, load_be16, load_be32, parse_ipv4, parse_ipv6,
)

cdef enum:
    QUOTE_TRANSPORT_BYTES = 8      # the least that a router quotes behind the IP header (RFC 792)
    QUOTE_TCP_BYTES = 20           # a TCP header without options
    QUOTE_CHECKSUM_BYTES = 18      # of it up to its checksum
    FRAGMENTATION_NEEDED = 4       # the code of ICMP4_UNREACHABLE that names an MTU (RFC 1191)

ctypedef struct probe_quote_t:     # 80 bytes: gcc clears more by `rep stos`, which is slow to start
    uint8_t version                # 4 or 6
    uint8_t protocol               # PROTOCOL_
    uint8_t ttl                    # IPv6: hop limit
    uint8_t tos                    # IPv6: traffic class
    bint is_cut                    # the quote ends inside the transport's first 8 bytes
    uint32_t flow_label            # IPv6 only
    uint16_t ip_ident              # IPv4 only
    uint16_t ident                 # ICMP only
    uint16_t sequence
    uint16_t icmp_checksum
    uint16_t source_port           # UDP and TCP
    uint16_t destination_port
    uint16_t udp_length            # UDP only
    uint16_t udp_checksum
    uint16_t tcp_checksum          # TCP only; 0: not quoted, or padding in its place
    uint32_t tcp_sequence
    uint32_t payload_bytes
    const uint8_t *payload         # NULL when nothing of it is quoted
    const uint8_t *source          # 4 or 16 bytes
    const uint8_t *destination
    # Of the error itself, whatever it quotes.
    const uint8_t *extension       # NULL when there is none
    uint32_t extension_bytes
    uint32_t mtu                   # that a too-big message names, else 0


cdef inline uint32_t named_mtu(int version, const uint8_t *icmp) noexcept nogil:
    """Return the MTU that an ICMP error of at least 8 bytes names, else 0 (RFC 1191, 4443 3.2)."""
    if version == 6:
        return load_be32(icmp + 4) if icmp[0] == ICMP6_TOO_BIG else 0
    if icmp[0] == ICMP4_UNREACHABLE and icmp[1] == FRAGMENTATION_NEEDED:
        return load_be16(icmp + 6)
    return 0


cdef inline void take_quoted_ip(const ip_t *ip, probe_quote_t *out) noexcept nogil:
    out.version = <uint8_t>ip.version
    out.protocol = ip.protocol
    out.ttl = ip.ttl
    out.tos = ip.tos
    out.ip_ident = ip.ident
    out.flow_label = ip.flow_label
    out.source = ip.source
    out.destination = ip.destination


cdef inline size_t quoted_transport_bytes(const ip_t *ip, const uint8_t *start) noexcept nogil:
    """Return how much of a quoted datagram's transport is there, padding left out.

    start: of the datagram. Padding (RFC 4884 4.5) lies behind the end that the IP header claims.
    Zeros in place of a rest that was not quoted cannot be told from payload here.
    """
    cdef size_t skipped = ip.body - start
    cdef size_t claimed = ip.total_bytes - skipped if ip.total_bytes > skipped else 0
    return claimed if claimed < ip.body_bytes else ip.body_bytes


cdef inline void take_quoted_payload(
    const ip_t *ip, size_t header, size_t transport, probe_quote_t *out,
) noexcept nogil:
    """Set the payload. header: of the transport; transport: quoted of it, header included."""
    if transport > header:
        out.payload = ip.body + header
        out.payload_bytes = <uint32_t>(transport - header)


cdef inline int take_quoted_echo(
    const ip_t *ip, size_t transport, probe_quote_t *out,
) noexcept nogil:
    if ip.body[0] != (ICMP4_ECHO_REQUEST if ip.version == 4 else ICMP6_ECHO_REQUEST):
        return PARSE_FOREIGN
    out.icmp_checksum = load_be16(ip.body + 2)
    out.ident = load_be16(ip.body + 4)
    out.sequence = load_be16(ip.body + 6)
    take_quoted_payload(ip, QUOTE_TRANSPORT_BYTES, transport, out)
    return PARSE_OK


cdef inline int take_quoted_udp(
    const ip_t *ip, size_t transport, probe_quote_t *out,
) noexcept nogil:
    out.source_port = load_be16(ip.body)
    out.destination_port = load_be16(ip.body + 2)
    out.udp_length = load_be16(ip.body + 4)
    out.udp_checksum = load_be16(ip.body + 6)
    take_quoted_payload(ip, QUOTE_TRANSPORT_BYTES, transport, out)
    return PARSE_OK


cdef inline int take_quoted_tcp(
    const ip_t *ip, size_t transport, probe_quote_t *out,
) noexcept nogil:
    cdef size_t header
    out.source_port = load_be16(ip.body)
    out.destination_port = load_be16(ip.body + 2)
    out.tcp_sequence = load_be32(ip.body + 4)
    if transport >= QUOTE_CHECKSUM_BYTES:
        out.tcp_checksum = load_be16(ip.body + 16)
    if transport > QUOTE_TCP_BYTES:
        header = <size_t>(ip.body[12] >> 4) * 4
        if header >= QUOTE_TCP_BYTES:
            take_quoted_payload(ip, header, transport, out)
    return PARSE_OK


cdef inline int parse_probe_quote(
    int version, const uint8_t *icmp, size_t n, probe_quote_t *out,
) noexcept nogil:
    """Read an ICMP error and the probe it quotes. icmp, n: the whole message, its type an error.

    PARSE_SHORT: the quote ends before the first 8 bytes of the transport do; is_cut says that at
    least the IP header was there. PARSE_FOREIGN: it quotes something that is no probe, or a
    fragment that is not the first. Some routers have changed the length of the IP header that they
    quote, so it bounds the payload only.
    """
    cdef const uint8_t *start
    cdef ip_t ip
    cdef size_t quoted, transport
    cdef int status
    memset(out, 0, sizeof(probe_quote_t))
    if n <= ICMP_HEADER_BYTES:
        return PARSE_SHORT
    start = icmp + ICMP_HEADER_BYTES
    out.mtu = named_mtu(version, icmp)
    out.extension_bytes = <uint32_t>find_extensions(version, icmp, n, &out.extension)
    quoted = n - ICMP_HEADER_BYTES - out.extension_bytes
    if version == 4:
        status = parse_ipv4(start, quoted, True, &ip)
    else:
        status = parse_ipv6(start, quoted, &ip)
    if status != PARSE_OK:
        return status
    take_quoted_ip(&ip, out)
    out.is_cut = ip.body_bytes < QUOTE_TRANSPORT_BYTES
    if out.is_cut:
        return PARSE_SHORT
    transport = quoted_transport_bytes(&ip, start)
    if ip.protocol == (PROTOCOL_ICMP if version == 4 else PROTOCOL_ICMPV6):
        return take_quoted_echo(&ip, transport, out)
    if ip.protocol == PROTOCOL_UDP:
        return take_quoted_udp(&ip, transport, out)
    if ip.protocol == PROTOCOL_TCP:
        return take_quoted_tcp(&ip, transport, out)
    return PARSE_FOREIGN
