"""TTL-stepped ICMP echo probes: many traces on one pair of raw sockets per family.

Not thread-safe: one event loop owns a socket. Waiting is the caller's (`fileno`, then `pump`).
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

cdef extern from "Python.h":
    int PyErr_WarnEx(object category, const char *message, Py_ssize_t level)
    void PyErr_WriteUnraisable(PyObject *context)

from cookie cimport load_key
from packet cimport PARSE_FOREIGN, PARSE_OK
from quote cimport COOKIE_BYTES, answer_t, parse_answer
from rc cimport check, raise_errno
from stamps cimport await_stamping, step_timer_arm, step_timer_open, wall_sample, wall_t
from sysnet cimport (
    AF_INET, AF_INET6, NETSONDE_MEMINFO_DROPS, NETSONDE_MEMINFO_VARS, SO_MEMINFO, SO_RCVBUF,
    SO_RCVBUFFORCE, SOL_SOCKET, close, errno, getrandom, getsockopt, setsockopt, socklen_t,
)
from tracepump cimport (
    ANSWER_DUPLICATE, ANSWER_TRANSLATED, ANSWER_USER_CLOCK, BATCH, arrays_t, event_t, pump_t,
    queued_t, run_pump, settle_stamp,
)
from tracesockets cimport look_up_source, open_answers, open_probes, open_routes
from tracetable cimport (
    ATTEMPTS_LIMIT, MATCH_FOREIGN, MATCH_FORGED, MATCH_OURS, PACKET_BYTES_MAX,
    PROBE_QUEUED, PROBE_SENT, PROBE_UNSENT, TRACES_LIMIT, build_probe, match_answer, match_t,
    probe_t, table_free, table_init, table_t, trace_begin, trace_end, trace_find, trace_handle,
    trace_probe, trace_t,
)

cdef enum:
    SECRET_BYTES = 16
    QUEUE_LIMIT = 1 << 20      # probes waiting to be sent: 16 MB
    EVENTS_LIMIT = 65536       # events of one pump: 4 MB

DUPLICATE = ANSWER_DUPLICATE
USER_CLOCK = ANSWER_USER_CLOCK
TRANSLATED = ANSWER_TRANSLATED
FORGED = MATCH_FORGED
FOREIGN = MATCH_FOREIGN
MALFORMED = -3


cdef int require_range(object name, long value, long low, long high) except -1:
    if value < low or value > high:
        raise ValueError(f"{name} must be {low} to {high}, not {value}")
    return 0


cdef int require_traces(long traces_max) except -1:
    return require_range("traces_max", traces_max, 1, TRACES_LIMIT)


cdef int require_steps(int first_ttl, int last_ttl, int attempts) except -1:
    require_range("first_ttl", first_ttl, 1, 255)
    require_range("last_ttl", last_ttl, first_ttl, 255)
    require_range("attempts", attempts, 1, ATTEMPTS_LIMIT)
    return 0


cdef int copy_address(table_t *table, bytes address, uint8_t *out) except -1:
    cdef const uint8_t *p = address
    if <size_t>len(address) != table.address_bytes:
        raise ValueError(f"address must be {table.address_bytes} bytes, not {len(address)}")
    memcpy(out, p, table.address_bytes)
    return 0


cdef trace_t *live_trace(table_t *table, uint64_t handle) except NULL:
    cdef trace_t *trace = trace_find(table, handle)
    if trace == NULL:
        raise ValueError(f"trace {handle} is not live: it was ended or never begun")
    return trace


cdef int opened(int fd, const char **step) except -1:
    """Return fd, or raise for errno when the step of opening it failed."""
    if fd < 0:
        raise_errno(errno, step[0].decode("ascii"))
    return fd


cdef int draw(void *out, size_t n) except -1:
    """Fill n bytes from the kernel's random source."""
    cdef Py_ssize_t got = getrandom(out, n, 0)
    if got != <Py_ssize_t>n:
        raise_errno(errno, "getrandom")
    return 0


