"""The echo engine's core: send echo requests in batches, match what comes back, time both.

One engine is one socket of one family. A request's payload starts with 16 bytes: slot (4), serial
(4), cookie (8); the rest is a fixed pattern. The cookie is keyed, so a reply belongs to the probe
it names or to nobody; ICMP identifier and sequence only spell the slot number once more, for
errors that quote no more than 8 bytes of the request (RFC 792).

Everything that happened to a probe becomes a completion. Packets that are not ours only count.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from echomatch cimport LATE_NS, echo_match, echo_match_quote
from echosend cimport echo_clear_error, echo_prepare, echo_send_batch
from echostate cimport (
    CONTROL_BYTES, DONE_RX_DROP, DONE_TIMEOUT, ERROR_ROUNDS, RECEIVE_BATCH, SEND_BATCH,
    SEND_TRIES, arrival_t, echo_complete, echo_has_room, echo_t, request_t,
)
from inflight cimport SLOT_NIL, SLOT_UNANSWERED, slab_due, slab_forget_due, slab_settle, slot_t
from packet cimport PARSE_OK, PROTOCOL_ICMP, icmp_t, internet_checksum, ip_t, parse_icmp, parse_ipv4
from stamps cimport (
    monotonic_ns, step_timer_fired, timespec_ns, wall_sample, wall_stepped, wall_to_monotonic,
)
from sysnet cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, EAGAIN, EINTR, EPOLLERR,
    IPPROTO_IP, IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_RECVERR, IP_RECVERR, IP_TTL, MSG_DONTWAIT,
    MSG_ERRQUEUE, MSG_TRUNC, NETSONDE_MEMINFO_DROPS, SCM_TIMESTAMPNS, SOL_SOCKET,
    SO_EE_OFFENDER, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_MEMINFO, SO_RXQ_OVFL, cmsghdr,
    epoll_event, epoll_wait, errno, getsockopt, msghdr, recvmmsg, sock_extended_err, sockaddr,
    sockaddr_in, sockaddr_in6, socklen_t, timespec,
)


cdef inline void echo_note_drops(echo_t *e, uint32_t drops) noexcept nogil:
    """Take a reading of the receive queue's drop counter, which wraps at 2^32."""
    cdef uint32_t more = drops - e.drops
    if more and more < 0x80000000U:  # an older reading comes with a packet queued before
        e.drops = drops
        e.drops_unclaimed += more
        e.counters.rx_drops += more


cdef inline void echo_read_drops(echo_t *e) noexcept nogil:
    """Ask the kernel for the drop counter: SO_RXQ_OVFL tells it only with a later packet."""
    cdef uint32_t info[16]
    cdef socklen_t length = sizeof(info)
    if (getsockopt(e.socket, SOL_SOCKET, SO_MEMINFO, info, &length) == 0
            and length > NETSONDE_MEMINFO_DROPS * sizeof(uint32_t)):
        echo_note_drops(e, info[NETSONDE_MEMINFO_DROPS])


