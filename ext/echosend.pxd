"""The echo engine's sending half: requests become packets, stamps and timeouts."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cookie cimport siphash24
from echostamp cimport echo_await_stamp, echo_lose_stamps
from echostate cimport (
    BACKEND_DATAGRAM, BACKEND_HEADER, BACKEND_PACKET, BUFFER_BYTES, BUFFER_MAX_BYTES,
    COOKIE_BYTES, DEFAULT_TTL, DONE_TX_ERROR, FLAG_DF, FLAT_BYTES, HEAD_BYTES, SEND_TRIES,
    batch_size_buffers, echo_complete, echo_t, path_t, tx_t,
)
from inflight cimport slab_file, slab_release, slab_reserve, slot_t
from packet cimport (
    ICMP4_ECHO_REQUEST, ICMP6_ECHO_REQUEST, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, build_ipv4_header, build_ipv6_header, checksum_add, checksum_fold,
    echo_header, pseudo_header_sum, store_be16, store_summed,
)
from schedule cimport request_t
from stamps cimport monotonic_ns
from tracerun cimport trace_refused, trace_sent
from sysnet cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_LEN, CMSG_SPACE, EAGAIN, ENOBUFS, IP_PKTINFO, IP_RECVERR,
    IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_DONTFRAG, IPV6_HOPLIMIT, IPV6_PKTINFO,
    IPV6_RECVERR, IPV6_TCLASS, MSG_DONTWAIT, SO_ERROR, SO_MARK, SO_TIMESTAMPING,
    SOF_TIMESTAMPING_TX_SOFTWARE, SOL_SOCKET, cmsghdr, errno, getsockopt, in6_pktinfo, in_pktinfo,
    msghdr, sendmmsg, setsockopt, sockaddr_in, sockaddr_in6, sockaddr_ll, socklen_t,
)

cdef enum:
    HEADER_BYTES_MAX = 576       # a packet whose IP header is ours is never fragmented
    REPLY_HEADERS = 68           # the longest IPv4 header and ICMP's


cdef inline uint64_t echo_cookie(const echo_t *e, const uint8_t *named) noexcept nogil:
    """Return the cookie of the 8 bytes slot and serial, for this engine alone."""
    cdef uint8_t text[16]
    memcpy(text, named, 8)
    memcpy(text + 8, e.instance, 8)
    return siphash24(e.key, text, 16)


cdef inline uint16_t echo_ident(const echo_t *e, uint32_t index) noexcept nogil:
    """Return the identifier of a slot's request; of a datagram socket it is the kernel's choice."""
    return e.ident if e.backend == BACKEND_DATAGRAM else <uint16_t>(e.ident + (index >> 16))


cdef inline uint64_t echo_filler_sum(echo_t *e, size_t n) noexcept nogil:
    """Return the checksum's running sum of the first n filler bytes; the last n is remembered."""
    if n != e.filler_bytes:
        e.filler_bytes = n
        e.filler_sum = checksum_add(0, e.filler, n)
    return e.filler_sum


cdef inline void put_control(
    msghdr *head, int level, int type_, const void *value, size_t n,
) noexcept nogil:
    """Append a control message of n bytes."""
    cdef cmsghdr *control = <cmsghdr *>(<uint8_t *>head.msg_control + head.msg_controllen)
    control.cmsg_level = level
    control.cmsg_type = type_
    control.cmsg_len = CMSG_LEN(n)
    memcpy(CMSG_DATA(control), value, n)
    head.msg_controllen += CMSG_SPACE(n)


cdef inline void put_number(msghdr *head, int level, int type_, int value) noexcept nogil:
    put_control(head, level, type_, &value, sizeof(value))


