"""The receiving sockets that an engine has for its traces alone."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from echoreceive cimport address_bytes, echo_read, echo_read_control, echo_receive_errors, echo_take
from echostate cimport BACKEND_DATAGRAM, BATCH_ROOM, RECEIVE_BATCH, arrival_t, echo_has_room, echo_t
from packet cimport PARSE_OK, PROTOCOL_TCP, ip_t, parse_ipv4
from stamps cimport monotonic_ns, wall_sample
from sysnet cimport AF_INET, MSG_TRUNC, msghdr, sockaddr
from tracematch cimport trace_match_segment


cdef inline void trace_take_segment(echo_t *e, int at, int64_t user_ns) noexcept nogil:
    """Take message `at` of a batch of a raw TCP socket: IPv4's come with their IP header."""
    cdef msghdr *head = &e.received.messages[at].msg_hdr
    cdef const uint8_t *data = <const uint8_t *>e.received.parts[at].iov_base
    cdef size_t n = e.received.messages[at].msg_len
    cdef arrival_t a
    cdef ip_t ip
    memset(&a, 0, sizeof(a))
    a.user_ns = user_ns
    echo_read_control(e, head, &a)
    e.counters.packets += 1
    if e.family != AF_INET:
        a.source = address_bytes(<const sockaddr *>head.msg_name)
    elif parse_ipv4(data, n, False, &ip) == PARSE_OK and ip.protocol == PROTOCOL_TCP:
        a.source = ip.source
        a.ttl = ip.ttl
        data = ip.body
        n = ip.body_bytes
    if a.source == NULL or head.msg_flags & MSG_TRUNC:
        e.counters.malformed += 1
        return
    trace_match_segment(e, &a, data, n)


cdef inline int trace_receive_from(echo_t *e, int fd, int limit) noexcept nogil:
    """Read up to about `limit` packets of one of these sockets; returns how many."""
    cdef int i, count, packets = 0
    cdef int64_t now_ns
    while packets < limit and echo_has_room(e, BATCH_ROOM):
        count = echo_read(fd, &e.received, 0)
        if count <= 0:
            break
        now_ns = monotonic_ns()
        wall_sample(&e.wall)
        for i in range(count):
            if fd == e.traces.tcp_socket:
                trace_take_segment(e, i, now_ns)
            else:
                echo_take(e, i, now_ns)
        packets += count
        if count < RECEIVE_BATCH:
            break
    return packets


cdef inline int trace_receive(echo_t *e, int limit) noexcept nogil:
    """Read what has come for traces, apart from what pings' socket receives; returns how much."""
    cdef int packets = 0
    if e.traces.socket >= 0:
        if e.backend == BACKEND_DATAGRAM:
            packets += echo_receive_errors(e, e.traces.socket)
        packets += trace_receive_from(e, e.traces.socket, limit)
    if e.traces.tcp_socket >= 0:
        packets += trace_receive_from(e, e.traces.tcp_socket, limit)
    return packets
