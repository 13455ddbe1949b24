#include <inttypes.h>

#include "clock.h"
#include "network.h"

enum { STEP_NS = 100000 };

/* Take what had arrived before the end; whoever goes on sending is not waited for. */
static void receive_rest(struct network *network) {
    for (uint32_t taken = 0, n = 1; n != 0 && taken < network->link.ring_frames; taken += n)
        n = network_receive(network);
    network_flush(network);
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
    bool has_topology = truth_topology(&network->truth, &network->scenario.topology);
    bool has_totals = write_totals(network);
    return truth_close(&network->truth) && has_targets && has_topology && has_totals;
}
