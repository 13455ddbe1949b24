"""Send queued probes and receive answers in batches, and put both on one clock.

Two sockets per family. Probes leave through an IPPROTO_RAW socket with a header of ours and
IP_RECVERR, without which a raw socket hides that its packet was dropped on a full queue (raw(7)).
Answers come in through a raw ICMP socket without IP_RECVERR: with it every ICMP error would be
queued a second time, and reported in place of the next packet.

Receive stamps are the kernel's, CLOCK_REALTIME, brought to CLOCK_MONOTONIC with the offset of this
pump. Where the wall clock stepped meanwhile the instant of the receive call is used and marked.
Send stamps are interpolated over each sendmmsg.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from packet cimport PARSE_FOREIGN, PARSE_OK
from quote cimport answer_t, parse_answer
from stamps cimport (
    monotonic_ns, step_timer_fired, timespec_ns, wall_sample, wall_stepped, wall_t,
    wall_to_monotonic,
)
from sysnet cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, EAGAIN, EINTR, IPPROTO_IPV6,
    IPV6_HOPLIMIT, MSG_DONTWAIT, MSG_TRUNC, SCM_TIMESTAMPNS, SO_RXQ_OVFL, SOL_SOCKET, cmsghdr,
    errno, iovec, mmsghdr, msghdr, recvmmsg, sendmmsg, sockaddr_in, sockaddr_in6,
    sockaddr_storage, timespec,
)
from tracetable cimport (
    MATCH_FORGED, MATCH_OURS, PROBE_ANSWERED, PROBE_SENT, build_probe, match_answer, match_t,
    table_t, trace_find, trace_handle, trace_probe, trace_t,
)

cdef enum:
    BATCH = 64                # measured best for sweeps; 16 costs 5 % more, 256 gains nothing
    ANSWER_BYTES_MAX = 2048   # an ICMP error has at most 576 or 1280 (RFC 1812 4.3.2.3, RFC 4443)
    CONTROL_BYTES = 128       # time stamp, hop limit, overflow count

cdef enum:
    STAMP_SLACK_NS = 1000000  # a right stamp lies this near to [sent, received]: interpolation

cdef enum:
    ANSWER_DUPLICATE = 1      # the probe had been answered before
    ANSWER_USER_CLOCK = 2     # rx_ns is when the receive call returned
    ANSWER_TRANSLATED = 4     # quoted source or destination is not what was sent

cdef struct queued_t:
    uint64_t handle
    uint8_t ttl
    uint8_t attempt

cdef struct event_t:
    uint64_t handle
    int64_t tx_ns
    int64_t rx_ns
    int64_t stamp_ns          # the kernel's CLOCK_REALTIME; 0: none
    int error                 # errno of a probe that was not sent; else an answer
    uint8_t ttl
    uint8_t attempt
    uint8_t type
    uint8_t code
    uint8_t reply_ttl
    uint8_t quoted_ttl
    uint8_t quoted_tos
    uint8_t flags
    uint8_t responder[16]

cdef struct counters_t:
    uint64_t sent
    uint64_t tx_errors
    uint64_t received
    uint64_t matched
    uint64_t duplicates
    uint64_t foreign
    uint64_t forged
    uint64_t malformed
    uint32_t rx_drops

cdef struct arrays_t:
    mmsghdr messages[BATCH]
    iovec parts[BATCH]
    sockaddr_storage peers[BATCH]
    uint8_t control[BATCH][CONTROL_BYTES]
    uint8_t data[BATCH][ANSWER_BYTES_MAX]

cdef struct pump_t:
    int tx_fd
    int rx_fd
    int step_fd               # a timerfd that a wall-clock step cancels
    wall_t wall
    bint is_tainted           # answers may be left that were stamped before a step
    queued_t *queue
    uint32_t queue_max
    uint32_t queue_head
    uint32_t queue_count
    event_t *events
    uint32_t events_max
    uint32_t events_count
    counters_t counters
    arrays_t *arrays


cdef inline int64_t settle_stamp(
    const wall_t *wall, int64_t stamp_ns, int64_t tx_ns, int64_t rx_user_ns, uint8_t *flags,
) noexcept nogil:
    """Return when an answer came, on CLOCK_MONOTONIC; never before tx_ns.

    stamp_ns: the kernel's stamp, 0 when there is none or the wall clock stepped. A stamp outside
    [tx_ns, rx_user_ns], give or take the slack, is not believed.
    """
    cdef int64_t rx_ns = wall_to_monotonic(wall, stamp_ns)
    if (stamp_ns == 0 or rx_ns < tx_ns - STAMP_SLACK_NS
            or rx_ns > rx_user_ns + STAMP_SLACK_NS):
        flags[0] |= ANSWER_USER_CLOCK
        rx_ns = rx_user_ns
    return tx_ns if rx_ns < tx_ns else rx_ns


# ── sending ──


cdef inline void set_peer(
    const table_t *table, const trace_t *trace, sockaddr_storage *peer, msghdr *header,
) noexcept nogil:
    cdef sockaddr_in *v4 = <sockaddr_in *>peer
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>peer
    memset(peer, 0, sizeof(sockaddr_in6))
    if table.version == 4:
        v4.sin_family = <unsigned short>AF_INET
        memcpy(&v4.sin_addr, trace.destination, 4)
        header.msg_namelen = sizeof(sockaddr_in)
    else:
        v6.sin6_family = <unsigned short>AF_INET6
        v6.sin6_scope_id = trace.scope_id
        memcpy(&v6.sin6_addr, trace.destination, 16)
        header.msg_namelen = sizeof(sockaddr_in6)
    header.msg_name = peer


cdef inline uint32_t fill_batch(table_t *table, pump_t *pump, queued_t *taken) noexcept nogil:
    """Build up to BATCH probes from the queue, passing over traces that ended; return how many."""
    cdef arrays_t *arrays = pump.arrays
    cdef uint32_t n = 0
    cdef queued_t *item
    cdef trace_t *trace
    cdef msghdr *header
    while n < BATCH and pump.queue_count > 0:
        item = &pump.queue[pump.queue_head]
        trace = trace_find(table, item.handle)
        if trace != NULL:
            taken[n] = item[0]
            header = &arrays.messages[n].msg_hdr
            memset(header, 0, sizeof(msghdr))
            arrays.parts[n].iov_base = arrays.data[n]
            arrays.parts[n].iov_len = build_probe(
                table, trace, item.ttl, item.attempt, arrays.data[n])
            header.msg_iov = &arrays.parts[n]
            header.msg_iovlen = 1
            set_peer(table, trace, &arrays.peers[n], header)
            n += 1
        pump.queue_head = (pump.queue_head + 1) % pump.queue_max
        pump.queue_count -= 1
    return n


cdef inline void put_back(pump_t *pump, const queued_t *taken, uint32_t n) noexcept nogil:
    """Return n probes to the front of the queue, first first."""
    cdef uint32_t i
    for i in range(n):
        pump.queue_head = (pump.queue_head + pump.queue_max - 1) % pump.queue_max
        pump.queue[pump.queue_head] = taken[n - 1 - i]
        pump.queue_count += 1


cdef inline void mark_sent(table_t *table, const queued_t *item, int64_t sent_ns) noexcept nogil:
    cdef trace_t *trace = trace_find(table, item.handle)
    trace.waiting -= 1
    trace.last_sent_ns = sent_ns
    trace_probe(trace, item.ttl, item.attempt).sent_ns = sent_ns
    trace_probe(trace, item.ttl, item.attempt).state = PROBE_SENT


cdef inline void mark_failed(
    table_t *table, pump_t *pump, const queued_t *item, int error,
) noexcept nogil:
    cdef event_t *event = &pump.events[pump.events_count]
    trace_find(table, item.handle).waiting -= 1
    memset(event, 0, sizeof(event_t))
    event.handle = item.handle
    event.ttl = item.ttl
    event.attempt = item.attempt
    event.error = error
    pump.events_count += 1
    pump.counters.tx_errors += 1


cdef inline bint send_batch(table_t *table, pump_t *pump) noexcept nogil:
    """Send up to BATCH queued probes; return whether the socket takes more.

    The caller left room for BATCH events. A probe the kernel refuses costs only itself.
    """
    cdef queued_t taken[BATCH]
    cdef uint32_t n = fill_batch(table, pump, taken)
    cdef uint32_t done = 0, i
    cdef int accepted
    cdef int64_t before, after
    while done < n:
        before = monotonic_ns()
        accepted = sendmmsg(pump.tx_fd, &pump.arrays.messages[done], n - done, MSG_DONTWAIT)
        if accepted > 0:
            after = monotonic_ns()
            for i in range(<uint32_t>accepted):
                mark_sent(table, &taken[done + i], before + (after - before) * i // accepted)
            pump.counters.sent += <uint64_t>accepted
            done += <uint32_t>accepted
        elif errno == EAGAIN:
            put_back(pump, &taken[done], n - done)
            return False
        elif errno != EINTR:
            mark_failed(table, pump, &taken[done], errno)
            done += 1
    return n > 0


# ── receiving ──


cdef inline void prepare_receive(arrays_t *arrays) noexcept nogil:
    cdef msghdr *header
    cdef int i
    for i in range(BATCH):
        header = &arrays.messages[i].msg_hdr
        arrays.parts[i].iov_base = arrays.data[i]
        arrays.parts[i].iov_len = ANSWER_BYTES_MAX
        header.msg_iov = &arrays.parts[i]
        header.msg_iovlen = 1
        header.msg_name = &arrays.peers[i]
        header.msg_namelen = sizeof(sockaddr_storage)
        header.msg_control = arrays.control[i]
        header.msg_controllen = CONTROL_BYTES
        header.msg_flags = 0


cdef inline void read_control(pump_t *pump, msghdr *header, event_t *event) noexcept nogil:
    """Take time stamp, IPv6 hop limit and overflow count out of the control messages."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(header)
    cdef timespec stamp
    cdef int hop_limit = 0
    while control != NULL:
        if control.cmsg_level == SOL_SOCKET and control.cmsg_type == SCM_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(control), sizeof(stamp))
            event.stamp_ns = timespec_ns(&stamp)
        elif control.cmsg_level == SOL_SOCKET and control.cmsg_type == SO_RXQ_OVFL:
            memcpy(&pump.counters.rx_drops, CMSG_DATA(control), sizeof(uint32_t))
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_HOPLIMIT:
            memcpy(&hop_limit, CMSG_DATA(control), sizeof(hop_limit))
            event.reply_ttl = <uint8_t>hop_limit
        control = CMSG_NXTHDR(header, control)


