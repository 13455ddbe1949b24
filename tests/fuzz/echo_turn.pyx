"""The echo engine's sending turns without a socket: submissions, paces, cancellations and time."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from budget cimport (
    KEYED_ENTRIES, KEYED_LOOKS, bucket_t, budget_t, keyed_open, keyed_t, pace_gap, pace_slack,
)
from echo cimport (
    CATCH_UP_NS, NEVER_NS, echo_fill_batch, echo_keep_gaps, echo_next_turn_ns,
    echo_take_cancellations,
)
from echogate cimport address_key
from echoreceive cimport echo_expire
from echosend cimport echo_file, echo_refuse
from echostate cimport (
    BACKEND_RAW, BATCH_ROOM, DONE_STOPPED, DONE_TIMEOUT, DONE_TX_ERROR, SEND_BATCH, completion_t,
    echo_has_room, echo_publish, echo_t,
)
from fuzz.feed cimport feed_byte, feed_span, feed_t, must
from fuzz.slab_check cimport check_slab, empty_slab
from inflight cimport slab_open
from native.echo_door cimport door_open
from ring cimport ring_count, ring_publish, ring_record, ring_release
from schedule cimport request_t, schedule_close
from sysnet cimport ENOBUFS

cdef enum:
    START_NS = 0x4000000000000   # 13 days
    RUNS = 48
    TARGETS = 4
    LINGER_NS = 1000000
    TURNS_MAX = 100000           # more than any input needs, when each makes progress

ctypedef struct run_model_t:
    uint32_t count
    uint32_t sent
    uint32_t ended               # packets that have completed
    int64_t interval_ns
    int64_t last_ns              # when its last packet left
    bint is_cancelled
    bint is_stopped

cdef echo_t engines[2]
cdef bint is_open[2]
cdef echo_t *e                   # the one in use
cdef budget_t budgets[2]
cdef bucket_t *tables[2][2]       # prefixes and targets of each engine, when they have a pace
cdef int64_t now_ns
cdef uint32_t runs
cdef run_model_t models[RUNS]


cdef bint open_engine(int kind) noexcept nogil:
    """Make an engine of a family, once, with buckets for every prefix and target."""
    global e
    e = &engines[kind]
    if not is_open[kind]:
        is_open[kind] = (
            door_open(e, 4 if kind else 6, BACKEND_RAW, False, 7) == 0
            and slab_open(&e.slab, 1, LINGER_NS) == 0
            and keyed_open(&e.prefixes, 1) == 0 and keyed_open(&e.targets, 1) == 0)
        tables[kind][0] = e.prefixes.entries
        tables[kind][1] = e.targets.entries
    e.prefixes.entries = tables[kind][0]
    e.targets.entries = tables[kind][1]
    return is_open[kind]


cdef void set_pace(keyed_t *keyed, double pace) noexcept nogil:
    """Give buckets another pace, empty ones; the table is large, so only its used places."""
    cdef uint8_t address[16]
    cdef uint64_t key
    cdef int target, look, width
    keyed.gap = pace_gap(pace)
    keyed.slack = pace_slack(keyed.gap)
    for target in range(TARGETS):
        memset(address, target, 16)
        for width in range(3, 17):
            key = address_key(e, address, <size_t>width)
            for look in range(KEYED_LOOKS):
                memset(&keyed.entries[(key + <uint64_t>look) & (KEYED_ENTRIES - 1)], 0,
                       sizeof(keyed.entries[0]))


cdef double pace_of(uint8_t how) noexcept nogil:
    """Choose a pace: from one in 100 s to a million a second."""
    cdef double paces[4]
    paces[:] = [1e6, 5000, 100, 0.01]
    return paces[how & 3]


cdef void begin(uint8_t how, uint8_t paces) noexcept nogil:
    """Start over."""
    global now_ns, runs
    cdef int i
    now_ns = START_NS
    runs = 0
    memset(models, 0, sizeof(models))
    empty_slab(&e.slab)
    e.slab.capacity = 3 if how & 2 else 64
    schedule_close(&e.schedule)
    e.submitted.head = e.submitted.tail = e.cancelled.head = e.cancelled.tail = 0
    e.done.head = e.done.tail = e.done_pending = 0
    e.batches = 0
    e.blocked_until_ns = 0
    e.crowded = False
    memset(budgets, 0, sizeof(budgets))
    for i in range(2):
        budgets[i].gap = pace_gap(pace_of(paces >> 6 * i))
        budgets[i].slack = pace_slack(budgets[i].gap)
        e.budgets[i] = &budgets[i]
    e.budget_count = (how >> 2 & 3) % 3
    set_pace(&e.prefixes, pace_of(paces >> 2))
    set_pace(&e.targets, pace_of(paces >> 4))
    if how & 16:
        e.prefixes.entries = NULL
    if how & 32:
        e.targets.entries = NULL


cdef void submit(feed_t *feed) noexcept nogil:
    """Put a request into the ring."""
    global runs
    cdef uint8_t how = feed_byte(feed)
    cdef request_t r
    if runs == RUNS:
        return
    memset(&r, 0, sizeof(r))
    r.token = <uint64_t>runs << 32
    r.count = 1 + (feed_byte(feed) & 31)
    r.interval_ns = <uint64_t>feed_span(feed) if how & 4 else 0
    r.timeout_ns = 1000000
    r.size = 16
    r.ttl = 64
    memset(r.destination, how & 3, 16)
    memcpy(ring_record(&e.submitted, e.submitted.tail), &r, sizeof(r))
    ring_publish(&e.submitted, 1)
    models[runs].count = r.count
    models[runs].interval_ns = <int64_t>r.interval_ns
    runs += 1


cdef void cancel(feed_t *feed) noexcept nogil:
    """Ask for a run to be stopped; it may have ended, or never have been."""
    cdef uint64_t run = feed_byte(feed) % RUNS
    cdef uint64_t token = run << 32
    memcpy(ring_record(&e.cancelled, e.cancelled.tail), &token, sizeof(token))
    ring_publish(&e.cancelled, 1)


cdef void check_sent(uint64_t token) noexcept nogil:
    """Insist that the packets of a run leave in order, once each, and not too fast."""
    cdef run_model_t *model = &models[token >> 32]
    must(token >> 32 < runs and <uint32_t>token == model.sent, b"packets leave in order")
    must(model.sent < model.count and not model.is_stopped, b"and no more than were asked for")
    must(model.sent == 0 or now_ns - model.last_ns >= model.interval_ns - CATCH_UP_NS,
         b"a gap is kept but for what a late turn may catch up")
    model.sent += 1
    model.last_ns = now_ns


cdef void hear() noexcept nogil:
    """Judge the completions: of each packet one, and of a cancelled run what was sent."""
    cdef completion_t *c
    cdef run_model_t *model
    echo_publish(e)
    while ring_count(&e.done):
        c = <completion_t *>ring_record(&e.done, e.done.head)
        must(c.token >> 32 < RUNS, b"a completion is about a run")
        model = &models[c.token >> 32]
        if c.kind == DONE_STOPPED:
            must(c.rtt_ns == -1 or c.rtt_ns == model.sent, b"a stopped run says how far it came")
            must(c.rtt_ns != -1 or model.sent == model.count or model.is_stopped,
                 b"only a run that has ended cannot be stopped")
            model.is_stopped = c.token >> 32 < runs
        else:
            must(c.kind == DONE_TIMEOUT or c.kind == DONE_TX_ERROR, b"nobody answers")
            model.ended += 1
            must(model.ended <= model.sent, b"a packet completes once")
        ring_release(&e.done, 1)


cdef size_t send_batch(bint is_refused) noexcept nogil:
    """Send a batch, as far as paces and slots allow; returns its size."""
    cdef size_t i, filled = echo_fill_batch(e, now_ns)
    must(filled <= SEND_BATCH, b"a batch has an end")
    for i in range(filled):
        check_sent(e.slab.slots[e.tx[i].slot].token)
        if is_refused and i == 0:
            echo_refuse(e, 0, ENOBUFS, now_ns)
        else:
            echo_file(e, i, 1, now_ns, now_ns)
    if filled:
        echo_keep_gaps(e, filled, now_ns)
    return filled


cdef void turn(bint is_refused) noexcept nogil:
    """Take a turn, as the engine does; after it there is nothing more to do at this instant."""
    cdef int64_t next_ns
    echo_take_cancellations(e)
    hear()
    while e.blocked_until_ns <= now_ns and echo_has_room(e, BATCH_ROOM):
        e.blocked_until_ns = 0
        if send_batch(is_refused) == 0:
            break
    echo_expire(e, now_ns)
    hear()
    next_ns = echo_next_turn_ns(e, now_ns)
    must(next_ns > now_ns or ring_count(&e.cancelled), b"a turn leaves nothing to do")


cdef void operate(feed_t *feed) noexcept nogil:
    global now_ns
    cdef uint8_t what = feed_byte(feed) & 7
    if what < 2:
        submit(feed)
    elif what == 2:
        cancel(feed)
    elif what < 6:
        turn(what == 5)
    else:
        now_ns += feed_span(feed)


cdef void finish() noexcept nogil:
    """Turn when the engine says so, until it never will again: all is sent and has ended."""
    global now_ns
    cdef int64_t next_ns = now_ns
    cdef uint32_t run, turns = 0
    while next_ns != NEVER_NS:
        must(turns < TURNS_MAX, b"an engine comes to an end")
        turns += 1
        now_ns = next_ns if next_ns > now_ns else now_ns
        turn(False)
        next_ns = echo_next_turn_ns(e, now_ns)
    for run in range(runs):
        must(models[run].is_stopped or models[run].sent == models[run].count, b"all is sent")
        must(models[run].ended == models[run].sent, b"and all has ended")
    check_slab(&e.slab, 0)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first two bytes say which engine and how fast; the others are operations."""
    cdef feed_t feed
    if n < 3 or not open_engine(data[0] & 1):
        return 0
    begin(data[0], data[1])
    feed.data = data + 2
    feed.left = n - 2
    while feed.left:
        operate(&feed)
    finish()
    return 0
