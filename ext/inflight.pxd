"""Probes in flight: slots addressed by number, their timeouts, and those still remembered.

A slot is free, in flight, or settled (answered or not). Settled slots are remembered for a while,
so that a late or duplicate reply still finds its probe, and are reused as late as possible. Every
operation is O(1). Timeouts are a wheel of one level: no timeout is longer than the wheel.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

cdef enum:
    SLAB_FIRST_SLOTS = 1024     # 64 KiB; doubles up to the capacity
    WHEEL_BUCKETS = 65536       # x 2^20 ns = 68.7 s, above the longest timeout (60 s)
    WHEEL_WORDS = 1024
    TICK_SHIFT = 20             # a timeout is noticed at most 1.05 ms late

cdef enum:
    SLOT_FREE = 0
    SLOT_RESERVED = 1
    SLOT_IN_FLIGHT = 2
    SLOT_ANSWERED = 3
    SLOT_UNANSWERED = 4

cdef extern from *:
    """
    #define SLOT_NIL 0xFFFFFFFFu
    """
    uint32_t SLOT_NIL
    int trailing_zeros "__builtin_ctzll"(uint64_t x) nogil

ctypedef struct slot_t:         # 64 bytes: one cache line
    uint64_t token              # the caller's name for the probe
    int64_t sent_ns             # CLOCK_MONOTONIC
    uint8_t destination[16]
    uint32_t serial             # tells this probe from the slot's earlier ones
    uint32_t timer              # in flight: timeout in us; settled: tick at which it is forgotten
    uint32_t next
    uint32_t previous
    uint32_t steps              # wall clock steps noticed before it was sent
    uint32_t overflows          # packets that the full receive queue had dropped when it was sent
    uint16_t bucket
    uint16_t checksum           # ICMPv4, as sent
    uint16_t size               # payload bytes
    uint8_t state
    uint8_t clocks              # CLOCK_ bits of the send stamp

ctypedef struct slab_t:
    slot_t *slots
    uint32_t size
    uint32_t capacity
    uint32_t free_head
    uint32_t free_tail
    uint32_t settled_head
    uint32_t settled_tail
    uint32_t in_flight
    uint32_t settled
    uint32_t linger_ticks
    int64_t tick_done           # every bucket up to this tick has been emptied
    uint32_t *buckets
    uint64_t *occupied


cdef inline void slab_close(slab_t *slab) noexcept nogil:
    """Free the memory. Idempotent."""
    free(slab.slots)
    free(slab.buckets)
    free(slab.occupied)
    memset(slab, 0, sizeof(slab_t))


cdef inline int slab_open(slab_t *slab, uint32_t capacity, int64_t linger_ns) noexcept nogil:
    """Make an empty slab; -1 when there is no memory."""
    cdef int i
    memset(slab, 0, sizeof(slab_t))
    slab.capacity = capacity
    slab.free_head = slab.free_tail = slab.settled_head = slab.settled_tail = SLOT_NIL
    slab.linger_ticks = <uint32_t>(linger_ns >> TICK_SHIFT)
    slab.buckets = <uint32_t *>calloc(WHEEL_BUCKETS, sizeof(uint32_t))
    slab.occupied = <uint64_t *>calloc(WHEEL_WORDS, sizeof(uint64_t))
    if slab.buckets == NULL or slab.occupied == NULL:
        slab_close(slab)
        return -1
    for i in range(WHEEL_BUCKETS):
        slab.buckets[i] = SLOT_NIL
    return 0


cdef inline void slab_release(slab_t *slab, uint32_t index) noexcept nogil:
    """Put a slot that is in no list at the end of the free list."""
    slab.slots[index].state = SLOT_FREE
    slab.slots[index].next = SLOT_NIL
    if slab.free_tail == SLOT_NIL:
        slab.free_head = index
    else:
        slab.slots[slab.free_tail].next = index
    slab.free_tail = index


cdef inline int slab_grow(slab_t *slab) noexcept nogil:
    """Double the number of slots, up to the capacity; -1 at the capacity or without memory."""
    cdef uint32_t i, size = slab.size * 2 if slab.size else SLAB_FIRST_SLOTS
    cdef slot_t *slots
    if size > slab.capacity:
        size = slab.capacity
    if size == slab.size:
        return -1
    slots = <slot_t *>realloc(slab.slots, <size_t>size * sizeof(slot_t))
    if slots == NULL:
        return -1
    slab.slots = slots
    memset(slots + slab.size, 0, <size_t>(size - slab.size) * sizeof(slot_t))
    i = slab.size
    slab.size = size
    while i < size:
        slab_release(slab, i)
        i += 1
    return 0


cdef inline uint32_t slab_forget_oldest(slab_t *slab) noexcept nogil:
    """Take the slot that has been settled the longest out of memory; SLOT_NIL when there is none.

    The slot ends up in no list.
    """
    cdef uint32_t index = slab.settled_head
    if index != SLOT_NIL:
        slab.settled_head = slab.slots[index].next
        if slab.settled_head == SLOT_NIL:
            slab.settled_tail = SLOT_NIL
        slab.settled -= 1
    return index


cdef inline void slab_forget_due(slab_t *slab, int64_t now_ns) noexcept nogil:
    """Free the settled slots that have been remembered long enough."""
    cdef uint32_t now = <uint32_t>(now_ns >> TICK_SHIFT)
    while (slab.settled_head != SLOT_NIL
           and now - slab.slots[slab.settled_head].timer < 0x80000000U):  # ticks wrap in 52 days
        slab_release(slab, slab_forget_oldest(slab))


cdef inline bint slab_has_room(slab_t *slab) noexcept nogil:
    """Whether slab_reserve has a slot to give."""
    return (slab.free_head != SLOT_NIL or slab.settled_head != SLOT_NIL
            or slab_grow(slab) == 0)


cdef inline uint32_t slab_reserve(slab_t *slab) noexcept nogil:
    """Take a slot for a new probe; SLOT_NIL when all are in flight.

    The one free for the longest; else a new one; else the one settled for the longest.
    """
    cdef uint32_t index = slab.free_head
    if index == SLOT_NIL and slab_grow(slab) == 0:
        index = slab.free_head
    if index != SLOT_NIL:
        slab.free_head = slab.slots[index].next
        if slab.free_head == SLOT_NIL:
            slab.free_tail = SLOT_NIL
    else:
        index = slab_forget_oldest(slab)
    if index != SLOT_NIL:
        slab.slots[index].state = SLOT_RESERVED
    return index


cdef inline int64_t slot_deadline_ns(const slot_t *slot) noexcept nogil:
    return slot.sent_ns + <int64_t>slot.timer * 1000


cdef inline void slab_file(slab_t *slab, uint32_t index) noexcept nogil:
    """Start the timeout of a reserved slot whose sent_ns and timer are final."""
    cdef slot_t *slot = &slab.slots[index]
    cdef int64_t tick = (slot_deadline_ns(slot) + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT
    cdef uint32_t bucket, head
    if slab.in_flight == 0:
        slab.tick_done = slot.sent_ns >> TICK_SHIFT
    if tick <= slab.tick_done:
        tick = slab.tick_done + 1
    if tick > slab.tick_done + WHEEL_BUCKETS - 1:  # nobody called for seconds: looked at twice
        tick = slab.tick_done + WHEEL_BUCKETS - 1
    bucket = <uint32_t>(tick & (WHEEL_BUCKETS - 1))
    head = slab.buckets[bucket]
    slot.state = SLOT_IN_FLIGHT
    slot.bucket = <uint16_t>bucket
    slot.next = head
    slot.previous = SLOT_NIL
    if head != SLOT_NIL:
        slab.slots[head].previous = index
    slab.buckets[bucket] = index
    slab.occupied[bucket >> 6] |= <uint64_t>1 << (bucket & 63)
    slab.in_flight += 1


cdef inline void slab_unfile(slab_t *slab, uint32_t index) noexcept nogil:
    """Stop the timeout of a slot in flight; it ends up in no list."""
    cdef slot_t *slot = &slab.slots[index]
    if slot.previous != SLOT_NIL:
        slab.slots[slot.previous].next = slot.next
    else:
        slab.buckets[slot.bucket] = slot.next
        if slot.next == SLOT_NIL:
            slab.occupied[slot.bucket >> 6] &= ~(<uint64_t>1 << (slot.bucket & 63))
    if slot.next != SLOT_NIL:
        slab.slots[slot.next].previous = slot.previous
    slab.in_flight -= 1


cdef inline void slab_settle(
    slab_t *slab, uint32_t index, uint8_t state, int64_t now_ns,
) noexcept nogil:
    """End the flight of a slot and remember it for a while, as `state` says."""
    cdef slot_t *slot = &slab.slots[index]
    slab_unfile(slab, index)
    slot.state = state
    slot.timer = <uint32_t>(now_ns >> TICK_SHIFT) + slab.linger_ticks + 1
    slot.next = SLOT_NIL
    if slab.settled_tail == SLOT_NIL:
        slab.settled_head = index
    else:
        slab.slots[slab.settled_tail].next = index
    slab.settled_tail = index
    slab.settled += 1


cdef inline int64_t slab_next_tick(const slab_t *slab) noexcept nogil:
    """Return the first tick whose bucket holds a slot, or -1 when nothing is in flight."""
    cdef uint32_t start = <uint32_t>((slab.tick_done + 1) & (WHEEL_BUCKETS - 1))
    cdef uint32_t _, word = start >> 6
    cdef uint64_t bits = slab.occupied[word] & (~<uint64_t>0 << (start & 63))
    cdef uint32_t bucket
    if slab.in_flight == 0:
        return -1
    for _ in range(WHEEL_WORDS + 1):
        if bits:
            bucket = (word << 6) + <uint32_t>trailing_zeros(bits)
            return slab.tick_done + 1 + <int64_t>((bucket - start) & (WHEEL_BUCKETS - 1))
        word = (word + 1) & (WHEEL_WORDS - 1)
        bits = slab.occupied[word]
    return -1


cdef inline int64_t slab_next_deadline_ns(const slab_t *slab) noexcept nogil:
    """Return the instant by which the next timeout will be due, or -1 when nothing is in flight."""
    cdef int64_t tick = slab_next_tick(slab)
    return tick << TICK_SHIFT if tick >= 0 else -1


cdef inline uint32_t slab_due(slab_t *slab, int64_t now_ns) noexcept nogil:
    """Return a slot in flight whose timeout has passed, or SLOT_NIL. The caller settles it."""
    cdef int64_t now = now_ns >> TICK_SHIFT
    cdef int64_t tick
    cdef uint32_t index
    while True:
        tick = slab_next_tick(slab)
        if tick < 0 or tick > now:
            if slab.tick_done < now:
                slab.tick_done = now
            return SLOT_NIL
        slab.tick_done = tick - 1
        index = slab.buckets[tick & (WHEEL_BUCKETS - 1)]
        if slot_deadline_ns(&slab.slots[index]) <= now_ns:
            return index
        slab_unfile(slab, index)
        slab_file(slab, index)  # the wheel was too short for it when it was filed
