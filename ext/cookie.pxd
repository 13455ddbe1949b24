"""Keyed 64-bit cookies: SipHash-2-4 (Aumasson and Bernstein, 2012).

A reply that carries the right cookie was made from a packet of ours; without the 128-bit key
nobody can compute one, however many they have seen.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint64_t le64toh(uint64_t x)


ctypedef struct sipkey_t:
    uint64_t k0
    uint64_t k1


cdef inline uint64_t load_le64(const uint8_t *p) noexcept nogil:
    cdef uint64_t x
    memcpy(&x, p, sizeof(x))
    return le64toh(x)


cdef inline sipkey_t load_key(const uint8_t *secret) noexcept nogil:
    """Read a key from 16 bytes."""
    cdef sipkey_t key
    key.k0 = load_le64(secret)
    key.k1 = load_le64(secret + 8)
    return key


cdef inline uint64_t rotate_left(uint64_t x, int n) noexcept nogil:
    return x << n | x >> (64 - n)


cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotate_left(v[1], 13) ^ v[0]
    v[3] = rotate_left(v[3], 16) ^ v[2]
    v[0] = rotate_left(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotate_left(v[1], 17) ^ v[2]
    v[3] = rotate_left(v[3], 21) ^ v[0]
    v[2] = rotate_left(v[2], 32)


cdef inline void sip_absorb(uint64_t *v, uint64_t word) noexcept nogil:
    v[3] ^= word
    sip_round(v)
    sip_round(v)
    v[0] ^= word


cdef inline uint64_t siphash24(sipkey_t key, const uint8_t *p, size_t n) noexcept nogil:
    """Return the SipHash-2-4 of n bytes at p."""
    cdef uint64_t v[4]
    cdef uint64_t last = (<uint64_t>n & 0xFF) << 56
    cdef size_t i, _, whole = n & ~<size_t>7
    v[0] = key.k0 ^ 0x736F6D6570736575ULL  # the paper's constants
    v[1] = key.k1 ^ 0x646F72616E646F6DULL
    v[2] = key.k0 ^ 0x6C7967656E657261ULL
    v[3] = key.k1 ^ 0x7465646279746573ULL
    for i in range(0, whole, 8):
        sip_absorb(v, load_le64(p + i))
    for i in range(whole, n):
        last |= <uint64_t>p[i] << (8 * (i - whole))
    sip_absorb(v, last)
    v[2] ^= 0xFF
    for _ in range(4):
        sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
