"""Lease deadlines in a native indexed heap; the core is heap.pxd, heap_ops.pxd and spread.pxd.

Ids are unsigned 64-bit, deadlines signed 64-bit nanoseconds on whatever clock the caller keeps to.
Buffers of ids and deadlines are anything contiguous in native 64-bit integers (array('Q'),
array('q'), memoryview, numpy) or raw bytes of them.
"""

cimport cython
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from heap cimport (
    HEAP_NONE, bucket_of, find_place, heap_bytes, heap_free, heap_init, heap_reserve, heap_t,
    key_deadline, key_slot,
)
from heap_ops cimport (
    HEAP_DONE, HEAP_FULL, HEAP_KNOWN, HEAP_UNCHANGED, HEAP_UNKNOWN, due_t, heap_drop,
    heap_drop_batch, heap_due, heap_due_free, heap_move, heap_move_batch, heap_pop_due, heap_push,
    heap_push_batch, heap_renumber,
)
from spread cimport spread_batch

CAPACITY_MAX = 2**30  # slots are 32 bits, and less than half of them are used

cdef double PART_ONE = 2.0**32

DONE = HEAP_DONE
KNOWN = HEAP_KNOWN
UNKNOWN = HEAP_UNKNOWN
FULL = HEAP_FULL
UNCHANGED = HEAP_UNCHANGED


cdef int acquire(object source, str name, Py_buffer *view) except -1:
    """Borrow the 64-bit words of a buffer; the caller releases it."""
    cdef bytes format_
    PyObject_GetBuffer(source, view, PyBUF_FORMAT | PyBUF_ND)
    format_ = view.format if view.format != NULL else b"B"
    if view.itemsize == 8 and format_[-1:] in b"qQlL" and format_[:1] not in b"<>!":
        return 0
    if view.itemsize == 1 and format_ in (b"B", b"b", b"c") and view.len % 8 == 0:
        return 0
    PyBuffer_Release(view)
    raise ValueError(
        f"{name}: expected native 64-bit integers, or bytes in multiples of 8; "
        f"got {view.len} bytes of format {format_.decode()!r}"
    )


cdef int acquire_pair(
    object ids, object deadlines_ns, Py_buffer *id_view, Py_buffer *deadline_view,
) except -1:
    """Borrow two buffers of equal length; the caller releases both."""
    acquire(ids, "ids", id_view)
    try:
        acquire(deadlines_ns, "deadlines_ns", deadline_view)
    except BaseException:
        PyBuffer_Release(id_view)
        raise
    if id_view.len == deadline_view.len:
        return 0
    PyBuffer_Release(id_view)
    PyBuffer_Release(deadline_view)
    raise ValueError(f"{id_view.len // 8} ids but {deadline_view.len // 8} deadlines_ns")


