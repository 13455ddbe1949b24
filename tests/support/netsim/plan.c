#include "plan.h"

#include <math.h>

#include "draw.h"
#include "packet.h"

/* Box and Muller (1958); one minus the unit keeps the logarithm finite. */
static double standard_normal(uint64_t drawn) {
    double radius = sqrt(-2 * log(1 - draw_unit(drawn)));
    return radius * cos(2 * 3.14159265358979323846 * draw_unit(draw_mix(drawn)));
}

static int64_t draw_delay(const struct distribution *d, uint64_t drawn) {
    double ns = d->location_ns;
    switch (d->kind) {
    case UNIFORM:
        return d->min_ns + (int64_t)(draw_unit(drawn) * (double)(d->max_ns - d->min_ns));
    case NORMAL:
        ns += d->spread * standard_normal(drawn);
        break;
    case LOGNORMAL:
        ns *= exp(d->spread * standard_normal(drawn));
        break;
    default:
        return (int64_t)ns;
    }
    if (!(ns > (double)d->min_ns))
        return d->min_ns;
    return ns < (double)d->max_ns ? (int64_t)ns : d->max_ns;
}

int64_t plan_host_delay(const struct behaviour *behaviour, uint64_t host_key) {
    return draw_delay(&behaviour->host_delay, draw(host_key, DRAW_HOST_DELAY));
}

static bool is_lost(const struct behaviour *behaviour, struct host *host, uint64_t key) {
    const struct burst_loss *burst = &behaviour->burst_loss;
    double turn = host->is_bad ? burst->to_good : burst->to_bad;
    if (draw_happens(key, DRAW_BURST_TURN, turn))
        host->is_bad = !host->is_bad;
    double loss = host->is_bad ? burst->loss_bad : burst->loss_good;
    return draw_happens(key, DRAW_LOSS, behaviour->loss) ||
           draw_happens(key, DRAW_BURST_LOSS, loss);
}

static void add(struct plan *plan, uint8_t kind, unsigned variant, int64_t delay_ns,
                uint64_t drawn) {
    if (delay_ns > DELAY_MAX_NS)
        delay_ns = DELAY_MAX_NS;
    plan->answers[plan->answer_count++] = (struct planned_answer){
        .delay_ns = delay_ns,
        .drawn = (uint32_t)drawn,
        .kind = kind,
        .variant = (uint8_t)variant,
    };
}

static void plan_reply(struct plan *plan, const struct behaviour *b, uint8_t family, uint64_t key,
                       int64_t delay_ns) {
    plan->is_reordered = draw_happens(key, DRAW_REORDER, b->reorder_share);
    plan->is_elsewhere = behaviour_elsewhere(b, family)->family != 0 &&
                         draw_happens(key, DRAW_ELSEWHERE, b->elsewhere_share);
    unsigned variant = plan->is_elsewhere ? FROM_ELSEWHERE : FROM_DESTINATION;
    if (plan->is_reordered)
        delay_ns += b->reorder_delay_ns;
    if (draw_happens(key, DRAW_TRUNCATE, b->truncate_share)) {
        add(plan, ANSWER_TRUNCATED, variant, delay_ns, 0);
        return;
    }
    add(plan, ANSWER_REPLY, variant, delay_ns, 0);
    plan->genuine_count++;
    if (!draw_happens(key, DRAW_DUPLICATE, b->duplicate_share))
        return;
    for (uint32_t copy = 1; copy <= b->duplicate_copies; copy++) {
        add(plan, ANSWER_DUPLICATE, variant, delay_ns + copy * b->duplicate_spacing_ns, 0);
        plan->genuine_count++;
    }
}

/* The n-th of the kinds whose bits are set. */
static unsigned nth_kind(uint32_t kinds, uint32_t n) {
    while (n-- > 0)
        kinds &= kinds - 1;
    return (unsigned)__builtin_ctz(kinds);
}

static void plan_injection(struct plan *plan, const struct injection *injection, uint64_t key,
                           uint8_t kind, enum draw_label label, int64_t around_ns) {
    if (!draw_happens(key, label, injection->share))
        return;
    uint32_t choices = (uint32_t)__builtin_popcount(injection->kinds);
    uint64_t drawn = draw(key, label);
    for (uint32_t copy = 0; copy < injection->copies; copy++) {
        drawn = draw_mix(drawn);
        int64_t delay_ns = injection->delay_ns;
        if (delay_ns == DELAY_AROUND)
            delay_ns = (int64_t)(2 * draw_unit(draw_mix(~drawn)) * (double)around_ns);
        add(plan, kind, nth_kind(injection->kinds, draw_below(drawn, choices)), delay_ns, drawn);
    }
}