cdef inline void fill_event(
    table_t *table, event_t *event, const answer_t *answer, const match_t *found,
    const sockaddr_storage *peer,
) noexcept nogil:
    event.handle = trace_handle(found.trace, found.slot)
    event.tx_ns = found.probe.sent_ns
    event.ttl = found.ttl
    event.attempt = found.attempt
    event.type = answer.type
    event.code = answer.code
    event.quoted_ttl = answer.quoted_ttl
    event.quoted_tos = answer.quoted_tos
    if table.version == 4:
        event.reply_ttl = answer.reply_ttl
        memcpy(event.responder, answer.responder, 4)
    else:
        memcpy(event.responder, &(<const sockaddr_in6 *>peer).sin6_addr, 16)
    if found.probe.state == PROBE_ANSWERED:
        event.flags |= ANSWER_DUPLICATE
    if found.is_translated:
        event.flags |= ANSWER_TRANSLATED


cdef inline void take_message(
    table_t *table, pump_t *pump, uint32_t i, int64_t now_ns,
) noexcept nogil:
    """Turn one received message into an event, or count why it is none."""
    cdef mmsghdr *message = &pump.arrays.messages[i]
    cdef event_t *event = &pump.events[pump.events_count]
    cdef answer_t answer
    cdef match_t found
    cdef int status
    memset(event, 0, sizeof(event_t))
    event.rx_ns = now_ns
    pump.counters.received += 1
    read_control(pump, &message.msg_hdr, event)
    if message.msg_hdr.msg_flags & MSG_TRUNC:
        pump.counters.malformed += 1
        return
    status = parse_answer(table.version, pump.arrays.data[i], message.msg_len, &answer)
    if status != PARSE_OK:
        pump.counters.foreign += status == PARSE_FOREIGN
        pump.counters.malformed += status != PARSE_FOREIGN
        return
    status = match_answer(table, &answer, &found)
    if status != MATCH_OURS:
        pump.counters.forged += status == MATCH_FORGED
        pump.counters.foreign += status != MATCH_FORGED
        return
    fill_event(table, event, &answer, &found, &pump.arrays.peers[i])
    pump.counters.matched += found.probe.state == PROBE_SENT
    pump.counters.duplicates += found.probe.state == PROBE_ANSWERED
    found.probe.state = PROBE_ANSWERED
    pump.events_count += 1


