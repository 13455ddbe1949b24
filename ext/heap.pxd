"""Indexed 8-ary min-heap of deadlines on C arrays: find, move and drop any lease by its id.

Two arrays, together under 56 bytes per lease:

* `keys`, the heap. A key is 128 bits: deadline, push order, slot; so comparing two keys compares
  deadline, then push order, and never reads another array. Eight siblings fill two cache lines.
* `nodes`, an open-addressing table with linear probing: a lease's id and the place of its key. Its
  index is the slot in the key. Erasing pulls back the nodes behind: there are no tombstones.

At a million leases nearly every access misses the cache, and speed is how many misses are under way
at once. So batches prefetch for HEAP_BLOCK items before they touch the first, and holes that pops
leave behind are refilled HEAP_LANES at a time. Prefetches are hints: what they fetched may have
moved by the time an item's turn comes.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE  /* mremap */
    #endif
    #include <stdint.h>
    #include <sys/mman.h>

    typedef unsigned __int128 netsonde_key_t;

    static inline netsonde_key_t netsonde_key(int64_t deadline_ns, uint64_t rank) {
        return (netsonde_key_t)((uint64_t)deadline_ns ^ (UINT64_C(1) << 63)) << 64 | rank;
    }
    static inline int64_t netsonde_key_deadline(netsonde_key_t key) {
        return (int64_t)((uint64_t)(key >> 64) ^ (UINT64_C(1) << 63));
    }
    static inline netsonde_key_t netsonde_key_with_slot(netsonde_key_t key, uint32_t slot) {
        return (key >> 32 << 32) | slot;
    }
    static inline void netsonde_prefetch(const void *p) {
        __builtin_prefetch(p);
        __asm__ volatile("");  /* else gcc takes a function that only prefetches for a no-op */
    }

    typedef struct __attribute__((packed, aligned(4))) {
        uint64_t id;
        uint32_t place;  /* index into keys, or 2^32 - 1: this node is empty */
    } netsonde_node_t;
    """
    ctypedef unsigned long long key_t "netsonde_key_t"  # 128 bits: compare and copy, nothing else
    key_t make_key "netsonde_key"(int64_t deadline_ns, uint64_t rank) noexcept nogil
    key_t with_slot "netsonde_key_with_slot"(key_t key, uint32_t slot) noexcept nogil
    int64_t key_deadline "netsonde_key_deadline"(key_t key) noexcept nogil
    uint64_t key_rank "(uint64_t)"(key_t key) noexcept nogil  # push order << 32 | slot
    uint32_t key_slot "(uint32_t)"(key_t key) noexcept nogil
    const key_t KEY_LAST "(~(netsonde_key_t)0)"  # behind every real key: no order is 2^32 - 1
    void prefetch "netsonde_prefetch"(const void *p) noexcept nogil

    ctypedef struct node_t "netsonde_node_t":
        uint64_t id
        uint32_t place

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *start, size_t length, int protection, int flags, int fd, long offset)
    void *mremap(void *start, size_t old_length, size_t length, int flags)
    int munmap(void *start, size_t length)
    int madvise(void *start, size_t length, int advice)
    void *MAP_FAILED
    enum: MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE

cdef enum:
    HEAP_DONE = 0
    HEAP_KNOWN = 1      # pushed an id that is in the heap
    HEAP_UNKNOWN = 2    # an id that is not in the heap
    HEAP_FULL = 3       # the heap holds `capacity` leases
    HEAP_UNCHANGED = 4  # an extension that would not lengthen

cdef enum:
    HEAP_ARITY = 8
    HEAP_BLOCK = 32    # items prefetched together: more than the misses a core has under way
    HEAP_LANES = 16    # walks that take turns in refill_lanes
    HEAP_CLUSTER = 4   # a search for an empty node may well get this far, to the next cache line
    HEAP_RUN = 8       # keys sorted by insertion before merging
    HEAP_TABLE_BITS_MIN = 6
    HEAP_ALIGN_BYTES = 128              # eight keys
    HEAP_PAGE_BYTES = 2 << 20           # a huge page
    HEAP_MAPPED_BYTES = 8 << 20         # arrays from here on are mapped, in huge pages

cdef enum: HEAP_NONE = 0xFFFFFFFF  # the place of an empty node, and no push order

