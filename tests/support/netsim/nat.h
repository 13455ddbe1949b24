/* Translation of sources (RFC 3022), and what it does to headers that are quoted behind it. */
#ifndef NETSIM_NAT_H
#define NETSIM_NAT_H

#include <stddef.h>
#include <stdint.h>

#include "topology.h"

enum { NATS_MAX = 4 };

/* A packet's source, and as much of its message as is looked at. */
struct translated {
    struct address source;
    uint8_t protocol;
    uint8_t *message;
    size_t size;
};

/* Put the router's address in place of the source; false when it is no NAT for such a packet. */
bool nat_translate(const struct router *router, struct translated *packet);

/* Translate as routers did that a packet came through, then restore as they do on its way back. */
void nat_quote(const struct router *routers, const uint32_t *crossed, size_t n,
               struct translated *packet);

#endif