@cython.final
cdef class DeadlineHeap:
    """Leases by deadline, at most `capacity` of them; equal deadlines come in push order.

    Every call on one lease answers a code, every call on a batch one code byte per item: DONE (0),
    KNOWN: already in the heap, nothing changed; UNKNOWN: not in the heap; FULL: `capacity` is
    reached; UNCHANGED: an extension that would not lengthen. A batch acts item by item in order,
    so an id that is in it twice is answered twice. An id outside 0 … 2^64-1 or a deadline outside
    int64 raises OverflowError. MemoryError leaves the heap as it was.

    Memory grows with the number of leases and is kept for the next peak. `first_order` is the push
    order to begin with, in 32 bits; when they run out the leases are numbered anew.
    """

    cdef heap_t _heap

    def __cinit__(self, capacity: int, *, uint32_t first_order=0):
        if not 1 <= capacity <= CAPACITY_MAX:
            raise ValueError(f"capacity must be 1 … {CAPACITY_MAX}, got {capacity}")
        # Python's own hash secret, which differs per process, without importing anything.
        cdef uint64_t seed = hash("netsonde.deadlines") & 0xFFFFFFFFFFFFFFFF
        if not heap_init(&self._heap, capacity, seed, first_order):
            raise MemoryError

    def __dealloc__(self):
        heap_free(&self._heap)

    def __len__(self):
        return self._heap.count

    def __contains__(self, uint64_t lease_id):
        return find_place(&self._heap, lease_id) != HEAP_NONE

    @property
    def capacity(self):
        """The most leases this heap holds."""
        return self._heap.capacity

    @property
    def allocated_bytes(self):
        """Bytes allocated for leases."""
        return heap_bytes(&self._heap)

    @property
    def next_ns(self):
        """The earliest deadline, or None."""
        return key_deadline(self._heap.keys[0]) if self._heap.count else None

    def peek(self):
        """Return the id and deadline of the earliest lease, or None."""
        cdef heap_t *heap = &self._heap
        cdef uint32_t slot
        if heap.count == 0:
            return None
        slot = key_slot(heap.keys[0])
        return bucket_of(heap, slot).ids[slot & 7], key_deadline(heap.keys[0])

    def deadline_of(self, uint64_t lease_id):
        """Return a lease's deadline, or None when it is not in the heap."""
        cdef uint32_t place = find_place(&self._heap, lease_id)
        return None if place == HEAP_NONE else key_deadline(self._heap.keys[place])

    cdef int _reserve(self, size_t extra) except -1:
        if not heap_reserve(&self._heap, extra) or not heap_renumber(&self._heap, extra):
            raise MemoryError
        return 0

    def push_one(self, uint64_t lease_id, int64_t deadline_ns):
        """Add a lease: DONE, KNOWN or FULL."""
        self._reserve(1)
        return heap_push(&self._heap, lease_id, deadline_ns)

    def move_one(self, uint64_t lease_id, int64_t deadline_ns):
        """Set a lease's deadline, earlier or later: DONE or UNKNOWN."""
        return heap_move(&self._heap, lease_id, deadline_ns, False)

    def extend_one(self, uint64_t lease_id, int64_t deadline_ns):
        """Make a lease's deadline later: DONE, UNCHANGED or UNKNOWN."""
        return heap_move(&self._heap, lease_id, deadline_ns, True)

    def drop_one(self, uint64_t lease_id):
        """Forget a lease: DONE or UNKNOWN."""
        return heap_drop(&self._heap, lease_id)

    def push(self, ids, deadlines_ns):
        """Add leases; an id that comes twice in the batch is KNOWN the second time."""
        cdef Py_buffer id_view, deadline_view
        cdef bytes codes
        acquire_pair(ids, deadlines_ns, &id_view, &deadline_view)
        try:
            codes = PyBytes_FromStringAndSize(NULL, id_view.len // 8)
            self._reserve(id_view.len // 8)
            heap_push_batch(
                &self._heap, <const char *>id_view.buf, <const char *>deadline_view.buf,
                id_view.len // 8, <uint8_t *>PyBytes_AsString(codes),
            )
        finally:
            PyBuffer_Release(&id_view)
            PyBuffer_Release(&deadline_view)
        return codes

    def move(self, ids, deadlines_ns):
        """Set the deadlines of leases, earlier or later."""
        return self._move(ids, deadlines_ns, False)

    def extend(self, ids, deadlines_ns):
        """Make the deadlines of leases later; none becomes earlier."""
        return self._move(ids, deadlines_ns, True)

    cdef bytes _move(self, object ids, object deadlines_ns, bint lengthen_only):
        cdef Py_buffer id_view, deadline_view
        cdef bytes codes
        acquire_pair(ids, deadlines_ns, &id_view, &deadline_view)
        try:
            codes = PyBytes_FromStringAndSize(NULL, id_view.len // 8)
            heap_move_batch(
                &self._heap, <const char *>id_view.buf, <const char *>deadline_view.buf,
                id_view.len // 8, lengthen_only, <uint8_t *>PyBytes_AsString(codes),
            )
        finally:
            PyBuffer_Release(&id_view)
            PyBuffer_Release(&deadline_view)
        return codes

    def drop(self, ids):
        """Forget leases; an id that comes twice in the batch is UNKNOWN the second time."""
        cdef Py_buffer view
        cdef bytes codes
        acquire(ids, "ids", &view)
        try:
            codes = PyBytes_FromStringAndSize(NULL, view.len // 8)
            heap_drop_batch(
                &self._heap, <const char *>view.buf, view.len // 8,
                <uint8_t *>PyBytes_AsString(codes),
            )
        finally:
            PyBuffer_Release(&view)
        return codes

    def pop_due(self, int64_t now_ns, size_t limit):
        """Remove the leases whose deadline is at or before now_ns, at most `limit`, earliest first.

        Returns:
            Their ids as a read-only memoryview of format 'Q'; `.tolist()` makes ints of them.
        """
        cdef due_t due
        cdef bytes ids
        if not heap_due(&self._heap, now_ns, limit, &due):
            raise MemoryError
        try:
            # All that can fail comes before the heap changes: no lease is lost.
            ids = PyBytes_FromStringAndSize(NULL, 8 * <Py_ssize_t>due.count)
            view = memoryview(ids).cast("Q")
            heap_pop_due(&self._heap, &due, <uint64_t *>PyBytes_AsString(ids))
        finally:
            heap_due_free(&due)
        return view


def spread(ids, deadlines_ns, int64_t now_ns, uint64_t seed, double least, double most):
    """Return for every lease an instant between now_ns and its deadline, as packed int64.

    Which part of the way has passed then, from `least` to `most` of 1, is uniform over ids: a hash
    of the id under the seed.

    Raises:
        ValueError: not 0 <= least <= most <= 1.
    """
    cdef Py_buffer id_view, deadline_view
    cdef bytes instants_ns
    if not 0 <= least <= most <= 1:
        raise ValueError(f"0 <= least <= most <= 1 does not hold for {least} and {most}")
    acquire_pair(ids, deadlines_ns, &id_view, &deadline_view)
    try:
        instants_ns = PyBytes_FromStringAndSize(NULL, id_view.len)
        spread_batch(
            <const char *>id_view.buf, <const char *>deadline_view.buf, id_view.len // 8, now_ns,
            seed, <uint64_t>(least * PART_ONE), <uint64_t>(most * PART_ONE),
            PyBytes_AsString(instants_ns),
        )
    finally:
        PyBuffer_Release(&id_view)
        PyBuffer_Release(&deadline_view)
    return instants_ns
