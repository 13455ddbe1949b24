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

void truth_request(struct truth *truth, const struct probe *probe, const struct plan *plan,
                   uint32_t n, uint32_t *serial) {
    *serial = truth->serial++;
    if (truth->requests == NULL)
        return;
    size_t payload = probe->message_bytes - (size_t)ICMP_BYTES;
    struct request_record record = {
        .arrival_ns = probe->arrival_ns,
        .n = n,
        .ident = load16(probe->message + 4),
        .sequence = load16(probe->message + 6),
        .payload_bytes = (uint16_t)payload,
        .family = probe->destination.family,
        .flags = flags_of(plan),
        .genuine = (uint8_t)plan->genuine_count,
        .planned = (uint8_t)plan->answer_count,
        .ttl = probe->ttl,
        .tos = probe->tos,
    };
    memcpy(record.destination, probe->destination.bytes, ADDRESS_BYTES);
    memcpy(record.payload, probe->message + ICMP_BYTES,
           payload < sizeof record.payload ? payload : sizeof record.payload);
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
