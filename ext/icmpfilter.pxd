"""The kernel's own filters of raw ICMP sockets, by type: what can be an answer to a probe."""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from packet cimport (
    ICMP4_ECHO_REPLY, ICMP4_PARAMETER_PROBLEM, ICMP4_TIME_EXCEEDED, ICMP4_UNREACHABLE,
    ICMP6_ECHO_REPLY, ICMP6_PARAMETER_PROBLEM, ICMP6_TIME_EXCEEDED, ICMP6_TOO_BIG,
    ICMP6_UNREACHABLE,
)
from sysnet cimport IPPROTO_ICMPV6, NETSONDE_ICMP6_FILTER, NETSONDE_ICMP_FILTER, setsockopt

cdef enum:
    SOL_RAW = 255        # linux/socket.h


cdef inline int filter_types(int fd, int version) noexcept nogil:
    """Let in only what can be an answer."""
    cdef uint32_t blocked[8]
    cdef uint32_t types[5]
    cdef int i
    memset(blocked, 0xFF, sizeof(blocked))
    if version == 4:
        types[:] = [ICMP4_ECHO_REPLY, ICMP4_UNREACHABLE, ICMP4_TIME_EXCEEDED,
                    ICMP4_PARAMETER_PROBLEM, ICMP4_ECHO_REPLY]
    else:
        types[:] = [ICMP6_ECHO_REPLY, ICMP6_UNREACHABLE, ICMP6_TIME_EXCEEDED,
                    ICMP6_PARAMETER_PROBLEM, ICMP6_TOO_BIG]
    for i in range(5):
        blocked[types[i] >> 5] &= ~(<uint32_t>1 << (types[i] & 31))
    if version == 4:
        return setsockopt(fd, SOL_RAW, NETSONDE_ICMP_FILTER, blocked, sizeof(uint32_t))
    return setsockopt(fd, IPPROTO_ICMPV6, NETSONDE_ICMP6_FILTER, blocked, sizeof(blocked))
