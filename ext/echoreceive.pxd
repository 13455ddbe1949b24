"""The echo engine's receiving half: what the sockets hold becomes arrivals, in batches."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from echomatch cimport echo_match, echo_match_quote
from echosend cimport echo_clear_error
from echostamp cimport LATE_NS, echo_take_stamp
from echostate cimport (
    BACKEND_DATAGRAM, BATCH_ROOM, CONTROL_BYTES, DONE_RX_DROP, DONE_TIMEOUT, ERROR_BATCH,
    ERROR_ROUNDS, RECEIVE_BATCH, SEND_TRIES, arrival_t, batch_t, echo_claims_drop, echo_complete,
    echo_has_room, echo_t, has_ip_header,
)
from frames cimport (
    frame_at, frame_interface, frame_stamp_ns, frames_dropped, frames_ready, frames_release,
    tpacket2_hdr,
)
from inflight cimport (
    SLOT_NIL, SLOT_UNANSWERED, slab_due, slab_forget_due, slab_settle, slot_t,
)
from packet cimport (
    PARSE_OK, PROTOCOL_ICMP, PROTOCOL_ICMPV6, checksum_add, checksum_fold, icmp_t, ip_t,
    parse_icmp, parse_ipv4, parse_ipv6, pseudo_header_sum,
)
from stamps cimport (
    monotonic_ns, timespec_ns, wall_sample, wall_to_monotonic,
)
from sysnet cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, EAGAIN, EINTR, IPPROTO_IP,
    IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_RECVERR, IP_RECVERR, IP_TTL, MSG_DONTWAIT, MSG_ERRQUEUE,
    MSG_TRUNC, NETSONDE_MEMINFO_DROPS, NETSONDE_MEMINFO_RCVBUF,
    NETSONDE_MEMINFO_RMEM_ALLOC, PACKET_TX_TIMESTAMP, SCM_TIMESTAMPING, SCM_TIMESTAMPNS,
    SO_EE_OFFENDER, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_TIMESTAMPING, SO_MEMINFO,
    SOL_PACKET, SOL_SOCKET, cmsghdr, errno, getsockopt, msghdr, recvmmsg,
    sock_extended_err, sockaddr, sockaddr_in, sockaddr_in6, socklen_t, timespec,
)
from tracematch cimport trace_match_quoted
from tracerun cimport trace_expire


cdef enum:
    CLAIM_NS = 60000000000


cdef inline void echo_note_overflow(echo_t *e, uint32_t more) noexcept nogil:
    """Note packets that found the receive queue full: each excuses a missing reply.

    What no probe has claimed in a minute, the longest timeout, was not the reply to any.
    """
    cdef int64_t now_ns
    if more == 0:
        return
    now_ns = monotonic_ns()
    if (e.slab.in_flight + e.traces.slab.in_flight == 0
            or now_ns > e.overflowed_ns + <int64_t>CLAIM_NS):
        e.drops_unclaimed = 0
    e.overflowed_ns = now_ns
    e.overflows += more
    e.drops_unclaimed += more
    e.counters.rx_drops += more


cdef inline void echo_read_queue(echo_t *e) noexcept nogil:
    """Ask the kernel how full the receive queue is, and what it has dropped since the last look.

    At the beginning of a turn and before a batch that follows a full one: a queue that overflowed
    holds more than a batch, so it is still more than half full then. Of a raw ICMPv6 socket's that
    is not, the kernel drops damaged packets only, and counts them alike; they excuse no missing
    reply.
    (SO_RXQ_OVFL tells the same number, but only with a later packet.)
    """
    cdef uint32_t info[16]
    cdef socklen_t length = sizeof(info)
    cdef uint32_t more
    if e.frames.memory != NULL:
        echo_note_overflow(e, frames_dropped(e.socket))
        return
    if (getsockopt(e.socket, SOL_SOCKET, SO_MEMINFO, info, &length) < 0
            or length <= NETSONDE_MEMINFO_DROPS * sizeof(uint32_t)):
        return
    more = info[NETSONDE_MEMINFO_DROPS] - e.drops
    e.drops = info[NETSONDE_MEMINFO_DROPS]
    if (e.family == AF_INET or e.backend == BACKEND_DATAGRAM
            or info[NETSONDE_MEMINFO_RMEM_ALLOC] >= info[NETSONDE_MEMINFO_RCVBUF] // 2):
        echo_note_overflow(e, more)
    else:
        e.counters.malformed += more


cdef inline const sock_extended_err *echo_read_control(
    echo_t *e, msghdr *head, arrival_t *a,
) noexcept nogil:
    """Read the control messages: stamp, TTL; returns the extended error, if there is one."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(head)
    cdef const sock_extended_err *error = NULL
    cdef timespec stamp      # SCM_TIMESTAMPING has three; the first is the kernel's
    cdef int value = 0
    while control != NULL:
        if control.cmsg_level == SOL_SOCKET and (
                control.cmsg_type == SCM_TIMESTAMPNS or control.cmsg_type == SCM_TIMESTAMPING):
            memcpy(&stamp, CMSG_DATA(control), sizeof(stamp))
            a.stamp_ns = timespec_ns(&stamp)
        elif ((control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_TTL)
              or (control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_HOPLIMIT)):
            memcpy(&value, CMSG_DATA(control), sizeof(value))
            a.ttl = <uint8_t>value
        elif ((control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_RECVERR)
              or (control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_RECVERR)
              or (control.cmsg_level == SOL_PACKET and control.cmsg_type == PACKET_TX_TIMESTAMP)):
            error = <const sock_extended_err *>CMSG_DATA(control)
        control = CMSG_NXTHDR(head, control)
    return error


