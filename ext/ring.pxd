"""A ring of fixed-size records between two threads: one writes, the other reads, none waits.

The counters run free and wrap at 2^32; their difference is what the ring holds. Records are read
and written in place, and handed over by publishing or releasing a number of them at once.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef extern from *:
    """
    #define NETSONDE_LOAD(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define NETSONDE_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    #define NETSONDE_SWAP(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
    """
    uint32_t atomic_load "NETSONDE_LOAD"(const uint32_t *p) nogil
    void atomic_store "NETSONDE_STORE"(uint32_t *p, uint32_t value) nogil
    uint32_t atomic_swap "NETSONDE_SWAP"(uint32_t *p, uint32_t value) nogil

ctypedef struct ring_t:
    uint8_t *records
    uint32_t record_bytes
    uint32_t capacity          # a power of two
    uint32_t head              # records ever released; the reader's
    uint8_t apart[64]          # two threads, two cache lines
    uint32_t tail              # records ever published; the writer's


cdef inline int ring_open(ring_t *ring, uint32_t record_bytes, uint32_t capacity) noexcept nogil:
    """Make an empty ring; capacity is a power of two. -1 without memory.

    Its pages are touched now: the first lap would pay a page fault for each.
    """
    cdef size_t size = <size_t>capacity * record_bytes
    memset(ring, 0, sizeof(ring_t))
    ring.record_bytes = record_bytes
    ring.capacity = capacity
    ring.records = <uint8_t *>malloc(size)
    if ring.records == NULL:
        return -1
    memset(ring.records, 0xFF, size)
    return 0


cdef inline void ring_close(ring_t *ring) noexcept nogil:
    """Free the memory. Idempotent."""
    free(ring.records)
    ring.records = NULL


cdef inline uint32_t ring_count(ring_t *ring) noexcept nogil:
    """Return how many published records have not been released."""
    return atomic_load(&ring.tail) - atomic_load(&ring.head)


cdef inline uint32_t ring_room(ring_t *ring) noexcept nogil:
    """Return how many more records the writer may publish."""
    return ring.capacity - ring_count(ring)


cdef inline uint8_t *ring_record(ring_t *ring, uint32_t at) noexcept nogil:
    """Return the place of the record with free-running number `at`."""
    return ring.records + <size_t>(at & (ring.capacity - 1)) * ring.record_bytes


cdef inline void ring_publish(ring_t *ring, uint32_t count) noexcept nogil:
    """Hand `count` records written from tail on to the reader."""
    atomic_store(&ring.tail, ring.tail + count)


cdef inline void ring_release(ring_t *ring, uint32_t count) noexcept nogil:
    """Give the places of the `count` oldest records back to the writer."""
    atomic_store(&ring.head, ring.head + count)
