"""Numbers about a column of round-trip times: order, moments, jitter, log-linear buckets, JSON.

The same definitions as netsonde.stats, which the tests hold this against.
"""

from libc.math cimport fabs, sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

cdef enum:
    JITTER_GAIN = 16             # RFC 3550 6.4.1
    BUCKET_UNIT_NS = 100
    SUB_BUCKET_BITS = 5          # 32 buckets per doubling
    BUCKETS = 64 << SUB_BUCKET_BITS
    RTT_TEXT_BYTES = 24          # the longest RTT as text, and a comma

cdef extern from *:
    """
    static int netsonde_order(const void *a, const void *b) {
        int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
        return (x > y) - (x < y);
    }
    """
    int order_int64 "netsonde_order"(const void *a, const void *b) noexcept nogil
    int leading_zeros "__builtin_clzll"(uint64_t x) nogil

ctypedef struct rtts_t:
    int64_t min_ns
    int64_t max_ns
    double avg_ns
    double stddev_ns             # population
    double jitter_ns
    int64_t percentiles_ns[4]    # 50, 90, 95, 99


cdef inline int64_t rank_of(const int64_t *ordered, size_t n, size_t percent) noexcept nogil:
    """Return the smallest value that at least `percent` of them do not exceed (RFC 2330 11.3)."""
    return ordered[(n * percent + 99) // 100 - 1]


cdef inline double rtts_jitter(const int64_t *rtts_ns, size_t n) noexcept nogil:
    """Return the smoothed mean deviation of successive round-trip times (RFC 3550 6.4.1)."""
    cdef double estimate = 0
    cdef size_t i
    for i in range(1, n):
        estimate += (fabs(<double>(rtts_ns[i] - rtts_ns[i - 1])) - estimate) / JITTER_GAIN
    return estimate


cdef inline void rtts_summarise(int64_t *rtts_ns, size_t n, rtts_t *out) noexcept nogil:
    """Summarise n > 0 times given in the order of sending; sorts them."""
    cdef double total = 0, squares = 0
    cdef size_t i
    cdef size_t percents[4]
    percents[:] = [50, 90, 95, 99]
    out.jitter_ns = rtts_jitter(rtts_ns, n)
    for i in range(n):
        total += <double>rtts_ns[i]
    out.avg_ns = total / <double>n
    for i in range(n):
        squares += (<double>rtts_ns[i] - out.avg_ns) * (<double>rtts_ns[i] - out.avg_ns)
    out.stddev_ns = sqrt(squares / <double>n)
    qsort(rtts_ns, n, sizeof(int64_t), order_int64)
    out.min_ns = rtts_ns[0]
    out.max_ns = rtts_ns[n - 1]
    for i in range(4):
        out.percentiles_ns[i] = rank_of(rtts_ns, n, percents[i])


cdef inline uint32_t bucket_of(int64_t duration_ns) noexcept nogil:
    """Return the number of the bucket a duration falls into."""
    cdef uint64_t units = <uint64_t>(duration_ns if duration_ns > 0 else 0) // BUCKET_UNIT_NS
    cdef int bits = 64 - leading_zeros(units | 1)
    cdef int shift = bits - 1 - SUB_BUCKET_BITS
    if shift < 0:
        shift = 0
    return (<uint32_t>shift << SUB_BUCKET_BITS) + <uint32_t>(units >> shift)


cdef inline void write_pair(uint8_t *at, uint32_t x) noexcept nogil:
    """Write two digits of x below 100."""
    at[0] = <uint8_t>(48 + x // 10)
    at[1] = <uint8_t>(48 + x % 10)


cdef inline size_t write_digits(uint8_t *at, uint64_t x) noexcept nogil:
    """Write x in decimal; returns the number of digits."""
    cdef uint8_t digits[20]
    cdef size_t begin = 20
    while x >= 100:
        begin -= 2
        write_pair(digits + begin, <uint32_t>(x % 100))
        x //= 100
    if x >= 10:
        begin -= 2
        write_pair(digits + begin, <uint32_t>x)
    else:
        begin -= 1
        digits[begin] = <uint8_t>(48 + x)
    memcpy(at, digits + begin, 20 - begin)
    return 20 - begin


cdef inline size_t write_rtt(uint8_t *at, int64_t rtt_ns) noexcept nogil:
    """Write a time in microseconds with one decimal, or null below 0; returns the length."""
    cdef uint64_t tenths
    cdef size_t n
    if rtt_ns < 0:
        at[0], at[1], at[2], at[3] = 110, 117, 108, 108
        return 4
    tenths = (<uint64_t>rtt_ns + 50) // 100
    n = write_digits(at, tenths // 10)
    at[n] = 46
    at[n + 1] = <uint8_t>(48 + tenths % 10)
    return n + 2
