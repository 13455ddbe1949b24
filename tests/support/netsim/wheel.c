#include "wheel.h"

#include <string.h>

#include "arena.h"

static const struct event_queue EMPTY = {EVENT_NONE, EVENT_NONE};

static void append(struct wheel *wheel, struct event_queue *queue, uint32_t index) {
    wheel->events[index].next = EVENT_NONE;
    if (queue->first == EVENT_NONE)
        queue->first = index;
    else
        wheel->events[queue->last].next = index;
    queue->last = index;
}

/* Move all of one queue behind another. */
static void splice(struct wheel *wheel, struct event_queue *to, struct event_queue *from) {
    if (from->first == EVENT_NONE)
        return;
    if (to->first == EVENT_NONE)
        to->first = from->first;
    else
        wheel->events[to->last].next = from->first;
    to->last = from->last;
    *from = EMPTY;
}

static void set_busy(uint64_t *bits, uint32_t slot) { bits[slot / 64] |= UINT64_C(1) << slot % 64; }

static void set_idle(uint64_t *bits, uint32_t slot) {
    bits[slot / 64] &= ~(UINT64_C(1) << slot % 64);
}

/* The first busy slot from `slot` on, or `slots`. */
static uint32_t next_busy(const uint64_t *bits, uint32_t slot, uint32_t slots) {
    while (slot < slots) {
        uint64_t word = bits[slot / 64] >> slot % 64;
        if (word != 0)
            return slot + (uint32_t)__builtin_ctzll(word);
        slot = (slot / 64 + 1) * 64;
    }
    return slots;
}

static void file(struct wheel *wheel, uint32_t index) {
    int64_t tick = wheel->events[index].due_ns >> TICK_SHIFT;
    int64_t block = tick >> BLOCK_SHIFT, now_block = wheel->tick >> BLOCK_SHIFT;
    if (tick < wheel->tick) {
        append(wheel, &wheel->ready, index);
    } else if (block == now_block) {
        uint32_t slot = (uint32_t)tick % FINE_SLOTS;
        append(wheel, &wheel->fine[slot], index);
        set_busy(wheel->fine_busy, slot);
    } else {
        if (block - now_block >= COARSE_SLOTS) /* the scenario's bound on delays prevents it */
            block = now_block + COARSE_SLOTS - 1;
        uint32_t slot = (uint32_t)block % COARSE_SLOTS;
        append(wheel, &wheel->coarse[slot], index);
        set_busy(wheel->coarse_busy, slot);
    }
}

static void unpack_block(struct wheel *wheel) {
    uint32_t slot = (uint32_t)(wheel->tick >> BLOCK_SHIFT) % COARSE_SLOTS;
    uint32_t index = wheel->coarse[slot].first;
    wheel->coarse[slot] = EMPTY;
    set_idle(wheel->coarse_busy, slot);
    while (index != EVENT_NONE) {
        uint32_t next = wheel->events[index].next;
        file(wheel, index);
        index = next;
    }
}

void wheel_open(struct wheel *wheel, uint32_t limit, int64_t now_ns) {
    *wheel = (struct wheel){.limit = limit, .unused = EVENT_NONE, .tick = now_ns >> TICK_SHIFT};
    wheel->events = arena_open(limit, sizeof *wheel->events);
    wheel->ready = EMPTY;
    for (int i = 0; i < FINE_SLOTS; i++)
        wheel->fine[i] = EMPTY;
    for (int i = 0; i < COARSE_SLOTS; i++)
        wheel->coarse[i] = EMPTY;
}

void wheel_close(struct wheel *wheel) {
    arena_close(wheel->events, wheel->limit, sizeof *wheel->events);
}

bool wheel_add(struct wheel *wheel, const struct event *event) {
    uint32_t index = wheel->unused;
    if (index != EVENT_NONE)
        wheel->unused = wheel->events[index].next;
    else if (wheel->touched < wheel->limit)
        index = wheel->touched++;
    else
        return false;
    wheel->events[index] = *event;
    wheel->count++;
    file(wheel, index);
    return true;
}

void wheel_advance(struct wheel *wheel, int64_t now_ns) {
    int64_t now_tick = now_ns >> TICK_SHIFT;
    while (wheel->tick < now_tick) {
        int64_t block_start = wheel->tick & -(int64_t)FINE_SLOTS;
        uint32_t slot =
            next_busy(wheel->fine_busy, (uint32_t)(wheel->tick - block_start), FINE_SLOTS);
        int64_t busy_tick = block_start + slot; /* the next block's first when none is busy */
        if (slot < FINE_SLOTS && busy_tick < now_tick) {
            splice(wheel, &wheel->ready, &wheel->fine[slot]);
            set_idle(wheel->fine_busy, slot);
            busy_tick++;
        }
        wheel->tick = busy_tick < now_tick ? busy_tick : now_tick;
        if (wheel->tick % FINE_SLOTS == 0)
            unpack_block(wheel);
    }
}

uint32_t wheel_take(struct wheel *wheel) {
    uint32_t index = wheel->ready.first;
    if (index == EVENT_NONE)
        return index;
    wheel->ready.first = wheel->events[index].next;
    return index;
}

void wheel_release(struct wheel *wheel, uint32_t index) {
    wheel->events[index].next = wheel->unused;
    wheel->unused = index;
    wheel->count--;
}

/* How many blocks after the next one the first lies that holds something, or -1. */
static int64_t blocks_ahead(const struct wheel *wheel) {
    uint32_t from = (uint32_t)((wheel->tick >> BLOCK_SHIFT) + 1) % COARSE_SLOTS;
    uint32_t slot = next_busy(wheel->coarse_busy, from, COARSE_SLOTS);
    if (slot < COARSE_SLOTS)
        return slot - from;
    slot = next_busy(wheel->coarse_busy, 0, from);
    return slot < from ? (int64_t)COARSE_SLOTS - from + slot : -1;
}

int64_t wheel_next_ns(const struct wheel *wheel) {
    int64_t block = wheel->tick >> BLOCK_SHIFT;
    if (wheel->ready.first != EVENT_NONE)
        return 0;
    uint32_t slot = next_busy(wheel->fine_busy, (uint32_t)(wheel->tick % FINE_SLOTS), FINE_SLOTS);
    if (slot < FINE_SLOTS)
        return ((block << BLOCK_SHIFT) + slot + 1) << TICK_SHIFT;
    int64_t ahead = blocks_ahead(wheel);
    return ahead < 0 ? NEVER_NS : (block + 1 + ahead) << (BLOCK_SHIFT + TICK_SHIFT);
}

void wheel_drain(struct wheel *wheel) {
    for (int i = 0; i < FINE_SLOTS; i++)
        splice(wheel, &wheel->ready, &wheel->fine[i]);
    for (int i = 0; i < COARSE_SLOTS; i++)
        splice(wheel, &wheel->ready, &wheel->coarse[i]);
    memset(wheel->fine_busy, 0, sizeof wheel->fine_busy);
    memset(wheel->coarse_busy, 0, sizeof wheel->coarse_busy);
}
