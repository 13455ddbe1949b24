"""Open the sockets of traces, and ask the kernel for source addresses.

Each opener returns a descriptor, or -1 with errno and the step that failed.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from bpf cimport (
    BPF_B, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
    WHOLE_PACKET, accept_ident, attach, instruct, program_t,
)
from icmpfilter cimport filter_types
from packet cimport ICMP4_ECHO_REPLY, ICMP6_ECHO_REPLY
from sysnet cimport (
    AF_INET, AF_INET6, AF_UNSPEC, IP_RECVERR, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IP,
    IPPROTO_IPV6, IPPROTO_RAW, IPV6_RECVERR, IPV6_RECVHOPLIMIT, IPV6_V6ONLY,
    SO_RXQ_OVFL, SO_TIMESTAMPNS, SOCK_CLOEXEC,
    SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOL_SOCKET, close, connect, errno, getsockname,
    setsockopt, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socket, socklen_t,
)
from tracetable cimport table_t

cdef enum:
    DISCARD_PORT = 9     # RFC 863; connecting a UDP socket sends nothing


cdef inline int fail(int fd, const char **step, const char *name) noexcept nogil:
    """Close fd, keep errno, name the step; return -1."""
    cdef int code = errno
    if fd >= 0:
        close(fd)
    (&errno)[0] = code
    step[0] = name
    return -1


cdef inline int set_on(int fd, int level, int name) noexcept nogil:
    cdef int on = 1
    return setsockopt(fd, level, name, &on, sizeof(on))


cdef inline int filter_echo_replies(
    int fd, int version, uint16_t ident_base, uint32_t idents,
) noexcept nogil:
    """Let echo replies in only with an identifier of ours: pings on this host have many others.

    IPv4 packets begin with their header, whose length goes to X; ICMPv6 ones with the message.
    """
    cdef program_t p
    memset(&p, 0, sizeof(p))
    if version == 4:
        instruct(&p, BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0)
    else:
        instruct(&p, BPF_LDX | BPF_IMM, 0, 0, 0)
    instruct(&p, BPF_LD | BPF_B | BPF_IND, 0, 0, 0)
    instruct(&p, BPF_JMP | BPF_JEQ | BPF_K,
             ICMP4_ECHO_REPLY if version == 4 else ICMP6_ECHO_REPLY, 1, 0)
    instruct(&p, BPF_RET | BPF_K, WHOLE_PACKET, 0, 0)
    accept_ident(&p, BPF_IND, 4, ident_base, idents)
    return attach(fd, &p)


cdef inline int open_answers(
    int version, uint16_t ident_base, uint32_t idents, const char **step,
) noexcept nogil:
    """Open the receiving socket: filtered to what can be an answer, stamped by the kernel."""
    cdef int fd
    if version == 4:
        fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMP)
    else:
        fd = socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMPV6)
    if fd < 0:
        return fail(fd, step, "open raw ICMP socket" if version == 4 else "open raw ICMPv6 socket")
    if filter_types(fd, version) < 0:
        return fail(fd, step, "set ICMP type filter")
    # With every identifier ours there is nothing to filter.
    if idents <= 0xFFFF and filter_echo_replies(fd, version, ident_base, idents) < 0:
        return fail(fd, step, "set SO_ATTACH_FILTER")
    if version == 6 and set_on(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT) < 0:
        return fail(fd, step, "set IPV6_RECVHOPLIMIT")
    if set_on(fd, SOL_SOCKET, SO_TIMESTAMPNS) < 0:
        return fail(fd, step, "set SO_TIMESTAMPNS")
    if set_on(fd, SOL_SOCKET, SO_RXQ_OVFL) < 0:
        return fail(fd, step, "set SO_RXQ_OVFL")
    return fd


cdef inline int open_probes(int version, const char **step) noexcept nogil:
    """Open the sending socket: it takes packets with our header and owns up to local drops."""
    cdef int fd
    if version == 4:
        fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW)
    else:
        fd = socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW)
    if fd < 0:
        return fail(fd, step, "open raw IP socket")
    if version == 4 and set_on(fd, IPPROTO_IP, IP_RECVERR) < 0:
        return fail(fd, step, "set IP_RECVERR")
    if version == 6 and set_on(fd, IPPROTO_IPV6, IPV6_RECVERR) < 0:
        return fail(fd, step, "set IPV6_RECVERR")
    return fd


cdef inline int open_routes(int version, const char **step) noexcept nogil:
    """Open the socket that is only asked for source addresses."""
    cdef int fd = socket(AF_INET if version == 4 else AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return fail(fd, step, "open UDP socket")
    if version == 6 and set_on(fd, IPPROTO_IPV6, IPV6_V6ONLY) < 0:
        return fail(fd, step, "set IPV6_V6ONLY")
    return fd


cdef inline socklen_t fill_address(
    const table_t *table, const uint8_t *address, uint32_t scope_id, sockaddr_storage *out,
) noexcept nogil:
    """Write a socket address with the discard port; return its length."""
    cdef sockaddr_in *v4 = <sockaddr_in *>out
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>out
    memset(out, 0, sizeof(sockaddr_storage))
    if table.version == 4:
        v4.sin_family = <unsigned short>AF_INET
        v4.sin_port = <uint16_t>(DISCARD_PORT << 8)
        memcpy(&v4.sin_addr, address, 4)
        return sizeof(sockaddr_in)
    v6.sin6_family = <unsigned short>AF_INET6
    v6.sin6_port = <uint16_t>(DISCARD_PORT << 8)
    v6.sin6_scope_id = scope_id
    memcpy(&v6.sin6_addr, address, 16)
    return sizeof(sockaddr_in6)


cdef inline int look_up_source(
    const table_t *table, int fd, const uint8_t *destination, uint32_t scope_id, uint8_t *source,
) noexcept nogil:
    """Ask the kernel which source address it would use; 0 or errno."""
    cdef sockaddr_storage address
    cdef socklen_t length = sizeof(sockaddr_storage)
    memset(&address, 0, sizeof(address))
    (<sockaddr *>&address).sa_family = <unsigned short>AF_UNSPEC
    # Undo the last answer: a connected socket keeps its source (connect(2), "dissolve").
    connect(fd, <sockaddr *>&address, sizeof(sockaddr))
    length = fill_address(table, destination, scope_id, &address)
    if connect(fd, <sockaddr *>&address, length) < 0:
        return errno
    length = sizeof(sockaddr_storage)
    if getsockname(fd, <sockaddr *>&address, &length) < 0:
        return errno
    if table.version == 4:
        memcpy(source, &(<sockaddr_in *>&address).sin_addr, 4)
    else:
        memcpy(source, &(<sockaddr_in6 *>&address).sin6_addr, 16)
    return 0
