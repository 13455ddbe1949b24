"""Indexed 8-ary min-heap of deadlines on C arrays: find, move and drop any lease by its id.

Two arrays, together under 56 bytes per lease:

* `keys`, the heap. A key is 128 bits: deadline, push order, slot; so comparing two keys compares
  deadline, then push order, and never reads another array. Eight siblings fill two cache lines.
* `buckets`, the table from ids to places: five leases a cache line, so that finding one is about
  one miss. A lease whose bucket is full goes to the next with room, and every bucket it passed
  counts it: a search ends at a bucket that nobody passed, and erasing moves nothing.

A key that leaves is not at once replaced by the last one. Its hole walks to the bottom, and where
it ends the place stays open for a later push, up to HEAP_OPEN_MAX of them. An open place holds
KEY_LAST and has only open places below it. The last to open is the first to be taken, so a place is
never taken before those above it, and the heap grows only when none is open.

What is done with leases, one or many at a time, is in heap_ops.pxd.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE  /* mremap */
    #endif
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>

    typedef unsigned __int128 netsonde_key_t;

    static inline netsonde_key_t netsonde_key(int64_t deadline_ns, uint64_t rank) {
        return (netsonde_key_t)((uint64_t)deadline_ns ^ (UINT64_C(1) << 63)) << 64 | rank;
    }
    static inline int64_t netsonde_key_deadline(netsonde_key_t key) {
        return (int64_t)((uint64_t)(key >> 64) ^ (UINT64_C(1) << 63));
    }
    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a key's slot is its first 4 bytes");
    static inline void netsonde_set_slot(netsonde_key_t *key, uint32_t slot) {
        memcpy(key, &slot, sizeof slot);  /* without waiting for the key, which is far away */
    }
    static inline void netsonde_prefetch(const void *p) {
        __builtin_prefetch(p);
        __asm__ volatile("");  /* else gcc takes a function that only prefetches for a no-op */
    }
    """
    ctypedef unsigned long long key_t "netsonde_key_t"  # 128 bits: compare and copy, nothing else
    key_t make_key "netsonde_key"(int64_t deadline_ns, uint64_t rank) noexcept nogil
    void set_slot "netsonde_set_slot"(key_t *key, uint32_t slot) noexcept nogil
    int64_t key_deadline "netsonde_key_deadline"(key_t key) noexcept nogil
    uint64_t key_rank "(uint64_t)"(key_t key) noexcept nogil  # push order << 32 | slot
    uint32_t key_slot "(uint32_t)"(key_t key) noexcept nogil
    const key_t KEY_LAST "(~(netsonde_key_t)0)"  # behind every real key: no order is 2^32 - 1
    void prefetch "netsonde_prefetch"(const void *p) noexcept nogil
    int lowest_bit "__builtin_ctz"(unsigned int x) noexcept nogil

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *start, size_t length, int protection, int flags, int fd, long offset)
    void *mremap(void *start, size_t old_length, size_t length, int flags)
    int munmap(void *start, size_t length)
    int madvise(void *start, size_t length, int advice)
    void *MAP_FAILED
    enum: MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE

cdef enum:
    HEAP_ARITY = 8
    HEAP_OPEN_MAX = 4096         # a few batches of what leaves between two batches that come
    HEAP_BUCKET = 5              # leases a bucket holds
    HEAP_TABLE_BITS_MIN = 3
    HEAP_LINE_BYTES = 64
    HEAP_ALIGN_BYTES = 128       # eight keys
    HEAP_PAGE_BYTES = 2 << 20    # a huge page
    HEAP_MAPPED_BYTES = 8 << 20  # arrays from here on are mapped, in huge pages

cdef enum: HEAP_NONE = 0xFFFFFFFF  # no place, no slot, no push order

ctypedef struct bucket_t:  # one cache line
    uint64_t ids[HEAP_BUCKET]
    uint32_t places[HEAP_BUCKET]  # index into keys, or HEAP_NONE: nothing here
    uint32_t passed               # leases elsewhere that found this bucket full

ctypedef struct heap_t:
    key_t *keys           # keys[extent .. extent + 6] are KEY_LAST: eight siblings always compare
    char *keys_block      # the allocation `keys` lies in,
    size_t keys_offset    # how far,
    size_t keys_bytes     # and its size
    bucket_t *buckets     # 2^table_bits of them, at most three quarters full
    uint32_t table_bits
    size_t count          # leases
    size_t extent         # places in use, open ones included
    size_t open_count
    uint32_t open_places[HEAP_OPEN_MAX]  # last opened last; those at or past `extent` are void
    size_t capacity
    uint64_t next_order
    uint64_t seed


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

