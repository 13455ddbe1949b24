"""Traces of all methods at once: an input is a sequence of traces, turns, answers and time."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from echo cimport (
    NEVER_NS, echo_fill_batch, echo_keep_gaps, echo_next_turn_ns, echo_take_cancellations,
)
from echoreceive cimport echo_note_overflow
from echosend cimport echo_file, echo_refuse
from echostate cimport SEND_BATCH, echo_t
from fuzz.feed cimport feed_byte, feed_span, feed_t, feed_u16, must
from fuzz.slab_check cimport check_slab
from fuzz.trace_crafts cimport CRAFT_BYTES, craft, craft_t, craft_wrap, mutate, write_packet
from fuzz.trace_oracle cimport KEPT_BYTES, PROBES_MAX, ip_bytes, note_shown, sent_t, wire_t
from fuzz.trace_world cimport (
    EXPECT_ANY, EXPECT_NONE, KINDS, TRACES, begin, check_flow, check_sums, check_traces, hear,
    hear_nothing, meet, missed, model_t, open_engine, refusals, stamp, world_t,
)
from inflight cimport slab_has_room, slab_next_deadline_ns
from native.echo_door cimport delivery_t, door_arrive, door_report
from native.trace_door cimport (
    door_expire, door_packet, door_return, door_segment, door_submit,
)
from ring cimport ring_count, ring_publish, ring_record
from schedule cimport RUN_NIL
from stamps cimport wall_merge, wall_stepped
from sysnet cimport (
    MSG_TRUNC, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_LOCAL, sock_extended_err,
)
from tracestate cimport (
    ANSWERS_MAX, METHOD_ICMP, METHOD_TCP, METHOD_UDP, TRACE_ALL, TRACE_DF,
    TRACE_SLOTS, TRACE_WATCH, TRACES_MAX, probe_trace, trace_request_t, trace_t,
)

cdef enum:
    TURNS_MAX = 100000           # more than any input needs, when each makes progress
    TIMEOUT_MAX_NS = 60000000000
    LINGER_NS = 70000000000      # longer than slots are remembered

cdef echo_t engines[KINDS]
cdef bint is_open[KINDS]
cdef world_t world


# ── operations ───────────────────────────────────────────────────────────────────────────────────


cdef uint16_t size_of(uint8_t choice) noexcept nogil:
    """A payload size: mostly small, odd and even, one that needs larger buffers."""
    cdef uint16_t sizes[8]
    sizes[:] = [20, 18, 19, 57, 228, 229, 600, 2100]
    return sizes[choice & 7]


cdef uint8_t method_of(const world_t *w, uint8_t choice) noexcept nogil:
    cdef uint8_t methods[4]
    methods[:] = [METHOD_ICMP, METHOD_UDP, METHOD_TCP, METHOD_UDP]
    return METHOD_ICMP if w.is_datagram else methods[choice & 3]


cdef uint16_t choose_path(world_t *w, uint8_t how) noexcept nogil:
    """Choose the routing table's way, or one that says more or less of itself."""
    w.e.paths[1].has_source = how & 1
    w.e.paths[1].mark = how & 2
    return how >> 2 & 1


cdef void submit(world_t *w, feed_t *feed) noexcept nogil:
    """Ask for a trace; some have no route."""
    cdef uint8_t how = feed_byte(feed), what = feed_byte(feed), hops = feed_byte(feed)
    cdef model_t *m = &w.models[w.traces]
    cdef trace_request_t r
    if w.traces == TRACES:
        return
    memset(&r, 0, sizeof(r))
    r.token = w.traces
    r.method = method_of(w, how)
    r.flags = (how >> 2 & 1) * TRACE_DF | (how >> 3 & 1) * TRACE_ALL | (how >> 4 & 1) * TRACE_WATCH
    r.size = size_of(how >> 5)
    r.flow = what & 1
    r.tos = what & 2
    r.path = choose_path(w, what >> 2 & 7)
    r.port = 33434
    memset(r.destination, 1 + (what >> 5 & 1), 4 if w.o.version == 4 else 16)
    r.first_ttl = 1 + (hops >> 6) * 3
    r.last_ttl = <uint8_t>(r.first_ttl + (hops & 31))
    r.attempts = 1 + (what >> 6)
    r.gap_limit = 1 + feed_byte(feed) % 20
    r.timeout_ns = <uint64_t>(feed_span(feed) % TIMEOUT_MAX_NS + 1)
    r.interval_ns = <uint64_t>feed_span(feed) if r.flags & TRACE_ALL else 0
    door_submit(w.e, &r, 101 if hops >> 5 & 1 and how & 0xE0 == 0xE0 else 0)
    m.timeout_ns = <int64_t>r.timeout_ns
    m.is_watched = r.flags & TRACE_WATCH != 0
    w.traces += 1