@cython.final
cdef class TraceSocket:
    """The sockets of one address family and every trace on them; one event loop owns it.

    family: AF_INET or AF_INET6. traces_max: traces that can be live at once, at most 65536; at the
    limit `begin` returns None. queue_max: probes waiting to be sent; at the limit `submit` takes
    fewer. receive_buffer_bytes is asked for; the kernel caps it at net.core.rmem_max unless
    CAP_NET_ADMIN is there. Opening waits, at most 5 ms, until the kernel stamps what arrives.

    Raises:
        PermissionError: CAP_NET_RAW is missing.
        OSError: a socket could not be opened or set up; errno kept.
        ValueError: an argument is out of range.
    """

    cdef table_t _table
    cdef pump_t _pump
    cdef int _routes_fd
    cdef uint32_t _events_room
    cdef bint _is_open
    cdef bint _is_pumping

    def __cinit__(
        self, int family, *, long traces_max=4096, long queue_max=65536,
        long receive_buffer_bytes=4194304,
    ):
        cdef uint8_t secret[SECRET_BYTES]
        cdef uint16_t ident_base = 0
        self._pump.tx_fd = self._pump.rx_fd = self._pump.step_fd = self._routes_fd = -1
        if family != AF_INET and family != AF_INET6:
            raise ValueError(f"family must be AF_INET or AF_INET6, not {family}")
        require_traces(traces_max)
        require_range("queue_max", queue_max, 1, QUEUE_LIMIT)
        require_range("receive_buffer_bytes", receive_buffer_bytes, 4096, 1 << 30)
        draw(secret, SECRET_BYTES)
        draw(&ident_base, sizeof(ident_base))
        if table_init(&self._table, 4 if family == AF_INET else 6, <uint32_t>traces_max,
                      load_key(secret), ident_base) < 0:
            raise MemoryError
        self._pump.queue_max = <uint32_t>queue_max
        self._pump.queue = <queued_t *>calloc(<size_t>queue_max, sizeof(queued_t))
        self._pump.arrays = <arrays_t *>calloc(1, sizeof(arrays_t))
        if self._pump.queue == NULL or self._pump.arrays == NULL:
            raise MemoryError
        self._open(<int>receive_buffer_bytes)

    cdef int _open(self, int receive_buffer_bytes) except -1:
        cdef int version = self._table.version
        cdef const char *step = NULL
        self._is_open = True
        try:
            self._pump.rx_fd = opened(open_answers(
                version, self._table.ident_base, self._table.traces_max, &step), &step)
            self._pump.tx_fd = opened(open_probes(version, &step), &step)
            self._routes_fd = opened(open_routes(version, &step), &step)
            if setsockopt(self._pump.rx_fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer_bytes,
                          sizeof(receive_buffer_bytes)) < 0:
                check(setsockopt(self._pump.rx_fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes,
                                 sizeof(receive_buffer_bytes)), "set SO_RCVBUF")
            self._pump.step_fd = check(step_timer_open(), "open clock-step timer")
            check(step_timer_arm(self._pump.step_fd), "arm clock-step timer")
        except OSError:
            self._release()
            raise
        with nogil:
            await_stamping()
            wall_sample(&self._pump.wall)
        return 0

    cdef void _release(self) noexcept:
        """Close every descriptor; the memory stays until the object goes."""
        self._is_open = False
        if self._pump.tx_fd >= 0:
            close(self._pump.tx_fd)
        if self._pump.rx_fd >= 0:
            close(self._pump.rx_fd)
        if self._pump.step_fd >= 0:
            close(self._pump.step_fd)
        if self._routes_fd >= 0:
            close(self._routes_fd)
        self._pump.tx_fd = self._pump.rx_fd = self._pump.step_fd = self._routes_fd = -1

    cdef int _require_ready(self) except -1:
        if not self._is_open:
            raise ValueError("the trace socket is closed")
        if self._is_pumping:
            raise RuntimeError("the trace socket is in use by another thread")
        return 0

    def fileno(self):
        """Return the descriptor that becomes readable when `pump` has answers to take."""
        self._require_ready()
        return self._pump.rx_fd

    def send_fileno(self):
        """Return the descriptor that becomes writable when `pump` can send what is queued."""
        self._require_ready()
        return self._pump.tx_fd

    @property
    def closed(self):
        """Whether `close` was called."""
        return not self._is_open

    @property
    def traces_max(self):
        """How many traces can be live at once."""
        return self._table.traces_max

    @property
    def traces(self):
        """How many traces are live."""
        return self._table.traces_max - self._table.free_count

    @property
    def queued(self):
        """How many probes the kernel has not been given yet."""
        return self._pump.queue_count

    def begin(
        self, bytes destination, *, unsigned int scope_id=0, int first_ttl=1, int last_ttl=30,
        int attempts=3,
    ):
        """Reserve a slot for a trace and return its handle, or None when traces_max are live.

        destination: 4 or 16 bytes. scope_id: interface index, for link-local IPv6. The source
        address is the one the kernel picks now, for all of the trace's probes.

        Raises:
            OSError: there is no route to the destination; errno kept.
            ValueError: an argument is out of range.
        """
        cdef uint8_t target[16]
        cdef uint8_t source[16]
        cdef trace_t *trace
        cdef int status
        self._require_ready()
        require_steps(first_ttl, last_ttl, attempts)
        copy_address(&self._table, destination, target)
        if self._table.free_count == 0:
            return None
        status = look_up_source(&self._table, self._routes_fd, target, scope_id, source)
        if status != 0:
            raise_errno(status, "look up route")
        trace = trace_begin(
            &self._table, source, target, <uint8_t>first_ttl, <uint8_t>last_ttl,
            <uint8_t>attempts)
        if trace == NULL:
            raise MemoryError
        trace.scope_id = scope_id
        return trace_handle(trace, <uint32_t>(trace - self._table.slots))

    def end(self, uint64_t trace):
        """Give the trace's slot back: what is queued is not sent, later answers are foreign."""
        self._require_ready()
        trace_end(&self._table, live_trace(&self._table, trace))

    def flow(self, uint64_t trace):
        """Return what routers hash: source address, ICMP checksum, IPv6 flow label."""
        cdef trace_t *found = live_trace(&self._table, trace)
        cdef uint8_t *source = found.source
        return source[:self._table.address_bytes], found.checksum, found.flow_label

    def progress(self, uint64_t trace):
        """Return how many probes still wait to be sent, and when the last one went out."""
        cdef trace_t *found = live_trace(&self._table, trace)
        return found.waiting, found.last_sent_ns

    def submit(self, uint64_t trace, int attempt, bytes ttls):
        """Queue one probe per TTL and return how many fitted; `pump` sends them.

        Raises:
            ValueError: a probe is outside what `begin` announced, or was submitted before.
        """
        cdef trace_t *found
        cdef probe_t *probe
        cdef queued_t *item
        cdef const uint8_t *steps = ttls
        cdef Py_ssize_t i
        self._require_ready()
        found = live_trace(&self._table, trace)
        for i in range(len(ttls)):
            probe = trace_probe(found, steps[i], attempt) if attempt >= 0 else NULL
            if probe == NULL or probe.state != PROBE_UNSENT:
                raise ValueError(
                    f"probe TTL {steps[i]} attempt {attempt} was not announced or is submitted")
            if self._pump.queue_count == self._pump.queue_max:
                return i
            item = &self._pump.queue[
                (self._pump.queue_head + self._pump.queue_count) % self._pump.queue_max]
            item.handle = trace
            item.ttl = steps[i]
            item.attempt = <uint8_t>attempt
            probe.state = PROBE_QUEUED
            found.waiting += 1
            self._pump.queue_count += 1
        return len(ttls)

    def pump(self, long limit=4096):
        """Send what is queued and take what came; never blocks.

        limit: events to return at most, at least 64; the rest comes with the next call.

        Returns:
            the answers, oldest first, and the probes the kernel refused. An answer: trace, ttl,
            attempt, icmp_type, icmp_code, responder, tx_ns, rx_ns (both CLOCK_MONOTONIC,
            rx_ns >= tx_ns), reply_ttl, quoted_ttl, quoted_tos (0 in an echo reply), flags. A
            refusal: trace, ttl, attempt, errno. Foreign and malformed packets are only counted.
        """
        self._require_ready()
        require_range("limit", limit, BATCH, EVENTS_LIMIT)
        self._reserve(<uint32_t>limit)
        self._is_pumping = True
        try:
            with nogil:
                run_pump(&self._table, &self._pump)
            return self._collect()
        finally:
            self._is_pumping = False

    cdef int _reserve(self, uint32_t limit) except -1:
        """Make room for limit events; the room is kept from pump to pump."""
        cdef event_t *events
        if limit > self._events_room:
            events = <event_t *>realloc(self._pump.events, limit * sizeof(event_t))
            if events == NULL:
                raise MemoryError
            self._pump.events = events
            self._events_room = limit
        self._pump.events_max = limit
        return 0

    cdef tuple _collect(self):
        cdef list answers = []
        cdef list refusals = []
        cdef event_t *event
        cdef uint8_t *responder
        cdef uint32_t i
        for i in range(self._pump.events_count):
            event = &self._pump.events[i]
            if event.error:
                refusals.append((event.handle, event.ttl, event.attempt, event.error))
                continue
            responder = event.responder
            answers.append((
                event.handle, event.ttl, event.attempt, event.type, event.code,
                responder[:self._table.address_bytes], event.tx_ns, event.rx_ns,
                event.reply_ttl, event.quoted_ttl, event.quoted_tos, event.flags))
        return answers, refusals

    def counters(self):
        """Return what happened since the start.

        sent: accepted by the kernel. tx_errors: refused. received: messages taken. matched: first
        answers; duplicates: further ones. foreign: not ours. forged: named a probe of ours and
        did not fit it. malformed: damaged or cut. rx_drops: lost on a full receive buffer.
        clock_steps: how often the wall clock was seen to step.
        """
        cdef uint32_t memory[16]
        cdef socklen_t length = sizeof(memory)
        self._require_ready()
        memset(memory, 0, sizeof(memory))
        # The control message's count arrives with a later packet; this one is of now.
        if (getsockopt(self._pump.rx_fd, SOL_SOCKET, SO_MEMINFO, memory, &length) == 0
                and length >= NETSONDE_MEMINFO_VARS * sizeof(uint32_t)):
            self._pump.counters.rx_drops = memory[NETSONDE_MEMINFO_DROPS]
        return {
            "sent": self._pump.counters.sent,
            "tx_errors": self._pump.counters.tx_errors,
            "received": self._pump.counters.received,
            "matched": self._pump.counters.matched,
            "duplicates": self._pump.counters.duplicates,
            "foreign": self._pump.counters.foreign,
            "forged": self._pump.counters.forged,
            "malformed": self._pump.counters.malformed,
            "rx_drops": self._pump.counters.rx_drops,
            "clock_steps": self._pump.wall.steps,
        }

    def close(self):
        """Close the sockets; idempotent."""
        if self._is_pumping:
            raise RuntimeError("the trace socket is in use by another thread")
        self._release()

    def __enter__(self):
        self._require_ready()
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def __dealloc__(self):
        if self._is_open:
            self._release()
            warn_unclosed()
        table_free(&self._table)
        free(self._pump.queue)
        free(self._pump.events)
        free(self._pump.arrays)


