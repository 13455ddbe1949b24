"""The echo engine's matcher: an input is a sequence of sends, arrivals, forgeries and time."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from echoreceive cimport echo_expire, echo_note_overflow
from echosend cimport echo_cookie, echo_file, echo_refuse
from echostamp cimport echo_lose_stamps, echo_resume_stamps
from echostate cimport (
    BACKEND_DATAGRAM, BACKEND_HEADER, BACKEND_PACKET, BACKEND_RAW, DONE_RX_DROP, DONE_TIMEOUT,
    FLAG_DF, completion_t, echo_t,
)
from fuzz.echo_oracle cimport HEAD_KEPT, PROBES_MAX, judge, probe_t, wire_t
from fuzz.feed cimport feed_byte, feed_span, feed_t, feed_u16, feed_u32, must
from fuzz.slab_check cimport check_slab, empty_slab
from inflight cimport slab_open
from native.echo_door cimport (
    DOOR_FRAME_BYTES, DOOR_HEADER_BYTES, DOOR_INTERFACE, delivery_t, door_arrive, door_frame,
    door_open, door_prepare, door_report,
)
from packet cimport (
    IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PARSE_OK, build_ipv4_header, build_ipv6_header,
    checksum_add, checksum_fold, ip_t, parse_ipv6, pseudo_header_sum, store_be16, store_be32,
    store_be64,
)
from ring cimport ring_count, ring_record, ring_release
from schedule cimport request_t
from stamps cimport wall_merge, wall_stepped
from sysnet cimport (
    MSG_TRUNC, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_LOCAL,
    SO_EE_ORIGIN_TIMESTAMPING, sock_extended_err,
)

cdef enum:
    KINDS = 10                   # of engines: one of each back end and family, and exact
    WIRE_BYTES = 2400
    START_NS = 0x4000000000000   # 13 days
    EPOCH_NS = 1790000000000000000
    LINGER_NS = 1000000000
    TIMEOUT_MAX_NS = 60000000000

ctypedef struct host_t:          # everything an input starts with, and what it changes
    echo_t *e
    int version
    int64_t now_ns
    int64_t offset_ns            # where the wall clock is
    uint32_t excused
    uint32_t answers             # completions that a packet has brought, since it was given
    uint64_t count
    probe_t probes[PROBES_MAX]

cdef echo_t engines[KINDS]
cdef bint is_open[KINDS]
cdef host_t world


# ── an engine for each input, without allocating one ─────────────────────────────────────────────


cdef bint open_engine(int kind) noexcept nogil:
    """Make an engine of a kind, once."""
    cdef int backends[5]
    cdef int backend
    cdef int version = 4 if kind & 1 else 6
    backends[:] = [BACKEND_RAW, BACKEND_PACKET, BACKEND_DATAGRAM, BACKEND_RAW, BACKEND_HEADER]
    backend = backends[kind >> 1]
    if not is_open[kind]:
        is_open[kind] = door_open(&engines[kind], version, backend, kind >> 1 == 3, 7) == 0
        is_open[kind] = is_open[kind] and slab_open(&engines[kind].slab, 1, LINGER_NS) == 0
    return is_open[kind]


cdef void begin(host_t *h, int kind, uint32_t capacity) noexcept nogil:
    """Start over: whatever an earlier input did is forgotten."""
    cdef echo_t *e = &engines[kind]
    memset(h, 0, sizeof(host_t))
    h.e = e
    h.version = 4 if kind & 1 else 6
    h.now_ns = START_NS
    h.offset_ns = EPOCH_NS
    empty_slab(&e.slab)
    e.slab.capacity = capacity
    e.serial = 0xFFFFFFF0U
    e.overflows = e.drops_unclaimed = 0
    e.done.head = e.done.tail = e.done_pending = 0
    e.stamp_number = e.stamps_out = 0
    e.stamps_lost = False
    e.filler_bytes = 0
    e.filler_sum = 0
    memset(&e.counters, 0, sizeof(e.counters))
    memset(&e.wall, 0, sizeof(e.wall))
    wall_merge(&e.wall, EPOCH_NS - 400, EPOCH_NS + 400)


# ── what the engine says ─────────────────────────────────────────────────────────────────────────


cdef void hear(host_t *h, const wire_t *wire) noexcept nogil:
    """Judge every completion there is."""
    cdef completion_t *c
    h.answers = 0
    while ring_count(&h.e.done):
        c = <completion_t *>ring_record(&h.e.done, h.e.done.head)
        judge(h.probes, h.count, wire, c)
        if c.kind == DONE_RX_DROP:
            h.excused += 1
        elif c.kind != DONE_TIMEOUT:
            h.answers += 1
        ring_release(&h.e.done, 1)
    must(h.excused <= h.e.counters.rx_drops, b"a dropped packet excuses one probe")


cdef void hear_time(host_t *h, int64_t now_ns, bint is_refused) noexcept nogil:
    cdef wire_t wire
    memset(&wire, 0, sizeof(wire))
    wire.version = h.version
    wire.now_ns = now_ns
    wire.is_refused = is_refused
    h.e.done.tail += h.e.done_pending
    h.e.done_pending = 0
    hear(h, &wire)


cdef uint64_t refusals(const echo_t *e) noexcept nogil:
    """How many packets have been refused, for whatever reason."""
    return (e.counters.foreign + e.counters.forged + e.counters.malformed + e.counters.stale
            + e.counters.late_errors)


# ── operations ───────────────────────────────────────────────────────────────────────────────────


cdef uint16_t size_of(uint8_t choice) noexcept nogil:
    """A payload size: mostly small, one that needs larger buffers."""
    cdef uint16_t sizes[8]
    sizes[:] = [16, 17, 24, 56, 57, 80, 600, 2100]
    return sizes[choice & 7]


cdef uint16_t choose_path(host_t *h, feed_t *feed) noexcept nogil:
    """Choose the routing table's way, or one that says more or less of itself."""
    cdef uint8_t how = feed_byte(feed)
    h.e.paths[1].has_source = how & 2
    h.e.paths[1].interface = how & 4
    h.e.paths[1].mark = how & 8
    return how & 1


