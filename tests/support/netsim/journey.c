#include "journey.h"

#include "draw.h"
#include "packet.h"

enum { LOOKED_AT_BYTES = 8 }; /* of a message: what a flow and a NAT's port are made of */

#define FLOW_UNKNOWN 0

/* A probe on its way. */
struct traveller {
    struct topology *topology;
    const struct route *route;
    const struct probe *probe;
    struct journey *journey;
    struct translated packet;
    uint8_t message[LOOKED_AT_BYTES];
    uint64_t seed;
    uint64_t key;
    uint64_t flow; /* or FLOW_UNKNOWN */
    uint32_t node; /* of the route */
    uint8_t ttl;
};

static struct node *node_of(const struct traveller *t) {
    return &t->topology->nodes[t->route->first_node + t->node];
}

/* Chance of a step, which `hops` links lie behind. */
static uint64_t step_key(const struct traveller *t, uint32_t hops) {
    return draw_mix(t->key + hops);
}

static int64_t jitter_of(const struct edge *edge, uint64_t key, enum draw_label label) {
    return edge->jitter_ns == 0 ? 0
                                : (int64_t)(draw_unit(draw(key, label)) * (double)edge->jitter_ns);
}

/* ---- choice of a link ------------------------------------------------------------------------ */

/* What keeps packets on one way: addresses, protocol, the message's first 4 bytes, an ICMP
 * message's identifier as well, and the flow label of IPv6 (RFC 6438). */
static uint64_t flow_of(struct traveller *t) {
    if (t->flow != FLOW_UNKNOWN)
        return t->flow;
    const uint8_t *message = t->packet.message;
    uint64_t words = (uint64_t)load32(message) << 32;
    if (is_icmp(t->packet.protocol))
        words |= load16(message + 4);
    uint64_t key = draw_address_key(t->packet.protocol, &t->packet.source);
    key = draw_mix(draw_address_key(key, &t->probe->destination) ^ words);
    if (t->packet.source.family == 6)
        key = draw_mix(key ^ t->probe->ip_word);
    return t->flow = key | 1;
}

static uint32_t choose(struct traveller *t, const struct node *node) {
    if (node->edge_count <= 1)
        return 0;
    const struct router *router =
        node->router == ROUTER_NONE ? NULL : &t->topology->routers[node->router];
    uint64_t seed = router == NULL ? t->seed : router->seed;
    uint64_t drawn;
    switch (router == NULL ? BALANCE_FLOW : router->balance) {
    case BALANCE_PACKET:
        drawn = draw(step_key(t, t->journey->hops), DRAW_BALANCE);
        break;
    case BALANCE_DESTINATION:
        drawn = draw_address_key(seed, &t->probe->destination);
        break;
    default:
        drawn = draw_mix(seed ^ flow_of(t));
    }
    return draw_below(drawn, node->edge_count);
}

/* ---- the way there --------------------------------------------------------------------------- */

static bool refuses(const struct refusal *refusal, uint8_t protocol) {
    if (is_icmp(protocol))
        return refusal->protocols & REFUSES_ICMP;
    return refusal->protocols & (protocol == PROTOCOL_UDP ? REFUSES_UDP : REFUSES_TCP);
}

/* What a router does with a packet before it forwards it: END_NONE, or how the journey ends. */
static enum journey_end pass_router(struct traveller *t, const struct router *router) {
    bool is_refused = refuses(&router->refusal, t->packet.protocol);
    if (is_refused && router->refusal.is_first)
        return END_REFUSED;
    if (t->ttl <= 1)
        return END_EXPIRED;
    if (is_refused)
        return END_REFUSED;
    t->ttl--;
    return END_NONE;
}

/* What a router changes in what leaves it. */
static void leave_router(struct traveller *t, uint32_t index) {
    struct ending *ending = &t->journey->ending;
    const struct router *router = &t->topology->routers[index];
    if (router->tos != TOS_KEPT)
        ending->tos = (uint8_t)router->tos;
    if (ending->crossed_count < NATS_MAX && nat_translate(router, &t->packet)) {
        ending->crossed[ending->crossed_count++] = index;
        t->flow = FLOW_UNKNOWN;
    }
}

static bool fits(const struct edge *edge, const struct probe *probe) {
    size_t packet = ip_header_bytes(probe->source.family) + probe->message_bytes;
    return edge->mtu == 0 || packet <= edge->mtu ||
           (probe->source.family == 4 && !(probe->ip_word & IPV4_DONT_FRAGMENT));
}

/* Go over the next link; END_NONE, or how the journey ends. */
static enum journey_end pass_link(struct traveller *t) {
    struct journey *journey = t->journey;
    const struct node *node = node_of(t);
    if (node->edge_count == 0)
        return END_NOWHERE;
    uint32_t index = node->first_edge + choose(t, node);
    struct edge *edge = &t->topology->edges[index];
    if (!fits(edge, t->probe)) {
        edge->counts.too_big++;
        journey->ending.mtu = (uint16_t)edge->reported_mtu;
        journey->reply = edge->is_black_hole ? REPLY_WITHHELD : REPLY_COMES;
        return END_TOO_BIG;
    }
    if (node->router != ROUTER_NONE)
        leave_router(t, node->router);
    uint64_t key = step_key(t, journey->hops);
    if (draw_happens(key, DRAW_LINK_LOSS, edge->loss)) {
        edge->counts.lost++;
        return END_LOST;
    }
    edge->counts.forward++;
    journey->there_ns += edge->delay_ns + jitter_of(edge, key, DRAW_LINK_JITTER);
    journey->edges[journey->hops++] = index;
    t->node = edge->to;
    return END_NONE;
}

