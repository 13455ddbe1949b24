"""The caller's side of traces: requests go in, and what ended traces saw comes out."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from echostate cimport echo_t, path_t
from ring cimport atomic_store, ring_publish, ring_record, ring_room
from tracesockets cimport look_up_source
from tracestate cimport answer_t, submission_t, trace_request_t, trace_t

ctypedef struct summary_t:       # SUMMARY_FORMAT in icmp.pyx
    uint64_t token
    uint32_t sent
    uint32_t tx_errors
    uint32_t late
    uint32_t duplicates
    uint32_t rx_drops
    uint32_t error
    uint32_t missed
    uint32_t flow_label
    uint16_t checksum
    uint16_t source_port
    uint8_t stop
    uint8_t end_ttl
    uint8_t first_ttl
    uint8_t source[16]
    uint8_t spare
    uint8_t attempts[256]        # at each TTL that was tried


cdef inline void trace_choose_source(echo_t *e, submission_t *s) noexcept nogil:
    """Choose the source address of a request that names none."""
    cdef const path_t *path = &e.paths[s.request.path]
    cdef uint8_t nowhere[16]
    memset(nowhere, 0, sizeof(nowhere))
    if memcmp(s.request.source, nowhere, 16) != 0:
        return
    if path.has_source:
        memcpy(s.request.source, path.source, 16)
    else:
        s.error = <uint32_t>look_up_source(
            e.traces.routes, e.family, s.request.destination, s.request.scope, s.request.source)


cdef inline uint32_t trace_submit(echo_t *e, const uint8_t *records, size_t count) noexcept nogil:
    """Put requests into the ring; returns how many there was room for."""
    cdef uint32_t i, taken = ring_room(&e.traces.submitted)
    cdef submission_t *s
    if count < taken:
        taken = <uint32_t>count
    for i in range(taken):
        s = <submission_t *>ring_record(&e.traces.submitted, e.traces.submitted.tail + i)
        memset(s, 0, sizeof(submission_t))
        memcpy(&s.request, records + i * sizeof(trace_request_t), sizeof(trace_request_t))
        trace_choose_source(e, s)
    ring_publish(&e.traces.submitted, taken)
    if taken < count:
        atomic_store(&e.starved, 1)
    return taken


cdef inline size_t trace_summarize(const trace_t *t, summary_t *s) noexcept nogil:
    """Sum up a trace that has ended; returns how many bytes that takes."""
    cdef size_t tried = 0
    cdef int ttl
    s.token = t.request.token
    s.sent = t.sent
    s.tx_errors = t.tx_errors
    s.late = t.late
    s.duplicates = t.duplicates
    s.rx_drops = t.rx_drops
    s.error = t.error
    s.missed = t.answers_missed
    s.flow_label = t.flow_label
    s.checksum = t.checksum
    s.source_port = t.source_port
    s.stop = t.stop
    s.end_ttl = t.end_ttl
    s.first_ttl = t.request.first_ttl
    memcpy(s.source, t.request.source, 16)
    s.spare = 0
    for ttl in range(t.request.first_ttl, t.sent_ttl + 1):
        s.attempts[tried] = t.hops[ttl].attempts
        tried += 1
    return sizeof(summary_t) - sizeof(s.attempts) + tried


cdef inline tuple trace_taken(const trace_t *t):
    """Return what a trace that has ended saw: summary, answers and extensions, packed."""
    cdef summary_t summary
    cdef size_t summary_bytes = trace_summarize(t, &summary)
    return (
        PyBytes_FromStringAndSize(<const char *>&summary, <Py_ssize_t>summary_bytes),
        PyBytes_FromStringAndSize(
            <const char *>t.answers, <Py_ssize_t>(t.answers_count * sizeof(answer_t))),
        PyBytes_FromStringAndSize(<const char *>t.extensions, t.extensions_bytes),
    )
