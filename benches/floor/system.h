/* Clocks and stamps, and the end when the system refuses. */
#ifndef FLOOR_SYSTEM_H
#define FLOOR_SYSTEM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
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

/* When a message arrived by the kernel's stamp, 0 without one; notes what the queue has dropped. */
static inline int64_t read_controls(struct msghdr *message, unsigned *dropped)
{
    int64_t received_ns = 0;

    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control;
         control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level != SOL_SOCKET)
            continue;
        if (control->cmsg_type == SO_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(control), sizeof stamp);
            received_ns = ns_of(stamp);
        } else if (control->cmsg_type == SO_RXQ_OVFL) {
            memcpy(dropped, CMSG_DATA(control), sizeof *dropped);
        }
    }
    return received_ns;
}

#endif
