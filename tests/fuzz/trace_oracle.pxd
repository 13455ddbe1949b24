"""What may be credited to a trace's probe: the fuzzer's second opinion, from the packets alone.

A probe is known by the bytes it left with. Nothing here reads the engine's slots to judge a match.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from fuzz.feed cimport must
from packet cimport load_be16, load_be32
from tracestate cimport (
    ANSWER_DUPLICATE, ANSWER_ECHO, ANSWER_ERROR, ANSWER_LATE, ANSWER_REFUSED, ANSWER_RST,
    ANSWER_SYN_ACK, METHOD_ICMP, METHOD_TCP, METHOD_UDP, answer_t,
)

cdef enum:
    PROBES_MAX = 1280
    KEPT_BYTES = 72              # the longer IP header, the transport's, slot to balance
    SHOWN_MAX = 512
    QUOTE_AT = 8                 # behind an ICMP header

ctypedef struct sent_t:          # a probe
    uint8_t packet[KEPT_BYTES]   # as sent; the rest of the payload is the pattern
    size_t bytes                 # of all of it
    uint8_t method
    uint32_t trace
    uint32_t slot
    uint32_t serial
    uint8_t ttl
    uint8_t attempt
    int64_t sent_ns
    bint is_refused
    bint is_answered

ctypedef struct shown_t:         # a UDP checksum that has come back changed
    uint32_t probe
    uint16_t shift               # by how much

ctypedef struct wire_t:          # what the engine is being given
    const uint8_t *p             # an ICMP message or a segment; of an error queue: the request
    size_t n
    bint is_segment
    const uint8_t *source        # who sent it
    const uint8_t *destination   # of the request in an error queue; else NULL
    uint8_t hops

ctypedef struct oracle_t:
    int version
    uint32_t count
    uint32_t shown_count
    sent_t probes[PROBES_MAX]
    shown_t shown[SHOWN_MAX]


cdef inline bint same(const uint8_t *a, const uint8_t *b, size_t n) noexcept nogil:
    return memcmp(a, b, n) == 0


cdef inline size_t ip_bytes(int version) noexcept nogil:
    return 20 if version == 4 else 40


cdef inline const uint8_t *transport_of(int version, const sent_t *probe) noexcept nogil:
    return probe.packet + ip_bytes(version)


cdef inline bint is_echo_of(int version, const sent_t *probe, const wire_t *w) noexcept nogil:
    """Whether a reply returns identifier, sequence, and of the payload at least the name."""
    return (probe.method == METHOD_ICMP and not w.is_segment and w.n >= 24
            and w.p[0] == (0 if version == 4 else 129) and w.n <= probe.bytes - ip_bytes(version)
            and same(w.p + 4, transport_of(version, probe) + 4, 20))


cdef inline bint is_segment_of(int version, const sent_t *probe, const wire_t *w) noexcept nogil:
    """Whether a segment comes from where a SYN went, acknowledges it, and is a SYN or RST."""
    cdef const uint8_t *syn = transport_of(version, probe)
    return (probe.method == METHOD_TCP and w.is_segment and w.n >= 20 and same(w.p, syn + 2, 2)
            and same(w.p + 2, syn, 2) and w.p[13] & 16 and w.p[13] & 6
            and load_be32(w.p + 8) == load_be32(syn + 4) + 1)


cdef inline bint is_ident_of(const sent_t *probe, const uint8_t *quote) noexcept nogil:
    """Whether the IPv4 identification is quoted, swapped or not."""
    return same(quote + 4, probe.packet + 4, 2) or (
        quote[4] == probe.packet[5] and quote[5] == probe.packet[4])


cdef inline uint16_t shift_of(uint16_t quoted, uint16_t sent) noexcept nogil:
    """Return by what a one's complement sum was changed (RFC 1624)."""
    return <uint16_t>((<uint32_t>quoted + 0xFFFF - sent) % 0xFFFF)


cdef inline bint was_shown(const oracle_t *o, uint32_t index, uint16_t shift) noexcept nogil:
    """Whether another probe of the same trace has come back changed by as much."""
    cdef uint32_t i
    for i in range(o.shown_count):
        if (o.shown[i].shift == shift and o.shown[i].probe != index
                and o.probes[o.shown[i].probe].trace == o.probes[index].trace):
            return True
    return False


cdef inline bint is_udp_part(
    const oracle_t *o, uint32_t index, const uint8_t *quote, const uint8_t *at, size_t left,
) noexcept nogil:
    """Whether ports and what names a UDP probe are quoted, whatever its checksum."""
    cdef const sent_t *probe = &o.probes[index]
    cdef const uint8_t *own = transport_of(o.version, probe)
    if probe.method != METHOD_UDP or probe.is_refused or not same(at, own, 4):
        return False
    return (left >= 16 and same(at + 8, own + 8, 8)) or (
        o.version == 4 and is_ident_of(probe, quote))


