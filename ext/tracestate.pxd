"""Traces: what is asked for, what is known of the path, what came; their memory and limits.

A trace belongs to one thread at a time: to whoever turns the engine, which makes and frees it in
memory that its processor has in its caches, and to the caller while it reads one that has ended.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from inflight cimport slab_close, slab_open, slab_t
from ring cimport ring_close, ring_open, ring_t
from schedule cimport RUN_NIL

cdef enum:
    TRACES_MAX = 16384           # submitted and not taken back
    TRACE_SLOTS = 65535          # probes in flight: 16 bits of a packet, not all 0, name one
    TRACE_LINGER_NS = 60000000000  # an answer may be as late as the longest timeout
    ATTEMPTS_MAX = 100           # per TTL
    TTL_MAX = 255
    TRACE_CANCEL_RING = 1024
    ANSWERS_FIRST = 16
    ANSWERS_MAX = 65536          # of one trace; more are counted only
    EXTENSION_MAX = 512          # bytes kept of one extension structure
    EXTENSIONS_MAX = 1 << 20     # of one trace

cdef enum:
    METHOD_ICMP = 1
    METHOD_UDP = 2
    METHOD_TCP = 4

cdef enum:                       # flags of a request
    TRACE_DF = 1                 # IPv4: forbid fragments
    TRACE_ALL = 2                # every TTL gets all its attempts, whether it answers or not
    TRACE_WATCH = 4              # a completion for every answer too

cdef enum:                       # why a trace ended
    STOP_COMPLETED = 1
    STOP_UNREACHABLE = 2
    STOP_LOOP = 3
    STOP_GAP_LIMIT = 4
    STOP_MAX_HOPS = 5
    STOP_TX_ERROR = 6
    STOP_CANCELLED = 7

cdef enum:                       # what an answer is
    ANSWER_ECHO = 0
    ANSWER_ERROR = 1             # ICMP
    ANSWER_SYN_ACK = 2
    ANSWER_RST = 3
    ANSWER_REFUSED = 4           # none: the kernel did not send the probe; code is its errno

cdef enum:                       # flags of an answer
    ANSWER_DUPLICATE = 1
    ANSWER_LATE = 2
    ANSWER_TRANSLATED = 4        # what is quoted is not what was sent
    ANSWER_USER_CLOCK = 8        # the receive stamp is ours
    ANSWER_EXTENSION_BAD = 16    # version, checksum or lengths of its extension are wrong
    ANSWER_TRUNCATED = 32        # its extension was longer than what is kept

ctypedef struct trace_request_t:  # TRACE_FORMAT in icmp.pyx
    uint64_t token
    uint64_t timeout_ns
    uint64_t interval_ns         # TRACE_ALL: between two attempts at a TTL
    uint8_t destination[16]
    uint8_t source[16]           # zeros: what the routing table picks
    uint32_t scope
    uint32_t flow                # number: another one may take another path
    uint16_t path
    uint16_t port                # the destination's; UDP and TCP
    uint16_t size                # payload bytes; ICMP and UDP
    uint8_t method
    uint8_t first_ttl
    uint8_t last_ttl
    uint8_t attempts             # at most, per TTL
    uint8_t gap_limit
    uint8_t tos
    uint8_t flags
    uint8_t spare[3]

ctypedef struct submission_t:    # a request that waits to be taken up
    trace_request_t request      # with a source
    uint32_t error               # errno: there is no route
    bint is_cancelled

ctypedef struct answer_t:        # ANSWER_FORMAT in icmp.pyx; 56 bytes
    int64_t sent_ns              # CLOCK_MONOTONIC
    int64_t rtt_ns               # -1: ANSWER_REFUSED
    uint8_t responder[16]
    uint32_t mtu                 # that a too-big message names, else 0
    uint32_t extension_at        # its extension structure, among those of the trace
    uint16_t extension_bytes
    uint8_t ttl                  # of the probe
    uint8_t attempt
    uint8_t kind
    uint8_t type
    uint8_t code
    uint8_t reply_ttl            # 0: not known
    uint8_t quoted_ttl
    uint8_t quoted_tos
    uint8_t flags
    uint8_t spare[5]

cdef enum:                       # what is known of a hop, as bits
    HOP_ANSWERED = 1             # in time
    HOP_EXPIRED = 2              # the TTL did
    HOP_REACHED = 4              # the destination answered
    HOP_REFUSED = 8              # a router said why it goes no further

cdef enum:
    ANSWER_NIL = 0xFFFF          # the number of an answer that is not kept

ctypedef struct hop_t:           # 6 bytes: those of most paths are two cache lines
    uint8_t attempts             # handed over to be sent
    uint8_t waiting              # of them: neither answered nor given up
    uint8_t known
    uint16_t answer              # number of the first one in time

ctypedef struct trace_t:
    trace_request_t request
    uint32_t serial              # tells this trace from the number's earlier ones
    uint32_t number
    uint32_t run                 # of the schedule
    bint is_scheduled            # in the heap, or being sent for
    bint is_cancelled
    bint is_void                 # nothing is sent: there is no route
    bint is_ended
    bint is_taken                # by its caller, who has not given it back yet
    # The flow: the same in every probe.
    uint16_t checksum            # ICMP's
    uint16_t source_port         # UDP's and TCP's
    uint32_t flow_label          # IPv6's
    # By what a translator on the way changes UDP's checksums (tracematch.pxd).
    uint16_t shift
    uint32_t shift_slot          # that showed it first
    uint8_t shift_shown          # SHIFT_
    # The path so far; TTLs, 0: none.
    uint8_t sent_ttl             # all up to it have been tried
    uint8_t window_ttl           # none above it is to be tried yet
    uint8_t farthest_ttl         # that answered
    uint8_t end_ttl              # where the path is known to end
    uint8_t round                # TRACE_ALL: attempts that each TTL is to have by now
    uint8_t burst                # probes of this burst
    uint8_t silent               # TTLs tried that owe an answer and wait for none
    uint32_t waiting             # probes: neither answered nor given up
    uint8_t stop
    bint is_looping
    int64_t burst_ns             # when it began
    int64_t round_ns             # when the round did
    int64_t rtt_max_ns
    uint64_t responders          # a bit for each that expired, by its hash
    uint32_t sent
    uint32_t tx_errors
    uint32_t late
    uint32_t duplicates
    uint32_t rx_drops
    uint32_t error               # errno of the last probe that was refused
    answer_t *answers
    uint32_t answers_count
    uint32_t answers_room
    uint32_t answers_missed      # beyond the limit, or without memory
    uint8_t *extensions
    uint32_t extensions_bytes
    uint32_t extensions_room
    hop_t hops[256]              # by TTL; allocated up to last_ttl

ctypedef struct traces_t:
    uint32_t methods             # METHOD_ bits that sockets are open for
    slab_t slab                  # TRACE_SLOTS of the probes in flight
    uint16_t ident               # of every ICMP probe
    uint16_t ports               # TCP: the first of TCP_PORTS source ports
    int socket                   # receives ICMP; -1: the engine's own does
    int tx_socket                # sends
    int tcp_socket               # receives TCP; -1: METHOD_TCP is not open
    int routes                   # is asked for source addresses, by the caller
    ring_t submitted             # submission_t
    ring_t cancelled             # uint64_t tokens
    ring_t returned              # uint32_t: numbers whose trace was taken back
    trace_t **live               # by number
    uint32_t *free_numbers       # a stack
    uint32_t free_count
    uint32_t wants_number        # a trace waits for one that its caller has not taken back
    uint32_t serial
    uint32_t count               # live and not ended


cdef inline size_t trace_bytes(const trace_request_t *request) noexcept nogil:
    """Return the size of a trace with the hops it may have; its first answers come behind it."""
    cdef size_t unused = (TTL_MAX - request.last_ttl) * sizeof(hop_t)
    return (sizeof(trace_t) - unused + 7) & ~<size_t>7


cdef inline answer_t *trace_first_answers(trace_t *trace) noexcept nogil:
    """Return the answers there is room for without asking for memory: most traces get no more."""
    return <answer_t *>(<uint8_t *>trace + trace_bytes(&trace.request))


cdef inline void trace_free(trace_t *trace) noexcept nogil:
    """Free a trace and what it holds; NULL is fine."""
    if trace == NULL:
        return
    if trace.answers != trace_first_answers(trace):
        free(trace.answers)
    free(trace.extensions)
    free(trace)


cdef inline trace_t *trace_new(const trace_request_t *request) noexcept nogil:
    """Make a trace of a request, with room for the hops it may have; NULL without memory."""
    cdef size_t size = trace_bytes(request)
    cdef trace_t *trace = <trace_t *>malloc(size + ANSWERS_FIRST * sizeof(answer_t))
    if trace == NULL:
        return NULL
    memset(trace, 0, size)
    memcpy(&trace.request, request, sizeof(trace_request_t))
    trace.answers = trace_first_answers(trace)
    trace.answers_room = ANSWERS_FIRST
    trace.run = RUN_NIL
    trace.sent_ttl = request.first_ttl - 1
    trace.round = 1
    return trace


cdef inline void traces_close(traces_t *traces) noexcept nogil:
    """Free the memory, traces that nobody took included. Descriptors stay. Idempotent."""
    cdef uint32_t number
    if traces.live != NULL:
        for number in range(<uint32_t>TRACES_MAX):
            trace_free(traces.live[number])
    free(traces.live)
    free(traces.free_numbers)
    slab_close(&traces.slab)
    ring_close(&traces.submitted)
    ring_close(&traces.cancelled)
    ring_close(&traces.returned)
    traces.live = NULL
    traces.free_numbers = NULL


cdef inline int traces_open(traces_t *traces) noexcept nogil:
    """Allocate; -1 without memory. traces_close frees a partial one."""
    cdef uint32_t number
    traces.live = <trace_t **>calloc(TRACES_MAX, sizeof(trace_t *))
    traces.free_numbers = <uint32_t *>calloc(TRACES_MAX, sizeof(uint32_t))
    if (traces.live == NULL or traces.free_numbers == NULL
            or slab_open(&traces.slab, TRACE_SLOTS, TRACE_LINGER_NS) < 0
            or ring_open(&traces.submitted, sizeof(submission_t), TRACES_MAX) < 0
            or ring_open(&traces.cancelled, sizeof(uint64_t), TRACE_CANCEL_RING) < 0
            or ring_open(&traces.returned, sizeof(uint32_t), TRACES_MAX) < 0):
        return -1
    for number in range(<uint32_t>TRACES_MAX):
        traces.free_numbers[number] = TRACES_MAX - 1 - number
    traces.free_count = TRACES_MAX
    return 0


cdef inline void trace_enter(traces_t *traces, trace_t *trace) noexcept nogil:
    """Give a trace its number; there is one."""
    traces.free_count -= 1
    trace.number = traces.free_numbers[traces.free_count]
    traces.serial += 1
    trace.serial = traces.serial
    traces.live[trace.number] = trace
    traces.count += 1


cdef inline void trace_leave(traces_t *traces, uint32_t number) noexcept nogil:
    """Take back a number whose trace its caller has taken, and free that."""
    trace_free(traces.live[number])
    traces.live[number] = NULL
    traces.free_numbers[traces.free_count] = number
    traces.free_count += 1


cdef inline uint64_t probe_token(const trace_t *trace, int ttl, int attempt) noexcept nogil:
    """Return the name of a probe, for its slot."""
    return (<uint64_t>trace.serial << 32 | <uint64_t>trace.number << 16
            | <uint64_t>ttl << 8 | <uint64_t>attempt)


cdef inline trace_t *probe_trace(traces_t *traces, uint64_t token) noexcept nogil:
    """Return the trace of a probe, or NULL when it has ended."""
    cdef trace_t *trace = traces.live[token >> 16 & (TRACES_MAX - 1)]
    if trace == NULL or trace.serial != <uint32_t>(token >> 32) or trace.is_ended:
        return NULL
    return trace


cdef inline bint trace_grow_answers(trace_t *trace) noexcept nogil:
    """Double the room for answers; whether that could be done."""
    cdef uint32_t room = trace.answers_room * 2
    cdef answer_t *first = trace_first_answers(trace)
    cdef bint is_first = trace.answers == first
    cdef answer_t *grown
    if room > ANSWERS_MAX:
        return False
    grown = <answer_t *>realloc(NULL if is_first else trace.answers, room * sizeof(answer_t))
    if grown == NULL:
        return False
    if is_first:
        memcpy(grown, first, trace.answers_count * sizeof(answer_t))
    trace.answers = grown
    trace.answers_room = room
    return True


cdef inline answer_t *trace_add_answer(trace_t *trace) noexcept nogil:
    """Return a new, empty answer of a trace; NULL at the limit or without memory."""
    cdef answer_t *answer
    if trace.answers_count == trace.answers_room and not trace_grow_answers(trace):
        trace.answers_missed += 1
        return NULL
    answer = &trace.answers[trace.answers_count]
    trace.answers_count += 1
    memset(answer, 0, sizeof(answer_t))
    return answer


cdef inline void trace_keep_extension(
    trace_t *trace, answer_t *answer, const uint8_t *p, size_t n,
) noexcept nogil:
    """Keep an extension structure with its answer, or as much of it as there is room for."""
    cdef uint32_t wanted, room = trace.extensions_room
    cdef void *grown
    if n > EXTENSION_MAX:
        answer.flags |= ANSWER_TRUNCATED
        n = EXTENSION_MAX
    wanted = trace.extensions_bytes + <uint32_t>n
    if wanted > room:
        room = wanted if wanted > 2 * room else 2 * room
        grown = realloc(trace.extensions, room) if wanted <= EXTENSIONS_MAX else NULL
        if grown == NULL:
            answer.flags |= ANSWER_TRUNCATED
            return
        trace.extensions = <uint8_t *>grown
        trace.extensions_room = room
    memcpy(trace.extensions + trace.extensions_bytes, p, n)
    answer.extension_at = trace.extensions_bytes
    answer.extension_bytes = <uint16_t>n
    trace.extensions_bytes = wanted
