/* What is to be played: behaviours, the topology, and the prefixes they are attached to.
 *
 * The text that is read has one setting a line, `NAME VALUE`, in this order:
 *
 *     netsim 1
 *     seed N, hosts_max N, in_flight_max N, ring_frames N, record_probes 0|1
 *     mac 02:00:00:00:00:01, gateway ADDRESS      (neighbours are answered for them as well)
 *     behaviour                                   (begins the next one; its settings follow)
 *     router                                      (the same)
 *     route                                       (the same; then its nodes)
 *     node ROUTER|host|destination                (begins the next one; then its edges)
 *     edge NODE                                   (to a node of the route; its settings follow)
 *     prefix ADDRESS/BITS BEHAVIOUR [ROUTE]
 *     end
 *
 * Behaviours, routers, routes and the nodes of a route are numbered from 0. parts.c lists the
 * settings of each with their bounds. Shares are 0 to 1.
 */
#ifndef NETSIM_SCENARIO_H
#define NETSIM_SCENARIO_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "address.h"
#include "topology.h"

enum {
    BEHAVIOURS_MAX = 4096,
    PREFIXES_MAX = 65536,
    GATEWAYS_MAX = 8,
    COPIES_MAX = 8,
};

#define DELAY_MAX_NS INT64_C(60000000000) /* what the wheel reaches */
#define DELAY_AROUND INT64_C(-1)          /* drawn from 0 to twice the reply's own delay */

enum distribution_kind { CONSTANT, UNIFORM, NORMAL, LOGNORMAL, DISTRIBUTION_KINDS };

/* location: the constant, the mean of NORMAL, the median of LOGNORMAL; ns. spread: the standard
 * deviation of NORMAL in ns, of the logarithm for LOGNORMAL. UNIFORM has its bounds alone. */
struct distribution {
    uint32_t kind;
    double location_ns;
    double spread;
    int64_t min_ns;
    int64_t max_ns;
};

/* Gilbert and Elliott: each request first turns the state with a chance, then meets its loss. */
struct burst_loss {
    double to_bad;
    double to_good;
    double loss_good;
    double loss_bad;
};

/* An address of family 0 means the destination itself; bytes are those after the IP header. */
struct icmp_error {
    uint32_t type4;
    uint32_t code4;
    uint32_t type6;
    uint32_t code6;
    struct address from4;
    struct address from6;
    uint32_t quoted_bytes;
};

/* Packets that nobody asked for: a share of the requests brings `copies` of them each. */
struct injection {
    double share;
    uint32_t copies;
    uint32_t kinds; /* a bit for each kind to choose from */
    int64_t delay_ns;
};

enum forged_kind { FORGED_RANDOM, FORGED_ZERO, FORGED_ALTERED, FORGED_KINDS };
enum corrupted_kind { CORRUPTED_BAD_CHECKSUM, CORRUPTED_RECOMPUTED, CORRUPTED_KINDS };
enum foreign_kind { FOREIGN_IDENT, FOREIGN_SEQUENCE, FOREIGN_DESTINATION, FOREIGN_PAYLOAD,
                    FOREIGN_KINDS };
enum noise_kind { NOISE_FOREIGN_REPLY, NOISE_SHORT, NOISE_LONG_LENGTH, NOISE_SHORT_LENGTH,
                  NOISE_LYING_QUOTE, NOISE_KINDS };

enum limit_scope { LIMIT_NONE, LIMIT_HOST, LIMIT_PREFIX, LIMIT_SCOPES };

struct rate_limit {
    uint32_t scope;
    double per_second;
    double burst;
    uint32_t says_error; /* beyond it: an error, or nothing */
    struct icmp_error error;
};

struct behaviour {
    struct distribution host_delay; /* drawn once for each address */
    struct distribution jitter;     /* drawn for each request and added */
    uint32_t reply_ttl;
    double loss;
    struct burst_loss burst_loss;
    double reorder_share;
    int64_t reorder_delay_ns;
    double duplicate_share;
    uint32_t duplicate_copies;
    int64_t duplicate_spacing_ns;
    double elsewhere_share;
    struct address elsewhere4;
    struct address elsewhere6;
    double truncate_share;
    uint32_t truncate_payload_bytes;
    double error_share;
    struct icmp_error error;
    struct rate_limit rate_limit;
    struct injection forged;
    struct injection corrupted;
    struct injection foreign_error;
    struct icmp_error foreign;
    struct injection noise;
};

/* Where replies of `elsewhere` come from, of family 0 when it says nothing about this family. */
static inline const struct address *behaviour_elsewhere(const struct behaviour *behaviour,
                                                        uint8_t family) {
    return family == 4 ? &behaviour->elsewhere4 : &behaviour->elsewhere6;
}

struct prefix {
    struct address address;
    uint8_t bits;
    uint32_t behaviour;
    uint32_t route; /* or ROUTE_NONE */
};

struct scenario {
    uint64_t seed;
    uint32_t hosts_max;
    uint32_t in_flight_max;
    uint32_t ring_frames;
    uint32_t record_probes;
    uint8_t mac[MAC_BYTES];
    struct address gateways[GATEWAYS_MAX];
    size_t gateway_count;
    struct behaviour *behaviours;
    size_t behaviour_count;
    struct prefix *prefixes;
    size_t prefix_count;
    struct topology topology;
};

/* Read up to the line `end`; on a fault say on standard error which line and why, return false. */
bool scenario_read(struct scenario *scenario, FILE *from);

void scenario_free(struct scenario *scenario);

#endif
