"""Answers to traces' probes as the network makes them: right, changed on the way, or forged."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from fuzz.feed cimport feed_byte, feed_t
from fuzz.trace_oracle cimport QUOTE_AT, ip_bytes, sent_t, transport_of
from fuzz.trace_world cimport EXPECT_ANY, EXPECT_NONE, world_t
from inflight cimport SLOT_RESERVED, slot_t
from packet cimport (
    build_ipv4_header, checksum_add, checksum_fold, load_be16, load_be32, store_be16, store_be32,
)
from tracestate cimport METHOD_ICMP, METHOD_TCP, METHOD_UDP

cdef enum:
    CRAFT_BYTES = 3200
    STRUCTURE_MAX = 600

ctypedef struct craft_t:
    uint8_t p[CRAFT_BYTES]
    size_t n
    bint is_segment
    int64_t expected             # EXPECT_ or whose answer it must be


cdef inline bint is_remembered(world_t *w, uint32_t index) noexcept nogil:
    """Whether a probe's answer would be taken: its trace runs, and its slot is still its own."""
    cdef const sent_t *probe = &w.o.probes[index]
    cdef const slot_t *slot = &w.e.traces.slab.slots[probe.slot]
    return (not probe.is_refused and not w.models[probe.trace].is_over
            and slot.state > SLOT_RESERVED and slot.serial == probe.serial)


cdef inline size_t write_packet(const world_t *w, const sent_t *probe, uint8_t *out) noexcept nogil:
    """Write a probe as it left; returns its length."""
    cdef size_t payload = ip_bytes(w.o.version) + 8, i
    cdef size_t head = payload + (16 if probe.method == METHOD_TCP else 18)
    memcpy(out, probe.packet, head)
    for i in range(head, probe.bytes):
        out[i] = <uint8_t>(i - payload - 2)
    return probe.bytes


cdef inline void mutate(feed_t *feed, uint8_t *p, size_t n, uint8_t times) noexcept nogil:
    """Change a few bytes, near the start or anywhere."""
    cdef uint8_t _, far
    cdef size_t at
    for _ in range(times):
        far = feed_byte(feed)
        at = <size_t>(far & 127) if far & 128 else <size_t>(far & 63) << 5 | feed_byte(feed) & 31
        if at < n:
            p[at] ^= feed_byte(feed)


cdef inline void translate(uint8_t *checksum, uint16_t shift) noexcept nogil:
    """Change a checksum as a translator does, which changes every one by as much (RFC 1624)."""
    store_be16(checksum, <uint16_t>((<uint32_t>load_be16(checksum) + shift) % 0xFFFF))


cdef inline size_t quoted_bytes(uint8_t choice) noexcept nogil:
    """How much of a transport is quoted: all of it, the least, with half a name or a whole one."""
    cdef size_t sizes[8]
    sizes[:] = [CRAFT_BYTES, 8, 16, 18, 23, 24, 28, 64]
    return sizes[choice & 7]


cdef inline size_t write_structure(feed_t *feed, uint8_t *out) noexcept nogil:
    """Write an extension structure, of one object: right, bad, or longer than is kept."""
    cdef uint8_t how = feed_byte(feed)
    cdef size_t n = STRUCTURE_MAX if how & 3 == 3 else 12
    memset(out, 0, n)
    out[0] = 0x20 if how & 4 else 0x30
    store_be16(out + 4, <uint16_t>(n - 4))
    if how & 8:
        store_be16(out + 2, <uint16_t>(~checksum_fold(checksum_add(0, out, n)) & 0xFFFF))
    return n


cdef inline bint is_enough(
    const world_t *w, const sent_t *probe, size_t quoted, bint is_padded,
) noexcept nogil:
    """Whether so much of a probe names it; where we write no identification it takes more."""
    if probe.method == METHOD_TCP or quoted >= 24 or (w.o.version == 4 and not w.is_datagram):
        return True
    return probe.method == METHOD_UDP and is_padded and quoted >= 16


cdef inline uint8_t error_type(int version, uint8_t choice) noexcept nogil:
    """Expired three times of four, unreachable, too big or a wrong parameter."""
    cdef uint8_t types[8]
    types[:] = [11, 11, 11, 3, 3, 12, 11, 3]
    if version == 6:
        types[:] = [3, 3, 3, 1, 1, 4, 2, 1]
    return types[choice & 7]


cdef inline void craft_error(world_t *w, feed_t *feed, uint32_t index, craft_t *c) noexcept nogil:
    """Quote a probe, more or less of it, padded or not, changed on the way or not."""
    cdef const sent_t *probe = &w.o.probes[index]
    cdef uint8_t how = feed_byte(feed), what = feed_byte(feed)
    cdef size_t header = ip_bytes(w.o.version)
    cdef size_t n = write_packet(w, probe, c.p + QUOTE_AT)
    cdef size_t quoted = quoted_bytes(how)
    cdef uint8_t swapped = c.p[QUOTE_AT + 4]
    quoted = quoted if quoted < n - header else n - header
    c.expected = <int64_t>index if is_remembered(w, index) and is_enough(
        w, probe, quoted, how & 8 != 0) else EXPECT_ANY
    memset(c.p, 0, QUOTE_AT)
    c.p[0] = error_type(w.o.version, what)
    c.p[1] = what >> 3 & 7
    c.n = QUOTE_AT + header + quoted
    if how & 16 and w.o.version == 4 and probe.method != METHOD_TCP:
        c.p[QUOTE_AT + 4] = c.p[QUOTE_AT + 5]
        c.p[QUOTE_AT + 5] = swapped
    if how & 32:
        mutate(feed, c.p + QUOTE_AT, header + quoted, 1 + (how >> 6))
        c.expected = EXPECT_ANY
    if what & 64 and probe.method == METHOD_UDP:
        translate(c.p + QUOTE_AT + header + 6, 0x1234 if what & 128 else 1)
        c.expected = c.expected if quoted >= 24 else EXPECT_ANY
    if how & 8 and header + quoted <= 128 and (w.o.version == 4 or c.p[0] != 2 and c.p[0] != 4):
        memset(c.p + c.n, 0, 128 - header - quoted)
        c.p[5 if w.o.version == 4 else 4] = 32 if w.o.version == 4 else 16
        c.n = QUOTE_AT + 128
        c.n += write_structure(feed, c.p + c.n)
    elif quoted < 24 and how & 8:
        c.expected = EXPECT_ANY


