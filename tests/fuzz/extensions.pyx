"""Extension structures on arbitrary bytes: where they are, what they are worth, what is in them."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from extensions cimport (
    EXTENSION_BAD_CHECKSUM, EXTENSION_BAD_LENGTH, EXTENSION_BAD_VERSION, EXTENSION_END,
    EXTENSION_HEADER_BYTES, EXTENSION_LYING, EXTENSION_OBJECT, EXTENSION_OK, check_extensions,
    extension_object_t, find_extensions, next_extension,
)
from fuzz.feed cimport must

cdef enum:                         # bits of an input's first byte
    VERSION_6 = 1
    MESSAGE = 2                    # an ICMP message, else a structure alone
    EXTENDED = 4                   # make its type one that has extensions
    NO_LENGTH = 8                  # as senders older than the RFC leave it
    VERSION_2 = 16                 # put the structure's version right
    SIGNED = 32                    # and its checksum
    SIGNED_ELSEWHERE = 64          # make it sum up with a checksum of 0

cdef enum:
    QUOTE_AT = 8                   # behind the ICMP header
    LEGACY_AT = 136


cdef uint16_t plain_sum(const uint8_t *p, size_t n) noexcept nogil:
    """RFC 1071, by the book."""
    cdef uint32_t total = 0
    cdef size_t i
    for i in range(n):
        total += <uint32_t>p[i] if i & 1 else <uint32_t>p[i] << 8
        total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total


cdef void write_sum(uint8_t *p, size_t n, size_t at) noexcept nogil:
    """Make n bytes sum up to ones by the two at `at`."""
    cdef uint16_t total
    p[at] = p[at + 1] = 0
    total = <uint16_t>(~plain_sum(p, n) & 0xFFFF)
    p[at] = <uint8_t>(total >> 8)
    p[at + 1] = <uint8_t>total


cdef void dress_structure(uint8_t *p, size_t n, uint8_t how) noexcept nogil:
    """Put right what the input would not hit by chance."""
    if n < 8:
        return
    if how & VERSION_2:
        p[0] = 0x20 | p[0] & 15
    if how & SIGNED:
        write_sum(p, n, 2)
    elif how & SIGNED_ELSEWHERE:
        p[2] = p[3] = 0
        write_sum(p, n, 6)


cdef void dress_message(uint8_t *p, size_t n, uint8_t how) noexcept nogil:
    cdef size_t length_at = 4 if how & VERSION_6 else 5
    cdef size_t at = LEGACY_AT
    if n < QUOTE_AT:
        return
    if how & EXTENDED:
        p[0] = (1 | p[0] & 2) if how & VERSION_6 else (3 if p[0] & 1 else 11)
    if how & NO_LENGTH:
        p[length_at] = 0
    elif p[length_at]:
        at = QUOTE_AT + <size_t>p[length_at] * (8 if how & VERSION_6 else 4)
    if at < n:
        dress_structure(p + at, n - at, how)


cdef size_t plain_find(int version, const uint8_t *p, size_t n) noexcept nogil:
    """Where RFC 4884 says that the structure begins; n: nowhere."""
    cdef uint8_t field
    cdef size_t at
    if n <= QUOTE_AT:
        return n
    if version == 4 and p[0] != 3 and p[0] != 11 and p[0] != 12:
        return n
    if version == 6 and p[0] != 1 and p[0] != 3:
        return n
    field = p[5] if version == 4 else p[4]
    at = QUOTE_AT + <size_t>field * (4 if version == 4 else 8)
    if field:
        return at if at >= LEGACY_AT and at < n else n
    if n < LEGACY_AT + 4 or p[LEGACY_AT] & 0xF0 != 0x20:
        return n
    if p[LEGACY_AT + 2] == 0 and p[LEGACY_AT + 3] == 0:
        return n
    return LEGACY_AT if plain_sum(p + LEGACY_AT, n - LEGACY_AT) == 0xFFFF else n


cdef bint is_lie(const uint8_t *p, size_t left) noexcept nogil:
    """Whether the object at p, of which `left` bytes are there at the most, has a wrong length."""
    cdef size_t claimed
    if left < 4:
        return True
    claimed = <size_t>p[0] * 256 + p[1]
    return claimed == 0 or claimed & 3 != 0 or claimed > left


cdef int walk(const uint8_t *p, size_t n, size_t *objects) noexcept nogil:
    """Insist on every step of a walk; return how it ended."""
    cdef extension_object_t each
    cdef size_t offset = EXTENSION_HEADER_BYTES
    cdef size_t before
    cdef int found
    objects[0] = 0
    while True:
        before = offset
        found = next_extension(p, n, &offset, &each)
        if found != EXTENSION_OBJECT:
            break
        objects[0] += 1
        must(before < offset <= n, b"a walk goes on, and stays inside")
        must(not is_lie(p + before, n - before), b"an object is as long as it says")
        must(each.payload == p + before + 4 and each.payload + each.payload_bytes == p + offset,
             b"a payload is the rest of its object")
        must(each.class_num == p[before + 2] and each.c_type == p[before + 3], b"its own header")
    must(offset == before and each.payload == NULL, b"the end of a walk changes nothing")
    must(found == EXTENSION_END or found == EXTENSION_LYING, b"a walk ends well or with a lie")
    if found == EXTENSION_END:
        must(offset == n or n < EXTENSION_HEADER_BYTES, b"a good end is the end of the bytes")
    else:
        must(is_lie(p + offset, n - offset), b"a lie is one")
    return found


cdef void check_structure(const uint8_t *p, size_t n) noexcept nogil:
    """Insist that the verdict is the one that follows from the walk and the header."""
    cdef size_t objects
    cdef int verdict = check_extensions(p, n)
    cdef int end = walk(p, n, &objects)
    if n < 4:
        must(verdict == EXTENSION_BAD_LENGTH, b"a header has 4 bytes")
    elif p[0] & 0xF0 != 0x20:
        must(verdict == EXTENSION_BAD_VERSION, b"the version is 2")
    elif (p[2] or p[3]) and plain_sum(p, n) != 0xFFFF:
        must(verdict == EXTENSION_BAD_CHECKSUM, b"a checksum that is there is right")
    elif end == EXTENSION_LYING or objects == 0:
        must(verdict == EXTENSION_BAD_LENGTH, b"objects are whole, and there is one")
    else:
        must(verdict == EXTENSION_OK, b"nothing else can be wrong")


cdef void check_message(int version, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *found = p
    cdef size_t length = find_extensions(version, p, n, &found)
    cdef size_t at = plain_find(version, p, n)
    must(length == n - at, b"a structure is where RFC 4884 says")
    must(found == (p + at if length else NULL), b"and it ends the message")
    if length:
        check_structure(found, length)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first byte says what the others are, and what to put right."""
    cdef uint8_t *copy
    cdef uint8_t how
    if n == 0:
        return 0
    how = data[0]
    n -= 1
    copy = <uint8_t *>malloc(n)  # of its own, so that the sanitizer knows where it ends
    memcpy(copy, data + 1, n)
    if how & MESSAGE:
        dress_message(copy, n, how)
        check_message(6 if how & VERSION_6 else 4, copy, n)
    else:
        dress_structure(copy, n, how)
        check_structure(copy, n)
    free(copy)
    return 0
