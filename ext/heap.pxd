"""Indexed 4-ary min-heap of deadlines on C arrays: find, move and drop any lease by its id.

Three structures, all growing arrays, together under 56 bytes per lease:

* `keys`, the heap. A key is 128 bits: deadline, push order, slot; so comparing two keys compares
  deadline, then push order, and never reads a second array. Four siblings share a cache line.
* `ids` and `places`, by slot: a lease's id and where its key is now. A free slot's `ids` entry is
  the next free slot.
* `index`, open addressing with linear probing: a bucket is 32 bits of hash and slot + 1, so that
  probing, growing and closing the gap of an erased bucket read no other array.

A lookup is four dependent cache misses; batches take HEAP_BLOCK items through each miss together
by prefetching. Prefetches are hints: what they read may have moved by the time an item's turn comes.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>

    typedef unsigned __int128 netsonde_key_t;

    static inline netsonde_key_t netsonde_key(int64_t deadline_ns, uint64_t rank) {
        return (netsonde_key_t)((uint64_t)deadline_ns ^ (UINT64_C(1) << 63)) << 64 | rank;
    }
    static inline int64_t netsonde_key_deadline(netsonde_key_t key) {
        return (int64_t)((uint64_t)(key >> 64) ^ (UINT64_C(1) << 63));
    }
    static inline void netsonde_prefetch(const void *p) {
        __builtin_prefetch(p);
        __asm__ volatile("");  /* else gcc takes a function that only prefetches for a no-op */
    }
    """
    ctypedef unsigned long long key_t "netsonde_key_t"  # 128 bits: compare and copy, nothing else
    key_t make_key "netsonde_key"(int64_t deadline_ns, uint64_t rank) noexcept nogil
    int64_t key_deadline "netsonde_key_deadline"(key_t key) noexcept nogil
    uint64_t key_rank "(uint64_t)"(key_t key) noexcept nogil  # push order << 32 | slot
    uint32_t key_slot "(uint32_t)"(key_t key) noexcept nogil
    const key_t KEY_LAST "(~(netsonde_key_t)0)"  # behind every real key: no slot is 2^32 - 1
    void prefetch "netsonde_prefetch"(const void *p) noexcept nogil

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *start, size_t length, int advice)
    enum: MADV_HUGEPAGE

cdef enum:
    HEAP_DONE = 0
    HEAP_KNOWN = 1      # pushed an id that is in the heap
    HEAP_UNKNOWN = 2    # an id that is not in the heap
    HEAP_FULL = 3       # the heap holds `capacity` leases
    HEAP_UNCHANGED = 4  # an extension that would not lengthen

cdef enum:
    HEAP_ARITY = 4
    HEAP_BLOCK = 32           # items prefetched together: more than the misses a core has in flight
    HEAP_LANES = 8            # walks that take turns in refill_holes
    HEAP_RUN = 8              # keys sorted by insertion before merging
    HEAP_CACHE_LINE = 64
    HEAP_HUGE_BYTES = 4 << 20  # arrays from here on ask for huge pages: random access, few TLB misses
    HEAP_INDEX_BITS_MIN = 6

cdef enum: HEAP_NONE = 0xFFFFFFFF

ctypedef struct heap_t:
    key_t *keys           # keys[count .. count + 2] are KEY_LAST, so four siblings always compare
    void *keys_block      # the allocation `keys` lies in,
    size_t keys_offset    # and how far
    uint64_t *ids
    uint32_t *places
    uint64_t *index
    size_t count
    size_t capacity
    size_t room           # slots and keys allocated
    size_t slots_used     # slots ever taken; those above were never touched
    uint32_t free_slot    # head of the list of free slots, or HEAP_NONE
    uint32_t index_bits
    uint64_t next_order
    uint64_t seed


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

cdef inline bint heap_init(
    heap_t *heap, size_t capacity, uint64_t seed, uint32_t first_order,
) noexcept nogil:
    """Make an empty heap of a struct of any content; False: no memory."""
    memset(heap, 0, sizeof(heap_t))
    heap.capacity = capacity
    heap.seed = seed
    heap.next_order = first_order
    heap.free_slot = HEAP_NONE
    return grow_index(heap, HEAP_INDEX_BITS_MIN)


cdef inline size_t heap_bytes(const heap_t *heap) noexcept nogil:
    """Return the bytes allocated for leases."""
    return (
        heap.room * (sizeof(key_t) + sizeof(uint64_t) + sizeof(uint32_t))
        + (sizeof(uint64_t) << heap.index_bits)
    )


