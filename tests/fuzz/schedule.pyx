"""The schedule of runs: an input is a sequence of pushes, pops, searches and removals."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fuzz.feed cimport feed_byte, feed_t, feed_u64, must
from schedule cimport (
    RUN_NIL, is_before, schedule_close, schedule_find, schedule_free, schedule_open, schedule_push,
    schedule_queue, schedule_remove, schedule_reserve, schedule_t, turn_t,
)

cdef enum:
    RUNS = 640                   # a schedule grows twice before it holds as many
    SEEN_WORDS = 10
    FEW = 32                     # entries that the model looks through

ctypedef struct model_t:         # what must be in the schedule: by token
    int64_t due_ns[RUNS]
    bint is_in[RUNS]
    uint32_t count
    uint32_t most
    uint32_t next_token

cdef model_t model


cdef void check_heap(const schedule_t *s) noexcept nogil:
    """Insist that the heap is one, and holds each run once."""
    cdef uint64_t seen[SEEN_WORDS]
    cdef uint32_t at, run
    memset(seen, 0, sizeof(seen))
    must(s.count == model.count, b"every entry is counted")
    must(s.used == model.most, b"runs are reused before new ones are")
    for at in range(s.count):
        run = s.heap[at].run
        must(run < s.used, b"an entry's run is one that is used")
        must(not seen[run >> 6] >> (run & 63) & 1, b"and is in the heap once")
        seen[run >> 6] |= <uint64_t>1 << (run & 63)
        must(at == 0 or is_before(&s.heap[(at - 1) >> 1], &s.heap[at]), b"a heap is ordered")


cdef void push(schedule_t *s, int64_t due_ns) noexcept nogil:
    cdef uint32_t token = model.next_token
    cdef uint32_t run
    model.next_token = token + 1 if token < RUNS - 1 else 0
    if model.is_in[token]:
        return
    run = schedule_reserve(s)
    must(run != RUN_NIL, b"there is room for a million runs")
    s.runs[run].request.token = token
    s.runs[run].request.count = 1
    schedule_queue(s, run)
    schedule_push(s, run, due_ns)
    model.due_ns[token] = due_ns
    model.is_in[token] = True
    model.count += 1
    model.most = model.count if model.count > model.most else model.most


cdef void take(schedule_t *s, uint32_t at) noexcept nogil:
    """Remove the entry at a place: it must be what was put there."""
    cdef uint32_t run = s.heap[at].run
    cdef uint64_t token = s.runs[run].request.token
    must(token < RUNS and model.is_in[token] and model.due_ns[token] == s.heap[at].due_ns,
         b"an entry is as it was pushed")
    schedule_remove(s, at)
    schedule_free(s, run)
    model.is_in[token] = False
    model.count -= 1


cdef void pop(schedule_t *s) noexcept nogil:
    cdef uint32_t at
    if s.count == 0:
        return
    for at in range(1, s.count if s.count < FEW else FEW):
        must(is_before(&s.heap[0], &s.heap[at]), b"the first is due first, and came first")
    take(s, 0)


cdef void drain(schedule_t *s) noexcept nogil:
    """Pop all: they come in order."""
    cdef turn_t last
    while s.count:
        last = s.heap[0]
        pop(s)
        must(s.count == 0 or is_before(&last, &s.heap[0]), b"what is popped is in order")


cdef void remove(schedule_t *s, uint64_t token) noexcept nogil:
    cdef uint32_t at = schedule_find(s, token)
    must((at != RUN_NIL) == (token < RUNS and model.is_in[token]), b"what is there is found")
    if at != RUN_NIL:
        take(s, at)


cdef void operate(schedule_t *s, feed_t *feed) noexcept nogil:
    cdef uint8_t what = feed_byte(feed)
    cdef uint32_t i
    if what < 100:
        push(s, feed_byte(feed))
    elif what < 120:
        push(s, <int64_t>feed_u64(feed))
    elif what < 122 and s.count < 300:
        for i in range(300):
            push(s, <int64_t>((i * what) % 64))
    elif what < 190:
        pop(s)
    else:
        remove(s, <uint64_t>feed_byte(feed) << 2 | what & 3)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    cdef schedule_t schedule
    cdef feed_t feed
    feed.data = data
    feed.left = n
    memset(&model, 0, sizeof(model))
    schedule_open(&schedule)
    while feed.left:
        operate(&schedule, &feed)
    check_heap(&schedule)
    drain(&schedule)
    check_heap(&schedule)
    schedule_close(&schedule)
    return 0
