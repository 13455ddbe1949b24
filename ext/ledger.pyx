"""Folds echo completions into one tally per run, so that no packet costs a Python object.

A ledger opens a run and names its number; a request whose token is `number << 32` makes packet n of
the run come back as `number << 32 | n` (`netsonde._native.icmp`). Number 0 is nobody's: completions
with it are handed back unfolded. No I/O; not thread-safe.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport cython
from echostate cimport DONE_REPLY, DONE_STOPPED, completion_t
from rtts cimport (
    BUCKETS, RTT_TEXT_BYTES, bucket_of, rtts_summarise, rtts_t, write_rtt,
)
from tally cimport tally_free, tally_is_finished, tally_new, tally_t, tally_take

COUNT_MAX = 1 << 20              # packets of one run

cdef enum:
    TABLE_FIRST = 1024
    TABLE_MAX = 1 << 26


@cython.final
cdef class EchoLedger:
    """Any number of runs and what became of their packets.

    Methods that take a run's number raise KeyError when it is not open.
    """

    cdef tally_t **_table        # by number modulo its size
    cdef uint32_t _size
    cdef uint32_t _open
    cdef uint32_t _last          # number given out
    cdef uint64_t _strays

    def __cinit__(self):
        self._table = <tally_t **>calloc(TABLE_FIRST, sizeof(tally_t *))
        if self._table == NULL:
            raise MemoryError
        self._size = TABLE_FIRST

    def __dealloc__(self):
        cdef uint32_t i
        if self._table != NULL:
            for i in range(self._size):
                tally_free(self._table[i])
            free(self._table)

    def __len__(self):
        return self._open

    @property
    def strays(self):
        """How many completions named a run that is not open any more."""
        return self._strays

    def open(self, bytes destination not None, uint32_t count, *, bint watched=False):
        """Open a run of `count` packets to an address (16 bytes); return its number.

        Of a watched run `fold` hands the records back as well. Numbers are not used again before
        2^32 others, so that a late reply meets no other run.

        Raises:
            ValueError: count is 0 or above 2^20, or destination has another length.
        """
        cdef tally_t *tally
        if not 1 <= count <= COUNT_MAX:
            raise ValueError(f"count must be 1 to {COUNT_MAX}, not {count}")
        if len(destination) != 16:
            raise ValueError(f"destination must be 16 bytes, not {len(destination)}")
        if self._open >= self._size // 2:
            self._grow()
        self._last += 1
        while self._last == 0 or self._table[self._last & (self._size - 1)] != NULL:
            self._last += 1
        tally = tally_new(self._last, count, <const uint8_t *><const char *>destination)
        if tally == NULL:
            raise MemoryError
        tally.watched = watched
        self._table[self._last & (self._size - 1)] = tally
        self._open += 1
        return self._last

    cdef int _grow(self) except -1:
        """Double the table. No two open runs can then meet: they did not in half of it."""
        cdef uint32_t size = self._size * 2, i
        cdef tally_t **table
        if size > TABLE_MAX:
            raise MemoryError
        table = <tally_t **>calloc(size, sizeof(tally_t *))
        if table == NULL:
            raise MemoryError
        for i in range(self._size):
            if self._table[i] != NULL:
                table[self._table[i].number & (size - 1)] = self._table[i]
        free(self._table)
        self._table = table
        self._size = size
        return 0

    cdef tally_t *_find(self, uint32_t number) noexcept:
        """Return an open run's tally, or NULL."""
        cdef tally_t *tally = self._table[number & (self._size - 1)]
        return tally if tally != NULL and tally.number == number else NULL

    cdef tally_t *_tally(self, uint32_t number) except NULL:
        cdef tally_t *tally = self._find(number)
        if tally == NULL:
            raise KeyError(f"run {number} is not open")
        return tally

    def fold(self, bytes completions not None):
        """Fold packed completions; return three things.

        The runs that they finish; the runs whose cancellation they confirm; and the records of
        number 0 and of watched runs.

        Raises:
            ValueError: not whole records.
        """
        cdef const completion_t *c = <const completion_t *><const char *>completions
        cdef size_t n = <size_t>len(completions) // sizeof(completion_t)
        cdef size_t i, handed_back = 0
        cdef list finished = [], stopped = []
        cdef bytes rest
        if n * sizeof(completion_t) != <size_t>len(completions):
            raise ValueError(f"completions must be whole records of {sizeof(completion_t)} bytes")
        rest = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(n * sizeof(completion_t)))
        for i in range(n):
            if self._hands_back(&c[i]):
                (<completion_t *><char *>rest)[handed_back] = c[i]
                handed_back += 1
            if c[i].token >> 32 and self._take(&c[i]):
                finished.append(c[i].token >> 32)
            if c[i].kind == DONE_STOPPED:
                stopped.append(c[i].token >> 32)
        return finished, stopped, rest[:handed_back * sizeof(completion_t)]

    cdef bint _hands_back(self, const completion_t *c) noexcept:
        """Whether the caller wants to see a record."""
        cdef tally_t *tally
        if c.token >> 32 == 0:
            return True
        tally = self._find(<uint32_t>(c.token >> 32))
        return tally != NULL and tally.watched

    cdef bint _take(self, const completion_t *c) noexcept:
        """Fold one completion; whether it has finished its run."""
        cdef tally_t *tally = self._find(<uint32_t>(c.token >> 32))
        cdef bint was_finished
        if tally == NULL:
            self._strays += 1
            return False
        was_finished = tally_is_finished(tally)
        tally_take(tally, c)
        return not was_finished and tally_is_finished(tally)

    def close(self, uint32_t number):
        """Forget a run. What comes for it later is a stray."""
        tally_free(self._tally(number))
        self._table[number & (self._size - 1)] = NULL
        self._open -= 1

    def counts(self, uint32_t number):
        """Return (submitted, settled, received, tx_errors, rx_drops, duplicates, late, user_rx,
        user_tx, first_sent_ns, last_sent_ns); the instants are CLOCK_MONOTONIC, 0 for none."""
        cdef tally_t *t = self._tally(number)
        return (t.submitted, t.settled, t.received, t.tx_errors, t.rx_drops, t.duplicates, t.late,
                t.user_rx, t.user_tx, t.first_sent_ns, t.last_sent_ns)

    def rtts_ns(self, uint32_t number):
        """Return the column of round-trip times as int64; -1 where no reply came in time."""
        cdef tally_t *t = self._tally(number)
        return PyBytes_FromStringAndSize(<const char *>t.rtts_ns, t.count * 8)

    def kinds(self, uint32_t number):
        """Return the column of kinds of completion as bytes; 0 where none has come yet."""
        cdef tally_t *t = self._tally(number)
        return PyBytes_FromStringAndSize(<const char *>t.kinds, t.count)

    def ttls(self, uint32_t number):
        """Return the column of TTLs that packets arrived with, as bytes."""
        cdef tally_t *t = self._tally(number)
        return PyBytes_FromStringAndSize(<const char *>t.ttls, t.count)

    def sizes(self, uint32_t number):
        """Return the column of payload sizes that arrived, as uint16."""
        cdef tally_t *t = self._tally(number)
        return PyBytes_FromStringAndSize(<const char *>t.sizes, t.count * 2)

    def icmp_types(self, uint32_t number):
        """Return the column of ICMP types that arrived, as bytes."""
        cdef tally_t *t = self._tally(number)
        return PyBytes_FromStringAndSize(<const char *>t.types, t.count)

    def codes(self, uint32_t number):
        """Return the column of ICMP codes, or errno of a refused send, as bytes."""
        cdef tally_t *t = self._tally(number)
        return PyBytes_FromStringAndSize(<const char *>t.codes, t.count)

    def exceptions(self, uint32_t number):
        """Return the completions kept in full, packed: late, duplicate, ICMP errors, replies from
        another address. At most two per packet and a few more; beyond that they only count."""
        cdef tally_t *t = self._tally(number)
        return PyBytes_FromStringAndSize(
            <const char *>t.exceptions, t.exception_count * <Py_ssize_t>sizeof(completion_t))

    def summary(self, uint32_t number):
        """Return (count, min_ns, max_ns, avg_ns, stddev_ns, p50_ns, p90_ns, p95_ns, p99_ns,
        jitter_ns) of the replies in time, or None when there are none."""
        cdef tally_t *t = self._tally(number)
        cdef int64_t *rtts_ns
        cdef rtts_t s
        cdef size_t n
        if t.received == 0:
            return None
        memset(&s, 0, sizeof(s))
        rtts_ns = <int64_t *>malloc(t.received * sizeof(int64_t))
        if rtts_ns == NULL:
            raise MemoryError
        with nogil:
            n = replied(t, rtts_ns)
            rtts_summarise(rtts_ns, n, &s)
        free(rtts_ns)
        return (n, s.min_ns, s.max_ns, s.avg_ns, s.stddev_ns, s.percentiles_ns[0],
                s.percentiles_ns[1], s.percentiles_ns[2], s.percentiles_ns[3], s.jitter_ns)

    def histogram(self, uint32_t number):
        """Return the replies in time as [bucket, count] pairs of `netsonde.stats.Histogram`."""
        cdef tally_t *t = self._tally(number)
        cdef uint32_t counts[BUCKETS]
        cdef uint32_t at
        memset(counts, 0, sizeof(counts))
        for at in range(t.count):
            if t.kinds[at] == DONE_REPLY:
                counts[bucket_of(t.rtts_ns[at])] += 1
        return [[i, counts[i]] for i in range(BUCKETS) if counts[i]]

    def rtt_us_json(self, uint32_t number):
        """Return the submitted packets' round-trip times as a JSON array of microseconds with one
        decimal, null where no reply came in time."""
        cdef tally_t *t = self._tally(number)
        cdef uint8_t *text = <uint8_t *>malloc(2 + <size_t>t.submitted * RTT_TEXT_BYTES)
        cdef size_t at = 1
        cdef uint32_t i
        if text == NULL:
            raise MemoryError
        text[0] = 91  # [
        for i in range(t.submitted):
            if i:
                text[at] = 44  # ,
                at += 1
            at += write_rtt(text + at, t.rtts_ns[i] if t.kinds[i] == DONE_REPLY else -1)
        text[at] = 93  # ]
        try:
            return PyBytes_FromStringAndSize(<const char *>text, <Py_ssize_t>(at + 1))
        finally:
            free(text)


cdef inline size_t replied(const tally_t *t, int64_t *out) noexcept nogil:
    """Copy the round-trip times of the replies in time, in order; returns their number."""
    cdef size_t n = 0
    cdef uint32_t i
    for i in range(t.count):
        if t.kinds[i] == DONE_REPLY:
            out[n] = t.rtts_ns[i]
            n += 1
    return n
