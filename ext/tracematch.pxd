"""Whose probe an answer belongs to: a trace's, or nobody's.

An ICMP error names a probe by the datagram it quotes. Where the quote holds the cookie, that
decides, and a quote that differs from what was sent in addresses or ports has been translated on
the way. Without it the destination and the probe's own keyed 16 bits must fit, or a UDP checksum be
off by as much as another probe's was.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset

from echosend cimport echo_cookie
from echostate cimport arrival_t, echo_t
from extensions cimport EXTENSION_OK, check_extensions
from inflight cimport SLOT_NIL, SLOT_RESERVED, slab_t, slot_t
from packet cimport (
    ICMP4_TIME_EXCEEDED, ICMP4_UNREACHABLE, ICMP6_TIME_EXCEEDED, ICMP6_UNREACHABLE, PARSE_OK,
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, icmp_t, load_be16, load_be32,
    load_be64,
)
from probequote cimport parse_probe_quote, probe_quote_t
from sysnet cimport AF_INET
from traceprobe cimport (
    TCP_ACK, TCP_HEADER_BYTES, TCP_PORTS, TCP_RST, TCP_SYN, UDP_PORT_FIRST, probe_protocol,
    write_probe_tcp,
)
from tracerun cimport trace_answer, trace_answered
from tracestate cimport (
    ANSWER_ECHO, ANSWER_ERROR, ANSWER_EXTENSION_BAD, ANSWER_RST, ANSWER_SYN_ACK, ANSWER_TRANSLATED,
    HOP_EXPIRED, HOP_REACHED, HOP_REFUSED, METHOD_ICMP, METHOD_UDP, answer_t, probe_trace,
    trace_keep_extension, trace_t,
)

cdef enum:
    NAME_BYTES = 16              # slot, serial, cookie
    TCP_BYTES_MIN = 20
    PORT_UNREACHABLE_4 = 3       # RFC 792
    PORT_UNREACHABLE_6 = 4       # RFC 4443

cdef enum:
    SHIFT_SHOWN = 1              # by one slot
    SHIFT_KNOWN = 2

cdef enum:
    VOUCH_NO = 0
    VOUCH_SENT = 1               # as it was sent
    VOUCH_TRANSLATED = 2


cdef inline bint has_name(const probe_quote_t *q) noexcept nogil:
    """Whether slot, serial and cookie are quoted, or padding in their place. A SYN has none."""
    return q.protocol != PROTOCOL_TCP and q.payload_bytes >= NAME_BYTES


cdef inline bint is_padded(const probe_quote_t *q) noexcept nogil:
    """Whether a quoted cookie may end in padding, which is zeros (RFC 4884 5.1)."""
    return q.payload[NAME_BYTES - 1] == 0


cdef inline bint trace_bits_fit(
    const trace_t *trace, const slot_t *slot, const probe_quote_t *q, bint has_ident,
) noexcept nogil:
    """Whether the probe's own keyed 16 bits are quoted as they were sent. has_ident: IPv4's is.

    Some routers return the IPv4 identification with its bytes swapped. An echo request has no other
    such bits before the cookie.
    """
    cdef uint16_t swapped = <uint16_t>(slot.checksum << 8 | slot.checksum >> 8)
    if trace.request.method == METHOD_ICMP:
        return has_ident and (q.ip_ident == slot.checksum or q.ip_ident == swapped)
    if trace.request.method == METHOD_UDP:
        return q.udp_checksum == slot.checksum
    return <uint16_t>q.tcp_sequence == slot.checksum


cdef inline bint trace_flow_fits(
    const trace_t *trace, const slot_t *slot, uint32_t index, const probe_quote_t *q, bint v4,
) noexcept nogil:
    """Whether the flow is quoted as it was sent, and TCP's checksum, where it is quoted."""
    cdef uint8_t sent[TCP_HEADER_BYTES]
    if trace.request.method == METHOD_ICMP:
        return q.icmp_checksum == trace.checksum
    if q.source_port != trace.source_port or q.destination_port != trace.request.port:
        return False
    if q.tcp_checksum == 0:
        return True
    write_probe_tcp(sent, trace, <uint16_t>index, slot.checksum, v4)
    return q.tcp_checksum == load_be16(sent + 16)


cdef inline bint trace_shift_fits(
    trace_t *trace, const slot_t *slot, uint32_t index, const probe_quote_t *q,
) noexcept nogil:
    """Whether a UDP checksum was changed by as much as that of another probe.

    A translator changes them all by the same: the difference of two addresses and ports (RFC 1624).
    Who cannot see the probes cannot change two of them alike.
    """
    cdef uint16_t shift = <uint16_t>((<uint32_t>q.udp_checksum + 0xFFFF - slot.checksum) % 0xFFFF)
    if trace.shift_shown == SHIFT_KNOWN:
        return shift == trace.shift
    if trace.shift_shown and shift == trace.shift and index != trace.shift_slot:
        trace.shift_shown = SHIFT_KNOWN
        return True
    trace.shift = shift
    trace.shift_slot = index
    trace.shift_shown = SHIFT_SHOWN
    return False