cdef inline bint is_part_of(
    const oracle_t *o, uint32_t index, const wire_t *w, const uint8_t *at, size_t left,
) noexcept nogil:
    """Whether at least 8 bytes of a transport, without the cookie, are a probe's own."""
    cdef const sent_t *probe = &o.probes[index]
    cdef const uint8_t *own = transport_of(o.version, probe)
    cdef const uint8_t *quote = w.p + QUOTE_AT
    if probe.method == METHOD_TCP:
        return same(at + 4, own + 4, 4)
    if probe.method == METHOD_UDP:
        return is_udp_part(o, index, quote, at, left) and (
            same(at + 6, own + 6, 2)
            or was_shown(o, index, shift_of(load_be16(at + 6), load_be16(own + 6))))
    if o.version == 6:
        return False
    if w.destination != NULL:
        return same(at + 2, own + 2, 6)
    return is_ident_of(probe, quote) and (
        same(at + 4, own + 4, 4) or (left >= 16 and same(at + 8, own + 8, 8)))


cdef inline bint is_quoted_by(const oracle_t *o, uint32_t index, const wire_t *w) noexcept nogil:
    """Whether an error quotes a probe: its name anywhere, or less and its destination too."""
    cdef const sent_t *probe = &o.probes[index]
    cdef size_t width = 4 if o.version == 4 else 16
    cdef size_t at = 0 if w.destination != NULL else QUOTE_AT + ip_bytes(o.version)
    cdef const uint8_t *destination = (
        w.destination if w.destination != NULL else w.p + at - width)
    if w.is_segment or w.n < at:
        return False
    while at + 8 <= w.n:
        if (probe.method != METHOD_TCP and w.n - at >= 24
                and same(w.p + at + 8, transport_of(o.version, probe) + 8, 16)):
            return True
        if (same(destination, probe.packet + ip_bytes(o.version) - width, width)
                and is_part_of(o, index, w, w.p + at, w.n - at)):
            return True
        at += 1
    return False


cdef inline void note_shown(oracle_t *o, const wire_t *w) noexcept nogil:
    """Remember by what the UDP checksum of any probe has come back changed."""
    cdef size_t at = QUOTE_AT + ip_bytes(o.version)
    cdef const uint8_t *own
    cdef uint32_t i
    while not w.is_segment and w.destination == NULL and at + 8 <= w.n:
        for i in range(o.count):
            if (o.shown_count < SHOWN_MAX
                    and is_udp_part(o, i, w.p + QUOTE_AT, w.p + at, w.n - at)):
                own = transport_of(o.version, &o.probes[i])
                o.shown[o.shown_count].probe = i
                o.shown[o.shown_count].shift = shift_of(
                    load_be16(w.p + at + 6), load_be16(own + 6))
                o.shown_count += 1
        at += 1


cdef inline uint32_t find_probe(
    const oracle_t *o, uint32_t trace, uint8_t ttl, uint8_t attempt,
) noexcept nogil:
    """Return the probe that an answer names."""
    cdef uint32_t i
    for i in range(o.count):
        if (o.probes[i].trace == trace and o.probes[i].ttl == ttl
                and o.probes[i].attempt == attempt):
            return i
    must(False, b"an answer names a probe that was sent")
    return 0


cdef inline void judge_match(
    const oracle_t *o, uint32_t index, const wire_t *w, const answer_t *a,
) noexcept nogil:
    """Insist that a packet is what it was taken for."""
    cdef const sent_t *probe = &o.probes[index]
    must(w.p != NULL, b"an answer comes by a packet")
    if a.kind == ANSWER_ECHO:
        must(is_echo_of(o.version, probe, w), b"a reply echoes the probe it answers")
    elif a.kind == ANSWER_ERROR:
        must(is_quoted_by(o, index, w), b"an error quotes the probe it is about")
    else:
        must(a.kind == ANSWER_SYN_ACK or a.kind == ANSWER_RST, b"it is one of four")
        must(is_segment_of(o.version, probe, w), b"a segment acknowledges the probe it answers")
        must((a.kind == ANSWER_RST) == (w.p[13] >> 2 & 1), b"and its flags say how")
    must(same(a.responder, w.source, 4 if o.version == 4 else 16),
         b"the responder is who sent the packet")
    must(a.rtt_ns >= 0 and a.sent_ns == probe.sent_ns, b"and took its time")
    must(a.reply_ttl == w.hops, b"and came with a TTL")


cdef inline uint32_t judge(
    oracle_t *o, uint32_t trace, const wire_t *w, const answer_t *a, int64_t timeout_ns,
    bint has_missed,
) noexcept nogil:
    """Insist on all that must hold of one answer, and remember it; returns whose it is.

    has_missed: earlier ones have been counted only, so it may be a duplicate of one of those.
    """
    cdef uint32_t index = find_probe(o, trace, a.ttl, a.attempt)
    cdef sent_t *probe = &o.probes[index]
    if a.kind == ANSWER_REFUSED:
        must(probe.is_refused and a.rtt_ns == -1, b"what is refused, and only that")
        return index
    must(not probe.is_refused, b"what was not sent is not answered")
    judge_match(o, index, w, a)
    must((a.flags & ANSWER_DUPLICATE != 0) == probe.is_answered or (
         has_missed and not probe.is_answered), b"a second answer is a duplicate")
    must((a.flags & ANSWER_LATE != 0) == (
         a.flags & ANSWER_DUPLICATE == 0 and a.rtt_ns > timeout_ns),
         b"a first one beyond the timeout is late")
    probe.is_answered = True
    return index
