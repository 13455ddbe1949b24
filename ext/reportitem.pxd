"""One lease's result as JSON, from numbers and from parts that are JSON already.

What `netsonde.wire` makes of the same values, byte for byte; the tests hold the two together.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from rtts cimport write_digits, write_pair

cdef enum:
    ITEM_OWN_BYTES = 256         # more than names, numbers and instants take
    SECOND_BYTES = 19            # 2026-01-02T03:04:05
    INSTANT_BYTES = 30           # and .123456789Z
    NS_PER_S = 1000000000
    NS_PER_MS = 1000000
    S_PER_DAY = 86400
    LEAD_BYTES = 12              # {"lease_id":
    ID_DIGITS = 19               # fewer than overflow; longer ids are read in another way

ctypedef struct text_t:
    const char *at
    size_t n

ctypedef struct item_t:
    uint64_t lease_id
    int64_t started_at_ns
    int64_t duration_ns
    text_t before                # members between lease_id and outcome, none when empty
    text_t outcome
    text_t observations
    text_t env
    text_t after                 # members behind env, none when empty


ctypedef struct second_t:        # the last one written: a batch has few
    bint is_known
    int64_t seconds
    uint8_t text[SECOND_BYTES]


cdef inline size_t item_bytes_max(const item_t *item) noexcept nogil:
    """Return no less than write_item writes."""
    return (
        ITEM_OWN_BYTES + item.before.n + item.outcome.n + item.observations.n + item.env.n
        + item.after.n
    )


cdef inline size_t put(uint8_t *at, const char *text, size_t n) noexcept nogil:
    memcpy(at, text, n)
    return n


cdef inline size_t put_text(uint8_t *at, const text_t *text) noexcept nogil:
    memcpy(at, text.at, text.n)
    return text.n


cdef inline void write_pairs(uint8_t *at, uint32_t x, int pairs) noexcept nogil:
    """Write x in decimal with zeros in front, two digits a pair."""
    cdef int i
    for i in range(pairs):
        write_pair(at + 2 * (pairs - 1 - i), x % 100)
        x //= 100


cdef inline void write_date(uint8_t *at, int64_t day) noexcept nogil:
    """Write the date of a day since 1970-01-01 as YYYY-MM-DD, for years of four digits.

    Years begin in March, so that the leap day is the last one and months follow one rule
    (Hinnant, "chrono-compatible low-level date algorithms").
    """
    cdef int64_t from_era = day + 719468  # days since 0000-03-01
    cdef int64_t era = from_era // 146097  # of 400 years
    cdef uint32_t of_era = <uint32_t>(from_era - era * 146097)
    cdef uint32_t year = (
        of_era - of_era // 1460 + of_era // 36524 - of_era // 146096
    ) // 365
    cdef uint32_t of_year = of_era - (365 * year + year // 4 - year // 100)
    cdef uint32_t month = (5 * of_year + 2) // 153  # from March
    cdef uint32_t of_month = of_year - (153 * month + 2) // 5 + 1
    year += <uint32_t>(400 * era) + (month >= 10)
    write_pairs(at, year, 2)
    at[4] = 45  # -
    write_pair(at + 5, month + 3 if month < 10 else month - 9)
    at[7] = 45
    write_pair(at + 8, of_month)


cdef inline void write_second(uint8_t *at, int64_t seconds) noexcept nogil:
    """Write a second since 1970 as YYYY-MM-DDTHH:MM:SS."""
    cdef int64_t day = seconds // S_PER_DAY
    cdef uint32_t second = <uint32_t>(seconds - day * S_PER_DAY)
    write_date(at, day)
    at[10] = 84  # T
    write_pair(at + 11, second // 3600)
    at[13] = 58  # :
    write_pair(at + 14, second // 60 % 60)
    at[16] = 58
    write_pair(at + 17, second % 60)


cdef inline size_t write_instant(
    uint8_t *at, int64_t realtime_ns, second_t *latest,
) noexcept nogil:
    """Write a wall-clock instant as RFC 3339 UTC with nanoseconds; returns the length."""
    cdef int64_t seconds = realtime_ns // NS_PER_S  # towards the past, as the day is
    cdef uint32_t ns = <uint32_t>(realtime_ns - seconds * NS_PER_S)
    if not latest.is_known or latest.seconds != seconds:
        latest.is_known, latest.seconds = True, seconds
        write_second(latest.text, seconds)
    memcpy(at, latest.text, SECOND_BYTES)
    at[19] = 46  # .
    at[20] = <uint8_t>(48 + ns // 100000000)
    write_pairs(at + 21, ns % 100000000, 4)
    at[29] = 90  # Z
    return INSTANT_BYTES


cdef inline size_t write_milliseconds(uint8_t *at, int64_t duration_ns) noexcept nogil:
    """Write a duration in ms, exactly: one to six decimals; returns the length."""
    cdef uint64_t ns = <uint64_t>duration_ns
    cdef size_t n = 0
    if duration_ns < 0:
        at[0] = 45  # -
        n = 1
        ns = 0 - ns
    n += write_digits(at + n, ns // NS_PER_MS)
    at[n] = 46  # .
    write_pairs(at + n + 1, <uint32_t>(ns % NS_PER_MS), 3)
    n += 7
    while at[n - 1] == 48 and at[n - 2] != 46:  # zeros, save the first decimal
        n -= 1
    return n


cdef inline size_t write_item(
    uint8_t *at, const item_t *item, second_t *latest,
) noexcept nogil:
    """Write an item where item_bytes_max of room is; returns the length."""
    cdef size_t n = put(at, b'{"lease_id":', LEAD_BYTES)
    n += write_digits(at + n, item.lease_id)
    if item.before.n:
        n += put(at + n, b",", 1)
        n += put_text(at + n, &item.before)
    n += put(at + n, b',"outcome":"', 12)
    n += put_text(at + n, &item.outcome)
    n += put(at + n, b'","started_at":"', 16)
    n += write_instant(at + n, item.started_at_ns, latest)
    n += put(at + n, b'","duration_ms":', 16)
    n += write_milliseconds(at + n, item.duration_ns)
    n += put(at + n, b',"observations":', 16)
    n += put_text(at + n, &item.observations)
    n += put(at + n, b',"env":', 7)
    n += put_text(at + n, &item.env)
    if item.after.n:
        n += put(at + n, b",", 1)
        n += put_text(at + n, &item.after)
    return n + put(at + n, b"}", 1)


cdef inline uint64_t leading_id(const char *at, size_t n) noexcept nogil:
    """Read the lease id that an item begins with; 0: it begins otherwise."""
    cdef size_t i
    cdef uint64_t x = 0
    if n < LEAD_BYTES or memcmp(at, b'{"lease_id":', LEAD_BYTES):
        return 0
    for i in range(LEAD_BYTES, min(n, LEAD_BYTES + ID_DIGITS + 1)):
        if at[i] == 44:  # ,
            return x
        if not 48 <= at[i] <= 57:
            return 0
        x = 10 * x + (at[i] - 48)
    return 0
