"""ICMP and ICMPv6 echo for any number of targets over one receiving socket per family.

Requests go in and completions come out in batches, as packed records in host byte order:

* request, `REQUEST_FORMAT`: token, interval_ns, timeout_ns, destination (IPv4: first 4 of 16
  bytes), scope id (IPv6 link-local, else 0), count of packets, payload size in bytes, path
  (`add_path`; 0: the routing table's), TTL, traffic class, flags (`DF`);
* completion, `COMPLETION_FORMAT`: token, rtt_ns (-1: none), sent_ns (CLOCK_MONOTONIC), responder
  (as destination; zeros: nobody), kind, ICMP type, ICMP code, TTL of the packet that came (0: not
  known), payload size of it, clocks (`RX_KERNEL`, `TX_KERNEL`: the kernel stamped it), errno;
* trace, `TRACE_FORMAT`: token, timeout_ns, interval_ns (between rounds, with
  `TRACE_ALL_ATTEMPTS`), destination, source (zeros: what the routing table picks), scope id, flow
  number, path, destination port, payload size, method, first TTL, last TTL, attempts, gap limit,
  traffic class, flags (`TRACE_`);
* summary of a trace, `SUMMARY_FORMAT`: token, probes sent, tx_errors, late, duplicates, rx_drops,
  errno of the last refusal, answers not kept, flow label, ICMP checksum, source port, stop
  (`STOPPED_`), TTL of the end (0: unknown), first TTL, source address;
* answer, `ANSWER_FORMAT`: sent_ns (CLOCK_MONOTONIC), rtt_ns (-1: the kernel refused the probe, code
  is errno), responder, MTU (of a too-big message), place and length of its extension structure, TTL
  of the probe, attempt, kind (`ANSWER_`), ICMP type, code (a segment's flags), TTL it came with (0:
  not known), TTL and TOS it quotes, flags.

A request is a run of `count` packets to one target. The token is the caller's; packet n of a run,
counted from 0, comes back as token + n. Every packet gets exactly one REPLY, TIMEOUT, ERROR,
TX_ERROR or RX_DROP, and then any number of LATE and DUPLICATE.

A trace is a run that finds the routers on the way (`tracepath.pxd` decides what it sends). It gets
one TRACED, whose rtt_ns is a number for `take_trace`; if it is watched, a HOP for every answer:
TTL is the probe's, size its attempt, clocks the answer's kind and errno its flags.
"""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_WarnEx
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport cython
from budget cimport budget_t, keyed_open, pace_gap, pace_slack
from cookie cimport load_key
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
    DONE_HOP, DONE_RX_DROP, DONE_STOPPED, DONE_TIMEOUT, DONE_TRACED, DONE_TX_ERROR, FLAG_DF,
    INTERFACES_MAX, PATHS_MAX, SIZE_MAX, completion_t, echo_allocate, echo_free, echo_publish,
    echo_t, path_t,
)
from inflight cimport slab_open
from packet cimport store_be16
from pump cimport event_clear, event_set, loop_arm, pump_start, pump_stop
from rc cimport raise_errno
from requestcheck cimport INTERVAL_LIMIT_NS, TIMEOUT_LIMIT_NS, check_requests, check_traces
from ring cimport (
    atomic_store, atomic_swap, ring_count, ring_publish, ring_record, ring_release, ring_room,
    ring_t,
)
from schedule cimport request_t, schedule_open
from stamps cimport monotonic_ns
from sysnet cimport AF_INET, AF_INET6, AF_PACKET, close
from tracecalls cimport trace_submit, trace_taken
from traceprobe cimport TCP_PORTS, UDP_PORT_FIRST
from tracesockets cimport open_traces
from tracestate cimport (
    METHOD_ICMP, METHOD_TCP, METHOD_UDP, STOP_CANCELLED, STOP_COMPLETED, STOP_GAP_LIMIT, STOP_LOOP,
    STOP_MAX_HOPS, STOP_TX_ERROR, STOP_UNREACHABLE, TRACE_ALL, TRACE_DF, TRACE_WATCH, TRACES_MAX,
    trace_request_t, trace_t,
)

REQUEST_FORMAT = "=QQQ16sIIHHBBBx"
COMPLETION_FORMAT = "=Qqq16sBBBBHBB"
TRACE_FORMAT = "=QQQ16s16sIIHHHBBBBBBB3x"
SUMMARY_FORMAT = "=QIIIIIIIIHHBBB16sx"
ANSWER_FORMAT = "=qq16sIIHBBBBBBBBB5x"
TRACE_REQUEST_BYTES = sizeof(trace_request_t)

