"""The world of the traces' fuzzer: an engine for each input, without allocating one."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from budget cimport budget_t, pace_gap, pace_slack
from echostate cimport BACKEND_DATAGRAM, BACKEND_RAW, DONE_HOP, DONE_TRACED, completion_t, echo_t
from fuzz.feed cimport feed_span, feed_t, must
from fuzz.slab_check cimport empty_slab
from fuzz.trace_oracle cimport judge, oracle_t, wire_t
from inflight cimport SLOT_IN_FLIGHT, slot_t
from native.trace_door cimport door_open_traces
from packet cimport checksum_add, checksum_fold, load_be16, pseudo_header_sum
from ring cimport ring_count, ring_record, ring_release
from schedule cimport schedule_close
from stamps cimport wall_merge
from tracepath cimport path_is_silent
from tracestate cimport (
    ANSWER_REFUSED, METHOD_ICMP, STOP_CANCELLED, STOP_COMPLETED, STOP_UNREACHABLE, TRACES_MAX,
    answer_t, hop_t, probe_trace, trace_t,
)

cdef enum:
    KINDS = 4                    # of engines: raw and datagram of each family
    TRACES = 8
    START_NS = 0x4000000000000   # 13 days
    EPOCH_NS = 1790000000000000000

cdef enum:
    EXPECT_ANY = -1              # of a packet: the oracle judges what it is taken for
    EXPECT_NONE = -2             # it must be refused; else the number of its probe

ctypedef struct model_t:
    trace_t *trace               # NULL: not taken up yet, or given back
    bint is_back
    uint32_t number              # once it is over
    uint32_t answers             # that have been judged
    uint32_t room                # for answers, while it is crowded; else 0
    uint32_t heard               # completions for them
    uint32_t sent
    uint32_t refused
    int64_t timeout_ns
    bint is_watched
    bint is_cancelled
    bint is_over
    bint has_flow
    uint8_t flow[24]             # what its probes have in common
    uint8_t attempts[256]        # by TTL

ctypedef struct world_t:         # everything an input starts with, and what it changes
    echo_t *e
    bint is_datagram
    int64_t now_ns
    int64_t offset_ns            # where the wall clock is
    uint32_t numbers             # that traces may have
    uint32_t traces
    uint32_t credited            # answers of the last packet
    uint32_t whose
    budget_t budget
    model_t models[TRACES]
    oracle_t o


cdef inline bint open_engine(echo_t *e, int kind) noexcept nogil:
    """Make an engine of a kind."""
    return door_open_traces(
        e, 4 if kind & 1 else 6, BACKEND_DATAGRAM if kind & 2 else BACKEND_RAW, 7) == 0


cdef inline void begin_traces(world_t *w, uint32_t capacity, uint32_t numbers) noexcept nogil:
    """Have so many slots and numbers, none of them used."""
    cdef echo_t *e = w.e
    cdef uint32_t i
    empty_slab(&e.traces.slab)
    e.traces.slab.capacity = capacity
    e.traces.submitted.head = e.traces.submitted.tail = 0
    e.traces.cancelled.head = e.traces.cancelled.tail = 0
    e.traces.returned.head = e.traces.returned.tail = 0
    e.traces.serial = 0xFFFFFFFCU  # so that it wraps
    w.numbers = e.traces.free_count = numbers
    for i in range(TRACES if numbers > TRACES else numbers):
        e.traces.free_numbers[numbers - 1 - i] = i


cdef inline void begin(
    world_t *w, echo_t *e, int kind, uint32_t capacity, uint32_t numbers, double pace,
) noexcept nogil:
    """Start over: whatever an earlier input did is forgotten."""
    w.e = e
    w.is_datagram = kind & 2
    w.now_ns = START_NS
    w.offset_ns = EPOCH_NS
    w.traces = 0
    w.o.version = 4 if kind & 1 else 6
    w.o.count = w.o.shown_count = 0
    memset(w.models, 0, sizeof(w.models))
    memset(&w.budget, 0, sizeof(w.budget))
    w.budget.gap = pace_gap(pace)
    w.budget.slack = pace_slack(w.budget.gap)
    e.budgets[0] = &w.budget
    e.budget_count = 1 if pace else 0
    schedule_close(&e.schedule)
    e.serial = 0xFFFFFFF0U
    e.batches = 0
    e.blocked_until_ns = 0
    e.crowded = False
    e.overflows = e.drops_unclaimed = 0
    e.done.head = e.done.tail = e.done_pending = 0
    e.filler_bytes = 0
    e.filler_sum = 0
    memset(&e.counters, 0, sizeof(e.counters))
    memset(&e.wall, 0, sizeof(e.wall))
    wall_merge(&e.wall, EPOCH_NS - 400, EPOCH_NS + 400)
    begin_traces(w, capacity, numbers)


cdef inline int64_t stamp(const world_t *w, feed_t *feed, uint8_t how) noexcept nogil:
    """A kernel's stamp: right, none, or off."""
    if how & 3 == 0:
        return 0
    if how & 3 == 1:
        return w.now_ns + w.offset_ns + (feed_span(feed) if how & 4 else -feed_span(feed))
    return w.now_ns + w.offset_ns