cdef void warn_unclosed() noexcept:
    if PyErr_WarnEx(ResourceWarning, "unclosed TraceSocket", 1) < 0:
        PyErr_WriteUnraisable(<PyObject *>NULL)  # warnings are errors, and nobody can catch this


@cython.final
cdef class TraceTable:
    """The identity of probes without a socket: what TraceSocket sends and believes.

    version: 4 or 6. secret: 16 bytes that key cookies and checksums.

    Raises:
        ValueError: an argument is out of range.
    """

    cdef table_t _table

    def __cinit__(
        self, int version, bytes secret, *, long traces_max=4096, uint16_t ident_base=0,
    ):
        cdef const uint8_t *key = secret
        if version != 4 and version != 6:
            raise ValueError(f"version must be 4 or 6, not {version}")
        require_traces(traces_max)
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"secret must be {SECRET_BYTES} bytes, not {len(secret)}")
        if table_init(&self._table, version, <uint32_t>traces_max, load_key(key), ident_base) < 0:
            raise MemoryError

    def __dealloc__(self):
        table_free(&self._table)

    def begin(
        self, bytes source, bytes destination, *, int first_ttl=1, int last_ttl=30,
        int attempts=3,
    ):
        """Reserve a slot and return the trace's handle, or None when traces_max are live."""
        cdef uint8_t mine[16]
        cdef uint8_t target[16]
        cdef trace_t *trace
        require_steps(first_ttl, last_ttl, attempts)
        copy_address(&self._table, source, mine)
        copy_address(&self._table, destination, target)
        trace = trace_begin(
            &self._table, mine, target, <uint8_t>first_ttl, <uint8_t>last_ttl, <uint8_t>attempts)
        if trace == NULL:
            return None
        return trace_handle(trace, <uint32_t>(trace - self._table.slots))

    def end(self, uint64_t trace):
        """Give the trace's slot back."""
        trace_end(&self._table, live_trace(&self._table, trace))

    def packet(self, uint64_t trace, int ttl, int attempt):
        """Return a probe with its IP header as it goes to the kernel, and count it as sent.

        Raises:
            ValueError: the trace has no such probe.
        """
        cdef uint8_t data[PACKET_BYTES_MAX]
        cdef uint8_t *p = data
        cdef trace_t *found = live_trace(&self._table, trace)
        cdef probe_t *probe = trace_probe(found, ttl, attempt) if attempt >= 0 else NULL
        cdef size_t n
        if probe == NULL:
            raise ValueError(f"trace {trace} has no probe TTL {ttl} attempt {attempt}")
        probe.state = PROBE_SENT
        n = build_probe(&self._table, found, ttl, attempt, p)
        return p[:n]

    def match(self, bytes packet):
        """Return whose answer packet is: trace, ttl, attempt, translated; or a code below 0.

        packet: IPv4 with its header, or an ICMPv6 message.
        """
        cdef const uint8_t *p = packet
        cdef answer_t answer
        cdef match_t found
        cdef int status = parse_answer(self._table.version, p, len(packet), &answer)
        if status != PARSE_OK:
            return FOREIGN if status == PARSE_FOREIGN else MALFORMED
        status = match_answer(&self._table, &answer, &found)
        if status != MATCH_OURS:
            return status
        return (trace_handle(found.trace, found.slot), found.ttl, found.attempt,
                found.is_translated != 0)


