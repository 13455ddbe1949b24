/* The network that is played, in stages: a frame is received (link) and classified (classify); its
 * host, behaviour and route are looked up (hosts, prefixes); it travels (journey) and its fate is
 * decided (plan); each packet of the plan is filed by when it is due (wheel), built then (answers,
 * routed, injections) and handed to the kernel (link). What was decided and what was handed over is
 * recorded (truth).
 */
#ifndef NETSIM_NETWORK_H
#define NETSIM_NETWORK_H

#include <stdbool.h>
#include <stdint.h>

#include "hosts.h"
#include "journey.h"
#include "link.h"
#include "prefixes.h"
#include "requests.h"
#include "scenario.h"
#include "truth.h"
#include "wheel.h"

/*   frames           received, of every kind
 *   neighbours       ARP requests and neighbour solicitations, answered
 *   malformed        frames with lengths or checksums that do not hold
 *   unrouted         probes to an address nothing is said about
 *   other            all other frames: those longer than FRAME_MAX_BYTES, and UDP and TCP where
 *                    there is no route
 *   overflow         requests or answers there was no room for: the truth has a hole
 *   ring_drops       frames the kernel dropped: the truth has a hole
 *   clock_step_ns    what the wall clock was set by meanwhile: instants mean nothing
 *   late_sum_ns, late_max_ns    packets handed over after they were due
 *   late_100us       packets handed over more than 100 us after they were due */
#define FRAME_COUNTS(each)                                                                        \
    each(frames) each(neighbours) each(malformed) each(unrouted) each(other) each(overflow)       \
        each(ring_drops) each(clock_step_ns) each(late_sum_ns) each(late_max_ns)                  \
            each(late_100us)

#define FRAME_COUNT_MEMBER(name) uint64_t name;
struct frame_counts {
    FRAME_COUNTS(FRAME_COUNT_MEMBER)
};
#undef FRAME_COUNT_MEMBER

struct network {
    struct scenario scenario;
    struct prefix_table prefixes;
    struct bucket *buckets; /* one for each prefix */
    struct host_table hosts;
    struct request_table requests;
    struct ending *endings; /* of the requests that had a journey */
    struct wheel wheel;
    struct link link;
    struct truth truth;
    struct frame_counts counts;
    int64_t realtime_lead_ns; /* at the start */
};

/* Build the network of its scenario on an interface; on failure say why, return false. */
bool network_open(struct network *network, const char *interface, const char *truth_directory);
void network_close(struct network *network);

/* Take a batch of received frames; returns how many there were. */
unsigned network_receive(struct network *network);

/* Send a batch of what is due; returns how many packets there were. */
unsigned network_send(struct network *network);

/* Take the frames that are left, count what is not sent yet and write the truth; returns false when
 * it could not be written. */
bool network_report(struct network *network);

/* Within the network: hand a frame over, with the event it is the packet of or EVENT_NONE. */
void network_push(struct network *network, size_t size, uint32_t event);
void network_flush(struct network *network);

static inline const struct prefix *network_prefix(const struct network *network,
                                                  const struct host *host) {
    return &network->scenario.prefixes[host->prefix];
}

static inline const struct behaviour *network_behaviour(const struct network *network,
                                                        const struct host *host) {
    return &network->scenario.behaviours[network_prefix(network, host)->behaviour];
}

/* The route to a host, or NULL. */
static inline const struct route *network_route(const struct network *network,
                                                const struct host *host) {
    uint32_t route = network_prefix(network, host)->route;
    return route == ROUTE_NONE ? NULL : &network->scenario.topology.routes[route];
}

#endif