cdef inline int trace_vouch(
    echo_t *e, trace_t *trace, uint32_t index, const probe_quote_t *q, bint has_header,
) noexcept nogil:
    """Say whether a quote is of a slot's probe: a VOUCH_."""
    cdef const slot_t *slot = &e.traces.slab.slots[index]
    cdef bint v4 = e.family == AF_INET
    cdef size_t width = 4 if v4 else 16
    cdef bint is_udp = trace.request.method == METHOD_UDP
    cdef bint to_it = memcmp(q.destination, slot.destination, width) == 0
    cdef bint from_us = not has_header or memcmp(q.source, trace.request.source, width) == 0
    cdef bint flow = trace_flow_fits(trace, slot, index, q, v4)
    cdef bint bits = trace_bits_fit(trace, slot, q, v4 and has_header)
    cdef bint as_sent = to_it and from_us and flow and (bits or not is_udp)
    if has_name(q) and load_be64(q.payload + 8) == echo_cookie(e, q.payload):
        if load_be32(q.payload + 4) != slot.serial:
            return VOUCH_NO
        return VOUCH_SENT if as_sent else VOUCH_TRANSLATED
    if not to_it or (has_name(q) and not is_padded(q)):
        return VOUCH_NO
    if is_udp and not bits:
        bits = flow and trace_shift_fits(trace, slot, index, q)
    elif is_udp:
        bits = flow
    elif v4 and not has_header:
        bits = flow  # an error queue shows no IPv4 identification
    if not bits:
        return VOUCH_NO
    return VOUCH_SENT if as_sent else VOUCH_TRANSLATED


cdef inline bint is_sum_of(const slab_t *slab, uint32_t index, uint16_t checksum) noexcept nogil:
    """Whether a slot's probe has this checksum, as far as there is such a slot."""
    return index < slab.size and slab.slots[index].checksum == checksum


cdef inline uint32_t udp_named(const slab_t *slab, const probe_quote_t *q) noexcept nogil:
    """Return the slot that a UDP probe's IPv4 identification names, also with its bytes swapped."""
    cdef uint32_t index = <uint32_t>q.ip_ident - 1
    cdef uint32_t other = <uint32_t><uint16_t>(q.ip_ident << 8 | q.ip_ident >> 8) - 1
    if not is_sum_of(slab, index, q.udp_checksum) and is_sum_of(slab, other, q.udp_checksum):
        return other
    return index


cdef inline uint32_t trace_named(echo_t *e, const probe_quote_t *q) noexcept nogil:
    """Return the slot that a quote names, or SLOT_NIL when it is of no trace's probe.

    What stands before the cookie decides, where it is quoted: the rest may have been translated.
    """
    cdef bint v4 = e.family == AF_INET
    cdef const slab_t *slab = &e.traces.slab
    cdef uint32_t index = load_be32(q.payload) if has_name(q) else SLOT_NIL
    if index < slab.size and slab.slots[index].serial == load_be32(q.payload + 4):
        return index
    if q.protocol == (PROTOCOL_ICMP if v4 else PROTOCOL_ICMPV6):
        return q.sequence if q.ident == e.traces.ident else SLOT_NIL
    if q.protocol == PROTOCOL_TCP:
        return q.tcp_sequence >> 16
    if q.protocol != PROTOCOL_UDP or q.source_port < UDP_PORT_FIRST:
        return SLOT_NIL
    return udp_named(slab, q) if v4 else SLOT_NIL


cdef inline trace_t *trace_of(echo_t *e, uint32_t index, uint8_t protocol) noexcept nogil:
    """Return the trace whose probe a slot is, or NULL; counts why not."""
    cdef trace_t *trace
    if index >= e.traces.slab.size or e.traces.slab.slots[index].state <= SLOT_RESERVED:
        e.counters.foreign += 1
        return NULL
    trace = probe_trace(&e.traces, e.traces.slab.slots[index].token)
    if trace == NULL:
        e.counters.stale += 1
        return NULL
    if probe_protocol(trace, e.family == AF_INET) != protocol:
        e.counters.foreign += 1
        return NULL
    return trace


cdef inline uint8_t error_meaning(bint v4, uint8_t method, const icmp_t *outer) noexcept nogil:
    """Return the HOP_ bits of an ICMP error about a probe."""
    if outer.type == (ICMP4_TIME_EXCEEDED if v4 else ICMP6_TIME_EXCEEDED):
        return HOP_EXPIRED
    if (method == METHOD_UDP
            and outer.type == (ICMP4_UNREACHABLE if v4 else ICMP6_UNREACHABLE)
            and outer.code == (PORT_UNREACHABLE_4 if v4 else PORT_UNREACHABLE_6)):
        return HOP_REACHED
    return HOP_REFUSED


