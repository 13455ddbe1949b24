"""Probes of traces among the engine's packets: which one is next, and what it looks like."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from echogate cimport echo_gate
from echosend cimport (
    echo_can_receive, echo_cookie, echo_filler_sum, echo_name, put_number, put_path, put_pieces,
)
from echostate cimport (
    BACKEND_DATAGRAM, FLAG_TRACE, FULL_RETRY_NS, STEP_AGAIN, STEP_BLOCKED, STEP_ENDED,
    STEP_PARKED, echo_t, tx_t,
)
from inflight cimport slab_has_room, slab_reserve, slot_t
from packet cimport store_be64
from ring cimport atomic_store, ring_count, ring_record, ring_release
from schedule cimport RUN_NIL, run_t, schedule_free, schedule_queue, schedule_reserve
from sysnet cimport (
    AF_INET, IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_TCLASS, msghdr,
)
from tracepath cimport PATH_DONE, PATH_LATER, PATH_WAIT, path_next, path_patience_ns, path_sending
from traceprobe cimport (
    PROBE_HEAD_BYTES, UDP_HEADER_BYTES, probe_check, trace_draw_flow, write_probe, write_probe_ip,
)
from tracerun cimport trace_end
from tracestate cimport (
    METHOD_TCP, METHOD_UDP, TRACES_MAX, probe_token, probe_trace, submission_t, trace_enter,
    trace_leave, trace_new, trace_t,
)


cdef inline slot_t *trace_fill_slot(
    echo_t *e, uint32_t index, const trace_t *trace, int ttl, int attempt,
) noexcept nogil:
    """Note in a slot what is about to be sent."""
    cdef slot_t *slot = &e.traces.slab.slots[index]
    e.serial += 1
    slot.token = probe_token(trace, ttl, attempt)
    slot.serial = e.serial
    slot.timer = <uint32_t>((path_patience_ns(trace, attempt) + 999) // 1000)
    slot.size = trace.request.size
    slot.steps = e.wall.steps
    slot.overflows = e.overflows
    slot.clocks = 0
    memcpy(slot.destination, trace.request.destination, 16)
    return slot


cdef inline void trace_prepare(
    echo_t *e, size_t at, uint32_t run, const trace_t *trace, int ttl, int attempt,
) noexcept nogil:
    """Make message `at` of the batch a probe; there is a slot for it."""
    cdef tx_t *tx = &e.tx[at]
    cdef msghdr *head = &e.tx_messages[at].msg_hdr
    cdef bint v4 = e.family == AF_INET
    cdef bint is_tcp = trace.request.method == METHOD_TCP
    cdef uint32_t index = slab_reserve(&e.traces.slab)
    cdef slot_t *slot = trace_fill_slot(e, index, trace, ttl, attempt)
    cdef size_t header = 0, written, rest = 0 if is_tcp else trace.request.size - (
        PROBE_HEAD_BYTES - UDP_HEADER_BYTES)
    cdef uint8_t name[8]
    cdef uint64_t cookie
    store_be64(name, <uint64_t>index << 32 | slot.serial)
    cookie = echo_cookie(e, name)
    slot.checksum = probe_check(cookie)
    tx.slot = index
    tx.slab = &e.traces.slab
    tx.run = run
    tx.asks = False
    tx.socket = e.traces.tx_socket
    echo_name(e, tx, head, &e.schedule.runs[run].request)
    head.msg_control = tx.control
    head.msg_controllen = 0
    if e.backend == BACKEND_DATAGRAM:
        put_number(head, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_TTL if v4 else IPV6_HOPLIMIT, ttl)
        if trace.request.tos:
            put_number(head, IPPROTO_IP if v4 else IPPROTO_IPV6, IP_TOS if v4 else IPV6_TCLASS,
                       trace.request.tos)
    else:
        header = write_probe_ip(
            tx.head, trace, ttl,
            <uint16_t>(index + 1) if trace.request.method == METHOD_UDP else slot.checksum, v4)
    if trace.request.path:
        put_path(e, head, &e.paths[trace.request.path])
    written = write_probe(
        tx.head + header, trace, e.traces.ident, index, slot.serial, cookie,
        echo_filler_sum(e, rest), v4)
    put_pieces(e, tx, head, header + written, rest)


cdef inline int trace_step(
    echo_t *e, uint32_t number, int64_t *due_ns, int64_t now_ns, size_t *filled,
) noexcept nogil:
    """Put what a trace may send now into the batch; returns a STEP_. due_ns: of its next probe."""
    cdef run_t *run = &e.schedule.runs[number]
    cdef trace_t *trace = probe_trace(&e.traces, run.request.token)
    cdef uint8_t ttl = 0
    cdef int what
    cdef int64_t again_ns
    if trace == NULL:
        return STEP_ENDED
    while filled[0] < e.batch_limit:
        what = path_next(trace, now_ns, &ttl, due_ns)
        if what == PATH_DONE:
            trace_end(e, trace)
            return STEP_ENDED
        if what == PATH_WAIT:
            trace.is_scheduled = False
            return STEP_PARKED
        if what == PATH_LATER:
            return STEP_AGAIN
        # Before the gate: tokens are for packets that leave.
        if not slab_has_room(&e.traces.slab) or not echo_can_receive(e, trace.request.size):
            e.blocked_until_ns = now_ns + FULL_RETRY_NS
            return STEP_BLOCKED
        again_ns = echo_gate(e, &e.tx[filled[0]], &run.request, now_ns)
        if again_ns:
            due_ns[0] = again_ns
            return STEP_BLOCKED if e.blocked_until_ns else STEP_AGAIN
        trace_prepare(e, filled[0], number, trace, ttl, trace.hops[ttl].attempts)
        path_sending(trace, ttl, now_ns)
        filled[0] += 1
        schedule_queue(&e.schedule, number)
    due_ns[0] = now_ns
    return STEP_AGAIN


cdef inline bint trace_is_waiting(echo_t *e) noexcept nogil:
    """Whether a trace waits to be taken up, and there is a number for it.

    If there is none, whoever returns one is to say so: told before it is looked once more.
    """
    if ring_count(&e.traces.submitted) == 0:
        return False
    if e.traces.free_count == 0:
        atomic_store(&e.traces.wants_number, 1)
    return e.traces.free_count != 0 or ring_count(&e.traces.returned) != 0


cdef inline trace_t *trace_take_up(echo_t *e) noexcept nogil:
    """Make a trace of the oldest request in the ring, for which there is a number.

    Without memory the request stays where it is, and the answer is NULL.
    """
    cdef const submission_t *s = <const submission_t *>ring_record(
        &e.traces.submitted, e.traces.submitted.head)
    cdef trace_t *trace = trace_new(&s.request)
    if trace == NULL:
        return NULL
    trace.error = s.error
    trace.is_void = s.error != 0
    trace.is_cancelled = s.is_cancelled
    trace_draw_flow(&e.traces, e.key, trace, e.family == AF_INET)
    trace_enter(&e.traces, trace)
    ring_release(&e.traces.submitted, 1)
    return trace


cdef inline uint32_t trace_new_run(echo_t *e, int64_t now_ns, int64_t *due_ns) noexcept nogil:
    """Take the oldest trace out of the ring; RUN_NIL when there is none, or no room for it."""
    cdef uint32_t number, returned = 0
    cdef trace_t *trace
    cdef run_t *run
    while ring_count(&e.traces.returned):
        memcpy(&returned, ring_record(&e.traces.returned, e.traces.returned.head),
               sizeof(returned))
        ring_release(&e.traces.returned, 1)
        trace_leave(&e.traces, returned)
    if ring_count(&e.traces.submitted) == 0 or e.traces.free_count == 0:
        return RUN_NIL
    number = schedule_reserve(&e.schedule)
    trace = NULL if number == RUN_NIL else trace_take_up(e)
    e.crowded = trace == NULL
    if e.crowded:
        if number != RUN_NIL:
            schedule_free(&e.schedule, number)
        return RUN_NIL
    trace.run = number
    trace.is_scheduled = True
    run = &e.schedule.runs[number]
    memset(run, 0, sizeof(run_t))
    run.request.token = probe_token(trace, 0, 0)
    run.request.flags = FLAG_TRACE
    run.request.path = trace.request.path
    run.request.scope = trace.request.scope
    memcpy(run.request.destination, trace.request.destination, 16)
    schedule_queue(&e.schedule, number)
    due_ns[0] = now_ns
    return number


cdef inline void trace_cancel(echo_t *e, uint64_t token) noexcept nogil:
    """End a trace by the caller's token, or let it end as soon as it is taken up."""
    cdef uint32_t i
    cdef trace_t *trace
    cdef submission_t *s
    for i in range(<uint32_t>TRACES_MAX):
        trace = e.traces.live[i]
        if trace != NULL and not trace.is_ended and trace.request.token == token:
            trace.is_cancelled = True
            trace_end(e, trace)
    for i in range(ring_count(&e.traces.submitted)):
        s = <submission_t *>ring_record(&e.traces.submitted, e.traces.submitted.head + i)
        if s.request.token == token:
            s.is_cancelled = True


cdef inline void trace_take_cancellations(echo_t *e, int limit) noexcept nogil:
    """End up to `limit` traces that were cancelled; there is room for as many completions."""
    cdef uint64_t token = 0
    cdef int _
    for _ in range(limit):
        if ring_count(&e.traces.cancelled) == 0:
            break
        memcpy(&token, ring_record(&e.traces.cancelled, e.traces.cancelled.head), sizeof(token))
        ring_release(&e.traces.cancelled, 1)
        trace_cancel(e, token)