cdef void note_sent(world_t *w, size_t at, bint is_refused) noexcept nogil:
    """Remember a probe, and insist that it is one."""
    cdef uint8_t packet[CRAFT_BYTES]
    cdef uint8_t whole[CRAFT_BYTES]
    cdef size_t n = door_packet(w.e, at, packet)
    cdef uint64_t token = w.e.traces.slab.slots[w.e.tx[at].slot].token
    cdef trace_t *t = probe_trace(&w.e.traces, token)
    cdef model_t *m
    cdef sent_t *probe = &w.o.probes[w.o.count]
    must(t != NULL, b"a probe is of a trace that runs")
    meet(w)
    m = &w.models[t.request.token]
    must(w.o.count < PROBES_MAX, b"no more probes than were asked for")
    w.o.count += 1
    memset(probe, 0, sizeof(sent_t))
    memcpy(probe.packet, packet, KEPT_BYTES if n > KEPT_BYTES else n)
    probe.bytes = n
    probe.method = t.request.method
    probe.trace = <uint32_t>t.request.token
    probe.slot = w.e.tx[at].slot
    probe.serial = w.e.traces.slab.slots[probe.slot].serial
    probe.ttl = packet[8 if w.o.version == 4 else 7]
    probe.attempt = m.attempts[probe.ttl]
    probe.sent_ns = w.now_ns
    probe.is_refused = is_refused
    must(token & 0xFFFF == <uint64_t>(probe.ttl << 8 | probe.attempt), b"attempts are in order")
    must(m.trace == t and not m.is_over and not m.is_cancelled, b"and of a trace that runs")
    check_sums(w.o.version, packet, n)
    check_flow(w, probe.trace, packet)
    write_packet(w, probe, whole)
    must(memcmp(whole, packet, n) == 0, b"what it is known by is all of it")
    m.attempts[probe.ttl] += 1


cdef size_t send_batch(world_t *w, bint is_refused) noexcept nogil:
    """Send a batch, as far as paces and slots allow; returns its size."""
    cdef size_t at, filled = echo_fill_batch(w.e, w.now_ns)
    cdef model_t *m
    must(filled <= SEND_BATCH, b"a batch has an end")
    for at in range(filled):
        note_sent(w, at, is_refused)
    for at in range(filled):
        m = &w.models[w.o.probes[w.o.count - filled + at].trace]
        if is_refused:
            m.refused += 1
            echo_refuse(w.e, at, 105, w.now_ns)
        else:
            m.sent += 1
            echo_file(w.e, at, 1, w.now_ns, w.now_ns)
    if filled:
        echo_keep_gaps(w.e, filled, w.now_ns)
    return filled


cdef void turn(world_t *w, bint is_refused) noexcept nogil:
    """Take a turn, as the engine does; after it there is nothing more to do at this instant."""
    echo_take_cancellations(w.e)
    hear_nothing(w)
    while w.e.blocked_until_ns <= w.now_ns:
        w.e.blocked_until_ns = 0
        if send_batch(w, is_refused) == 0:
            break
    hear_nothing(w)
    must(echo_next_turn_ns(w.e, w.now_ns) > w.now_ns or ring_count(&w.e.traces.cancelled)
         or slab_next_deadline_ns(&w.e.traces.slab) <= w.now_ns, b"a turn leaves nothing to do")


cdef void expire(world_t *w) noexcept nogil:
    door_expire(w.e, w.now_ns)
    hear_nothing(w)


cdef void cancel(world_t *w, uint8_t which) noexcept nogil:
    """Ask for a trace to be ended; it may be over, or never have been."""
    cdef uint64_t token = which % TRACES
    memcpy(ring_record(&w.e.traces.cancelled, w.e.traces.cancelled.tail), &token, sizeof(token))
    ring_publish(&w.e.traces.cancelled, 1)
    echo_take_cancellations(w.e)
    w.models[token].is_cancelled = True
    hear_nothing(w)
    if token >= w.traces:
        w.models[token].is_cancelled = False