cdef inline void trace_take_quote(
    echo_t *e, const arrival_t *a, const icmp_t *outer, const probe_quote_t *q, uint32_t index,
    bint has_header,
) noexcept nogil:
    """Take an ICMP error that names a slot of ours."""
    cdef trace_t *trace = trace_of(e, index, q.protocol)
    cdef answer_t *answer
    cdef int vouched
    if trace == NULL:
        return
    vouched = trace_vouch(e, trace, index, q, has_header)
    if vouched == VOUCH_NO:
        e.counters.forged += 1
        return
    answer = trace_answer(
        e, trace, index, a, error_meaning(e.family == AF_INET, trace.request.method, outer))
    if answer != NULL:
        answer.kind = ANSWER_ERROR
        answer.type = outer.type
        answer.code = outer.code
        answer.quoted_ttl = q.ttl
        answer.quoted_tos = q.tos
        answer.mtu = q.mtu
        if vouched == VOUCH_TRANSLATED:
            answer.flags |= ANSWER_TRANSLATED
        if q.extension_bytes:
            if check_extensions(q.extension, q.extension_bytes) != EXTENSION_OK:
                answer.flags |= ANSWER_EXTENSION_BAD
            trace_keep_extension(trace, answer, q.extension, q.extension_bytes)
    trace_answered(e, trace, answer, a.user_ns)


cdef inline bint trace_match_error(
    echo_t *e, const arrival_t *a, const icmp_t *outer,
) noexcept nogil:
    """Take an ICMP error if it is about a trace's probe; whether it was."""
    cdef probe_quote_t q
    cdef uint32_t index
    if parse_probe_quote(4 if e.family == AF_INET else 6, a.icmp, a.icmp_bytes, &q) != PARSE_OK:
        return False
    index = trace_named(e, &q)
    if index == SLOT_NIL:
        return False
    trace_take_quote(e, a, outer, &q, index, True)
    return True


cdef inline bint trace_match_quoted(
    echo_t *e, const arrival_t *a, const icmp_t *outer, const icmp_t *quoted,
    const uint8_t *destination,
) noexcept nogil:
    """The same for an error queue, which gives the quoted ICMP message without its IP header."""
    cdef probe_quote_t q
    if e.traces.methods == 0 or quoted.ident != e.traces.ident:
        return False
    memset(&q, 0, sizeof(q))
    q.protocol = PROTOCOL_ICMP if e.family == AF_INET else PROTOCOL_ICMPV6
    q.destination = destination
    q.source = destination
    q.ident = quoted.ident
    q.sequence = quoted.sequence
    q.icmp_checksum = quoted.checksum
    q.payload = quoted.payload
    q.payload_bytes = <uint32_t>quoted.payload_bytes
    trace_take_quote(e, a, outer, &q, quoted.sequence, False)
    return True


cdef inline void trace_match_reply(
    echo_t *e, const arrival_t *a, const icmp_t *icmp,
) noexcept nogil:
    """Take an echo reply with the traces' identifier."""
    cdef trace_t *trace
    cdef answer_t *answer
    cdef slot_t *slot
    trace = trace_of(e, icmp.sequence, PROTOCOL_ICMP if e.family == AF_INET else PROTOCOL_ICMPV6)
    if trace == NULL:
        return
    slot = &e.traces.slab.slots[icmp.sequence]
    if (icmp.payload_bytes < NAME_BYTES or icmp.payload_bytes > slot.size
            or load_be32(icmp.payload) != icmp.sequence
            or load_be32(icmp.payload + 4) != slot.serial
            or load_be64(icmp.payload + 8) != echo_cookie(e, icmp.payload)):
        e.counters.forged += 1
        return
    answer = trace_answer(e, trace, icmp.sequence, a, HOP_REACHED)
    if answer != NULL:
        answer.kind = ANSWER_ECHO
        answer.type = icmp.type
        answer.code = icmp.code
    trace_answered(e, trace, answer, a.user_ns)


cdef inline void trace_match_segment(
    echo_t *e, const arrival_t *a, const uint8_t *p, size_t n,
) noexcept nogil:
    """Take a TCP segment: a SYN+ACK or RST that acknowledges a probe (RFC 9293 3.5.2)."""
    cdef uint32_t probed, index
    cdef trace_t *trace
    cdef answer_t *answer
    cdef slot_t *slot
    if n < TCP_BYTES_MIN:
        e.counters.malformed += 1
        return
    if (<uint16_t>(load_be16(p + 2) - e.traces.ports) >= TCP_PORTS or not p[13] & TCP_ACK
            or not p[13] & (TCP_SYN | TCP_RST)):
        e.counters.foreign += 1
        return
    probed = load_be32(p + 8) - 1
    index = probed >> 16
    trace = trace_of(e, index, PROTOCOL_TCP)
    if trace == NULL:
        return
    slot = &e.traces.slab.slots[index]
    if (<uint16_t>probed != slot.checksum or load_be16(p) != trace.request.port
            or load_be16(p + 2) != trace.source_port):
        e.counters.forged += 1
        return
    answer = trace_answer(e, trace, index, a, HOP_REACHED)
    if answer != NULL:
        answer.kind = ANSWER_RST if p[13] & TCP_RST else ANSWER_SYN_ACK
        answer.code = p[13]
    trace_answered(e, trace, answer, a.user_ns)
