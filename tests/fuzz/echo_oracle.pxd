"""What the echo engine may say, told from the packets alone: the fuzzer's second opinion.

A probe is known by the bytes it left with. Nothing here reads the engine's slots to judge a match.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp

from echostate cimport (
    DONE_DUPLICATE, DONE_ERROR, DONE_LATE, DONE_REPLY, DONE_RX_DROP, DONE_TIMEOUT, DONE_TX_ERROR,
    completion_t,
)
from fuzz.feed cimport must

cdef enum:
    PROBES_MAX = 96
    HEAD_KEPT = 24               # ICMP header, slot, serial, cookie

ctypedef struct probe_t:
    uint8_t icmp[HEAD_KEPT]      # as sent; the rest of the payload is the pattern
    uint8_t destination[16]
    uint16_t size
    int64_t sent_ns
    int64_t timeout_ns
    uint8_t final                # its one final completion, 0: none yet
    bint is_answered

ctypedef struct wire_t:          # what the engine is being given
    int version
    const uint8_t *icmp          # NULL: nothing; time passes, or a send was refused
    size_t n
    const uint8_t *source        # who sent it
    const uint8_t *destination   # from the error queue: of the request that `icmp` is; else NULL
    int64_t now_ns
    bint is_refused


cdef inline bint same(const uint8_t *a, const uint8_t *b, size_t n) noexcept nogil:
    return memcmp(a, b, n) == 0


cdef inline bint holds_pattern(const uint8_t *payload, size_t n) noexcept nogil:
    """Whether a payload of n bytes goes on behind slot, serial and cookie as ours do."""
    cdef size_t i
    for i in range(16, n):
        if payload[i] != <uint8_t>i:
            return False
    return True


cdef inline bint is_echo_of(const probe_t *probe, const wire_t *wire) noexcept nogil:
    """Whether a message echoes a probe: identifier, sequence, and the payload or its beginning."""
    cdef size_t n = wire.n - 8
    return (wire.n >= 24 and wire.icmp[0] == (0 if wire.version == 4 else 129)
            and n <= probe.size and same(wire.icmp + 4, probe.icmp + 4, 20)
            and holds_pattern(wire.icmp + 8, n))


cdef inline bint is_request_of(const probe_t *probe, const uint8_t *icmp, size_t n, int version) \
        noexcept nogil:
    """Whether n bytes are a probe's, as far as they go: by cookie, or IPv4 by the header alone."""
    if n < 8 or icmp[0] != probe.icmp[0]:
        return False
    if n >= 24 and same(icmp + 4, probe.icmp + 4, 20):
        return True
    return version == 4 and same(icmp + 2, probe.icmp + 2, 6)


cdef inline bint is_quoted_by(const probe_t *probe, const wire_t *wire) noexcept nogil:
    """Whether an error quotes a probe to its destination, wherever in the message."""
    cdef size_t width = 4 if wire.version == 4 else 16
    cdef size_t at = 8 + width * 2
    if wire.destination != NULL:
        return (same(wire.destination, probe.destination, width)
                and is_request_of(probe, wire.icmp, wire.n, wire.version))
    if wire.n < at or not is_error(wire):
        return False
    for at in range(at, wire.n):
        if is_request_of(probe, wire.icmp + at, wire.n - at, wire.version):
            return same(wire.icmp + (24 if wire.version == 4 else 32), probe.destination, width)
    return False


cdef inline bint is_error(const wire_t *wire) noexcept nogil:
    """Whether a message is of an error's type."""
    if wire.version == 4:
        return wire.icmp[0] == 3 or wire.icmp[0] == 11 or wire.icmp[0] == 12
    return 1 <= wire.icmp[0] <= 4


cdef inline void judge_answer(
    const probe_t *probe, const wire_t *wire, const completion_t *c,
) noexcept nogil:
    """Insist that what was taken for an answer is one, and says who sent it."""
    must(wire.icmp != NULL, b"an answer comes by a packet")
    if c.kind == DONE_ERROR:
        must(is_quoted_by(probe, wire), b"an error quotes the probe it ends")
    else:
        must(is_echo_of(probe, wire), b"a reply echoes the probe it answers")
        must(c.size == wire.n - 8, b"the size is the reply's")
    must(c.rtt_ns >= 0, b"an answer has a round-trip time, and no negative one")
    must(same(c.responder, wire.source, 4 if wire.version == 4 else 16),
         b"the responder is who sent the packet")
    if c.kind == DONE_REPLY or c.kind == DONE_ERROR:
        must(c.rtt_ns <= probe.timeout_ns, b"an answer in time comes within the timeout")


cdef inline void judge_silence(
    const probe_t *probe, const wire_t *wire, const completion_t *c,
) noexcept nogil:
    """Insist that who is given up on has had its time."""
    must(c.rtt_ns == -1, b"silence has no round-trip time")
    if wire.icmp == NULL and c.kind != DONE_TX_ERROR:
        must(wire.now_ns >= c.sent_ns + probe.timeout_ns, b"a timeout is never early")
    must((c.kind == DONE_TX_ERROR) == wire.is_refused, b"what is refused, and only that")


cdef inline void judge(
    probe_t *probes, uint64_t count, const wire_t *wire, const completion_t *c,
) noexcept nogil:
    """Insist on all that must hold of one completion, and remember it."""
    cdef probe_t *probe
    must(c.token < count, b"a completion names a probe that was sent")
    probe = &probes[c.token]
    if c.kind == DONE_LATE or c.kind == DONE_DUPLICATE:
        must(probe.final != 0 and probe.final != DONE_TX_ERROR, b"the final completion comes first")
        must(probe.is_answered == (c.kind == DONE_DUPLICATE), b"a second answer is a duplicate")
    else:
        must(probe.final == 0, b"there is one final completion")
        must(c.kind == DONE_REPLY or c.kind == DONE_TIMEOUT or c.kind == DONE_ERROR
             or c.kind == DONE_TX_ERROR or c.kind == DONE_RX_DROP, b"and it is one of five")
        probe.final = c.kind
    if c.kind == DONE_TIMEOUT or c.kind == DONE_RX_DROP or c.kind == DONE_TX_ERROR:
        judge_silence(probe, wire, c)
        return
    judge_answer(probe, wire, c)
    if c.kind != DONE_ERROR:
        probe.is_answered = True
