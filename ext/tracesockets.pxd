"""Open what an engine needs for traces, and ask the kernel for source addresses.

Probes leave by an IPPROTO_RAW socket: it takes the IP header from us, with TTL, source and IPv6
flow label, and an ICMPv6 checksum of our own, which a raw ICMPv6 socket does not (RFC 3542 3.1).
ICMP comes in by the engine's own raw socket. Where that is one of another kind (packet, datagram),
and for TCP, traces have a socket of their own.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from bpf cimport (
    BPF_B, BPF_IMM, BPF_IND, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
    accept_ident, attach, instruct, program_t,
)
from echosockets cimport open_icmp, set_option, watch
from echostate cimport BACKEND_DATAGRAM, BACKEND_HEADER, BACKEND_PACKET, echo_t
from rc cimport check
from ring cimport atomic_store
from sysnet cimport (
    AF_INET, AF_INET6, AF_UNSPEC, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, IP_RECVERR,
    IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_RAW,
    IPPROTO_TCP, IPV6_RECVERR, IPV6_RECVHOPLIMIT, IPV6_V6ONLY, SO_TIMESTAMPNS, SOCK_CLOEXEC,
    SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOL_SOCKET, close, connect, errno, getsockname, sockaddr,
    sockaddr_in, sockaddr_in6, sockaddr_storage, socket, socklen_t,
)
from traceprobe cimport TCP_PORTS, TCP_RST, TCP_SYN
from tracestate cimport METHOD_TCP, traces_open

cdef enum:
    DISCARD_PORT = 9     # RFC 863; connecting a UDP socket sends nothing
    TRACE_BUFFER_BYTES = 4194304


cdef inline int filter_segments(int fd, bint v4, uint16_t first_port) noexcept nogil:
    """Let in only SYN and RST segments to source ports of ours: the host's other TCP is not ours.

    IPv4 packets begin with their header, whose length goes to X; IPv6 ones with the segment.
    """
    cdef program_t p
    memset(&p, 0, sizeof(p))
    if v4:
        instruct(&p, BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0)
    else:
        instruct(&p, BPF_LDX | BPF_IMM, 0, 0, 0)
    instruct(&p, BPF_LD | BPF_B | BPF_IND, 13, 0, 0)
    instruct(&p, BPF_JMP | BPF_JSET | BPF_K, TCP_SYN | TCP_RST, 1, 0)
    instruct(&p, BPF_RET | BPF_K, 0, 0, 0)
    accept_ident(&p, BPF_IND, 2, first_port, TCP_PORTS)
    return attach(fd, &p)


cdef inline int open_tcp(echo_t *e) except -1:
    """Open the socket that hears what answers a SYN; the kernel itself resets the rest."""
    cdef bint v4 = e.family == AF_INET
    cdef int fd = check(
        socket(e.family, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP),
        "open raw TCP socket")
    try:
        check(filter_segments(fd, v4, e.traces.ports), "set SO_ATTACH_FILTER")
        set_option(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1, "SO_TIMESTAMPNS")
        if not v4:
            set_option(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT")
        watch(e, fd)
    except OSError:
        close(fd)
        raise
    e.traces.tcp_socket = fd  # last: a thread that traces by other methods reads it from now on
    return 0


cdef inline int open_probes(echo_t *e) except -1:
    """Open the sending socket: it takes packets with our header and owns up to local drops."""
    cdef int fd
    if e.backend == BACKEND_HEADER:
        e.traces.tx_socket = e.tx_socket
    else:
        fd = check(socket(e.family, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW),
                   "open IPPROTO_RAW socket")
        e.traces.tx_socket = fd
    # The path MTU that the kernel has heard of is not to keep a probe of it from leaving.
    if e.family == AF_INET:
        set_option(e.traces.tx_socket, IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR")
        set_option(e.traces.tx_socket, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE,
                   "IP_MTU_DISCOVER")
    else:
        set_option(e.traces.tx_socket, IPPROTO_IPV6, IPV6_RECVERR, 1, "IPV6_RECVERR")
        set_option(e.traces.tx_socket, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE,
                   "IPV6_MTU_DISCOVER")
    return 0


cdef inline int open_answers(echo_t *e) except -1:
    """Open a receiving socket where the engine's own will not do."""
    cdef bint v4 = e.family == AF_INET
    if e.backend != BACKEND_PACKET and e.backend != BACKEND_DATAGRAM:
        return 0
    open_icmp(e, TRACE_BUFFER_BYTES, &e.traces.socket, &e.traces.ident)
    if e.backend == BACKEND_DATAGRAM:
        e.traces.tx_socket = e.traces.socket
        if v4:
            set_option(e.traces.socket, IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR")
        else:
            set_option(e.traces.socket, IPPROTO_IPV6, IPV6_RECVERR, 1, "IPV6_RECVERR")
    return watch(e, e.traces.socket)


cdef inline int open_routes(echo_t *e) except -1:
    """Open the socket that is only asked for source addresses."""
    cdef int fd = check(socket(e.family, SOCK_DGRAM | SOCK_CLOEXEC, 0), "open UDP socket")
    e.traces.routes = fd
    if e.family != AF_INET:
        set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1, "IPV6_V6ONLY")
    return 0


