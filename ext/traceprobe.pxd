"""The packets of a trace: ICMP echo requests, UDP datagrams, TCP SYNs with a constant flow.

What routers balance by is the same in every probe of a flow (Augustin et al., "Avoiding traceroute
anomalies with Paris traceroute", 2006), and a keyed hash of the destination and the flow's number,
so nobody off the path can guess it and two traces take the same path:

    ICMP  type, code, checksum (the hash) and identifier; the sequence names the probe
    UDP   ports (the source's is the hash); the IPv4 identification, less one, names the probe,
          and the checksum is the probe's own keyed 16 bits
    TCP   ports; the sequence number is the probe's name and its own keyed 16 bits
    IPv6  the flow label too

The payload of ICMP and UDP begins with slot (4), serial (4), cookie (8) as a ping's, and a balance
(2) that makes the checksum come out as wanted; the rest is filler. IPv4's identification of an ICMP
probe is its own keyed 16 bits: a router that quotes 8 bytes of it quotes no more of them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cookie cimport sipkey_t, siphash24
from packet cimport (
    ICMP4_ECHO_REQUEST, ICMP6_ECHO_REQUEST, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, build_ipv4_header, build_ipv6_header,
    checksum_add, checksum_fold, echo_header, pseudo_header_sum, store_be16, store_be32,
    store_summed,
)
from tracestate cimport METHOD_ICMP, METHOD_TCP, METHOD_UDP, TRACE_DF, trace_t, traces_t

cdef enum:
    PAYLOAD_MIN = 18             # slot, serial, cookie, balance
    TCP_HEADER_BYTES = 24        # with one option
    TCP_SYN = 0x02
    TCP_RST = 0x04
    TCP_ACK = 0x10
    TCP_WINDOW = 64240
    TCP_MSS = 1460               # a SYN without the option looks like a scan, and some drop it
    UDP_HEADER_BYTES = 8
    PROBE_HEAD_BYTES = 26        # ICMP or UDP header, name, balance
    UDP_PORT_FIRST = 32768       # of source ports; the last is 65535
    TCP_PORTS = 1024             # source ports of one engine: its socket's filter lets in only them


cdef inline void trace_draw_flow(
    const traces_t *traces, sipkey_t key, trace_t *trace, bint v4,
) noexcept nogil:
    """Derive what is constant in a flow.

    The checksum is neither 0 nor 0xFFFF, which one's complement cannot tell apart.
    """
    cdef uint8_t text[21]
    cdef uint64_t hashed
    memcpy(text, trace.request.destination, 16)
    store_be32(text + 16, trace.request.flow)
    text[20] = trace.request.method
    hashed = siphash24(key, text, sizeof(text))
    trace.checksum = <uint16_t>(1 + <uint32_t>hashed % 0xFFFE)
    trace.flow_label = 0 if v4 else <uint32_t>(1 + (hashed >> 32) % 0xFFFFF)
    if trace.request.method == METHOD_TCP:
        trace.source_port = traces.ports + <uint16_t>(hashed & (TCP_PORTS - 1))
    else:
        trace.source_port = <uint16_t>(UDP_PORT_FIRST | (hashed & (UDP_PORT_FIRST - 1)))


cdef inline uint16_t probe_check(uint64_t cookie) noexcept nogil:
    """Return a probe's own keyed 16 bits, neither 0 nor 0xFFFF."""
    return <uint16_t>(1 + <uint32_t>cookie % 0xFFFE)


cdef inline uint8_t probe_protocol(const trace_t *trace, bint v4) noexcept nogil:
    if trace.request.method == METHOD_ICMP:
        return PROTOCOL_ICMP if v4 else PROTOCOL_ICMPV6
    return PROTOCOL_UDP if trace.request.method == METHOD_UDP else PROTOCOL_TCP


