"""An engine for which there is no memory, sooner or later: it says so, and frees what it had."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset

from budget cimport keyed_open
from echostate cimport (
    BACKEND_RAW, BUFFER_MAX_BYTES, batch_size_buffers, echo_free, echo_t,
)
from fuzz.feed cimport feed_byte, feed_t, must
from inflight cimport slab_has_room, slab_open, slab_reserve
from native.echo_door cimport door_open
from native.trace_door cimport door_submit
from ring cimport ring_count
from schedule cimport RUN_NIL, RUNS_FIRST, schedule_reserve
from tracesend cimport trace_new_run
from tracestate cimport (
    ANSWER_TRUNCATED, ANSWERS_MAX, EXTENSION_MAX, EXTENSIONS_MAX, answer_t, probe_trace,
    trace_add_answer, trace_keep_extension, trace_request_t, trace_t, traces_open,
)

cdef extern from *:
    """
    #include <stdlib.h>
    /* Allocations that succeed before one fails; below 0: none does. */
    static int netsonde_allocations = -1;
    static int netsonde_has_memory(void) {
        return netsonde_allocations < 0 || netsonde_allocations-- > 0;
    }
    #define malloc(n) (netsonde_has_memory() ? (malloc)(n) : NULL)
    #define calloc(n, size) (netsonde_has_memory() ? (calloc)((n), (size)) : NULL)
    #define realloc(p, n) (netsonde_has_memory() ? (realloc)((p), (n)) : NULL)
    """
    int allocations "netsonde_allocations"

cdef echo_t engine


cdef bint open_engine(bint exact) noexcept nogil:
    """Open everything that an engine allocates."""
    return (door_open(&engine, 4, BACKEND_RAW, exact, 7) == 0
            and slab_open(&engine.slab, 2000, 0) == 0
            and keyed_open(&engine.prefixes, 1) == 0 and keyed_open(&engine.targets, 1) == 0
            and traces_open(&engine.traces) == 0)


cdef void grow() noexcept nogil:
    """Use more than there is room for at first, with memory or without."""
    cdef uint32_t reserved = 0, size
    cdef size_t buffers = engine.received.buffer_bytes
    cdef int grown = batch_size_buffers(&engine.received, BUFFER_MAX_BYTES)
    must(engine.received.buffer_bytes == (buffers if grown < 0 else BUFFER_MAX_BYTES),
         b"without memory the old buffers stay")
    while slab_has_room(&engine.slab) and reserved < 1500:
        slab_reserve(&engine.slab)
        reserved += 1
    size = engine.slab.size
    must(reserved == 1500 or reserved == size, b"without memory the old slots stay")
    reserved = 0
    while reserved <= RUNS_FIRST and schedule_reserve(&engine.schedule) != RUN_NIL:
        reserved += 1
    must(reserved == engine.schedule.used and reserved <= engine.schedule.room,
         b"without memory the old runs stay")


cdef void trace() noexcept nogil:
    """Take up a trace and let it see more than it may keep; it is the engine's, which frees it."""
    cdef trace_request_t r
    cdef trace_t *t
    cdef answer_t answer
    cdef int64_t due_ns = 0
    cdef uint32_t _, run
    memset(&r, 0, sizeof(r))
    r.first_ttl = r.last_ttl = 9
    must(door_submit(&engine, &r, 0), b"an engine without traces has room for one")
    run = trace_new_run(&engine, 0, &due_ns)
    must((run == RUN_NIL) == (ring_count(&engine.traces.submitted) == 1)
         and engine.crowded == (run == RUN_NIL), b"without memory it waits")
    if run == RUN_NIL:
        must(engine.schedule.used == 0 or engine.schedule.free_head == 0, b"and has no run")
        return
    t = probe_trace(&engine.traces, engine.schedule.runs[run].request.token)
    for _ in range(ANSWERS_MAX + 3):
        trace_add_answer(t)
    must(t.answers_count + t.answers_missed == ANSWERS_MAX + 3 and t.answers_count <= ANSWERS_MAX
         and t.answers_missed >= 3, b"answers beyond the limit, or memory, are counted")
    for _ in range(2 * EXTENSIONS_MAX // EXTENSION_MAX):
        memset(&answer, 0, sizeof(answer))
        trace_keep_extension(t, &answer, engine.filler, EXTENSION_MAX)
        must(answer.extension_bytes == (0 if answer.flags & ANSWER_TRUNCATED else EXTENSION_MAX)
             and answer.extension_at + answer.extension_bytes <= t.extensions_bytes,
             b"an extension is kept whole or not at all")
    must(t.extensions_bytes <= EXTENSIONS_MAX, b"and they have a limit")


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first byte says which allocation fails; the second, which engine and what it does."""
    global allocations
    cdef feed_t feed
    cdef uint8_t how
    feed.data = data
    feed.left = n
    allocations = feed_byte(&feed) & 63
    how = feed_byte(&feed)
    if open_engine(how & 1):
        if how & 2:
            trace()
        else:
            grow()
    else:
        must(allocations < 0, b"only for want of memory")
    allocations = -1
    echo_free(&engine)
    echo_free(&engine)
    return 0
