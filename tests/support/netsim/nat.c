#include "nat.h"

#include "draw.h"
#include "packet.h"

enum { PORT_BYTES = 2, FIRST_PORT = 1024 };

/* Where the identifier of an ICMP message is, or the source port of another. */
static size_t port_at(uint8_t protocol) { return is_icmp(protocol) ? 4 : 0; }

/* A checksum of 0 says that there is none (RFC 768). */
static bool has_checksum(const struct translated *packet) {
    size_t at = checksum_at(packet->protocol);
    if (packet->size < at + 2)
        return false;
    return packet->protocol != PROTOCOL_UDP || load16(packet->message + at) != 0;
}

static void move_checksum(struct translated *packet, const uint8_t *from, const uint8_t *to,
                          size_t n) {
    if (!has_checksum(packet))
        return;
    uint8_t *at = packet->message + checksum_at(packet->protocol);
    uint16_t moved = checksum_moved(load16(at), from, to, n);
    store16(at, moved == 0 && packet->protocol == PROTOCOL_UDP ? UINT16_MAX : moved);
}

static void put_source(struct translated *packet, const struct address *to) {
    if (packet->protocol != PROTOCOL_ICMP4)
        move_checksum(packet, packet->source.bytes, to->bytes, ADDRESS_BYTES);
    packet->source = *to;
}

static void put_port(struct translated *packet, const uint8_t *to) {
    uint8_t *at = packet->message + port_at(packet->protocol);
    move_checksum(packet, at, to, PORT_BYTES);
    memcpy(at, to, PORT_BYTES);
}

/* The same for all packets of a source and its port, whatever their destination (RFC 4787 4.1). */
static uint32_t mapped_port(const struct router *router, const struct translated *packet,
                            uint32_t port) {
    uint64_t key = draw_address_key(router->seed ^ packet->protocol, &packet->source);
    return FIRST_PORT + draw_below(draw_mix(key ^ port), UINT16_MAX + 1 - FIRST_PORT);
}

bool nat_translate(const struct router *router, struct translated *packet) {
    const struct nat *nat = &router->nat;
    const struct address *to =
        address_for(&nat->address4, &nat->address6, packet->source.family);
    if (to->family == 0 || address_equal(to, &packet->source))
        return false;
    if (nat->has_ports) {
        uint8_t port[PORT_BYTES];
        uint32_t old = load16(packet->message + port_at(packet->protocol));
        store16(port, mapped_port(router, packet, old));
        put_port(packet, port);
    }
    put_source(packet, to);
    return true;
}

/* What a NAT remembers of a packet. */
struct original {
    struct address source;
    uint8_t port[PORT_BYTES];
    uint8_t checksum[2];
};

static struct original remember(const struct translated *packet) {
    struct original original = {.source = packet->source};
    memcpy(original.port, packet->message + port_at(packet->protocol), PORT_BYTES);
    if (has_checksum(packet))
        memcpy(original.checksum, packet->message + checksum_at(packet->protocol), 2);
    return original;
}

static void restore(const struct original *original, enum restores restores,
                    struct translated *packet) {
    packet->source = original->source;
    memcpy(packet->message + port_at(packet->protocol), original->port, PORT_BYTES);
    if (restores == RESTORES_ALL && has_checksum(packet))
        memcpy(packet->message + checksum_at(packet->protocol), original->checksum, 2);
}

void nat_quote(const struct router *routers, const uint32_t *crossed, size_t n,
               struct translated *packet) {
    struct original originals[NATS_MAX];
    for (size_t i = 0; i < n; i++) {
        originals[i] = remember(packet);
        nat_translate(&routers[crossed[i]], packet);
    }
    while (n-- > 0) {
        enum restores restores = routers[crossed[n]].nat.restores;
        if (restores == RESTORES_NOTHING)
            return; /* nor does any NAT before it know this header */
        restore(&originals[n], restores, packet);
    }
}