cdef inline const uint8_t *address_bytes(const sockaddr *name) noexcept nogil:
    """Return the address in a socket address, or NULL for a family that is not IP's."""
    if name.sa_family == AF_INET:
        return <const uint8_t *>&(<const sockaddr_in *>name).sin_addr
    if name.sa_family == AF_INET6:
        return <const uint8_t *>&(<const sockaddr_in6 *>name).sin6_addr
    return NULL


cdef inline bint read_packet(
    int family, const uint8_t *data, size_t n, arrival_t *a,
) noexcept nogil:
    """Read an IP packet that holds an ICMP message, both unverified; whether it is sound."""
    cdef ip_t ip
    cdef size_t length
    cdef uint64_t total
    if family == AF_INET:
        if parse_ipv4(data, n, False, &ip) != PARSE_OK or ip.protocol != PROTOCOL_ICMP:
            return False
        length, total = ip.body_bytes, 0
    else:
        if (parse_ipv6(data, n, &ip) != PARSE_OK or ip.protocol != PROTOCOL_ICMPV6
                or not <size_t>(ip.body - data) <= ip.total_bytes <= n):
            return False
        length = ip.total_bytes - <size_t>(ip.body - data)  # less than there is: link padding
        total = pseudo_header_sum(
            ip.source, ip.destination, 16, <uint32_t>length, PROTOCOL_ICMPV6)
    a.source = ip.source
    a.ttl = ip.ttl
    a.icmp = ip.body
    a.icmp_bytes = length
    return checksum_fold(checksum_add(total, ip.body, length)) == 0xFFFF


cdef inline void echo_take(echo_t *e, int at, int64_t user_ns) noexcept nogil:
    """Take message `at` of a received batch."""
    cdef msghdr *head = &e.received.messages[at].msg_hdr
    cdef const uint8_t *data = <const uint8_t *>e.received.parts[at].iov_base
    cdef size_t n = e.received.messages[at].msg_len
    cdef arrival_t a
    memset(&a, 0, sizeof(a))
    a.user_ns = user_ns
    echo_read_control(e, head, &a)
    e.newest_stamp_ns = a.stamp_ns
    e.counters.packets += 1
    if head.msg_flags & MSG_TRUNC:  # larger than anything we asked for
        e.counters.foreign += 1
        return
    if has_ip_header(e):
        # It comes before the kernel has checked what follows.
        if not read_packet(e.family, data, n, &a):
            a.source = NULL
    else:
        a.source = address_bytes(<const sockaddr *>head.msg_name)
        a.icmp = data
        a.icmp_bytes = n
    if a.source == NULL:
        e.counters.malformed += 1
        return
    echo_match(e, &a)


