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

static enum frame_class classify_ipv4(const uint8_t *ip, size_t size, struct probe *probe) {
    if (size < IPV4_BYTES || ip[0] >> 4 != 4)
        return FRAME_MALFORMED;
    size_t header = (size_t)(ip[0] & 15) * 4, total = load16(ip + 2);
    if (header < IPV4_BYTES || header > total || total > size || checksum_of(ip, header) != 0)
        return FRAME_MALFORMED;
    if (ip[0] != 0x45 || ip[9] != PROTOCOL_ICMP4 || load16(ip + 6) & FRAGMENTED)
        return FRAME_OTHER;
    if (total < IPV4_BYTES + ICMP_BYTES)
        return FRAME_MALFORMED;
    probe->tos = ip[1];
    probe->ip_word = load32(ip + 4);
    probe->ttl = ip[8];
    probe->source = address_of(4, ip + 12);
    probe->destination = address_of(4, ip + 16);
    probe->message = ip + IPV4_BYTES;
    probe->message_bytes = (uint16_t)(total - IPV4_BYTES);
    if (checksum_of_message(&probe->source, &probe->destination, probe->message,
                            probe->message_bytes) != 0)
        return FRAME_MALFORMED;
    return probe->message[0] == ICMP4_ECHO_REQUEST && probe->message[1] == 0 ? FRAME_ECHO_REQUEST
                                                                             : FRAME_OTHER;
}

static enum frame_class classify_icmpv6(struct probe *probe) {
    const uint8_t *message = probe->message;
    if (message[0] == ICMP6_ECHO_REQUEST && message[1] == 0)
        return FRAME_ECHO_REQUEST;
    if (message[0] != ICMP6_NEIGHBOUR_SOLICITATION)
        return FRAME_OTHER;
    if (probe->message_bytes < SOLICITATION_BYTES || probe->ttl != NEIGHBOUR_HOP_LIMIT)
        return FRAME_MALFORMED;
    probe->destination = address_of(6, message + 8);
    return FRAME_SOLICITATION;
}

static enum frame_class classify_ipv6(const uint8_t *ip, size_t size, struct probe *probe) {
    if (size < IPV6_BYTES || ip[0] >> 4 != 6)
        return FRAME_MALFORMED;
    size_t payload = load16(ip + 4);
    if (IPV6_BYTES + payload > size)
        return FRAME_MALFORMED;
    if (ip[6] != PROTOCOL_ICMP6)
        return FRAME_OTHER;
    if (payload < ICMP_BYTES)
        return FRAME_MALFORMED;
    uint32_t word = load32(ip);
    probe->tos = (uint8_t)(word >> 20);
    probe->ip_word = word & 0xFFFFF;
    probe->ttl = ip[7];
    probe->source = address_of(6, ip + 8);
    probe->destination = address_of(6, ip + 24);
    probe->message = ip + IPV6_BYTES;
    probe->message_bytes = (uint16_t)payload;
    if (checksum_of_message(&probe->source, &probe->destination, probe->message, payload) != 0)
        return FRAME_MALFORMED;
    return classify_icmpv6(probe);
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
    if (class == FRAME_ECHO_REQUEST && memcmp(frame, own_mac, MAC_BYTES) != 0)
        return FRAME_OTHER;
    return class;
}
