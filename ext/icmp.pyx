"""ICMP and ICMPv6 echo for any number of targets over one receiving socket per family.

Requests go in and completions come out in batches, as packed records in host byte order:

* request, `REQUEST_FORMAT`: token, interval_ns, timeout_ns, destination (IPv4: first 4 of 16
  bytes), scope id (IPv6 link-local, else 0), count of packets, payload size in bytes, path
  (`add_path`; 0: the routing table's), TTL, traffic class, flags (`DF`);
* completion, `COMPLETION_FORMAT`: token, rtt_ns (-1: none), sent_ns (CLOCK_MONOTONIC), responder
  (as destination; zeros: nobody), kind, ICMP type, ICMP code, TTL of the packet that came (0: not
  known), payload size of it, clocks (`RX_KERNEL`, `TX_KERNEL`: the kernel stamped it), errno.

A request is a run of `count` packets to one target. The token is the caller's; packet n of a run,
counted from 0, comes back as token + n. Every packet gets exactly one REPLY, TIMEOUT, ERROR,
TX_ERROR or RX_DROP, and then any number of LATE and DUPLICATE.
"""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_WarnEx
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport cython
from budget cimport budget_t, keyed_open, pace_gap, pace_slack
from cookie cimport load_key, siphash24 as sip
from echo cimport (
    NEVER_NS, TURN_PACKETS, echo_next_turn_ns, echo_take_cancellations, echo_take_steps,
    echo_transmit, echo_turn,
)
from echoreceive cimport echo_read_queue
from echosockets cimport (
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, LARGE_SIZE, SMALL_SIZE, open_receiver, open_sender, open_watch,
)
from echostate cimport (
    BACKEND_DATAGRAM, BACKEND_HEADER, BACKEND_PACKET, BACKEND_RAW, BUDGETS_MAX, CLOCK_RX_KERNEL,
    CLOCK_TX_KERNEL, COOKIE_BYTES, DEFAULT_TTL, DONE_DUPLICATE, DONE_ERROR, DONE_LATE, DONE_REPLY,
    DONE_RX_DROP, DONE_STOPPED, DONE_TIMEOUT, DONE_TX_ERROR, FLAG_DF, INTERFACES_MAX, PATHS_MAX,
    SIZE_MAX, completion_t, echo_allocate, echo_free, echo_publish, echo_t, path_t,
)
from inflight cimport slab_open
from packet cimport (
    PARSE_FOREIGN, PARSE_OK, PARSE_SHORT, icmp_t, internet_checksum, ip_t, is_icmp_error,
    parse_icmp, parse_ipv4, parse_ipv6, parse_quote, store_be16,
)
from pump cimport event_clear, event_set, loop_arm, pump_start, pump_stop
from rc cimport raise_errno
from ring cimport (
    atomic_store, ring_count, ring_publish, ring_record, ring_release, ring_room,
)
from schedule cimport request_t, schedule_open
from stamps cimport monotonic_ns, wall_merge, wall_t
from sysnet cimport AF_INET, AF_INET6, AF_PACKET, close

REQUEST_FORMAT = "=QQQ16sIIHHBBBx"
COMPLETION_FORMAT = "=Qqq16sBBBBHBB"

REPLY = DONE_REPLY
TIMEOUT = DONE_TIMEOUT
ERROR = DONE_ERROR
TX_ERROR = DONE_TX_ERROR
LATE = DONE_LATE
DUPLICATE = DONE_DUPLICATE
RX_DROP = DONE_RX_DROP
STOPPED = DONE_STOPPED

RX_KERNEL = CLOCK_RX_KERNEL
TX_KERNEL = CLOCK_TX_KERNEL

DF = FLAG_DF

SIZE_MIN_BYTES = COOKIE_BYTES
SIZE_MAX_BYTES = SIZE_MAX
TIMEOUT_MAX_NS = 60_000_000_000  # the timeout wheel turns once in 68.7 s
INTERVAL_MAX_NS = 3_600_000_000_000
CAPACITY_MAX = 1 << 24           # 1 GiB of slots, 256 identifiers

