#include "network.h"

#include <inttypes.h>

#include "answers.h"
#include "arena.h"
#include "classify.h"
#include "clock.h"
#include "draw.h"
#include "neighbours.h"
#include "plan.h"

/* Receiving comes first: the ring is what overflows, what is due is kept by the million. */
enum { RECEIVE_FRAMES = 128, SEND_FRAMES = 128, LATE_NS = 100000, STEP_NS = 100000 };

bool network_open(struct network *network, const char *interface, const char *truth_directory) {
    struct scenario *s = &network->scenario;
    prefix_table_open(&network->prefixes, s->prefixes, s->prefix_count);
    network->buckets = arena_open(s->prefix_count + 1, sizeof *network->buckets);
    host_table_open(&network->hosts, s->hosts_max);
    request_table_open(&network->requests, s->in_flight_max);
    wheel_open(&network->wheel, s->in_flight_max * 2, realtime_ns());
    network->realtime_lead_ns = realtime_lead_ns();
    return truth_open(&network->truth, truth_directory, s->record_probes) &&
           link_open(&network->link, interface, s->ring_frames);
}

void network_close(struct network *network) {
    link_close(&network->link);
    wheel_close(&network->wheel);
    request_table_close(&network->requests);
    host_table_close(&network->hosts);
    arena_close(network->buckets, network->scenario.prefix_count + 1, sizeof *network->buckets);
    scenario_free(&network->scenario);
}

/* ---- sending --------------------------------------------------------------------------------- */

static const struct behaviour *behaviour_of(const struct network *network,
                                            const struct host *host) {
    return &network->scenario.behaviours[network->scenario.prefixes[host->prefix].behaviour];
}

static enum count count_of(uint8_t kind) {
    static const enum count counts[ANSWER_KINDS] = {
        [ANSWER_REPLY] = COUNT_replied,
        [ANSWER_DUPLICATE] = COUNT_duplicates,
        [ANSWER_TRUNCATED] = COUNT_truncated,
        [ANSWER_ERROR] = COUNT_errors,
        [ANSWER_FORGED] = COUNT_forged,
        [ANSWER_CORRUPTED] = COUNT_corrupted,
        [ANSWER_FOREIGN_ERROR] = COUNT_foreign_errors,
        [ANSWER_NOISE] = COUNT_noise,
    };
    return counts[kind];
}

static void count_lateness(struct frame_counts *counts, int64_t late_ns) {
    if (late_ns <= 0)
        return;
    counts->late_sum_ns += (uint64_t)late_ns;
    if ((uint64_t)late_ns > counts->late_max_ns)
        counts->late_max_ns = (uint64_t)late_ns;
    if (late_ns > LATE_NS)
        counts->late_100us++;
}

static void count_turnaround(struct host *host, uint64_t ns) {
    host->turnaround_sum_ns += ns;
    if (ns < host->turnaround_min_ns)
        host->turnaround_min_ns = ns;
    if (ns > host->turnaround_max_ns)
        host->turnaround_max_ns = ns;
}

/* An event's packet was handed to the kernel, or refused by it: the event ends. */
static void finish(struct network *network, uint32_t index, int64_t handed_ns, int64_t took_ns) {
    int64_t within_us = took_ns / 1000 + 1;
    const struct event *event = &network->wheel.events[index];
    const struct request *request = &network->requests.requests[event->request];
    struct host *host = &network->hosts.hosts[request->host];
    struct answer_record record = {
        .due_ns = event->due_ns,
        .request = request->serial,
        .kind = event->kind,
        .variant = event->variant,
        .within_us = (uint16_t)(within_us < UINT16_MAX ? within_us : UINT16_MAX),
    };
    if (handed_ns == REFUSED_NS) {
        host->counts[COUNT_unsent]++;
    } else {
        record.sent_ns = handed_ns;
        host->counts[count_of(event->kind)]++;
        count_lateness(&network->counts, handed_ns - event->due_ns);
        if (event->kind == ANSWER_REPLY)
            count_turnaround(host, (uint64_t)(record.sent_ns - request->arrival_ns));
    }
    truth_answer(&network->truth, &record);
    request_release(&network->requests, event->request);
    wheel_release(&network->wheel, index);
}

static void flush(struct network *network) {
    struct link *link = &network->link;
    unsigned n = link_flush(link);
    for (unsigned i = 0; i < n; i++)
        if (link->events[i] != EVENT_NONE)
            finish(network, link->events[i], link->handed_ns[i], link->took_ns[i]);
}

static void push(struct network *network, size_t size, uint32_t event) {
    link_push(&network->link, size, event);
    if (network->link.batched == BATCH_FRAMES)
        flush(network);
}