static void plan_fate(struct plan *plan, const struct behaviour *b, struct host *host,
                      struct bucket *bucket, int64_t arrival_ns, uint64_t key, int64_t delay_ns) {
    plan->is_dropped = is_lost(b, host, key);
    if (plan->is_dropped)
        return;
    const struct rate_limit *limit = &b->rate_limit;
    plan->is_limited = limit->scope != LIMIT_NONE &&
                       !bucket_take(bucket, limit->per_second, limit->burst, arrival_ns);
    if (plan->is_limited) {
        if (b->rate_limit.says_error)
            add(plan, ANSWER_ERROR, ERROR_OF_RATE_LIMIT, delay_ns, 0);
    } else if (draw_happens(key, DRAW_ERROR, b->error_share)) {
        add(plan, ANSWER_ERROR, ERROR_OF_BEHAVIOUR, delay_ns, 0);
    } else {
        plan_reply(plan, b, host->address.family, key, delay_ns);
    }
}

/* Forged and corrupted replies and noise are echo replies; foreign errors are of any protocol. */
static void plan_injections(struct plan *plan, const struct behaviour *b, uint64_t key,
                            int64_t around_ns, bool is_echo) {
    if (is_echo) {
        plan_injection(plan, &b->forged, key, ANSWER_FORGED, DRAW_FORGED, around_ns);
        plan_injection(plan, &b->corrupted, key, ANSWER_CORRUPTED, DRAW_CORRUPTED, around_ns);
        plan_injection(plan, &b->noise, key, ANSWER_NOISE, DRAW_NOISE, around_ns);
    }
    plan_injection(plan, &b->foreign_error, key, ANSWER_FOREIGN_ERROR, DRAW_FOREIGN_ERROR,
                   around_ns);
}

static void begin(struct plan *plan) {
    plan->answer_count = plan->genuine_count = 0;
    plan->is_dropped = plan->is_limited = plan->is_reordered = plan->is_elsewhere = false;
}

/* What the host itself takes for a request. */
static int64_t own_delay(const struct behaviour *b, const struct host *host, uint64_t key) {
    return host->delay_ns + draw_delay(&b->jitter, draw(key, DRAW_JITTER));
}

uint64_t plan_key(const struct host *host) {
    return draw_request_key(host->key, host->counts[COUNT_requests]);
}

void plan_request(struct plan *plan, const struct behaviour *b, struct host *host,
                  struct bucket *bucket, int64_t arrival_ns) {
    uint64_t key = plan_key(host);
    int64_t delay_ns = own_delay(b, host, key);
    begin(plan);
    plan_fate(plan, b, host, bucket, arrival_ns, key, delay_ns);
    plan_injections(plan, b, key, delay_ns, true);
}

/* What answers at the end of a journey that is no echo reply. */
static enum answer_kind kind_of(const struct journey *journey, uint8_t protocol,
                                const struct route *route) {
    switch (journey->end) {
    case END_EXPIRED:
        return ANSWER_EXPIRED;
    case END_TOO_BIG:
        return ANSWER_TOO_BIG;
    case END_REFUSED:
        return ANSWER_REFUSED;
    default:
        if (protocol == PROTOCOL_UDP)
            return ANSWER_PORT_UNREACHABLE;
        return route->tcp == TCP_RESET ? ANSWER_RESET : ANSWER_SYN_ACK;
    }
}

void plan_journey(struct plan *plan, const struct behaviour *b, struct host *host,
                  struct bucket *bucket, const struct probe *probe, const struct route *route,
                  const struct journey *journey) {
    bool is_echo = is_icmp(probe->protocol);
    uint64_t key = plan_key(host);
    int64_t delay_ns = journey->total_ns + (is_echo ? own_delay(b, host, key) : 0);
    begin(plan);
    plan->is_limited = journey->reply == REPLY_LIMITED;
    if (journey->reply == REPLY_COMES && journey->end == END_ARRIVED && is_echo)
        plan_fate(plan, b, host, bucket, probe->arrival_ns + journey->there_ns, key, delay_ns);
    else if (journey->reply == REPLY_COMES)
        for (uint32_t copy = 0; copy < journey->copies; copy++)
            add(plan, kind_of(journey, probe->protocol, route), 0, journey->total_ns, 0);
    plan_injections(plan, b, key, delay_ns, is_echo);
}
