#include "neighbours.h"

#include "packet.h"

enum { ARP_BYTES = 28, ADVERTISEMENT_BYTES = 32, ARP_REPLY = 2, TARGET_LINK_LAYER_ADDRESS = 2 };
#define SOLICITED_AND_OVERRIDE 0x60000000U

size_t arp_reply(uint8_t *frame, const struct probe *asked, const uint8_t *mac) {
    uint8_t *arp = frame + ETHERNET_BYTES;
    memcpy(frame, asked->source_mac, MAC_BYTES);
    memcpy(frame + MAC_BYTES, mac, MAC_BYTES);
    store16(frame + 12, ETHERTYPE_ARP);
    store16(arp, 1); /* Ethernet */
    store16(arp + 2, ETHERTYPE_IPV4);
    arp[4] = MAC_BYTES;
    arp[5] = 4;
    store16(arp + 6, ARP_REPLY);
    memcpy(arp + 8, mac, MAC_BYTES);
    memcpy(arp + 14, asked->destination.bytes, 4);
    memcpy(arp + 18, asked->source_mac, MAC_BYTES);
    memcpy(arp + 24, asked->source.bytes, 4);
    return ETHERNET_BYTES + ARP_BYTES;
}

size_t neighbour_advertisement(uint8_t *frame, const struct probe *asked, const uint8_t *mac) {
    struct envelope envelope = {
        .source = asked->destination,
        .destination = asked->source,
        .source_mac = mac,
        .destination_mac = asked->source_mac,
        .protocol = PROTOCOL_ICMP6,
        .ttl = 255,
    };
    uint8_t *message = frame_message(frame, 6);
    message[0] = ICMP6_NEIGHBOUR_ADVERTISEMENT;
    message[1] = 0;
    store32(message + 4, SOLICITED_AND_OVERRIDE);
    memcpy(message + 8, asked->destination.bytes, ADDRESS_BYTES);
    message[24] = TARGET_LINK_LAYER_ADDRESS;
    message[25] = 1; /* in units of 8 bytes */
    memcpy(message + 26, mac, MAC_BYTES);
    message_seal(PROTOCOL_ICMP6, &envelope.source, &envelope.destination, message,
                 ADVERTISEMENT_BYTES);
    return frame_wrap(frame, &envelope, ADVERTISEMENT_BYTES);
}
