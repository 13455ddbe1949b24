"""Received packets in memory shared with the kernel: AF_PACKET with PACKET_RX_RING (packet(7)).

The kernel copies what the filter lets in into frames, with its stamp, and stops at a frame that has
not been given back. Reading takes no system call, and a reader that is late by thousands of packets
loses none. There is no reassembly, and no checksum has been verified. TPACKET_V2, because it shows
a packet at once; V3 by blocks.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from bpf cimport (
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX,
    BPF_MSH, BPF_RET, BPF_W, NETSONDE_PKTTYPE, WHOLE_PACKET, accept_ident, attach, instruct,
    program_t,
)
from packet cimport (
    ICMP4_ECHO_REPLY, ICMP4_PARAMETER_PROBLEM, ICMP4_TIME_EXCEEDED, ICMP4_UNREACHABLE,
    ICMP6_ECHO_REPLY, ICMP6_PARAMETER_PROBLEM, ICMP6_TIME_EXCEEDED, ICMP6_TOO_BIG,
    ICMP6_UNREACHABLE, PROTOCOL_ICMP, PROTOCOL_ICMPV6, store_be16,
)
from sysnet cimport (
    AF_PACKET, SOL_PACKET, bind, getsockopt, setsockopt, sockaddr, sockaddr_ll, socklen_t,
)

cdef extern from *:
    """
    #include <sys/mman.h>
    #define NETSONDE_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define NETSONDE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define NETSONDE_LL_OFFSET TPACKET_ALIGN(sizeof(struct tpacket2_hdr))
    """
    ctypedef struct tpacket_req "struct tpacket_req":
        unsigned int tp_block_size
        unsigned int tp_block_nr
        unsigned int tp_frame_size
        unsigned int tp_frame_nr
    ctypedef struct tpacket2_hdr "struct tpacket2_hdr":
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_net
        uint32_t tp_sec
        uint32_t tp_nsec
    ctypedef struct tpacket_stats "struct tpacket_stats":
        unsigned int tp_packets
        unsigned int tp_drops
    int PACKET_VERSION, PACKET_RX_RING, PACKET_STATISTICS, TPACKET_V2
    uint32_t TP_STATUS_KERNEL, TP_STATUS_USER
    size_t NETSONDE_LL_OFFSET
    uint32_t load_acquire "NETSONDE_ACQUIRE"(const uint32_t *p) nogil
    void store_release "NETSONDE_RELEASE"(uint32_t *p, uint32_t value) nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED
    void *mmap(void *at, size_t n, int protection, int flags, int fd, long offset) nogil
    int munmap(void *at, size_t n) nogil

cdef enum:
    BLOCK_BYTES = 65536
    FRAMES = 8192                # 80 ms at 100 000 packets a second
    IPV4_FRAGMENT = 0x3FFF       # more fragments, or an offset
    PACKET_FOR_US = 0            # PACKET_HOST

ctypedef struct frames_t:
    uint8_t *memory              # NULL: none
    size_t frame_bytes
    uint32_t next


cdef inline void require(program_t *p, uint32_t value) noexcept nogil:
    """Go on only if what was loaded is this value; else drop the packet."""
    instruct(p, BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0)
    instruct(p, BPF_RET | BPF_K, 0, 0, 0)


cdef inline void end_by_type(
    program_t *p, int reply, const uint32_t *errors, int load_mode, uint32_t ident_at,
    uint16_t ident_base, uint32_t idents,
) noexcept nogil:
    """End a program, the ICMP type loaded: four kinds of error, replies with our identifiers."""
    cdef int i
    instruct(p, BPF_JMP | BPF_JEQ | BPF_K, <uint32_t>reply, 6, 0)
    for i in range(4):
        instruct(p, BPF_JMP | BPF_JEQ | BPF_K, errors[i], <uint8_t>(4 - i), 0)
    instruct(p, BPF_RET | BPF_K, 0, 0, 0)
    instruct(p, BPF_RET | BPF_K, WHOLE_PACKET, 0, 0)
    accept_ident(p, load_mode, ident_at, ident_base, idents)


cdef inline int filter_ipv4(int fd, uint16_t ident_base, uint32_t idents) noexcept nogil:
    """Let in whole ICMP packets for this host: errors, and replies with our identifiers."""
    cdef program_t p
    cdef uint32_t errors[4]
    errors[:] = [ICMP4_UNREACHABLE, ICMP4_TIME_EXCEEDED, ICMP4_PARAMETER_PROBLEM,
                 ICMP4_UNREACHABLE]
    memset(&p, 0, sizeof(p))
    instruct(&p, BPF_LD | BPF_W | BPF_ABS, NETSONDE_PKTTYPE, 0, 0)
    require(&p, PACKET_FOR_US)
    instruct(&p, BPF_LD | BPF_B | BPF_ABS, 9, 0, 0)
    require(&p, PROTOCOL_ICMP)
    instruct(&p, BPF_LD | BPF_H | BPF_ABS, 6, 0, 0)
    instruct(&p, BPF_ALU | BPF_AND | BPF_K, IPV4_FRAGMENT, 0, 0)
    require(&p, 0)
    instruct(&p, BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0)
    instruct(&p, BPF_LD | BPF_B | BPF_IND, 0, 0, 0)
    end_by_type(&p, ICMP4_ECHO_REPLY, errors, BPF_IND, 4, ident_base, idents)
    return attach(fd, &p)


cdef inline int filter_ipv6(int fd, uint16_t ident_base, uint32_t idents) noexcept nogil:
    """Let in ICMPv6 packets for this host: errors, and replies with our identifiers.

    Without extension headers: no responder adds any.
    """
    cdef program_t p
    cdef uint32_t errors[4]
    errors[:] = [ICMP6_UNREACHABLE, ICMP6_TOO_BIG, ICMP6_TIME_EXCEEDED, ICMP6_PARAMETER_PROBLEM]
    memset(&p, 0, sizeof(p))
    instruct(&p, BPF_LD | BPF_W | BPF_ABS, NETSONDE_PKTTYPE, 0, 0)
    require(&p, PACKET_FOR_US)
    instruct(&p, BPF_LD | BPF_B | BPF_ABS, 6, 0, 0)
    require(&p, PROTOCOL_ICMPV6)
    instruct(&p, BPF_LD | BPF_B | BPF_ABS, 40, 0, 0)
    end_by_type(&p, ICMP6_ECHO_REPLY, errors, BPF_ABS, 44, ident_base, idents)
    return attach(fd, &p)


cdef inline int frames_open(frames_t *frames, int fd, size_t frame_bytes) noexcept nogil:
    """Make the ring of an AF_PACKET socket, and map it; -1 and errno on failure.

    frame_bytes: a power of two that divides BLOCK_BYTES.
    """
    cdef int version = TPACKET_V2
    cdef tpacket_req req
    cdef void *memory
    req.tp_frame_size = <unsigned int>frame_bytes
    req.tp_frame_nr = FRAMES
    req.tp_block_size = BLOCK_BYTES
    req.tp_block_nr = <unsigned int>(FRAMES * frame_bytes // BLOCK_BYTES)
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) < 0
            or setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof(req)) < 0):
        return -1
    memory = mmap(NULL, FRAMES * frame_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                  fd, 0)
    if memory == MAP_FAILED:
        return -1
    frames.memory = <uint8_t *>memory
    frames.frame_bytes = frame_bytes
    frames.next = 0
    return 0


cdef inline int frames_bind(int fd, int family_ethertype) noexcept nogil:
    """Begin to receive, on every interface; -1 and errno on failure."""
    cdef sockaddr_ll name
    memset(&name, 0, sizeof(name))
    name.sll_family = <unsigned short>AF_PACKET
    store_be16(<uint8_t *>&name.sll_protocol, <uint16_t>family_ethertype)
    return bind(fd, <const sockaddr *>&name, sizeof(name))


cdef inline void frames_close(frames_t *frames) noexcept nogil:
    """Unmap the ring. Idempotent."""
    if frames.memory != NULL:
        munmap(frames.memory, FRAMES * frames.frame_bytes)
        frames.memory = NULL


cdef inline tpacket2_hdr *frame_at(frames_t *frames, uint32_t at) noexcept nogil:
    """Return the frame with free-running number `at`."""
    return <tpacket2_hdr *>(
        frames.memory + <size_t>(at & (FRAMES - 1)) * frames.frame_bytes)


cdef inline uint32_t frames_ready(frames_t *frames, uint32_t limit) noexcept nogil:
    """Return how many frames can be read from frames.next on, at most limit."""
    cdef uint32_t n = 0
    while n < limit and load_acquire(
            &frame_at(frames, frames.next + n).tp_status) & TP_STATUS_USER:
        n += 1
    return n


cdef inline void frames_release(frames_t *frames, tpacket2_hdr *head) noexcept nogil:
    """Give the oldest frame back to the kernel."""
    store_release(&head.tp_status, TP_STATUS_KERNEL)
    frames.next += 1


cdef inline int64_t frame_stamp_ns(const tpacket2_hdr *head) noexcept nogil:
    """Return when the kernel received a frame, CLOCK_REALTIME."""
    return <int64_t>head.tp_sec * 1000000000 + head.tp_nsec


cdef inline int frame_interface(const tpacket2_hdr *head) noexcept nogil:
    """Return the index of the interface a frame came in by."""
    return (<const sockaddr_ll *>(<const uint8_t *>head + NETSONDE_LL_OFFSET)).sll_ifindex


cdef inline uint32_t frames_dropped(int fd) noexcept nogil:
    """Return how many packets found the ring full since the last call."""
    cdef tpacket_stats stats
    cdef socklen_t length = sizeof(stats)
    memset(&stats, 0, sizeof(stats))
    getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &length)
    return stats.tp_drops