cdef inline void craft_forgery(world_t *w, feed_t *feed, uint32_t index, craft_t *c) noexcept nogil:
    """Quote all of a probe with a changed cookie, but for its last byte: that may be padding."""
    cdef const sent_t *probe = &w.o.probes[index]
    cdef size_t cookie = QUOTE_AT + ip_bytes(w.o.version) + 16
    cdef uint8_t mask
    memset(c.p, 0, QUOTE_AT)
    c.p[0] = error_type(w.o.version, 0)
    c.n = QUOTE_AT + write_packet(w, probe, c.p + QUOTE_AT)
    c.expected = EXPECT_NONE
    if probe.method == METHOD_TCP:
        c.p[cookie - 10] ^= feed_byte(feed) | 1  # the lower half of the sequence number
        return
    mask = feed_byte(feed)
    c.p[cookie + (mask & 3)] ^= mask | 1
    if c.p[cookie + 7] == 0:
        c.expected = EXPECT_ANY


cdef inline void craft_reply(world_t *w, feed_t *feed, uint32_t index, craft_t *c) noexcept nogil:
    """Answer as a destination does: an echo reply, a segment, an unreachable port."""
    cdef const sent_t *probe = &w.o.probes[index]
    cdef size_t header = ip_bytes(w.o.version)
    cdef uint8_t how = feed_byte(feed)
    cdef uint8_t whole[CRAFT_BYTES]
    c.expected = <int64_t>index if is_remembered(w, index) else EXPECT_NONE
    c.n = write_packet(w, probe, whole) - header
    if probe.method == METHOD_ICMP:
        memcpy(c.p, whole + header, c.n)
        c.p[0] = 0 if w.o.version == 4 else 129
        if how & 1 and c.n > 24:
            c.n = 24
    elif probe.method == METHOD_UDP:
        memset(c.p, 0, QUOTE_AT)
        c.p[0] = 3 if w.o.version == 4 else 1
        c.p[1] = 3 if w.o.version == 4 else 4
        memcpy(c.p + QUOTE_AT, whole, header + c.n)
        c.n += QUOTE_AT + header
    else:
        c.is_segment = True
        c.n = 20
        memset(c.p, 0, c.n)
        memcpy(c.p, whole + header + 2, 2)
        memcpy(c.p + 2, whole + header, 2)
        store_be32(c.p + 8, load_be32(whole + header + 4) + 1)
        c.p[13] = 0x14 if how & 1 else 0x12
    if how & 32:
        mutate(feed, c.p, c.n, 1 + (how >> 6))
        c.expected = EXPECT_ANY


cdef inline void craft_noise(feed_t *feed, craft_t *c) noexcept nogil:
    """Take bytes as they are fed."""
    cdef size_t i
    cdef uint8_t how = feed_byte(feed)
    c.is_segment = how & 1
    c.n = how >> 1
    c.expected = EXPECT_ANY
    for i in range(c.n):
        c.p[i] = feed_byte(feed)


cdef inline void craft(world_t *w, feed_t *feed, uint8_t what, craft_t *c) noexcept nogil:
    """Make an answer to one of the probes, the newest first, or what is none."""
    cdef uint32_t index
    c.is_segment = False
    if w.o.count == 0 or what & 7 == 7:
        craft_noise(feed, c)
        return
    index = w.o.count - 1 - feed_byte(feed) % w.o.count
    if what & 7 < 4:
        craft_error(w, feed, index, c)
    elif what & 7 == 4:
        craft_forgery(w, feed, index, c)
    else:
        craft_reply(w, feed, index, c)


cdef inline size_t craft_wrap(
    world_t *w, feed_t *feed, uint8_t how, craft_t *c, const uint8_t *responder, uint8_t *out,
) noexcept nogil:
    """Put a message where a socket hands it out: raw IPv4 with a header and a right checksum."""
    cdef uint8_t here[16]
    cdef size_t header = 0
    memset(here, 9, 16)
    if w.o.version == 4 and (c.is_segment or not w.is_datagram):
        header = 20
        build_ipv4_header(out, responder, here, <uint16_t>(header + c.n),
                          6 if c.is_segment else 1, 0, 60, 1, False)
        if c.n >= 4 and not c.is_segment and how & 16 == 0:
            store_be16(c.p + 2, 0)
            store_be16(c.p + 2, <uint16_t>(
                ~checksum_fold(checksum_add(0, c.p, c.n)) & 0xFFFF))
    memcpy(out + header, c.p, c.n)
    if how & 32:
        mutate(feed, out, header + c.n if header + c.n < 48 else 48, 1)
        c.expected = EXPECT_ANY
    if how & 16 and header and not c.is_segment:
        c.expected = EXPECT_ANY
    return header + c.n
