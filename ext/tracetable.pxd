"""Traces in flight: slots, the identity of each probe, and whose answer a packet is.

A probe is an ICMP echo request with 16 bytes of payload:

    identifier   slot of the trace + a base drawn per table: constant within a trace
    sequence     generation of the slot (4 bits), TTL (8), attempt (4)
    checksum     keyed hash of the destination: constant within a trace and from trace to trace
    payload      cookie (8 bytes), balance (2) that makes the checksum come out so, zeros (6)

Constant checksum and identifier keep every probe of a trace on one path through routers that
balance by flow (Paris traceroute). An answer is ours if what it quotes fits: identifier and
sequence name a probe that was sent, the checksum is the destination's (16 bits nobody can guess,
inside the 8 bytes of ICMP every router quotes), and the cookie, where it is quoted, is right. An
echo reply always carries the cookie.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from cookie cimport sipkey_t, siphash24
from packet cimport (
    ICMP4_ECHO_REQUEST, ICMP6_ECHO_REQUEST, ICMP_HEADER_BYTES, IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES, PROTOCOL_ICMP, PROTOCOL_ICMPV6, build_icmp_header, build_ipv4_header,
    build_ipv6_header, checksum_add, checksum_fold, load_be64, pseudo_header_sum, store_be16,
    store_be64,
)
from quote cimport answer_t

cdef enum:
    TRACES_LIMIT = 65536  # the identifier has 16 bits
    ATTEMPTS_LIMIT = 16   # 4 bits of the sequence
    GENERATIONS = 16      # 4 bits of the sequence
    PAYLOAD_BYTES = 16    # cookie, balance, zeros: also RFC 792's shortest useful echo
    PACKET_BYTES_MAX = IPV6_HEADER_BYTES + ICMP_HEADER_BYTES + PAYLOAD_BYTES

cdef enum:
    MATCH_OURS = 0
    MATCH_FOREIGN = -1  # names no probe of ours that was sent
    MATCH_FORGED = -2   # names one, but checksum, cookie or destination are not its own

cdef enum:
    PROBE_UNSENT = 0
    PROBE_QUEUED = 1    # or refused by the kernel
    PROBE_SENT = 2
    PROBE_ANSWERED = 3

ctypedef struct probe_t:
    int64_t sent_ns  # CLOCK_MONOTONIC, when the kernel took it
    uint8_t state

ctypedef struct trace_t:
    uint64_t serial        # unique per table; 0: the slot is free
    int64_t last_sent_ns
    probe_t *probes        # (last_ttl - first_ttl + 1) rows of `attempts`
    uint32_t waiting       # in the send queue
    uint32_t scope_id
    uint32_t flow_label
    uint16_t checksum
    uint8_t generation
    uint8_t first_ttl
    uint8_t last_ttl
    uint8_t attempts
    uint8_t source[16]
    uint8_t destination[16]

ctypedef struct table_t:
    int version
    size_t address_bytes
    sipkey_t key
    uint16_t ident_base
    uint32_t traces_max
    uint32_t free_count
    uint32_t free_head     # the slot freed longest ago is taken first
    uint32_t *free_ring
    uint64_t serial_next
    trace_t *slots

ctypedef struct match_t:
    trace_t *trace
    probe_t *probe
    uint32_t slot
    uint8_t ttl
    uint8_t attempt
    bint is_translated     # quoted source or destination is not what was sent


cdef inline int table_init(
    table_t *table, int version, uint32_t traces_max, sipkey_t key, uint16_t ident_base,
) noexcept nogil:
    """Allocate; 0, or -1 without memory. table_free either way."""
    cdef uint32_t i
    memset(table, 0, sizeof(table_t))
    table.version = version
    table.address_bytes = 4 if version == 4 else 16
    table.key = key
    table.ident_base = ident_base
    table.traces_max = traces_max
    table.serial_next = 1
    table.slots = <trace_t *>calloc(traces_max, sizeof(trace_t))
    table.free_ring = <uint32_t *>calloc(traces_max, sizeof(uint32_t))
    if table.slots == NULL or table.free_ring == NULL:
        return -1
    table.free_count = traces_max
    for i in range(traces_max):
        table.free_ring[i] = i
    return 0


cdef inline void table_free(table_t *table) noexcept nogil:
    cdef uint32_t i
    if table.slots != NULL:
        for i in range(table.traces_max):
            free(table.slots[i].probes)
    free(table.slots)
    free(table.free_ring)
    table.slots = NULL
    table.free_ring = NULL


cdef inline uint64_t trace_handle(const trace_t *trace, uint32_t slot) noexcept nogil:
    """Return the number callers know a trace by; never reused."""
    return trace.serial << 16 | slot


cdef inline trace_t *trace_find(table_t *table, uint64_t handle) noexcept nogil:
    """Return the live trace of a handle, or NULL."""
    cdef uint32_t slot = <uint32_t>(handle & 0xFFFF)
    cdef uint64_t serial = handle >> 16
    if slot >= table.traces_max or serial == 0 or table.slots[slot].serial != serial:
        return NULL
    return &table.slots[slot]


cdef inline void trace_flow(table_t *table, trace_t *trace) noexcept nogil:
    """Derive checksum and flow label from the destination, so that its path stays comparable.

    The checksum is neither 0 nor 0xFFFF, which one's complement cannot tell apart.
    """
    cdef uint64_t flow = siphash24(table.key, trace.destination, table.address_bytes)
    trace.checksum = <uint16_t>(1 + flow % 0xFFFE)
    trace.flow_label = <uint32_t>(1 + (flow >> 32) % 0xFFFFF)


cdef inline trace_t *trace_begin(
    table_t *table, const uint8_t *source, const uint8_t *destination,
    uint8_t first_ttl, uint8_t last_ttl, uint8_t attempts,
) noexcept nogil:
    """Take a slot; NULL when none is free or there is no memory."""
    cdef uint32_t slot
    cdef trace_t *trace
    cdef probe_t *probes
    cdef uint8_t generation
    if table.free_count == 0:
        return NULL
    probes = <probe_t *>calloc(<size_t>(last_ttl - first_ttl + 1) * attempts, sizeof(probe_t))
    if probes == NULL:
        return NULL
    slot = table.free_ring[table.free_head]
    table.free_head = (table.free_head + 1) % table.traces_max
    table.free_count -= 1
    trace = &table.slots[slot]
    generation = (trace.generation + 1) % GENERATIONS
    memset(trace, 0, sizeof(trace_t))
    trace.generation = generation
    trace.serial = table.serial_next
    table.serial_next += 1
    trace.probes = probes
    trace.first_ttl = first_ttl
    trace.last_ttl = last_ttl
    trace.attempts = attempts
    memcpy(trace.source, source, table.address_bytes)
    memcpy(trace.destination, destination, table.address_bytes)
    trace_flow(table, trace)
    return trace


cdef inline void trace_end(table_t *table, trace_t *trace) noexcept nogil:
    """Give the slot back; answers that still come are foreign."""
    cdef uint32_t slot = <uint32_t>(trace - table.slots)
    free(trace.probes)
    trace.probes = NULL
    trace.serial = 0
    table.free_ring[(table.free_head + table.free_count) % table.traces_max] = slot
    table.free_count += 1


cdef inline probe_t *trace_probe(trace_t *trace, int ttl, int attempt) noexcept nogil:
    """Return the probe's record, or NULL when the trace has no such probe."""
    if ttl < trace.first_ttl or ttl > trace.last_ttl or attempt >= trace.attempts:
        return NULL
    return &trace.probes[(ttl - trace.first_ttl) * trace.attempts + attempt]