cdef void crowd(model_t *m, bint is_crowded) noexcept nogil:
    """Let a trace have all the answers it may keep, or take those away again."""
    if m.trace == NULL or is_crowded == (m.room != 0):
        return
    if is_crowded:
        m.room = m.trace.answers_room + 1
        m.trace.answers_count = m.trace.answers_room = ANSWERS_MAX
    else:
        m.trace.answers_room = m.room - 1
        m.trace.answers_count = m.answers
        m.room = 0


cdef void give_back(world_t *w) noexcept nogil:
    """Take what every trace that is over has seen; its memory is the engine's again."""
    cdef uint32_t i
    for i in range(w.traces):
        if w.models[i].is_over and w.models[i].trace != NULL:
            w.models[i].trace = NULL
            w.models[i].is_back = True
            door_return(w.e, w.models[i].number)


cdef void deliver(world_t *w, const delivery_t *d, craft_t *c) noexcept nogil:
    """Give the engine a packet: it is an answer to one probe, or is refused for one reason."""
    cdef wire_t wire
    cdef size_t header = 0
    cdef uint64_t packets = w.e.counters.packets, refused = refusals(w.e)
    cdef uint32_t missed_before = missed(w)
    memset(&wire, 0, sizeof(wire))
    if w.o.version == 4 and (c.is_segment or not w.is_datagram):
        header = <size_t>(d.data[0] & 15) * 4 if d.n > 20 else d.n
        header = header if header < d.n else d.n
    wire.p = d.data + header
    wire.n = d.n - header
    wire.is_segment = c.is_segment
    wire.source = d.data + 12 if header else d.source
    wire.hops = d.data[8] if header else <uint8_t>d.hops
    if c.is_segment:
        door_segment(w.e, d)
    else:
        door_arrive(w.e, d)
    hear(w, &wire)
    note_shown(&w.o, &wire)
    must(w.e.counters.packets == packets + 1, b"every packet is counted")
    must(w.credited + missed(w) - missed_before + refusals(w.e) - refused == 1,
         b"a packet is an answer or is refused")
    if missed(w) == missed_before and c.expected != EXPECT_ANY:
        must((c.expected == EXPECT_NONE) == (w.credited == 0), b"a right one is taken, only that")
        must(w.credited == 0 or w.whose == c.expected, b"and is its probe's")


cdef void arrive(world_t *w, feed_t *feed) noexcept nogil:
    """Let a packet arrive, in memory of its own that ends where it ends."""
    cdef uint8_t what = feed_byte(feed), how = feed_byte(feed)
    cdef uint8_t packet[CRAFT_BYTES + 40]
    cdef uint8_t responder[16]
    cdef uint8_t *copy
    cdef craft_t c
    cdef delivery_t d
    craft(w, feed, what, &c)
    memset(responder, 77 + (what >> 5), 16)
    memset(&d, 0, sizeof(d))
    d.n = craft_wrap(w, feed, how, &c, responder, packet)
    d.stamp_ns = stamp(w, feed, how)
    d.source = responder
    if how & 64:
        d.hops = feed_byte(feed)
        d.flags = MSG_TRUNC if d.hops == 9 else 0
        d.source = NULL if d.hops == 8 else responder
        c.expected = c.expected if d.hops != 8 and d.hops != 9 else EXPECT_ANY
    d.user_ns = w.now_ns
    copy = <uint8_t *>malloc(d.n)
    memcpy(copy, packet, d.n)
    d.data = copy
    deliver(w, &d, &c)
    free(copy)


cdef void report(world_t *w, feed_t *feed) noexcept nogil:
    """Let an ICMP error about a request come by the error queue."""
    cdef uint8_t how = feed_byte(feed)
    cdef uint8_t whole[CRAFT_BYTES]
    cdef uint8_t offender[16]
    cdef int origins[4]
    cdef sock_extended_err error
    cdef sent_t *probe
    cdef delivery_t d
    cdef wire_t wire
    cdef size_t header = ip_bytes(w.o.version), cut
    if w.o.count == 0:
        return
    origins[:] = [SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_LOCAL, SO_EE_ORIGIN_ICMP]
    probe = &w.o.probes[w.o.count - 1 - feed_byte(feed) % w.o.count]
    memset(offender, 78, 16)
    memset(&error, 0, sizeof(error))
    error.ee_origin = <uint8_t>origins[how & 3]
    error.ee_type = feed_byte(feed)
    memset(&d, 0, sizeof(d))
    d.n = write_packet(w, probe, whole) - header
    cut = feed_byte(feed) if how & 4 else d.n
    d.n = cut if cut < d.n else d.n
    mutate(feed, whole + header, d.n, how >> 3 & 1)
    d.data = whole + header
    d.source = NULL if how & 0x20 else probe.packet + header - (4 if w.o.version == 4 else 16)
    d.stamp_ns = stamp(w, feed, how >> 6)
    d.user_ns = w.now_ns
    memset(&wire, 0, sizeof(wire))
    wire.p = d.data
    wire.n = d.n
    wire.source = offender
    wire.destination = d.source
    door_report(w.e, &d, &error, NULL if how & 0x10 and error.ee_type == 255 else offender)
    hear(w, &wire)