cdef inline int open_traces(echo_t *e, uint32_t methods) except -1:
    """Open what these METHOD_ bits need and is not open yet; the engine may be running.

    After a failure what was opened stays, to be used by the next attempt.
    """
    if e.traces.live == NULL and traces_open(&e.traces) < 0:
        raise MemoryError
    if e.traces.routes < 0:
        open_routes(e)
    if e.traces.socket < 0:
        open_answers(e)
    if e.traces.tx_socket < 0:
        open_probes(e)
    if methods & METHOD_TCP and e.traces.tcp_socket < 0:
        open_tcp(e)
    # Last: until then the thread looks at nothing of this.
    atomic_store(&e.traces.methods, e.traces.methods | methods)
    return 0


cdef inline socklen_t fill_address(
    int family, const uint8_t *address, uint32_t scope, sockaddr_storage *out,
) noexcept nogil:
    """Write a socket address with the discard port; return its length."""
    cdef sockaddr_in *v4 = <sockaddr_in *>out
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>out
    memset(out, 0, sizeof(sockaddr_storage))
    if family == AF_INET:
        v4.sin_family = <unsigned short>AF_INET
        v4.sin_port = <uint16_t>(DISCARD_PORT << 8)
        memcpy(&v4.sin_addr, address, 4)
        return sizeof(sockaddr_in)
    v6.sin6_family = <unsigned short>AF_INET6
    v6.sin6_port = <uint16_t>(DISCARD_PORT << 8)
    v6.sin6_scope_id = scope
    memcpy(&v6.sin6_addr, address, 16)
    return sizeof(sockaddr_in6)


cdef inline int look_up_source(
    int fd, int family, const uint8_t *destination, uint32_t scope, uint8_t *source,
) noexcept nogil:
    """Ask the kernel which source address it would use; 0 or errno."""
    cdef sockaddr_storage address
    cdef socklen_t length
    memset(&address, 0, sizeof(address))
    (<sockaddr *>&address).sa_family = <unsigned short>AF_UNSPEC
    # Undo the last answer: a connected socket keeps its source (connect(2), "dissolve").
    connect(fd, <sockaddr *>&address, sizeof(sockaddr))
    length = fill_address(family, destination, scope, &address)
    if connect(fd, <sockaddr *>&address, length) < 0:
        return errno
    length = sizeof(sockaddr_storage)
    if getsockname(fd, <sockaddr *>&address, &length) < 0:
        return errno
    if family == AF_INET:
        memcpy(source, &(<sockaddr_in *>&address).sin_addr, 4)
    else:
        memcpy(source, &(<sockaddr_in6 *>&address).sin6_addr, 16)
    return 0
