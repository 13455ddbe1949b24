"""The packet core on arbitrary bytes: nothing is read outside, and what is said is consistent."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from fuzz.feed cimport feed_byte, feed_t, feed_u16, feed_u32, feed_u64, must
from packet cimport (
    ICMP_HEADER_BYTES, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PARSE_FOREIGN, PARSE_OK, PARSE_SHORT,
    build_ipv4_header, build_ipv6_header, checksum_add, checksum_fold, echo_header, icmp_t,
    internet_checksum, ip_t, is_icmp_error, is_ipv6_extension, load_be16, load_be32, load_be64,
    parse_icmp, parse_ipv4, parse_ipv6, parse_quote, pseudo_header_sum, quote_bytes, store_be32,
    store_be64, store_summed,
)

cdef enum:
    BUILD_BYTES = 64


cdef uint16_t plain_checksum(const uint8_t *p, size_t n) noexcept nogil:
    """RFC 1071, by the book: 16 bits at a time."""
    cdef uint32_t total = 0
    cdef size_t i
    for i in range(n):
        total += <uint32_t>p[i] if i & 1 else <uint32_t>p[i] << 8
        total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>(~total & 0xFFFF)


cdef void check_span(
    const uint8_t *outer, size_t n, const uint8_t *inner, size_t inner_n,
) noexcept nogil:
    """Insist that a span lies inside another; reading it lets the sanitizer look as well."""
    must(inner >= outer and inner_n <= n and <size_t>(inner - outer) <= n - inner_n,
         b"what a parser fills points into the caller's bytes")
    must(internet_checksum(inner, inner_n) == plain_checksum(inner, inner_n),
         b"the checksum is RFC 1071's")


cdef void check_ip(
    int version, const uint8_t *p, size_t n, int code, const ip_t *ip,
) noexcept nogil:
    """Insist on what holds of every packet a parser took."""
    must(code == PARSE_OK or code == PARSE_SHORT or code == PARSE_FOREIGN, b"a code of ours")
    if code != PARSE_OK:
        return
    must(ip.version == version and p[0] >> 4 == version, b"the version is the packet's")
    check_span(p, n, ip.body, ip.body_bytes)
    check_span(p, n, ip.source, 4 if version == 4 else 16)
    check_span(p, n, ip.destination, 4 if version == 4 else 16)
    must(ip.destination + (4 if version == 4 else 16) <= ip.body, b"the body follows the header")


cdef void fuzz_ipv4(const uint8_t *p, size_t n) noexcept nogil:
    cdef ip_t whole, quoted
    cdef int code = parse_ipv4(p, n, False, &whole)
    cdef int quoted_code = parse_ipv4(p, n, True, &quoted)
    check_ip(4, p, n, code, &whole)
    check_ip(4, p, n, quoted_code, &quoted)
    if code == PARSE_OK:
        must(quoted_code == PARSE_OK, b"a whole packet may be quoted")
        must(whole.body == quoted.body and whole.body_bytes <= quoted.body_bytes,
             b"a quote goes to the end of the bytes")
        must(whole.body + whole.body_bytes == p + whole.total_bytes,
             b"a whole packet ends where its header says")
        must(whole.body == p + (p[0] & 15) * 4, b"the header is as long as it says")
        must(load_be16(p + 6) & 0x1FFF == 0, b"a later fragment has no body")


cdef void fuzz_ipv6(const uint8_t *p, size_t n) noexcept nogil:
    cdef ip_t ip
    cdef int code = parse_ipv6(p, n, &ip)
    check_ip(6, p, n, code, &ip)
    if code == PARSE_OK:
        must(ip.body + ip.body_bytes == p + n, b"the body goes to the end of the bytes")
        must((ip.body - p) % 8 == 0, b"extension headers are whole words")
        must(ip.flow_label == (load_be32(p) & 0xFFFFF), b"the flow label is the header's")
        must(not is_ipv6_extension(ip.protocol) or ip.body >= p + IPV6_HEADER_BYTES + 64,
             b"extension headers are skipped, up to eight")


cdef void fuzz_icmp(const uint8_t *p, size_t n, int version) noexcept nogil:
    cdef icmp_t icmp
    cdef ip_t ip
    cdef size_t quoted = quote_bytes(version, p, n)
    cdef int code
    must(quoted <= (n - ICMP_HEADER_BYTES if n > ICMP_HEADER_BYTES else 0),
         b"a quote is no longer than what follows the header")
    if parse_icmp(p, n, &icmp) != PARSE_OK:
        must(n < ICMP_HEADER_BYTES, b"8 bytes are an ICMP header")
        return
    must(icmp.payload == p + ICMP_HEADER_BYTES and icmp.payload_bytes == n - ICMP_HEADER_BYTES,
         b"the payload is what follows the header")
    must(quoted == icmp.payload_bytes or quoted >= 128, b"a shorter quote is padded (RFC 4884)")
    check_span(p, n, icmp.payload, icmp.payload_bytes)
    if is_icmp_error(version, icmp.type):
        code = parse_quote(version, p, n, &ip)
        check_ip(version, p + ICMP_HEADER_BYTES, quoted, code, &ip)


cdef void fuzz_build_ipv4(feed_t *feed) noexcept nogil:
    """Insist that what the builder wrote is read back."""
    cdef uint8_t packet[BUILD_BYTES]
    cdef uint8_t addresses[8]
    cdef uint16_t body = feed_byte(feed) % 40
    cdef uint8_t protocol = feed_byte(feed), tos = feed_byte(feed), ttl = feed_byte(feed)
    cdef uint16_t ident = feed_u16(feed)
    cdef ip_t ip
    store_be64(addresses, feed_u64(feed))
    build_ipv4_header(packet, addresses, addresses + 4, <uint16_t>(IPV4_HEADER_BYTES + body),
                      protocol, tos, ttl, ident, feed_byte(feed) & 1)
    must(internet_checksum(packet, IPV4_HEADER_BYTES) == 0, b"the header checksum is right")
    must(parse_ipv4(packet, <size_t>IPV4_HEADER_BYTES + body, False, &ip) == PARSE_OK,
         b"a packet of ours is read")
    must(ip.protocol == protocol and ip.tos == tos and ip.ttl == ttl and ip.ident == ident
         and ip.body_bytes == body and memcmp(ip.source, addresses, 8) == 0, b"as it was written")


cdef void fuzz_build_ipv6(feed_t *feed) noexcept nogil:
    """As for IPv4; and the pseudo header's sum is that of its bytes."""
    cdef uint8_t packet[BUILD_BYTES]
    cdef uint8_t pseudo[40]
    cdef uint16_t payload = feed_u16(feed)
    cdef uint8_t tos = feed_byte(feed), hops = feed_byte(feed)
    cdef uint32_t label = feed_u32(feed) & 0xFFFFF
    cdef ip_t ip
    cdef int i
    for i in range(4):
        store_be64(pseudo + 8 * i, feed_u64(feed))
    store_be32(pseudo + 32, payload)
    store_be32(pseudo + 36, 58)
    build_ipv6_header(packet, pseudo, pseudo + 16, payload, 58, tos, hops, label)
    must(parse_ipv6(packet, IPV6_HEADER_BYTES, &ip) == PARSE_OK, b"a packet of ours is read")
    must(ip.protocol == 58 and ip.tos == tos and ip.ttl == hops and ip.flow_label == label
         and ip.total_bytes == <uint32_t>IPV6_HEADER_BYTES + payload
         and memcmp(ip.source, pseudo, 32) == 0, b"as it was written")
    must(checksum_fold(pseudo_header_sum(pseudo, pseudo + 16, 16, payload, 58))
         == <uint16_t>(~plain_checksum(pseudo, 40) & 0xFFFF), b"the pseudo header's sum")