cdef inline bint receive_batch(table_t *table, pump_t *pump) noexcept nogil:
    """Take up to BATCH messages; return whether there may be more. Room for BATCH events needed."""
    cdef int n = -1
    cdef int64_t now_ns
    cdef int i
    prepare_receive(pump.arrays)
    n = recvmmsg(pump.rx_fd, pump.arrays.messages, BATCH, MSG_DONTWAIT, NULL)
    now_ns = monotonic_ns()
    for i in range(n):
        take_message(table, pump, <uint32_t>i, now_ns)
    return n == BATCH or (n < 0 and errno == EINTR)


# ── one pump ──


cdef inline bint has_room(const pump_t *pump) noexcept nogil:
    return pump.events_max - pump.events_count >= BATCH


cdef inline void settle_stamps(pump_t *pump, bint is_stepped) noexcept nogil:
    """Put the receive stamps of this pump's events on CLOCK_MONOTONIC."""
    cdef uint32_t i
    cdef event_t *event
    for i in range(pump.events_count):
        event = &pump.events[i]
        if event.error == 0:
            event.rx_ns = settle_stamp(
                &pump.wall, 0 if is_stepped else event.stamp_ns, event.tx_ns, event.rx_ns,
                &event.flags)


cdef inline void run_pump(table_t *table, pump_t *pump) noexcept nogil:
    """Send what is queued and receive what came, until neither goes on or the events are full.

    Receiving follows every batch sent, so that the answers of a near path do not overflow the
    receive buffer.
    """
    cdef bint can_send = True, can_receive = True, is_stepped
    cdef uint32_t steps = pump.wall.steps
    pump.events_count = 0
    while (can_send or can_receive) and has_room(pump):
        if can_send:
            can_send = send_batch(table, pump)
        can_receive = True
        while can_receive and has_room(pump):
            can_receive = receive_batch(table, pump)
    if step_timer_fired(pump.step_fd):
        wall_stepped(&pump.wall)
    wall_sample(&pump.wall)
    is_stepped = pump.wall.steps != steps or pump.is_tainted
    settle_stamps(pump, is_stepped)
    pump.is_tainted = is_stepped and can_receive
