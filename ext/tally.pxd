"""What became of one run's packets: columns by attempt, counts, and the few exceptions in full."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

from echostate cimport (
    CLOCK_RX_KERNEL, CLOCK_TX_KERNEL, DONE_DUPLICATE, DONE_ERROR, DONE_LATE, DONE_REPLY,
    DONE_RX_DROP, DONE_STOPPED, DONE_TX_ERROR, completion_t,
)

cdef enum:
    EXCEPTIONS_FIRST = 4
    EXCEPTIONS_SPARE = 64        # beyond two per attempt they are only counted

ctypedef struct tally_t:
    uint32_t number
    uint32_t count               # attempts
    uint32_t settled
    uint32_t received
    uint32_t tx_errors
    uint32_t rx_drops
    uint32_t duplicates
    uint32_t late
    uint32_t user_rx             # replies that the kernel did not stamp
    uint32_t user_tx
    uint32_t submitted           # attempts there will be: fewer than count once it was stopped
    bint watched                 # its completions are handed back too
    int64_t first_sent_ns        # 0: none
    int64_t last_sent_ns
    uint8_t destination[16]
    completion_t *exceptions     # late, duplicate, errors, replies from elsewhere
    uint32_t exception_count
    uint32_t exception_room
    int64_t *rtts_ns             # -1: no reply in time
    uint16_t *sizes
    uint8_t *kinds               # 0: not settled
    uint8_t *ttls
    uint8_t *types
    uint8_t *codes               # ICMP code, or errno of a refused send


cdef inline void tally_free(tally_t *tally) noexcept nogil:
    """Free a tally; NULL is none."""
    if tally != NULL:
        free(tally.exceptions)
        free(tally.rtts_ns)
        free(tally)


cdef inline tally_t *tally_new(
    uint32_t number, uint32_t count, const uint8_t *destination,
) noexcept nogil:
    """Make an empty tally; NULL without memory. The columns are one piece of memory."""
    cdef tally_t *tally = <tally_t *>calloc(1, sizeof(tally_t))
    cdef size_t n = count
    cdef uint32_t i
    if tally == NULL:
        return NULL
    tally.rtts_ns = <int64_t *>calloc(n, sizeof(int64_t) + sizeof(uint16_t) + 4)
    if tally.rtts_ns == NULL:
        free(tally)
        return NULL
    tally.sizes = <uint16_t *>(tally.rtts_ns + n)
    tally.kinds = <uint8_t *>(tally.sizes + n)
    tally.ttls = tally.kinds + n
    tally.types = tally.ttls + n
    tally.codes = tally.types + n
    tally.number = number
    tally.count = tally.submitted = count
    memcpy(tally.destination, destination, 16)
    for i in range(count):
        tally.rtts_ns[i] = -1
    return tally


cdef inline bint tally_is_finished(const tally_t *tally) noexcept nogil:
    return tally.settled >= tally.submitted


cdef inline void tally_keep(tally_t *tally, const completion_t *c) noexcept nogil:
    """Keep an exception in full, as long as there is room."""
    cdef uint32_t room = tally.exception_room * 2
    cdef completion_t *grown
    if tally.exception_count == tally.exception_room:
        if room == 0:
            room = EXCEPTIONS_FIRST
        if room > 2 * tally.count + EXCEPTIONS_SPARE:
            return
        grown = <completion_t *>realloc(tally.exceptions, room * sizeof(completion_t))
        if grown == NULL:
            return
        tally.exceptions = grown
        tally.exception_room = room
    tally.exceptions[tally.exception_count] = c[0]
    tally.exception_count += 1


cdef inline void tally_sent(tally_t *tally, int64_t sent_ns) noexcept nogil:
    if tally.first_sent_ns == 0 or sent_ns < tally.first_sent_ns:
        tally.first_sent_ns = sent_ns
    if sent_ns > tally.last_sent_ns:
        tally.last_sent_ns = sent_ns


cdef inline void tally_settle(tally_t *tally, const completion_t *c, uint32_t at) noexcept nogil:
    """Take the one final completion of an attempt."""
    tally.settled += 1
    tally.kinds[at] = c.kind
    tally.rtts_ns[at] = c.rtt_ns if c.kind == DONE_REPLY else -1
    tally.ttls[at] = c.ttl
    tally.sizes[at] = c.size
    tally.types[at] = c.icmp_type
    tally.codes[at] = c.error if c.error else c.icmp_code
    if c.kind == DONE_TX_ERROR:
        tally.tx_errors += 1
        return
    tally_sent(tally, c.sent_ns)
    if c.kind == DONE_RX_DROP:
        tally.rx_drops += 1
    elif c.kind == DONE_REPLY:
        tally.received += 1
        tally.user_rx += not c.clocks & CLOCK_RX_KERNEL
        tally.user_tx += not c.clocks & CLOCK_TX_KERNEL
    if c.kind == DONE_ERROR or (
            c.kind == DONE_REPLY and memcmp(c.responder, tally.destination, 16) != 0):
        tally_keep(tally, c)


cdef inline void tally_take(tally_t *tally, const completion_t *c) noexcept nogil:
    """Take a completion of this run."""
    cdef uint32_t at = <uint32_t>c.token
    if c.kind == DONE_STOPPED:
        if c.rtt_ns >= 0:
            tally.submitted = <uint32_t>c.rtt_ns if c.rtt_ns < tally.count else tally.count
    elif at >= tally.count:
        pass  # nothing this run has asked for
    elif c.kind == DONE_DUPLICATE:
        tally.duplicates += 1
        tally_keep(tally, c)
    elif c.kind == DONE_LATE:
        tally.late += 1
        tally_keep(tally, c)
    elif tally.kinds[at] == 0:
        tally_settle(tally, c, at)