cdef inline void put_path(echo_t *e, msghdr *head, const path_t *path) noexcept nogil:
    """Ask for a path's source address, interface and mark."""
    cdef in_pktinfo info4
    cdef in6_pktinfo info6
    if path.has_source or path.interface:
        if e.family == AF_INET:
            memset(&info4, 0, sizeof(info4))
            info4.ipi_ifindex = path.interface
            memcpy(&info4.ipi_spec_dst, path.source, 4)
            put_control(head, IPPROTO_IP, IP_PKTINFO, &info4, sizeof(info4))
        else:
            memset(&info6, 0, sizeof(info6))
            info6.ipi6_ifindex = <unsigned int>path.interface
            memcpy(&info6.ipi6_addr, path.source, 16)
            put_control(head, IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof(info6))
    if path.mark:
        put_number(head, SOL_SOCKET, SO_MARK, <int>path.mark)


cdef inline void put_header_options(echo_t *e, msghdr *head, const request_t *r) noexcept nogil:
    """Ask for TTL, traffic class and DF of a header that the kernel writes."""
    cdef bint v4 = e.family == AF_INET
    cdef int level = IPPROTO_IP if v4 else IPPROTO_IPV6
    if r.ttl != DEFAULT_TTL:
        put_number(head, level, IP_TTL if v4 else IPV6_HOPLIMIT, r.ttl)
    if r.tos:
        put_number(head, level, IP_TOS if v4 else IPV6_TCLASS, r.tos)
    if r.flags & FLAG_DF and not v4:
        put_number(head, level, IPV6_DONTFRAG, 1)


cdef inline void echo_name(echo_t *e, tx_t *tx, msghdr *head, const request_t *r) noexcept nogil:
    """Fill in the socket address that the kernel routes a message to."""
    if e.family == AF_INET:
        tx.name4.sin_family = <unsigned short>AF_INET
        memcpy(&tx.name4.sin_addr, r.destination, 4)
        head.msg_name = &tx.name4
        head.msg_namelen = sizeof(sockaddr_in)
    else:
        tx.name6.sin6_family = <unsigned short>AF_INET6
        tx.name6.sin6_scope_id = r.scope
        memcpy(&tx.name6.sin6_addr, r.destination, 16)
        head.msg_name = &tx.name6
        head.msg_namelen = sizeof(sockaddr_in6)


cdef inline bint header_is_ours(const echo_t *e, const request_t *r) noexcept nogil:
    """Whether we write the IP header: not of what the kernel has to fragment."""
    if e.backend == BACKEND_PACKET:
        return True
    return e.backend == BACKEND_HEADER and (
        r.flags & FLAG_DF or r.size + IPV4_HEADER_BYTES + 8 <= HEADER_BYTES_MAX)


cdef inline size_t echo_write_ip(
    echo_t *e, uint8_t *at, const request_t *r, uint32_t serial,
) noexcept nogil:
    """Write the IP header of a request; returns its length."""
    cdef const uint8_t *source = e.paths[r.path].source
    if e.family == AF_INET:
        build_ipv4_header(
            at, source, r.destination, <uint16_t>(IPV4_HEADER_BYTES + 8 + r.size), PROTOCOL_ICMP,
            r.tos, r.ttl, <uint16_t>(serial | 1), r.flags & FLAG_DF)
        return IPV4_HEADER_BYTES
    build_ipv6_header(
        at, source, r.destination, <uint16_t>(8 + r.size), PROTOCOL_ICMPV6, r.tos, r.ttl, 0)
    return IPV6_HEADER_BYTES


cdef inline void echo_write_icmp(
    echo_t *e, uint8_t *at, slot_t *slot, uint32_t index, const request_t *r,
) noexcept nogil:
    """Write the ICMP header, the slot, its serial and the cookie; the checksum where it is ours."""
    cdef bint v4 = e.family == AF_INET
    cdef uint64_t total = echo_filler_sum(e, slot.size - COOKIE_BYTES)
    total = store_summed(total, at, echo_header(
        ICMP4_ECHO_REQUEST if v4 else ICMP6_ECHO_REQUEST, 0, echo_ident(e, index),
        <uint16_t>index))
    total = store_summed(total, at + 8, <uint64_t>index << 32 | slot.serial)
    total = store_summed(total, at + 16, echo_cookie(e, at + 8))
    if not v4 and e.backend != BACKEND_PACKET:
        return  # the kernel writes ICMPv6's, which covers the source address it chooses
    if not v4:
        total += pseudo_header_sum(
            e.paths[r.path].source, r.destination, 16, <uint32_t>(8 + r.size), PROTOCOL_ICMPV6)
    slot.checksum = <uint16_t>(~checksum_fold(total) & 0xFFFF)
    store_be16(at + 2, slot.checksum)


