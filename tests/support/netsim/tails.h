/* The ends of messages, kept once: probes in flight differ in their first bytes, not in filler. */
#ifndef NETSIM_TAILS_H
#define NETSIM_TAILS_H

#include <stddef.h>
#include <stdint.h>

#define TAIL_NONE UINT32_MAX

struct tail {
    uint8_t *bytes;
    uint32_t hash;
    uint32_t next; /* in its bucket, or among the unused */
    uint32_t users;
    uint16_t size;
};

struct tail_table {
    struct tail *tails;
    uint32_t *buckets; /* index + 1; 0 is empty */
    uint32_t limit;
    uint32_t touched;
    uint32_t unused;
};

void tail_table_open(struct tail_table *table, uint32_t limit);
void tail_table_close(struct tail_table *table);

/* Return an index for these bytes, to be given back; TAIL_NONE when full. */
uint32_t tail_keep(struct tail_table *table, const uint8_t *bytes, size_t size);
void tail_release(struct tail_table *table, uint32_t index);

#endif
