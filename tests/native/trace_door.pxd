"""Traces without sockets: probes come out as whole IP packets, answers go in as sockets hand them.

As echo_door.pxd, which also has the ICMP socket and the error queue. For tests and fuzzers.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from echoreceive cimport address_bytes, echo_expire
from echostate cimport BACKEND_DATAGRAM, echo_publish, echo_t
from inflight cimport slab_open
from native.echo_door cimport (
    DOOR_HEADER_BYTES, DOOR_IDENT, delivery_t, door_lay, door_open, door_source,
)
from packet cimport (
    IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PROTOCOL_ICMP, PROTOCOL_ICMPV6, build_ipv4_header,
    build_ipv6_header,
)
from ring cimport ring_publish, ring_record, ring_room
from sysnet cimport (
    AF_INET, CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, IP_TOS, IP_TTL, IPV6_HOPLIMIT, IPV6_TCLASS,
    cmsghdr, msghdr, sockaddr,
)
from traceprobe cimport TCP_PORTS, UDP_PORT_FIRST
from tracereceive cimport trace_take_segment
from tracerun cimport trace_expire
from tracestate cimport (
    METHOD_ICMP, METHOD_TCP, METHOD_UDP, submission_t, trace_request_t, traces_open,
)

cdef enum:
    DOOR_TRACE_IDENT = DOOR_IDENT - 1
    DOOR_TRACE_PORTS = UDP_PORT_FIRST + 5 * TCP_PORTS
    DOOR_PINGS = 4               # slots of an engine that is here for its traces


cdef inline int door_open_traces(
    echo_t *e, int version, int backend, uint8_t secret,
) noexcept nogil:
    """Make an engine that traces by every method its back end can; -1 without memory."""
    if door_open(e, version, backend, False, secret) < 0:
        return -1
    e.traces.socket = e.traces.tx_socket = e.traces.tcp_socket = e.traces.routes = -1
    e.traces.ident = DOOR_TRACE_IDENT
    e.traces.ports = DOOR_TRACE_PORTS
    e.traces.methods = METHOD_ICMP if backend == BACKEND_DATAGRAM else (
        METHOD_ICMP | METHOD_UDP | METHOD_TCP)
    if slab_open(&e.slab, DOOR_PINGS, 0) < 0:
        return -1
    return traces_open(&e.traces)


cdef inline bint door_submit(echo_t *e, const trace_request_t *r, uint32_t error) noexcept nogil:
    """Ask for a trace, from this host unless it says; whether there was room.

    error: why there is no route, 0 when there is.
    """
    cdef submission_t s
    cdef uint8_t nowhere[16]
    if ring_room(&e.traces.submitted) == 0:
        return False
    memset(&s, 0, sizeof(s))
    memcpy(&s.request, r, sizeof(trace_request_t))
    s.error = error
    memset(nowhere, 0, sizeof(nowhere))
    if memcmp(r.source, nowhere, 16) == 0:
        door_source(e.family, s.request.source)
    memcpy(ring_record(&e.traces.submitted, e.traces.submitted.tail), &s, sizeof(s))
    ring_publish(&e.traces.submitted, 1)
    return True


cdef inline void door_return(echo_t *e, uint32_t number) noexcept nogil:
    """Give back a trace that has ended and been read."""
    memcpy(ring_record(&e.traces.returned, e.traces.returned.tail), &number, sizeof(number))
    ring_publish(&e.traces.returned, 1)


cdef inline int door_asked(msghdr *head, int type_) noexcept nogil:
    """Return the number in a message's first control message of a type, 0 without one."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(head)
    cdef int value = 0
    while control != NULL:
        if control.cmsg_type == type_:
            memcpy(&value, CMSG_DATA(control), sizeof(value))
            break
        control = CMSG_NXTHDR(head, control)
    return value


cdef inline size_t door_kernel_ip(
    echo_t *e, msghdr *head, size_t body, uint8_t *out,
) noexcept nogil:
    """Write the IP header that the kernel gives a datagram socket's message; returns its length."""
    cdef const uint8_t *destination = address_bytes(<const sockaddr *>head.msg_name)
    cdef uint8_t source[16]
    door_source(e.family, source)
    if e.family == AF_INET:
        build_ipv4_header(
            out, source, destination, <uint16_t>(IPV4_HEADER_BYTES + body), PROTOCOL_ICMP,
            <uint8_t>door_asked(head, IP_TOS), <uint8_t>door_asked(head, IP_TTL), 1, False)
        return IPV4_HEADER_BYTES
    build_ipv6_header(
        out, source, destination, <uint16_t>body, PROTOCOL_ICMPV6,
        <uint8_t>door_asked(head, IPV6_TCLASS), <uint8_t>door_asked(head, IPV6_HOPLIMIT), 0)
    return IPV6_HEADER_BYTES


cdef inline size_t door_packet_bytes(const echo_t *e, size_t at) noexcept nogil:
    """Return how long message `at` of the batch may be as a packet."""
    cdef const msghdr *head = &e.tx_messages[at].msg_hdr
    cdef size_t i, n = DOOR_HEADER_BYTES
    for i in range(head.msg_iovlen):
        n += head.msg_iov[i].iov_len
    return n


cdef inline size_t door_packet(echo_t *e, size_t at, uint8_t *out) noexcept nogil:
    """Write message `at` of the batch as the wire carries it; returns its length.

    out: door_packet_bytes. The caller files or refuses it (echosend.pxd).
    """
    cdef msghdr *head = &e.tx_messages[at].msg_hdr
    cdef size_t i, n = 0
    if e.backend == BACKEND_DATAGRAM:
        n = door_kernel_ip(e, head, door_packet_bytes(e, at) - DOOR_HEADER_BYTES, out)
    for i in range(head.msg_iovlen):
        memcpy(out + n, head.msg_iov[i].iov_base, head.msg_iov[i].iov_len)
        n += head.msg_iov[i].iov_len
    return n


cdef inline void door_segment(echo_t *e, const delivery_t *d) noexcept nogil:
    """Let the engine take in a message from its raw TCP socket: IPv4's has its IP header."""
    door_lay(e, &e.received, d)
    trace_take_segment(e, 0, d.user_ns)
    echo_publish(e)


cdef inline void door_expire(echo_t *e, int64_t now_ns) noexcept nogil:
    """Time out and forget what is due, of pings and traces."""
    echo_expire(e, now_ns)
    trace_expire(e, now_ns)
    echo_publish(e)