cdef void send(host_t *h, feed_t *feed) noexcept nogil:
    """Send a probe, or have the kernel refuse it."""
    cdef uint8_t packet[DOOR_HEADER_BYTES + 8 + 2100]
    cdef uint8_t how = feed_byte(feed)
    cdef request_t r
    cdef probe_t *probe = &h.probes[h.count]
    cdef size_t header = IPV4_HEADER_BYTES if h.version == 4 else IPV6_HEADER_BYTES
    if h.count == PROBES_MAX:
        return
    memset(&r, 0, sizeof(r))
    r.token = h.count
    r.count = 1
    r.size = size_of(how)
    r.ttl = 64 if how & 8 else 3
    r.tos = how & 16
    r.flags = FLAG_DF if how & 32 else 0
    r.timeout_ns = <uint64_t>(feed_span(feed) % TIMEOUT_MAX_NS + 1)
    memset(r.destination, feed_byte(feed) & 3, 4 if h.version == 4 else 16)
    r.path = choose_path(h, feed)
    if door_prepare(h.e, &r, packet) == 0:
        return
    h.count += 1
    memcpy(probe.icmp, packet + header, HEAD_KEPT)
    memcpy(probe.destination, r.destination, 16)
    probe.size = r.size
    probe.sent_ns = h.now_ns
    probe.timeout_ns = (<int64_t>r.timeout_ns + 999) // 1000 * 1000
    if how & 0xC0 == 0xC0:
        if h.e.tx[0].asks:
            echo_lose_stamps(h.e, h.now_ns)
        echo_refuse(h.e, 0, feed_byte(feed) * 2, h.now_ns)  # an errno, or what is none
        hear_time(h, h.now_ns, True)
    else:
        echo_file(h.e, 0, 1, h.now_ns, h.now_ns)


cdef probe_t *pick(host_t *h, feed_t *feed) noexcept nogil:
    """Choose a probe, the newest first."""
    return &h.probes[h.count - 1 - feed_byte(feed) % h.count]


cdef size_t write_request(const probe_t *probe, uint8_t *out) noexcept nogil:
    """Write a probe's ICMP message; returns its length."""
    cdef size_t i
    memcpy(out, probe.icmp, HEAD_KEPT)
    for i in range(16, probe.size):
        out[8 + i] = <uint8_t>i
    return <size_t>8 + probe.size