cdef inline const sock_extended_err *echo_read_control(
    echo_t *e, msghdr *head, arrival_t *a,
) noexcept nogil:
    """Read the control messages: stamp, TTL, drops; returns the extended error, if there is one."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(head)
    cdef const sock_extended_err *error = NULL
    cdef timespec stamp
    cdef uint32_t drops = 0
    cdef int value = 0
    while control != NULL:
        if control.cmsg_level == SOL_SOCKET and control.cmsg_type == SCM_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(control), sizeof(stamp))
            a.stamp_ns = timespec_ns(&stamp)
        elif control.cmsg_level == SOL_SOCKET and control.cmsg_type == SO_RXQ_OVFL:
            memcpy(&drops, CMSG_DATA(control), sizeof(drops))
            echo_note_drops(e, drops)
        elif ((control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_TTL)
              or (control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_HOPLIMIT)):
            memcpy(&value, CMSG_DATA(control), sizeof(value))
            a.ttl = <uint8_t>value
        elif ((control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_RECVERR)
              or (control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_RECVERR)):
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


cdef inline void echo_take(echo_t *e, size_t at, int64_t user_ns) noexcept nogil:
    """Take message `at` of a received batch."""
    cdef msghdr *head = &e.rx_messages[at].msg_hdr
    cdef const uint8_t *data = <const uint8_t *>e.rx_parts[at].iov_base
    cdef size_t n = e.rx_messages[at].msg_len
    cdef arrival_t a
    cdef ip_t ip
    memset(&a, 0, sizeof(a))
    a.user_ns = user_ns
    echo_read_control(e, head, &a)
    e.newest_stamp_ns = a.stamp_ns
    e.counters.packets += 1
    if head.msg_flags & MSG_TRUNC:  # larger than anything we asked for
        e.counters.foreign += 1
        return
    a.source = address_bytes(<const sockaddr *>head.msg_name)
    a.icmp = data
    a.icmp_bytes = n
    if e.family == AF_INET and not e.datagram:
        # A raw IPv4 socket gets the IP header, and gets it before the kernel checks what follows.
        if (parse_ipv4(data, n, False, &ip) != PARSE_OK or ip.protocol != PROTOCOL_ICMP
                or internet_checksum(ip.body, ip.body_bytes) != 0):
            e.counters.malformed += 1
            return
        a.source = ip.source
        a.ttl = ip.ttl
        a.icmp = ip.body
        a.icmp_bytes = ip.body_bytes
    if a.source == NULL:
        e.counters.malformed += 1
        return
    echo_match(e, &a)


cdef inline void echo_take_error(echo_t *e, size_t at, int64_t user_ns) noexcept nogil:
    """Take message `at` of a batch of the error queue: the request, and what was said about it.

    Raw sockets get the ICMP error itself as well, with more of it; there this copy is dropped.
    """
    cdef msghdr *head = &e.rx_messages[at].msg_hdr
    cdef const sock_extended_err *error
    cdef const uint8_t *destination = address_bytes(<const sockaddr *>head.msg_name)
    cdef arrival_t a
    cdef icmp_t outer, quoted
    if not e.datagram:
        return
    memset(&a, 0, sizeof(a))
    memset(&outer, 0, sizeof(outer))
    a.user_ns = user_ns
    error = echo_read_control(e, head, &a)
    if error == NULL or destination == NULL or (
            error.ee_origin != SO_EE_ORIGIN_ICMP and error.ee_origin != SO_EE_ORIGIN_ICMP6):
        return  # a local error, which the send call has reported itself
    e.counters.packets += 1
    outer.type = error.ee_type
    outer.code = error.ee_code
    outer.payload_bytes = e.rx_messages[at].msg_len
    a.source = address_bytes(SO_EE_OFFENDER(error))
    if a.source == NULL or parse_icmp(
            <const uint8_t *>e.rx_parts[at].iov_base, e.rx_messages[at].msg_len,
            &quoted) != PARSE_OK:
        e.counters.malformed += 1
        return
    echo_match_quote(e, &a, &outer, &quoted, destination)


cdef inline int echo_read(echo_t *e, int flags) noexcept nogil:
    """Read one batch; returns its size, 0 when nothing is left to read, -1 when that is not known.

    A batch may end early without the queue being empty: a pending ICMP error cuts it short.
    """
    cdef int i, count, _
    if not echo_has_room(e, 2 * RECEIVE_BATCH):  # a late reply completes its probe twice
        return -1
    for i in range(RECEIVE_BATCH):
        e.rx_messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in6)
        e.rx_messages[i].msg_hdr.msg_controllen = CONTROL_BYTES
    for _ in range(SEND_TRIES):
        count = recvmmsg(e.socket, e.rx_messages, RECEIVE_BATCH, flags | MSG_DONTWAIT, NULL)
        if count >= 0:
            return count
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            echo_clear_error(e)  # a pending ICMP error, not the end of the queue
    return -1


cdef inline int echo_receive_batch(echo_t *e) noexcept nogil:
    """Read and match one batch of packets; returns what echo_read does.

    The clocks are compared after the read, so a step between a stamp and its conversion is seen.
    """
    cdef int i, count = echo_read(e, 0)
    cdef int64_t now
    if count > 0:
        now = monotonic_ns()
        wall_sample(&e.wall)
        for i in range(count):
            echo_take(e, <size_t>i, now)
    return count


cdef inline void echo_receive_errors(echo_t *e) noexcept nogil:
    """Empty the error queue; it shares the receive buffer and keeps the socket readable."""
    cdef int i, count, _
    cdef int64_t now
    for _ in range(ERROR_ROUNDS):
        count = echo_read(e, MSG_ERRQUEUE)
        if count <= 0:
            break
        now = monotonic_ns()
        wall_sample(&e.wall)
        for i in range(count):
            echo_take_error(e, <size_t>i, now)
    echo_clear_error(e)


cdef inline void echo_expire(echo_t *e, int64_t now_ns) noexcept nogil:
    """Complete the probes whose timeout has passed, and forget the long settled.

    A probe is only lost if our receive queue lost nothing while it was under way: each packet
    dropped there excuses one of them.
    """
    cdef uint32_t index = slab_due(&e.slab, now_ns)
    cdef uint8_t kind
    cdef slot_t *slot
    if index != SLOT_NIL:
        echo_read_drops(e)
    while index != SLOT_NIL and echo_has_room(e, 1):
        slot = &e.slab.slots[index]
        kind = DONE_TIMEOUT
        if slot.drops != e.drops and e.drops_unclaimed:
            kind = DONE_RX_DROP
            e.drops_unclaimed -= 1
        echo_complete(e, slot, kind)
        slab_settle(&e.slab, index, SLOT_UNANSWERED, now_ns)
        index = slab_due(&e.slab, now_ns)
    slab_forget_due(&e.slab, now_ns)


cdef inline void echo_poll(echo_t *e, int64_t now_ns, size_t limit) noexcept nogil:
    """Read up to about `limit` packets and expire what is due by what has been read.

    now_ns was read before the call, so when nothing is left nothing that arrived by then is unread.
    Until then the queue's order tells: whatever arrived before the newest packet read was read too.
    So packets that never end, as in a flood, do not hold up timeouts.
    """
    cdef epoll_event events[2]
    cdef int i, ready = epoll_wait(e.epoll, events, 2, 0)
    cdef int count = -1
    cdef size_t packets = 0
    cdef int64_t read_ns
    for i in range(ready):
        if events[i].data.fd == e.step_timer:
            if step_timer_fired(e.step_timer):
                wall_stepped(&e.wall)
        elif events[i].events & EPOLLERR:
            echo_receive_errors(e)
    while packets < limit:
        count = echo_receive_batch(e)
        if count <= 0:
            break
        packets += <size_t>count
    if count == 0:
        echo_expire(e, now_ns)
    elif count > 0 and e.newest_stamp_ns:
        read_ns = wall_to_monotonic(&e.wall, e.newest_stamp_ns) - LATE_NS
        echo_expire(e, read_ns if read_ns < now_ns else now_ns)


cdef inline size_t echo_submit(echo_t *e, const uint8_t *records, size_t count) noexcept nogil:
    """Send requests; returns how many were taken, fewer than given when the slab is full.

    Between batches it reads replies, so that a fast network does not overflow the receive queue.
    """
    cdef size_t taken = 0, batch
    while taken < count:
        batch = 0
        if not echo_has_room(e, SEND_BATCH):
            break
        wall_sample(&e.wall)
        while batch < SEND_BATCH and taken + batch < count:
            if not echo_prepare(e, batch, records + (taken + batch) * sizeof(request_t)):
                break
            batch += 1
        if batch == 0:
            break
        echo_send_batch(e, batch)
        taken += batch
        if taken < count:
            echo_receive_batch(e)
    return taken