cdef inline void heap_free(heap_t *heap) noexcept nogil:
    free(heap.keys_block)
    free(heap.ids)
    free(heap.places)
    free(heap.index)


cdef inline void *grown(void *block, size_t new_bytes) noexcept nogil:
    """Return the block with its content at its new size, or NULL and the block as it was."""
    cdef void *fresh = realloc(block, new_bytes)
    cdef uintptr_t page
    if fresh != NULL and new_bytes >= HEAP_HUGE_BYTES:
        page = (<uintptr_t>fresh + 4095) & ~<uintptr_t>4095
        madvise(<void *>page, <uintptr_t>fresh + new_bytes - page, MADV_HUGEPAGE)
    return fresh


cdef inline bint grow_keys(heap_t *heap, size_t room) noexcept nogil:
    """Reallocate `keys` so that keys[1], the first of four siblings, begins a cache line."""
    cdef size_t slack = 2 * HEAP_CACHE_LINE + (HEAP_ARITY - 1) * sizeof(key_t)
    cdef size_t offset
    cdef void *block = grown(heap.keys_block, room * sizeof(key_t) + slack)
    if block == NULL:
        return False
    offset = (0 - <uintptr_t>block) % HEAP_CACHE_LINE + HEAP_CACHE_LINE - sizeof(key_t)
    heap.keys = <key_t *>(<char *>block + offset)
    if heap.keys_block == NULL:
        memset(heap.keys, 0xFF, HEAP_ARITY * sizeof(key_t))
    elif offset != heap.keys_offset:
        memmove(
            heap.keys, <char *>block + heap.keys_offset,
            (heap.count + HEAP_ARITY - 1) * sizeof(key_t),
        )
    heap.keys_block = block
    heap.keys_offset = offset
    return True


cdef inline bint grow_index(heap_t *heap, uint32_t bits) noexcept nogil:
    """Make the index 2^bits buckets; buckets hold their hash, so no id is read."""
    cdef uint64_t *fresh = <uint64_t *>calloc(<size_t>1 << bits, sizeof(uint64_t))
    cdef size_t mask = (<size_t>1 << bits) - 1, i, to
    cdef uint64_t bucket
    if fresh == NULL:
        return False
    if sizeof(uint64_t) << bits >= HEAP_HUGE_BYTES:
        to = (<uintptr_t>fresh + 4095) & ~<uintptr_t>4095
        madvise(<void *>to, <uintptr_t>(fresh + mask + 1) - to, MADV_HUGEPAGE)
    if heap.index != NULL:
        for i in range(<size_t>1 << heap.index_bits):
            bucket = heap.index[i]
            if bucket:
                to = bucket >> (64 - bits)
                while fresh[to]:
                    to = (to + 1) & mask
                fresh[to] = bucket
        free(heap.index)
    heap.index = fresh
    heap.index_bits = bits
    return True


cdef inline bint heap_reserve(heap_t *heap, size_t extra) noexcept nogil:
    """Make room for `extra` more leases, or up to the capacity; False: no memory, nothing lost."""
    cdef size_t need = heap.capacity - heap.count
    cdef size_t room
    cdef uint32_t bits = heap.index_bits
    cdef void *block
    need = heap.count + (extra if extra < need else need)
    if need > heap.room:
        room = heap.room + (heap.room >> 3)  # by an eighth: memory before a copy now and then
        room = min(max(room, need + 64), heap.capacity)
        if not grow_keys(heap, room):
            return False
        block = grown(heap.ids, room * sizeof(uint64_t))
        if block == NULL:
            return False
        heap.ids = <uint64_t *>block
        block = grown(heap.places, room * sizeof(uint32_t))
        if block == NULL:
            return False
        heap.places = <uint32_t *>block
        heap.room = room
    while (<size_t>1 << bits) - (<size_t>1 << bits >> 2) < need:  # at most three quarters full
        bits += 1
    return bits == heap.index_bits or grow_index(heap, bits)


# ── index: id -> slot ────────────────────────────────────────────────────────────────────────────

cdef inline uint64_t load64(const char *p, size_t i) noexcept nogil:
    """Read the i-th 64-bit word of a buffer of any alignment."""
    cdef uint64_t word = 0
    memcpy(&word, p + 8 * i, 8)
    return word


