"""What every harness needs: to take an input apart, and to insist."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport fputs, stderr
from libc.stdlib cimport abort


ctypedef struct feed_t:      # what is left of an input; past its end it yields zeros
    const uint8_t *data
    size_t left


cdef inline void must(bint holds, const char *invariant) noexcept nogil:
    """End the process when an invariant does not hold: the fuzzer reports the input."""
    if not holds:
        fputs(b"broken invariant: ", stderr)
        fputs(invariant, stderr)
        fputs(b"\n", stderr)
        abort()


cdef inline uint8_t feed_byte(feed_t *feed) noexcept nogil:
    """Take the next byte."""
    if feed.left == 0:
        return 0
    feed.left -= 1
    feed.data += 1
    return feed.data[-1]


cdef inline uint16_t feed_u16(feed_t *feed) noexcept nogil:
    cdef uint16_t high = feed_byte(feed)
    return <uint16_t>(high << 8 | feed_byte(feed))


cdef inline uint32_t feed_u32(feed_t *feed) noexcept nogil:
    cdef uint32_t high = feed_u16(feed)
    return high << 16 | feed_u16(feed)


cdef inline uint64_t feed_u64(feed_t *feed) noexcept nogil:
    cdef uint64_t high = feed_u32(feed)
    return high << 32 | feed_u32(feed)


cdef inline int64_t feed_span(feed_t *feed) noexcept nogil:
    """Take a span of time of any magnitude up to 2^37 ns, which is two minutes."""
    cdef uint8_t shift = feed_byte(feed)
    return <int64_t>feed_u16(feed) << (shift % 22)
