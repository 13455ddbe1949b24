/* Token buckets: so many a second on average, so many at once. */
#ifndef NETSIM_BUCKET_H
#define NETSIM_BUCKET_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "clock.h"

/* Full when it was never used. */
struct bucket {
    double tokens;
    int64_t filled_ns;
};

/* Take a token at an instant; false when there is none. Instants may go back a little: what comes
 * over a longer way was decided about later. */
static inline bool bucket_take(struct bucket *bucket, double per_second, double burst,
                               int64_t now_ns) {
    if (bucket->filled_ns == 0) {
        bucket->tokens = burst;
        bucket->filled_ns = now_ns;
    }
    if (now_ns > bucket->filled_ns) {
        double gained = (double)(now_ns - bucket->filled_ns) * per_second / NS_PER_S;
        bucket->tokens = fmin(burst, bucket->tokens + gained);
        bucket->filled_ns = now_ns;
    }
    if (bucket->tokens < 1)
        return false;
    bucket->tokens -= 1;
    return true;
}

#endif