cdef inline uint64_t hash_id(const heap_t *heap, uint64_t id_) noexcept nogil:
    """Return 32 hash bits in the upper half; the seed keeps strangers from choosing collisions."""
    cdef uint64_t x = (id_ ^ heap.seed) * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 32)) * <uint64_t>0xD6E8FEB86659FD93
    return x & <uint64_t>0xFFFFFFFF00000000


cdef inline size_t home(const heap_t *heap, uint64_t bucket) noexcept nogil:
    return bucket >> (64 - heap.index_bits)


cdef inline size_t find_bucket(const heap_t *heap, uint64_t id_, uint64_t hash_) noexcept nogil:
    """Return the bucket that holds id, or the empty one where it belongs."""
    cdef size_t mask = (<size_t>1 << heap.index_bits) - 1
    cdef size_t at = home(heap, hash_)
    cdef uint64_t bucket = heap.index[at]
    while bucket:
        if (bucket ^ hash_) >> 32 == 0 and heap.ids[<uint32_t>bucket - 1] == id_:
            break
        at = (at + 1) & mask
        bucket = heap.index[at]
    return at


cdef inline uint32_t find_slot(const heap_t *heap, uint64_t id_) noexcept nogil:
    """Return the slot of id, or HEAP_NONE."""
    return <uint32_t>heap.index[find_bucket(heap, id_, hash_id(heap, id_))] - 1


cdef inline void erase_bucket(heap_t *heap, size_t gap) noexcept nogil:
    """Empty a bucket and pull back those behind it that it pushed away: no tombstones."""
    cdef size_t mask = (<size_t>1 << heap.index_bits) - 1
    cdef size_t at = gap
    cdef uint64_t bucket
    while True:
        at = (at + 1) & mask
        bucket = heap.index[at]
        if bucket == 0:
            break
        if ((at - home(heap, bucket)) & mask) >= ((at - gap) & mask):
            heap.index[gap] = bucket
            gap = at
    heap.index[gap] = 0


