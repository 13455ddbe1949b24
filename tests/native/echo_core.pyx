"""The echo engine's core for Python tests: packets out, packets in, clocks that the test turns."""

from collections import namedtuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport cython
from echoreceive cimport echo_expire, echo_note_overflow
from echosend cimport echo_can_receive
from echostamp cimport echo_lose_stamps, echo_renumber_stamps, echo_resume_stamps
from echostate cimport (
    BACKEND_DATAGRAM, BACKEND_RAW, CLOCK_RX_KERNEL, COOKIE_BYTES, SIZE_MAX, completion_t,
    echo_publish, echo_t,
)
from inflight cimport SLOT_NIL, slab_open, slab_reserve
from native.echo_door cimport (
    DOOR_HEADER_BYTES, DOOR_IDENT, delivery_t, door_arrive, door_close, door_open, door_report,
    door_send,
)
from ring cimport ring_count, ring_record, ring_release
from schedule cimport request_t
from stamps cimport wall_merge, wall_stepped
from sysnet cimport (
    SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_TIMESTAMPING, sock_extended_err,
)

Completion = namedtuple(
    "Completion", "token kind rtt_ns sent_ns responder icmp_type icmp_code ttl size clocks")

IDENT = DOOR_IDENT


@cython.final
cdef class EchoCore:
    """An engine of one family without sockets. Two of one secret share the key of their cookies."""

    cdef echo_t *_e
    cdef int _width

    def __cinit__(
        self, int family, *, bint datagram=False, bint exact=False, uint32_t capacity=1 << 16,
        int64_t linger_ns=3_000_000_000, uint8_t secret=7,
    ):
        if family != 4 and family != 6:
            raise ValueError(f"family must be 4 or 6, not {family}")
        self._width = 4 if family == 4 else 16
        self._e = <echo_t *>calloc(1, sizeof(echo_t))
        if self._e == NULL or door_open(
                self._e, family, BACKEND_DATAGRAM if datagram else BACKEND_RAW, exact,
                secret) < 0 or slab_open(&self._e.slab, capacity, linger_ns) < 0:
            raise MemoryError
        if exact:
            echo_renumber_stamps(self._e)

    def __dealloc__(self):
        if self._e != NULL:
            door_close(self._e)
            free(self._e)

    def send(
        self, uint64_t token, bytes address not None, int64_t now_ns, *,
        uint64_t timeout_ns=1_000_000_000, uint16_t size=56,
    ):
        """Send a probe; return its IP packet, or None when no slot is free."""
        cdef request_t r
        cdef bytes packet
        if len(address) != self._width or not COOKIE_BYTES <= size <= SIZE_MAX:
            raise ValueError("no such address or size")
        memset(&r, 0, sizeof(r))
        r.token = token
        r.timeout_ns = timeout_ns
        r.count = 1
        r.size = size
        r.ttl = 64
        memcpy(r.destination, <const char *>address, self._width)
        packet = PyBytes_FromStringAndSize(NULL, DOOR_HEADER_BYTES + 8 + size)
        n = door_send(self._e, &r, now_ns, <uint8_t *><char *>packet)
        return packet[:n] if n else None

    cdef delivery_t _delivery(
        self, bytes data, int64_t stamp_ns, int64_t user_ns, bytes source,
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
        return d

    def arrive(
        self, bytes packet not None, int64_t stamp_ns, int64_t user_ns, *,
        bytes source=None, int hops=0,
    ):
        """Take in what a socket hands out: a packet for a raw IPv4 one, else an ICMP message.

        stamp_ns: CLOCK_REALTIME, 0 for none. user_ns: CLOCK_MONOTONIC when it was read.
        source: the socket address that comes with it.
        """
        cdef delivery_t d = self._delivery(packet, stamp_ns, user_ns, source)
        d.hops = hops
        door_arrive(self._e, &d)

    def report(
        self, bytes message not None, int64_t stamp_ns, int64_t user_ns, *, uint8_t type_,
        uint8_t code, bytes destination not None, bytes offender not None,
    ):
        """Take in an ICMP error from the error queue, about a request of ours from ICMP on."""
        cdef delivery_t d = self._delivery(message, stamp_ns, user_ns, destination)
        cdef sock_extended_err error
        memset(&error, 0, sizeof(error))
        error.ee_origin = <uint8_t>(
            SO_EE_ORIGIN_ICMP if self._width == 4 else SO_EE_ORIGIN_ICMP6)
        error.ee_type = type_
        error.ee_code = code
        if len(offender) != self._width:
            raise ValueError("no such address")
        door_report(self._e, &d, &error, <const uint8_t *><const char *>offender)

    def stamp(self, uint32_t number, int64_t stamp_ns, int64_t user_ns):
        """Take in the kernel's transmit stamp (CLOCK_REALTIME) of the packet with its number."""
        cdef delivery_t d = self._delivery(b"", stamp_ns, user_ns, None)
        cdef sock_extended_err error
        cdef uint8_t nobody[16]
        memset(nobody, 0, sizeof(nobody))
        memset(&error, 0, sizeof(error))
        error.ee_origin = <uint8_t>SO_EE_ORIGIN_TIMESTAMPING
        error.ee_data = number
        door_report(self._e, &d, &error, nobody)

    def lose_stamps(self, int64_t now_ns):
        """Learn that the kernel refused a packet that asked for a stamp."""
        echo_lose_stamps(self._e, now_ns)

    def resume_stamps(self, int64_t now_ns):
        """Ask for stamps again if it is time, as before each batch while there are none."""
        if self._e.stamps_lost:
            echo_resume_stamps(self._e, now_ns)

    def sample_clocks(self, int64_t low_ns, int64_t high_ns):
        """Learn an interval that CLOCK_REALTIME - CLOCK_MONOTONIC lies in."""
        wall_merge(&self._e.wall, low_ns, high_ns)

    def note_step(self):
        """Learn that the wall clock was set."""
        wall_stepped(&self._e.wall)

    def overflow(self, uint32_t packets):
        """Learn that the receive queue had no room for so many packets."""
        echo_note_overflow(self._e, packets)

    def age_overflow(self, int64_t by_ns):
        """Let the last overflow be that much longer ago: the core reads that clock itself."""
        self._e.overflowed_ns -= by_ns

    def can_receive(self, size_t size):
        """Make room for replies with so large a payload; whether there is."""
        return echo_can_receive(self._e, size)

    def expire(self, int64_t now_ns):
        """Time out and forget what is due."""
        echo_expire(self._e, now_ns)
        echo_publish(self._e)

    def hold_slot(self):
        """Reserve a slot for a probe that is never sent; whether there was one."""
        return slab_reserve(&self._e.slab) != SLOT_NIL

    def completions(self):
        """Return what happened since the last call."""
        cdef completion_t *c
        cdef list done = []
        while ring_count(&self._e.done):
            c = <completion_t *>ring_record(&self._e.done, self._e.done.head)
            done.append(Completion(
                c.token, c.kind, c.rtt_ns, c.sent_ns, c.responder[:self._width], c.icmp_type,
                c.icmp_code, c.ttl, c.size,
                "kernel" if c.clocks & CLOCK_RX_KERNEL else "user"))
            ring_release(&self._e.done, 1)
        return done

    @property
    def asks(self):
        """Whether the packet sent last asked the kernel for a stamp."""
        return self._e.tx[0].asks

    @property
    def buffer_bytes(self):
        """How large a message can be read whole."""
        return self._e.received.buffer_bytes

    @property
    def steps(self):
        """How often the wall clock was seen to step."""
        return self._e.wall.steps

    @property
    def in_flight(self):
        """How many probes wait for an answer."""
        return self._e.slab.in_flight

    @property
    def settled(self):
        """How many probes are remembered beyond their end."""
        return self._e.slab.settled

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