cdef inline uint64_t refusals(const echo_t *e) noexcept nogil:
    """How many packets have been refused, for whatever reason."""
    return (e.counters.foreign + e.counters.forged + e.counters.malformed + e.counters.stale
            + e.counters.late_errors)


cdef inline uint32_t missed(const world_t *w) noexcept nogil:
    """How many answers have been counted only."""
    cdef uint32_t i, count = 0
    for i in range(w.traces):
        if w.models[i].trace != NULL:
            count += w.models[i].trace.answers_missed
    return count


# ── what must hold ───────────────────────────────────────────────────────────────────────────────


cdef inline void check_sums(int version, const uint8_t *p, size_t n) noexcept nogil:
    """Insist on lengths and checksums of a packet that is about to leave."""
    cdef size_t header = 20 if version == 4 else 40
    cdef size_t width = 4 if version == 4 else 16
    cdef uint8_t protocol = p[9] if version == 4 else p[6]
    cdef uint64_t total = 0
    if protocol != 1:
        total = pseudo_header_sum(p + header - 2 * width, p + header - width, width,
                                  <uint32_t>(n - header), protocol)
    must(checksum_fold(checksum_add(total, p + header, n - header)) == 0xFFFF,
         b"the transport's checksum is right")
    if version == 4:
        must(load_be16(p + 2) == n and checksum_fold(checksum_add(0, p, header)) == 0xFFFF,
             b"and the IP header's")
    else:
        must(load_be16(p + 4) == n - header, b"and the IP header says how much there is")
    if protocol == 17:
        must(load_be16(p + header + 4) == n - header and load_be16(p + header + 6) != 0,
             b"and UDP's too")


cdef inline void check_flow(world_t *w, uint32_t trace, const uint8_t *p) noexcept nogil:
    """Insist that what routers balance by is the same in all probes of a trace."""
    cdef model_t *m = &w.models[trace]
    cdef size_t header = 20 if w.o.version == 4 else 40
    cdef uint8_t flow[24]
    cdef size_t i
    memset(flow, 0, sizeof(flow))
    flow[0] = p[1] if w.o.version == 4 else p[0]
    for i in range(3):
        flow[1 + i] = 0 if w.o.version == 4 else p[1 + i]
    for i in range(8):
        flow[4 + i] = p[header - 8 + i]
    for i in range(6 if m.trace.request.method == METHOD_ICMP else 4):
        flow[12 + i] = p[header + i]
    for i in range(24):
        must(not m.has_flow or flow[i] == m.flow[i], b"a flow is one")
        m.flow[i] = flow[i]
    m.has_flow = True


cdef inline void check_hops(const trace_t *t) noexcept nogil:
    """Insist that a trace's counts are its hops', within what was asked for."""
    cdef uint32_t waiting = 0, silent = 0
    cdef int ttl
    cdef const hop_t *hop
    for ttl in range(t.request.first_ttl, t.request.last_ttl + 1):
        hop = &t.hops[ttl]
        must(hop.attempts <= t.request.attempts and hop.waiting <= hop.attempts,
             b"no more attempts than were asked for, and none is waited for twice")
        must((hop.attempts > 0) == (ttl <= t.sent_ttl), b"TTLs are tried in order")
        waiting += hop.waiting
        silent += path_is_silent(hop)
    must(t.waiting == waiting and t.silent == silent, b"a trace's counts are its hops'")
    must(t.end_ttl <= t.sent_ttl and t.sent_ttl <= t.request.last_ttl, b"and end where they may")


