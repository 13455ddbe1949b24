"""Runs that still have packets to send, ordered by when the next one is due.

A binary heap of (instant, run) over a table of runs. A run is in the heap unless the caller is just
sending for it. Of runs that are due at the same instant, as those of one bucket are, the first is
the one that has waited the longest since its last packet. The number of runs is bounded by the
table.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

cdef enum:
    RUNS_FIRST = 256
    RUNS_MAX = 1 << 20           # 96 MiB with the heap; beyond it new runs wait in the ring

cdef extern from *:
    """
    #define RUN_NIL 0xFFFFFFFFu
    """
    uint32_t RUN_NIL

ctypedef struct request_t:       # REQUEST_FORMAT in icmp.pyx
    uint64_t token               # of the first packet; each further one's is one more
    uint64_t interval_ns
    uint64_t timeout_ns
    uint8_t destination[16]
    uint32_t scope
    uint32_t count               # packets
    uint16_t size                # payload bytes
    uint16_t path                # number of the path it takes
    uint8_t ttl
    uint8_t tos
    uint8_t flags
    uint8_t spare

ctypedef struct run_t:
    request_t request
    int64_t not_before_ns        # of its next packet, by when the last one left
    uint32_t sent
    uint32_t order               # among runs due at one instant; wraps
    uint32_t next_free

ctypedef struct turn_t:          # an entry of the heap
    int64_t due_ns
    uint32_t run
    uint32_t order

ctypedef struct schedule_t:
    run_t *runs
    turn_t *heap
    uint32_t room                # of both
    uint32_t free_head
    uint32_t used                # runs ever used
    uint32_t count               # entries of the heap
    uint32_t order               # of the run that sent last


cdef inline void schedule_open(schedule_t *s) noexcept nogil:
    memset(s, 0, sizeof(schedule_t))
    s.free_head = RUN_NIL


cdef inline void schedule_close(schedule_t *s) noexcept nogil:
    """Free the memory. Idempotent."""
    free(s.runs)
    free(s.heap)
    schedule_open(s)


cdef inline int schedule_grow(schedule_t *s) noexcept nogil:
    """Double the room; -1 at the limit or without memory."""
    cdef uint32_t room = s.room * 2 if s.room else RUNS_FIRST
    cdef void *grown
    if room > RUNS_MAX:
        return -1
    grown = realloc(s.runs, room * sizeof(run_t))
    if grown == NULL:
        return -1
    s.runs = <run_t *>grown
    grown = realloc(s.heap, room * sizeof(turn_t))
    if grown == NULL:
        return -1
    s.heap = <turn_t *>grown
    s.room = room
    return 0


cdef inline uint32_t schedule_reserve(schedule_t *s) noexcept nogil:
    """Take an unused run that is in no list; RUN_NIL when there is none."""
    cdef uint32_t run = s.free_head
    if run != RUN_NIL:
        s.free_head = s.runs[run].next_free
        return run
    if s.used == s.room and schedule_grow(s) < 0:
        return RUN_NIL
    run = s.used
    s.used += 1
    return run


cdef inline void schedule_free(schedule_t *s, uint32_t run) noexcept nogil:
    """Give back a run that is not in the heap."""
    s.runs[run].next_free = s.free_head
    s.free_head = run


cdef inline void schedule_queue(schedule_t *s, uint32_t run) noexcept nogil:
    """Put a run behind all others that will be due when it is."""
    s.order += 1
    s.runs[run].order = s.order


cdef inline bint is_before(const turn_t *one, const turn_t *other) noexcept nogil:
    if one.due_ns != other.due_ns:
        return one.due_ns < other.due_ns
    return <int32_t>(one.order - other.order) < 0


cdef inline void heap_raise(schedule_t *s, uint32_t at, turn_t turn) noexcept nogil:
    """Put a turn at a hole or above it."""
    cdef uint32_t parent
    while at > 0:
        parent = (at - 1) >> 1
        if not is_before(&turn, &s.heap[parent]):
            break
        s.heap[at] = s.heap[parent]
        at = parent
    s.heap[at] = turn


cdef inline void heap_lower(schedule_t *s, uint32_t at, turn_t turn) noexcept nogil:
    """Put a turn at a hole or below it."""
    cdef uint32_t child = 2 * at + 1
    while child < s.count:
        if child + 1 < s.count and is_before(&s.heap[child + 1], &s.heap[child]):
            child += 1
        if not is_before(&s.heap[child], &turn):
            break
        s.heap[at] = s.heap[child]
        at = child
        child = 2 * at + 1
    s.heap[at] = turn


cdef inline void schedule_push(schedule_t *s, uint32_t run, int64_t due_ns) noexcept nogil:
    """Let a run send at an instant. The heap has room for every run there is."""
    cdef turn_t turn
    turn.due_ns = due_ns
    turn.run = run
    turn.order = s.runs[run].order
    s.count += 1
    heap_raise(s, s.count - 1, turn)


cdef inline void schedule_remove(schedule_t *s, uint32_t at) noexcept nogil:
    """Take the entry at a place out of the heap."""
    cdef turn_t last
    s.count -= 1
    if at == s.count:
        return
    last = s.heap[s.count]
    if at > 0 and is_before(&last, &s.heap[(at - 1) >> 1]):
        heap_raise(s, at, last)
    else:
        heap_lower(s, at, last)


cdef inline uint32_t schedule_find(schedule_t *s, uint64_t token) noexcept nogil:
    """Return the place in the heap of the run whose request has this token, or RUN_NIL.

    Looks at every run: cancelling is rare. A trace's, which has no count of packets, has a name of
    another kind.
    """
    cdef uint32_t at
    cdef const request_t *request
    for at in range(s.count):
        request = &s.runs[s.heap[at].run].request
        if request.token == token and request.count:
            return at
    return RUN_NIL