cdef inline size_t probe_bytes(const trace_t *trace) noexcept nogil:
    """Return the length of a probe after its IP header."""
    if trace.request.method == METHOD_TCP:
        return TCP_HEADER_BYTES
    return UDP_HEADER_BYTES + trace.request.size  # ICMP's header has 8 bytes too


cdef inline size_t write_probe_ip(
    uint8_t *at, const trace_t *trace, int ttl, uint16_t ident, bint v4,
) noexcept nogil:
    """Write the IP header; returns its length.

    ident: IPv4's identification; 0 would become one of the kernel's (raw(7)).
    """
    cdef size_t body = probe_bytes(trace)
    if v4:
        build_ipv4_header(
            at, trace.request.source, trace.request.destination,
            <uint16_t>(IPV4_HEADER_BYTES + body), probe_protocol(trace, True), trace.request.tos,
            <uint8_t>ttl, ident, trace.request.flags & TRACE_DF)
        return IPV4_HEADER_BYTES
    build_ipv6_header(
        at, trace.request.source, trace.request.destination, <uint16_t>body,
        probe_protocol(trace, False), trace.request.tos, <uint8_t>ttl, trace.flow_label)
    return IPV6_HEADER_BYTES


cdef inline uint64_t probe_pseudo_sum(const trace_t *trace, bint v4) noexcept nogil:
    """Return the running sum of the pseudo header; ICMP over IPv4 has none."""
    if v4 and trace.request.method == METHOD_ICMP:
        return 0
    return pseudo_header_sum(
        trace.request.source, trace.request.destination, 4 if v4 else 16,
        <uint32_t>probe_bytes(trace), probe_protocol(trace, v4))


cdef inline void write_probe_tcp(
    uint8_t *at, const trace_t *trace, uint16_t slot, uint16_t check, bint v4,
) noexcept nogil:
    memset(at, 0, TCP_HEADER_BYTES)
    store_be16(at, trace.source_port)
    store_be16(at + 2, trace.request.port)
    store_be32(at + 4, <uint32_t>slot << 16 | check)
    at[12] = (TCP_HEADER_BYTES // 4) << 4
    at[13] = TCP_SYN
    store_be16(at + 14, TCP_WINDOW)
    at[20] = 2  # maximum segment size (RFC 9293 3.7.1)
    at[21] = 4
    store_be16(at + 22, TCP_MSS)
    store_be16(at + 16, <uint16_t>(~checksum_fold(checksum_add(
        probe_pseudo_sum(trace, v4), at, TCP_HEADER_BYTES)) & 0xFFFF))


cdef inline size_t write_probe(
    uint8_t *at, const trace_t *trace, uint16_t ident, uint32_t slot, uint32_t serial,
    uint64_t cookie, uint64_t rest_sum, bint v4,
) noexcept nogil:
    """Write what follows the IP header, up to the filler; returns its length.

    rest_sum: the checksum's running sum of the filler. The balance makes the checksum that is
    already in the packet the right one.
    """
    cdef uint64_t header, total = probe_pseudo_sum(trace, v4) + rest_sum
    if trace.request.method == METHOD_TCP:
        write_probe_tcp(at, trace, <uint16_t>slot, probe_check(cookie), v4)
        return TCP_HEADER_BYTES
    if trace.request.method == METHOD_ICMP:
        header = echo_header(
            ICMP4_ECHO_REQUEST if v4 else ICMP6_ECHO_REQUEST, trace.checksum, ident,
            <uint16_t>slot)
    else:
        header = (<uint64_t>trace.source_port << 48 | <uint64_t>trace.request.port << 32
                  | <uint64_t>probe_bytes(trace) << 16 | probe_check(cookie))
    total = store_summed(total, at, header)
    total = store_summed(total, at + 8, <uint64_t>slot << 32 | serial)
    total = store_summed(total, at + 16, cookie)
    store_be16(at + 24, <uint16_t>(~checksum_fold(total) & 0xFFFF))
    return PROBE_HEAD_BYTES