ctypedef struct heap_t:
    key_t *keys           # keys[count .. count + 6] are KEY_LAST, so eight siblings compare always
    char *keys_block      # the allocation `keys` lies in,
    size_t keys_offset    # how far,
    size_t keys_bytes     # and its size
    node_t *nodes         # 2^table_bits of them, at most two thirds in use
    uint32_t table_bits
    size_t count
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
    cdef size_t n = max(need + 16, need + (heap.count >> 4)) * sizeof(key_t) + spare
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
            (heap.count + HEAP_ARITY - 1) * sizeof(key_t),
        )
    heap.keys_block = block
    heap.keys_offset = offset
    heap.keys_bytes = n
    return True


cdef inline bint grow_table(heap_t *heap, uint32_t bits) noexcept nogil:
    """Make a table of 2^bits nodes and file every lease in it."""
    cdef node_t *old = heap.nodes
    cdef size_t old_count = <size_t>1 << heap.table_bits
    cdef size_t n = sizeof(node_t) << bits, i, to
    cdef node_t *fresh = <node_t *>(mapped(n) if n >= HEAP_MAPPED_BYTES else malloc(n))
    if fresh == NULL:
        return False
    memset(fresh, 0xFF, n)
    heap.nodes = fresh
    heap.table_bits = bits
    if old == NULL:
        return True
    for i in range(old_count):
        if old[i].place != HEAP_NONE:
            to = find_node(heap, old[i].id)
            fresh[to] = old[i]
            heap.keys[old[i].place] = with_slot(heap.keys[old[i].place], <uint32_t>to)
    release(old, sizeof(node_t) * old_count)
    return True


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
    if heap.nodes != NULL:
        release(heap.nodes, sizeof(node_t) << heap.table_bits)


cdef inline size_t heap_bytes(const heap_t *heap) noexcept nogil:
    """Return the bytes allocated for leases."""
    return heap.keys_bytes + (sizeof(node_t) << heap.table_bits)


cdef inline bint heap_reserve(heap_t *heap, size_t extra) noexcept nogil:
    """Make room for `extra` more leases, or up to the capacity; False: no memory, nothing lost."""
    cdef size_t need = heap.count + min(extra, heap.capacity - heap.count)
    cdef uint32_t bits = heap.table_bits
    if need > key_room(heap) and not grow_keys(heap, need):
        return False
    while (<size_t>2 << bits) // 3 < need:
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


cdef inline size_t find_node(const heap_t *heap, uint64_t id_) noexcept nogil:
    """Return the slot of id, or the empty one where it belongs."""
    cdef size_t mask = (<size_t>1 << heap.table_bits) - 1
    cdef size_t at = home(heap, id_)
    while heap.nodes[at].place != HEAP_NONE and heap.nodes[at].id != id_:
        at = (at + 1) & mask
    return at


cdef inline uint32_t find_place(const heap_t *heap, uint64_t id_) noexcept nogil:
    """Return where the key of id is, or HEAP_NONE."""
    return heap.nodes[find_node(heap, id_)].place


cdef inline void erase_node(heap_t *heap, size_t gap) noexcept nogil:
    """Empty a node and pull back those behind it that it pushed away."""
    cdef size_t mask = (<size_t>1 << heap.table_bits) - 1
    cdef size_t at = gap
    cdef node_t node
    while True:
        at = (at + 1) & mask
        node = heap.nodes[at]
        if node.place == HEAP_NONE:
            break
        if ((at - home(heap, node.id)) & mask) >= ((at - gap) & mask):
            heap.nodes[gap] = node
            heap.keys[node.place] = with_slot(heap.keys[node.place], <uint32_t>gap)
            gap = at
    heap.nodes[gap].place = HEAP_NONE


