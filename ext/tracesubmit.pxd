"""From a caller's request to a trace that waits to be taken up."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from echostate cimport echo_t, path_t
from ring cimport atomic_store, ring_publish, ring_record, ring_room
from sysnet cimport AF_INET
from traceprobe cimport trace_draw_flow
from tracesockets cimport look_up_source
from tracestate cimport trace_new, trace_request_t, trace_t


cdef inline void trace_settle_flow(echo_t *e, trace_t *trace) noexcept nogil:
    """Choose the source address and what is constant in the flow."""
    cdef const path_t *path = &e.paths[trace.request.path]
    cdef uint8_t nowhere[16]
    memset(nowhere, 0, sizeof(nowhere))
    if memcmp(trace.request.source, nowhere, 16) == 0:
        if path.has_source:
            memcpy(trace.request.source, path.source, 16)
        else:
            trace.error = <uint32_t>look_up_source(
                e.traces.routes, e.family, trace.request.destination, trace.request.scope,
                trace.request.source)
            trace.is_void = trace.error != 0
    trace_draw_flow(&e.traces, e.key, trace, e.family == AF_INET)


cdef inline uint32_t trace_submit(echo_t *e, const uint8_t *records, size_t count) noexcept nogil:
    """Put traces into the ring; returns how many there was room and memory for."""
    cdef uint32_t taken = 0, room = ring_room(&e.traces.submitted)
    cdef trace_t *trace
    while taken < count and taken < room:
        trace = trace_new(<const trace_request_t *>(records + taken * sizeof(trace_request_t)))
        if trace == NULL:
            break
        trace_settle_flow(e, trace)
        memcpy(ring_record(&e.traces.submitted, e.traces.submitted.tail + taken), &trace,
               sizeof(trace))
        taken += 1
    ring_publish(&e.traces.submitted, taken)
    if taken < count:
        atomic_store(&e.starved, 1)
    return taken
