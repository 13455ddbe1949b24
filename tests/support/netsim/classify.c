#include "classify.h"

#include "packet.h"

enum {
    ARP_BYTES = 28,
    ARP_REQUEST = 1,
    SOLICITATION_BYTES = 24, /* without options, RFC 4861 4.3 */
    NEIGHBOUR_HOP_LIMIT = 255,
    FRAGMENTED = 0x3FFF, /* more fragments, or an offset */
};

static enum frame_class classify_arp(const uint8_t *arp, size_t size, struct probe *probe) {
    if (size < ARP_BYTES)
        return FRAME_MALFORMED;
    if (load16(arp) != 1 || load16(arp + 2) != ETHERTYPE_IPV4 || load16(arp + 6) != ARP_REQUEST)
        return FRAME_OTHER;
    probe->source_mac = arp + 8;
    probe->source = address_of(4, arp + 14);
    probe->destination = address_of(4, arp + 24);
    return FRAME_ARP_REQUEST;
}

static bool is_echo_request(const struct probe *probe) {
    uint8_t type =
        probe->protocol == PROTOCOL_ICMP4 ? ICMP4_ECHO_REQUEST : ICMP6_ECHO_REQUEST;
    return probe->message[0] == type && probe->message[1] == 0;
}

static enum frame_class classify_icmp(struct probe *probe) {
    const uint8_t *message = probe->message;
    if (is_echo_request(probe))
        return FRAME_PROBE;
    if (probe->protocol != PROTOCOL_ICMP6 || message[0] != ICMP6_NEIGHBOUR_SOLICITATION)
        return FRAME_OTHER;
    if (probe->message_bytes < SOLICITATION_BYTES || probe->ttl != NEIGHBOUR_HOP_LIMIT)
        return FRAME_MALFORMED;
    probe->destination = address_of(6, message + 8);
    return FRAME_SOLICITATION;
}

static enum frame_class classify_udp(const struct probe *probe) {
    return load16(probe->message + 4) == probe->message_bytes ? FRAME_PROBE : FRAME_MALFORMED;
}

static enum frame_class classify_tcp(const struct probe *probe) {
    size_t header = tcp_header_bytes(probe->message);
    if (header < TCP_BYTES || header > probe->message_bytes)
        return FRAME_MALFORMED;
    return (probe->message[13] & TCP_FLAGS) == TCP_SYN ? FRAME_PROBE : FRAME_OTHER;
}

static bool is_sound(const struct probe *probe) {
    if (probe->protocol == PROTOCOL_UDP && probe->source.family == 4 &&
        load16(probe->message + 6) == 0)
        return true; /* RFC 768: no checksum */
    return checksum_of_message(probe->protocol, &probe->source, &probe->destination,
                               probe->message, probe->message_bytes) == 0;
}

/* What is in an IP packet whose header has been read. */
static enum frame_class classify_message(struct probe *probe) {
    uint8_t protocol = probe->protocol;
    if (protocol != PROTOCOL_UDP && protocol != PROTOCOL_TCP &&
        protocol != icmp_of(probe->source.family))
        return FRAME_OTHER;
    if (probe->message_bytes < transport_bytes(protocol) || !is_sound(probe))
        return FRAME_MALFORMED;
    switch (protocol) {
    case PROTOCOL_UDP:
        return classify_udp(probe);
    case PROTOCOL_TCP:
        return classify_tcp(probe);
    default:
        return classify_icmp(probe);
    }
}

static enum frame_class classify_ipv4(const uint8_t *ip, size_t size, struct probe *probe) {
    if (size < IPV4_BYTES || ip[0] >> 4 != 4)
        return FRAME_MALFORMED;
    size_t header = (size_t)(ip[0] & 15) * 4, total = load16(ip + 2);
    if (header < IPV4_BYTES || header > total || total > size || checksum_of(ip, header) != 0)
        return FRAME_MALFORMED;
    if (ip[0] != 0x45 || load16(ip + 6) & FRAGMENTED)
        return FRAME_OTHER;
    probe->tos = ip[1];
    probe->ip_word = load32(ip + 4);
    probe->ttl = ip[8];
    probe->protocol = ip[9];
    probe->source = address_of(4, ip + 12);
    probe->destination = address_of(4, ip + 16);
    probe->message = ip + IPV4_BYTES;
    probe->message_bytes = (uint16_t)(total - IPV4_BYTES);
    return classify_message(probe);
}

static enum frame_class classify_ipv6(const uint8_t *ip, size_t size, struct probe *probe) {
    if (size < IPV6_BYTES || ip[0] >> 4 != 6)
        return FRAME_MALFORMED;
    size_t payload = load16(ip + 4);
    if (IPV6_BYTES + payload > size)
        return FRAME_MALFORMED;
    uint32_t word = load32(ip);
    probe->tos = (uint8_t)(word >> 20);
    probe->ip_word = word & 0xFFFFF;
    probe->protocol = ip[6];
    probe->ttl = ip[7];
    probe->source = address_of(6, ip + 8);
    probe->destination = address_of(6, ip + 24);
    probe->message = ip + IPV6_BYTES;
    probe->message_bytes = (uint16_t)payload;
    return classify_message(probe);
}

enum frame_class classify(const uint8_t *frame, size_t size, const uint8_t *own_mac,
                          struct probe *probe) {
    if (size < ETHERNET_BYTES)
        return FRAME_MALFORMED;
    if (size > FRAME_MAX_BYTES)
        return FRAME_OTHER;
    const uint8_t *body = frame + ETHERNET_BYTES;
    enum frame_class class = FRAME_OTHER;
    size -= ETHERNET_BYTES;
    probe->source_mac = frame + MAC_BYTES;
    switch (load16(frame + 12)) {
    case ETHERTYPE_ARP:
        return classify_arp(body, size, probe);
    case ETHERTYPE_IPV4:
        class = classify_ipv4(body, size, probe);
        break;
    case ETHERTYPE_IPV6:
        class = classify_ipv6(body, size, probe);
        break;
    }
    if (class == FRAME_PROBE && memcmp(frame, own_mac, MAC_BYTES) != 0)
        return FRAME_OTHER;
    return class;
}
