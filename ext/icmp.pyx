"""ICMP and ICMPv6 echo for any number of targets over one socket per family.

Requests go in and completions come out in batches, as packed records in host byte order:

* request, `REQUEST_FORMAT`: token, timeout_ns, destination (IPv4: first 4 of 16 bytes), scope id
  (IPv6 link-local, else 0), payload size in bytes, TTL, traffic class;
* completion, `COMPLETION_FORMAT`: token, rtt_ns (-1: none), sent_ns (CLOCK_MONOTONIC), responder
  (as destination; zeros: nobody), kind, ICMP type, ICMP code, TTL of the packet that came (0: not
  known), payload size of it, clocks (`RX_KERNEL`: the kernel stamped it), errno.

The token is the caller's; the engine only hands it back. Every request taken gets exactly one
REPLY, TIMEOUT, ERROR, TX_ERROR or RX_DROP, and then any number of LATE and DUPLICATE.
"""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_WarnEx
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport cython
from cookie cimport load_key, siphash24 as sip
from echo cimport echo_poll, echo_read_drops, echo_submit
from echostate cimport (
    BUFFER_BYTES, BUFFER_MAX_BYTES, CLOCK_RX_KERNEL, COOKIE_BYTES, DEFAULT_TTL, DONE_DUPLICATE,
    DONE_ERROR, DONE_LATE, DONE_REPLY, DONE_RX_DROP, DONE_TIMEOUT, DONE_TX_ERROR, SIZE_MAX,
    completion_t, echo_allocate, echo_free, echo_size_buffers, echo_t, request_t,
)
from inflight cimport slab_next_deadline_ns, slab_open
from packet cimport (
    ICMP4_ECHO_REPLY, ICMP4_PARAMETER_PROBLEM, ICMP4_TIME_EXCEEDED, ICMP4_UNREACHABLE,
    ICMP6_ECHO_REPLY, ICMP6_PARAMETER_PROBLEM, ICMP6_TIME_EXCEEDED, ICMP6_TOO_BIG,
    ICMP6_UNREACHABLE, PARSE_FOREIGN, PARSE_OK, PARSE_SHORT, icmp_t,
    internet_checksum, ip_t, is_icmp_error, parse_icmp, parse_ipv4, parse_ipv6, parse_quote,
)
from rc cimport check
from stamps cimport (
    await_stamping, step_timer_arm, step_timer_open, wall_merge, wall_sample, wall_stepped, wall_t,
)
from sysnet cimport (
    AF_INET, AF_INET6, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, IP_MTU_DISCOVER, IP_PMTUDISC_DONT,
    IP_RECVERR, IP_RECVTTL, IP_TTL, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IP, IPPROTO_IPV6,
    IPV6_RECVERR, IPV6_RECVHOPLIMIT, IPV6_UNICAST_HOPS, NETSONDE_ICMP6_FILTER,
    NETSONDE_ICMP_FILTER, SO_RCVBUF, SO_RCVBUFFORCE, SO_RXQ_OVFL, SO_TIMESTAMPNS, SOCK_CLOEXEC,
    SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOL_SOCKET, bind, close, epoll_create1, epoll_ctl,
    epoll_event, getsockname, setsockopt, sockaddr, sockaddr_in6, socket, socklen_t,
)

REQUEST_FORMAT = "=QQ16sIHBB"
COMPLETION_FORMAT = "=Qqq16sBBBBHBB"

REPLY = DONE_REPLY
TIMEOUT = DONE_TIMEOUT
ERROR = DONE_ERROR
TX_ERROR = DONE_TX_ERROR
LATE = DONE_LATE
DUPLICATE = DONE_DUPLICATE
RX_DROP = DONE_RX_DROP

RX_KERNEL = CLOCK_RX_KERNEL

SIZE_MIN_BYTES = COOKIE_BYTES
SIZE_MAX_BYTES = SIZE_MAX
TIMEOUT_MAX_NS = 60_000_000_000  # the timeout wheel turns once in 68.7 s
CAPACITY_MAX = 1 << 24           # 1 GiB of slots, 256 identifiers

LINGER_NS = 3_000_000_000        # how long a settled probe is remembered for late replies
LINGER_MAX_NS = 600_000_000_000
CAPACITY = 1 << 20               # 64 MiB when all are used; grows from 64 KiB
RECEIVE_BUFFER_BYTES = 8 << 20   # asked for; the kernel grants at most net.core.rmem_max