cdef inline uint16_t probe_sequence(const trace_t *trace, int ttl, int attempt) noexcept nogil:
    return <uint16_t>(trace.generation << 12 | ttl << 4 | attempt)


cdef inline uint64_t probe_cookie(
    table_t *table, const trace_t *trace, uint16_t sequence,
) noexcept nogil:
    """Return the probe's cookie: keyed by the table's secret, never 0, never the same twice."""
    cdef uint8_t text[26]
    cdef uint64_t cookie
    memset(text, 0, sizeof(text))
    store_be64(text, trace.serial)
    store_be16(text + 8, sequence)
    memcpy(text + 10, trace.destination, table.address_bytes)
    cookie = siphash24(table.key, text, sizeof(text))
    return cookie if cookie != 0 else 1


cdef inline void build_ip_header(
    table_t *table, const trace_t *trace, int ttl, uint8_t *p,
) noexcept nogil:
    """Write the header of a probe; the kernel fills the IPv4 identification."""
    if table.version == 4:
        build_ipv4_header(
            p, trace.source, trace.destination,
            IPV4_HEADER_BYTES + ICMP_HEADER_BYTES + PAYLOAD_BYTES, PROTOCOL_ICMP, 0,
            <uint8_t>ttl, 0, True)
    else:
        build_ipv6_header(
            p, trace.source, trace.destination, ICMP_HEADER_BYTES + PAYLOAD_BYTES,
            PROTOCOL_ICMPV6, 0, <uint8_t>ttl, trace.flow_label)


