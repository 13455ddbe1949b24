/* The hosts that were ever asked, their state and their truth: an array behind a hash table. */
#ifndef NETSIM_HOSTS_H
#define NETSIM_HOSTS_H

#include <stdbool.h>
#include <stdint.h>

#include "address.h"
#include "bucket.h"
#include "counts.h"

#define HOST_NONE UINT32_MAX

struct host {
    struct address address;
    bool is_bad; /* state of the burst loss */
    uint32_t prefix;
    uint64_t key; /* its draws derive from this */
    int64_t delay_ns;
    uint64_t turnaround_sum_ns; /* over `replied`: handed to the kernel less arrived */
    uint64_t turnaround_min_ns;
    uint64_t turnaround_max_ns;
    uint32_t counts[COUNT_KINDS];
    struct bucket bucket;
    struct bucket route_bucket; /* of what it answers at the end of a route */
};

_Static_assert(sizeof(struct host) == 192, "whole cache lines: each request finds its host cold");

struct host_table {
    struct host *hosts;
    uint32_t *slots; /* index + 1; 0 is free */
    uint32_t slot_mask;
    uint32_t count;
    uint32_t limit;
};

void host_table_open(struct host_table *table, uint32_t limit);
void host_table_close(struct host_table *table);

/* Return the index of an address, adding it with its key alone when new; HOST_NONE when full. */
uint32_t host_find(struct host_table *table, const struct address *address, uint64_t key);

#endif