cdef inline slot_t *echo_fill_slot(
    echo_t *e, uint32_t index, const request_t *r, uint32_t attempt,
) noexcept nogil:
    """Note in a slot what is about to be sent."""
    cdef slot_t *slot = &e.slab.slots[index]
    e.serial += 1
    slot.token = r.token + attempt
    slot.serial = e.serial
    slot.timer = <uint32_t>((r.timeout_ns + 999) // 1000)
    slot.size = r.size
    slot.steps = e.wall.steps
    slot.overflows = e.overflows
    slot.checksum = 0
    slot.clocks = 0
    memset(slot.destination, 0, 16)
    memcpy(slot.destination, r.destination, 4 if e.family == AF_INET else 16)
    return slot


cdef inline void echo_hear_errors(echo_t *e) noexcept nogil:
    """Let the ICMP socket report a full queue, which it hides without IP_RECVERR.

    Not before it sends: every ICMP error then comes twice, and both fill the receive buffer. A raw
    ICMPv6 socket hides nothing and stays without.
    """
    cdef int on = 1
    if e.hears_errors or (e.family != AF_INET and e.backend != BACKEND_DATAGRAM):
        return
    e.hears_errors = True
    if e.family == AF_INET:
        setsockopt(e.socket, IPPROTO_IP, IP_RECVERR, &on, sizeof(on))
    else:
        setsockopt(e.socket, IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof(on))


cdef inline bint echo_can_receive(echo_t *e, size_t size) noexcept nogil:
    """Whether the reply to a payload of this size can be read whole; makes the buffers for it."""
    return (size + REPLY_HEADERS <= BUFFER_BYTES
            or batch_size_buffers(&e.received, BUFFER_MAX_BYTES) == 0)


cdef inline void put_pieces(
    echo_t *e, tx_t *tx, msghdr *head, size_t written, size_t rest,
) noexcept nogil:
    """Let a message be what is written in tx.head and `rest` bytes of filler."""
    tx.parts[0].iov_base = tx.head
    tx.parts[0].iov_len = written
    tx.parts[1].iov_base = e.filler
    tx.parts[1].iov_len = rest
    head.msg_iov = tx.parts
    head.msg_iovlen = 2
    if written + rest <= FLAT_BYTES:
        memcpy(tx.head + written, e.filler, rest)
        tx.parts[0].iov_len = written + rest
        head.msg_iovlen = 1


cdef inline void echo_prepare(
    echo_t *e, size_t at, const request_t *r, uint32_t attempt,
) noexcept nogil:
    """Make message `at` of the batch; there is a slot for it."""
    cdef tx_t *tx = &e.tx[at]
    cdef msghdr *head = &e.tx_messages[at].msg_hdr
    cdef uint32_t index = slab_reserve(&e.slab)
    cdef slot_t *slot
    cdef size_t header = 0
    cdef bint ours = header_is_ours(e, r)
    slot = echo_fill_slot(e, index, r, attempt)
    tx.slab = &e.slab
    tx.slot = index
    tx.socket = e.tx_socket if ours else e.socket
    if e.backend == BACKEND_PACKET:
        head.msg_name = &e.paths[r.path].link
        head.msg_namelen = sizeof(sockaddr_ll)
    else:
        echo_name(e, tx, head, r)
    head.msg_control = tx.control
    head.msg_controllen = 0
    if ours:
        header = echo_write_ip(e, tx.head, r, slot.serial)
    else:
        put_header_options(e, head, r)
        echo_hear_errors(e)
    if r.path and e.backend != BACKEND_PACKET:
        put_path(e, head, &e.paths[r.path])
    tx.asks = e.exact and not e.stamps_lost and tx.socket == e.tx_socket
    if tx.asks:
        put_number(head, SOL_SOCKET, SO_TIMESTAMPING, SOF_TIMESTAMPING_TX_SOFTWARE)
    echo_write_icmp(e, tx.head + header, slot, index, r)
    put_pieces(e, tx, head, header + HEAD_BYTES, r.size - COOKIE_BYTES)


@cython.cdivision(True)
cdef inline void echo_file(
    echo_t *e, size_t first, size_t count, int64_t before_ns, int64_t after_ns,
) noexcept nogil:
    """Stamp and start the timeouts of messages the kernel took in one call.

    It took that time for all of them; each gets the start of its even share.
    """
    cdef size_t i
    cdef tx_t *tx
    cdef slot_t *slot
    for i in range(count):
        tx = &e.tx[first + i]
        slot = &tx.slab.slots[tx.slot]
        slot.sent_ns = before_ns + (after_ns - before_ns) * <int64_t>i // <int64_t>count
        slab_file(tx.slab, tx.slot)
        if tx.asks:
            echo_await_stamp(e, tx.slot)
        if tx.slab != &e.slab:
            trace_sent(e, slot)
    e.counters.sent += count


cdef inline void echo_refuse(echo_t *e, size_t at, int code, int64_t now_ns) noexcept nogil:
    """Complete message `at` as one the kernel would not send."""
    cdef tx_t *tx = &e.tx[at]
    cdef slot_t *slot = &tx.slab.slots[tx.slot]
    cdef uint8_t error = <uint8_t>(code if 0 < code < 256 else 255)
    slot.sent_ns = now_ns
    if tx.slab == &e.slab:
        echo_complete(e, slot, DONE_TX_ERROR).error = error
    else:
        trace_refused(e, slot, error, now_ns)
    slab_release(tx.slab, tx.slot)
    e.counters.tx_errors += 1


cdef inline void echo_clear_error(int fd) noexcept nogil:
    """Take a socket's pending error off it: what some router said about some packet."""
    cdef int code = 0
    cdef socklen_t length = sizeof(code)
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length)


