"""What an ICMP error quotes of a probe, on arbitrary bytes: nothing is read or claimed outside."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from extensions cimport find_extensions
from fuzz.feed cimport must
from packet cimport (
    PARSE_FOREIGN, PARSE_OK, PARSE_SHORT, ip_t, load_be16, load_be32, parse_ipv4, parse_ipv6,
)
from probequote cimport parse_probe_quote, probe_quote_t

cdef enum:                         # bits of an input's first byte
    VERSION_6 = 1
    ERROR = 2                      # make it an error; its type by the next two bits
    DRESSED = 16                   # put the quoted IP header right
    PROTOCOL_BITS = 5              # with DRESSED the rest say which protocol is quoted

cdef enum:
    QUOTE_AT = 8                   # behind the ICMP header


cdef void dress_error(uint8_t *p, size_t n, uint8_t how) noexcept nogil:
    """Make a message an error, one in four a too-big one."""
    cdef uint8_t kind = how >> 2 & 3
    if n < QUOTE_AT:
        return
    if how & VERSION_6:
        p[0] = 1 + kind
    else:
        p[0] = 11 if kind == 0 else 12 if kind == 1 else 3
        if kind == 3:
            p[1] = 4


cdef void dress_quote(uint8_t *p, size_t n, uint8_t how) noexcept nogil:
    """Give the quote an IP header of the right version, for a probe of some protocol."""
    cdef bint v6 = how & VERSION_6
    cdef uint8_t which = how >> PROTOCOL_BITS
    cdef size_t body = QUOTE_AT + (40 if v6 else 20)
    cdef uint8_t protocol = 17 if which & 1 else 6 if which & 2 else 58 if v6 else 1
    if n <= body:
        return
    if v6:
        p[QUOTE_AT] = 0x60 | p[QUOTE_AT] & 15
        if not which & 4:          # else extension headers, as the input has them
            p[QUOTE_AT + 6] = protocol
        p[QUOTE_AT + 4] = 0        # a length that is near what is there
    else:
        p[QUOTE_AT] = 0x40 | (p[QUOTE_AT] & 15 if which & 4 else 5)
        p[QUOTE_AT + 2] = 0
        p[QUOTE_AT + 6] &= 0xE0
        p[QUOTE_AT + 7] = 0
        p[QUOTE_AT + 9] = protocol
    if protocol == 1 or protocol == 58:
        p[body] = 128 if v6 else 8


cdef uint32_t plain_mtu(int version, const uint8_t *p, size_t n) noexcept nogil:
    """The MTU by the books: RFC 1191 4, RFC 4443 3.2."""
    if n <= QUOTE_AT:
        return 0
    if version == 4:
        return <uint32_t>p[6] * 256 + p[7] if p[0] == 3 and p[1] == 4 else 0
    if p[0] != 2:
        return 0
    return (<uint32_t>p[4] * 256 + p[5]) * 65536 + <uint32_t>p[6] * 256 + p[7]


cdef void check_header(
    int version, const uint8_t *quote, size_t n, const ip_t *ip, const probe_quote_t *q,
) noexcept nogil:
    """Insist on what is said of the quoted IP header."""
    cdef size_t width = 4 if version == 4 else 16
    must(q.version == version and n >= (20 if version == 4 else 40), b"its header is there")
    must(q.source == quote + (12 if version == 4 else 8) and q.destination == q.source + width,
         b"both addresses are in the quoted header")
    must(q.protocol == ip.protocol, b"the protocol is that of the transport")
    if version == 4:
        must(q.ttl == quote[8] and q.tos == quote[1] and q.protocol == quote[9]
             and q.ip_ident == load_be16(quote + 4) and q.flow_label == 0, b"IPv4's own fields")
    else:
        must(q.ttl == quote[7] and q.tos == <uint8_t>(load_be16(quote) >> 4)
             and q.flow_label == (load_be32(quote) & 0xFFFFF) and q.ip_ident == 0,
             b"IPv6's own fields")


cdef void check_transport(int version, const uint8_t *body, const probe_quote_t *q) noexcept nogil:
    """Insist that its fields are those of the protocol, and no others are set."""
    cdef bint icmp = q.protocol == (1 if version == 4 else 58)
    cdef uint16_t ports[2]
    must(icmp or q.protocol == 17 or q.protocol == 6, b"a probe's protocol")
    ports[0] = 0 if icmp else load_be16(body)
    ports[1] = 0 if icmp else load_be16(body + 2)
    must(q.source_port == ports[0] and q.destination_port == ports[1], b"ports")
    if icmp:
        must(body[0] == (8 if version == 4 else 128), b"only requests are probes")
    must(q.icmp_checksum == (load_be16(body + 2) if icmp else 0)
         and q.ident == (load_be16(body + 4) if icmp else 0)
         and q.sequence == (load_be16(body + 6) if icmp else 0), b"an echo request's fields")
    must(q.udp_length == (load_be16(body + 4) if q.protocol == 17 else 0)
         and q.udp_checksum == (load_be16(body + 6) if q.protocol == 17 else 0), b"UDP's fields")
    must(q.tcp_sequence == (load_be32(body + 4) if q.protocol == 6 else 0), b"TCP's sequence")


cdef void check_payload(
    int version, const uint8_t *quote, size_t n, const uint8_t *body, const probe_quote_t *q,
) noexcept nogil:
    """Insist that it is all that is quoted, begins behind the header, and stops where IP says."""
    cdef size_t claimed = load_be16(quote + 2) if version == 4 else 40 + load_be16(quote + 4)
    cdef size_t end = claimed if claimed < n else n
    cdef size_t begin = <size_t>(body - quote) + 8
    cdef size_t header
    if q.protocol == 6:
        begin += 12
        header = <size_t>(body[12] & 0xF0) >> 2 if begin < end else 0
        begin = begin + header - 20 if header >= 20 else end
    if begin >= end:
        must(q.payload == NULL and q.payload_bytes == 0, b"a quote that ends has no payload")
        return
    must(q.payload == quote + begin and q.payload + q.payload_bytes == quote + end,
         b"the payload is what the datagram claims and the quote has")


cdef void check_extension(
    int version, const uint8_t *p, size_t n, const probe_quote_t *q,
) noexcept nogil:
    cdef const uint8_t *found
    must(q.extension_bytes == find_extensions(version, p, n, &found) and q.extension == found,
         b"the extension is the one that is found")
    must(q.extension == NULL or q.extension + q.extension_bytes == p + n, b"and ends the message")


cdef void check_quote(
    int version, const uint8_t *p, size_t n, int code, const probe_quote_t *q,
) noexcept nogil:
    """Insist on what holds of every message, and of a probe that was read."""
    cdef ip_t ip
    cdef const uint8_t *quote
    cdef size_t quoted
    cdef int ip_code
    must(code == PARSE_OK or code == PARSE_SHORT or code == PARSE_FOREIGN, b"a code of ours")
    must(q.mtu == plain_mtu(version, p, n), b"the MTU is the error's")
    if n <= QUOTE_AT:
        must(code == PARSE_SHORT and q.extension == NULL, b"without a quote there is nothing")
        return
    check_extension(version, p, n, q)
    quote = p + QUOTE_AT
    quoted = n - QUOTE_AT - q.extension_bytes
    ip_code = (parse_ipv4(quote, quoted, True, &ip) if version == 4
               else parse_ipv6(quote, quoted, &ip))
    if ip_code != PARSE_OK:
        must(code == ip_code and not q.is_cut and q.source == NULL, b"what is no datagram is none")
        return
    check_header(version, quote, quoted, &ip, q)
    must(q.is_cut == (ip.body_bytes < 8), b"8 bytes of the transport are needed")
    must(not q.is_cut or code == PARSE_SHORT, b"and reading needs them")
    must(q.is_cut or code != PARSE_SHORT, b"and nothing else is too short")
    if code == PARSE_OK:
        check_transport(version, ip.body, q)
        check_payload(version, quote, quoted, ip.body, q)
    else:
        must(q.payload == NULL and q.source_port == 0 and q.ident == 0, b"no probe, no fields")


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first byte says the family, and what to put right; the others are an ICMP message."""
    cdef uint8_t *message
    cdef probe_quote_t q
    cdef int code, version
    if n == 0:
        return 0
    version = 6 if data[0] & VERSION_6 else 4
    n -= 1
    message = <uint8_t *>malloc(n)  # of its own, so that the sanitizer knows where it ends
    memcpy(message, data + 1, n)
    if data[0] & ERROR:
        dress_error(message, n, data[0])
    if data[0] & DRESSED:
        dress_quote(message, n, data[0])
    code = parse_probe_quote(version, message, n, &q)
    check_quote(version, message, n, code, &q)
    free(message)
    return 0