cdef enum:
    SOL_RAW = 255                # linux/socket.h
    POLL_PACKETS = 4096          # one poll's share of the event loop, about 5 ms


cdef int set_option(int fd, int level, int name, int value, str what) except -1:
    return check(setsockopt(fd, level, name, &value, sizeof(value)), f"set {what}")


@cython.final
cdef class EchoEngine:
    """Sends echo requests of one family and matches what comes back.

    family: 4 or 6. access: "raw" (needs CAP_NET_RAW), or "datagram" (ICMP datagram sockets, needs
    net.ipv4.ping_group_range to include this group, for both families). secret: 16 bytes that key
    the cookies, drawn when None; two engines never believe each other's packets even when they
    share it. ident: the first ICMP identifier of a raw engine, drawn when None. capacity: most
    probes in flight, those still remembered included.

    Not thread-safe: one event loop owns it, and a call from a second thread while one is under way
    raises RuntimeError.

    Raises:
        OSError: a socket could not be opened or set up; PermissionError without the privilege.
        ValueError, OverflowError: an argument is out of range.
    """

    cdef echo_t *_e
    cdef bint _busy
    cdef str _access
    cdef int _family

    def __cinit__(
        self, int family, *, str access="raw", bytes secret=None, ident=None,
        int64_t capacity=CAPACITY, int64_t linger_ns=LINGER_NS,
        int receive_buffer_bytes=RECEIVE_BUFFER_BYTES,
    ):
        if family != 4 and family != 6:
            raise ValueError(f"family must be 4 or 6, not {family}")
        if access != "raw" and access != "datagram":
            raise ValueError(f'access must be "raw" or "datagram", not "{access}"')
        if not 1 <= capacity <= CAPACITY_MAX:
            raise ValueError(f"capacity must be 1 to {CAPACITY_MAX}, not {capacity}")
        if not 0 <= linger_ns <= LINGER_MAX_NS:
            raise ValueError(f"linger_ns must be 0 to {LINGER_MAX_NS}, not {linger_ns}")
        if secret is not None and len(secret) != 16:
            raise ValueError(f"secret must be 16 bytes, not {len(secret)}")
        self._access = access
        self._family = family
        self._e = <echo_t *>calloc(1, sizeof(echo_t))
        if self._e == NULL:
            raise MemoryError
        self._e.socket = self._e.epoll = self._e.step_timer = -1
        self._e.family = AF_INET if family == 4 else AF_INET6
        self._e.datagram = access == "datagram"
        try:
            self._draw(secret, ident)
            if echo_allocate(self._e) < 0 or slab_open(
                    &self._e.slab, <uint32_t>capacity, linger_ns) < 0:
                raise MemoryError
            self._open(receive_buffer_bytes)
            self._watch()
        except BaseException:
            self._release()
            raise

    cdef int _draw(self, bytes secret, ident) except -1:
        """Draw what must not be guessed."""
        cdef bytes drawn = os.urandom(14)
        cdef bytes key = os.urandom(16) if secret is None else secret
        cdef const uint8_t *bits = <const uint8_t *><const char *>drawn
        cdef uint16_t first = <uint16_t>(<uint32_t>bits[12] << 8 | bits[13])
        if ident is not None:
            first = ident
        self._e.key = load_key(<const uint8_t *><const char *>key)
        memcpy(self._e.instance, bits, 8)
        memcpy(&self._e.serial, bits + 8, 4)
        self._e.ident = first
        return 0

    cdef int _open(self, int receive_buffer_bytes) except -1:
        """Open the socket and set every option a measurement relies on."""
        cdef bint v4 = self._family == 4
        cdef int kind = SOCK_DGRAM if self._e.datagram else SOCK_RAW
        cdef int fd = check(
            socket(self._e.family, kind | SOCK_CLOEXEC | SOCK_NONBLOCK,
                   IPPROTO_ICMP if v4 else IPPROTO_ICMPV6),
            f"open ICMPv{self._family} {self._access} socket")
        self._e.socket = fd
        if self._e.datagram:
            self._bind()
        else:
            self._filter()
        if v4:
            set_option(fd, IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR")
            set_option(fd, IPPROTO_IP, IP_RECVTTL, 1, "IP_RECVTTL")
            set_option(fd, IPPROTO_IP, IP_TTL, DEFAULT_TTL, "IP_TTL")
            # A large request is fragmented on the way rather than answered with an error.
            set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT, "IP_MTU_DISCOVER")
        else:
            set_option(fd, IPPROTO_IPV6, IPV6_RECVERR, 1, "IPV6_RECVERR")
            set_option(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT")
            set_option(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, DEFAULT_TTL, "IPV6_UNICAST_HOPS")
        set_option(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1, "SO_TIMESTAMPNS")
        set_option(fd, SOL_SOCKET, SO_RXQ_OVFL, 1, "SO_RXQ_OVFL")
        if setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer_bytes, sizeof(int)) < 0:
            # Beyond net.core.rmem_max needs CAP_NET_ADMIN, which an agent does not have.
            set_option(fd, SOL_SOCKET, SO_RCVBUF, receive_buffer_bytes, "SO_RCVBUF")
        with nogil:
            await_stamping()
        return 0

    cdef int _filter(self) except -1:
        """Let the kernel drop all but echo replies and errors."""
        cdef uint32_t block[8]
        cdef int type_
        if self._family == 4:
            block[0] = ~(<uint32_t>1 << ICMP4_ECHO_REPLY | <uint32_t>1 << ICMP4_UNREACHABLE
                         | <uint32_t>1 << ICMP4_TIME_EXCEEDED
                         | <uint32_t>1 << ICMP4_PARAMETER_PROBLEM)
            return check(setsockopt(self._e.socket, SOL_RAW, NETSONDE_ICMP_FILTER, block, 4),
                         "set ICMP_FILTER")
        memset(block, 0xFF, sizeof(block))
        for type_ in (ICMP6_UNREACHABLE, ICMP6_TOO_BIG, ICMP6_TIME_EXCEEDED,
                      ICMP6_PARAMETER_PROBLEM, ICMP6_ECHO_REPLY):
            block[type_ >> 5] &= ~(<uint32_t>1 << (type_ & 31))
        return check(
            setsockopt(self._e.socket, IPPROTO_ICMPV6, NETSONDE_ICMP6_FILTER, block, sizeof(block)),
            "set ICMP6_FILTER")

    cdef int _bind(self) except -1:
        """Let the kernel pick the identifier now, and learn it: checksums cover it."""
        cdef sockaddr_in6 name
        cdef socklen_t length = sizeof(name)
        memset(&name, 0, sizeof(name))
        name.sin6_family = <unsigned short>self._e.family
        check(bind(self._e.socket, <const sockaddr *>&name, length), "bind ICMP datagram socket")
        check(getsockname(self._e.socket, <sockaddr *>&name, &length), "read ICMP identifier")
        # The port sits at the same place in both families' socket addresses.
        self._e.ident = <uint16_t>((name.sin6_port & 0xFF) << 8 | name.sin6_port >> 8)
        return 0

    cdef int _watch(self) except -1:
        """Open the descriptor an event loop waits for, over the socket and the step timer.

        The socket itself will not do: an ICMP error makes it POLLERR, on which libuv stops
        watching for good.
        """
        cdef epoll_event event
        cdef int fd
        self._e.step_timer = check(step_timer_open(), "open clock step timer")
        check(step_timer_arm(self._e.step_timer), "arm clock step timer")
        self._e.epoll = check(epoll_create1(EPOLL_CLOEXEC), "open epoll")
        for fd in (self._e.socket, self._e.step_timer):
            memset(&event, 0, sizeof(event))
            event.events = EPOLLIN
            event.data.fd = fd
            check(epoll_ctl(self._e.epoll, EPOLL_CTL_ADD, fd, &event), "watch ICMP socket")
        wall_sample(&self._e.wall)
        return 0

    cdef void _release(self) noexcept:
        """Close and free everything. Idempotent."""
        cdef int fd
        if self._e == NULL:
            return
        for fd in (self._e.epoll, self._e.step_timer, self._e.socket):
            if fd >= 0:
                close(fd)
        echo_free(self._e)
        free(self._e)
        self._e = NULL

    cdef echo_t *_enter(self) except NULL:
        """Return the engine for a call that releases the GIL; the caller clears _busy."""
        cdef echo_t *e = self._live()
        self._busy = True
        return e

    cdef echo_t *_live(self) except NULL:
        if self._e == NULL:
            raise ValueError("EchoEngine is closed")
        if self._busy:
            raise RuntimeError("EchoEngine is in use by another thread")
        return self._e

    def __dealloc__(self):
        if self._e != NULL:
            self._release()
            PyErr_WarnEx(ResourceWarning, "unclosed EchoEngine: call close()", 1)

    def __enter__(self):
        self._live()
        return self

    def __exit__(self, *_exc):
        self.close()

    def close(self):
        """Close the socket; probes in flight get no completion. Idempotent."""
        if self._busy:
            raise RuntimeError("EchoEngine is in use by another thread")
        self._release()

    def fileno(self):
        """Return a descriptor that is readable while `poll` has something to read.

        It does not announce timeouts: `next_deadline_ns` does.
        """
        return self._live().epoll

    def submit(self, bytes requests not None):
        """Send requests (packed records) in order; return how many were taken.

        Fewer than given are taken only when `capacity` probes are in flight: offer the rest again
        after `poll`. A request the kernel refuses is taken and completes as TX_ERROR.

        Raises:
            ValueError: not whole records, or one is out of range; then none is sent.
        """
        cdef echo_t *e = self._enter()
        cdef const uint8_t *records = <const uint8_t *><const char *>requests
        cdef size_t length = <size_t>len(requests)
        cdef size_t count = length // sizeof(request_t)
        cdef size_t taken
        try:
            self._check(records, count, length)
            with nogil:
                taken = echo_submit(e, records, count)
            return taken
        finally:
            self._busy = False

    cdef int _check(self, const uint8_t *records, size_t count, size_t length) except -1:
        """Refuse what the core must not see; make receive buffers for the largest reply."""
        cdef request_t r
        cdef size_t i, largest = 0
        if count * sizeof(request_t) != length:
            raise ValueError(f"requests must be whole records of {sizeof(request_t)} bytes")
        for i in range(count):
            memcpy(&r, records + i * sizeof(request_t), sizeof(r))
            if not 1 <= r.timeout_ns <= <uint64_t>TIMEOUT_MAX_NS:
                raise ValueError(f"request {i}: timeout_ns must be 1 to {TIMEOUT_MAX_NS}")
            if not COOKIE_BYTES <= r.size <= SIZE_MAX:
                raise ValueError(f"request {i}: size must be {COOKIE_BYTES} to {SIZE_MAX}")
            if r.ttl == 0:
                raise ValueError(f"request {i}: ttl must be 1 to 255")
            if r.size > largest:
                largest = r.size
        if largest + 68 > BUFFER_BYTES:  # the longest IPv4 header and ICMP's
            if echo_size_buffers(self._e, BUFFER_MAX_BYTES) < 0:
                raise MemoryError
        return 0

    def poll(self, *, int64_t now_ns, int limit=POLL_PACKETS):
        """Read up to about `limit` packets without blocking and return the completions, packed.

        Includes those `submit` came across. now_ns: CLOCK_MONOTONIC, read before the call; probes
        whose timeout has passed by then are completed once nothing that came in time is unread.
        """
        cdef echo_t *e = self._enter()
        cdef bytes done
        try:
            with nogil:
                echo_poll(e, now_ns, <size_t>limit if limit > 0 else 0)
            done = PyBytes_FromStringAndSize(
                <const char *>e.done, <Py_ssize_t>(e.done_count * sizeof(completion_t)))
            e.done_count = 0
            return done
        finally:
            self._busy = False

    def note_clock_step(self):
        """Take the word of somebody who knows that the wall clock was set, as after a suspend.

        Probes in flight are then timed by CLOCK_MONOTONIC. The engine notices steps by itself too.
        """
        wall_stepped(&self._live().wall)

    @property
    def next_deadline_ns(self):
        """The instant (CLOCK_MONOTONIC) by which a timeout will be due; None: nothing in flight."""
        cdef int64_t deadline_ns = slab_next_deadline_ns(&self._live().slab)
        return deadline_ns if deadline_ns >= 0 else None

    @property
    def family(self):
        """4 or 6."""
        return self._family

    @property
    def access(self):
        """The kind of socket: raw or datagram."""
        return self._access

    @property
    def ident(self):
        """The first ICMP identifier that requests carry; a datagram engine's only one."""
        return self._live().ident

    @property
    def in_flight(self):
        """How many probes wait for a reply."""
        return self._live().slab.in_flight

    @property
    def unread(self):
        """How many completions the next `poll` will return without reading anything."""
        return self._live().done_count

    @property
    def counters(self):
        """What happened so far, by name.

        sent, tx_errors: requests the kernel took, refused. packets: read from the socket. foreign:
        other programs' packets. forged: ours but altered. malformed: not ICMP or damaged. stale:
        replies to probes no longer remembered. late_errors: ICMP errors about settled probes.
        rx_drops: packets the full receive queue dropped. clock_steps: times the wall clock was set.
        """
        cdef echo_t *e = self._live()
        echo_read_drops(e)
        return {
            "sent": e.counters.sent,
            "tx_errors": e.counters.tx_errors,
            "packets": e.counters.packets,
            "foreign": e.counters.foreign,
            "forged": e.counters.forged,
            "malformed": e.counters.malformed,
            "stale": e.counters.stale,
            "late_errors": e.counters.late_errors,
            "rx_drops": e.counters.rx_drops,
            "clock_steps": e.wall.steps,
        }


