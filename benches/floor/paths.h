/* The paths of one run: which probes are due, what they look like on the wire, what answered. */
#ifndef FLOOR_PATHS_H
#define FLOOR_PATHS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    ATTEMPTS_MAX = 4,
    LAST_TTL_MAX = 63, /* a path's TTLs are the bits of a word */
    TRACE_DATA_BYTES = 20,
    TRACE_BYTES = 20 + 8 + TRACE_DATA_BYTES,
};

struct shape {
    uint32_t count;
    uint32_t first_target; /* host order; the others follow it */
    uint32_t source;       /* network order */
    unsigned attempts;     /* that a silent hop gets */
    unsigned burst;        /* TTLs asked for at once */
    unsigned last_ttl;
    int64_t retry_ns;   /* after which a silent hop is asked again */
    int64_t timeout_ns; /* after which its last attempt is given up; not before retry_ns */
};

struct entry {
    uint32_t path;
    uint8_t ttl;
    uint8_t attempt;
    bool is_sent; /* a hop behind the target is not asked */
};

/* Probes in the order they were wanted, which is the order they are sent in and fall due in. */
struct queue {
    struct entry *entries;
    uint32_t wanted; /* how many there are */
    uint32_t sent;   /* of them: on their way, or not needed any more */
    uint32_t due;    /* of them: answered, or too late */
};

struct hop {
    int64_t sent_ns[ATTEMPTS_MAX]; /* CLOCK_REALTIME, as the kernel stamps */
    uint32_t responder;            /* network order; 0 until answered */
    int32_t rtt_ns;
};

struct path {
    uint64_t settled;    /* TTLs that answered or ran out of attempts */
    uint16_t identifier; /* in network order, like the checksum: all its probes have these */
    uint16_t checksum;
    uint8_t asked;    /* TTLs up to this one */
    uint8_t distance; /* of the target; 0 until it replied */
    bool is_over;
};

struct paths {
    struct shape shape;
    struct path *all;
    struct hop *hops; /* last_ttl of each path */
    struct queue probes;
    struct queue lasts; /* the last attempts, once they are due to be tried again */
    uint32_t begun;
    uint32_t finished;
    uint32_t packets;
    uint32_t mismatched;
    uint64_t secret;
};

void paths_open(struct paths *paths, const struct shape *shape);

/* Begin paths as long as fewer than `window` are in flight. */
void paths_begin(struct paths *paths, uint32_t window);

/* Return the next probe to send, or NULL. */
struct entry *paths_next(struct paths *paths);

/* Write the packet of a probe, IP header first; return its target in network order. */
uint32_t paths_fill(const struct paths *paths, const struct entry *entry, uint8_t *packet);

void paths_stamp(struct paths *paths, struct entry *entry, int64_t sent_ns);

/* Settle the hop that a datagram answers; it begins with its IPv4 header. */
void paths_match(struct paths *paths, const uint8_t *datagram, size_t size, int64_t received_ns);

/* Ask hops that are silent for too long again, or give them up. */
void paths_expire(struct paths *paths, int64_t now_ns);

/* Return when there is something for paths_expire to do, or INT64_MAX. */
int64_t paths_expiry_ns(struct paths *paths);

/* Return how many hops answered, targets included and what lies behind them not. */
uint32_t paths_found(const struct paths *paths);

/* Return the mean round trip of everything that answered. */
double paths_rtt_us(const struct paths *paths);

#endif
