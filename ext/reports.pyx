"""Report items from columns: the results of a batch as JSON in one buffer, without a dict for each.

The core is reportitem.pxd. No I/O, no state.
"""

from cpython.bytearray cimport PyByteArray_AsString, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AsStringAndSize, PyBytes_FromStringAndSize
from cpython.list cimport PyList_GetItem
from cpython.long cimport (
    PyLong_AsLongLong, PyLong_AsUnsignedLongLong, PyLong_FromUnsignedLongLong,
)
from libc.stdint cimport uint8_t

from reportitem cimport item_bytes_max, item_t, leading_id, second_t, text_t, write_item

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *n) except NULL


cdef int take_text(list column, Py_ssize_t i, text_t *out) except -1:
    """Point at the i-th text of a column, which keeps it alive; None: all are empty."""
    cdef char *at = NULL
    cdef Py_ssize_t n = 0
    if column is not None:
        PyBytes_AsStringAndSize(<object>PyList_GetItem(column, i), &at, &n)
    out.at, out.n = at, <size_t>n
    return 0


cdef int take_word(list column, Py_ssize_t i, text_t *out) except -1:
    """Point at the i-th word of a column, which keeps it alive."""
    cdef Py_ssize_t n = 0
    out.at = PyUnicode_AsUTF8AndSize(<object>PyList_GetItem(column, i), &n)
    out.n = <size_t>n
    return 0


cdef bytes written(const item_t *item, second_t *latest, bytearray room):
    """Return an item; room is where it is written, made larger when it has to be."""
    cdef Py_ssize_t most = <Py_ssize_t>item_bytes_max(item)
    cdef uint8_t *out
    if len(room) < most:
        PyByteArray_Resize(room, 2 * most)
    out = <uint8_t *>PyByteArray_AsString(room)
    return PyBytes_FromStringAndSize(
        <const char *>out, <Py_ssize_t>write_item(out, item, latest)
    )


def write_items(
    list lease_ids not None, list started_at_ns not None, list durations_ns not None,
    list outcomes not None, list observations not None, list envs not None, *,
    list before=None, list after=None,
):
    """Return a report item for each row.

    `observations` are JSON arrays and `envs` JSON objects; `before` and `after` are members,
    without a comma around them and empty for none, that go behind `lease_id` and behind `env`.
    Texts are taken as they are: they must be what our encoder made, outcomes words.

    Raises:
        ValueError: the columns differ in length.
        OverflowError: an id is outside 0 to 2^64-1, an instant or a duration outside int64.
    """
    cdef Py_ssize_t count = len(lease_ids), i
    cdef bytearray room = bytearray()
    cdef list items = []
    cdef item_t item
    cdef second_t latest
    latest.is_known, latest.seconds = False, 0
    for column in (started_at_ns, durations_ns, outcomes, observations, envs, before, after):
        if column is not None and len(column) != count:
            raise ValueError(f"{count} lease_ids, but a column of {len(column)}")
    for i in range(count):
        item.lease_id = PyLong_AsUnsignedLongLong(<object>PyList_GetItem(lease_ids, i))
        item.started_at_ns = PyLong_AsLongLong(<object>PyList_GetItem(started_at_ns, i))
        item.duration_ns = PyLong_AsLongLong(<object>PyList_GetItem(durations_ns, i))
        take_text(before, i, &item.before)
        take_word(outcomes, i, &item.outcome)
        take_text(observations, i, &item.observations)
        take_text(envs, i, &item.env)
        take_text(after, i, &item.after)
        items.append(written(&item, &latest, room))
    return items


def leading_ids(list items not None):
    """Return the lease id that each item begins with as write_items writes it; 0 where none does.

    Raises:
        TypeError: an item is not bytes.
    """
    cdef list ids = []
    cdef text_t item
    cdef Py_ssize_t i
    for i in range(len(items)):
        take_text(items, i, &item)
        ids.append(PyLong_FromUnsignedLongLong(leading_id(item.at, item.n)))
    return ids