REPLY = DONE_REPLY
TIMEOUT = DONE_TIMEOUT
ERROR = DONE_ERROR
TX_ERROR = DONE_TX_ERROR
LATE = DONE_LATE
DUPLICATE = DONE_DUPLICATE
RX_DROP = DONE_RX_DROP
STOPPED = DONE_STOPPED
TRACED = DONE_TRACED
HOP = DONE_HOP

STOPPED_COMPLETED = STOP_COMPLETED
STOPPED_UNREACHABLE = STOP_UNREACHABLE
STOPPED_LOOP = STOP_LOOP
STOPPED_GAP_LIMIT = STOP_GAP_LIMIT
STOPPED_MAX_HOPS = STOP_MAX_HOPS
STOPPED_TX_ERROR = STOP_TX_ERROR
STOPPED_CANCELLED = STOP_CANCELLED

TRACE_ICMP = METHOD_ICMP
TRACE_UDP = METHOD_UDP
TRACE_TCP = METHOD_TCP

TRACE_FORBID_FRAGMENTS = TRACE_DF
TRACE_ALL_ATTEMPTS = TRACE_ALL
TRACE_WATCHED = TRACE_WATCH

RX_KERNEL = CLOCK_RX_KERNEL
TX_KERNEL = CLOCK_TX_KERNEL

DF = FLAG_DF

