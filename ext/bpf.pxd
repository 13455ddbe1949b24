"""Classic BPF programs for sockets (socket(7), SO_ATTACH_FILTER; linux/filter.h)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from sysnet cimport SOL_SOCKET, setsockopt

cdef extern from *:
    """
    #include <linux/filter.h>
    #ifndef SO_ATTACH_FILTER
    #define SO_ATTACH_FILTER 26
    #endif
    #define NETSONDE_PKTTYPE ((uint32_t)SKF_AD_OFF + SKF_AD_PKTTYPE)
    """
    ctypedef struct sock_filter "struct sock_filter":
        uint16_t code
        uint8_t jt
        uint8_t jf
        uint32_t k
    ctypedef struct sock_fprog "struct sock_fprog":
        unsigned short len
        sock_filter *filter
    int SO_ATTACH_FILTER
    int BPF_LD, BPF_LDX, BPF_ALU, BPF_JMP, BPF_RET
    int BPF_B, BPF_H, BPF_W, BPF_ABS, BPF_IND, BPF_MSH, BPF_IMM, BPF_K
    int BPF_SUB, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JSET
    uint32_t NETSONDE_PKTTYPE

cdef enum:
    WHOLE_PACKET = 0xFFFF
    PROGRAM_STEPS_MAX = 32

ctypedef struct program_t:
    sock_filter steps[PROGRAM_STEPS_MAX]
    unsigned short count


cdef inline void instruct(
    program_t *program, int code, uint32_t k, uint8_t if_true, uint8_t if_false,
) noexcept nogil:
    """Append an instruction; the jumps skip so many of those behind it."""
    cdef sock_filter *made = &program.steps[program.count]
    made.code = <uint16_t>code
    made.k = k
    made.jt = if_true
    made.jf = if_false
    program.count += 1


cdef inline void accept_ident(
    program_t *p, int load_mode, uint32_t offset, uint16_t ident_base, uint32_t idents,
) noexcept nogil:
    """End a program: accept if the 16 bits at an offset are one of our identifiers."""
    instruct(p, BPF_LD | BPF_H | load_mode, offset, 0, 0)
    instruct(p, BPF_ALU | BPF_SUB | BPF_K, ident_base, 0, 0)
    instruct(p, BPF_ALU | BPF_AND | BPF_K, 0xFFFF, 0, 0)
    instruct(p, BPF_JMP | BPF_JGE | BPF_K, idents, 0, 1)
    instruct(p, BPF_RET | BPF_K, 0, 0, 0)
    instruct(p, BPF_RET | BPF_K, WHOLE_PACKET, 0, 0)


cdef inline int attach(int fd, program_t *program) noexcept nogil:
    """Let a socket receive only what a program accepts; -1 and errno on failure."""
    cdef sock_fprog whole
    whole.len = program.count
    whole.filter = program.steps
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &whole, sizeof(whole))
