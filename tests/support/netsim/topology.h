/* What lies between the host and its destinations: routers, and for each route a graph of them.
 *
 * A route is a run of nodes, the first of which is the host; each node has a run of edges to nodes
 * of the same route. A router may be a node of many routes: its hash, its rate limit and its counts
 * are one. An edge belongs to its route alone.
 */
#ifndef NETSIM_TOPOLOGY_H
#define NETSIM_TOPOLOGY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "address.h"
#include "bucket.h"

#define ROUTER_NONE UINT32_MAX /* the host, or whoever is no router */
#define ROUTER_DESTINATION (UINT32_MAX - 1)
#define ROUTE_NONE UINT32_MAX

enum {
    ROUTERS_MAX = 1 << 17,
    ROUTES_MAX = 1 << 16,
    NODES_MAX = 1 << 21,
    EDGES_MAX = 1 << 22,
    BYTES_MAX = 256,
    TOS_KEPT = 256,
    QUOTE_FULL = 0,
};

struct bytes {
    uint32_t size;
    uint8_t bytes[BYTES_MAX];
};

enum balance { BALANCE_FLOW, BALANCE_PACKET, BALANCE_DESTINATION, BALANCES };

/* What becomes of a quoted header that a NAT translated, on its way back through it. CHECKSUM:
 * addresses and ports are put back, the checksum stays the translated one. */
enum restores { RESTORES_ALL, RESTORES_NOT_CHECKSUM, RESTORES_NOTHING, RESTORES };

/* Source addresses of what leaves, of family 0 where it translates nothing. */
struct nat {
    struct address address4;
    struct address address6;
    uint32_t has_ports; /* source ports and ICMP identifiers as well */
    uint32_t restores;
};

/* What the length field of RFC 4884 says: the truth, nothing (the layout before the RFC: 128 bytes
 * are quoted), more than there is, or less than the RFC allows. */
enum length_field { LENGTH_RIGHT, LENGTH_ZERO, LENGTH_LONG, LENGTH_SHORT, LENGTH_FIELDS };

enum protocol_bit { REFUSES_ICMP = 1, REFUSES_UDP = 2, REFUSES_TCP = 4, REFUSES_ANY = 7 };

/* An error in place of forwarding. */
struct refusal {
    uint32_t protocols; /* bits of enum protocol_bit; 0: refuses nothing */
    uint32_t is_first;  /* also what has expired here is refused */
    uint32_t is_silent;
    uint32_t type4;
    uint32_t code4;
    uint32_t type6;
    uint32_t code6;
};

/*   probes      that arrived here, also those that are forwarded
 *   answers     errors decided upon, also those that are lost on their way back
 *   withheld    errors not sent: the router is silent, or has no address of the family
 *   limited     errors not sent: its rate limit */
#define ROUTER_COUNTS(each) each(probes) each(answers) each(withheld) each(limited)

#define ROUTER_COUNT_MEMBER(name) uint64_t name;
struct router_counts {
    ROUTER_COUNTS(ROUTER_COUNT_MEMBER)
};
#undef ROUTER_COUNT_MEMBER

struct router {
    struct address address4;
    struct address address6;
    uint32_t is_silent;
    uint32_t balance;
    uint64_t seed;
    double limit_per_second; /* 0: none */
    double limit_burst;
    uint32_t quoted_bytes; /* after the IP header; or QUOTE_FULL: all there is room for */
    uint32_t quoted_ttl;   /* of what expired here: 1 as it came, or 0 */
    uint32_t reply_ttl;
    uint32_t tos; /* of what leaves; or TOS_KEPT */
    int64_t answer_delay_ns;
    uint32_t copies; /* of each error */
    struct bytes extension; /* RFC 4884's structure, header and all */
    uint32_t extension_length;
    struct nat nat;
    struct refusal refusal;
    struct bucket bucket;
    struct router_counts counts;
};

/*   forward, returned         packets that came through
 *   lost, lost_on_return      packets that did not
 *   too_big                   packets that did not fit */
#define EDGE_COUNTS(each) each(forward) each(lost) each(returned) each(lost_on_return) each(too_big)

#define EDGE_COUNT_MEMBER(name) uint64_t name;
struct edge_counts {
    EDGE_COUNTS(EDGE_COUNT_MEMBER)
};
#undef EDGE_COUNT_MEMBER

struct edge {
    uint32_t to; /* a node of the route, from 0 */
    uint32_t mtu; /* 0: all fits */
    uint32_t reported_mtu;
    uint32_t is_black_hole; /* nothing is said about what does not fit */
    int64_t delay_ns;
    int64_t return_delay_ns;
    int64_t jitter_ns; /* up to so much more, in each direction */
    double loss;
    double return_loss;
    struct edge_counts counts;
};

struct node {
    uint32_t router; /* or ROUTER_NONE: the host; or ROUTER_DESTINATION */
    uint32_t first_edge;
    uint32_t edge_count;
};

enum echo_answer { ECHO_REPLY, ECHO_NOTHING, ECHO_ANSWERS };
enum udp_answer { UDP_UNREACHABLE, UDP_NOTHING, UDP_ANSWERS };
enum tcp_answer { TCP_SYN_ACK, TCP_RESET, TCP_NOTHING, TCP_ANSWERS };

/* A graph, and what a destination at its end does. */
struct route {
    uint32_t first_node;
    uint32_t node_count;
    uint32_t return_hops; /* routers on the way back beside those of the way there */
    uint32_t echo;
    uint32_t udp;
    uint32_t tcp;
    struct address from4; /* who answers, of family 0: the destination itself */
    struct address from6;
    uint32_t quoted_bytes;
    uint32_t reply_ttl;
    double limit_per_second; /* of each destination's answers; 0: none */
    double limit_burst;
};

struct topology {
    struct router *routers;
    struct route *routes;
    struct node *nodes;
    struct edge *edges;
    uint32_t router_count;
    uint32_t route_count;
    uint32_t node_count;
    uint32_t edge_count;
};

void topology_open(struct topology *topology);
void topology_close(struct topology *topology);

/* Say what is wrong with the graphs, or return NULL. */
const char *topology_fault(const struct topology *topology);

/* An address of a pair, of family 0 when there is none. */
static inline const struct address *address_for(const struct address *address4,
                                                const struct address *address6, uint8_t family) {
    return family == 4 ? address4 : address6;
}

#endif
