"""What is done with the heap of heap.pxd: operations on one lease, on batches, on what is due.

At a million leases nearly every access misses the cache, and speed is how many misses are under way
at once. So batches prefetch for HEAP_BLOCK items before they touch the first, and the holes of what
was due sink HEAP_LANES at a time. Prefetches are hints: what they fetched may have moved by the
time an item's turn comes.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from heap cimport (
    HEAP_ARITY, HEAP_NONE, HEAP_OPEN_MAX, KEY_LAST, bucket_of, erase_slot, find_place, find_slot,
    heap_t, home, key_deadline, key_rank, key_slot, key_t, load64, make_key, prefetch, remove_at,
    sift_down, sift_up, step_down, take_place, take_slot, vacate,
)

cdef enum:
    HEAP_DONE = 0
    HEAP_KNOWN = 1      # pushed an id that is in the heap
    HEAP_UNKNOWN = 2    # an id that is not in the heap
    HEAP_FULL = 3       # the heap holds `capacity` leases
    HEAP_UNCHANGED = 4  # an extension that would not lengthen

cdef enum:
    HEAP_BLOCK = 32    # items prefetched together: more than the misses a core has under way
    HEAP_LANES = 16    # holes that take turns in sinking
    HEAP_RUN = 8       # keys sorted by insertion before merging


# ── one lease ────────────────────────────────────────────────────────────────────────────────────

cdef inline uint8_t heap_push(heap_t *heap, uint64_t id_, int64_t deadline_ns) noexcept nogil:
    """Add a lease; the caller has reserved room for it."""
    cdef uint64_t rank
    if find_slot(heap, id_) != HEAP_NONE:
        return HEAP_KNOWN
    if heap.count == heap.capacity:
        return HEAP_FULL
    rank = heap.next_order << 32 | take_slot(heap, id_)
    heap.next_order += 1
    heap.count += 1
    sift_up(heap, take_place(heap), make_key(deadline_ns, rank))
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
    cdef uint32_t slot = find_slot(heap, id_)
    if slot == HEAP_NONE:
        return HEAP_UNKNOWN
    remove_at(heap, bucket_of(heap, slot).places[slot & 7])
    erase_slot(heap, slot)
    heap.count -= 1
    return HEAP_DONE


cdef inline uint64_t heap_pop(heap_t *heap) noexcept nogil:
    """Remove the earliest lease and return its id; the heap is not empty."""
    cdef uint32_t slot = key_slot(heap.keys[0])
    remove_at(heap, 0)
    heap.count -= 1
    return erase_slot(heap, slot)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────

cdef inline void prefetch_children(const heap_t *heap, size_t at) noexcept nogil:
    prefetch(&heap.keys[HEAP_ARITY * at + 1])
    prefetch(&heap.keys[HEAP_ARITY * at + 1 + HEAP_ARITY // 2])


cdef inline void prefetch_buckets(const heap_t *heap, const char *ids, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        prefetch(&heap.buckets[home(heap, load64(ids, i))])


cdef inline void prefetch_leases(const heap_t *heap, const char *ids, size_t n) noexcept nogil:
    """Bring in what moving or removing the keys of these ids will read."""
    cdef size_t i
    cdef uint32_t at
    prefetch_buckets(heap, ids, n)
    for i in range(n):
        at = find_place(heap, load64(ids, i))
        if at != HEAP_NONE:
            prefetch(&heap.keys[at])
            if HEAP_ARITY * <size_t>at + 1 < heap.extent:
                prefetch_children(heap, at)


cdef inline void prefetch_open_places(const heap_t *heap, size_t n) noexcept nogil:
    """Bring in the places the next n pushes take."""
    cdef size_t i
    cdef uint32_t at
    for i in range(min(n, heap.open_count)):
        at = heap.open_places[heap.open_count - 1 - i]
        prefetch(&heap.keys[at])
        if at:
            prefetch(&heap.keys[(at - 1) // HEAP_ARITY])


cdef inline void prefetch_last(const heap_t *heap, size_t n) noexcept nogil:
    """Bring in the buckets of the last n keys: they move when no place can stay open."""
    cdef size_t i
    cdef uint32_t slot
    if heap.open_count + n > HEAP_OPEN_MAX:
        for i in range(min(n, heap.extent)):
            slot = key_slot(heap.keys[heap.extent - 1 - i])
            if slot != HEAP_NONE:
                prefetch(bucket_of(heap, slot))


cdef inline void heap_push_batch(
    heap_t *heap, const char *ids, const char *deadlines_ns, size_t n, uint8_t *codes,
) noexcept nogil:
    cdef size_t begin = 0, end, i
    while begin < n:
        end = min(begin + HEAP_BLOCK, n)
        prefetch_buckets(heap, ids + 8 * begin, end - begin)
        prefetch_open_places(heap, end - begin)
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
        prefetch_last(heap, end - begin)
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
        if first < heap.extent:
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
        prefetch(bucket_of(heap, key_slot(due.keys[i])))
    sort_keys(due.keys, due.count, due.keys + due.count)
    return True


cdef inline void heap_pop_due(heap_t *heap, due_t *due, uint64_t *ids) noexcept nogil:
    """Remove what heap_due found and write the ids in order; the heap has not changed since."""
    cdef size_t i
    if not due.all:
        for i in range(due.count):
            ids[i] = heap_pop(heap)
        return
    for i in range(due.count):
        ids[i] = erase_slot(heap, key_slot(due.keys[i]))
    sink_holes(heap, due.holes, due.count)
    heap.count -= due.count


cdef inline void sink_holes(heap_t *heap, const uint32_t *holes, size_t n) noexcept nogil:
    """Close the holes, ascending places, deepest first, in groups that do not touch each other.

    Holes none of which is another's ancestor have separate subtrees, so their walks to the bottom
    take turns: the cache misses of one pass while the others work. The keys left in the holes of
    groups to come are due, so less than any other: nothing rises past them.
    """
    cdef size_t at[HEAP_LANES]
    cdef size_t lanes, lane
    cdef bint walking
    while n:
        lanes = 1
        while (
            lanes < HEAP_LANES and lanes < n
            and HEAP_ARITY * <size_t>holes[n - lanes - 1] >= holes[n - 1]
        ):
            lanes += 1
        n -= lanes
        for lane in range(lanes):
            at[lane] = holes[n + lane]
        walking = True
        while walking:
            walking = False
            for lane in range(lanes):
                if step_down(heap, &at[lane]):
                    prefetch_children(heap, at[lane])
                    walking = True
        for lane in range(lanes):  # all of them before one is filled with another
            heap.keys[at[lane]] = KEY_LAST
        for lane in range(lanes):
            vacate(heap, at[lane])


# ── push order ───────────────────────────────────────────────────────────────────────────────────

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


cdef inline bint heap_renumber(heap_t *heap, size_t extra) noexcept nogil:
    """Number the leases anew, oldest 0, when the 32 bits of push order would run out."""
    cdef key_t *ranks
    cdef size_t i, at, n = 0
    if heap.next_order + min(extra, heap.capacity - heap.count) <= HEAP_NONE:
        return True
    ranks = <key_t *>malloc((2 * heap.count + 1) * sizeof(key_t))
    if ranks == NULL:
        return False
    for at in range(heap.extent):
        if heap.keys[at] != KEY_LAST:
            ranks[n] = make_key(<int64_t>(key_rank(heap.keys[at]) >> 32), at)
            n += 1
    sort_keys(ranks, n, ranks + n)
    for i in range(n):
        at = key_rank(ranks[i])
        heap.keys[at] = make_key(
            key_deadline(heap.keys[at]), <uint64_t>i << 32 | key_slot(heap.keys[at])
        )
    free(ranks)
    heap.next_order = n
    return True