cdef void mutate(feed_t *feed, uint8_t *p, size_t n, uint8_t times) noexcept nogil:
    """Change a few bytes, near the start or anywhere."""
    cdef uint8_t _, far
    cdef size_t at
    for _ in range(times):
        far = feed_byte(feed)
        at = <size_t>(far & 63) if far & 64 else <size_t>(far & 63) << 5 | feed_byte(feed) & 31
        if at < n:
            p[at] ^= feed_byte(feed)


cdef size_t write_reply(host_t *h, feed_t *feed, uint8_t *out) noexcept nogil:
    """Write a reply to a probe, perhaps cut short."""
    cdef probe_t *probe = pick(h, feed)
    cdef size_t n = write_request(probe, out)
    cdef uint8_t cut = feed_byte(feed)
    out[0] = 0 if h.version == 4 else 129
    return n - cut % n if cut & 1 else n


cdef size_t write_named(host_t *h, feed_t *feed, uint8_t *out) noexcept nogil:
    """Write a reply with a right cookie of any slot and serial: of an engine that came before."""
    cdef size_t n = write_reply(h, feed, out)
    store_be32(out + 8, feed_byte(feed) if feed_byte(feed) & 1 else feed_u32(feed))
    store_be32(out + 12, h.e.serial - feed_byte(feed))
    store_be64(out + 16, echo_cookie(h.e, out + 8))
    return n if n >= 24 else 24


cdef size_t write_error(host_t *h, feed_t *feed, uint8_t *out) noexcept nogil:
    """Write an error about a probe: any length of quote, with extensions behind it or without."""
    cdef uint8_t request[8 + 2100]
    cdef uint8_t types[4]
    cdef probe_t *probe = pick(h, feed)
    cdef uint8_t how = feed_byte(feed)
    cdef size_t header = IPV4_HEADER_BYTES if h.version == 4 else IPV6_HEADER_BYTES
    cdef size_t quoted = write_request(probe, request)
    if h.version == 4:
        types[:] = [3, 11, 12, 3]
    else:
        types[:] = [1, 3, 4, 2]
    if how & 32:  # the last slot, or one of the three behind it
        store_be16(request + 6, <uint16_t>(h.e.slab.size - 1 + (how >> 6)))
    if how & 4:
        quoted = 8
    elif how & 8 and feed_byte(feed) < quoted:
        quoted = feed.data[-1]
    memset(out, 0, 8 + 128)
    out[0] = types[how & 3]
    out[8] = 0x45 if h.version == 4 else 0x60
    out[8 + (9 if h.version == 4 else 6)] = 1 if h.version == 4 else 58
    memcpy(out + 8 + (16 if h.version == 4 else 24), probe.destination, 4 if h.version == 4 else 16)
    memcpy(out + 8 + header, request, quoted)
    quoted += header
    if how & 16 and quoted <= 128:
        out[5 if h.version == 4 else 4] = 32 if h.version == 4 else 16
        memcpy(out + 136, b"\x20\x00\x00\x00\x00\x08\x01\x01\x00\x01\x40\x00", 12)
        return 8 + 128 + 12
    return 8 + quoted


cdef size_t write_noise(feed_t *feed, uint8_t *out) noexcept nogil:
    """Write bytes as they are fed."""
    cdef size_t i, n = feed_byte(feed)
    for i in range(n):
        out[i] = feed_byte(feed)
    return n


cdef size_t write_message(host_t *h, feed_t *feed, uint8_t what, uint8_t *out) noexcept nogil:
    if h.count == 0 or what == 3:
        return write_noise(feed, out)
    if what == 0:
        return write_reply(h, feed, out)
    if what == 1:
        return write_error(h, feed, out)
    return write_named(h, feed, out)


cdef int64_t stamp(host_t *h, feed_t *feed, uint8_t how) noexcept nogil:
    """A kernel's stamp: right, none, or off."""
    if how & 3 == 0:
        return 0
    if how & 3 == 1:
        return h.now_ns + h.offset_ns + (feed_span(feed) if how & 4 else -feed_span(feed))
    return h.now_ns + h.offset_ns


