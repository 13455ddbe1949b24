"""What answers a trace's probe, on arbitrary bytes: `parse_answer` of both families."""

from libc.stdint cimport uint8_t, uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fuzz.feed cimport must
from packet cimport (
    ICMP4_TIME_EXCEEDED, ICMP_HEADER_BYTES, IPV4_HEADER_BYTES, PARSE_CHECKSUM, PARSE_FOREIGN,
    PARSE_OK, PARSE_SHORT, PROTOCOL_ICMP, internet_checksum, ip_t, is_icmp_error, load_be64,
    parse_ipv4, store_be16,
)
from quote cimport COOKIE_BYTES, answer_t, parse_answer


cdef void dress(uint8_t *p, size_t n) noexcept nogil:
    """Give a packet an IPv4 header that is in order: what it holds is the harder part."""
    if n < IPV4_HEADER_BYTES:
        return
    p[0] = 0x45
    store_be16(p + 2, <uint16_t>n)
    store_be16(p + 6, 0)
    p[9] = PROTOCOL_ICMP


cdef void dress_quote(uint8_t *p, size_t n) noexcept nogil:
    """Make it an error about an IPv4 ICMP packet, whose header is as long as the input says."""
    cdef uint8_t *quoted = p + IPV4_HEADER_BYTES + ICMP_HEADER_BYTES
    if n < IPV4_HEADER_BYTES + ICMP_HEADER_BYTES + IPV4_HEADER_BYTES:
        return
    p[IPV4_HEADER_BYTES] = ICMP4_TIME_EXCEEDED
    quoted[0] = 0x40 | quoted[0] & 15
    quoted[9] = PROTOCOL_ICMP


cdef void sign(uint8_t *p, size_t n) noexcept nogil:
    """Give an IPv4 packet the ICMP checksum that it would not hit by chance."""
    cdef ip_t ip
    cdef uint8_t *body
    if parse_ipv4(p, n, False, &ip) != PARSE_OK or ip.body_bytes < 4:
        return
    body = p + (ip.body - p)
    store_be16(body + 2, 0)
    store_be16(body + 2, internet_checksum(body, ip.body_bytes))


cdef void check_inside(const uint8_t *p, size_t n, const uint8_t *at, size_t width) noexcept nogil:
    must(at >= p and <size_t>(at - p) + width <= n, b"an answer points into the caller's bytes")


cdef void check_answer(int version, const uint8_t *p, size_t n, const answer_t *a) noexcept nogil:
    """Insist on what holds of every answer."""
    cdef size_t width = 4 if version == 4 else 16
    if version == 4:
        must(p[9] == PROTOCOL_ICMP and a.responder == p + 12 and a.reply_ttl == p[8],
             b"the responder is who sent the packet")
    else:
        must(a.responder == NULL, b"ICMPv6 comes without a header")
    must(a.is_error == is_icmp_error(version, a.type), b"an error is an error's type")
    if a.is_error:
        check_inside(p, n, a.source, width)
        check_inside(p, n, a.destination, width)
        must(a.destination == a.source + width, b"both addresses are of one quoted header")
    else:
        must(a.type == (0 if version == 4 else 129), b"the rest are echo replies")
        must(a.cookie != NULL and a.source == NULL, b"which echo a cookie and quote nothing")
    if a.cookie != NULL:
        check_inside(p, n, a.cookie, COOKIE_BYTES)
        must(not a.is_error or load_be64(a.cookie) != 0, b"padding is not taken for a cookie")
        must(a.ident == <uint16_t>(a.cookie[-4] << 8 | a.cookie[-3])
             and a.sequence == <uint16_t>(a.cookie[-2] << 8 | a.cookie[-1]),
             b"the cookie follows the ICMP header it came with")


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first byte says the family, and what to put right; the others are the packet."""
    cdef uint8_t *packet
    cdef answer_t answer
    cdef int code, version
    if n == 0:
        return 0
    version = 4 if data[0] & 1 else 6
    n -= 1
    packet = <uint8_t *>malloc(n)  # of its own, so that the sanitizer knows where it ends
    memcpy(packet, data + 1, n)
    if version == 4 and data[0] & 4:
        dress(packet, n)
        if data[0] & 8:
            dress_quote(packet, n)
    if version == 4 and data[0] & 2:
        sign(packet, n)
    code = parse_answer(version, packet, n, &answer)
    must(code == PARSE_OK or code == PARSE_SHORT or code == PARSE_FOREIGN
         or (code == PARSE_CHECKSUM and version == 4), b"a code of ours")
    if code == PARSE_OK:
        check_answer(version, packet, n, &answer)
    free(packet)
    return 0