cdef inline void *mapped(size_t n) noexcept nogil:
    """Map n bytes of zeros in huge pages where the kernel has them; NULL: no memory."""
    cdef void *block = mmap(
        NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    if block == MAP_FAILED:
        return NULL
    madvise(block, n, MADV_HUGEPAGE)
    return block


cdef inline void release(void *block, size_t n) noexcept nogil:
    if n >= HEAP_MAPPED_BYTES:
        munmap(block, n)
    else:
        free(block)


cdef inline char *resized(char *block, size_t old, size_t new) noexcept nogil:
    """Return the block with its content at a greater size, or NULL and the block as it was."""
    cdef void *fresh
    if new < HEAP_MAPPED_BYTES:
        return <char *>realloc(block, new)
    if old >= HEAP_MAPPED_BYTES:
        fresh = mremap(block, old, new, MREMAP_MAYMOVE)
        return NULL if fresh == MAP_FAILED else <char *>fresh
    fresh = mapped(new)
    if fresh != NULL and block != NULL:
        memcpy(fresh, block, old)
        free(block)
    return <char *>fresh


cdef inline size_t key_room(const heap_t *heap) noexcept nogil:
    """Return how many leases `keys` has room for."""
    cdef size_t spare = HEAP_ALIGN_BYTES * 2 + HEAP_ARITY * sizeof(key_t)
    return 0 if heap.keys_bytes < spare else (heap.keys_bytes - spare) // sizeof(key_t)


cdef inline bint grow_keys(heap_t *heap, size_t need) noexcept nogil:
    """Make room for `need` keys, such that keys[1], the first of eight siblings, is aligned."""
    cdef size_t spare = HEAP_ALIGN_BYTES * 2 + HEAP_ARITY * sizeof(key_t)
    cdef size_t n = (need + 16 + (need >> 4)) * sizeof(key_t) + spare
    cdef size_t offset
    cdef char *block
    if n >= HEAP_MAPPED_BYTES:
        n = (n + HEAP_PAGE_BYTES - 1) & ~<size_t>(HEAP_PAGE_BYTES - 1)
    block = resized(heap.keys_block, heap.keys_bytes, n)
    if block == NULL:
        return False
    offset = HEAP_ALIGN_BYTES - sizeof(key_t) + (0 - <uintptr_t>block) % HEAP_ALIGN_BYTES
    heap.keys = <key_t *>(block + offset)
    if heap.keys_bytes == 0:
        memset(heap.keys, 0xFF, HEAP_ARITY * sizeof(key_t))
    elif offset != heap.keys_offset:
        memmove(
            heap.keys, block + heap.keys_offset,
            (heap.extent + HEAP_ARITY - 1) * sizeof(key_t),
        )
    heap.keys_block = block
    heap.keys_offset = offset
    heap.keys_bytes = n
    return True


cdef inline bint grow_table(heap_t *heap, uint32_t bits) noexcept nogil:
    """Make a table of 2^bits buckets and file every lease in it."""
    cdef bucket_t *old = heap.buckets
    cdef size_t old_count = <size_t>1 << heap.table_bits
    cdef size_t n = sizeof(bucket_t) << bits, b
    cdef uint32_t ahead
    cdef int i
    cdef bucket_t *fresh = <bucket_t *>(
        mapped(n) if n >= HEAP_MAPPED_BYTES else aligned_alloc(HEAP_LINE_BYTES, n)
    )
    if fresh == NULL:
        return False
    for b in range(<size_t>1 << bits):
        memset(fresh[b].places, 0xFF, sizeof(fresh[b].places))
        fresh[b].passed = 0
    heap.buckets = fresh
    heap.table_bits = bits
    if old == NULL:
        return True
    for b in range(old_count):
        for i in range(HEAP_BUCKET):
            ahead = old[(b + 8) & (old_count - 1)].places[i]  # its key will be written soon
            if ahead != HEAP_NONE:
                prefetch(&heap.keys[ahead])
        for i in range(HEAP_BUCKET):
            if old[b].places[i] != HEAP_NONE:
                file_again(heap, old[b].ids[i], old[b].places[i])
    release(old, sizeof(bucket_t) * old_count)
    return True


cdef inline void file_again(heap_t *heap, uint64_t id_, uint32_t at) noexcept nogil:
    cdef uint32_t slot = take_slot(heap, id_)
    bucket_of(heap, slot).places[slot & 7] = at
    set_slot(&heap.keys[at], slot)


cdef inline bint heap_init(
    heap_t *heap, size_t capacity, uint64_t seed, uint32_t first_order,
) noexcept nogil:
    """Make an empty heap of a struct of any content; False: no memory."""
    memset(heap, 0, sizeof(heap_t))
    heap.capacity = capacity
    heap.seed = seed
    heap.next_order = first_order
    return grow_table(heap, HEAP_TABLE_BITS_MIN)


cdef inline void heap_free(heap_t *heap) noexcept nogil:
    release(heap.keys_block, heap.keys_bytes)
    if heap.buckets != NULL:
        release(heap.buckets, sizeof(bucket_t) << heap.table_bits)


cdef inline size_t heap_bytes(const heap_t *heap) noexcept nogil:
    """Return the bytes allocated for leases."""
    return heap.keys_bytes + (sizeof(bucket_t) << heap.table_bits)


cdef inline bint heap_reserve(heap_t *heap, size_t extra) noexcept nogil:
    """Make room for `extra` more leases, or up to the capacity; False: no memory, nothing lost."""
    cdef size_t more = min(extra, heap.capacity - heap.count)
    cdef uint32_t bits = heap.table_bits
    if heap.extent + more > key_room(heap) and not grow_keys(heap, heap.extent + more):
        return False
    while ((<size_t>HEAP_BUCKET << bits) >> 2) * 3 < heap.count + more:
        bits += 1
    return bits == heap.table_bits or grow_table(heap, bits)


# ── table: id -> place ───────────────────────────────────────────────────────────────────────────

cdef inline uint64_t load64(const char *p, size_t i) noexcept nogil:
    """Read the i-th 64-bit word of a buffer of any alignment."""
    cdef uint64_t word = 0
    memcpy(&word, p + 8 * i, 8)
    return word


cdef inline size_t home(const heap_t *heap, uint64_t id_) noexcept nogil:
    """Return where probing for id begins; the seed keeps strangers from choosing collisions."""
    cdef uint64_t x = (id_ ^ heap.seed) * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 32)) * <uint64_t>0xD6E8FEB86659FD93
    return x >> (64 - heap.table_bits)


