/* What is to be sent, by when it is due.
 *
 * Two levels: fine slots of 8 us for the block of 8 ms that is now, coarse slots of a block each
 * for the 68 s after it. Slots are first in, first out and a block is unpacked in order, so replies
 * with equal delays leave in the order of their requests. An event fires once its whole 8 us slot
 * has passed: never early, and late by less than a slot.
 */
#ifndef NETSIM_WHEEL_H
#define NETSIM_WHEEL_H

#include <stdbool.h>
#include <stdint.h>

#define EVENT_NONE UINT32_MAX
#define NEVER_NS INT64_MAX

enum {
    TICK_SHIFT = 13, /* a fine slot, in ns */
    BLOCK_SHIFT = 10,
    FINE_SLOTS = 1 << BLOCK_SHIFT,
    COARSE_SLOTS = 1 << 13,
};

struct event {
    int64_t due_ns; /* CLOCK_REALTIME */
    uint32_t next;
    uint32_t request;
    uint32_t drawn; /* chance for whoever builds the packet */
    uint8_t kind;
    uint8_t variant;
    uint16_t reserved;
};

_Static_assert(sizeof(struct event) == 24, "it is memory of each probe in flight");

struct event_queue {
    uint32_t first;
    uint32_t last;
};

struct wheel {
    struct event *events;
    uint32_t limit;
    uint32_t touched; /* events that were ever used */
    uint32_t unused;  /* head of those given back */
    uint32_t count;
    int64_t tick; /* the first that has not passed */
    struct event_queue ready;
    struct event_queue fine[FINE_SLOTS];
    struct event_queue coarse[COARSE_SLOTS];
    uint64_t fine_busy[FINE_SLOTS / 64];
    uint64_t coarse_busy[COARSE_SLOTS / 64];
};

void wheel_open(struct wheel *wheel, uint32_t limit, int64_t now_ns);
void wheel_close(struct wheel *wheel);

/* File a copy of the event; false when the wheel is full. */
bool wheel_add(struct wheel *wheel, const struct event *event);

/* Make what is due by now ready. */
void wheel_advance(struct wheel *wheel, int64_t now_ns);

/* Take the next event that is ready, or EVENT_NONE; give it back with wheel_release. */
uint32_t wheel_take(struct wheel *wheel);
void wheel_release(struct wheel *wheel, uint32_t index);

/* When to advance next: the past when something is ready, NEVER_NS when nothing is filed. */
int64_t wheel_next_ns(const struct wheel *wheel);

/* Make everything ready, due or not. */
void wheel_drain(struct wheel *wheel);

#endif
