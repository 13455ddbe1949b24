"""The echo engine's core without sockets: this plays the kernel between it and the wire.

A door sends whole IP packets, as the wire would carry them, and takes in what a socket would hand
out, control messages included. Clocks are the caller's numbers. For tests and fuzzers; no Python.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from cookie cimport load_key
from echoreceive cimport echo_take, echo_take_error, echo_take_frame
from echosend cimport echo_file, echo_prepare, put_control, put_number
from echostate cimport (
    BACKEND_PACKET, COOKIE_BYTES, HEAD_BYTES, batch_t, echo_allocate, echo_free, echo_publish,
    echo_t, tx_t,
)
from frames cimport NETSONDE_LL_OFFSET, tpacket2_hdr
from inflight cimport slab_has_room
from packet cimport (
    IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PROTOCOL_ICMP, PROTOCOL_ICMPV6, build_ipv4_header,
    build_ipv6_header, checksum_add, checksum_fold, pseudo_header_sum, store_be16,
)
from schedule cimport request_t, schedule_open
from sysnet cimport (
    AF_INET, AF_INET6, IP_RECVERR, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_RECVERR,
    PACKET_TX_TIMESTAMP, SCM_TIMESTAMPING, SCM_TIMESTAMPNS, SOL_PACKET, SOL_SOCKET, msghdr,
    sock_extended_err, sockaddr_in, sockaddr_in6, sockaddr_ll, timespec,
)

cdef enum:
    DOOR_HEADER_BYTES = 40       # the longer of the two IP headers
    DOOR_FRAME_BYTES = 64        # before the packet in a frame
    PACKET_AUXDATA = 8           # linux/if_packet.h
    DOOR_INTERFACE = 2           # packets leave by it
    DOOR_IDENT = 0xFFFE          # near its end, so that larger slabs wrap it

ctypedef struct delivery_t:      # what a socket hands out with a message
    const uint8_t *data
    size_t n
    const uint8_t *source        # 4 or 16 bytes; of an error: the probe's destination
    int64_t stamp_ns             # CLOCK_REALTIME; 0: the kernel did not stamp it
    int64_t user_ns              # CLOCK_MONOTONIC
    int hops                     # TTL or hop limit as told beside the packet; 0: not told
    int flags                    # MSG_TRUNC
    bint is_chatty               # a control message comes along that nobody asked for

ctypedef struct offence_t:       # an extended error with who sent it behind it (ip(7))
    sock_extended_err error
    sockaddr_in6 offender


cdef inline void door_source(int family, uint8_t *address) noexcept nogil:
    """Write this host's address: 192.0.2.99 or 2001:db8::99."""
    memset(address, 0, 16)
    if family == AF_INET:
        address[0] = 192
        address[2] = 2
        address[3] = 99
    else:
        address[0] = 0x20
        address[1] = 0x01
        address[2] = 0x0D
        address[3] = 0xB8
        address[15] = 0x99


cdef inline int door_open(
    echo_t *e, int version, int backend, bint exact, uint8_t secret,
) noexcept nogil:
    """Make an engine without descriptors and slots; -1 without memory. door_close frees all.

    exact: it awaits transmit stamps. secret keys the cookies.
    """
    cdef uint8_t key[16]
    memset(key, secret, sizeof(key))
    memset(e, 0, sizeof(echo_t))
    e.socket = e.tx_socket = e.epoll = e.step_timer = e.turn_timer = e.wake = e.ready = -1
    e.family = AF_INET if version == 4 else AF_INET6
    e.backend = backend
    e.exact = exact
    e.hears_errors = True
    e.interfaces[0] = DOOR_INTERFACE
    e.interface_count = 1
    e.key = load_key(key)
    e.ident = DOOR_IDENT
    e.serial = 0xFFFFFFF0U  # so that it wraps
    schedule_open(&e.schedule)
    return echo_allocate(e)


cdef inline void door_close(echo_t *e) noexcept nogil:
    """Free the memory."""
    echo_free(e)


cdef inline size_t door_write_ip(echo_t *e, uint8_t *out, const request_t *r) noexcept nogil:
    """Write the IP header that the kernel gives a request; returns its length."""
    cdef uint8_t source[16]
    door_source(e.family, source)
    if e.family == AF_INET:
        build_ipv4_header(
            out, source, r.destination, <unsigned short>(IPV4_HEADER_BYTES + 8 + r.size),
            PROTOCOL_ICMP, r.tos, r.ttl, 1, False)
        return IPV4_HEADER_BYTES
    build_ipv6_header(
        out, source, r.destination, <unsigned short>(8 + r.size), PROTOCOL_ICMPV6, r.tos, r.ttl, 0)
    return IPV6_HEADER_BYTES


cdef inline void door_sign(echo_t *e, uint8_t *icmp, const request_t *r) noexcept nogil:
    """Write an ICMPv6 checksum, which is the kernel's to write."""
    cdef uint8_t source[16]
    cdef size_t n = <size_t>8 + r.size
    door_source(e.family, source)
    store_be16(icmp + 2, <unsigned short>(~checksum_fold(
        checksum_add(0, icmp, n)
        + pseudo_header_sum(source, r.destination, 16, <uint32_t>n, PROTOCOL_ICMPV6)) & 0xFFFF))