cdef inline bucket_t *bucket_of(const heap_t *heap, uint32_t slot) noexcept nogil:
    """Return the bucket of a slot; its lowest three bits are the entry."""
    return &heap.buckets[slot >> 3]


cdef inline uint32_t find_slot(const heap_t *heap, uint64_t id_) noexcept nogil:
    """Return the slot of id, or HEAP_NONE."""
    cdef size_t mask = (<size_t>1 << heap.table_bits) - 1
    cdef size_t first = home(heap, id_), b = first
    cdef const bucket_t *bucket
    cdef unsigned int hits
    cdef int i
    while True:
        bucket = &heap.buckets[b]
        hits = 0
        for i in range(HEAP_BUCKET):  # without branching: ids come in no order
            hits |= <unsigned int>(bucket.ids[i] == id_ and bucket.places[i] != HEAP_NONE) << i
        if hits:
            return <uint32_t>(b << 3) | <uint32_t>lowest_bit(hits)
        b = (b + 1) & mask
        if bucket.passed == 0 or b == first:
            return HEAP_NONE


cdef inline uint32_t take_slot(heap_t *heap, uint64_t id_) noexcept nogil:
    """File an id that is not in the table; the caller writes its place."""
    cdef size_t mask = (<size_t>1 << heap.table_bits) - 1
    cdef size_t b = home(heap, id_)
    cdef bucket_t *bucket
    cdef int i
    while True:
        bucket = &heap.buckets[b]
        for i in range(HEAP_BUCKET):
            if bucket.places[i] == HEAP_NONE:
                bucket.ids[i] = id_
                return <uint32_t>(b << 3) | <uint32_t>i
        bucket.passed += 1
        b = (b + 1) & mask