cdef inline void prefetch_children(const heap_t *heap, size_t at) noexcept nogil:
    prefetch(&heap.keys[HEAP_ARITY * at + 1])
    prefetch(&heap.keys[HEAP_ARITY * at + 1 + HEAP_ARITY // 2])


cdef inline void prefetch_nodes(
    const heap_t *heap, const char *ids, size_t n, bint clusters,
) noexcept nogil:
    cdef size_t i, at
    for i in range(n):
        at = home(heap, load64(ids, i))
        prefetch(&heap.nodes[at])
        if clusters:
            prefetch(&heap.nodes[at + HEAP_CLUSTER])


cdef inline void prefetch_leases(
    const heap_t *heap, const char *ids, size_t n, bint removing,
) noexcept nogil:
    """Bring in what finding these ids and moving or removing their keys will read."""
    cdef size_t i
    cdef uint32_t at
    prefetch_nodes(heap, ids, n, removing)
    for i in range(n):
        at = find_place(heap, load64(ids, i))
        if at != HEAP_NONE:
            prefetch(&heap.keys[at])
            if HEAP_ARITY * <size_t>at + 1 < heap.count:
                prefetch_children(heap, at)
    if removing:  # keys from the end take the places
        for i in range(min(n, heap.count)):
            prefetch(&heap.nodes[key_slot(heap.keys[heap.count - 1 - i])])


# ── heap ─────────────────────────────────────────────────────────────────────────────────────────

cdef inline void place(heap_t *heap, size_t at, key_t key) noexcept nogil:
    heap.keys[at] = key
    heap.nodes[key_slot(key)].place = <uint32_t>at


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
    """Remove the key at `at`; its node is the caller's."""
    cdef key_t old = heap.keys[at]
    cdef key_t key = take_last(heap)
    if at == heap.count:
        return
    if key < old:
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

cdef inline uint8_t heap_push(heap_t *heap, uint64_t id_, int64_t deadline_ns) noexcept nogil:
    """Add a lease; the caller has reserved room for it."""
    cdef size_t slot = find_node(heap, id_)
    if heap.nodes[slot].place != HEAP_NONE:
        return HEAP_KNOWN
    if heap.count == heap.capacity:
        return HEAP_FULL
    heap.nodes[slot].id = id_
    heap.count += 1
    heap.keys[heap.count + HEAP_ARITY - 2] = KEY_LAST
    sift_up(heap, heap.count - 1, make_key(deadline_ns, heap.next_order << 32 | slot))
    heap.next_order += 1
    return HEAP_DONE


cdef inline uint8_t heap_move(
    heap_t *heap, uint64_t id_, int64_t deadline_ns, bint lengthen_only,
) noexcept nogil:
    """Give a lease another deadline; among equals it keeps its push order."""
    cdef uint32_t at = find_place(heap, id_)
    cdef key_t old, key
    if at == HEAP_NONE:
        return HEAP_UNKNOWN
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
    cdef size_t slot = find_node(heap, id_)
    cdef uint32_t at = heap.nodes[slot].place
    if at == HEAP_NONE:
        return HEAP_UNKNOWN
    erase_node(heap, slot)
    remove_at(heap, at)
    return HEAP_DONE


cdef inline uint64_t heap_pop(heap_t *heap) noexcept nogil:
    """Remove the earliest lease and return its id; the heap is not empty."""
    cdef uint32_t slot = key_slot(heap.keys[0])
    cdef uint64_t id_ = heap.nodes[slot].id
    erase_node(heap, slot)
    refill(heap, 0)
    return id_


cdef inline void heap_push_batch(
    heap_t *heap, const char *ids, const char *deadlines_ns, size_t n, uint8_t *codes,
) noexcept nogil:
    cdef size_t begin = 0, end, i
    while begin < n:
        end = min(begin + HEAP_BLOCK, n)
        prefetch_nodes(heap, ids + 8 * begin, end - begin, True)
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
        prefetch_leases(heap, ids + 8 * begin, end - begin, False)
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
        prefetch_leases(heap, ids + 8 * begin, end - begin, True)
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

    Due keys are a tree at the root, so walking it in array order reads eight keys per due lease.
    """
    cdef key_t bound = make_key(now_ns, ~<uint64_t>1)
    cdef size_t room = 0, at, child, first, before
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
            before = due.count
            for child in range(first, first + HEAP_ARITY):
                due.holes[due.count] = <uint32_t>child
                due.count += not bound < heap.keys[child]
            for child in range(before, due.count):
                prefetch_children(heap, due.holes[child])
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
        prefetch(&heap.nodes[key_slot(due.keys[i])])
        prefetch(&heap.nodes[key_slot(due.keys[i]) + HEAP_CLUSTER])
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
    cdef size_t i
    if not due.all:
        for i in range(due.count):
            ids[i] = heap_pop(heap)
        return
    for i in range(due.count):
        ids[i] = heap.nodes[key_slot(due.keys[i])].id
    for i in range(due.count):  # erasing moves nodes: their slots are true in the heap only
        erase_node(heap, key_slot(heap.keys[due.holes[i]]))
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
                prefetch_children(heap, child)
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
