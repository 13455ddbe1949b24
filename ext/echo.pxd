"""The echo engine's core: one turn of its pump, and when the next one is due.

An engine is one receiving socket of one family. A request's payload starts with 16 bytes: slot (4),
serial (4), cookie (8); the rest is a fixed pattern. The cookie is keyed, so a reply belongs to the
probe it names or to nobody; ICMP identifier and sequence only spell the slot number once more, for
errors that quote no more than 8 bytes of the request (RFC 792).

Requests come by a ring and wait there until their packets may be sent: at the run's own pace, and
where budgets and buckets have a token. Everything that happened to a packet becomes a completion in
another ring. Packets that are not ours only count. Who calls the turns is the driver's business: a
thread (pump.pxd), or an event loop.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from budget cimport budget_note_sent, keyed_note_sent
from echogate cimport echo_gate
from echoreceive cimport echo_receive, echo_receive_batch, echo_receive_errors
from echosend cimport echo_can_receive, echo_prepare, echo_send_batch
from echostamp cimport echo_resume_stamps
from echostate cimport (
    BATCH_ROOM, DONE_STOPPED, FLAG_CANCELLED, FLAG_TRACE, FULL_RETRY_NS, RECEIVE_BATCH,
    SEND_BATCH, SHORT_BATCH, STEP_AGAIN, STEP_BLOCKED, STEP_ENDED, STEP_PARKED, echo_has_room,
    echo_note, echo_publish, echo_t,
)
from inflight cimport slab_has_room, slab_next_deadline_ns
from ring cimport atomic_load, ring_count, ring_record, ring_release
from schedule cimport (
    RUN_NIL, request_t, run_t, schedule_find, schedule_free, schedule_push, schedule_queue,
    schedule_remove, schedule_reserve,
)
from stamps cimport monotonic_ns, step_timer_fired, wall_sample, wall_stepped
from sysnet cimport sched_yield
from tracereceive cimport trace_receive
from tracesend cimport trace_is_waiting, trace_new_run, trace_step, trace_take_cancellations

cdef enum:
    TURN_PACKETS = 4096          # sent, and read, in one turn
    CATCH_UP_NS = 2000000        # a late turn may shorten a gap by this much, never by more
    QUANTUM_NS = 1000000         # a busy pump turns once in this time
    LONG_TURN_PACKETS = 64       # of a turn after which it is a long one
    READS_MAX = 4                # of packets after a batch, as long as they fill what is read
    NEW_EVERY = 4                # batches, one of which is for new runs first; a power of 2
    LOOKS_MAX = 1024             # at runs, for one batch: most may find their bucket empty
    CANCELS_MAX = 16             # in one turn: each may look at every run
    NEVER_NS = 0x7FFFFFFFFFFFFFFF


cdef inline int64_t after_gap(int64_t due_ns, int64_t gap_ns, int64_t now_ns) noexcept nogil:
    """Return when a run sends next. A flood's next packet queues behind whoever waits by now."""
    if gap_ns == 0:
        return now_ns
    return (due_ns if due_ns > now_ns - CATCH_UP_NS else now_ns - CATCH_UP_NS) + gap_ns


cdef inline int echo_step(
    echo_t *e, uint32_t number, int64_t *due_ns, int64_t now_ns, size_t *filled,
) noexcept nogil:
    """Put what a run may send now into the batch; returns a STEP_. due_ns: of its next packet."""
    cdef run_t *run = &e.schedule.runs[number]
    cdef int64_t again_ns
    if run.request.flags & FLAG_TRACE:
        return trace_step(e, number, due_ns, now_ns, filled)
    if due_ns[0] < run.not_before_ns:
        due_ns[0] = run.not_before_ns
    while filled[0] < e.batch_limit and due_ns[0] <= now_ns:
        if run.sent == run.request.count:
            return STEP_ENDED
        # Asked first: tokens are for packets that leave.
        if not slab_has_room(&e.slab) or not echo_can_receive(e, run.request.size):
            e.blocked_until_ns = now_ns + FULL_RETRY_NS
            return STEP_BLOCKED
        again_ns = echo_gate(e, &e.tx[filled[0]], &run.request, now_ns)
        if again_ns:
            if e.blocked_until_ns:
                return STEP_BLOCKED
            due_ns[0] = again_ns
            return STEP_AGAIN
        echo_prepare(e, filled[0], &run.request, run.sent)
        e.tx[filled[0]].run = number
        filled[0] += 1
        run.sent += 1
        schedule_queue(&e.schedule, number)
        due_ns[0] = after_gap(due_ns[0], <int64_t>run.request.interval_ns, now_ns)
    return STEP_ENDED if run.sent == run.request.count else STEP_AGAIN