LINGER_NS = 3_000_000_000        # how long a settled probe is remembered for late replies
LINGER_MAX_NS = 600_000_000_000
CAPACITY = 1 << 20               # 64 MiB when all are used; grows from 64 KiB
RECEIVE_BUFFER_BYTES = 8 << 20   # asked for; the kernel grants at most net.core.rmem_max

BACKENDS = {
    "header": BACKEND_HEADER,
    "raw": BACKEND_RAW,
    "packet": BACKEND_PACKET,
    "datagram": BACKEND_DATAGRAM,
}

cdef enum:
    TAKE_MAX = 16384             # completions of one poll: a millisecond or two of work


@cython.final
cdef class PacketBudget:
    """A token bucket that any number of engines share: `rate_pps` packets a second in all.

    Gaps of 2 ms and more are kept exactly, shorter ones on average over 2 ms. Thread-safe.

    Raises:
        ValueError: the rate is not positive, or above a billion.
    """

    cdef budget_t _b
    cdef double _rate_pps

    def __cinit__(self, double rate_pps):
        if not 0 < rate_pps <= 1e9:
            raise ValueError(f"rate_pps must be above 0 and at most 1e9, not {rate_pps}")
        self._rate_pps = rate_pps
        self._b.gap = pace_gap(rate_pps)
        self._b.slack = pace_slack(self._b.gap)

    @property
    def rate_pps(self):
        """Packets a second."""
        return self._rate_pps


