"""A slab for each input without allocating one; and what must hold of its lists and counts."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free

from fuzz.feed cimport must
from inflight cimport (
    SLOT_ANSWERED, SLOT_FREE, SLOT_IN_FLIGHT, SLOT_NIL, SLOT_UNANSWERED, WHEEL_WORDS, slab_t,
    slab_unfile, slot_t,
)


cdef inline void empty_slab(slab_t *slab) noexcept nogil:
    """Make a slab as it was opened; the wheel is large, so only what was used is wiped."""
    cdef uint32_t i
    for i in range(slab.size):
        if slab.slots[i].state == SLOT_IN_FLIGHT:
            slab_unfile(slab, i)
    free(slab.slots)
    slab.slots = NULL
    slab.size = slab.settled = 0
    slab.free_head = slab.free_tail = slab.settled_head = slab.settled_tail = SLOT_NIL
    slab.tick_done = 0


cdef inline uint32_t count_free(const slab_t *slab) noexcept nogil:
    cdef uint32_t at = slab.free_head, last = SLOT_NIL, count = 0
    while at != SLOT_NIL:
        must(at < slab.size and count < slab.size, b"the free list is a list of slots")
        must(slab.slots[at].state == SLOT_FREE, b"of free ones")
        last = at
        at = slab.slots[at].next
        count += 1
    must(slab.free_tail == last, b"and its tail is its last")
    return count


cdef inline uint32_t count_settled(const slab_t *slab) noexcept nogil:
    cdef uint32_t at = slab.settled_head, last = SLOT_NIL, count = 0
    while at != SLOT_NIL:
        must(at < slab.size and count < slab.size, b"the settled list is a list of slots")
        must(slab.slots[at].state == SLOT_ANSWERED or slab.slots[at].state == SLOT_UNANSWERED,
             b"of settled ones")
        last = at
        at = slab.slots[at].next
        count += 1
    must(slab.settled_tail == last, b"and its tail is its last")
    return count


cdef inline uint32_t count_bucket(const slab_t *slab, uint32_t bucket) noexcept nogil:
    cdef uint32_t at = slab.buckets[bucket], before = SLOT_NIL, count = 0
    cdef const slot_t *slot
    while at != SLOT_NIL:
        must(at < slab.size and count < slab.size, b"a bucket is a list of slots")
        slot = &slab.slots[at]
        must(slot.state == SLOT_IN_FLIGHT and slot.bucket == bucket and slot.previous == before,
             b"of its own, in flight, linked both ways")
        before = at
        at = slot.next
        count += 1
    return count


cdef inline uint32_t count_in_flight(const slab_t *slab) noexcept nogil:
    """Count by the words that say which buckets hold something."""
    cdef uint32_t word, bit, here, count = 0
    for word in range(WHEEL_WORDS):
        if slab.occupied[word] == 0:
            continue
        for bit in range(64):
            here = count_bucket(slab, word << 6 | bit)
            must((here > 0) == (slab.occupied[word] >> bit & 1), b"a bucket's bit is right")
            count += here
    return count


cdef inline void check_slab(const slab_t *slab, uint32_t reserved) noexcept nogil:
    """Insist that every slot is in one list, but for those that are reserved."""
    must(slab.size <= slab.capacity, b"a slab grows to its capacity")
    must(count_settled(slab) == slab.settled, b"the settled are counted")
    must(count_in_flight(slab) == slab.in_flight, b"those in flight are counted")
    must(count_free(slab) + slab.settled + slab.in_flight + reserved == slab.size,
         b"every slot is in one list")
