"""The slab and its timeout wheel: an input is a sequence of sends, settlements and time."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from fuzz.feed cimport feed_byte, feed_span, feed_t, must
from fuzz.slab_check cimport check_slab, empty_slab
from inflight cimport (
    SLOT_ANSWERED, SLOT_IN_FLIGHT, SLOT_NIL, SLOT_RESERVED, SLOT_UNANSWERED, slab_close,
    slab_due, slab_file, slab_forget_due, slab_has_room, slab_next_deadline_ns, slab_open,
    slab_release, slab_reserve, slab_settle, slab_t, slot_deadline_ns,
)

cdef enum:
    START_NS = 0x4000000000000   # 13 days
    TIMEOUT_MAX_US = 60000000
    LINGER_NS = 1000000000
    ALL_TIME_NS = 120000000000
    TICK_NS = 1048576

cdef slab_t slab                 # the wheel is large: made once
cdef int64_t now_ns


cdef void begin(uint32_t capacity) noexcept nogil:
    """Start over, at the same instant with an empty slab."""
    global now_ns
    now_ns = START_NS
    if slab.buckets == NULL:
        must(slab_open(&slab, 1, LINGER_NS) == 0, b"there is memory for the wheel")
    empty_slab(&slab)
    slab.capacity = capacity


cdef void open_and_close() noexcept nogil:
    """Insist that a slab opens, and closes twice."""
    cdef slab_t other
    must(slab_open(&other, 1, LINGER_NS) == 0, b"there is memory for another wheel")
    slab_close(&other)
    slab_close(&other)


cdef void send(feed_t *feed) noexcept nogil:
    """Reserve a slot, and file it or give it back."""
    cdef bint has_room = slab_has_room(&slab)
    cdef uint32_t index = slab_reserve(&slab)
    must((index != SLOT_NIL) == has_room, b"whether there is room is known before")
    if index == SLOT_NIL:
        must(slab.in_flight == slab.capacity, b"only those in flight keep their slots")
        return
    must(slab.slots[index].state == SLOT_RESERVED, b"a reserved slot is nobody's")
    slab.slots[index].sent_ns = now_ns
    slab.slots[index].timer = <uint32_t>(feed_span(feed) // 1000 % TIMEOUT_MAX_US) + 1
    if feed_byte(feed) == 7:
        slab_release(&slab, index)
    else:
        slab_file(&slab, index)


cdef void settle(uint32_t index, uint8_t state) noexcept nogil:
    if index < slab.size and slab.slots[index].state == SLOT_IN_FLIGHT:
        slab_settle(&slab, index, state, now_ns)


cdef void check_overdue() noexcept nogil:
    """Insist that nothing is left that was due a tick ago, and that what is next is known."""
    cdef int64_t next_ns = slab_next_deadline_ns(&slab), deadline_ns
    cdef uint32_t i
    must((next_ns < 0) == (slab.in_flight == 0), b"who is in flight has a deadline")
    for i in range(slab.size):
        if slab.slots[i].state == SLOT_IN_FLIGHT:
            deadline_ns = slot_deadline_ns(&slab.slots[i])
            must(deadline_ns + TICK_NS > now_ns, b"a timeout is at most a tick late")
            must(next_ns < deadline_ns + TICK_NS, b"a loop wakes in time for the next")


cdef void expire() noexcept nogil:
    cdef uint32_t index = slab_due(&slab, now_ns)
    while index != SLOT_NIL:
        must(index < slab.size and slab.slots[index].state == SLOT_IN_FLIGHT,
             b"what is due is in flight")
        must(slot_deadline_ns(&slab.slots[index]) <= now_ns, b"a timeout is never early")
        slab_settle(&slab, index, SLOT_UNANSWERED, now_ns)
        index = slab_due(&slab, now_ns)
    slab_forget_due(&slab, now_ns)
    check_overdue()


cdef void operate(feed_t *feed) noexcept nogil:
    global now_ns
    cdef uint8_t what = feed_byte(feed)
    cdef uint32_t _
    if what < 90:
        send(feed)
    elif what < 92 and slab.size < 1000:
        for _ in range(500):
            send(feed)
    elif what < 150:
        settle(feed_byte(feed), SLOT_ANSWERED)
    elif what < 190:
        expire()
    else:
        now_ns += feed_span(feed)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    global now_ns
    cdef uint32_t capacities[4]
    cdef feed_t feed
    capacities[:] = [1, 5, 200, 1500]
    feed.data = data
    feed.left = n
    if n == 1:
        open_and_close()
    begin(capacities[feed_byte(&feed) & 3])
    while feed.left:
        operate(&feed)
    check_slab(&slab, 0)
    now_ns += ALL_TIME_NS
    expire()
    must(slab.in_flight == 0, b"everything times out")
    check_slab(&slab, 0)
    return 0