# ── the packet core, as the engine uses it ───────────────────────────────────────────────────────


def checksum(bytes data):
    """Return the Internet checksum of data, its own checksum field 0 (RFC 1071)."""
    return internet_checksum(<const uint8_t *><const char *>data, <size_t>len(data))


def siphash24(bytes key, bytes data):
    """Return the SipHash-2-4 of data under a key of 16 bytes."""
    if len(key) != 16:
        raise ValueError(f"key must be 16 bytes, not {len(key)}")
    return sip(load_key(<const uint8_t *><const char *>key),
               <const uint8_t *><const char *>data, <size_t>len(data))


def count_steps(samples):
    """Return how many wall clock steps a series of (low_ns, high_ns) proves.

    Each sample is an interval in which CLOCK_REALTIME - CLOCK_MONOTONIC lay at that moment.
    """
    cdef wall_t wall
    cdef int64_t low_ns, high_ns
    memset(&wall, 0, sizeof(wall))
    for low_ns, high_ns in samples:
        wall_merge(&wall, low_ns, high_ns)
    return wall.steps


cdef str parse_problem(int code):
    return {PARSE_SHORT: "short", PARSE_FOREIGN: "foreign"}[code]


def parse_ip(int version, bytes data, *, bint quoted=False):
    """Read an IP packet: (protocol, tos, ttl, source, destination, body), or why it is not one.

    quoted: it is what an ICMP error quotes, so its end may be missing (IPv6: always allowed).
    The reason is "short" or "foreign".
    """
    cdef ip_t ip
    cdef const uint8_t *p = <const uint8_t *><const char *>data
    cdef int code
    cdef int width = 4 if version == 4 else 16
    if version != 4 and version != 6:
        raise ValueError(f"version must be 4 or 6, not {version}")
    if version == 4:
        code = parse_ipv4(p, <size_t>len(data), quoted, &ip)
    else:
        code = parse_ipv6(p, <size_t>len(data), &ip)
    if code != PARSE_OK:
        return parse_problem(code)
    return (ip.protocol, ip.tos, ip.ttl, ip.source[:width], ip.destination[:width],
            ip.body[:ip.body_bytes])


def parse_message(int version, bytes data):
    """Read an ICMP message: (type, code, checksum, ident, sequence, payload, quote) or "short".

    quote is None for a message that is not an error, else what `parse_ip` makes of the packet it
    quotes (RFC 792, 4443, 4884).
    """
    cdef icmp_t icmp
    cdef ip_t ip
    cdef const uint8_t *p = <const uint8_t *><const char *>data
    cdef int code, width = 4 if version == 4 else 16
    if version != 4 and version != 6:
        raise ValueError(f"version must be 4 or 6, not {version}")
    if parse_icmp(p, <size_t>len(data), &icmp) != PARSE_OK:
        return "short"
    quote = None
    if is_icmp_error(version, icmp.type):
        code = parse_quote(version, p, <size_t>len(data), &ip)
        if code != PARSE_OK:
            quote = parse_problem(code)
        else:
            quote = (ip.protocol, ip.tos, ip.ttl, ip.source[:width], ip.destination[:width],
                     ip.body[:ip.body_bytes])
    return (icmp.type, icmp.code, icmp.checksum, icmp.ident, icmp.sequence,
            icmp.payload[:icmp.payload_bytes], quote)
