"""Token buckets: an input is a pace and a sequence of takes, returns and time."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset

from budget cimport (
    KEYED_LOOKS, UNIT_SHIFT, bucket_t, budget_note_sent, budget_return, budget_t, budget_take,
    keyed_bucket, keyed_close, keyed_note_sent, keyed_open, keyed_t, next_due, pace_gap,
    pace_slack, wait_ns,
)
from fuzz.feed cimport feed_byte, feed_span, feed_t, feed_u16, must

cdef extern from *:
    """
    /* Somebody else is as fast, so many times. */
    static int netsonde_lost_races = 0;
    #define netsonde_replace(p, expected, value) \
        (netsonde_lost_races > 0 && netsonde_lost_races-- ? 0 \
         : (netsonde_replace)((p), (expected), (value)))
    """
    int lost_races "netsonde_lost_races"

cdef enum:
    START_NS = 0x4000000000000   # 13 days
    SMOOTH_NS = 2000000

ctypedef struct paced_t:         # what one pace has let pass
    int64_t now_ns
    int64_t first_ns
    int64_t passed               # since then
    int64_t returned


cdef double pace_of(feed_t *feed) noexcept nogil:
    """Choose a pace from one in three hours to a billion a second; seldom none."""
    cdef uint8_t how = feed_byte(feed)
    cdef double pace = 1 + feed_u16(feed)
    if how == 0:
        return 0
    return pace * 1e-4 if how & 1 else pace * 15000 if how & 2 else pace


cdef void check_wait(budget_t *budget, int64_t now_ns, int64_t wait) noexcept nogil:
    """Insist that a wait is neither too long nor too short, on a copy."""
    cdef budget_t copy = budget[0]
    must(wait > 0, b"a wait is a wait")
    must(budget_take(&copy, now_ns + wait - 1) == 1, b"before it there is no token")
    must(budget_take(&copy, now_ns + wait) == 0, b"after it there is one")


cdef void check_pace(const budget_t *budget, const paced_t *paced) noexcept nogil:
    """Insist that no more passed than the pace and the slack allow."""
    cdef int64_t units = (paced.now_ns - paced.first_ns << UNIT_SHIFT) + budget.slack
    if paced.passed:
        must(paced.passed - paced.returned - 1 <= units // budget.gap,
             b"no more pass than the pace allows")


cdef void take(budget_t *budget, paced_t *paced) noexcept nogil:
    cdef int64_t wait = budget_take(budget, paced.now_ns)
    if wait:
        check_wait(budget, paced.now_ns, wait)
        return
    if paced.passed == 0:
        paced.first_ns = paced.now_ns
    paced.passed += 1
    check_pace(budget, paced)


cdef void race(feed_t *feed, budget_t *budget, paced_t *paced) noexcept nogil:
    """Take and return a token while another thread wins some races, or all of them."""
    global lost_races
    cdef int64_t due = budget.due
    lost_races = feed_byte(feed)
    if budget_take(budget, paced.now_ns) == 0:
        budget_return(budget)
    budget_note_sent(budget, paced.now_ns)
    must(budget.due >= due, b"races give no tokens away")
    lost_races = 0


cdef void fuzz_shared(feed_t *feed) noexcept nogil:
    """A budget; its tokens may be returned, and its packets leave later than they were let."""
    cdef budget_t budget
    cdef paced_t paced
    cdef uint8_t what
    memset(&budget, 0, sizeof(budget))
    memset(&paced, 0, sizeof(paced))
    paced.now_ns = START_NS
    budget.gap = pace_gap(pace_of(feed))
    budget.slack = pace_slack(budget.gap)
    while feed.left:
        what = feed_byte(feed) & 7
        if what < 4:
            if budget.gap == 0:
                must(budget_take(&budget, paced.now_ns) == 0, b"no pace is no limit")
            else:
                take(&budget, &paced)
        elif what == 4 and paced.returned < paced.passed:
            budget_return(&budget)
            paced.returned += 1
        elif what == 5:
            budget_note_sent(&budget, paced.now_ns + feed_byte(feed))
        elif what == 6:
            race(feed, &budget, &paced)
        else:
            paced.now_ns += feed_span(feed)


cdef void check_keyed(
    keyed_t *keyed, bucket_t *bucket, uint64_t key, int64_t now_ns,
) noexcept nogil:
    """Insist that a key is at one of its places, or shares it with who is due no later."""
    cdef int64_t before = bucket.due
    must(bucket >= keyed.entries and ((<uint64_t>(bucket - keyed.entries) - key) & 0xFFFF)
         < KEYED_LOOKS, b"a key has eight places")
    must(bucket.key == key or bucket.due > now_ns << UNIT_SHIFT, b"who shares, waits")
    if wait_ns(bucket.due, keyed.slack, now_ns) == 0:
        bucket.due = next_due(bucket.due, keyed.gap, now_ns)
        must(bucket.due >= before + keyed.gap, b"a token moves a bucket on by a gap")
    must(keyed_bucket(keyed, key, now_ns) == bucket or bucket.key != key,
         b"a key of its own place is found there again")


cdef void fuzz_keyed(feed_t *feed) noexcept nogil:
    """Buckets by key; few keys, that crowd the same places."""
    cdef keyed_t keyed
    cdef bucket_t *bucket
    cdef uint64_t key
    cdef int64_t now_ns = START_NS
    must(keyed_open(&keyed, pace_of(feed)) == 0, b"there is memory for the buckets")
    while feed.left:
        key = (<uint64_t>feed_byte(feed) & 15) << 16 | feed_byte(feed) & 3
        bucket = keyed_bucket(&keyed, key, now_ns)
        must((bucket == NULL) == (keyed.gap == 0), b"no pace is no bucket")
        if bucket != NULL:
            check_keyed(&keyed, bucket, key, now_ns)
        keyed_note_sent(&keyed, bucket, now_ns + feed_byte(feed))
        if feed_byte(feed) & 1:
            now_ns += feed_span(feed)
    keyed_close(&keyed)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    cdef feed_t feed
    feed.data = data
    feed.left = n
    if feed_byte(&feed) & 1:
        fuzz_shared(&feed)
    else:
        fuzz_keyed(&feed)
    return 0
