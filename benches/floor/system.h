/* Clocks, and the end when the system refuses. */
#ifndef FLOOR_SYSTEM_H
#define FLOOR_SYSTEM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SECOND_NS INT64_C(1000000000)

_Noreturn static inline void fail(const char *what)
{
    perror(what);
    exit(1);
}

static inline int64_t ns_of(struct timespec time)
{
    return time.tv_sec * SECOND_NS + time.tv_nsec;
}

static inline int64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return ns_of(now);
}

#endif
