/* The fate of one request, decided when it arrives, by the scenario and its host alone.
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
#include "scenario.h"

enum answer_kind {
    ANSWER_REPLY = 1,
    ANSWER_DUPLICATE,
    ANSWER_TRUNCATED,
    ANSWER_ERROR,
    ANSWER_FORGED,
    ANSWER_CORRUPTED,
    ANSWER_FOREIGN_ERROR,
    ANSWER_NOISE,
    ANSWER_KINDS,
};

/* Variants of a reply and of its duplicates, and of an error; of what is injected, its kind. */
enum { FROM_DESTINATION, FROM_ELSEWHERE };
enum { ERROR_OF_BEHAVIOUR, ERROR_OF_RATE_LIMIT };

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

#endif
