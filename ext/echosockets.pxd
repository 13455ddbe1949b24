"""Open the sockets and descriptors of an echo engine. Whoever owns the engine closes them."""

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memset

from echosend cimport echo_hear_errors
from echostamp cimport echo_renumber_stamps, stamps_ask
from echostate cimport (
    BACKEND_DATAGRAM, BACKEND_HEADER, BACKEND_PACKET, DEFAULT_TTL, echo_t,
)
from frames cimport filter_ipv4, filter_ipv6, frames_bind, frames_open
from icmpfilter cimport filter_types
from rc cimport check
from stamps cimport await_stamping, step_timer_arm, step_timer_open, wall_sample
from sysnet cimport (
    AF_INET, AF_PACKET, CLOCK_MONOTONIC, EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD,
    EPOLLIN, IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_RECVERR, IP_RECVTTL, IP_TTL, IPPROTO_ICMP,
    IPPROTO_ICMPV6, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_RAW, IPV6_RECVHOPLIMIT, IPV6_UNICAST_HOPS,
    PACKET_QDISC_BYPASS, SO_RCVBUF, SO_RCVBUFFORCE, SO_TIMESTAMPNS, SOCK_CLOEXEC, SOCK_DGRAM,
    SOCK_NONBLOCK, SOCK_RAW, SOF_TIMESTAMPING_OPT_ID, SOL_PACKET, SOL_SOCKET, TFD_CLOEXEC,
    TFD_NONBLOCK, bind, epoll_create1, epoll_ctl, epoll_event, eventfd, getsockname, setsockopt,
    sockaddr, sockaddr_in6, socket, socklen_t, timerfd_create,
)

cdef enum:
    SMALL_FRAME = 512            # 4 MiB in all
    SMALL_SIZE = 320             # of a payload whose reply, or error, fits it with every header
    LARGE_FRAME = 2048           # 16 MiB
    LARGE_SIZE = 1856
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD


cdef inline int set_option(int fd, int level, int name, int value, str what) except -1:
    return check(setsockopt(fd, level, name, &value, sizeof(value)), f"set {what}")


cdef inline int open_frames(echo_t *e, int largest_size) except -1:
    """Open an AF_PACKET socket that hands out frames."""
    cdef bint v4 = e.family == AF_INET
    cdef uint32_t idents = ((e.slab.capacity - 1) >> 16) + 1
    cdef size_t frame_bytes = SMALL_FRAME if largest_size <= SMALL_SIZE else LARGE_FRAME
    cdef int fd = check(socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
                        "open AF_PACKET socket")
    e.socket = fd
    check(filter_ipv4(fd, e.ident, idents) if v4
          else filter_ipv6(fd, e.ident, idents), "set SO_ATTACH_FILTER")
    check(frames_open(&e.frames, fd, frame_bytes), "set PACKET_RX_RING")
    check(frames_bind(fd, ETHERTYPE_IPV4 if v4 else ETHERTYPE_IPV6), "bind AF_PACKET socket")
    set_option(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1, "SO_TIMESTAMPNS")
    return 0


cdef inline int bind_datagram(int fd, int family, uint16_t *ident) except -1:
    """Let the kernel pick the identifier now, and learn it: checksums cover it."""
    cdef sockaddr_in6 name
    cdef socklen_t length = sizeof(name)
    memset(&name, 0, sizeof(name))
    name.sin6_family = <unsigned short>family
    check(bind(fd, <const sockaddr *>&name, length), "bind ICMP datagram socket")
    check(getsockname(fd, <sockaddr *>&name, &length), "read ICMP identifier")
    # The port sits at the same place in both families' socket addresses.
    ident[0] = <uint16_t>((name.sin6_port & 0xFF) << 8 | name.sin6_port >> 8)
    return 0


