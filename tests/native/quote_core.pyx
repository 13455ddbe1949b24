"""What ICMP errors quote and carry, for Python tests: `probequote` and `extensions` on bytes."""

from collections import namedtuple

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cimport cython
from extensions cimport (
    EXTENSION_BAD_CHECKSUM, EXTENSION_BAD_LENGTH, EXTENSION_BAD_VERSION, EXTENSION_HEADER_BYTES,
    EXTENSION_LYING, EXTENSION_OBJECT, EXTENSION_OK, check_extensions, extension_object_t,
    find_extensions, next_extension,
)
from packet cimport PARSE_FOREIGN, PARSE_OK, PARSE_SHORT
from probequote cimport parse_probe_quote, probe_quote_t

ProbeQuote = namedtuple(
    "ProbeQuote",
    "status version protocol ttl tos is_cut ip_ident flow_label source destination ident sequence "
    "icmp_checksum source_port destination_port udp_length udp_checksum tcp_sequence payload mtu "
    "extension")

OK, SHORT, FOREIGN = PARSE_OK, PARSE_SHORT, PARSE_FOREIGN
TRUSTED = EXTENSION_OK
BAD_VERSION, BAD_CHECKSUM = EXTENSION_BAD_VERSION, EXTENSION_BAD_CHECKSUM
BAD_LENGTH = EXTENSION_BAD_LENGTH


@cython.final
cdef class Copy:
    """Bytes of their own, so that a sanitizer knows where they end."""

    cdef uint8_t *p
    cdef size_t n

    def __cinit__(self, bytes data not None):
        self.n = len(data)
        self.p = <uint8_t *>malloc(self.n)
        if self.p == NULL and self.n:
            raise MemoryError
        memcpy(self.p, <const char *>data, self.n)

    def __dealloc__(self):
        free(self.p)


cdef bytes taken(const uint8_t *p, size_t n):
    return (<const char *>p)[:n] if p != NULL else b""


def parse(int version, bytes message not None):
    """Read an ICMP error of version 4 or 6."""
    cdef Copy copy = Copy(message)
    cdef probe_quote_t q
    cdef int status = parse_probe_quote(version, copy.p, copy.n, &q)
    cdef size_t width = 4 if version == 4 else 16
    return ProbeQuote(
        status, q.version, q.protocol, q.ttl, q.tos, bool(q.is_cut), q.ip_ident, q.flow_label,
        taken(q.source, width), taken(q.destination, width), q.ident, q.sequence, q.icmp_checksum,
        q.source_port, q.destination_port, q.udp_length, q.udp_checksum, q.tcp_sequence,
        taken(q.payload, q.payload_bytes), q.mtu, taken(q.extension, q.extension_bytes))


def find(int version, bytes message not None):
    """Return the extension structure of an ICMP error, empty when there is none."""
    cdef Copy copy = Copy(message)
    cdef const uint8_t *found
    cdef size_t n = find_extensions(version, copy.p, copy.n, &found)
    return taken(found, n)


def check(bytes structure not None):
    """Return TRUSTED or what is wrong with an extension structure."""
    cdef Copy copy = Copy(structure)
    return check_extensions(copy.p, copy.n)


def walk(bytes structure not None):
    """Return the objects of a structure, and whether the walk got to its end."""
    cdef Copy copy = Copy(structure)
    cdef extension_object_t each
    cdef size_t offset = EXTENSION_HEADER_BYTES
    cdef int found = next_extension(copy.p, copy.n, &offset, &each)
    objects = []
    while found == EXTENSION_OBJECT:
        objects.append((each.class_num, each.c_type, taken(each.payload, each.payload_bytes)))
        found = next_extension(copy.p, copy.n, &offset, &each)
    return objects, found != EXTENSION_LYING
