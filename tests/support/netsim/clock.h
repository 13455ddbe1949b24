/* One clock for all: CLOCK_REALTIME, on which the kernel stamps frames. */
#ifndef NETSIM_CLOCK_H
#define NETSIM_CLOCK_H

#include <stdint.h>
#include <time.h>

enum { NS_PER_S = 1000000000, CLOCK_SAMPLES = 64, CLOCK_SAMPLE_NS = 1000 };

static inline int64_t clock_ns(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return (int64_t)at.tv_sec * NS_PER_S + at.tv_nsec;
}

static inline int64_t realtime_ns(void) { return clock_ns(CLOCK_REALTIME); }

/* How far CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, which only a step of the former changes. A
 * sample during which this process had to wait says nothing. */
static inline int64_t realtime_lead_ns(void) {
    int64_t before, wall, after = 0;
    for (int sample = 0; sample < CLOCK_SAMPLES; sample++) {
        before = clock_ns(CLOCK_MONOTONIC);
        wall = realtime_ns();
        after = clock_ns(CLOCK_MONOTONIC);
        if (after - before < CLOCK_SAMPLE_NS)
            break;
    }
    return wall - after;
}

#endif
