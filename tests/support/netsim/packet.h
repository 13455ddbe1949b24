/* Headers and checksums: Ethernet, IPv4 (RFC 791), IPv6 (RFC 8200), ICMP (RFC 792, RFC 4443), UDP
 * (RFC 768), TCP (RFC 9293). A message is what follows the IP header. */
#ifndef NETSIM_PACKET_H
#define NETSIM_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "address.h"

enum {
    ETHERNET_BYTES = 14,
    IPV4_BYTES = 20,
    IPV6_BYTES = 40,
    ICMP_BYTES = 8,
    UDP_BYTES = 8,
    TCP_BYTES = 20,
    MTU_BYTES = 1500,
    FRAME_MAX_BYTES = ETHERNET_BYTES + MTU_BYTES,
};

enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_ARP = 0x0806, ETHERTYPE_IPV6 = 0x86DD };
#define IPV4_DONT_FRAGMENT 0x4000U /* of ip_word's lower half */

enum { PROTOCOL_ICMP4 = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17, PROTOCOL_ICMP6 = 58 };
enum {
    ICMP4_ECHO_REPLY = 0,
    ICMP4_UNREACHABLE = 3,
    ICMP4_ECHO_REQUEST = 8,
    ICMP4_TIME_EXCEEDED = 11,
    ICMP4_PORT = 3,              /* codes of unreachable */
    ICMP4_FRAGMENT_NEEDED = 4,
};
enum {
    ICMP6_UNREACHABLE = 1,
    ICMP6_TOO_BIG = 2,
    ICMP6_TIME_EXCEEDED = 3,
    ICMP6_PORT = 4, /* code of unreachable */
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

static inline uint8_t icmp_of(uint8_t family) {
    return family == 4 ? PROTOCOL_ICMP4 : PROTOCOL_ICMP6;
}

static inline bool is_icmp(uint8_t protocol) {
    return protocol == PROTOCOL_ICMP4 || protocol == PROTOCOL_ICMP6;
}

enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16, TCP_FLAGS = 0x17 };

/* The least a message has. */
static inline size_t transport_bytes(uint8_t protocol) {
    return protocol == PROTOCOL_TCP ? TCP_BYTES : protocol == PROTOCOL_UDP ? UDP_BYTES : ICMP_BYTES;
}

static inline size_t tcp_header_bytes(const uint8_t *tcp) { return (size_t)(tcp[12] >> 4) * 4; }

/* Where a message's payload begins. */
static inline size_t message_header_bytes(uint8_t protocol, const uint8_t *message) {
    return protocol == PROTOCOL_TCP ? tcp_header_bytes(message) : transport_bytes(protocol);
}

/* Where a message has its checksum. */
static inline size_t checksum_at(uint8_t protocol) {
    return protocol == PROTOCOL_TCP ? 16 : protocol == PROTOCOL_UDP ? 6 : 2;
}

/* RFC 1071 of an IPv4 header, in the byte order of the wire; 0 when its own checksum is right. */
uint16_t checksum_of(const uint8_t *bytes, size_t n);

/* The checksum of a message between these addresses, with the pseudo header for all but ICMPv4. */
uint16_t checksum_of_message(uint8_t protocol, const struct address *source,
                             const struct address *destination, const uint8_t *message, size_t n);

/* Fill in a message's checksum, if it is long enough to have one. */
void message_seal(uint8_t protocol, const struct address *source,
                  const struct address *destination, uint8_t *message, size_t n);

/* What a checksum becomes when n bytes under it are replaced (RFC 1624); n is even. */
uint16_t checksum_moved(uint16_t checksum, const uint8_t *from, const uint8_t *to, size_t n);

/* What is outside a message. ip_word: IPv4 identification and fragment field, flow label. */
struct envelope {
    struct address source;
    struct address destination;
    const uint8_t *source_mac;
    const uint8_t *destination_mac;
    uint32_t ip_word;
    uint8_t protocol;
    uint8_t ttl;
    uint8_t tos;
};

/* Write the IP header in front of a message of n bytes. */
void ip_header_write(uint8_t *header, const struct envelope *envelope, size_t n);

/* Write IP and Ethernet headers around a message in its frame; returns the frame's size. */
size_t frame_wrap(uint8_t *frame, const struct envelope *envelope, size_t n);

#endif