cdef inline bint echo_uses_interface(const echo_t *e, int index) noexcept nogil:
    """Whether packets leave by this interface: a packet seen on another may be the same again."""
    cdef int i
    for i in range(e.interface_count):
        if e.interfaces[i] == index:
            return True
    return False


cdef inline void echo_take_frame(
    echo_t *e, const tpacket2_hdr *head, int64_t user_ns,
) noexcept nogil:
    """Take a packet from the frames shared with the kernel."""
    cdef arrival_t a
    memset(&a, 0, sizeof(a))
    a.user_ns = user_ns
    a.stamp_ns = e.newest_stamp_ns = frame_stamp_ns(head)
    e.counters.packets += 1
    if not echo_uses_interface(e, frame_interface(head)) or head.tp_snaplen < head.tp_len:
        e.counters.foreign += 1
    elif not read_packet(
            e.family, <const uint8_t *>head + head.tp_net, head.tp_snaplen, &a):
        e.counters.malformed += 1
    else:
        echo_match(e, &a)


cdef inline void echo_take_icmp_error(
    echo_t *e, int at, const sock_extended_err *error, arrival_t *a,
) noexcept nogil:
    """Take the request in message `at` of the error queue, and what was said about it."""
    cdef const uint8_t *destination = address_bytes(
        <const sockaddr *>e.errors.messages[at].msg_hdr.msg_name)
    cdef icmp_t outer, quoted
    if destination == NULL:
        return
    e.counters.packets += 1
    memset(&outer, 0, sizeof(outer))
    outer.type = error.ee_type
    outer.code = error.ee_code
    outer.payload_bytes = e.errors.messages[at].msg_len
    a.source = address_bytes(SO_EE_OFFENDER(error))
    if a.source == NULL or parse_icmp(
            <const uint8_t *>e.errors.parts[at].iov_base, e.errors.messages[at].msg_len,
            &quoted) != PARSE_OK:
        e.counters.malformed += 1
    elif not trace_match_quoted(e, a, &outer, &quoted, destination):
        echo_match_quote(e, a, &outer, &quoted, destination)


cdef inline void echo_take_error(echo_t *e, int at, int64_t user_ns) noexcept nogil:
    """Take message `at` of a batch of an error queue: a transmit stamp or an ICMP error.

    Raw sockets get the ICMP error itself as well, with more of it; there this copy is dropped.
    Local errors the send call has reported itself.
    """
    cdef arrival_t a
    cdef const sock_extended_err *error
    memset(&a, 0, sizeof(a))
    a.user_ns = user_ns
    error = echo_read_control(e, &e.errors.messages[at].msg_hdr, &a)
    if error == NULL:
        return
    if error.ee_origin == SO_EE_ORIGIN_TIMESTAMPING:
        if e.exact and a.stamp_ns:
            echo_take_stamp(e, error.ee_data, a.stamp_ns, user_ns)
    elif e.backend == BACKEND_DATAGRAM and (
            error.ee_origin == SO_EE_ORIGIN_ICMP or error.ee_origin == SO_EE_ORIGIN_ICMP6):
        echo_take_icmp_error(e, at, error, &a)


cdef inline int echo_read(int fd, batch_t *batch, int flags) noexcept nogil:
    """Read one batch; returns its size, 0 when nothing is left to read, -1 when that is not known.

    A batch may end early without the queue being empty: a pending ICMP error cuts it short.
    """
    cdef unsigned int i
    cdef int count, _
    for i in range(batch.used):  # what the kernel has written over
        batch.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in6)
        batch.messages[i].msg_hdr.msg_controllen = CONTROL_BYTES
    batch.used = 0
    for _ in range(SEND_TRIES):
        count = recvmmsg(fd, batch.messages, batch.count, flags | MSG_DONTWAIT, NULL)
        if count >= 0:
            batch.used = <unsigned int>count
            return count
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            echo_clear_error(fd)  # a pending ICMP error, not the end of the queue
    return -1


