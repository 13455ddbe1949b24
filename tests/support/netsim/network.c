#include "network.h"

#include "arena.h"
#include "classify.h"
#include "clock.h"
#include "draw.h"
#include "neighbours.h"
#include "plan.h"

/* Receiving comes first: the ring is what overflows, what is due is kept by the million. */
enum { RECEIVE_FRAMES = 128 };

bool network_open(struct network *network, const char *interface, const char *truth_directory) {
    struct scenario *s = &network->scenario;
    prefix_table_open(&network->prefixes, s->prefixes, s->prefix_count);
    network->buckets = arena_open(s->prefix_count + 1, sizeof *network->buckets);
    host_table_open(&network->hosts, s->hosts_max);
    request_table_open(&network->requests, s->in_flight_max);
    network->endings = arena_open(s->in_flight_max, sizeof *network->endings);
    wheel_open(&network->wheel, s->in_flight_max * 2, realtime_ns());
    network->realtime_lead_ns = realtime_lead_ns();
    return truth_open(&network->truth, truth_directory, s->record_probes) &&
           link_open(&network->link, interface, s->ring_frames);
}

void network_close(struct network *network) {
    link_close(&network->link);
    wheel_close(&network->wheel);
    request_table_close(&network->requests);
    arena_close(network->endings, network->scenario.in_flight_max, sizeof *network->endings);
    host_table_close(&network->hosts);
    arena_close(network->buckets, network->scenario.prefix_count + 1, sizeof *network->buckets);
    scenario_free(&network->scenario);
}

/* The host a probe is for, or HOST_NONE. */
static uint32_t host_of(struct network *network, const struct probe *probe) {
    uint64_t key = draw_address_key(network->scenario.seed, &probe->destination);
    uint32_t index = host_find(&network->hosts, &probe->destination, key);
    if (index == HOST_NONE) {
        network->counts.overflow++;
        return index;
    }
    struct host *host = &network->hosts.hosts[index];
    if (host->counts[COUNT_requests] != 0)
        return index;
    host->prefix = prefix_find(&network->prefixes, &host->address);
    if (host->prefix == PREFIX_NONE) {
        network->counts.unrouted++;
        return HOST_NONE;
    }
    host->delay_ns = plan_host_delay(network_behaviour(network, host), key);
    return index;
}

static void file_answer(struct network *network, uint32_t request, int64_t arrival_ns,
                        const struct planned_answer *answer) {
    struct event event = {
        .due_ns = arrival_ns + answer->delay_ns,
        .request = request,
        .drawn = answer->drawn,
        .kind = answer->kind,
        .variant = answer->variant,
    };
    if (wheel_add(&network->wheel, &event))
        request_hold(&network->requests, request);
    else
        network->counts.overflow++;
}

static void file_answers(struct network *network, const struct probe *probe, uint32_t host,
                         uint32_t serial, const struct plan *plan, const struct journey *journey) {
    if (plan->answer_count == 0)
        return;
    uint32_t request = request_keep(&network->requests, probe, host);
    if (request == REQUEST_NONE) {
        network->counts.overflow++;
        return;
    }
    network->requests.requests[request].serial = serial;
    if (journey->end != END_NONE)
        network->endings[request] = journey->ending;
    request_hold(&network->requests, request);
    for (uint32_t i = 0; i < plan->answer_count; i++)
        file_answer(network, request, probe->arrival_ns, &plan->answers[i]);
    request_release(&network->requests, request);
}

static struct bucket *bucket_of(struct network *network, const struct behaviour *behaviour,
                                struct host *host) {
    return behaviour->rate_limit.scope == LIMIT_PREFIX ? &network->buckets[host->prefix]
                                                       : &host->bucket;
}

/* Let a probe travel, if there is a route, and decide what comes of it. */
static void decide(struct network *network, const struct probe *probe, struct host *host,
                   struct journey *journey, struct plan *plan) {
    const struct behaviour *behaviour = network_behaviour(network, host);
    const struct route *route = network_route(network, host);
    struct bucket *bucket = bucket_of(network, behaviour, host);
    journey->end = END_NONE;
    if (route == NULL) {
        plan_request(plan, behaviour, host, bucket, probe->arrival_ns);
        return;
    }
    journey_travel(journey, &network->scenario.topology, route, probe, &host->route_bucket,
                   network->scenario.seed, plan_key(host));
    plan_journey(plan, behaviour, host, bucket, probe, route, journey);
    host->counts[COUNT_lost] += journey->end == END_LOST;
    host->counts[COUNT_lost_on_return] += journey->reply == REPLY_LOST;
    host->counts[COUNT_withheld] +=
        journey->reply == REPLY_WITHHELD && journey->end != END_LOST;
}

static void receive_probe(struct network *network, const struct probe *probe) {
    struct journey journey;
    struct plan plan;
    uint32_t serial, index = host_of(network, probe);
    if (index == HOST_NONE)
        return;
    struct host *host = &network->hosts.hosts[index];
    if (network_route(network, host) == NULL && !is_icmp(probe->protocol)) {
        network->counts.other++;
        return;
    }
    decide(network, probe, host, &journey, &plan);
    truth_request(&network->truth, probe, &plan, &journey, host->counts[COUNT_requests], &serial);
    host->counts[COUNT_requests]++;
    host->counts[COUNT_dropped] += plan.is_dropped;
    host->counts[COUNT_limited] += plan.is_limited;
    host->counts[COUNT_reordered] += plan.is_reordered;
    host->counts[COUNT_elsewhere] += plan.is_elsewhere;
    file_answers(network, probe, index, serial, &plan, &journey);
}

static bool is_played(const struct network *network, const struct address *address) {
    const struct scenario *s = &network->scenario;
    for (size_t i = 0; i < s->gateway_count; i++)
        if (address_equal(&s->gateways[i], address))
            return true;
    return prefix_find(&network->prefixes, address) != PREFIX_NONE;
}

static void receive_neighbour(struct network *network, enum frame_class class,
                              const struct probe *probe) {
    static const struct address unspecified6 = {.family = 6};
    if (!is_played(network, &probe->destination) || address_equal(&probe->source, &unspecified6)) {
        network->counts.other++; /* from nobody: a sender's own duplicate address detection */
        return;
    }
    uint8_t *frame = link_next(&network->link);
    const uint8_t *mac = network->scenario.mac;
    network->counts.neighbours++;
    network_push(network,
                 class == FRAME_ARP_REQUEST ? arp_reply(frame, probe, mac)
                                            : neighbour_advertisement(frame, probe, mac),
                 EVENT_NONE);
}

static void receive_frame(struct network *network, const struct frame *frame) {
    struct probe probe = {.arrival_ns = frame->arrival_ns};
    enum frame_class class =
        classify(frame->bytes, frame->size, network->scenario.mac, &probe);
    network->counts.frames++;
    switch (class) {
    case FRAME_PROBE:
        receive_probe(network, &probe);
        break;
    case FRAME_ARP_REQUEST:
    case FRAME_SOLICITATION:
        receive_neighbour(network, class, &probe);
        break;
    case FRAME_MALFORMED:
        network->counts.malformed++;
        break;
    case FRAME_OTHER:
        network->counts.other++;
        break;
    }
}

unsigned network_receive(struct network *network) {
    struct frame frame;
    unsigned received = 0;
    while (received < RECEIVE_FRAMES && link_peek(&network->link, &frame)) {
        receive_frame(network, &frame);
        link_consume(&network->link);
        received++;
    }
    return received;
}