cdef inline size_t same_socket(echo_t *e, size_t at, size_t count) noexcept nogil:
    """Return the end of the stretch of messages from `at` on that one socket sends."""
    cdef size_t end = at + 1
    while end < count and e.tx[end].socket == e.tx[at].socket:
        end += 1
    return end


cdef inline void echo_send_batch(echo_t *e, size_t count) noexcept nogil:
    """Send the prepared messages; each ends up filed or refused.

    A failed send may report an old ICMP error (ip(7), IP_RECVERR) instead of its own, so
    the same message is tried again: an error that is its own comes back. A message that was tried
    and not taken, which a short count tells too, may have used up a stamp's number.
    """
    cdef size_t at = 0, wanted
    cdef int fd, taken, tries = 0, code
    cdef int64_t before, after
    while at < count:
        fd = e.tx[at].socket
        wanted = same_socket(e, at, count) - at
        before = monotonic_ns()
        taken = sendmmsg(fd, e.tx_messages + at, <unsigned int>wanted, MSG_DONTWAIT)
        code = errno
        after = monotonic_ns()
        if taken > 0:
            echo_file(e, at, <size_t>taken, before, after)
            at += <size_t>taken
            tries = 0
            if <size_t>taken == wanted:
                continue
        if e.tx[at].asks:
            echo_lose_stamps(e, after)
        if taken > 0:
            continue
        tries += 1
        if code != ENOBUFS and code != EAGAIN and tries < SEND_TRIES:
            echo_clear_error(fd)
            continue
        echo_refuse(e, at, code, after)
        at += 1
        tries = 0