cdef inline void check_traces(world_t *w) noexcept nogil:
    """Insist that what waits is what is in flight, hop by hop."""
    cdef uint32_t waiting[TRACES][256]
    cdef uint32_t i, orphans = 0, all_waiting = 0
    cdef const slot_t *slot
    cdef trace_t *t
    memset(waiting, 0, sizeof(waiting))
    for i in range(w.e.traces.slab.size):
        slot = &w.e.traces.slab.slots[i]
        if slot.state == SLOT_IN_FLIGHT:
            t = probe_trace(&w.e.traces, slot.token)
            if t == NULL:
                orphans += 1
            else:
                waiting[t.request.token][slot.token >> 8 & 0xFF] += 1
    for i in range(w.traces):
        t = w.models[i].trace
        if t == NULL or t.is_ended:
            continue
        check_hops(t)
        all_waiting += t.waiting
        for ttl in range(t.request.first_ttl, t.request.last_ttl + 1):
            must(t.hops[ttl].waiting == waiting[i][ttl], b"a hop waits for what is in flight")
    must(w.e.traces.slab.in_flight == all_waiting + orphans, b"and nothing else is in flight")


cdef inline void check_end(const model_t *m) noexcept nogil:
    """Insist that a trace that is over owes nothing, and has counted all."""
    cdef const trace_t *t = m.trace
    cdef int ttl, end = t.end_ttl if t.end_ttl else t.sent_ttl
    must(t.is_ended and t.stop != 0, b"a trace that is over has ended")
    must((t.stop == STOP_CANCELLED) == m.is_cancelled or t.stop != STOP_CANCELLED,
         b"and was cancelled only if somebody did")
    for ttl in range(t.request.first_ttl, t.request.last_ttl + 1):
        must(t.hops[ttl].attempts == m.attempts[ttl], b"every probe is counted")
        must(ttl > end or t.hops[ttl].waiting == 0 or t.stop == STOP_CANCELLED,
             b"and none is waited for up to the end")
    must(t.sent == m.sent and t.tx_errors == m.refused, b"and what became of them")
    must(t.stop == STOP_CANCELLED
         or (t.end_ttl != 0) == (t.stop == STOP_COMPLETED or t.stop == STOP_UNREACHABLE),
         b"an end that is known is why it ended")


# ── what the engine says ─────────────────────────────────────────────────────────────────────────


cdef inline void hear_answers(world_t *w, uint32_t trace, const wire_t *wire) noexcept nogil:
    """Judge what a trace has got since it was last looked at."""
    cdef model_t *m = &w.models[trace]
    cdef const answer_t *a
    cdef uint32_t whose
    while m.room == 0 and m.answers < m.trace.answers_count:
        a = &m.trace.answers[m.answers]
        whose = judge(&w.o, trace, wire, a, m.timeout_ns, m.trace.answers_missed > 0)
        m.answers += 1
        if a.kind != ANSWER_REFUSED:
            w.whose = whose
            w.credited += 1
            m.heard += m.is_watched
        must(a.extension_at + a.extension_bytes <= m.trace.extensions_bytes,
             b"an extension is among those of its trace")


cdef inline void meet(world_t *w) noexcept nogil:
    """Get to know the traces that have been taken up."""
    cdef trace_t *t
    cdef model_t *m
    cdef uint32_t number
    for number in range(TRACES):
        t = w.e.traces.live[number]
        if t != NULL:
            m = &w.models[t.request.token]
            must(m.trace == t or m.trace == NULL, b"a trace is taken up once")
            if not m.is_back:
                m.trace = t


cdef inline void hear(world_t *w, const wire_t *wire) noexcept nogil:
    """Judge all that is new: answers, and completions that tell of them or of an end."""
    cdef completion_t *c
    cdef model_t *m
    cdef uint32_t i
    w.credited = 0
    meet(w)
    for i in range(w.traces):
        if w.models[i].trace != NULL:
            hear_answers(w, i, wire)
    while ring_count(&w.e.done):
        c = <completion_t *>ring_record(&w.e.done, w.e.done.head)
        must(c.token < w.traces, b"a completion is about a trace")
        m = &w.models[c.token]
        if c.kind == DONE_HOP:
            must(m.heard > 0 and not m.is_over, b"an answer of a watched trace is told once")
            m.heard -= 1
        else:
            must(c.kind == DONE_TRACED and not m.is_over, b"a trace ends once")
            m.is_over = True
            m.number = <uint32_t>c.rtt_ns
            must(w.e.traces.live[m.number] == m.trace, b"and says its number")
            check_end(m)
        ring_release(&w.e.done, 1)
    for i in range(w.traces):
        must(w.models[i].heard == 0, b"every answer of a watched trace is told")


cdef inline void hear_nothing(world_t *w) noexcept nogil:
    """Judge what time, turns and orders bring: ends, and no answers."""
    cdef wire_t wire
    memset(&wire, 0, sizeof(wire))
    w.e.done.tail += w.e.done_pending
    w.e.done_pending = 0
    hear(w, &wire)
    must(w.credited == 0, b"without a packet there is no answer")
