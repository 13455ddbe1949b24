"""The echo engine's state: its types, its limits, its memory, its completions."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from cookie cimport sipkey_t
from inflight cimport slab_close, slab_t, slot_t
from stamps cimport wall_t
from sysnet cimport iovec, mmsghdr, msghdr, sockaddr_in, sockaddr_in6

cdef enum:
    SEND_BATCH = 16           # larger ones blur the interpolated send stamps and gain little
    RECEIVE_BATCH = 64
    SEND_TRIES = 4            # a pending error of the socket is reported by the next send
    ERROR_ROUNDS = 64         # error queue batches per poll
    COOKIE_BYTES = 16         # slot, serial, cookie
    HEAD_BYTES = 24           # ICMP header and those
    SIZE_MAX = 65507          # 65535 - 20 - 8
    CONTROL_BYTES = 256       # control messages of one received packet need about 150
    BUFFER_BYTES = 2048       # any reply to a request that fits an Ethernet frame, jumbo excepted
    BUFFER_MAX_BYTES = 65568
    DEFAULT_TTL = 64
    COMPLETIONS_MAX = 1 << 20  # unread ones; beyond it the kernel's queue fills and that is counted

cdef enum:
    DONE_REPLY = 1       # answered in time
    DONE_TIMEOUT = 2     # not answered in time
    DONE_ERROR = 3       # a router or the target said why there will be no reply
    DONE_TX_ERROR = 4    # the kernel refused to send it
    DONE_LATE = 5        # answered after DONE_TIMEOUT or DONE_ERROR
    DONE_DUPLICATE = 6   # answered again
    DONE_RX_DROP = 7     # not answered in time, and our receive queue overflowed meanwhile

cdef enum:
    CLOCK_RX_KERNEL = 1

ctypedef struct request_t:   # REQUEST_FORMAT in icmp.pyx
    uint64_t token
    uint64_t timeout_ns
    uint8_t destination[16]
    uint32_t scope
    uint16_t size
    uint8_t ttl
    uint8_t tos

ctypedef struct completion_t:   # COMPLETION_FORMAT in icmp.pyx
    uint64_t token
    int64_t rtt_ns
    int64_t sent_ns
    uint8_t responder[16]
    uint8_t kind
    uint8_t icmp_type
    uint8_t icmp_code
    uint8_t ttl
    uint16_t size
    uint8_t clocks
    uint8_t error

ctypedef struct tx_t:
    uint64_t control[8]
    sockaddr_in name4
    sockaddr_in6 name6
    iovec parts[2]
    uint32_t slot
    uint8_t head[24]

ctypedef struct arrival_t:   # one received message, whatever the kind of socket
    const uint8_t *source    # who sent it: 4 or 16 bytes
    const uint8_t *icmp
    size_t icmp_bytes
    int64_t stamp_ns         # CLOCK_REALTIME by the kernel, 0 when there is none
    int64_t user_ns          # CLOCK_MONOTONIC by us, after the batch was read
    uint8_t ttl

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

ctypedef struct echo_t:
    int family
    bint datagram
    int socket
    int epoll
    int step_timer
    sipkey_t key
    uint8_t instance[8]
    uint16_t ident
    uint32_t serial
    slab_t slab
    wall_t wall
    uint32_t drops           # of the receive queue, as last read
    uint32_t drops_unclaimed  # not yet blamed for a missing reply
    counters_t counters
    uint8_t *filler          # what follows the first 16 bytes of every payload
    size_t filler_bytes
    uint64_t filler_sum
    tx_t *tx
    mmsghdr *tx_messages
    mmsghdr *rx_messages
    iovec *rx_parts
    sockaddr_in6 *rx_names
    uint64_t *rx_control
    uint8_t *rx_buffers
    size_t rx_buffer_bytes
    completion_t *done
    size_t done_count
    size_t done_room
    int64_t newest_stamp_ns  # CLOCK_REALTIME of the last packet read from the queue, 0: none yet


cdef inline int echo_size_buffers(echo_t *e, size_t each) noexcept nogil:
    """Make receive buffers of `each` bytes; -1 without memory."""
    cdef uint8_t *buffers
    cdef int i
    if each <= e.rx_buffer_bytes:
        return 0
    buffers = <uint8_t *>malloc(each * RECEIVE_BATCH)  # touched, so resident, only where used
    if buffers == NULL:
        return -1
    free(e.rx_buffers)
    e.rx_buffers = buffers
    e.rx_buffer_bytes = each
    for i in range(RECEIVE_BATCH):
        e.rx_parts[i].iov_base = buffers + <size_t>i * each
        e.rx_parts[i].iov_len = each
    return 0


cdef inline int echo_allocate(echo_t *e) noexcept nogil:
    """Allocate and wire what batches need; -1 without memory. echo_free frees a partial one."""
    cdef int i
    cdef msghdr *head
    e.filler = <uint8_t *>malloc(SIZE_MAX)
    e.tx = <tx_t *>calloc(SEND_BATCH, sizeof(tx_t))
    e.tx_messages = <mmsghdr *>calloc(SEND_BATCH, sizeof(mmsghdr))
    e.rx_messages = <mmsghdr *>calloc(RECEIVE_BATCH, sizeof(mmsghdr))
    e.rx_parts = <iovec *>calloc(RECEIVE_BATCH, sizeof(iovec))
    e.rx_names = <sockaddr_in6 *>calloc(RECEIVE_BATCH, sizeof(sockaddr_in6))
    e.rx_control = <uint64_t *>calloc(RECEIVE_BATCH, CONTROL_BYTES)
    if (e.filler == NULL or e.tx == NULL or e.tx_messages == NULL or e.rx_messages == NULL
            or e.rx_parts == NULL or e.rx_names == NULL or e.rx_control == NULL):
        return -1
    for i in range(SIZE_MAX):
        e.filler[i] = <uint8_t>(i + COOKIE_BYTES)
    for i in range(RECEIVE_BATCH):
        head = &e.rx_messages[i].msg_hdr
        head.msg_name = &e.rx_names[i]
        head.msg_iov = &e.rx_parts[i]
        head.msg_iovlen = 1
        head.msg_control = e.rx_control + i * (CONTROL_BYTES // 8)
    return echo_size_buffers(e, BUFFER_BYTES)


cdef inline void echo_free(echo_t *e) noexcept nogil:
    """Free all memory; the descriptors are the owner's."""
    slab_close(&e.slab)
    free(e.filler)
    free(e.tx)
    free(e.tx_messages)
    free(e.rx_messages)
    free(e.rx_parts)
    free(e.rx_names)
    free(e.rx_control)
    free(e.rx_buffers)
    free(e.done)
    e.filler = e.rx_buffers = NULL
    e.tx = NULL
    e.tx_messages = e.rx_messages = NULL
    e.rx_parts = NULL
    e.rx_names = NULL
    e.rx_control = NULL
    e.done = NULL
    e.done_count = e.done_room = 0


cdef inline bint echo_has_room(echo_t *e, size_t count) noexcept nogil:
    """Whether `count` more completions can be stored; makes the room."""
    cdef size_t room = e.done_room if e.done_room else 256
    cdef completion_t *done
    if e.done_count + count <= e.done_room:
        return True
    while room < e.done_count + count:
        room *= 2
    if room > COMPLETIONS_MAX:
        return False
    done = <completion_t *>realloc(e.done, room * sizeof(completion_t))
    if done == NULL:
        return False
    e.done = done
    e.done_room = room
    return True


cdef inline completion_t *echo_complete(echo_t *e, const slot_t *slot, uint8_t kind) noexcept nogil:
    """Append a completion; room has been made."""
    cdef completion_t *c = &e.done[e.done_count]
    e.done_count += 1
    memset(c, 0, sizeof(completion_t))
    c.token = slot.token
    c.sent_ns = slot.sent_ns
    c.rtt_ns = -1
    c.kind = kind
    return c
