/* The fate of one request, decided when it arrives, by the scenario and its host alone; on a route,
 * by its journey first.
 *
 * The order of decisions: loss, rate limit, error, then the reply with what may happen to it; what
 * is injected is drawn apart and comes whatever became of the request. Chance derives from the
 * seed, the address and how many requests the address has had.
 */
#ifndef NETSIM_PLAN_H
#define NETSIM_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "hosts.h"
#include "journey.h"
#include "kinds.h"
#include "scenario.h"

enum { PLAN_ANSWERS_MAX = 2 + 5 * COPIES_MAX };

struct planned_answer {
    int64_t delay_ns; /* after the arrival */
    uint32_t drawn;
    uint8_t kind;
    uint8_t variant;
};

struct plan {
    struct planned_answer answers[PLAN_ANSWERS_MAX];
    uint32_t answer_count;
    uint32_t genuine_count; /* replies and duplicates among them */
    bool is_dropped;
    bool is_limited;
    bool is_reordered;
    bool is_elsewhere;
};

/* The delay that is the host's own, of a key. */
int64_t plan_host_delay(const struct behaviour *behaviour, uint64_t host_key);

/* Decide about the host's next request, which arrived then; moves the host's and bucket's state. */
void plan_request(struct plan *plan, const struct behaviour *behaviour, struct host *host,
                  struct bucket *bucket, int64_t arrival_ns);

/* Decide about the host's next request after its journey. Behaviour decides about echo requests
 * that came to the host, and injects whatever became of a probe; of what comes by UDP and TCP it
 * knows nothing. */
void plan_journey(struct plan *plan, const struct behaviour *behaviour, struct host *host,
                  struct bucket *bucket, const struct probe *probe, const struct route *route,
                  const struct journey *journey);

/* The chance that is the next request's own. */
uint64_t plan_key(const struct host *host);

#endif