@cython.no_gc  # or the collector could free the budgets under the thread; they are in no cycle
@cython.final
cdef class EchoEngine:
    """Sends echo requests of one family and matches what comes back.

    family: 4 or 6. backend: how packets leave; all but "datagram" need CAP_NET_RAW.
        "raw": an ICMP socket, the kernel writes the IP header.
        "header": IPv4 only, an IPPROTO_RAW socket; we write it. What may need fragments goes as
            raw, and without the kernel's transmit stamp.
        "packet": AF_PACKET, past routing, firewall and queueing discipline, and replies in memory
            shared with the kernel; every request needs a path with source, interface and link
            address, and its replies must come back by an interface of some path.
        "datagram": ICMP datagram sockets; needs net.ipv4.ping_group_range to include this group,
            for both families.
    exact: have the kernel stamp every packet it transmits; costs an eighth of the rate. After it
        refuses one the stamps pause, 2 s at most, until those under way have come.
    secret: 16 bytes that key the cookies, drawn when None; two engines never believe each other's
    packets even when they share it. ident: the first ICMP identifier of a raw engine, drawn when
    None. capacity: most probes in flight, those still remembered included. budgets: shared token
    buckets that every packet passes. prefix_pps, target_pps: pace per /24 or /48 and per address;
    0: none. largest_size: payload bytes that the packet back end makes room for.

    Until `start` the caller turns the engine: `submit` sends, `poll` reads and times out. From then
    on a thread does, and both only pass records. Otherwise not thread-safe: one event loop owns it,
    and a call from a second thread while one is under way raises RuntimeError.

    Raises:
        OSError: a socket could not be opened or set up; PermissionError without the privilege.
        ValueError, OverflowError: an argument is out of range.
    """

    cdef echo_t *_e
    cdef bint _busy
    cdef str _backend
    cdef int _family
    cdef tuple _budgets
    cdef uint32_t _paths
    cdef int _largest_size

    def __cinit__(
        self, int family, *, str backend="raw", bint exact=False, bytes secret=None, ident=None,
        int64_t capacity=CAPACITY, int64_t linger_ns=LINGER_NS,
        int receive_buffer_bytes=RECEIVE_BUFFER_BYTES, tuple budgets=(), double prefix_pps=0,
        double target_pps=0, int largest_size=SMALL_SIZE,
    ):
        if family != 4 and family != 6:
            raise ValueError(f"family must be 4 or 6, not {family}")
        if backend not in BACKENDS or (family == 6 and backend == "header"):
            raise ValueError(f'backend must be one of {", ".join(BACKENDS)}, not "{backend}"'
                             f' (header: IPv4 only)')
        if not 1 <= capacity <= CAPACITY_MAX:
            raise ValueError(f"capacity must be 1 to {CAPACITY_MAX}, not {capacity}")
        if not 0 <= linger_ns <= LINGER_MAX_NS:
            raise ValueError(f"linger_ns must be 0 to {LINGER_MAX_NS}, not {linger_ns}")
        if secret is not None and len(secret) != 16:
            raise ValueError(f"secret must be 16 bytes, not {len(secret)}")
        if not 0 <= prefix_pps <= 1e9 or not 0 <= target_pps <= 1e9:
            raise ValueError("prefix_pps and target_pps must be 0 to 1e9")
        if backend == "packet" and not COOKIE_BYTES <= largest_size <= LARGE_SIZE:
            raise ValueError(f"largest_size must be {COOKIE_BYTES} to {LARGE_SIZE}")
        self._backend = backend
        self._family = family
        self._largest_size = largest_size if backend == "packet" else SIZE_MAX
        self._budgets = budgets
        self._paths = 1
        self._e = <echo_t *>calloc(1, sizeof(echo_t))
        if self._e == NULL:
            raise MemoryError
        self._e.socket = self._e.tx_socket = self._e.epoll = self._e.step_timer = -1
        self._e.turn_timer = self._e.wake = self._e.ready = -1
        self._e.family = AF_INET if family == 4 else AF_INET6
        self._e.backend = BACKENDS[backend]
        self._e.exact = exact
        try:
            self._draw(secret, ident)
            self._pace(prefix_pps, target_pps)
            schedule_open(&self._e.schedule)
            if echo_allocate(self._e) < 0 or slab_open(
                    &self._e.slab, <uint32_t>capacity, linger_ns) < 0:
                raise MemoryError
            open_receiver(self._e, receive_buffer_bytes, self._largest_size)
            open_sender(self._e)
            open_watch(self._e)
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

    cdef int _pace(self, double prefix_pps, double target_pps) except -1:
        """Set up buckets and budgets."""
        cdef PacketBudget budget
        if len(self._budgets) > BUDGETS_MAX:
            raise ValueError(f"at most {BUDGETS_MAX} budgets, not {len(self._budgets)}")
        for each in self._budgets:
            budget = <PacketBudget?>each
            self._e.budgets[self._e.budget_count] = &budget._b
            self._e.budget_count += 1
        if keyed_open(&self._e.prefixes, prefix_pps) < 0 or keyed_open(
                &self._e.targets, target_pps) < 0:
            raise MemoryError
        return 0

    cdef void _release(self) noexcept:
        """End the thread, close and free everything. Idempotent."""
        cdef int fd
        if self._e == NULL:
            return
        with nogil:
            pump_stop(self._e)
        if self._e.tx_socket == self._e.socket:
            self._e.tx_socket = -1
        for fd in (self._e.epoll, self._e.ready, self._e.wake, self._e.turn_timer,
                   self._e.step_timer, self._e.tx_socket, self._e.socket):
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
        """End the thread and close the sockets; probes in flight get no completion. Idempotent."""
        if self._busy:
            raise RuntimeError("EchoEngine is in use by another thread")
        self._busy = True  # waiting for the thread to end releases the GIL
        self._release()
        self._busy = False

    def start(self):
        """Let a thread of the engine's own turn it from now on.

        Raises:
            OSError: the kernel allows no more threads.
            ValueError: it has been started.
        """
        cdef echo_t *e = self._live()
        cdef int code
        if e.threaded:
            raise ValueError("EchoEngine has been started")
        code = pump_start(e)
        if code:
            raise_errno(code, "start the pump thread")

    def fileno(self):
        """Return a descriptor that is readable when `poll` is to be called.

        It stays the same until `start`, which replaces it.
        """
        cdef echo_t *e = self._live()
        return e.ready if e.threaded else e.epoll

    def add_path(
        self, *, bytes source=None, int interface=0, uint32_t mark=0, bytes link_address=None,
    ):
        """Name a way for packets to leave and return its number, for requests.

        source: 4 or 16 bytes of a local address. interface: index. mark: fwmark, for policy
        routing. link_address: of the next hop, at most 8 bytes, for the packet back end.

        Raises:
            ValueError: there are 4095 paths, or an argument has the wrong length.
        """
        cdef echo_t *e = self._live()
        cdef path_t *path
        cdef Py_ssize_t width = 4 if self._family == 4 else 16
        if self._paths == PATHS_MAX:
            raise ValueError(f"at most {PATHS_MAX - 1} paths")
        if source is not None and len(source) != width:
            raise ValueError(f"source must be {width} bytes, not {len(source)}")
        if link_address is not None and len(link_address) > 8:
            raise ValueError("link_address must be at most 8 bytes")
        if e.backend == BACKEND_PACKET and (
                source is None or not interface or link_address is None):
            raise ValueError("a path of the packet back end has source, interface and link_address")
        if e.backend == BACKEND_PACKET:
            self._note_interface(interface)
        path = &e.paths[self._paths]
        if source is not None:
            memcpy(path.source, <const char *>source, <size_t>width)
            path.has_source = True
        path.interface = interface
        path.mark = mark
        path.link.sll_family = <unsigned short>AF_PACKET
        store_be16(<uint8_t *>&path.link.sll_protocol,
                   ETHERTYPE_IPV4 if self._family == 4 else ETHERTYPE_IPV6)
        path.link.sll_ifindex = interface
        if link_address is not None:
            path.link.sll_halen = <unsigned char>len(link_address)
            memcpy(path.link.sll_addr, <const char *>link_address, len(link_address))
        self._paths += 1
        return self._paths - 1

    cdef int _note_interface(self, int interface) except -1:
        """Let what comes in by an interface count."""
        cdef echo_t *e = self._e
        cdef int i
        for i in range(e.interface_count):
            if e.interfaces[i] == interface:
                return 0
        if e.interface_count == INTERFACES_MAX:
            raise ValueError(f"at most {INTERFACES_MAX} interfaces")
        e.interfaces[e.interface_count] = interface
        e.interface_count += 1  # last: the thread reads up to it
        return 0

    def submit(self, bytes requests not None):
        """Take requests (packed records) in order; return how many were taken.

        Fewer than given are taken when 8192 wait already: offer the rest again after `poll`. They
        are sent as fast as their own and the engine's pace allow, here or by the thread. A packet
        the kernel refuses completes as TX_ERROR.

        Raises:
            ValueError: not whole records, or one is out of range; then none is taken.
        """
        self._enter()
        cdef const uint8_t *records = <const uint8_t *><const char *>requests
        cdef size_t length = <size_t>len(requests)
        cdef size_t count = length // sizeof(request_t)
        cdef uint32_t taken
        try:
            self._check(records, count, length)
            with nogil:
                taken = self._put(records, count)
                self._give_turn()
            return taken
        finally:
            self._busy = False

    cdef uint32_t _put(self, const uint8_t *records, size_t count) noexcept nogil:
        """Put requests into the ring; returns how many there was room for."""
        cdef echo_t *e = self._e
        cdef uint32_t i, taken = ring_room(&e.submitted)
        if taken < count:
            atomic_store(&e.starved, 1)
        else:
            taken = <uint32_t>count
        for i in range(taken):
            memcpy(ring_record(&e.submitted, e.submitted.tail + i),
                   records + i * sizeof(request_t), sizeof(request_t))
        ring_publish(&e.submitted, taken)
        return taken

    cdef void _give_turn(self) noexcept nogil:
        """Wake the thread, or send here."""
        cdef echo_t *e = self._e
        cdef int64_t begun_ns
        cdef size_t packets
        if e.threaded:
            event_set(e.wake)
            return
        begun_ns = monotonic_ns()
        echo_take_cancellations(e)
        echo_take_steps(e)
        packets = echo_transmit(e)
        echo_publish(e)
        loop_arm(e, packets, begun_ns, monotonic_ns())

    cdef int _check(self, const uint8_t *records, size_t count, size_t length) except -1:
        """Refuse what the core must not see."""
        cdef request_t r
        cdef size_t i
        cdef bint df = self._family == 6 or self._e.backend in (BACKEND_HEADER, BACKEND_PACKET)
        if count * sizeof(request_t) != length:
            raise ValueError(f"requests must be whole records of {sizeof(request_t)} bytes")
        for i in range(count):
            memcpy(&r, records + i * sizeof(request_t), sizeof(r))
            if not 1 <= r.timeout_ns <= <uint64_t>TIMEOUT_MAX_NS:
                raise ValueError(f"request {i}: timeout_ns must be 1 to {TIMEOUT_MAX_NS}")
            if r.interval_ns > <uint64_t>INTERVAL_MAX_NS:
                raise ValueError(f"request {i}: interval_ns must be 0 to {INTERVAL_MAX_NS}")
            if not COOKIE_BYTES <= r.size <= self._largest_size:
                raise ValueError(
                    f"request {i}: size must be {COOKIE_BYTES} to {self._largest_size}")
            if r.ttl == 0:
                raise ValueError(f"request {i}: ttl must be 1 to 255")
            if r.count == 0:
                raise ValueError(f"request {i}: count must be at least 1")
            if r.path >= self._paths or (r.path == 0 and self._e.backend == BACKEND_PACKET):
                raise ValueError(f"request {i}: no path {r.path}: see add_path")
            if r.flags & ~<uint32_t>FLAG_DF or (r.flags and not df):
                raise ValueError(f"request {i}: flags must be 0"
                                 f"{' or DF' if df else f': no DF with {self._backend}, IPv4'}")
        return 0

    def cancel(self, uint64_t token):
        """Send no more packets of the run that began with this token.

        It gets a STOPPED, whose rtt_ns is the number of packets that were submitted (-1: all had
        been). What is in flight completes as ever.

        Raises:
            ValueError: 1024 cancellations wait already.
        """
        cdef echo_t *e = self._live()
        if ring_room(&e.cancelled) == 0:
            raise ValueError("too many cancellations at once: poll first")
        memcpy(ring_record(&e.cancelled, e.cancelled.tail), &token, sizeof(token))
        ring_publish(&e.cancelled, 1)
        if e.threaded:
            event_set(e.wake)
        else:
            loop_arm(e, e.deaf, monotonic_ns(), monotonic_ns())

    def poll(self, *, now_ns=None, int limit=TURN_PACKETS):
        """Return the completions there are, packed, without blocking.

        An engine without a thread takes a turn first: reads up to about `limit` packets, and
        completes the probes whose timeout has passed by now_ns (CLOCK_MONOTONIC, read before the
        call; None: now) once nothing that came in time is unread.
        """
        cdef int64_t begun_ns = monotonic_ns()
        cdef int64_t now = begun_ns if now_ns is None else now_ns
        cdef size_t packets
        cdef echo_t *e = self._enter()
        try:
            if e.threaded:
                with nogil:
                    event_clear(e.ready)
                    atomic_store(&e.ready_told, 0)
            else:
                with nogil:
                    packets = echo_turn(e, now, limit)
                    loop_arm(e, packets, begun_ns, monotonic_ns())
            return self._take()
        finally:
            self._busy = False

    cdef bytes _take(self):
        """Copy completions out of the ring; the rest of very many keeps the descriptor readable."""
        cdef echo_t *e = self._e
        cdef uint32_t count = ring_count(&e.done)
        cdef uint32_t first
        cdef bytes done
        if count > TAKE_MAX and e.threaded:
            count = TAKE_MAX
            event_set(e.ready)
        first = e.done.capacity - (e.done.head & (e.done.capacity - 1))
        if first > count:
            first = count
        done = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(count * sizeof(completion_t)))
        memcpy(<char *>done, ring_record(&e.done, e.done.head), first * sizeof(completion_t))
        memcpy(<char *>done + first * sizeof(completion_t), e.done.records,
               (count - first) * sizeof(completion_t))
        ring_release(&e.done, count)
        return done

    def note_clock_step(self):
        """Take the word of somebody who knows that the wall clock was set, as after a suspend.

        Probes in flight are then timed by CLOCK_MONOTONIC. The engine notices steps by itself too.
        """
        cdef echo_t *e = self._live()
        atomic_store(&e.step_told, e.step_told + 1)

    @property
    def family(self):
        """4 or 6."""
        return self._family

    @property
    def backend(self):
        """How packets leave."""
        return self._backend

    @property
    def access(self):
        """The kind of receiving socket: raw or datagram."""
        return "datagram" if self._backend == "datagram" else "raw"

    @property
    def ident(self):
        """The first ICMP identifier that requests carry; a datagram engine's only one."""
        return self._live().ident

    @property
    def next_turn_ns(self):
        """When the engine has something to do if nothing arrives (CLOCK_MONOTONIC); None: nothing.

        Only of an engine without a thread, whose descriptor is readable from then on.
        """
        cdef echo_t *e = self._live()
        cdef int64_t next_ns
        if e.threaded:
            raise ValueError("EchoEngine has been started")
        next_ns = echo_next_turn_ns(e, monotonic_ns())
        return None if next_ns == NEVER_NS else next_ns

    @property
    def in_flight(self):
        """How many probes wait for a reply."""
        return self._live().slab.in_flight

    @property
    def unread(self):
        """How many completions there are for `poll` to return."""
        return ring_count(&self._live().done)

    @property
    def counters(self):
        """What happened so far, by name.

        sent, tx_errors: packets the kernel took, refused. packets: read from the socket. foreign:
        other programs' packets. forged: ours but altered. malformed: not ICMP or damaged. stale:
        replies to probes no longer remembered. late_errors: ICMP errors about settled probes.
        rx_drops: packets the full receive queue dropped. clock_steps: times the wall clock was set.
        turns: how often the engine looked.
        """
        cdef echo_t *e = self._live()
        if not e.threaded:
            echo_read_queue(e)
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
            "turns": e.counters.turns,
        }


