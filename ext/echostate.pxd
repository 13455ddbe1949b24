"""The echo engine's state: its types, its limits, its memory, its completions."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from budget cimport bucket_t, budget_t, keyed_close, keyed_t
from cookie cimport sipkey_t
from frames cimport frames_close, frames_t
from inflight cimport slab_close, slab_t, slot_t
from ring cimport ring_close, ring_open, ring_publish, ring_record, ring_room, ring_t
from schedule cimport request_t, schedule_close, schedule_t
from stamps cimport wall_t
from sysnet cimport AF_INET, iovec, mmsghdr, msghdr, sockaddr_in, sockaddr_in6, sockaddr_ll
from tracestate cimport traces_close, traces_t

cdef enum:
    SEND_BATCH = 64           # of many traces: fewer system calls
    SHORT_BATCH = 16          # else: larger ones blur the interpolated send stamps for nothing
    RECEIVE_BATCH = 64
    SEND_TRIES = 4            # a pending error of the socket is reported by the next send
    ERROR_BATCH = 32
    ERROR_BYTES = 128         # of the packet an error is about
    ERROR_ROUNDS = 64         # error queue batches per poll
    COOKIE_BYTES = 16         # slot, serial, cookie
    HEAD_BYTES = 24           # ICMP header and those
    FLAT_BYTES = 256          # a packet that fits is sent as one piece, which is cheaper than two
    SIZE_MAX = 65507          # 65535 - 20 - 8
    CONTROL_BYTES = 256       # control messages of one received packet need about 150
    BUFFER_BYTES = 2048       # any reply to a request that fits an Ethernet frame, jumbo excepted
    BUFFER_MAX_BYTES = 65568
    DEFAULT_TTL = 64
    SUBMIT_RING = 8192        # requests that wait to be taken: 448 KiB
    DONE_RING = 32768         # unread completions: 1.5 MiB, 0.2 s at 150 000 a second
    CANCEL_RING = 1024
    PATHS_MAX = 4096
    BUDGETS_MAX = 4
    INTERFACES_MAX = 16
    STAMPS = 65536            # packets whose transmit stamp is awaited
    FULL_RETRY_NS = 1000000   # until another look when slots, runs or completions are full
    BATCH_ROOM = 256          # a batch of packets and one of errors write no more completions;
    #                           below it the engine neither sends nor reads

cdef enum:
    BACKEND_RAW = 0           # ICMP socket; the kernel writes the IP header
    BACKEND_HEADER = 1        # IPPROTO_RAW socket; we write it
    BACKEND_PACKET = 2        # AF_PACKET, past routing, firewall and queueing discipline
    BACKEND_DATAGRAM = 3      # ICMP datagram socket; needs no privilege

cdef enum:
    FLAG_DF = 1               # of a request: never fragment
    FLAG_CANCELLED = 2
    FLAG_TRACE = 4            # its packets are a trace's probes; the token names it

cdef enum:                    # what came of asking a run for packets
    STEP_AGAIN = 0            # the batch is full, or the run waits for its next turn
    STEP_ENDED = 1            # all its packets have been sent
    STEP_BLOCKED = 2          # nobody may send now
    STEP_PARKED = 3           # it waits for an answer, which puts it into the heap again

cdef enum:
    DONE_REPLY = 1       # answered in time
    DONE_TIMEOUT = 2     # not answered in time
    DONE_ERROR = 3       # a router or the target said why there will be no reply
    DONE_TX_ERROR = 4    # the kernel refused to send it
    DONE_LATE = 5        # answered after DONE_TIMEOUT or DONE_ERROR
    DONE_DUPLICATE = 6   # answered again
    DONE_RX_DROP = 7     # not answered in time, and our receive queue overflowed meanwhile
    DONE_STOPPED = 8     # a run was cancelled
    DONE_TRACED = 9      # a trace has ended; rtt_ns is its number
    DONE_HOP = 10        # an answer of a trace that is watched

cdef enum:
    CLOCK_RX_KERNEL = 1
    CLOCK_TX_KERNEL = 2

ctypedef struct completion_t:   # COMPLETION_FORMAT in icmp.pyx
    uint64_t token
    int64_t rtt_ns              # DONE_STOPPED: packets of the run that were submitted
    int64_t sent_ns
    uint8_t responder[16]
    uint8_t kind
    uint8_t icmp_type
    uint8_t icmp_code
    uint8_t ttl
    uint16_t size
    uint8_t clocks
    uint8_t error

ctypedef struct path_t:      # how a packet leaves, where the routing table is not to decide
    uint8_t source[16]
    sockaddr_ll link         # AF_PACKET only
    int interface            # index, 0: any
    uint32_t mark
    bint has_source

ctypedef struct tx_t:
    uint64_t control[24]
    sockaddr_in name4
    sockaddr_in6 name6
    iovec parts[2]
    int socket               # the one that sends it
    slab_t *slab             # where its slot is: pings' or traces'
    uint32_t slot
    uint32_t run             # whose packet it is
    bucket_t *prefix         # that it took a token of, or NULL
    bucket_t *target
    bint asks                # the kernel for a transmit stamp
    uint8_t head[FLAT_BYTES]  # IP header where it is ours, ICMP message or its beginning

ctypedef struct batch_t:     # messages that are read in one call
    mmsghdr *messages
    iovec *parts
    sockaddr_in6 *names
    uint64_t *control
    uint8_t *buffers
    size_t buffer_bytes      # of each
    unsigned int count
    unsigned int used        # of them the last read filled

ctypedef struct arrival_t:   # one received message, whatever the kind of socket
    const uint8_t *source    # who sent it: 4 or 16 bytes
    const uint8_t *icmp
    size_t icmp_bytes
    int64_t stamp_ns         # CLOCK_REALTIME by the kernel, 0 when there is none
    int64_t user_ns          # CLOCK_MONOTONIC by us, after the batch was read
    uint8_t ttl

ctypedef struct awaited_t:   # a packet whose transmit stamp will come by the error queue
    uint32_t slot
    uint32_t serial
    uint32_t number

ctypedef struct counters_t:
    uint64_t sent
    uint64_t tx_errors
    uint64_t packets
    uint64_t foreign
    uint64_t forged
    uint64_t malformed
    uint64_t stale
    uint64_t late_errors
    uint64_t rx_drops
    uint64_t turns

ctypedef struct echo_t:
    int family
    int backend
    bint exact               # transmit stamps by the kernel
    int socket               # receives; sends where the back end has none of its own
    int tx_socket            # sends; may be `socket`
    int epoll
    int step_timer
    int turn_timer           # wakes a loop for what is due
    int wake                 # eventfd: the pump thread has been given something
    int ready                # eventfd: completions are there
    sipkey_t key
    uint8_t instance[8]
    uint16_t ident
    uint32_t serial
    slab_t slab
    schedule_t schedule
    ring_t submitted         # request_t
    ring_t cancelled         # uint64_t tokens
    ring_t done              # completion_t
    uint32_t done_pending    # written, not yet published
    path_t *paths
    budget_t *budgets[BUDGETS_MAX]
    int budget_count
    keyed_t prefixes
    keyed_t targets
    uint32_t batches
    size_t batch_limit        # packets of the batch that is being filled
    bint hears_errors        # ICMP errors come by the error queue of `socket` too
    int64_t blocked_until_ns  # nothing may be sent before; 0: something may
    bint crowded             # no more runs fit beside those that are being sent, or no memory
    wall_t wall
    uint32_t step_told       # how often somebody said that the wall clock was set
    uint32_t step_seen
    bint is_behind           # the last batch read was full
    uint32_t drops           # the kernel's counter, as last read; it wraps
    uint32_t overflows       # of these what a full receive queue dropped
    uint32_t drops_unclaimed  # not yet blamed for a missing reply
    int64_t overflowed_ns    # when the last of them was noticed
    counters_t counters
    traces_t traces
    awaited_t *awaited       # exact: by the kernel's number of the packet
    uint32_t stamp_number    # of the next packet
    uint32_t stamps_out      # asked for, not come yet
    bint stamps_lost         # the kernel's next number is not known
    int64_t stamps_lost_ns   # since when
    uint8_t *filler          # what follows the first 16 bytes of every payload
    size_t filler_bytes
    uint64_t filler_sum
    tx_t *tx
    mmsghdr *tx_messages
    batch_t received
    frames_t frames          # instead of them: memory shared with the kernel
    int interfaces[INTERFACES_MAX]  # that packets leave by, of the packet back end
    int interface_count
    batch_t errors           # what the error queue says
    int64_t newest_stamp_ns  # CLOCK_REALTIME of the last packet read from the queue, 0: none yet
    uint32_t stopping        # the thread is to end
    uint32_t ready_told      # `ready` is set and nobody has read it since
    uint32_t starved         # a submission was refused for want of room in the ring
    int64_t told_ns          # when `ready` was last set
    uint64_t thread          # pthread_t
    int owner                # the process that it belongs to
    bint threaded
    bint deaf                # the loop's descriptor does not watch the socket


cdef inline int batch_size_buffers(batch_t *batch, size_t each) noexcept nogil:
    """Make buffers of at least `each` bytes; -1 without memory, then the old ones stay."""
    cdef uint8_t *buffers
    cdef unsigned int i
    if each <= batch.buffer_bytes:
        return 0
    buffers = <uint8_t *>malloc(each * batch.count)  # touched, so resident, only where used
    if buffers == NULL:
        return -1
    free(batch.buffers)
    batch.buffers = buffers
    batch.buffer_bytes = each
    for i in range(batch.count):
        batch.parts[i].iov_base = buffers + i * each
        batch.parts[i].iov_len = each
    return 0


cdef inline int batch_open(batch_t *batch, unsigned int count, size_t each) noexcept nogil:
    """Allocate and wire a batch of messages; -1 without memory. batch_close frees a partial one."""
    cdef unsigned int i
    cdef msghdr *head
    batch.count = batch.used = count
    batch.messages = <mmsghdr *>calloc(count, sizeof(mmsghdr))
    batch.parts = <iovec *>calloc(count, sizeof(iovec))
    batch.names = <sockaddr_in6 *>calloc(count, sizeof(sockaddr_in6))
    batch.control = <uint64_t *>calloc(count, CONTROL_BYTES)
    if (batch.messages == NULL or batch.parts == NULL or batch.names == NULL
            or batch.control == NULL):
        return -1
    for i in range(count):
        head = &batch.messages[i].msg_hdr
        head.msg_name = &batch.names[i]
        head.msg_iov = &batch.parts[i]
        head.msg_iovlen = 1
        head.msg_control = batch.control + i * (CONTROL_BYTES // 8)
    return batch_size_buffers(batch, each)


cdef inline void batch_close(batch_t *batch) noexcept nogil:
    """Free the memory."""
    free(batch.messages)
    free(batch.parts)
    free(batch.names)
    free(batch.control)
    free(batch.buffers)


cdef inline bint has_ip_header(const echo_t *e) noexcept nogil:
    """Whether the receiving socket hands out the IP header."""
    return e.family == AF_INET and e.backend != BACKEND_DATAGRAM


cdef inline void batch_without_names(batch_t *batch) noexcept nogil:
    """Spare the kernel from saying who sent each message: the header does."""
    cdef unsigned int i
    for i in range(batch.count):
        batch.messages[i].msg_hdr.msg_name = NULL


cdef inline int echo_open_rings(echo_t *e) noexcept nogil:
    """Make the rings; -1 without memory."""
    if (ring_open(&e.submitted, sizeof(request_t), SUBMIT_RING) < 0
            or ring_open(&e.cancelled, sizeof(uint64_t), CANCEL_RING) < 0
            or ring_open(&e.done, sizeof(completion_t), DONE_RING) < 0):
        return -1
    return 0


cdef inline int echo_allocate(echo_t *e) noexcept nogil:
    """Allocate and wire what batches need; -1 without memory. echo_free frees a partial one."""
    cdef int i
    e.filler = <uint8_t *>malloc(SIZE_MAX)
    e.paths = <path_t *>calloc(PATHS_MAX, sizeof(path_t))
    e.batch_limit = SHORT_BATCH
    e.tx = <tx_t *>calloc(SEND_BATCH, sizeof(tx_t))
    e.tx_messages = <mmsghdr *>calloc(SEND_BATCH, sizeof(mmsghdr))
    if e.exact:
        e.awaited = <awaited_t *>calloc(STAMPS, sizeof(awaited_t))
    if (e.filler == NULL or e.paths == NULL or e.tx == NULL or e.tx_messages == NULL
            or (e.exact and e.awaited == NULL)):
        return -1
    for i in range(SIZE_MAX):
        e.filler[i] = <uint8_t>(i + COOKIE_BYTES)
    if (batch_open(&e.received, RECEIVE_BATCH, BUFFER_BYTES) < 0
            or batch_open(&e.errors, ERROR_BATCH, ERROR_BYTES) < 0):
        return -1
    if has_ip_header(e):
        batch_without_names(&e.received)
    return echo_open_rings(e)


cdef inline void echo_free(echo_t *e) noexcept nogil:
    """Free all memory; the descriptors are the owner's."""
    frames_close(&e.frames)
    slab_close(&e.slab)
    traces_close(&e.traces)
    schedule_close(&e.schedule)
    ring_close(&e.submitted)
    ring_close(&e.cancelled)
    ring_close(&e.done)
    keyed_close(&e.prefixes)
    keyed_close(&e.targets)
    free(e.filler)
    free(e.paths)
    free(e.awaited)
    free(e.tx)
    free(e.tx_messages)
    batch_close(&e.received)
    batch_close(&e.errors)
    memset(e, 0, sizeof(echo_t))


