"""Instants between now and deadlines, a part of the way that a hash of each lease's id decides."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from heap cimport load64

cdef extern from *:
    """
    /* The instant after `part` / 2^32 of the way. 128 bits hold every product, and the result lies
       between the two, so that it fits again. */
    static inline int64_t netsonde_part_way(int64_t begin, int64_t end, uint64_t part) {
        return (int64_t)(begin + (((__int128)end - begin) * (__int128)part >> 32));
    }
    """
    int64_t part_way "netsonde_part_way"(int64_t begin, int64_t end, uint64_t part) noexcept nogil


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    """Hash a word: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ x >> 30) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) * <uint64_t>0x94D049BB133111EB
    return x ^ x >> 31


cdef inline void spread_batch(
    const char *ids, const char *ends_ns, size_t n, int64_t now_ns, uint64_t seed,
    uint64_t least, uint64_t most, char *out,
) noexcept nogil:
    """Write an instant for each id; least and most are parts of the way in 2^-32."""
    cdef size_t i
    cdef uint64_t part
    cdef int64_t instant
    for i in range(n):
        part = least + ((mixed(load64(ids, i) ^ seed) >> 32) * (most - least) >> 32)
        instant = part_way(now_ns, <int64_t>load64(ends_ns, i), part)
        memcpy(out + 8 * i, &instant, 8)
