#include "packet.h"

/* The sum of native 16-bit words, which folds to the wire's byte order when it is stored. */
static uint64_t add_bytes(uint64_t sum, const uint8_t *bytes, size_t n) {
    uint32_t word;
    uint16_t half = 0;
    for (; n >= sizeof word; bytes += sizeof word, n -= sizeof word) {
        memcpy(&word, bytes, sizeof word);
        sum += word;
    }
    if (n >= sizeof half) {
        memcpy(&half, bytes, sizeof half);
        sum += half;
        bytes += sizeof half;
        n -= sizeof half;
    }
    if (n != 0) {
        half = 0;
        memcpy(&half, bytes, 1);
        sum += half;
    }
    return sum;
}

static uint16_t fold(uint64_t sum) {
    uint8_t stored[2];
    uint16_t folded;
    sum = (sum >> 32) + (sum & 0xFFFFFFFF);
    sum = (sum >> 32) + (sum & 0xFFFFFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    folded = (uint16_t)~sum;
    memcpy(stored, &folded, sizeof stored);
    return load16(stored);
}

uint16_t checksum_of(const uint8_t *bytes, size_t n) { return fold(add_bytes(0, bytes, n)); }

uint16_t checksum_of_message(uint8_t protocol, const struct address *source,
                             const struct address *destination, const uint8_t *message, size_t n) {
    uint8_t rest[8] = {[7] = protocol};
    uint64_t sum = 0;
    if (protocol != PROTOCOL_ICMP4) { /* RFC 8200 8.1; RFC 9293 3.1 has the same words */
        store32(rest, (uint32_t)n);
        sum = add_bytes(sum, source->bytes, ADDRESS_BYTES);
        sum = add_bytes(sum, destination->bytes, ADDRESS_BYTES);
        sum = add_bytes(sum, rest, sizeof rest);
    }
    return fold(add_bytes(sum, message, n));
}

void message_seal(uint8_t protocol, const struct address *source,
                  const struct address *destination, uint8_t *message, size_t n) {
    size_t at = checksum_at(protocol);
    if (n < at + 2)
        return;
    store16(message + at, 0);
    store16(message + at, checksum_of_message(protocol, source, destination, message, n));
}

uint16_t checksum_moved(uint16_t checksum, const uint8_t *from, const uint8_t *to, size_t n) {
    uint32_t sum = (uint16_t)~checksum;
    for (size_t i = 0; i < n; i += 2)
        sum += (uint16_t)~load16(from + i) + (uint32_t)load16(to + i);
    while (sum > UINT16_MAX)
        sum = (sum >> 16) + (sum & UINT16_MAX);
    return (uint16_t)~sum;
}

void ip_header_write(uint8_t *header, const struct envelope *envelope, size_t n) {
    if (envelope->source.family == 4) {
        header[0] = 0x45;
        header[1] = envelope->tos;
        store16(header + 2, (uint32_t)(IPV4_BYTES + n));
        store32(header + 4, envelope->ip_word);
        header[8] = envelope->ttl;
        header[9] = envelope->protocol;
        store16(header + 10, 0);
        memcpy(header + 12, envelope->source.bytes, 4);
        memcpy(header + 16, envelope->destination.bytes, 4);
        store16(header + 10, checksum_of(header, IPV4_BYTES));
        return;
    }
    store32(header, 6U << 28 | (uint32_t)envelope->tos << 20 | envelope->ip_word);
    store16(header + 4, (uint32_t)n);
    header[6] = envelope->protocol;
    header[7] = envelope->ttl;
    memcpy(header + 8, envelope->source.bytes, ADDRESS_BYTES);
    memcpy(header + 24, envelope->destination.bytes, ADDRESS_BYTES);
}

size_t frame_wrap(uint8_t *frame, const struct envelope *envelope, size_t n) {
    uint8_t family = envelope->source.family;
    memcpy(frame, envelope->destination_mac, MAC_BYTES);
    memcpy(frame + MAC_BYTES, envelope->source_mac, MAC_BYTES);
    store16(frame + 12, family == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6);
    ip_header_write(frame + ETHERNET_BYTES, envelope, n);
    return ETHERNET_BYTES + ip_header_bytes(family) + n;
}