cdef void fuzz_build_icmp(feed_t *feed) noexcept nogil:
    cdef uint8_t packet[ICMP_HEADER_BYTES]
    cdef uint16_t ident = feed_u16(feed), sequence = feed_u16(feed), checksum
    cdef icmp_t icmp
    cdef uint8_t type_ = feed_byte(feed)
    cdef uint64_t total = store_summed(0, packet, echo_header(type_, 0, ident, sequence))
    checksum = internet_checksum(packet, ICMP_HEADER_BYTES)
    must(checksum == <uint16_t>~checksum_fold(total), b"what is stored is what is summed")
    store_be64(packet, echo_header(type_, checksum, ident, sequence))
    must(parse_icmp(packet, ICMP_HEADER_BYTES, &icmp) == PARSE_OK and icmp.ident == ident
         and icmp.sequence == sequence and icmp.checksum == checksum, b"as it was written")
    must(checksum_fold(checksum_add(0, packet, ICMP_HEADER_BYTES)) == 0xFFFF
         or load_be64(packet) == 0, b"with its checksum a message sums to ones")


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) noexcept nogil:
    """The first byte says what to do with the others."""
    cdef feed_t feed
    if n == 0:
        return 0
    feed.data = data + 1
    feed.left = n - 1
    if data[0] % 8 < 2:
        fuzz_ipv4(data + 1, n - 1)
    elif data[0] % 8 == 2:
        fuzz_ipv6(data + 1, n - 1)
    elif data[0] % 8 < 5:
        fuzz_icmp(data + 1, n - 1, 4 if data[0] & 1 else 6)
    elif data[0] % 8 == 5:
        fuzz_build_ipv4(&feed)
    elif data[0] % 8 == 6:
        fuzz_build_ipv6(&feed)
    else:
        fuzz_build_icmp(&feed)
    return 0
