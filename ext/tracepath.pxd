"""The path of one trace as it becomes known: what to send next, when it is done, why it ended.

No I/O and no clock: instants and answers come in, probes to send come out. Every attempt at a TTL
is a probe of its own, so answers may come in any order and each retry is timed by itself.

A hop is settled when it answered, or when the last of its attempts timed out; it is asked again
only while it owes an answer, and only up to the horizon. The trace is done when every hop up to
its end is settled. The end is where the destination answered, else where a router refused to go on
and nothing answered from beyond, else `gap_limit` TTLs after the farthest answer, else `last_ttl`.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from tracestate cimport (
    ANSWER_NIL, HOP_ANSWERED, HOP_EXPIRED, HOP_REACHED, HOP_REFUSED, STOP_CANCELLED,
    STOP_COMPLETED, STOP_GAP_LIMIT, STOP_LOOP, STOP_MAX_HOPS, STOP_TX_ERROR, STOP_UNREACHABLE,
    TRACE_ALL, hop_t, trace_t,
)

cdef enum:
    # TTLs in flight before one answered: most paths are shorter, so one window finds the end in one
    # round trip. It moves on when its last hop answered or fell silent, not before: the answers of
    # near hops come first and would open it for TTLs beyond the destination.
    WINDOW_HOPS = 16
    WINDOW_STEP = 8
    # The window leaves in bursts: a destination nearer than the gap answers before the next one.
    BURST_HOPS = 4
    BURST_GAP_NS = 1000000
    # A hop that owes an answer is asked again well before its timeout: attempts are told apart, so
    # the first one's answer still counts when it comes.
    RETRY_RTTS = 3
    RETRY_MIN_NS = 250000000
    # One address at this many separate TTLs is a loop and not two paths: nothing new is sent.
    LOOP_REPEATS = 3

cdef extern from *:
    """
    #define HASH_MULTIPLIER 0x9E3779B97F4A7C15u  /* 2^64 by the golden ratio: Knuth 6.4 */
    """
    uint64_t HASH_MULTIPLIER

cdef enum:
    PATH_PROBE = 0               # send one
    PATH_LATER = 1               # send one at an instant
    PATH_WAIT = 2                # until something comes or times out
    PATH_DONE = 3


cdef inline int lower(int one, int other) noexcept nogil:
    return one if one < other else other


cdef inline bint path_is_silent(const hop_t *hop) noexcept nogil:
    """Whether a hop was tried, owes an answer and waits for none."""
    return hop.attempts != 0 and hop.waiting == 0 and not hop.known & HOP_ANSWERED


cdef inline int path_horizon(const trace_t *t) noexcept nogil:
    """Return the last TTL that has to be settled, as far as is known."""
    if t.end_ttl:
        return t.end_ttl
    if t.farthest_ttl:
        return lower(t.farthest_ttl + t.request.gap_limit, t.request.last_ttl)
    return lower(t.request.first_ttl - 1 + t.request.gap_limit, t.request.last_ttl)


cdef inline int path_limit(trace_t *t) noexcept nogil:
    """Return the last TTL that may be tried, moving the window on where it is due."""
    cdef int window = WINDOW_HOPS if t.request.gap_limit < WINDOW_HOPS else t.request.gap_limit
    cdef const hop_t *top
    if t.end_ttl:
        return t.end_ttl
    if t.window_ttl == 0:
        t.window_ttl = <uint8_t>lower(t.request.first_ttl - 1 + window, t.request.last_ttl)
    if t.sent_ttl < t.window_ttl:
        return t.window_ttl
    top = &t.hops[t.window_ttl]
    if (t.window_ttl < t.request.last_ttl and top.waiting == 0
            and t.window_ttl < t.farthest_ttl + t.request.gap_limit):
        t.window_ttl = <uint8_t>lower(t.window_ttl + WINDOW_STEP, t.request.last_ttl)
    return t.window_ttl


cdef inline int path_retry(const trace_t *t) noexcept nogil:
    """Return the lowest TTL that is to be asked again; 0: none."""
    cdef int ttl, last = path_horizon(t)
    cdef const hop_t *hop
    cdef bint all_attempts = t.request.flags & TRACE_ALL
    if t.silent == 0 and not all_attempts:
        return 0
    for ttl in range(t.request.first_ttl, last + 1):
        hop = &t.hops[ttl]
        if hop.attempts == 0:
            break
        if all_attempts:
            if hop.attempts < t.round:
                return ttl
        elif path_is_silent(hop) and hop.attempts < t.request.attempts:
            return ttl
    return 0


cdef inline bint path_owes(const trace_t *t) noexcept nogil:
    """Whether a hop that has to be settled waits for an answer."""
    cdef int ttl
    if t.waiting == 0 or t.end_ttl == 0 or t.end_ttl == t.sent_ttl:
        return t.waiting != 0
    for ttl in range(t.request.first_ttl, t.end_ttl + 1):
        if t.hops[ttl].waiting:
            return True
    return False


cdef inline bint path_has_round(const trace_t *t) noexcept nogil:
    """Whether TRACE_ALL has another round to send: once the end is known, or nothing is owed."""
    if not t.request.flags & TRACE_ALL or t.is_looping or t.round >= t.request.attempts:
        return False
    return t.end_ttl != 0 or not path_owes(t)


cdef inline int path_next(trace_t *t, int64_t now_ns, uint8_t *ttl, int64_t *due_ns) noexcept nogil:
    """Say what is to be done now: a PATH_. ttl: of the probe to send; due_ns: of PATH_LATER."""
    cdef int again = 0, limit
    if t.is_cancelled or t.is_void:
        return PATH_DONE
    if not t.is_looping:
        again = path_retry(t)
        if again:
            ttl[0] = <uint8_t>again
            return PATH_PROBE
        limit = path_limit(t)
        if t.sent_ttl < limit:
            if t.burst == BURST_HOPS and path_owes(t) and now_ns < t.burst_ns + BURST_GAP_NS:
                due_ns[0] = t.burst_ns + BURST_GAP_NS
                return PATH_LATER
            if t.burst == BURST_HOPS or now_ns >= t.burst_ns + BURST_GAP_NS:
                t.burst = 0
                t.burst_ns = now_ns
            ttl[0] = t.sent_ttl + 1
            return PATH_PROBE
    if path_has_round(t):
        due_ns[0] = t.round_ns + <int64_t>t.request.interval_ns
        if due_ns[0] <= now_ns:
            t.round += 1
            t.round_ns = now_ns
            ttl[0] = t.request.first_ttl
            return PATH_PROBE
        return PATH_LATER
    return PATH_WAIT if path_owes(t) else PATH_DONE


cdef inline void path_sending(trace_t *t, int ttl, int64_t now_ns) noexcept nogil:
    """Note that the probe which path_next asked for is being handed over."""
    cdef hop_t *hop = &t.hops[ttl]
    if ttl > t.sent_ttl:
        t.sent_ttl = <uint8_t>ttl
        t.burst += 1
        if t.round == 1:
            t.round_ns = now_ns
    if path_is_silent(hop):
        t.silent -= 1
    hop.attempts += 1
    hop.waiting += 1
    t.waiting += 1


cdef inline int64_t path_patience_ns(const trace_t *t, int attempt) noexcept nogil:
    """Return how long an attempt is waited for before the hop is asked again, or given up."""
    cdef int64_t patience = RETRY_RTTS * t.rtt_max_ns
    if attempt + 1 >= t.request.attempts or t.request.flags & TRACE_ALL:
        return <int64_t>t.request.timeout_ns
    if patience < RETRY_MIN_NS:
        patience = RETRY_MIN_NS
    return patience if patience < <int64_t>t.request.timeout_ns else <int64_t>t.request.timeout_ns


cdef inline void path_gave_up(trace_t *t, int ttl) noexcept nogil:
    """Note that a probe is not waited for any more: path_take follows if it was answered."""
    cdef hop_t *hop = &t.hops[ttl]
    hop.waiting -= 1
    t.waiting -= 1
    if path_is_silent(hop):
        t.silent += 1


cdef inline uint64_t path_mark(const uint8_t *responder, size_t width) noexcept nogil:
    """Return what tells an address of 4 or 16 bytes from most others."""
    cdef uint64_t words[2]
    cdef uint32_t word
    if width == 4:
        memcpy(&word, responder, 4)
        return word
    memcpy(words, responder, 16)
    return words[0] ^ words[1]


cdef inline bint path_is_new(trace_t *t, uint64_t mark) noexcept nogil:
    """Note an address by its mark; whether it is certain that it did not come before.

    Most do not, and the answers of a trace are many cache lines.
    """
    cdef uint64_t bit = <uint64_t>1 << (mark * HASH_MULTIPLIER >> 58)
    if t.responders & bit:
        return False
    t.responders |= bit
    return True


cdef inline int path_separate(const trace_t *t, const uint8_t *responder) noexcept nogil:
    """Count the runs of neighbouring TTLs that expired at an address: 3, 4, 9 are two."""
    cdef int ttl, runs = 0
    cdef bint inside = False, here
    cdef const hop_t *hop
    for ttl in range(t.request.first_ttl, t.sent_ttl + 1):
        hop = &t.hops[ttl]
        here = (hop.known & HOP_EXPIRED and hop.answer != ANSWER_NIL
                and memcmp(t.answers[hop.answer].responder, responder, 16) == 0)
        runs += here and not inside
        inside = here
    return runs


cdef inline void path_find_end(trace_t *t) noexcept nogil:
    """Derive the end of the path: the lowest TTL that reached the destination, else the lowest at
    which a router refused and beyond which no TTL expired.
    """
    cdef int ttl, refused = 0
    t.end_ttl = 0
    for ttl in range(t.request.first_ttl, t.sent_ttl + 1):
        if t.hops[ttl].known & HOP_REACHED:
            t.end_ttl = <uint8_t>ttl
            return
        if t.hops[ttl].known & HOP_EXPIRED:
            refused = 0
        elif t.hops[ttl].known & HOP_REFUSED and refused == 0:
            refused = ttl
    t.end_ttl = <uint8_t>refused


cdef inline void path_take(
    trace_t *t, int ttl, uint8_t known, uint16_t answer, uint64_t mark, int64_t rtt_ns,
) noexcept nogil:
    """Note the answer of a probe that was not answered before, in time.

    answer: its number among the trace's, ANSWER_NIL if it is not kept. mark: of the responder.
    """
    cdef hop_t *hop = &t.hops[ttl]
    if rtt_ns > t.rtt_max_ns:
        t.rtt_max_ns = rtt_ns
    if hop.known & HOP_ANSWERED:
        return
    if path_is_silent(hop):
        t.silent -= 1
    hop.known = HOP_ANSWERED | known
    hop.answer = answer
    if ttl > t.farthest_ttl:
        t.farthest_ttl = <uint8_t>ttl
    if t.end_ttl or not known & HOP_EXPIRED:
        path_find_end(t)
    if (known & HOP_EXPIRED and answer != ANSWER_NIL and not path_is_new(t, mark)
            and path_separate(t, t.answers[answer].responder) >= LOOP_REPEATS):
        t.is_looping = True


cdef inline uint8_t path_stop(const trace_t *t) noexcept nogil:
    """Return why a trace that is done ended: a STOP_."""
    cdef int heard = t.farthest_ttl if t.farthest_ttl else t.request.first_ttl - 1
    if t.is_cancelled:
        return STOP_CANCELLED
    if t.end_ttl:
        return STOP_COMPLETED if t.hops[t.end_ttl].known & HOP_REACHED else STOP_UNREACHABLE
    if t.is_looping:
        return STOP_LOOP
    if t.sent == 0:
        return STOP_TX_ERROR
    if t.request.last_ttl - heard >= t.request.gap_limit:
        return STOP_GAP_LIMIT
    return STOP_MAX_HOPS
