/* Which prefix an address belongs to: the longest that holds it. */
#ifndef NETSIM_PREFIXES_H
#define NETSIM_PREFIXES_H

#include <stddef.h>
#include <stdint.h>

#include "address.h"
#include "scenario.h"

#define PREFIX_NONE UINT32_MAX

enum { PREFIX_LENGTHS_MAX = 33 + 129 };

/* A run of prefixes of one family and length within the sorted table. */
struct prefix_run {
    uint32_t first;
    uint32_t count;
    uint8_t family;
    uint8_t bits;
};

struct prefix_table {
    const struct prefix *prefixes;
    struct prefix_run runs[PREFIX_LENGTHS_MAX]; /* longest first */
    size_t run_count;
};

/* Sort the prefixes and index them; the table borrows them. */
void prefix_table_open(struct prefix_table *table, struct prefix *prefixes, size_t n);

/* The index of the longest prefix that holds the address, or PREFIX_NONE. */
uint32_t prefix_find(const struct prefix_table *table, const struct address *address);

#endif