static void send_answer(struct network *network, uint32_t index) {
    const struct event *event = &network->wheel.events[index];
    const struct request *request = &network->requests.requests[event->request];
    const struct host *host = &network->hosts.hosts[request->host];
    struct subject subject = {
        .behaviour = behaviour_of(network, host),
        .table = &network->requests,
        .request = request,
        .client = &network->requests.clients[request->client],
        .destination = host->address,
        .mac = network->scenario.mac,
    };
    push(network, answer_write(&subject, event, link_next(&network->link)), index);
}

unsigned network_send(struct network *network) {
    unsigned sent = 0;
    wheel_advance(&network->wheel, realtime_ns());
    while (sent < SEND_FRAMES) {
        uint32_t index = wheel_take(&network->wheel);
        if (index == EVENT_NONE)
            break;
        send_answer(network, index);
        sent++;
    }
    flush(network);
    return sent;
}

/* ---- receiving ------------------------------------------------------------------------------- */

/* The host a probe is for, or HOST_NONE. */
static uint32_t route(struct network *network, const struct probe *probe) {
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
    host->delay_ns = plan_host_delay(behaviour_of(network, host), key);
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
                         uint32_t serial, const struct plan *plan) {
    if (plan->answer_count == 0)
        return;
    uint32_t request = request_keep(&network->requests, probe, host);
    if (request == REQUEST_NONE) {
        network->counts.overflow++;
        return;
    }
    network->requests.requests[request].serial = serial;
    request_hold(&network->requests, request);
    for (uint32_t i = 0; i < plan->answer_count; i++)
        file_answer(network, request, probe->arrival_ns, &plan->answers[i]);
    request_release(&network->requests, request);
}

static void receive_request(struct network *network, const struct probe *probe) {
    struct plan plan;
    uint32_t serial, index = route(network, probe);
    if (index == HOST_NONE)
        return;
    struct host *host = &network->hosts.hosts[index];
    const struct behaviour *behaviour = behaviour_of(network, host);
    struct bucket *bucket = behaviour->rate_limit.scope == LIMIT_PREFIX
                                ? &network->buckets[host->prefix]
                                : &host->bucket;
    plan_request(&plan, behaviour, host, bucket, probe->arrival_ns);
    truth_request(&network->truth, probe, &plan, host->counts[COUNT_requests], &serial);
    host->counts[COUNT_requests]++;
    host->counts[COUNT_dropped] += plan.is_dropped;
    host->counts[COUNT_limited] += plan.is_limited;
    host->counts[COUNT_reordered] += plan.is_reordered;
    host->counts[COUNT_elsewhere] += plan.is_elsewhere;
    file_answers(network, probe, index, serial, &plan);
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
    push(network,
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
    case FRAME_ECHO_REQUEST:
        receive_request(network, &probe);
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

/* ---- the end --------------------------------------------------------------------------------- */

/* Take what had arrived before the end; whoever goes on sending is not waited for. */
static void receive_rest(struct network *network) {
    for (uint32_t taken = 0, n = 1; n != 0 && taken < network->link.ring_frames; taken += n)
        n = network_receive(network);
    flush(network);
}

static void count_pending(struct network *network) {
    uint32_t index;
    wheel_drain(&network->wheel);
    while ((index = wheel_take(&network->wheel)) != EVENT_NONE) {
        uint32_t request = network->wheel.events[index].request;
        uint32_t host = network->requests.requests[request].host;
        network->hosts.hosts[host].counts[COUNT_pending]++;
        request_release(&network->requests, request);
        wheel_release(&network->wheel, index);
    }
}

static uint64_t sum_of(const struct host_table *hosts, enum count count) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < hosts->count; i++)
        sum += hosts->hosts[i].counts[count];
    return sum;
}

static void write_total(FILE *file, const char *name, uint64_t total) {
    fprintf(file, "%s %" PRIu64 "\n", name, total);
}

static bool write_totals(const struct network *network) {
    FILE *file = truth_file(&network->truth, "totals");
    if (file == NULL)
        return false;
#define WRITE_COUNT(name) write_total(file, #name, sum_of(&network->hosts, COUNT_##name));
    COUNTS(WRITE_COUNT)
#undef WRITE_COUNT
#define WRITE_FRAME_COUNT(name) write_total(file, #name, network->counts.name);
    FRAME_COUNTS(WRITE_FRAME_COUNT)
#undef WRITE_FRAME_COUNT
    bool is_written = !ferror(file);
    return fclose(file) == 0 && is_written;
}

bool network_report(struct network *network) {
    receive_rest(network);
    count_pending(network);
    network->counts.ring_drops = link_drops(&network->link);
    int64_t step_ns = realtime_lead_ns() - network->realtime_lead_ns;
    if (step_ns > STEP_NS || step_ns < -STEP_NS)
        network->counts.clock_step_ns = (uint64_t)(step_ns < 0 ? -step_ns : step_ns);
    bool has_targets = truth_targets(&network->truth, &network->hosts);
    bool has_totals = write_totals(network);
    return truth_close(&network->truth) && has_targets && has_totals;
}