def pack_requests(
    int family, bytes addresses not None, *, uint64_t token, uint64_t timeout_ns, uint16_t size=56,
    uint8_t ttl=DEFAULT_TTL, uint8_t tos=0, uint16_t path=0, uint32_t count=1,
    uint64_t interval_ns=0, int token_shift=0, uint8_t flags=0,
):
    """Return one request record for each packed address (4 or 16 bytes each), in order.

    Request n has the token `token + (n << token_shift)`; all else is the same for all.

    Raises:
        ValueError: not whole addresses.
    """
    cdef size_t width = 4 if family == 4 else 16
    cdef size_t n = <size_t>len(addresses) // width
    cdef size_t i
    cdef request_t r
    cdef bytes packed
    if n * width != <size_t>len(addresses) or (family != 4 and family != 6):
        raise ValueError(f"addresses must be whole IPv{family} addresses")
    if not 0 <= token_shift < 64:
        raise ValueError("token_shift must be 0 to 63")
    memset(&r, 0, sizeof(r))
    r.timeout_ns = timeout_ns
    r.interval_ns = interval_ns
    r.count = count
    r.size = size
    r.path = path
    r.ttl = ttl
    r.tos = tos
    r.flags = flags
    packed = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(n * sizeof(request_t)))
    for i in range(n):
        r.token = token + (<uint64_t>i << token_shift)
        memcpy(r.destination, <const char *>addresses + i * width, width)
        memcpy(<char *>packed + i * sizeof(request_t), &r, sizeof(r))
    return packed


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
