#include "answers.h"
#include "clock.h"
#include "kinds.h"
#include "network.h"

enum { SEND_FRAMES = 128, LATE_NS = 100000 };

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
        [ANSWER_EXPIRED] = COUNT_expired,
        [ANSWER_TOO_BIG] = COUNT_too_big,
        [ANSWER_REFUSED] = COUNT_refused,
        [ANSWER_PORT_UNREACHABLE] = COUNT_port_unreachable,
        [ANSWER_SYN_ACK] = COUNT_syn_acks,
        [ANSWER_RESET] = COUNT_resets,
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

void network_flush(struct network *network) {
    struct link *link = &network->link;
    unsigned n = link_flush(link);
    for (unsigned i = 0; i < n; i++)
        if (link->events[i] != EVENT_NONE)
            finish(network, link->events[i], link->handed_ns[i], link->took_ns[i]);
}

void network_push(struct network *network, size_t size, uint32_t event) {
    link_push(&network->link, size, event);
    if (network->link.batched == BATCH_FRAMES)
        network_flush(network);
}

static void send_answer(struct network *network, uint32_t index) {
    const struct event *event = &network->wheel.events[index];
    const struct request *request = &network->requests.requests[event->request];
    const struct host *host = &network->hosts.hosts[request->host];
    struct subject subject = {
        .behaviour = network_behaviour(network, host),
        .table = &network->requests,
        .request = request,
        .client = &network->requests.clients[request->client],
        .routers = network->scenario.topology.routers,
        .route = network_route(network, host),
        .ending = &network->endings[event->request],
        .destination = host->address,
        .mac = network->scenario.mac,
    };
    subject.reply_ttl = answer_ttl(&subject, event->kind);
    network_push(network, answer_write(&subject, event, link_next(&network->link)), index);
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
    network_flush(network);
    return sent;
}