cdef inline int open_icmp(
    echo_t *e, int receive_buffer_bytes, int *place, uint16_t *ident,
) except -1:
    """Open an ICMP socket, filtered to what can be an answer. ident: of a datagram socket."""
    cdef bint v4 = e.family == AF_INET
    cdef bint datagram = e.backend == BACKEND_DATAGRAM
    cdef int kind = SOCK_DGRAM if datagram else SOCK_RAW
    cdef int fd = check(
        socket(e.family, kind | SOCK_CLOEXEC | SOCK_NONBLOCK,
               IPPROTO_ICMP if v4 else IPPROTO_ICMPV6),
        f"open ICMPv{4 if v4 else 6} {'datagram' if datagram else 'raw'} socket")
    place[0] = fd
    if datagram:
        bind_datagram(fd, e.family, ident)
    else:
        check(filter_types(fd, 4 if v4 else 6), "set ICMP type filter")
    if v4:
        if datagram:  # a raw socket gets the whole header
            set_option(fd, IPPROTO_IP, IP_RECVTTL, 1, "IP_RECVTTL")
        set_option(fd, IPPROTO_IP, IP_TTL, DEFAULT_TTL, "IP_TTL")
        # A large request is fragmented on the way rather than answered with an error.
        set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT, "IP_MTU_DISCOVER")
    else:
        set_option(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT")
        set_option(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, DEFAULT_TTL, "IPV6_UNICAST_HOPS")
    if setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer_bytes, sizeof(int)) < 0:
        # Beyond net.core.rmem_max needs CAP_NET_ADMIN, which an agent does not have.
        set_option(fd, SOL_SOCKET, SO_RCVBUF, receive_buffer_bytes, "SO_RCVBUF")
    set_option(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1, "SO_TIMESTAMPNS")
    return 0


cdef inline int open_receiver(echo_t *e, int receive_buffer_bytes, int largest_size) except -1:
    """Open the receiving socket and set every option a measurement relies on."""
    if e.backend == BACKEND_PACKET:
        open_frames(e, largest_size)
    else:
        open_icmp(e, receive_buffer_bytes, &e.socket, &e.ident)
    with nogil:
        await_stamping()
    return 0


cdef inline int open_sender(echo_t *e) except -1:
    """Open the socket that sends, where it is not the one that receives."""
    cdef int fd
    if e.backend == BACKEND_HEADER:
        fd = check(socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW),
                   "open IPPROTO_RAW socket")
        e.tx_socket = fd
        # Without it a full queue is hidden. ICMP errors are not about this socket's protocol.
        set_option(fd, IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR")
    elif e.backend == BACKEND_PACKET:
        fd = check(socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
                   "open AF_PACKET socket")
        e.tx_socket = fd
        set_option(fd, SOL_PACKET, PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS")
    else:
        e.tx_socket = e.socket
        echo_hear_errors(e)
    if e.exact:
        check(stamps_ask(e.tx_socket, SOF_TIMESTAMPING_OPT_ID), "set SO_TIMESTAMPING")
        echo_renumber_stamps(e)
    return 0


cdef inline int watch(echo_t *e, int fd) except -1:
    """Let a descriptor wake the loop."""
    cdef epoll_event event
    memset(&event, 0, sizeof(event))
    event.events = EPOLLIN
    event.data.fd = fd
    return check(epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &event), "watch ICMP socket")


cdef inline int open_watch(echo_t *e) except -1:
    """Open the descriptors that wake whoever turns the engine.

    The socket itself will not do for an event loop: an ICMP error makes it POLLERR, on which
    libuv stops watching for good.
    """
    cdef int fd
    e.step_timer = check(step_timer_open(), "open clock step timer")
    check(step_timer_arm(e.step_timer), "arm clock step timer")
    e.turn_timer = check(
        timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), "open turn timer")
    e.wake = check(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "open eventfd")
    e.ready = check(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "open eventfd")
    e.epoll = check(epoll_create1(EPOLL_CLOEXEC), "open epoll")
    for fd in (e.socket, e.step_timer, e.turn_timer):
        watch(e, fd)
    wall_sample(&e.wall)
    return 0