cdef void set_clock(world_t *w, feed_t *feed) noexcept nogil:
    """Set the wall clock, and let the engine notice in one way or another, or not at all."""
    cdef uint8_t how = feed_byte(feed)
    w.offset_ns += feed_span(feed) if how & 1 else -feed_span(feed)
    if how & 2:
        wall_stepped(&w.e.wall)
    if how & 4:
        wall_merge(&w.e.wall, w.offset_ns - feed_u16(feed), w.offset_ns + feed_u16(feed))


cdef void operate(world_t *w, feed_t *feed) noexcept nogil:
    """Do what the next byte says."""
    cdef uint8_t what = feed_byte(feed)
    if what & 15 < 2:
        submit(w, feed)
    elif what & 15 < 5:
        turn(w, what & 0xF0 == 0xF0)
    elif what & 15 < 10:
        arrive(w, feed)
    elif what & 15 == 10:
        report(w, feed)
    elif what & 15 == 11:
        set_clock(w, feed)
    elif what & 15 == 12:
        if what & 0x80:
            crowd(&w.models[what >> 4 & 3], what & 0x40 != 0)
        else:
            echo_note_overflow(w.e, what >> 4)
    elif what & 15 == 13:
        expire(w)
    elif what & 15 == 14:
        if what & 0x80:
            cancel(w, what >> 4 & 7)
        else:
            give_back(w)
    else:
        w.now_ns += feed_span(feed)
    check_traces(w)


# ── an input ─────────────────────────────────────────────────────────────────────────────────────


cdef void check_finished(world_t *w) noexcept nogil:
    """Insist that every trace is over, and that the engine has got back all that it gave."""
    cdef echo_t *e = w.e
    cdef uint32_t i, run = e.schedule.free_head, runs = 0
    for i in range(w.traces):
        must(w.models[i].is_over, b"every trace ends")
    must(e.traces.count == 0 and e.schedule.count == 0, b"and nothing waits for its turn")
    must(e.traces.slab.in_flight == 0 and e.traces.slab.settled == 0, b"and all is forgotten")
    must(e.traces.free_count == w.numbers, b"every number is free again")
    while run != RUN_NIL and runs <= e.schedule.used:
        run = e.schedule.runs[run].next_free
        runs += 1
    must(runs == e.schedule.used, b"and every run")
    check_slab(&e.traces.slab, 0)


cdef void finish(world_t *w) noexcept nogil:
    """Turn when the engine says so, until it never will again: without answers all ends."""
    cdef int64_t next_ns = w.now_ns
    cdef uint32_t turns = 0
    give_back(w)
    while next_ns != NEVER_NS:
        must(turns < TURNS_MAX, b"an engine comes to an end")
        turns += 1
        w.now_ns = next_ns if next_ns > w.now_ns else w.now_ns
        turn(w, False)
        expire(w)
        give_back(w)
        next_ns = echo_next_turn_ns(w.e, w.now_ns)
        if next_ns != NEVER_NS and not slab_has_room(&w.e.traces.slab):
            next_ns = slab_next_deadline_ns(&w.e.traces.slab)  # it would look once in a while
    w.now_ns += LINGER_NS
    turn(w, False)
    expire(w)
    check_finished(w)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first two bytes say which engine, how many slots and numbers, and how fast."""
    cdef uint32_t capacities[4]
    cdef feed_t feed
    cdef int kind
    if n < 3:
        return 0
    capacities[:] = [TRACE_SLOTS, 1, 3, 40]
    kind = data[0] % KINDS
    if not is_open[kind]:
        is_open[kind] = open_engine(&engines[kind], kind)
    if not is_open[kind]:
        return 0
    begin(&world, &engines[kind], kind, capacities[data[1] & 3], 2 if data[1] & 4 else TRACES_MAX,
          1000 if data[1] & 8 else 0)
    feed.data = data + 2
    feed.left = n - 2
    while feed.left:
        operate(&world, &feed)
    finish(&world)
    return 0
