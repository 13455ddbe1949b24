"""The structure that routers attach to ICMP errors: MPLS labels and the like, RFC 4884.

A header (version, checksum) and objects, behind the quoted datagram. Nothing is copied, and nothing
is read past `n` whatever the lengths inside say.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memset

from packet cimport (
    ICMP6_TIME_EXCEEDED, ICMP6_UNREACHABLE, ICMP_HEADER_BYTES, internet_checksum, is_icmp_error,
    load_be16, quote_bytes,
)

cdef enum:                         # what a structure is found to be
    EXTENSION_OK = 0
    EXTENSION_BAD_VERSION = -1
    EXTENSION_BAD_CHECKSUM = -2    # damaged, or not meant to be a structure
    EXTENSION_BAD_LENGTH = -3      # no object, or one that lies about its length

cdef enum:                         # what next_extension found
    EXTENSION_OBJECT = 1
    EXTENSION_END = 0
    EXTENSION_LYING = -1           # an object that claims more than there is, or too little

cdef enum:
    EXTENSION_VERSION = 2
    EXTENSION_HEADER_BYTES = 4     # where a walk starts
    EXTENSION_OBJECT_BYTES = 4     # of an object's header
    EXTENSION_LEGACY_QUOTE = 128   # bytes that senders older than the RFC quote

ctypedef struct extension_object_t:
    uint8_t class_num
    uint8_t c_type
    const uint8_t *payload
    size_t payload_bytes


cdef inline bint carries_extensions(int version, uint8_t type_) noexcept nogil:
    """Whether a message of this type may have a structure attached (RFC 4884 4)."""
    if version == 4:
        return is_icmp_error(4, type_)
    return type_ == ICMP6_UNREACHABLE or type_ == ICMP6_TIME_EXCEEDED


cdef inline bint is_legacy_structure(const uint8_t *p, size_t n) noexcept nogil:
    """Whether bytes that no length field announces are a structure all the same (RFC 4884 5.5).

    They may as well be more quote, so the checksum must be there and right.
    """
    return (n >= EXTENSION_HEADER_BYTES and p[0] >> 4 == EXTENSION_VERSION
            and load_be16(p + 2) != 0 and internet_checksum(p, n) == 0)


cdef inline size_t find_extensions(
    int version, const uint8_t *icmp, size_t n, const uint8_t **out,
) noexcept nogil:
    """Find the extension structure of an ICMP error; return its length, 0 when there is none.

    icmp, n: the whole ICMP message. out: set into it, or to NULL. What is found still needs
    check_extensions.
    """
    cdef size_t at
    out[0] = NULL
    if n <= ICMP_HEADER_BYTES or not carries_extensions(version, icmp[0]):
        return 0
    at = ICMP_HEADER_BYTES + quote_bytes(version, icmp, n)
    if (icmp[5 if version == 4 else 4] == 0 and n > ICMP_HEADER_BYTES + EXTENSION_LEGACY_QUOTE
            and is_legacy_structure(icmp + ICMP_HEADER_BYTES + EXTENSION_LEGACY_QUOTE,
                                    n - ICMP_HEADER_BYTES - EXTENSION_LEGACY_QUOTE)):
        at = ICMP_HEADER_BYTES + EXTENSION_LEGACY_QUOTE
    if at == n:
        return 0
    out[0] = icmp + at
    return n - at


cdef inline int next_extension(
    const uint8_t *p, size_t n, size_t *offset, extension_object_t *out,
) noexcept nogil:
    """Read the object at an offset of a structure and move the offset behind it.

    Start at EXTENSION_HEADER_BYTES. EXTENSION_OBJECT: out is filled. EXTENSION_END and
    EXTENSION_LYING end the walk and leave the offset. An object is whole words (RFC 4884 7), and
    its length counts its header: a walk has at most n / 4 steps.
    """
    cdef size_t at = offset[0]
    cdef size_t length
    memset(out, 0, sizeof(extension_object_t))
    if at >= n:
        return EXTENSION_END
    if n - at < EXTENSION_OBJECT_BYTES:
        return EXTENSION_LYING
    length = load_be16(p + at)
    if length < EXTENSION_OBJECT_BYTES or length % 4 != 0 or length > n - at:
        return EXTENSION_LYING
    out.class_num = p[at + 2]
    out.c_type = p[at + 3]
    out.payload = p + at + EXTENSION_OBJECT_BYTES
    out.payload_bytes = length - EXTENSION_OBJECT_BYTES
    offset[0] = at + length
    return EXTENSION_OBJECT


cdef inline int check_extensions(const uint8_t *p, size_t n) noexcept nogil:
    """Say whether a structure can be believed: EXTENSION_OK, or the first thing that is wrong.

    A checksum of 0 means that the sender made none (RFC 4884 7).
    """
    cdef extension_object_t each
    cdef size_t offset = EXTENSION_HEADER_BYTES
    cdef int found = EXTENSION_OBJECT
    if n < EXTENSION_HEADER_BYTES:
        return EXTENSION_BAD_LENGTH
    if p[0] >> 4 != EXTENSION_VERSION:
        return EXTENSION_BAD_VERSION
    if load_be16(p + 2) != 0 and internet_checksum(p, n) != 0:
        return EXTENSION_BAD_CHECKSUM
    while found == EXTENSION_OBJECT:
        found = next_extension(p, n, &offset, &each)
    if found == EXTENSION_LYING or offset == EXTENSION_HEADER_BYTES:
        return EXTENSION_BAD_LENGTH
    return EXTENSION_OK