static enum journey_end travel_there(struct traveller *t) {
    while (t->journey->hops < HOPS_MAX) { /* each router takes one of the TTL */
        enum journey_end end = pass_link(t);
        if (end != END_NONE)
            return end;
        uint32_t index = node_of(t)->router;
        if (index == ROUTER_DESTINATION)
            return END_ARRIVED;
        t->topology->routers[index].counts.probes++;
        end = pass_router(t, &t->topology->routers[index]);
        if (end != END_NONE)
            return end;
    }
    return END_NOWHERE;
}

/* ---- the answer ------------------------------------------------------------------------------ */

static bool has_tokens(struct bucket *bucket, double per_second, double burst, int64_t now_ns) {
    return per_second <= 0 || bucket_take(bucket, per_second, burst, now_ns);
}

static enum journey_reply router_reply(struct traveller *t, struct router *router,
                                       int64_t now_ns) {
    const struct address *address =
        address_for(&router->address4, &router->address6, t->packet.source.family);
    bool is_dumb = t->journey->end == END_REFUSED && router->refusal.is_silent;
    if (is_dumb || router->is_silent || address->family == 0) {
        router->counts.withheld++;
        return REPLY_WITHHELD;
    }
    if (!has_tokens(&router->bucket, router->limit_per_second, router->limit_burst, now_ns)) {
        router->counts.limited++;
        return REPLY_LIMITED;
    }
    router->counts.answers++;
    t->journey->there_ns += router->answer_delay_ns;
    t->journey->copies = router->copies;
    return REPLY_COMES;
}

static enum journey_reply destination_reply(const struct traveller *t, struct bucket *bucket,
                                            int64_t now_ns) {
    const struct route *route = t->route;
    uint8_t protocol = t->packet.protocol;
    bool says_nothing = is_icmp(protocol)          ? route->echo == ECHO_NOTHING
                        : protocol == PROTOCOL_UDP ? route->udp == UDP_NOTHING
                                                   : route->tcp == TCP_NOTHING;
    if (says_nothing)
        return REPLY_WITHHELD;
    return has_tokens(bucket, route->limit_per_second, route->limit_burst, now_ns)
               ? REPLY_COMES
               : REPLY_LIMITED;
}

static enum journey_reply reply_of(struct traveller *t, struct bucket *bucket) {
    const struct journey *journey = t->journey;
    int64_t now_ns = t->probe->arrival_ns + journey->there_ns;
    uint32_t router = node_of(t)->router;
    if (journey->end == END_ARRIVED)
        return destination_reply(t, bucket, now_ns);
    if (journey->end == END_LOST || journey->end == END_NOWHERE || router == ROUTER_NONE ||
        journey->reply == REPLY_WITHHELD)
        return REPLY_WITHHELD;
    return router_reply(t, &t->topology->routers[router], now_ns);
}

static enum journey_reply travel_back(struct traveller *t) {
    struct journey *journey = t->journey;
    for (uint32_t hops = journey->hops; hops-- > 0;) {
        struct edge *edge = &t->topology->edges[journey->edges[hops]];
        uint64_t key = step_key(t, hops);
        if (draw_happens(key, DRAW_LINK_RETURN_LOSS, edge->return_loss)) {
            edge->counts.lost_on_return++;
            return REPLY_LOST;
        }
        edge->counts.returned++;
        journey->total_ns +=
            edge->return_delay_ns + jitter_of(edge, key, DRAW_LINK_RETURN_JITTER);
    }
    return REPLY_COMES;
}

static void answer(struct traveller *t, struct bucket *bucket) {
    struct journey *journey = t->journey;
    uint32_t back = (journey->hops == 0 ? 0 : journey->hops - 1) + t->route->return_hops;
    journey->ending.router = node_of(t)->router;
    journey->ending.ttl = (uint8_t)(t->ttl + (journey->end == END_TOO_BIG)); /* it was taken one */
    journey->ending.back = (uint8_t)(back < UINT8_MAX ? back : UINT8_MAX);
    journey->reply = reply_of(t, bucket);
    journey->total_ns = journey->there_ns;
    if (journey->reply == REPLY_COMES)
        journey->reply = travel_back(t);
}

void journey_travel(struct journey *journey, struct topology *topology, const struct route *route,
                    const struct probe *probe, struct bucket *bucket, uint64_t seed,
                    uint64_t key) {
    struct traveller t = {
        .topology = topology,
        .route = route,
        .probe = probe,
        .journey = journey,
        .packet = {.source = probe->source, .protocol = probe->protocol},
        .seed = seed,
        .key = key,
        .flow = FLOW_UNKNOWN,
        .ttl = probe->ttl,
    };
    t.packet.message = t.message;
    t.packet.size = sizeof t.message;
    memcpy(t.message, probe->message, sizeof t.message); /* each protocol has as many bytes */
    journey->reply = REPLY_COMES;
    journey->ending = (struct ending){.tos = probe->tos};
    journey->hops = 0;
    journey->copies = 1;
    journey->there_ns = journey->total_ns = 0;
    journey->end = travel_there(&t);
    answer(&t, bucket);
}
