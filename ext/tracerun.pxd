"""A trace among the engine's runs: what wakes it, what it learns, how it ends."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from echostate cimport (
    CLOCK_RX_KERNEL, DONE_HOP, DONE_TRACED, arrival_t, completion_t, echo_claims_drop,
    echo_has_room, echo_note, echo_t,
)
from echostamp cimport echo_received_ns
from inflight cimport (
    SLOT_ANSWERED, SLOT_IN_FLIGHT, SLOT_NIL, SLOT_UNANSWERED, slab_due, slab_forget_due,
    slab_settle, slot_t,
)
from schedule cimport schedule_free, schedule_push, schedule_queue
from sysnet cimport AF_INET
from tracepath cimport (
    PATH_DONE, PATH_WAIT, path_gave_up, path_mark, path_next, path_stop, path_take,
)
from tracestate cimport (
    ANSWER_DUPLICATE, ANSWER_LATE, ANSWER_NIL, ANSWER_REFUSED, ANSWER_USER_CLOCK, TRACE_WATCH,
    answer_t, probe_trace, trace_add_answer, trace_t,
)


cdef inline int token_ttl(uint64_t token) noexcept nogil:
    return <int>(token >> 8 & 0xFF)


cdef inline int token_attempt(uint64_t token) noexcept nogil:
    return <int>(token & 0xFF)


cdef inline void trace_end(echo_t *e, trace_t *trace) noexcept nogil:
    """Hand a trace back to its caller; answers that still come are stale.

    A run that waits in the heap finds no trace when its turn comes, and is freed then.
    """
    trace.stop = path_stop(trace)
    trace.is_ended = True
    e.traces.count -= 1
    if not trace.is_scheduled:
        schedule_free(&e.schedule, trace.run)
    echo_note(e, trace.request.token, DONE_TRACED).rtt_ns = trace.number


cdef inline void trace_look(echo_t *e, trace_t *trace, int64_t now_ns) noexcept nogil:
    """Decide what follows from what a trace has learnt. One that is scheduled is asked in time."""
    cdef uint8_t ttl = 0
    cdef int64_t due_ns = now_ns
    cdef int what
    if trace.is_scheduled:
        return
    what = path_next(trace, now_ns, &ttl, &due_ns)
    if what == PATH_DONE:
        trace_end(e, trace)
    elif what != PATH_WAIT:
        trace.is_scheduled = True
        schedule_queue(&e.schedule, trace.run)
        schedule_push(&e.schedule, trace.run, due_ns)


cdef inline void trace_sent(echo_t *e, const slot_t *slot) noexcept nogil:
    """Note that the kernel took a probe."""
    cdef trace_t *trace = probe_trace(&e.traces, slot.token)
    if trace != NULL:
        trace.sent += 1


cdef inline void trace_refused(
    echo_t *e, const slot_t *slot, uint8_t error, int64_t now_ns,
) noexcept nogil:
    """Note that the kernel did not; the hop is asked again as after a loss."""
    cdef trace_t *trace = probe_trace(&e.traces, slot.token)
    cdef answer_t *answer
    if trace == NULL:
        return
    trace.tx_errors += 1
    trace.error = error
    answer = trace_add_answer(trace)
    if answer != NULL:
        answer.sent_ns = now_ns
        answer.rtt_ns = -1
        answer.kind = ANSWER_REFUSED
        answer.ttl = <uint8_t>token_ttl(slot.token)
        answer.attempt = <uint8_t>token_attempt(slot.token)
        answer.code = error
    path_gave_up(trace, token_ttl(slot.token))
    trace_look(e, trace, now_ns)


cdef inline void trace_expire(echo_t *e, int64_t now_ns) noexcept nogil:
    """Give up the probes that have been waited for, and forget the long settled."""
    cdef uint32_t index = slab_due(&e.traces.slab, now_ns)
    cdef slot_t *slot
    cdef trace_t *trace
    while index != SLOT_NIL and echo_has_room(e, 1):
        slot = &e.traces.slab.slots[index]
        slab_settle(&e.traces.slab, index, SLOT_UNANSWERED, now_ns)
        trace = probe_trace(&e.traces, slot.token)
        if trace != NULL:
            trace.rx_drops += echo_claims_drop(e, slot)
            path_gave_up(trace, token_ttl(slot.token))
            trace_look(e, trace, now_ns)
        index = slab_due(&e.traces.slab, now_ns)
    slab_forget_due(&e.traces.slab, now_ns)


cdef inline void trace_tell(echo_t *e, const trace_t *trace, const answer_t *answer) noexcept nogil:
    """Write a completion for one answer. Its TTL and size are the probe's TTL and attempt."""
    cdef completion_t *c = echo_note(e, trace.request.token, DONE_HOP)
    c.rtt_ns = answer.rtt_ns
    c.sent_ns = answer.sent_ns
    memcpy(c.responder, answer.responder, 16)
    c.icmp_type = answer.type
    c.icmp_code = answer.code
    c.ttl = answer.ttl
    c.size = answer.attempt
    c.clocks = answer.kind
    c.error = answer.flags


cdef inline answer_t *trace_answer(
    echo_t *e, trace_t *trace, uint32_t index, const arrival_t *a, uint8_t known,
) noexcept nogil:
    """Note that a probe was answered, by what `a` says; known: HOP_ bits of an answer in time.

    Returns the answer for its caller to fill in, or NULL without room. The caller then calls
    trace_answered.
    """
    cdef slot_t *slot = &e.traces.slab.slots[index]
    cdef uint8_t clocks = 0
    cdef uint8_t flags = 0
    cdef size_t width = 4 if e.family == AF_INET else 16
    cdef uint16_t number = ANSWER_NIL
    cdef int64_t rtt_ns = echo_received_ns(e, slot, a, &clocks) - slot.sent_ns
    cdef int ttl = token_ttl(slot.token)
    cdef answer_t *answer
    if rtt_ns < 0:
        rtt_ns = 0
    if slot.state == SLOT_ANSWERED:
        flags |= ANSWER_DUPLICATE
        trace.duplicates += 1
    elif rtt_ns > <int64_t>trace.request.timeout_ns:
        flags |= ANSWER_LATE
        trace.late += 1
    if not clocks & CLOCK_RX_KERNEL:
        flags |= ANSWER_USER_CLOCK
    if slot.state == SLOT_IN_FLIGHT:
        slab_settle(&e.traces.slab, index, SLOT_ANSWERED, a.user_ns)
        path_gave_up(trace, ttl)
    slot.state = SLOT_ANSWERED
    answer = trace_add_answer(trace)
    if answer != NULL:
        if trace.answers_count <= ANSWER_NIL:
            number = <uint16_t>(trace.answers_count - 1)
        answer.sent_ns = slot.sent_ns
        answer.rtt_ns = rtt_ns
        memcpy(answer.responder, a.source, width)
        answer.ttl = <uint8_t>ttl
        answer.attempt = <uint8_t>token_attempt(slot.token)
        answer.reply_ttl = a.ttl
        answer.flags = flags
    if not flags & (ANSWER_DUPLICATE | ANSWER_LATE):
        path_take(trace, ttl, known, number, path_mark(a.source, width), rtt_ns)
    return answer


cdef inline void trace_answered(
    echo_t *e, trace_t *trace, const answer_t *answer, int64_t now_ns,
) noexcept nogil:
    """Tell who watches, and go on."""
    if answer != NULL and trace.request.flags & TRACE_WATCH:
        trace_tell(e, trace, answer)
    trace_look(e, trace, now_ns)
