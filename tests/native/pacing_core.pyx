"""The schedule of runs and the token buckets for Python tests."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cimport cython
from budget cimport (
    bucket_t, budget_return, budget_t, budget_take, keyed_bucket, keyed_close, keyed_open, keyed_t,
    next_due, pace_gap, pace_slack, wait_ns,
)
from schedule cimport (
    RUN_NIL, schedule_close, schedule_find, schedule_free, schedule_open, schedule_push,
    schedule_queue, schedule_remove, schedule_reserve, schedule_t,
)


@cython.final
cdef class Schedule:
    """Runs by their tokens, each due at an instant."""

    cdef schedule_t _s

    def __cinit__(self):
        schedule_open(&self._s)

    def __dealloc__(self):
        schedule_close(&self._s)

    def __len__(self):
        return self._s.count

    def push(self, uint64_t token, int64_t due_ns):
        """Add a run, behind the others that are due when it is."""
        cdef uint32_t run = schedule_reserve(&self._s)
        if run == RUN_NIL:
            raise MemoryError
        self._s.runs[run].request.token = token
        self._s.runs[run].request.count = 1
        schedule_queue(&self._s, run)
        schedule_push(&self._s, run, due_ns)

    def pop(self):
        """Remove the run that is due first: (token, due_ns), or None when there is none."""
        return self._take(0) if self._s.count else None

    def remove(self, uint64_t token):
        """Remove a run: (token, due_ns), or None when it is not there."""
        cdef uint32_t at = schedule_find(&self._s, token)
        return None if at == RUN_NIL else self._take(at)

    cdef tuple _take(self, uint32_t at):
        cdef uint32_t run = self._s.heap[at].run
        cdef int64_t due_ns = self._s.heap[at].due_ns
        schedule_remove(&self._s, at)
        schedule_free(&self._s, run)
        return self._s.runs[run].request.token, due_ns

    @property
    def used(self):
        """How many runs there have been at once, at the most."""
        return self._s.used


@cython.final
cdef class Budget:
    """A shared token bucket."""

    cdef budget_t _b

    def __cinit__(self, double rate_pps):
        self._b.gap = pace_gap(rate_pps)
        self._b.slack = pace_slack(self._b.gap)

    def take(self, int64_t now_ns):
        """Take a token and return 0, or return the ns until there is one."""
        return budget_take(&self._b, now_ns)

    def give_back(self):
        """Return a token that was not used."""
        budget_return(&self._b)


@cython.final
cdef class KeyedBudgets:
    """A token bucket for each key."""

    cdef keyed_t _k

    def __cinit__(self, double rate_pps):
        if keyed_open(&self._k, rate_pps) < 0:
            raise MemoryError

    def __dealloc__(self):
        keyed_close(&self._k)

    def take(self, uint64_t key, int64_t now_ns):
        """Take a key's token and return 0, or return the ns until there is one."""
        cdef bucket_t *bucket = keyed_bucket(&self._k, key, now_ns)
        cdef int64_t wait
        if bucket == NULL:
            return 0
        wait = wait_ns(bucket.due, self._k.slack, now_ns)
        if wait == 0:
            bucket.due = next_due(bucket.due, self._k.gap, now_ns)
        return wait