cdef inline size_t build_probe(
    table_t *table, trace_t *trace, int ttl, int attempt, uint8_t *p,
) noexcept nogil:
    """Write a probe with its IP header at p (PACKET_BYTES_MAX) and return its length."""
    cdef size_t header = IPV4_HEADER_BYTES if table.version == 4 else IPV6_HEADER_BYTES
    cdef uint8_t *icmp = p + header
    cdef uint32_t slot = <uint32_t>(trace - table.slots)
    cdef uint16_t sequence = probe_sequence(trace, ttl, attempt)
    cdef uint64_t total = 0
    build_ip_header(table, trace, ttl, p)
    build_icmp_header(
        icmp, ICMP4_ECHO_REQUEST if table.version == 4 else ICMP6_ECHO_REQUEST, 0,
        <uint16_t>(slot + table.ident_base), sequence)
    store_be16(icmp + 2, trace.checksum)
    memset(icmp + ICMP_HEADER_BYTES, 0, PAYLOAD_BYTES)
    store_be64(icmp + ICMP_HEADER_BYTES, probe_cookie(table, trace, sequence))
    if table.version == 6:
        total = pseudo_header_sum(
            trace.source, trace.destination, 16, ICMP_HEADER_BYTES + PAYLOAD_BYTES,
            PROTOCOL_ICMPV6)
    total = checksum_add(total, icmp, ICMP_HEADER_BYTES + PAYLOAD_BYTES)
    store_be16(icmp + ICMP_HEADER_BYTES + 8, <uint16_t>(~checksum_fold(total) & 0xFFFF))
    return header + ICMP_HEADER_BYTES + PAYLOAD_BYTES


cdef inline int match_quote(
    table_t *table, const answer_t *answer, match_t *out,
) noexcept nogil:
    """Compare what an error quotes with the probe it names."""
    cdef trace_t *trace = out.trace
    if answer.checksum != trace.checksum:
        return MATCH_FORGED
    if memcmp(answer.source, trace.source, table.address_bytes) != 0:
        out.is_translated = True
    if memcmp(answer.destination, trace.destination, table.address_bytes) != 0:
        # Only the cookie, which matched, can vouch for a probe sent on to another address.
        if answer.cookie == NULL:
            return MATCH_FORGED
        out.is_translated = True
    return MATCH_OURS


cdef inline int match_answer(table_t *table, const answer_t *answer, match_t *out) noexcept nogil:
    """Find the probe an answer belongs to; fills out and returns MATCH_OURS, or another MATCH_."""
    cdef int attempt = answer.sequence & 0xF
    cdef int ttl = answer.sequence >> 4 & 0xFF
    memset(out, 0, sizeof(match_t))
    out.slot = <uint16_t>(answer.ident - table.ident_base)
    if out.slot >= table.traces_max:
        return MATCH_FOREIGN
    out.trace = &table.slots[out.slot]
    if out.trace.serial == 0 or out.trace.generation != answer.sequence >> 12:
        return MATCH_FOREIGN
    out.probe = trace_probe(out.trace, ttl, attempt)
    if out.probe == NULL or out.probe.state < PROBE_SENT:
        return MATCH_FOREIGN
    out.ttl = <uint8_t>ttl
    out.attempt = <uint8_t>attempt
    if (answer.cookie != NULL
            and load_be64(answer.cookie) != probe_cookie(table, out.trace, answer.sequence)):
        return MATCH_FORGED
    if not answer.is_error:
        return MATCH_OURS
    return match_quote(table, answer, out)