cdef inline uint64_t erase_slot(heap_t *heap, uint32_t slot) noexcept nogil:
    """Empty a slot and return the id that was in it."""
    cdef size_t mask = (<size_t>1 << heap.table_bits) - 1
    cdef uint64_t id_ = bucket_of(heap, slot).ids[slot & 7]
    cdef size_t b = home(heap, id_)
    while b != slot >> 3:
        heap.buckets[b].passed -= 1
        b = (b + 1) & mask
    bucket_of(heap, slot).places[slot & 7] = HEAP_NONE
    return id_


cdef inline uint32_t find_place(const heap_t *heap, uint64_t id_) noexcept nogil:
    """Return where the key of id is, or HEAP_NONE."""
    cdef uint32_t slot = find_slot(heap, id_)
    return HEAP_NONE if slot == HEAP_NONE else bucket_of(heap, slot).places[slot & 7]


# ── heap ─────────────────────────────────────────────────────────────────────────────────────────

cdef inline void place(heap_t *heap, size_t at, key_t key) noexcept nogil:
    heap.keys[at] = key
    bucket_of(heap, key_slot(key)).places[key_slot(key) & 7] = <uint32_t>at


cdef inline void sift_up(heap_t *heap, size_t at, key_t key) noexcept nogil:
    """Put key at `at` or above."""
    cdef size_t parent
    while at > 0:
        parent = (at - 1) // HEAP_ARITY
        if heap.keys[parent] < key:
            break
        place(heap, at, heap.keys[parent])
        at = parent
    place(heap, at, key)


cdef inline size_t least_of_four(const key_t *keys, size_t first) noexcept nogil:
    """Return which of four keys is the least, without branching."""
    cdef size_t left = first + (keys[first + 1] < keys[first])
    cdef size_t right = first + 2 + (keys[first + 3] < keys[first + 2])
    return right if keys[right] < keys[left] else left


cdef inline size_t least_child(const heap_t *heap, size_t first) noexcept nogil:
    """Return which of the eight siblings from `first` has the least key."""
    cdef size_t left = least_of_four(heap.keys, first)
    cdef size_t right = least_of_four(heap.keys, first + HEAP_ARITY // 2)
    return right if heap.keys[right] < heap.keys[left] else left


cdef inline void sift_down(heap_t *heap, size_t at, key_t key) noexcept nogil:
    """Put key at `at` or below."""
    cdef size_t first = HEAP_ARITY * at + 1, child
    while first < heap.extent:
        child = least_child(heap, first)
        if key < heap.keys[child]:
            break
        place(heap, at, heap.keys[child])
        at = child
        first = HEAP_ARITY * at + 1
    place(heap, at, key)


cdef inline void vacate(heap_t *heap, size_t at) noexcept nogil:
    """Take the key at `at`, with none below it, out of the heap: open its place or fill it."""
    cdef key_t old = heap.keys[at], key
    heap.keys[at] = KEY_LAST
    while heap.extent and heap.keys[heap.extent - 1] == KEY_LAST:
        heap.extent -= 1
    if at >= heap.extent:
        return
    if heap.open_count < HEAP_OPEN_MAX:
        heap.open_places[heap.open_count] = <uint32_t>at
        heap.open_count += 1
        return
    heap.extent -= 1
    key = heap.keys[heap.extent]
    heap.keys[heap.extent] = KEY_LAST
    if key < old:
        sift_up(heap, at, key)
    else:
        sift_down(heap, at, key)


cdef inline size_t take_place(heap_t *heap) noexcept nogil:
    """Return the place for one more key."""
    cdef size_t at
    while heap.open_count:
        heap.open_count -= 1
        at = heap.open_places[heap.open_count]
        if at < heap.extent:
            return at
    at = heap.extent
    heap.extent += 1
    heap.keys[heap.extent + HEAP_ARITY - 2] = KEY_LAST
    return at


cdef inline bint step_down(heap_t *heap, size_t *hole) noexcept nogil:
    """Move a hole one level down by pulling up its least child; False: it is at the bottom."""
    cdef size_t first = HEAP_ARITY * hole[0] + 1, child
    if first >= heap.extent:
        return False
    child = least_child(heap, first)
    if heap.keys[child] == KEY_LAST:
        return False
    place(heap, hole[0], heap.keys[child])
    hole[0] = child
    return True


cdef inline void remove_at(heap_t *heap, size_t at) noexcept nogil:
    """Remove the key at `at`; its slot is the caller's."""
    while step_down(heap, &at):
        pass
    vacate(heap, at)
