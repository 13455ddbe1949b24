/* The way of one probe: from the host over links and routers to where it ends, and the answer's
 * way back over the same links. Decided when the probe arrives, by the topology, the probe and the
 * chance that is its own. */
#ifndef NETSIM_JOURNEY_H
#define NETSIM_JOURNEY_H

#include <stdint.h>

#include "nat.h"
#include "requests.h"
#include "topology.h"

enum { HOPS_MAX = 256 };

enum journey_end {
    END_NONE, /* no journey: the destination has no route */
    END_ARRIVED,
    END_EXPIRED,
    END_REFUSED,
    END_TOO_BIG,
    END_LOST,
    END_NOWHERE, /* a router has nowhere to forward to */
};

/* What becomes of the answer. WITHHELD: whoever should answer says nothing. */
enum journey_reply { REPLY_COMES, REPLY_WITHHELD, REPLY_LIMITED, REPLY_LOST };

/* What the answer is made of when it is due. */
struct ending {
    uint32_t router; /* that answers, or ROUTER_DESTINATION */
    uint32_t crossed[NATS_MAX];
    uint16_t mtu;
    uint8_t crossed_count;
    uint8_t ttl; /* as the probe arrived */
    uint8_t tos;
    uint8_t back; /* routers on the answer's way */
};

struct journey {
    enum journey_end end;
    enum journey_reply reply;
    struct ending ending;
    int64_t there_ns;
    int64_t total_ns; /* until the answer is back */
    uint32_t copies;  /* of the answer */
    uint32_t hops;    /* links passed */
    uint32_t edges[HOPS_MAX];
};

/* Send a probe along a route; counts at its routers and edges. `bucket` is the destination's, `key`
 * the probe's own chance, `seed` the scenario's. */
void journey_travel(struct journey *journey, struct topology *topology, const struct route *route,
                    const struct probe *probe, struct bucket *bucket, uint64_t seed, uint64_t key);

#endif
