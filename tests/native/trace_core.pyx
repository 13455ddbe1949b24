"""The trace engine's core for Python tests: packets out, packets in, clocks that the test turns."""

from collections import namedtuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport cython
from echo cimport (
    echo_fill_batch, echo_keep_gaps, echo_next_turn_ns, echo_take_cancellations,
)
from echoreceive cimport echo_note_overflow
from echosend cimport echo_file, echo_refuse
from echostate cimport (
    BACKEND_DATAGRAM, BACKEND_RAW, DONE_HOP, DONE_TRACED, completion_t, echo_publish, echo_t,
)
from native.echo_door cimport delivery_t, door_arrive, door_close, door_report
from native.trace_door cimport (
    DOOR_TRACE_IDENT, DOOR_TRACE_PORTS, door_expire, door_open_traces, door_packet,
    door_packet_bytes, door_return, door_segment, door_submit,
)
from ring cimport ring_count, ring_publish, ring_record, ring_release
from stamps cimport wall_merge, wall_stepped
from sysnet cimport SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, sock_extended_err
from tracecalls cimport trace_taken
from traceprobe cimport PAYLOAD_MIN, trace_draw_flow
from tracestate cimport (
    METHOD_ICMP, METHOD_TCP, METHOD_UDP, TRACES_MAX, probe_trace, trace_request_t, trace_t,
)

Sent = namedtuple("Sent", "token ttl attempt packet")
Hop = namedtuple(
    "Hop",
    "token ttl attempt kind icmp_type icmp_code flags responder sent_ns rtt_ns")
Ended = namedtuple("Ended", "token number")

IDENT = DOOR_TRACE_IDENT
PORTS = DOOR_TRACE_PORTS
METHODS = {"icmp": METHOD_ICMP, "udp": METHOD_UDP, "tcp": METHOD_TCP}