cdef inline uint32_t echo_due_run(echo_t *e, int64_t now_ns, int64_t *due_ns) noexcept nogil:
    """Take the run that is due first out of the heap; RUN_NIL when none is due."""
    cdef uint32_t number
    if e.schedule.count == 0 or e.schedule.heap[0].due_ns > now_ns:
        return RUN_NIL
    number = e.schedule.heap[0].run
    due_ns[0] = e.schedule.heap[0].due_ns
    schedule_remove(&e.schedule, 0)
    return number


cdef inline uint32_t echo_new_run(echo_t *e, int64_t now_ns, int64_t *due_ns) noexcept nogil:
    """Take the oldest request out of the ring; RUN_NIL when there is none, or no room for it.

    Traces and pings take turns, so that neither can starve the other.
    """
    cdef uint32_t number = RUN_NIL
    cdef run_t *run
    if e.traces.methods and (e.batches & NEW_EVERY or ring_count(&e.submitted) == 0):
        number = trace_new_run(e, now_ns, due_ns)
    if number != RUN_NIL or ring_count(&e.submitted) == 0:
        return number
    number = schedule_reserve(&e.schedule)
    e.crowded = number == RUN_NIL
    if e.crowded:
        return RUN_NIL
    run = &e.schedule.runs[number]
    memcpy(&run.request, ring_record(&e.submitted, e.submitted.head), sizeof(request_t))
    ring_release(&e.submitted, 1)
    run.sent = 0
    run.not_before_ns = 0
    schedule_queue(&e.schedule, number)
    due_ns[0] = now_ns
    return number


cdef inline size_t echo_fill_batch(echo_t *e, int64_t now_ns) noexcept nogil:
    """Prepare as many packets as may be sent now, a batch at the most; returns their number."""
    cdef size_t filled = 0
    cdef int64_t due_ns = 0
    cdef int step, _
    cdef uint32_t number
    cdef bint new_first
    e.batches += 1
    # Old runs and new ones take turns to be asked first, so that neither can starve the other. Old
    # ones have more of them: they are to end before new ones fill the caches.
    new_first = e.batches % NEW_EVERY == 0
    for _ in range(LOOKS_MAX):
        if filled == e.batch_limit:
            break
        number = RUN_NIL if new_first else echo_due_run(e, now_ns, &due_ns)
        if number == RUN_NIL:
            number = echo_new_run(e, now_ns, &due_ns)
        if number == RUN_NIL and new_first:
            number = echo_due_run(e, now_ns, &due_ns)
        if number == RUN_NIL:
            break
        step = STEP_ENDED
        if not e.schedule.runs[number].request.flags & FLAG_CANCELLED:
            step = echo_step(e, number, &due_ns, now_ns, &filled)
        if step == STEP_ENDED:
            schedule_free(&e.schedule, number)
            continue
        if step == STEP_PARKED:
            continue
        schedule_push(&e.schedule, number, due_ns)
        if step == STEP_BLOCKED:
            break
    return filled


cdef inline void echo_keep_gaps(echo_t *e, size_t count, int64_t sent_ns) noexcept nogil:
    """Count gaps from when the batch has left: this thread may have been held up before it."""
    cdef int64_t interval_ns
    cdef run_t *run
    cdef size_t i
    cdef int budget
    for budget in range(e.budget_count):
        budget_note_sent(e.budgets[budget], sent_ns)
    for i in range(count):
        keyed_note_sent(&e.prefixes, e.tx[i].prefix, sent_ns)
        keyed_note_sent(&e.targets, e.tx[i].target, sent_ns)
        run = &e.schedule.runs[e.tx[i].run]
        interval_ns = <int64_t>run.request.interval_ns
        if run.sent and interval_ns > CATCH_UP_NS:
            run.not_before_ns = sent_ns + interval_ns - CATCH_UP_NS


cdef inline int echo_receive_some(echo_t *e) noexcept nogil:
    """Read what has come since the last batch, and what others send besides; return how much."""
    cdef int count, packets = 0, _
    for _ in range(READS_MAX):
        count = echo_receive_batch(e)
        if count > 0:
            packets += count
        if count < RECEIVE_BATCH:
            break
    return packets


cdef inline size_t echo_transmit(echo_t *e) noexcept nogil:
    """Send what is due, a turn's worth at the most; returns how many packets.

    Between batches it reads replies, so that a fast network does not overflow the receive queue.
    """
    cdef size_t sent = 0, batch
    cdef bint is_sweep
    cdef int64_t now_ns = monotonic_ns()
    while sent < TURN_PACKETS and e.blocked_until_ns <= now_ns and echo_has_room(e, BATCH_ROOM):
        e.blocked_until_ns = 0
        is_sweep = sent >= LONG_TURN_PACKETS and e.traces.count >= SEND_BATCH
        e.batch_limit = SEND_BATCH if is_sweep else SHORT_BATCH
        if e.stamps_lost:
            echo_receive_errors(e, e.tx_socket)
            echo_resume_stamps(e, now_ns)
        wall_sample(&e.wall)
        batch = echo_fill_batch(e, now_ns)
        if batch == 0:
            break
        echo_send_batch(e, batch)
        echo_keep_gaps(e, batch, monotonic_ns())
        sent += batch
        # A loop woken on this processor would wait for all of a short turn. In a long one the
        # scheduler sees to it, and every yield may cost a time slice of whoever else is busy.
        if e.threaded and sent <= LONG_TURN_PACKETS:
            sched_yield()
        if batch == e.batch_limit and echo_receive_some(e) == 0 and e.exact:
            echo_receive_errors(e, e.tx_socket)  # stamps come where no replies do
        now_ns = monotonic_ns()
    return sent