cdef inline bint echo_has_room(echo_t *e, uint32_t count) noexcept nogil:
    """Whether `count` more completions can be written; beyond that the kernel's queue fills."""
    return ring_room(&e.done) >= e.done_pending + count


cdef inline completion_t *echo_note(echo_t *e, uint64_t token, uint8_t kind) noexcept nogil:
    """Write a completion, to be published at the end of the turn; there is room."""
    cdef completion_t *c = <completion_t *>ring_record(&e.done, e.done.tail + e.done_pending)
    e.done_pending += 1
    memset(c, 0, sizeof(completion_t))
    c.token = token
    c.rtt_ns = -1
    c.kind = kind
    return c


cdef inline completion_t *echo_complete(echo_t *e, const slot_t *slot, uint8_t kind) noexcept nogil:
    """Write the completion of a slot's probe."""
    cdef completion_t *c = echo_note(e, slot.token, kind)
    c.sent_ns = slot.sent_ns
    c.clocks = slot.clocks
    return c


cdef inline void echo_publish(echo_t *e) noexcept nogil:
    """Let the reader have the completions written so far."""
    if e.done_pending:
        ring_publish(&e.done, e.done_pending)
        e.done_pending = 0


cdef inline bint echo_claims_drop(echo_t *e, const slot_t *slot) noexcept nogil:
    """Whether a missing answer may be one that our full receive queue dropped; each excuses one."""
    if slot.overflows == e.overflows or e.drops_unclaimed == 0:
        return False
    e.drops_unclaimed -= 1
    return True