cdef inline void prefetch_buckets(const heap_t *heap, const char *ids, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        prefetch(&heap.index[home(heap, hash_id(heap, load64(ids, i)))])


cdef inline void prefetch_leases(const heap_t *heap, const char *ids, size_t n) noexcept nogil:
    """Bring in everything a lookup of these ids, at most HEAP_BLOCK, and a sift will read."""
    cdef uint32_t slots[HEAP_BLOCK]
    cdef size_t mask = (<size_t>1 << heap.index_bits) - 1
    cdef size_t i, at, found = 0
    cdef uint64_t bucket, hash_
    prefetch_buckets(heap, ids, n)
    for i in range(n):
        hash_ = hash_id(heap, load64(ids, i))
        at = home(heap, hash_)
        bucket = heap.index[at]
        while bucket and (bucket ^ hash_) >> 32:
            at = (at + 1) & mask
            bucket = heap.index[at]
        if bucket:
            slots[found] = <uint32_t>bucket - 1
            prefetch(&heap.ids[slots[found]])
            prefetch(&heap.places[slots[found]])
            found += 1
    for i in range(found):
        at = heap.places[slots[i]]
        prefetch(&heap.keys[at])
        if HEAP_ARITY * at + 1 < heap.count:
            prefetch(&heap.keys[HEAP_ARITY * at + 1])


# ── heap ─────────────────────────────────────────────────────────────────────────────────────────

cdef inline void place(heap_t *heap, size_t at, key_t key) noexcept nogil:
    heap.keys[at] = key
    heap.places[key_slot(key)] = <uint32_t>at


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


cdef inline size_t least_child(const heap_t *heap, size_t first) noexcept nogil:
    """Return which of the four siblings from `first` has the least key, without branching."""
    cdef const key_t *keys = heap.keys + first
    cdef size_t left = keys[1] < keys[0]
    cdef size_t right = 2 + <size_t>(keys[3] < keys[2])
    return first + (right if keys[right] < keys[left] else left)


cdef inline void sift_down(heap_t *heap, size_t at, key_t key) noexcept nogil:
    """Put key at `at` or below."""
    cdef size_t first = HEAP_ARITY * at + 1, child
    while first < heap.count:
        child = least_child(heap, first)
        if key < heap.keys[child]:
            break
        place(heap, at, heap.keys[child])
        at = child
        first = HEAP_ARITY * at + 1
    place(heap, at, key)


cdef inline key_t take_last(heap_t *heap) noexcept nogil:
    """Shorten the heap by one and return the key that was at its end."""
    cdef key_t key
    heap.count -= 1
    key = heap.keys[heap.count]
    heap.keys[heap.count] = KEY_LAST
    return key


cdef inline void remove_at(heap_t *heap, size_t at) noexcept nogil:
    """Remove the key at `at`; its slot and bucket are the caller's."""
    cdef key_t key = take_last(heap)
    if at == heap.count:
        return
    if at > 0 and key < heap.keys[(at - 1) // HEAP_ARITY]:
        sift_up(heap, at, key)
    else:
        sift_down(heap, at, key)


cdef inline void refill(heap_t *heap, size_t hole) noexcept nogil:
    """Fill a hole near the root with the last key: walk the hole to the bottom, then climb.

    The last key nearly always belongs at the bottom, so not comparing with it on the way down
    saves a badly predicted branch per level.
    """
    cdef key_t key = take_last(heap)
    cdef size_t first = HEAP_ARITY * hole + 1, child
    if hole == heap.count:
        return
    while first < heap.count:
        child = least_child(heap, first)
        place(heap, hole, heap.keys[child])
        hole = child
        first = HEAP_ARITY * hole + 1
    sift_up(heap, hole, key)


# ── operations ───────────────────────────────────────────────────────────────────────────────────

cdef inline void free_slot(heap_t *heap, uint32_t slot) noexcept nogil:
    heap.ids[slot] = heap.free_slot
    heap.free_slot = slot


cdef inline uint8_t heap_push(heap_t *heap, uint64_t id_, int64_t deadline_ns) noexcept nogil:
    """Add a lease; the caller has reserved room for it."""
    cdef uint64_t hash_ = hash_id(heap, id_)
    cdef size_t bucket = find_bucket(heap, id_, hash_)
    cdef uint32_t slot
    if heap.index[bucket]:
        return HEAP_KNOWN
    if heap.count == heap.capacity:
        return HEAP_FULL
    slot = heap.free_slot
    if slot == HEAP_NONE:
        slot = <uint32_t>heap.slots_used
        heap.slots_used += 1
    else:
        heap.free_slot = <uint32_t>heap.ids[slot]
    heap.index[bucket] = hash_ | (slot + 1)
    heap.ids[slot] = id_
    heap.count += 1
    heap.keys[heap.count + HEAP_ARITY - 2] = KEY_LAST
    sift_up(heap, heap.count - 1, make_key(deadline_ns, heap.next_order << 32 | slot))
    heap.next_order += 1
    return HEAP_DONE


cdef inline uint8_t heap_move(
    heap_t *heap, uint64_t id_, int64_t deadline_ns, bint lengthen_only,
) noexcept nogil:
    """Give a lease another deadline; among equals it keeps its push order."""
    cdef uint32_t slot = find_slot(heap, id_)
    cdef size_t at
    cdef key_t old, key
    if slot == HEAP_NONE:
        return HEAP_UNKNOWN
    at = heap.places[slot]
    old = heap.keys[at]
    key = make_key(deadline_ns, key_rank(old))
    if old < key:
        sift_down(heap, at, key)
    elif lengthen_only:
        return HEAP_UNCHANGED
    else:
        sift_up(heap, at, key)
    return HEAP_DONE


cdef inline uint8_t heap_drop(heap_t *heap, uint64_t id_) noexcept nogil:
    """Forget a lease."""
    cdef size_t bucket = find_bucket(heap, id_, hash_id(heap, id_))
    cdef uint32_t slot
    if heap.index[bucket] == 0:
        return HEAP_UNKNOWN
    slot = <uint32_t>heap.index[bucket] - 1
    erase_bucket(heap, bucket)
    remove_at(heap, heap.places[slot])
    free_slot(heap, slot)
    return HEAP_DONE


cdef inline uint64_t heap_pop(heap_t *heap) noexcept nogil:
    """Remove the earliest lease and return its id; the heap is not empty."""
    cdef uint32_t slot = key_slot(heap.keys[0])
    cdef uint64_t id_ = heap.ids[slot]
    erase_bucket(heap, find_bucket(heap, id_, hash_id(heap, id_)))
    refill(heap, 0)
    free_slot(heap, slot)
    return id_


cdef inline void heap_push_batch(
    heap_t *heap, const char *ids, const char *deadlines_ns, size_t n, uint8_t *codes,
) noexcept nogil:
    cdef size_t begin = 0, end, i
    while begin < n:
        end = min(begin + HEAP_BLOCK, n)
        prefetch_buckets(heap, ids + 8 * begin, end - begin)
        for i in range(begin, end):
            codes[i] = heap_push(heap, load64(ids, i), <int64_t>load64(deadlines_ns, i))
        begin = end


cdef inline void heap_move_batch(
    heap_t *heap, const char *ids, const char *deadlines_ns, size_t n, bint lengthen_only,
    uint8_t *codes,
) noexcept nogil:
    cdef size_t begin = 0, end, i
    while begin < n:
        end = min(begin + HEAP_BLOCK, n)
        prefetch_leases(heap, ids + 8 * begin, end - begin)
        for i in range(begin, end):
            codes[i] = heap_move(
                heap, load64(ids, i), <int64_t>load64(deadlines_ns, i), lengthen_only
            )
        begin = end


cdef inline void heap_drop_batch(
    heap_t *heap, const char *ids, size_t n, uint8_t *codes,
) noexcept nogil:
    cdef size_t begin = 0, end, i
    while begin < n:
        end = min(begin + HEAP_BLOCK, n)
        prefetch_leases(heap, ids + 8 * begin, end - begin)
        for i in range(begin, end):
            codes[i] = heap_drop(heap, load64(ids, i))
        begin = end


# ── what is due ──────────────────────────────────────────────────────────────────────────────────

ctypedef struct due_t:
    size_t count     # leases to pop
    bint all         # whether they are all that is due; then the arrays below are filled
    uint32_t *holes  # where their keys are, ascending
    key_t *keys      # the keys in order, and as much room again for sorting


cdef inline void heap_due_free(due_t *due) noexcept nogil:
    free(due.holes)
    free(due.keys)


cdef inline bint heap_due(
    const heap_t *heap, int64_t now_ns, size_t limit, due_t *due,
) noexcept nogil:
    """Find the leases due at now_ns, at most limit; nothing changes. False: no memory.

    Due keys are a tree at the root, so walking it in array order reads four keys per due lease.
    """
    cdef key_t bound = make_key(now_ns, ~<uint64_t>1)
    cdef size_t room = 0, at, child, first
    memset(due, 0, sizeof(due_t))
    if heap.count == 0 or limit == 0 or bound < heap.keys[0]:
        due.all = True
        return True
    at = 0
    while True:
        if due.count + HEAP_ARITY >= room:
            room = 2 * room + HEAP_BLOCK
            if not more_holes(due, room):
                return False
        if at == 0:
            due.holes[0] = 0
            due.count = 1
        first = HEAP_ARITY * <size_t>due.holes[at] + 1
        if first < heap.count:
            for child in range(first, first + HEAP_ARITY):
                due.holes[due.count] = <uint32_t>child
                due.count += not bound < heap.keys[child]
                prefetch(&heap.keys[HEAP_ARITY * child + 1])
        if due.count > limit:
            due.count = limit
            return True
        at += 1
        if at == due.count:
            break
    due.all = True
    return sorted_keys(heap, due)


cdef inline bint more_holes(due_t *due, size_t room) noexcept nogil:
    cdef void *block = realloc(due.holes, room * sizeof(uint32_t))
    if block == NULL:
        heap_due_free(due)
        return False
    due.holes = <uint32_t *>block
    return True


cdef inline bint sorted_keys(const heap_t *heap, due_t *due) noexcept nogil:
    """Copy the keys at the holes and sort them."""
    cdef size_t i
    due.keys = <key_t *>malloc(2 * due.count * sizeof(key_t))
    if due.keys == NULL:
        heap_due_free(due)
        return False
    for i in range(due.count):
        due.keys[i] = heap.keys[due.holes[i]]
        prefetch(&heap.ids[key_slot(due.keys[i])])
    sort_keys(due.keys, due.count, due.keys + due.count)
    return True


cdef inline void sort_keys(key_t *keys, size_t n, key_t *spare) noexcept nogil:
    """Sort n keys; spare has room for n."""
    cdef size_t i, j, begin, run = HEAP_RUN
    cdef key_t key
    cdef key_t *source = keys
    cdef key_t *target = spare
    for i in range(n):
        key = keys[i]
        begin = i - i % HEAP_RUN
        j = i
        while j > begin and key < keys[j - 1]:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key
    while run < n:
        begin = 0
        while begin < n:
            merge_keys(source, begin, min(begin + run, n), min(begin + 2 * run, n), target)
            begin += 2 * run
        source, target = target, source
        run *= 2
    if source != keys:
        memcpy(keys, source, n * sizeof(key_t))


cdef inline void merge_keys(
    const key_t *source, size_t begin, size_t middle, size_t end, key_t *target,
) noexcept nogil:
    """Merge source[begin:middle] and source[middle:end] into target[begin:end]."""
    cdef size_t left = begin, right = middle, to = begin
    cdef bint from_right
    while left < middle and right < end:
        from_right = source[right] < source[left]
        target[to] = source[right if from_right else left]
        right += from_right
        left += not from_right
        to += 1
    memcpy(target + to, source + left, (middle - left) * sizeof(key_t))
    memcpy(target + to + middle - left, source + right, (end - right) * sizeof(key_t))


cdef inline void heap_pop_due(heap_t *heap, due_t *due, uint64_t *ids) noexcept nogil:
    """Remove what heap_due found and write the ids in order; the heap has not changed since."""
    cdef size_t begin = 0, end, i
    if not due.all:
        for i in range(due.count):
            ids[i] = heap_pop(heap)
        return
    while begin < due.count:
        end = min(begin + HEAP_BLOCK, due.count)
        for i in range(begin, end):
            ids[i] = heap.ids[key_slot(due.keys[i])]
        prefetch_buckets(heap, <const char *>(ids + begin), end - begin)
        for i in range(begin, end):
            erase_bucket(heap, find_bucket(heap, ids[i], hash_id(heap, ids[i])))
            free_slot(heap, key_slot(due.keys[i]))
        begin = end
    refill_holes(heap, due.holes, due.count)


cdef inline void refill_holes(heap_t *heap, const uint32_t *holes, size_t n) noexcept nogil:
    """Fill the holes, ascending positions, deepest first, in groups that do not touch each other.

    Holes none of which is another's ancestor have separate subtrees, so their walks to the bottom
    take turns: the cache misses of one pass while the others work.
    """
    cdef size_t lanes
    while n:
        lanes = 1
        while (
            lanes < HEAP_LANES and lanes < n
            and HEAP_ARITY * <size_t>holes[n - lanes - 1] >= holes[n - 1]
        ):
            lanes += 1
        if lanes == 1 or holes[n - 1] + lanes >= heap.count:
            refill(heap, holes[n - 1])
            n -= 1
        else:
            refill_lanes(heap, holes + n - lanes, lanes)
            n -= lanes


cdef inline void refill_lanes(heap_t *heap, const uint32_t *holes, size_t lanes) noexcept nogil:
    cdef key_t tail[HEAP_LANES]
    cdef size_t at[HEAP_LANES]
    cdef size_t lane, first, child
    cdef bint walking = True
    for lane in range(lanes):
        tail[lane] = take_last(heap)
        at[lane] = holes[lane]
    while walking:
        walking = False
        for lane in range(lanes):
            first = HEAP_ARITY * at[lane] + 1
            if first < heap.count:
                child = least_child(heap, first)
                prefetch(&heap.keys[HEAP_ARITY * child + 1])
                place(heap, at[lane], heap.keys[child])
                at[lane] = child
                walking = True
    for lane in range(lanes):
        sift_up(heap, at[lane], tail[lane])


cdef inline bint heap_renumber(heap_t *heap, size_t extra) noexcept nogil:
    """Number the leases anew, oldest 0, when the 32 bits of push order would run out."""
    cdef key_t *ranks
    cdef size_t i, at
    if heap.next_order + min(extra, heap.capacity - heap.count) <= HEAP_NONE:
        return True
    ranks = <key_t *>malloc((2 * heap.count + 1) * sizeof(key_t))
    if ranks == NULL:
        return False
    for i in range(heap.count):
        ranks[i] = make_key(<int64_t>(key_rank(heap.keys[i]) >> 32), i)
    sort_keys(ranks, heap.count, ranks + heap.count)
    for i in range(heap.count):
        at = key_rank(ranks[i])
        heap.keys[at] = make_key(
            key_deadline(heap.keys[at]), <uint64_t>i << 32 | key_slot(heap.keys[at])
        )
    free(ranks)
    heap.next_order = heap.count
    return True
