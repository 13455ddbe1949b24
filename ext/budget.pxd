"""Token buckets as one instant each: the generic cell rate algorithm (ITU-T I.371, annex A).

A bucket remembers when its next packet would be due at an even pace. A packet conforms unless that
instant lies further ahead than the slack. Instants are CLOCK_MONOTONIC in 1/16 ns: a pace of a
million a second is kept to 31 parts per million, and 63 bits last for 18 years of uptime.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from *:
    """
    /* 2 years in 1/16 ns: no sum of it and an instant overflows. */
    #define NETSONDE_GAP_MAX (1LL << 60)
    #define NETSONDE_LOAD64(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    static inline int netsonde_replace(int64_t *p, int64_t expected, int64_t value) {
        return __atomic_compare_exchange_n(
            p, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    int64_t GAP_MAX "NETSONDE_GAP_MAX"
    int64_t atomic_load64 "NETSONDE_LOAD64"(const int64_t *p) nogil
    bint atomic_replace64 "netsonde_replace"(int64_t *p, int64_t expected, int64_t value) nogil

cdef enum:
    UNIT_SHIFT = 4               # 1/16 ns
    REPLACE_TRIES = 64           # two engines share a budget; each loses a race now and then
    KEYED_LOOKS = 8              # places a key may be at
    KEYED_ENTRIES = 1 << 16      # 1 MiB; more busy keys than that share
    SMOOTH_NS = 2000000          # what a caller that comes once a millisecond may catch up

ctypedef struct budget_t:        # may be shared between threads
    int64_t due                  # of the next packet
    int64_t gap                  # between packets; 0: no limit
    int64_t slack

ctypedef struct bucket_t:
    uint64_t key
    int64_t due

ctypedef struct keyed_t:         # a bucket per key, all of one pace; one thread's
    bucket_t *entries            # NULL: no limit
    int64_t gap
    int64_t slack


cdef inline int64_t pace_gap(double rate_pps) noexcept nogil:
    """Return the gap of a pace in 1/16 ns; 0 for no limit."""
    cdef double gap
    if rate_pps <= 0:
        return 0
    gap = 1e9 * (1 << UNIT_SHIFT) / rate_pps + 0.5
    return <int64_t>gap if gap < <double>GAP_MAX else GAP_MAX


cdef inline int64_t pace_slack(int64_t gap) noexcept nogil:
    """Return how far a bucket may run ahead.

    Gaps that the caller can keep are kept exactly; shorter ones are kept on average over 2 ms.
    """
    return <int64_t>SMOOTH_NS << UNIT_SHIFT if gap < <int64_t>SMOOTH_NS << UNIT_SHIFT else 0


cdef inline int64_t wait_ns(int64_t due, int64_t slack, int64_t now_ns) noexcept nogil:
    """Return how long until a bucket lets a packet pass; 0: now."""
    cdef int64_t ahead = due - slack - (now_ns << UNIT_SHIFT)
    return 0 if ahead <= 0 else (ahead + (1 << UNIT_SHIFT) - 1) >> UNIT_SHIFT


cdef inline int64_t next_due(int64_t due, int64_t gap, int64_t now_ns) noexcept nogil:
    """Return a bucket's instant after a packet has passed."""
    cdef int64_t now = now_ns << UNIT_SHIFT
    return (due if due > now else now) + gap


cdef inline int64_t due_after(int64_t due, int64_t gap, int64_t sent_ns) noexcept nogil:
    """Return a bucket's instant when its packet left later than its token was taken."""
    cdef int64_t least = (sent_ns << UNIT_SHIFT) + gap
    return due if due > least else least


cdef inline int64_t budget_take(budget_t *budget, int64_t now_ns) noexcept nogil:
    """Take a packet's token and return 0, or take none and return the ns until there is one."""
    cdef int64_t due, wait
    cdef int _
    if budget.gap == 0:
        return 0
    for _ in range(REPLACE_TRIES):
        due = atomic_load64(&budget.due)
        wait = wait_ns(due, budget.slack, now_ns)
        if wait:
            return wait
        if atomic_replace64(&budget.due, due, next_due(due, budget.gap, now_ns)):
            return 0
    return 1


cdef inline void budget_return(budget_t *budget) noexcept nogil:
    """Give back a token that was not used."""
    cdef int64_t due
    cdef int _
    for _ in range(REPLACE_TRIES):
        due = atomic_load64(&budget.due)
        if atomic_replace64(&budget.due, due, due - budget.gap):
            return


cdef inline void budget_note_sent(budget_t *budget, int64_t sent_ns) noexcept nogil:
    """Keep an exact gap from when the packet left."""
    cdef int64_t due
    cdef int _
    if budget.gap == 0 or budget.slack:
        return
    for _ in range(REPLACE_TRIES):
        due = atomic_load64(&budget.due)
        if atomic_replace64(&budget.due, due, due_after(due, budget.gap, sent_ns)):
            return


cdef inline void keyed_note_sent(
    const keyed_t *keyed, bucket_t *bucket, int64_t sent_ns,
) noexcept nogil:
    """Keep an exact gap from when the packet left; bucket may be NULL."""
    if bucket != NULL and keyed.slack == 0:
        bucket.due = due_after(bucket.due, keyed.gap, sent_ns)


cdef inline int keyed_open(keyed_t *keyed, double rate_pps) noexcept nogil:
    """Make buckets of this pace; -1 without memory. A pace of 0 needs none."""
    keyed.gap = pace_gap(rate_pps)
    keyed.slack = pace_slack(keyed.gap)
    keyed.entries = NULL
    if keyed.gap == 0:
        return 0
    keyed.entries = <bucket_t *>calloc(KEYED_ENTRIES, sizeof(bucket_t))
    return 0 if keyed.entries != NULL else -1


cdef inline void keyed_close(keyed_t *keyed) noexcept nogil:
    """Free the memory. Idempotent."""
    free(keyed.entries)
    keyed.entries = NULL


cdef inline bucket_t *keyed_bucket(keyed_t *keyed, uint64_t key, int64_t now_ns) noexcept nogil:
    """Return the bucket of a key, or NULL where there is no limit.

    A bucket that has run dry is as good as a new one, so its place is free. While none of a key's
    places is, it shares the one that is due first: nobody gains by using many keys.
    """
    cdef bucket_t *entry
    cdef bucket_t *best = NULL
    cdef int look
    if keyed.entries == NULL:
        return NULL
    for look in range(KEYED_LOOKS):
        entry = &keyed.entries[(key + <uint64_t>look) & (KEYED_ENTRIES - 1)]
        if entry.key == key:
            return entry
        if best == NULL or entry.due < best.due:
            best = entry
    if best.due <= now_ns << UNIT_SHIFT:
        best.key = key
    return best