cdef inline int echo_receive_errors(echo_t *e, int fd) noexcept nogil:
    """Empty an error queue; it shares the receive buffer and keeps the socket readable.

    Returns how many messages it held. Leaves room for the completions of the batch of packets that
    its caller may hold.
    """
    cdef int i, count, _, messages = 0
    cdef int64_t now
    for _ in range(ERROR_ROUNDS):
        if not echo_has_room(e, 2 * (ERROR_BATCH + RECEIVE_BATCH)):
            break
        count = echo_read(fd, &e.errors, MSG_ERRQUEUE)
        if count <= 0:
            break
        now = monotonic_ns()
        wall_sample(&e.wall)
        for i in range(count):
            echo_take_error(e, i, now)
        messages += count
    echo_clear_error(fd)
    return messages


cdef inline int echo_await_batch(echo_t *e) noexcept nogil:
    """Return how many packets a batch has; 0 when nothing is left, -1 when that is not known."""
    if e.frames.memory != NULL:
        return <int>frames_ready(&e.frames, RECEIVE_BATCH)
    return echo_read(e.socket, &e.received, 0)


cdef inline int echo_receive_batch(echo_t *e) noexcept nogil:
    """Read and match one batch of packets; returns what echo_await_batch does.

    The clocks are compared after the read, so a step between a stamp and its conversion is seen.
    A packet's transmit stamp is queued before its reply can come, so it is read before the match.
    """
    cdef int i, count
    cdef int64_t now
    cdef tpacket2_hdr *head
    if not echo_has_room(e, BATCH_ROOM):  # a late reply completes its probe twice
        return -1
    if e.is_behind:
        echo_read_queue(e)
    count = echo_await_batch(e)
    e.is_behind = count == RECEIVE_BATCH
    if count <= 0:
        return count
    now = monotonic_ns()
    wall_sample(&e.wall)
    if e.exact:
        echo_receive_errors(e, e.tx_socket)
    for i in range(count):
        if e.frames.memory == NULL:
            echo_take(e, i, now)
            continue
        head = frame_at(&e.frames, e.frames.next)
        echo_take_frame(e, head, now)
        frames_release(&e.frames, head)
    return count


cdef inline void echo_expire(echo_t *e, int64_t now_ns) noexcept nogil:
    """Complete the probes whose timeout has passed, and forget the long settled.

    A probe is only lost if our receive queue lost nothing while it was under way: each packet
    dropped there excuses one of them.
    """
    cdef uint32_t index = slab_due(&e.slab, now_ns)
    cdef uint8_t kind
    cdef slot_t *slot
    while index != SLOT_NIL and echo_has_room(e, 1):
        slot = &e.slab.slots[index]
        kind = DONE_RX_DROP if echo_claims_drop(e, slot) else DONE_TIMEOUT
        echo_complete(e, slot, kind)
        slab_settle(&e.slab, index, SLOT_UNANSWERED, now_ns)
        index = slab_due(&e.slab, now_ns)
    slab_forget_due(&e.slab, now_ns)


cdef inline int echo_receive(echo_t *e, int64_t now_ns, int limit) noexcept nogil:
    """Read up to about `limit` packets, and expire what is due by what has been read.

    Returns how many packets were read. now_ns was read before the call, so when nothing is left
    nothing that arrived by then is unread. Until then the queue's order tells: whatever arrived
    before the newest packet read was read too. So packets that never end, as in a flood, do not
    hold up timeouts.
    """
    cdef int count = -1, packets = 0
    cdef int64_t read_ns
    echo_read_queue(e)
    while packets < limit:
        count = echo_receive_batch(e)
        if count <= 0:
            break
        packets += count
    if count > 0:
        if e.newest_stamp_ns == 0:
            return packets
        read_ns = wall_to_monotonic(&e.wall, e.newest_stamp_ns) - LATE_NS
        if read_ns < now_ns:
            now_ns = read_ns
    if count >= 0:
        echo_expire(e, now_ns)
        if e.traces.methods:
            trace_expire(e, now_ns)
    return packets
