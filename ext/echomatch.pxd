"""The echo engine's matching half: a packet belongs to a probe or to nobody."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from echosend cimport echo_cookie, echo_ident
from echostamp cimport echo_received_ns
from echostate cimport (
    BACKEND_DATAGRAM, COOKIE_BYTES, DONE_DUPLICATE, DONE_ERROR, DONE_LATE, DONE_REPLY,
    DONE_TIMEOUT, arrival_t, completion_t, echo_complete, echo_t,
)
from inflight cimport (
    SLOT_ANSWERED, SLOT_IN_FLIGHT, SLOT_NIL, SLOT_RESERVED, SLOT_UNANSWERED, slab_settle,
    slot_t,
)
from packet cimport (
    ICMP4_ECHO_REPLY, ICMP4_ECHO_REQUEST, ICMP6_ECHO_REPLY, ICMP6_ECHO_REQUEST, PARSE_OK,
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, icmp_t, ip_t, is_icmp_error, load_be32, load_be64,
    parse_icmp, parse_quote,
)
from sysnet cimport AF_INET
from tracematch cimport trace_match_error, trace_match_reply


cdef inline bint echo_is_ours(const echo_t *e, uint16_t ident) noexcept nogil:
    """Whether an identifier is one this engine sends."""
    if e.backend == BACKEND_DATAGRAM:
        return ident == e.ident
    return <uint16_t>(ident - e.ident) <= (e.slab.capacity - 1) >> 16


cdef inline uint32_t echo_named(echo_t *e, const icmp_t *icmp) noexcept nogil:
    """Return the slot that the first 16 payload bytes name with a right cookie, or SLOT_NIL.

    Identifier and sequence must be the slot's: a reply returns them, an error quotes them. Counts
    what it refuses: another program's packet, a forged one of ours, one long forgotten.
    """
    cdef uint32_t index
    if load_be64(icmp.payload + 8) != echo_cookie(e, icmp.payload):
        if echo_is_ours(e, icmp.ident):
            e.counters.forged += 1
        else:
            e.counters.foreign += 1
        return SLOT_NIL
    index = load_be32(icmp.payload)
    if icmp.ident != echo_ident(e, index) or icmp.sequence != <uint16_t>index:
        e.counters.forged += 1
        return SLOT_NIL
    if (index >= e.slab.size or e.slab.slots[index].state <= SLOT_RESERVED
            or e.slab.slots[index].serial != load_be32(icmp.payload + 4)):
        e.counters.stale += 1
        return SLOT_NIL
    return index


cdef inline void echo_finish(
    echo_t *e, uint32_t index, uint8_t kind, const arrival_t *a, const icmp_t *outer,
) noexcept nogil:
    """Complete a slot's probe with a packet that arrived, and settle the slot if it was in flight.

    A packet beyond the timeout does not count, however late the timeout itself is noticed.
    """
    cdef slot_t *slot = &e.slab.slots[index]
    cdef uint8_t clocks = slot.clocks
    cdef int64_t rtt = echo_received_ns(e, slot, a, &clocks) - slot.sent_ns
    cdef completion_t *c
    if slot.state == SLOT_IN_FLIGHT and rtt > <int64_t>slot.timer * 1000:
        echo_complete(e, slot, DONE_TIMEOUT)
        slab_settle(&e.slab, index, SLOT_UNANSWERED, a.user_ns)
    if slot.state == SLOT_IN_FLIGHT:
        slab_settle(&e.slab, index, SLOT_ANSWERED if kind == DONE_REPLY else SLOT_UNANSWERED,
                    a.user_ns)
    elif kind == DONE_ERROR:
        e.counters.late_errors += 1
        return
    elif slot.state == SLOT_ANSWERED:
        kind = DONE_DUPLICATE
    else:
        kind = DONE_LATE
        slot.state = SLOT_ANSWERED
    c = echo_complete(e, slot, kind)
    c.rtt_ns = rtt if rtt > 0 else 0
    c.clocks = clocks
    c.icmp_type = outer.type
    c.icmp_code = outer.code
    c.ttl = a.ttl
    c.size = <uint16_t>outer.payload_bytes
    memcpy(c.responder, a.source, 4 if e.family == AF_INET else 16)


cdef inline void echo_match_reply(echo_t *e, const arrival_t *a, const icmp_t *icmp) noexcept nogil:
    """Take an echo reply. It may be cut short, as some responders do, but not otherwise changed."""
    cdef uint32_t index
    cdef size_t rest
    if icmp.payload_bytes < COOKIE_BYTES:
        e.counters.foreign += 1
        return
    index = echo_named(e, icmp)
    if index == SLOT_NIL:
        return
    rest = icmp.payload_bytes - COOKIE_BYTES
    if (icmp.payload_bytes > e.slab.slots[index].size
            or memcmp(icmp.payload + COOKIE_BYTES, e.filler, rest) != 0):
        e.counters.forged += 1
        return
    echo_finish(e, index, DONE_REPLY, a, icmp)


cdef inline uint32_t echo_hinted(echo_t *e, const icmp_t *quoted) noexcept nogil:
    """Return the slot whose request is quoted without its cookie, or SLOT_NIL (IPv4 only).

    Identifier and sequence spell the slot; the checksum covers the cookie, so it is compared too.
    """
    cdef uint32_t index = quoted.sequence
    cdef slot_t *slot
    if e.backend != BACKEND_DATAGRAM:
        index |= <uint32_t><uint16_t>(quoted.ident - e.ident) << 16
    elif quoted.ident != e.ident:
        return SLOT_NIL
    if e.family != AF_INET or index >= e.slab.size:
        return SLOT_NIL
    slot = &e.slab.slots[index]
    if slot.state <= SLOT_RESERVED or slot.checksum != quoted.checksum:
        return SLOT_NIL
    return index


cdef inline void echo_match_quote(
    echo_t *e, const arrival_t *a, const icmp_t *outer, const icmp_t *quoted,
    const uint8_t *destination,
) noexcept nogil:
    """Take an ICMP error about an echo request to `destination`, of which `quoted` is known."""
    cdef uint32_t index
    cdef size_t width = 4 if e.family == AF_INET else 16
    if quoted.type != (ICMP4_ECHO_REQUEST if e.family == AF_INET else ICMP6_ECHO_REQUEST):
        e.counters.foreign += 1
        return
    # A quote of 8 bytes is filled up with zeros before extensions (RFC 4884 5.1); no cookie is 0.
    if quoted.payload_bytes >= COOKIE_BYTES and load_be64(quoted.payload + 8) != 0:
        index = echo_named(e, quoted)
        if index == SLOT_NIL:
            return
    else:
        index = echo_hinted(e, quoted)
    if index == SLOT_NIL or memcmp(e.slab.slots[index].destination, destination, width) != 0:
        e.counters.foreign += 1
        return
    echo_finish(e, index, DONE_ERROR, a, outer)


cdef inline void echo_match_error(echo_t *e, const arrival_t *a, const icmp_t *icmp) noexcept nogil:
    """Take an ICMP error."""
    cdef int version = 4 if e.family == AF_INET else 6
    cdef icmp_t quoted
    cdef ip_t ip
    if e.traces.methods and trace_match_error(e, a, icmp):
        return
    if parse_quote(version, a.icmp, a.icmp_bytes, &ip) != PARSE_OK:
        e.counters.malformed += 1
    elif ip.protocol != (PROTOCOL_ICMP if version == 4 else PROTOCOL_ICMPV6):
        e.counters.foreign += 1
    elif parse_icmp(ip.body, ip.body_bytes, &quoted) != PARSE_OK:
        e.counters.malformed += 1
    else:
        echo_match_quote(e, a, icmp, &quoted, ip.destination)


cdef inline void echo_match(echo_t *e, const arrival_t *a) noexcept nogil:
    """Take one ICMP message."""
    cdef int version = 4 if e.family == AF_INET else 6
    cdef icmp_t icmp
    if parse_icmp(a.icmp, a.icmp_bytes, &icmp) != PARSE_OK:
        e.counters.malformed += 1
    elif icmp.type == (ICMP4_ECHO_REPLY if version == 4 else ICMP6_ECHO_REPLY):
        if e.traces.methods and icmp.ident == e.traces.ident:
            trace_match_reply(e, a, &icmp)
        else:
            echo_match_reply(e, a, &icmp)
    elif is_icmp_error(version, icmp.type):
        echo_match_error(e, a, &icmp)
    else:
        e.counters.foreign += 1
