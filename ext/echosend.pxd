"""The echo engine's sending half: requests become packets, stamps and timeouts."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cookie cimport siphash24
from echostate cimport (
    COOKIE_BYTES, DEFAULT_TTL, DONE_TX_ERROR, HEAD_BYTES, SEND_TRIES, echo_complete, echo_t,
    request_t, tx_t,
)
from inflight cimport SLOT_NIL, slab_file, slab_release, slab_reserve, slot_t
from packet cimport (
    ICMP4_ECHO_REQUEST, ICMP6_ECHO_REQUEST, build_icmp_header, checksum_add, checksum_fold,
    store_be16, store_be32, store_be64,
)
from stamps cimport monotonic_ns
from sysnet cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_LEN, CMSG_SPACE, EAGAIN, ENOBUFS, IPPROTO_IP,
    IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_TCLASS, IP_RECVERR, IP_TOS, IP_TTL, MSG_DONTWAIT,
    SOL_SOCKET, SO_ERROR, cmsghdr, errno, getsockopt, msghdr, sendmmsg, sockaddr_in,
    sockaddr_in6, socklen_t,
)


cdef inline uint64_t echo_cookie(const echo_t *e, const uint8_t *named) noexcept nogil:
    """Return the cookie of the 8 bytes slot and serial, for this engine alone."""
    cdef uint8_t text[16]
    memcpy(text, named, 8)
    memcpy(text + 8, e.instance, 8)
    return siphash24(e.key, text, 16)


cdef inline uint64_t echo_filler_sum(echo_t *e, size_t n) noexcept nogil:
    """Return the checksum's running sum of the first n filler bytes; the last n is remembered."""
    if n != e.filler_bytes:
        e.filler_bytes = n
        e.filler_sum = checksum_add(0, e.filler, n)
    return e.filler_sum


cdef inline void put_control(
    uint8_t *at, size_t *used, int level, int type_, int value,
) noexcept nogil:
    """Append a control message that carries one int."""
    cdef cmsghdr *control = <cmsghdr *>(at + used[0])
    control.cmsg_level = level
    control.cmsg_type = type_
    control.cmsg_len = CMSG_LEN(sizeof(int))
    memcpy(CMSG_DATA(control), &value, sizeof(int))
    used[0] += CMSG_SPACE(sizeof(int))


cdef inline void echo_address(echo_t *e, tx_t *tx, msghdr *head, const request_t *r) noexcept nogil:
    """Fill in where a message goes, with which TTL and traffic class."""
    cdef bint v4 = e.family == AF_INET
    cdef int level = IPPROTO_IP if v4 else IPPROTO_IPV6
    cdef size_t used = 0
    if v4:
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
    if r.ttl != DEFAULT_TTL:
        put_control(<uint8_t *>tx.control, &used, level, IP_TTL if v4 else IPV6_HOPLIMIT, r.ttl)
    if r.tos:
        put_control(<uint8_t *>tx.control, &used, level, IP_TOS if v4 else IPV6_TCLASS, r.tos)
    head.msg_control = tx.control if used else NULL
    head.msg_controllen = used


cdef inline void echo_write(echo_t *e, tx_t *tx, slot_t *slot, uint32_t index) noexcept nogil:
    """Write the ICMP header, the slot, its serial and the cookie; the checksum where it is ours."""
    cdef bint v4 = e.family == AF_INET
    cdef uint16_t ident = e.ident if e.datagram else <uint16_t>(e.ident + (index >> 16))
    cdef uint64_t total
    build_icmp_header(
        tx.head, ICMP4_ECHO_REQUEST if v4 else ICMP6_ECHO_REQUEST, 0, ident, <uint16_t>index)
    store_be32(tx.head + 8, index)
    store_be32(tx.head + 12, slot.serial)
    store_be64(tx.head + 16, echo_cookie(e, tx.head + 8))
    if v4:  # the kernel writes ICMPv6's, which covers the source address it chooses
        total = checksum_add(echo_filler_sum(e, slot.size - COOKIE_BYTES), tx.head, HEAD_BYTES)
        slot.checksum = <uint16_t>(~checksum_fold(total) & 0xFFFF)
        store_be16(tx.head + 2, slot.checksum)