@cython.final
cdef class TraceCore:
    """An engine of one family without sockets. Two of one secret share the key of their flows."""

    cdef echo_t *_e
    cdef int _width

    def __cinit__(
        self, int family, *, bint datagram=False, uint32_t slots=0, uint8_t secret=7,
    ):
        if family != 4 and family != 6:
            raise ValueError(f"family must be 4 or 6, not {family}")
        self._width = 4 if family == 4 else 16
        self._e = <echo_t *>calloc(1, sizeof(echo_t))
        if self._e == NULL or door_open_traces(
                self._e, family, BACKEND_DATAGRAM if datagram else BACKEND_RAW, secret) < 0:
            raise MemoryError
        if slots:
            self._e.traces.slab.capacity = slots

    def __dealloc__(self):
        if self._e != NULL:
            door_close(self._e)
            free(self._e)

    def submit(
        self, uint64_t token, bytes destination not None, *, str method="icmp", uint16_t port=0,
        uint32_t flow=0, uint8_t first_ttl=1, uint8_t last_ttl=30, uint8_t attempts=3,
        uint8_t gap_limit=5, int64_t timeout_ns=1_500_000_000, int64_t interval_ns=0,
        uint16_t size=20, uint8_t tos=0, uint8_t flags=0, bytes source=None, uint32_t error=0,
    ):
        """Ask for a trace; return its flow: ICMP checksum, source port, flow label.

        source: this host's address unless given. error: why there is no route, 0 when there is.
        """
        cdef trace_request_t r
        cdef trace_t drawn
        if len(destination) != self._width or size < PAYLOAD_MIN or not 0 < first_ttl <= last_ttl:
            raise ValueError("no such address, size or TTL")
        memset(&r, 0, sizeof(r))
        r.token = token
        r.method = METHODS[method]
        r.port = port
        r.flow = flow
        r.first_ttl = first_ttl
        r.last_ttl = last_ttl
        r.attempts = attempts
        r.gap_limit = gap_limit
        r.timeout_ns = timeout_ns
        r.interval_ns = interval_ns
        r.size = size
        r.tos = tos
        r.flags = flags
        memcpy(r.destination, <const char *>destination, self._width)
        if source is not None:
            memcpy(r.source, <const char *>source, len(source))
        if not door_submit(self._e, &r, error):
            raise MemoryError
        drawn.request = r
        trace_draw_flow(&self._e.traces, self._e.key, &drawn, self._width == 4)
        return drawn.checksum, drawn.source_port, drawn.flow_label

    def cancel(self, uint64_t token):
        """Ask for a trace to be ended."""
        memcpy(ring_record(&self._e.traces.cancelled, self._e.traces.cancelled.tail), &token,
               sizeof(token))
        ring_publish(&self._e.traces.cancelled, 1)

    cdef object _hand_over(self, size_t at, int64_t now_ns, int refused):
        """Let the kernel take a prepared message, or refuse it."""
        cdef uint64_t token = self._e.traces.slab.slots[self._e.tx[at].slot].token
        cdef bytes packet = PyBytes_FromStringAndSize(
            NULL, <Py_ssize_t>door_packet_bytes(self._e, at))
        cdef trace_t *trace = probe_trace(&self._e.traces, token)
        n = door_packet(self._e, at, <uint8_t *><char *>packet)
        sent = Sent(trace.request.token, token >> 8 & 0xFF, token & 0xFF, packet[:n])
        if refused:
            echo_refuse(self._e, at, refused, now_ns)
        else:
            echo_file(self._e, at, 1, now_ns, now_ns)
        return sent

    def turn(self, int64_t now_ns, *, int refused=0):
        """Send what is due; return what the wire gets, or with an errno what it would have got."""
        cdef list sent = []
        cdef size_t at, filled = 1
        echo_take_cancellations(self._e)
        while filled and self._e.blocked_until_ns <= now_ns:
            self._e.blocked_until_ns = 0
            filled = echo_fill_batch(self._e, now_ns)
            sent += [self._hand_over(at, now_ns, refused) for at in range(filled)]
            echo_keep_gaps(self._e, filled, now_ns)
        echo_publish(self._e)
        return sent

    def next_turn_ns(self, int64_t now_ns):
        """Return when the next turn is due if nothing arrives."""
        return echo_next_turn_ns(self._e, now_ns)

    def expire(self, int64_t now_ns):
        """Time out and forget what is due."""
        door_expire(self._e, now_ns)

    cdef delivery_t _delivery(
        self, bytes data, int64_t stamp_ns, int64_t user_ns, bytes source, int hops,
    ):
        cdef delivery_t d
        memset(&d, 0, sizeof(d))
        if source is not None and len(source) != self._width:
            raise ValueError("no such address")
        d.data = <const uint8_t *><const char *>data
        d.n = <size_t>len(data)
        d.source = NULL if source is None else <const uint8_t *><const char *>source
        d.stamp_ns = stamp_ns
        d.user_ns = user_ns
        d.hops = hops
        return d

    def arrive(
        self, bytes packet not None, int64_t stamp_ns, int64_t user_ns, *,
        bytes source=None, int hops=0, bint tcp=False,
    ):
        """Take in what the ICMP or the TCP socket hands out: of a raw IPv4 one the whole packet.

        stamp_ns: CLOCK_REALTIME, 0 for none. user_ns: CLOCK_MONOTONIC when it was read.
        source: the socket address that comes with it.
        """
        cdef delivery_t d = self._delivery(packet, stamp_ns, user_ns, source, hops)
        if tcp:
            door_segment(self._e, &d)
        else:
            door_arrive(self._e, &d)

    def report(
        self, bytes message not None, int64_t stamp_ns, int64_t user_ns, *, uint8_t type_,
        uint8_t code, bytes destination not None, bytes offender not None,
    ):
        """Take in an ICMP error from the error queue, about a request of ours from ICMP on."""
        cdef delivery_t d = self._delivery(message, stamp_ns, user_ns, destination, 0)
        cdef sock_extended_err error
        memset(&error, 0, sizeof(error))
        error.ee_origin = <uint8_t>(
            SO_EE_ORIGIN_ICMP if self._width == 4 else SO_EE_ORIGIN_ICMP6)
        error.ee_type = type_
        error.ee_code = code
        if len(offender) != self._width:
            raise ValueError("no such address")
        door_report(self._e, &d, &error, <const uint8_t *><const char *>offender)

    def sample_clocks(self, int64_t low_ns, int64_t high_ns):
        """Learn an interval that CLOCK_REALTIME - CLOCK_MONOTONIC lies in."""
        wall_merge(&self._e.wall, low_ns, high_ns)

    def note_step(self):
        """Learn that the wall clock was set."""
        wall_stepped(&self._e.wall)

    def overflow(self, uint32_t packets):
        """Learn that the receive queue had no room for so many packets."""
        echo_note_overflow(self._e, packets)

    def events(self):
        """Return what happened since the last call: answers of watched traces, ends of all."""
        cdef completion_t *c
        cdef list done = []
        while ring_count(&self._e.done):
            c = <completion_t *>ring_record(&self._e.done, self._e.done.head)
            if c.kind == DONE_TRACED:
                done.append(Ended(c.token, c.rtt_ns))
            elif c.kind == DONE_HOP:
                done.append(Hop(
                    c.token, c.ttl, c.size, c.clocks, c.icmp_type, c.icmp_code, c.error,
                    c.responder[:self._width], c.sent_ns, c.rtt_ns))
            else:
                raise AssertionError(f"a completion of kind {c.kind}")
            ring_release(&self._e.done, 1)
        return done

    def take(self, uint32_t number):
        """Return what an ended trace saw, as EchoEngine.take_trace does, and give it back."""
        cdef trace_t *t = self._e.traces.live[number] if number < TRACES_MAX else NULL
        if t == NULL or not t.is_ended:
            raise ValueError(f"no trace {number} has ended")
        taken = trace_taken(t)
        door_return(self._e, number)
        return taken

    def waiting(self):
        """Return how many probes the traces that have not ended wait for, by token and TTL."""
        cdef dict found = {}
        cdef trace_t *t
        for number in range(TRACES_MAX):
            t = self._e.traces.live[number]
            if t == NULL or t.is_ended:
                continue
            for ttl in range(t.request.first_ttl, t.request.last_ttl + 1):
                if t.hops[ttl].waiting:
                    found[t.request.token, ttl] = t.hops[ttl].waiting
        return found

    @property
    def running(self):
        """How many traces have been taken up and have not ended."""
        return self._e.traces.count

    @property
    def scheduled(self):
        """How many runs wait for their turn."""
        return self._e.schedule.count

    @property
    def in_flight(self):
        """How many probes wait for an answer, of traces that have ended too."""
        return self._e.traces.slab.in_flight

    @property
    def steps(self):
        """How often the wall clock was seen to step."""
        return self._e.wall.steps

    @property
    def counters(self):
        """What was refused, by reason, and what was taken in."""
        return {
            "packets": self._e.counters.packets,
            "foreign": self._e.counters.foreign,
            "forged": self._e.counters.forged,
            "malformed": self._e.counters.malformed,
            "stale": self._e.counters.stale,
            "late_errors": self._e.counters.late_errors,
            "rx_drops": self._e.counters.rx_drops,
        }