cdef void fill_wire(wire_t *wire, host_t *h, delivery_t *d) noexcept nogil:
    """Find the ICMP message in what is delivered, as plainly as can be."""
    cdef size_t header
    cdef ip_t ip
    memset(wire, 0, sizeof(wire_t))
    wire.version = h.version
    wire.now_ns = d.user_ns
    wire.icmp = d.data
    wire.n = d.n
    wire.source = d.source
    if h.version == 6 and h.e.backend == BACKEND_PACKET:
        wire.n = 0
        if parse_ipv6(d.data, d.n, &ip) == PARSE_OK and ip.total_bytes >= ip.body - d.data:
            wire.icmp = ip.body
            wire.n = ip.total_bytes - (ip.body - d.data)
            wire.source = ip.source
    elif h.version == 4 and h.e.backend != BACKEND_DATAGRAM:
        header = <size_t>(d.data[0] & 15) * 4 if d.n > 20 else d.n
        header = header if header < d.n else d.n
        wire.icmp = d.data + header
        wire.n = d.n - header
        if d.n >= 20 and (<size_t>d.data[2] << 8 | d.data[3]) < d.n:
            wire.n -= d.n - (<size_t>d.data[2] << 8 | d.data[3])
        wire.source = d.data + 12


cdef void deliver(host_t *h, uint8_t *frame, delivery_t *d) noexcept nogil:
    """Give the engine a message: it is an answer to one probe, or is refused for one reason."""
    cdef wire_t wire
    cdef uint64_t packets = h.e.counters.packets, refused = refusals(h.e)
    fill_wire(&wire, h, d)
    if h.e.backend == BACKEND_PACKET:
        door_frame(h.e, frame, d, 3 if d.hops == 9 else DOOR_INTERFACE,
                   <uint32_t>d.n + (d.hops == 8))
    else:
        door_arrive(h.e, d)
    hear(h, &wire)
    must(h.e.counters.packets == packets + 1, b"every packet is counted")
    must(h.answers + refusals(h.e) - refused == 1, b"a packet is an answer or is refused")


cdef void sign(uint8_t *message, size_t n, uint64_t pseudo) noexcept nogil:
    """Write the checksum of an ICMP message."""
    store_be16(message + 2, 0)
    store_be16(message + 2, <uint16_t>(~checksum_fold(checksum_add(pseudo, message, n)) & 0xFFFF))


cdef size_t wrap(host_t *h, uint8_t how, uint8_t *out, const uint8_t *message, size_t n,
                 const uint8_t *responder) noexcept nogil:
    """Put a message where a socket hands it out: IPv4 with its header and a right checksum."""
    cdef uint8_t here[16]
    memset(here, 9, 16)
    if h.version == 6 and h.e.backend == BACKEND_PACKET:
        build_ipv6_header(out, responder, here, <uint16_t>n, 58, 0, 60, 0)
        memcpy(out + IPV6_HEADER_BYTES, message, n)
        if n >= 4 and how & 0x80 == 0:
            sign(out + IPV6_HEADER_BYTES, n,
                 pseudo_header_sum(responder, here, 16, <uint32_t>n, 58))
        return IPV6_HEADER_BYTES + n
    if h.version == 6 or h.e.backend == BACKEND_DATAGRAM:
        memcpy(out, message, n)
        return n
    build_ipv4_header(out, responder, here, <uint16_t>(IPV4_HEADER_BYTES + n), 1, 0, 60, 1, False)
    memcpy(out + IPV4_HEADER_BYTES, message, n)
    if n >= 4 and how & 0x80 == 0:
        sign(out + IPV4_HEADER_BYTES, n, 0)
    return IPV4_HEADER_BYTES + n


cdef void arrive(host_t *h, feed_t *feed, uint8_t what) noexcept nogil:
    """Let a message arrive, in memory of its own that ends where it ends."""
    cdef uint8_t message[WIRE_BYTES]
    cdef uint8_t packet[WIRE_BYTES]
    cdef uint8_t *frame
    cdef uint8_t responder[16]
    cdef uint8_t how = feed_byte(feed)
    cdef size_t n = write_message(h, feed, what, message)
    cdef delivery_t d
    mutate(feed, message, n, how >> 4 & 3)
    memset(responder, 77, 16)
    memset(&d, 0, sizeof(d))
    d.n = wrap(h, how, packet, message, n, responder)
    if how & 8:
        mutate(feed, packet, d.n if d.n < 48 else 48, 1)
        d.hops = feed_byte(feed)
        d.flags = MSG_TRUNC if feed_byte(feed) == 9 else 0
        d.is_chatty = d.hops & 1
    d.source = NULL if d.hops == 255 else responder
    d.stamp_ns = stamp(h, feed, how)
    d.user_ns = h.now_ns
    frame = <uint8_t *>malloc(DOOR_FRAME_BYTES + d.n)
    memcpy(frame + DOOR_FRAME_BYTES, packet, d.n)
    d.data = frame + DOOR_FRAME_BYTES
    deliver(h, frame, &d)
    free(frame)