cdef inline size_t door_prepare(echo_t *e, const request_t *r, uint8_t *out) noexcept nogil:
    """Make a request's first packet; returns its length, 0 when no slot is free.

    out: DOOR_HEADER_BYTES + 8 + r.size bytes. The caller files or refuses it (echosend.pxd).
    """
    cdef tx_t *tx = &e.tx[0]
    cdef size_t header, own
    if not slab_has_room(&e.slab):
        return 0
    echo_prepare(e, 0, r, 0)
    header = door_write_ip(e, out, r)
    own = tx.parts[0].iov_len - HEAD_BYTES  # the engine's own IP header, where it writes one
    if e.tx_messages[0].msg_hdr.msg_iovlen == 1:
        own -= tx.parts[1].iov_len
    memcpy(out + header, <uint8_t *>tx.parts[0].iov_base + own, HEAD_BYTES)
    memcpy(out + header + HEAD_BYTES, tx.parts[1].iov_base, r.size - COOKIE_BYTES)
    if e.family == AF_INET6:
        door_sign(e, out + header, r)
    return header + 8 + r.size


cdef inline size_t door_send(
    echo_t *e, const request_t *r, int64_t now_ns, uint8_t *out,
) noexcept nogil:
    """Send a request's first packet at an instant; returns what door_prepare does."""
    cdef size_t n = door_prepare(e, r, out)
    if n:
        echo_file(e, 0, 1, now_ns, now_ns)
    return n


cdef inline void door_address(int family, void *name, const uint8_t *address) noexcept nogil:
    """Write a socket address; NULL: one of a family that is not IP's."""
    cdef sockaddr_in *name4 = <sockaddr_in *>name
    cdef sockaddr_in6 *name6 = <sockaddr_in6 *>name
    memset(name, 0, sizeof(sockaddr_in6))
    if address == NULL:
        return
    if family == AF_INET:
        name4.sin_family = <unsigned short>AF_INET
        memcpy(&name4.sin_addr, address, 4)
    else:
        name6.sin6_family = <unsigned short>AF_INET6
        memcpy(&name6.sin6_addr, address, 16)


cdef inline msghdr *door_lay(echo_t *e, batch_t *batch, const delivery_t *d) noexcept nogil:
    """Lay a message where the first of a batch is read to."""
    cdef msghdr *head = &batch.messages[0].msg_hdr
    cdef timespec stamps[3]      # SCM_TIMESTAMPING has three, SCM_TIMESTAMPNS only the first
    batch.messages[0].msg_len = <unsigned int>d.n
    batch.parts[0].iov_base = <void *>d.data
    if head.msg_name != NULL:  # where the IP header says it
        door_address(e.family, head.msg_name, d.source)
    head.msg_flags = d.flags
    head.msg_controllen = 0
    if d.stamp_ns:
        memset(stamps, 0, sizeof(stamps))
        stamps[0].tv_sec = d.stamp_ns // 1000000000
        stamps[0].tv_nsec = d.stamp_ns % 1000000000
        if batch == &e.errors:
            put_control(head, SOL_SOCKET, SCM_TIMESTAMPING, stamps, sizeof(stamps))
        else:
            put_control(head, SOL_SOCKET, SCM_TIMESTAMPNS, stamps, sizeof(timespec))
    if d.is_chatty:
        put_number(head, SOL_PACKET, PACKET_AUXDATA, 0)
    if d.hops:
        if e.family == AF_INET:
            put_number(head, IPPROTO_IP, IP_TTL, d.hops)
        else:
            put_number(head, IPPROTO_IPV6, IPV6_HOPLIMIT, d.hops)
    return head


cdef inline void door_arrive(echo_t *e, const delivery_t *d) noexcept nogil:
    """Let the engine take in a message from its socket."""
    door_lay(e, &e.received, d)
    echo_take(e, 0, d.user_ns)
    echo_publish(e)


cdef inline void door_frame(
    echo_t *e, uint8_t *frame, const delivery_t *d, int interface, uint32_t wire_bytes,
) noexcept nogil:
    """Let the engine take in a frame of shared memory; the packet is DOOR_FRAME_BYTES behind it.

    wire_bytes: of the packet, which is cut when it is longer.
    """
    cdef tpacket2_hdr *head = <tpacket2_hdr *>frame
    memset(frame, 0, DOOR_FRAME_BYTES)
    head.tp_len = wire_bytes
    head.tp_snaplen = <uint32_t>d.n
    head.tp_net = DOOR_FRAME_BYTES
    head.tp_sec = <uint32_t>(d.stamp_ns // 1000000000)
    head.tp_nsec = <uint32_t>(d.stamp_ns % 1000000000)
    (<sockaddr_ll *>(frame + NETSONDE_LL_OFFSET)).sll_ifindex = interface
    echo_take_frame(e, head, d.user_ns)
    echo_publish(e)


cdef inline void door_report(
    echo_t *e, const delivery_t *d, const sock_extended_err *error, const uint8_t *offender,
) noexcept nogil:
    """Let the engine take in a message from its error queue; d.data: the request, from ICMP on."""
    cdef msghdr *head = door_lay(e, &e.errors, d)
    cdef offence_t offence
    memset(&offence, 0, sizeof(offence))
    offence.error = error[0]
    door_address(e.family, &offence.offender, offender)
    if e.backend == BACKEND_PACKET:
        put_control(head, SOL_PACKET, PACKET_TX_TIMESTAMP, error, sizeof(sock_extended_err))
    elif e.family == AF_INET:
        put_control(head, IPPROTO_IP, IP_RECVERR, &offence, sizeof(offence))
    else:
        put_control(head, IPPROTO_IPV6, IPV6_RECVERR, &offence, sizeof(offence))
    echo_take_error(e, 0, d.user_ns)
    echo_publish(e)