def parse(int version, bytes packet):
    """Read packet as an answer: why it is none (below 0), or its fields.

    version 4: an IPv4 packet; 6: an ICMPv6 message.

    Returns:
        type, code, reply_ttl, ident, sequence, checksum, quoted_ttl, quoted_tos, source,
        destination, cookie; the last three empty when not quoted.
    """
    cdef const uint8_t *p = packet
    cdef size_t n = 4 if version == 4 else 16
    cdef answer_t answer
    cdef int status
    if version != 4 and version != 6:
        raise ValueError(f"version must be 4 or 6, not {version}")
    status = parse_answer(version, p, len(packet), &answer)
    if status != PARSE_OK:
        return status
    return (
        answer.type, answer.code, answer.reply_ttl, answer.ident, answer.sequence,
        answer.checksum, answer.quoted_ttl, answer.quoted_tos,
        b"" if answer.source == NULL else answer.source[:n],
        b"" if answer.destination == NULL else answer.destination[:n],
        b"" if answer.cookie == NULL else answer.cookie[:COOKIE_BYTES])


def settle(int64_t stamp_ns, int64_t offset_ns, int64_t tx_ns, int64_t rx_user_ns):
    """Return when an answer came, on CLOCK_MONOTONIC, and whether the kernel's stamp was believed.

    stamp_ns: the kernel's, CLOCK_REALTIME; 0: none. offset_ns: REALTIME - MONOTONIC.
    """
    cdef uint8_t flags = 0
    cdef wall_t wall = wall_t(low_ns=offset_ns, high_ns=offset_ns, steps=0, known=True)
    cdef int64_t rx_ns = settle_stamp(&wall, stamp_ns, tx_ns, rx_user_ns, &flags)
    return rx_ns, not flags & ANSWER_USER_CLOCK