cdef uint8_t origin(uint8_t choice) noexcept nogil:
    """Who reports by the error queue."""
    cdef int origins[4]
    origins[:] = [SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_LOCAL,
                  SO_EE_ORIGIN_TIMESTAMPING]
    return <uint8_t>origins[choice & 3]


cdef void report(host_t *h, feed_t *feed) noexcept nogil:
    """Let a report come by the error queue: an ICMP error about a request, or a stamp."""
    cdef uint8_t message[WIRE_BYTES]
    cdef uint8_t offender[16]
    cdef uint8_t how = feed_byte(feed)
    cdef sock_extended_err error
    cdef probe_t *probe
    cdef delivery_t d
    cdef wire_t wire
    if h.count == 0:
        return
    probe = pick(h, feed)
    memset(offender, 78, 16)
    memset(&error, 0, sizeof(error))
    error.ee_origin = origin(how >> 6)
    error.ee_type = feed_byte(feed)
    error.ee_data = h.e.stamp_number - feed_byte(feed)
    memset(&d, 0, sizeof(d))
    d.n = write_request(probe, message)
    if how & 8 and feed_byte(feed) < d.n:
        d.n = feed.data[-1]
    mutate(feed, message, d.n, how >> 4 & 1)
    d.data = message
    d.source = NULL if how & 0x20 else probe.destination
    d.stamp_ns = stamp(h, feed, how)
    d.user_ns = h.now_ns
    fill_wire(&wire, h, &d)
    wire.icmp = message
    wire.n = d.n
    wire.destination = d.source
    wire.source = offender
    door_report(h.e, &d, &error, NULL if error.ee_type == 255 else offender)
    hear(h, &wire)


cdef void expire(host_t *h, int64_t now_ns) noexcept nogil:
    echo_expire(h.e, now_ns)
    hear_time(h, now_ns, False)


cdef void set_clock(host_t *h, feed_t *feed) noexcept nogil:
    """Set the wall clock, and let the engine notice in one way or another, or not at all."""
    cdef uint8_t how = feed_byte(feed)
    h.offset_ns += feed_span(feed) if how & 1 else -feed_span(feed)
    if how & 2:
        wall_stepped(&h.e.wall)
    if how & 4:
        wall_merge(&h.e.wall, h.offset_ns - feed_u16(feed), h.offset_ns + feed_u16(feed))


cdef void operate(host_t *h, feed_t *feed) noexcept nogil:
    """Do what the next byte says."""
    cdef uint8_t what = feed_byte(feed) & 15
    if what < 3:
        send(h, feed)
    elif what < 9:
        arrive(h, feed, (what - 3) & 3)
    elif what == 9:
        report(h, feed)
    elif what == 10:
        set_clock(h, feed)
    elif what == 11:
        echo_note_overflow(h.e, feed_byte(feed))
    elif what == 12:
        if h.e.stamps_lost:
            echo_resume_stamps(h.e, h.now_ns)
    elif what == 13:
        expire(h, h.now_ns)
    else:
        h.now_ns += feed_span(feed)


cdef void finish(host_t *h) noexcept nogil:
    """Let all time pass: every probe ends, and is forgotten."""
    cdef uint64_t i
    check_slab(&h.e.slab, 0)
    expire(h, h.now_ns + 2 * TIMEOUT_MAX_NS)
    for i in range(h.count):
        must(h.probes[i].final != 0, b"every probe ends")
    expire(h, h.now_ns + 3 * TIMEOUT_MAX_NS)
    must(h.e.slab.in_flight == 0 and h.e.slab.settled == 0, b"and is forgotten")
    check_slab(&h.e.slab, 0)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first two bytes say which engine and how many slots; the others are operations."""
    cdef uint32_t capacities[4]
    cdef feed_t feed
    capacities[:] = [1, 3, 24, 70000]
    feed.data = data
    feed.left = n
    if n < 3 or not open_engine(feed_byte(&feed) % KINDS):
        return 0
    begin(&world, data[0] % KINDS, capacities[feed_byte(&feed) & 3])
    while feed.left:
        operate(&world, &feed)
    finish(&world)
    return 0
