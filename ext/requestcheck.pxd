"""Requests as callers pack them: what the core must not see is refused by name."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from echostate cimport (
    BACKEND_DATAGRAM, BACKEND_PACKET, BACKEND_RAW, COOKIE_BYTES, FLAG_DF, SIZE_MAX, echo_t,
)
from schedule cimport request_t
from sysnet cimport AF_INET
from traceprobe cimport PAYLOAD_MIN
from tracestate cimport (
    ATTEMPTS_MAX, METHOD_ICMP, METHOD_TCP, METHOD_UDP, TRACE_ALL, TRACE_DF, TRACE_WATCH,
    trace_request_t,
)

cdef enum:
    TIMEOUT_LIMIT_NS = 60000000000     # the timeout wheel turns once in 68.7 s
    INTERVAL_LIMIT_NS = 3600000000000


cdef inline int check_times(str what, size_t i, uint64_t timeout_ns, uint64_t gap_ns) except -1:
    if not 1 <= timeout_ns <= <uint64_t>TIMEOUT_LIMIT_NS:
        raise ValueError(f"{what} {i}: timeout_ns must be 1 to {<uint64_t>TIMEOUT_LIMIT_NS}")
    if gap_ns > <uint64_t>INTERVAL_LIMIT_NS:
        raise ValueError(f"{what} {i}: interval_ns must be 0 to {<uint64_t>INTERVAL_LIMIT_NS}")
    return 0


cdef inline int check_requests(
    const echo_t *e, const uint8_t *records, size_t length, uint32_t paths, int largest_size,
) except -1:
    """Raise ValueError for records that are not whole, or one that is out of range."""
    cdef request_t r
    cdef size_t i
    cdef bint df = e.family != AF_INET or (
        e.backend != BACKEND_RAW and e.backend != BACKEND_DATAGRAM)
    if length % sizeof(request_t):
        raise ValueError(f"requests must be whole records of {sizeof(request_t)} bytes")
    for i in range(length // sizeof(request_t)):
        memcpy(&r, records + i * sizeof(request_t), sizeof(r))
        check_times("request", i, r.timeout_ns, r.interval_ns)
        if not COOKIE_BYTES <= r.size <= largest_size:
            raise ValueError(f"request {i}: size must be {COOKIE_BYTES} to {largest_size}")
        if r.ttl == 0:
            raise ValueError(f"request {i}: ttl must be 1 to 255")
        if r.count == 0:
            raise ValueError(f"request {i}: count must be at least 1")
        if r.path >= paths or (r.path == 0 and e.backend == BACKEND_PACKET):
            raise ValueError(f"request {i}: no path {r.path}: see add_path")
        if r.flags & ~<uint32_t>FLAG_DF or (r.flags and not df):
            raise ValueError(f"request {i}: flags must be 0"
                             f"{' or DF' if df else ': no DF with this back end, IPv4'}")
    return 0


cdef inline int check_traces(
    const echo_t *e, const uint8_t *records, size_t length, uint32_t paths,
) except -1:
    """The same for traces."""
    cdef trace_request_t r
    cdef size_t i
    if length % sizeof(trace_request_t):
        raise ValueError(f"traces must be whole records of {sizeof(trace_request_t)} bytes")
    for i in range(length // sizeof(trace_request_t)):
        memcpy(&r, records + i * sizeof(trace_request_t), sizeof(r))
        check_times("trace", i, r.timeout_ns, r.interval_ns)
        if r.method not in (METHOD_ICMP, METHOD_UDP, METHOD_TCP) or (
                not r.method & e.traces.methods):
            raise ValueError(f"trace {i}: method {r.method} is not open: see open_traces")
        if not 1 <= r.first_ttl <= r.last_ttl:
            raise ValueError(f"trace {i}: first_ttl must be 1 to last_ttl")
        if not 1 <= r.attempts <= ATTEMPTS_MAX:
            raise ValueError(f"trace {i}: attempts must be 1 to {ATTEMPTS_MAX}")
        if r.gap_limit == 0:
            raise ValueError(f"trace {i}: gap_limit must be at least 1")
        if not PAYLOAD_MIN <= r.size <= SIZE_MAX:
            raise ValueError(f"trace {i}: size must be {PAYLOAD_MIN} to {SIZE_MAX}")
        if r.path >= paths:
            raise ValueError(f"trace {i}: no path {r.path}: see add_path")
        if r.flags & ~<uint32_t>(TRACE_DF | TRACE_ALL | TRACE_WATCH):
            raise ValueError(f"trace {i}: flags must be TRACE_ flags")
    return 0