cdef inline void echo_cancel(echo_t *e, uint64_t token) noexcept nogil:
    """Take a run out of the heap or the ring, and say how many of its packets were submitted."""
    cdef uint32_t at = schedule_find(&e.schedule, token), number
    cdef uint32_t i
    cdef int64_t submitted = -1  # all of them: it is not here any more
    cdef request_t *waiting
    if at != RUN_NIL:
        number = e.schedule.heap[at].run
        submitted = e.schedule.runs[number].sent
        schedule_remove(&e.schedule, at)
        schedule_free(&e.schedule, number)
    else:
        for i in range(ring_count(&e.submitted)):
            waiting = <request_t *>ring_record(&e.submitted, e.submitted.head + i)
            if waiting.token == token:
                waiting.flags |= FLAG_CANCELLED
                submitted = 0
    echo_note(e, token, DONE_STOPPED).rtt_ns = submitted


cdef inline void echo_take_cancellations(echo_t *e) noexcept nogil:
    cdef uint64_t token = 0
    cdef int _
    if e.traces.methods and echo_has_room(e, CANCELS_MAX):
        trace_take_cancellations(e, CANCELS_MAX)
    for _ in range(CANCELS_MAX):
        if ring_count(&e.cancelled) == 0 or not echo_has_room(e, 1):
            break
        memcpy(&token, ring_record(&e.cancelled, e.cancelled.head), sizeof(token))
        ring_release(&e.cancelled, 1)
        echo_cancel(e, token)


cdef inline void echo_take_steps(echo_t *e) noexcept nogil:
    """Learn whether the wall clock was set, from somebody who knows and from the kernel."""
    while atomic_load(&e.step_told) != e.step_seen:
        e.step_seen += 1
        wall_stepped(&e.wall)
    if step_timer_fired(e.step_timer):
        wall_stepped(&e.wall)


cdef inline size_t echo_turn(echo_t *e, int64_t now_ns, int limit) noexcept nogil:
    """Send, read and expire what is due by now_ns; returns how many packets that were."""
    cdef size_t packets
    e.counters.turns += 1
    echo_take_cancellations(e)
    echo_take_steps(e)
    packets = echo_transmit(e)
    if e.exact and (e.tx_socket != e.socket or not e.hears_errors):
        echo_receive_errors(e, e.tx_socket)
    if e.hears_errors:
        packets += <size_t>echo_receive_errors(e, e.socket)
    if e.traces.methods:
        packets += <size_t>trace_receive(e, limit)
    packets += <size_t>echo_receive(e, now_ns, limit)
    echo_publish(e)
    return packets


cdef inline bint echo_is_idle(echo_t *e) noexcept nogil:
    """Whether nothing is in flight and nothing waits to be sent."""
    return (e.slab.in_flight == 0 and e.schedule.count == 0 and ring_count(&e.submitted) == 0
            and e.traces.count == 0 and ring_count(&e.traces.submitted) == 0)


cdef inline int64_t echo_next_turn_ns(echo_t *e, int64_t now_ns) noexcept nogil:
    """Return when the next turn is due if nothing arrives: now_ns or before, or NEVER_NS."""
    cdef int64_t next_ns = NEVER_NS
    cdef int64_t deadline_ns = slab_next_deadline_ns(&e.slab)
    cdef int64_t trace_ns = slab_next_deadline_ns(&e.traces.slab) if e.traces.methods else -1
    if not echo_has_room(e, BATCH_ROOM):
        return now_ns + FULL_RETRY_NS  # whoever reads the completions is behind
    if ring_count(&e.cancelled) or ring_count(&e.traces.cancelled):
        return now_ns
    if ring_count(&e.submitted) or trace_is_waiting(e):
        next_ns = e.blocked_until_ns if e.blocked_until_ns else now_ns
        if e.crowded:
            next_ns = now_ns + FULL_RETRY_NS
    if e.schedule.count:
        if e.schedule.heap[0].due_ns < next_ns:
            next_ns = e.schedule.heap[0].due_ns
        if next_ns < e.blocked_until_ns:
            next_ns = e.blocked_until_ns
    if 0 <= deadline_ns < next_ns:
        next_ns = deadline_ns
    if 0 <= trace_ns < next_ns:
        next_ns = trace_ns
    return next_ns