cdef inline bint echo_prepare(echo_t *e, size_t at, const uint8_t *record) noexcept nogil:
    """Make message `at` of the batch from a request record; False when no slot is to be had."""
    cdef tx_t *tx = &e.tx[at]
    cdef msghdr *head = &e.tx_messages[at].msg_hdr
    cdef request_t r
    cdef slot_t *slot
    cdef uint32_t index = slab_reserve(&e.slab)
    if index == SLOT_NIL:
        return False
    memcpy(&r, record, sizeof(r))
    slot = &e.slab.slots[index]
    e.serial += 1
    slot.token = r.token
    slot.serial = e.serial
    slot.timer = <uint32_t>((r.timeout_ns + 999) // 1000)
    slot.size = r.size
    slot.steps = e.wall.steps
    slot.drops = e.drops
    slot.checksum = 0
    memset(slot.destination, 0, 16)
    memcpy(slot.destination, r.destination, 4 if e.family == AF_INET else 16)
    tx.slot = index
    echo_address(e, tx, head, &r)
    echo_write(e, tx, slot, index)
    tx.parts[0].iov_base = tx.head
    tx.parts[0].iov_len = HEAD_BYTES
    tx.parts[1].iov_base = e.filler
    tx.parts[1].iov_len = r.size - COOKIE_BYTES
    head.msg_iov = tx.parts
    head.msg_iovlen = 2
    return True


@cython.cdivision(True)
cdef inline void echo_file(
    echo_t *e, size_t first, size_t count, int64_t before_ns, int64_t after_ns,
) noexcept nogil:
    """Stamp and start the timeouts of messages the kernel took in one call.

    It took that time for all of them; each gets the start of its even share.
    """
    cdef size_t i
    cdef slot_t *slot
    for i in range(count):
        slot = &e.slab.slots[e.tx[first + i].slot]
        slot.sent_ns = before_ns + (after_ns - before_ns) * <int64_t>i // <int64_t>count
        slab_file(&e.slab, e.tx[first + i].slot)
    e.counters.sent += count


cdef inline void echo_refuse(echo_t *e, size_t at, int code, int64_t now_ns) noexcept nogil:
    """Complete message `at` as one the kernel would not send."""
    cdef slot_t *slot = &e.slab.slots[e.tx[at].slot]
    slot.sent_ns = now_ns
    echo_complete(e, slot, DONE_TX_ERROR).error = <uint8_t>(code if 0 < code < 256 else 255)
    slab_release(&e.slab, e.tx[at].slot)
    e.counters.tx_errors += 1


cdef inline void echo_clear_error(echo_t *e) noexcept nogil:
    """Take the socket's pending error off it: what some router said about some packet."""
    cdef int code = 0
    cdef socklen_t length = sizeof(code)
    getsockopt(e.socket, SOL_SOCKET, SO_ERROR, &code, &length)


cdef inline void echo_send_batch(echo_t *e, size_t count) noexcept nogil:
    """Send the prepared messages; each ends up filed or refused.

    A failed send may report an old ICMP error (ip(7), IP_RECVERR) instead of its own, so
    the same message is tried again: an error that is its own comes back.
    """
    cdef size_t at = 0
    cdef int taken, tries = 0, code
    cdef int64_t before, after
    while at < count:
        before = monotonic_ns()
        taken = sendmmsg(e.socket, e.tx_messages + at, <unsigned int>(count - at), MSG_DONTWAIT)
        code = errno
        after = monotonic_ns()
        if taken > 0:
            echo_file(e, at, <size_t>taken, before, after)
            at += <size_t>taken
            tries = 0
            continue
        tries += 1
        if code != ENOBUFS and code != EAGAIN and tries < SEND_TRIES:
            echo_clear_error(e)
            continue
        echo_refuse(e, at, code, after)
        at += 1
        tries = 0