SIZE_MIN_BYTES = COOKIE_BYTES
SIZE_MAX_BYTES = SIZE_MAX
TIMEOUT_MAX_NS = <uint64_t>TIMEOUT_LIMIT_NS
INTERVAL_MAX_NS = <uint64_t>INTERVAL_LIMIT_NS
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
        self._e.traces.socket = self._e.traces.tx_socket = self._e.traces.tcp_socket = -1
        self._e.traces.routes = -1
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
        cdef bytes drawn = os.urandom(15)
        cdef bytes key = os.urandom(16) if secret is None else secret
        cdef const uint8_t *bits = <const uint8_t *><const char *>drawn
        cdef uint16_t first = <uint16_t>(<uint32_t>bits[12] << 8 | bits[13])
        if ident is not None:
            first = ident
        self._e.key = load_key(<const uint8_t *><const char *>key)
        memcpy(self._e.instance, bits, 8)
        memcpy(&self._e.serial, bits + 8, 4)
        self._e.ident = first
        self._e.traces.ident = first - 1  # pings have it and those above
        self._e.traces.ports = <uint16_t>(UDP_PORT_FIRST + (bits[14] & 31) * TCP_PORTS)
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
        if self._e.traces.tx_socket in (self._e.traces.socket, self._e.tx_socket):
            self._e.traces.tx_socket = -1
        if self._e.tx_socket == self._e.socket:
            self._e.tx_socket = -1
        for fd in (self._e.epoll, self._e.ready, self._e.wake, self._e.turn_timer,
                   self._e.step_timer, self._e.traces.routes, self._e.traces.tcp_socket,
                   self._e.traces.tx_socket, self._e.traces.socket, self._e.tx_socket,
                   self._e.socket):
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
            check_requests(self._e, records, length, self._paths, self._largest_size)
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

    def cancel(self, uint64_t token):
        """Send no more packets of the run that began with this token.

        It gets a STOPPED, whose rtt_ns is the number of packets that were submitted (-1: all had
        been). What is in flight completes as ever.

        Raises:
            ValueError: 1024 cancellations wait already.
        """
        self._cancel(&self._live().cancelled, token)

    cdef int _cancel(self, ring_t *cancelled, uint64_t token) except -1:
        """Pass a cancellation on."""
        cdef echo_t *e = self._e
        if ring_room(cancelled) == 0:
            raise ValueError("too many cancellations at once: poll first")
        memcpy(ring_record(cancelled, cancelled.tail), &token, sizeof(token))
        ring_publish(cancelled, 1)
        if e.threaded:
            event_set(e.wake)
        else:
            loop_arm(e, e.deaf, monotonic_ns(), monotonic_ns())

    def open_traces(self, uint32_t methods):
        """Open what traces by these methods (TRACE_ bits) need; what is open stays.

        Raises:
            OSError: a socket could not be opened or set up; PermissionError without the privilege.
            ValueError: a datagram engine traces by TRACE_ICMP only.
        """
        cdef echo_t *e = self._live()
        if methods == 0 or methods & ~<uint32_t>(METHOD_ICMP | METHOD_UDP | METHOD_TCP):
            raise ValueError(f"methods must be TRACE_ bits, not {methods}")
        if e.backend == BACKEND_DATAGRAM and methods != METHOD_ICMP:
            raise ValueError("a datagram engine traces by ICMP only")
        open_traces(e, methods)

    def submit_traces(self, bytes traces not None):
        """Take traces (packed records) in order; return how many were taken.

        Fewer than given are taken when many wait or have not been taken back: offer the rest again
        after `poll`. One without a route ends at once.

        Raises:
            ValueError: not whole records, or one is out of range; then none is taken.
        """
        cdef const uint8_t *records = <const uint8_t *><const char *>traces
        cdef size_t length = <size_t>len(traces)
        cdef uint32_t taken
        self._enter()
        try:
            check_traces(self._e, records, length, self._paths)
            with nogil:
                taken = trace_submit(self._e, records, length // sizeof(trace_request_t))
                self._give_turn()
            return taken
        finally:
            self._busy = False

    def cancel_trace(self, uint64_t token):
        """Send no more of a trace; its TRACED comes with what was seen so far.

        Raises:
            ValueError: 1024 cancellations wait already, or `open_traces` was never called.
        """
        self._cancel(&self._live().traces.cancelled, token)

    def take_trace(self, uint32_t number):
        """Return what an ended trace saw, and forget it: a summary, answers and extensions, packed.

        Behind the summary are the attempts at each TTL that was tried, a byte each.

        Raises:
            ValueError: no trace with this number has ended.
        """
        cdef echo_t *e = self._live()
        cdef trace_t *t = NULL
        cdef tuple taken
        if e.traces.live != NULL and number < TRACES_MAX:
            t = e.traces.live[number]
        if t == NULL or not t.is_ended or t.is_taken:
            raise ValueError(f"no trace {number} has ended")
        taken = trace_taken(t)
        t.is_taken = True
        memcpy(ring_record(&e.traces.returned, e.traces.returned.tail), &number, sizeof(number))
        ring_publish(&e.traces.returned, 1)
        if atomic_swap(&e.traces.wants_number, 0) and e.threaded:
            event_set(e.wake)
        return taken

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


def pack_traces(
    int family, bytes addresses not None, bytes source=None, *, uint64_t token, uint64_t timeout_ns,
    uint8_t method=METHOD_ICMP, uint16_t port=0, uint32_t flow=0, uint8_t first_ttl=1,
    uint8_t last_ttl=30, uint8_t attempts=3, uint8_t gap_limit=5, uint16_t size=20, uint8_t tos=0,
    uint16_t path=0, uint64_t interval_ns=0, uint8_t flags=0, uint32_t scope=0,
):
    """Return one trace record for each packed address (4 or 16 bytes each), in order.

    Trace n has the token `token + n`; all else is the same for all. source: 4 or 16 bytes, None:
    what the routing table picks.

    Raises:
        ValueError: not whole addresses.
    """
    cdef size_t width = 4 if family == 4 else 16
    cdef size_t n = <size_t>len(addresses) // width
    cdef size_t i
    cdef trace_request_t r
    cdef bytes packed
    if n * width != <size_t>len(addresses) or (family != 4 and family != 6):
        raise ValueError(f"addresses must be whole IPv{family} addresses")
    if source is not None and <size_t>len(source) != width:
        raise ValueError(f"source must be {width} bytes, not {len(source)}")
    memset(&r, 0, sizeof(r))
    if source is not None:
        memcpy(r.source, <const char *>source, width)
    r.timeout_ns = timeout_ns
    r.interval_ns = interval_ns
    r.scope = scope
    r.flow = flow
    r.path = path
    r.port = port
    r.size = size
    r.method = method
    r.first_ttl = first_ttl
    r.last_ttl = last_ttl
    r.attempts = attempts
    r.gap_limit = gap_limit
    r.tos = tos
    r.flags = flags
    packed = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(n * sizeof(trace_request_t)))
    for i in range(n):
        r.token = token + i
        memcpy(r.destination, <const char *>addresses + i * width, width)
        memcpy(<char *>packed + i * sizeof(trace_request_t), &r, sizeof(r))
    return packed
