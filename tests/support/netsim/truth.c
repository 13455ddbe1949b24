#include "truth.h"

#include <limits.h>
#include <string.h>

#include "packet.h"

enum { BUFFER_BYTES = 1 << 16 };

FILE *truth_file(const struct truth *truth, const char *name) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", truth->directory, name);
    FILE *file = fopen(path, "we");
    if (file == NULL)
        perror(path);
    else
        setvbuf(file, NULL, _IOFBF, BUFFER_BYTES);
    return file;
}

bool truth_open(struct truth *truth, const char *directory, bool record_probes) {
    *truth = (struct truth){.directory = directory};
    if (!record_probes)
        return true;
    truth->requests = truth_file(truth, "requests");
    truth->answers = truth_file(truth, "answers");
    return truth->requests != NULL && truth->answers != NULL;
}

static uint8_t flags_of(const struct plan *plan) {
    return (uint8_t)((plan->is_dropped ? REQUEST_DROPPED : 0) |
                     (plan->is_limited ? REQUEST_LIMITED : 0) |
                     (plan->is_reordered ? REQUEST_REORDERED : 0) |
                     (plan->is_elsewhere ? REQUEST_ELSEWHERE : 0));
}

static void add_payload(struct request_record *record, const struct probe *probe) {
    size_t header = message_header_bytes(probe->protocol, probe->message);
    size_t payload = probe->message_bytes - header;
    record->payload_bytes = (uint16_t)payload;
    memcpy(record->payload, probe->message + header,
           payload < sizeof record->payload ? payload : sizeof record->payload);
}

static void add_journey(struct request_record *record, const struct journey *journey) {
    record->router = ROUTER_NONE;
    if (journey->end == END_NONE)
        return;
    record->router = journey->ending.router;
    record->end = (uint8_t)journey->end;
    record->reply = (uint8_t)journey->reply;
    record->hops = (uint8_t)journey->hops;
}

void truth_request(struct truth *truth, const struct probe *probe, const struct plan *plan,
                   const struct journey *journey, uint32_t n, uint32_t *serial) {
    *serial = truth->serial++;
    if (truth->requests == NULL)
        return;
    struct request_record record = {
        .arrival_ns = probe->arrival_ns,
        .n = n,
        .ip_word = probe->ip_word,
        .family = probe->destination.family,
        .flags = flags_of(plan),
        .genuine = (uint8_t)plan->genuine_count,
        .planned = (uint8_t)plan->answer_count,
        .ttl = probe->ttl,
        .tos = probe->tos,
        .protocol = probe->protocol,
    };
    memcpy(record.source, probe->source.bytes, ADDRESS_BYTES);
    memcpy(record.destination, probe->destination.bytes, ADDRESS_BYTES);
    memcpy(record.head, probe->message, sizeof record.head);
    add_payload(&record, probe);
    add_journey(&record, journey);
    fwrite_unlocked(&record, sizeof record, 1, truth->requests);
}

void truth_answer(struct truth *truth, const struct answer_record *record) {
    if (truth->answers != NULL)
        fwrite_unlocked(record, sizeof *record, 1, truth->answers);
}

bool truth_targets(const struct truth *truth, const struct host_table *hosts) {
    FILE *file = truth_file(truth, "targets");
    if (file == NULL)
        return false;
    for (uint32_t i = 0; i < hosts->count; i++) {
        const struct host *host = &hosts->hosts[i];
        struct target_record record = {
            .family = host->address.family,
            .turnaround_sum_ns = host->turnaround_sum_ns,
            .turnaround_min_ns = host->turnaround_min_ns,
            .turnaround_max_ns = host->turnaround_max_ns,
        };
        memcpy(record.address, host->address.bytes, ADDRESS_BYTES);
        memcpy(record.counts, host->counts, sizeof record.counts);
        fwrite_unlocked(&record, sizeof record, 1, file);
    }
    bool is_written = !ferror(file);
    return fclose(file) == 0 && is_written;
}

static bool write_counts(const struct truth *truth, const char *name, const void *first,
                         size_t counts_bytes, size_t stride, uint32_t n) {
    FILE *file = truth_file(truth, name);
    if (file == NULL)
        return false;
    for (uint32_t i = 0; i < n; i++)
        fwrite_unlocked((const char *)first + i * stride, counts_bytes, 1, file);
    bool is_written = !ferror(file);
    return fclose(file) == 0 && is_written;
}

bool truth_topology(const struct truth *truth, const struct topology *topology) {
    const struct router *router = topology->routers;
    const struct edge *edge = topology->edges;
    bool has_routers = write_counts(truth, "routers", &router->counts, sizeof router->counts,
                                    sizeof *router, topology->router_count);
    bool has_links = write_counts(truth, "links", &edge->counts, sizeof edge->counts,
                                  sizeof *edge, topology->edge_count);
    return has_routers && has_links;
}

bool truth_close(struct truth *truth) {
    bool is_written = true;
    FILE *files[] = {truth->requests, truth->answers};
    for (int i = 0; i < 2; i++) {
        if (files[i] == NULL)
            continue;
        is_written = !ferror(files[i]) && is_written;
        is_written = fclose(files[i]) == 0 && is_written;
    }
    return is_written;
}
