/* Headers and checksums: Ethernet, IPv4 (RFC 791), IPv6 (RFC 8200), ICMP (RFC 792, RFC 4443). */
#ifndef NETSIM_PACKET_H
#define NETSIM_PACKET_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "address.h"

enum {
    ETHERNET_BYTES = 14,
    IPV4_BYTES = 20,
    IPV6_BYTES = 40,
    ICMP_BYTES = 8,
    MTU_BYTES = 1500,
    FRAME_MAX_BYTES = ETHERNET_BYTES + MTU_BYTES,
};

enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_ARP = 0x0806, ETHERTYPE_IPV6 = 0x86DD };
enum { PROTOCOL_ICMP4 = 1, PROTOCOL_ICMP6 = 58 };
enum { ICMP4_ECHO_REPLY = 0, ICMP4_UNREACHABLE = 3, ICMP4_ECHO_REQUEST = 8 };
enum {
    ICMP6_UNREACHABLE = 1,
    ICMP6_ECHO_REQUEST = 128,
    ICMP6_ECHO_REPLY = 129,
    ICMP6_NEIGHBOUR_SOLICITATION = 135,
    ICMP6_NEIGHBOUR_ADVERTISEMENT = 136,
};

static inline uint16_t load16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static inline uint32_t load32(const uint8_t *at) {
    return (uint32_t)load16(at) << 16 | load16(at + 2);
}

static inline void store16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void store32(uint8_t *at, uint32_t value) {
    store16(at, value >> 16);
    store16(at + 2, value);
}

static inline size_t ip_header_bytes(uint8_t family) {
    return family == 4 ? IPV4_BYTES : IPV6_BYTES;
}

/* Where a frame's message begins. */
static inline uint8_t *frame_message(uint8_t *frame, uint8_t family) {
    return frame + ETHERNET_BYTES + ip_header_bytes(family);
}

/* RFC 1071 of an IPv4 header, in the byte order of the wire; 0 when its own checksum is right. */
uint16_t checksum_of(const uint8_t *bytes, size_t n);

/* The checksum of an ICMP message between these addresses, with the pseudo header for IPv6. */
uint16_t checksum_of_message(const struct address *source, const struct address *destination,
                             const uint8_t *message, size_t n);

/* Fill in an ICMP message's checksum. */
void message_seal(const struct address *source, const struct address *destination,
                  uint8_t *message, size_t n);

/* What is outside an ICMP message. ip_word: IPv4 identification and fragment field, flow label. */
struct envelope {
    struct address source;
    struct address destination;
    const uint8_t *source_mac;
    const uint8_t *destination_mac;
    uint32_t ip_word;
    uint8_t ttl;
    uint8_t tos;
};

/* Write the IP header in front of a message of n bytes. */
void ip_header_write(uint8_t *header, const struct envelope *envelope, size_t n);

/* Write IP and Ethernet headers around a message in its frame; returns the frame's size. */
size_t frame_wrap(uint8_t *frame, const struct envelope *envelope, size_t n);

#endif
