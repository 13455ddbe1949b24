"""What one packet needs before it may leave: a token of every budget and bucket."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from budget cimport budget_return, budget_take, keyed_bucket, next_due, wait_ns
from cookie cimport siphash24
from echostate cimport echo_t, tx_t
from schedule cimport request_t
from sysnet cimport AF_INET


cdef inline uint64_t address_key(const echo_t *e, const uint8_t *address, size_t n) noexcept nogil:
    return siphash24(e.key, address, n)


cdef inline int64_t echo_take_budgets(echo_t *e, int64_t now_ns) noexcept nogil:
    """Take a token of every budget and return 0, or of none and return the ns to wait."""
    cdef int i, taken
    cdef int64_t wait
    for i in range(e.budget_count):
        wait = budget_take(e.budgets[i], now_ns)
        if wait:
            for taken in range(i):
                budget_return(e.budgets[taken])
            return wait
    return 0


cdef inline int64_t echo_gate(
    echo_t *e, tx_t *tx, const request_t *r, int64_t now_ns,
) noexcept nogil:
    """Take what one packet to a target needs; returns 0, or when the target may be tried again.

    Where a budget is empty, which holds for all targets, e.blocked_until_ns says so.
    """
    cdef bint v4 = e.family == AF_INET
    cdef int64_t wait = 0, other
    tx.prefix = tx.target = NULL
    if e.prefixes.entries != NULL:
        tx.prefix = keyed_bucket(
            &e.prefixes, address_key(e, r.destination, 3 if v4 else 6), now_ns)
        wait = wait_ns(tx.prefix.due, e.prefixes.slack, now_ns)
    if e.targets.entries != NULL:
        tx.target = keyed_bucket(
            &e.targets, address_key(e, r.destination, 4 if v4 else 16), now_ns)
        other = wait_ns(tx.target.due, e.targets.slack, now_ns)
        wait = other if other > wait else wait
    if wait == 0:
        wait = echo_take_budgets(e, now_ns)
        if wait:
            e.blocked_until_ns = now_ns + wait
    if wait:
        return now_ns + wait
    if tx.prefix != NULL:
        tx.prefix.due = next_due(tx.prefix.due, e.prefixes.gap, now_ns)
    if tx.target != NULL:
        tx.target.due = next_due(tx.target.due, e.targets.gap, now_ns)
    return 0
