"""The decisions of one trace for Python tests: instants and answers in, probes to send out."""

from libc.stdint cimport int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

cimport cython
from tracepath cimport (
    BURST_GAP_NS as GAP_NS, BURST_HOPS as HOPS, PATH_DONE, PATH_LATER, PATH_PROBE, PATH_WAIT,
    RETRY_MIN_NS as RETRY_NS, RETRY_RTTS as RTTS, WINDOW_HOPS as WINDOW, path_gave_up, path_mark,
    path_next, path_patience_ns, path_sending, path_stop, path_take,
)
from tracestate cimport (
    HOP_EXPIRED, HOP_REACHED, HOP_REFUSED, STOP_CANCELLED, STOP_COMPLETED, STOP_GAP_LIMIT,
    STOP_LOOP, STOP_MAX_HOPS, STOP_TX_ERROR, STOP_UNREACHABLE, TRACE_ALL, answer_t,
    trace_add_answer, trace_free, trace_new, trace_request_t, trace_t,
)

PROBE, LATER, WAIT, DONE = PATH_PROBE, PATH_LATER, PATH_WAIT, PATH_DONE
EXPIRED, REACHED, REFUSED = HOP_EXPIRED, HOP_REACHED, HOP_REFUSED
WINDOW_HOPS, BURST_HOPS, BURST_GAP_NS = WINDOW, HOPS, GAP_NS
RETRY_MIN_NS, RETRY_RTTS = RETRY_NS, RTTS
STOPS = {
    STOP_COMPLETED: "completed", STOP_UNREACHABLE: "unreachable", STOP_LOOP: "loop",
    STOP_GAP_LIMIT: "gap_limit", STOP_MAX_HOPS: "max_hops", STOP_TX_ERROR: "tx_error",
    STOP_CANCELLED: "cancelled",
}


@cython.final
cdef class PathCore:
    """What one trace knows and decides."""

    cdef trace_t *_t

    def __cinit__(
        self, *, uint8_t first_ttl=1, uint8_t last_ttl=30, uint8_t attempts=3, uint8_t gap_limit=5,
        int64_t timeout_ns=1_500_000_000, int64_t interval_ns=0, bint all_attempts=False,
    ):
        cdef trace_request_t r
        memset(&r, 0, sizeof(r))
        r.first_ttl = first_ttl
        r.last_ttl = last_ttl
        r.attempts = attempts
        r.gap_limit = gap_limit
        r.timeout_ns = timeout_ns
        r.interval_ns = interval_ns
        r.flags = TRACE_ALL if all_attempts else 0
        self._t = trace_new(&r)
        if self._t == NULL:
            raise MemoryError

    def __dealloc__(self):
        trace_free(self._t)

    def next(self, int64_t now_ns):
        """Return what is to be done now: PROBE and a TTL, LATER and an instant, WAIT or DONE."""
        cdef uint8_t ttl = 0
        cdef int64_t due_ns = 0
        cdef int what = path_next(self._t, now_ns, &ttl, &due_ns)
        return what, ttl if what == PATH_PROBE else due_ns

    def send(self, int ttl, int64_t now_ns):
        """Hand over the probe that was asked for; return its attempt, and how long to wait."""
        cdef int attempt = self._t.hops[ttl].attempts
        patience_ns = path_patience_ns(self._t, attempt)
        path_sending(self._t, ttl, now_ns)
        self._t.sent += 1
        return attempt, patience_ns

    def refuse(self, int ttl):
        """Learn that the kernel did not take the probe just handed over."""
        self._t.sent -= 1
        path_gave_up(self._t, ttl)

    def give_up(self, int ttl):
        """Learn that a probe has been waited for long enough."""
        path_gave_up(self._t, ttl)

    def answer(self, int ttl, uint8_t known, bytes responder, int64_t rtt_ns, *, bint waiting=True):
        """Learn of an answer in time; waiting: its probe was still waited for."""
        cdef answer_t *answer = trace_add_answer(self._t)
        if answer == NULL:
            raise MemoryError
        memcpy(answer.responder, <const char *>responder, len(responder))
        if waiting:
            path_gave_up(self._t, ttl)
        path_take(self._t, ttl, known, <uint16_t>(self._t.answers_count - 1),
                  path_mark(answer.responder, 16), rtt_ns)

    def cancel(self):
        """Decide to end."""
        self._t.is_cancelled = True

    @property
    def end_ttl(self):
        """Where the path is known to end, 0: not known."""
        return self._t.end_ttl

    @property
    def stop(self):
        """Why a trace that is done ended."""
        return STOPS[path_stop(self._t)]

    def attempts(self, int ttl):
        """Return how many probes were handed over for a TTL."""
        return self._t.hops[ttl].attempts
