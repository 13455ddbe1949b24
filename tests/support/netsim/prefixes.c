#include "prefixes.h"

#include <stdlib.h>

static struct address network_of(const struct address *address, uint8_t bits) {
    struct address network = *address;
    for (unsigned i = 0; i < ADDRESS_BYTES; i++) {
        unsigned kept = bits > i * 8 ? bits - i * 8 : 0;
        if (kept < 8)
            network.bytes[i] &= (uint8_t)(0xFF00 >> kept);
    }
    return network;
}

static int compare(const void *left, const void *right) {
    const struct prefix *a = left, *b = right;
    if (a->address.family != b->address.family)
        return a->address.family - b->address.family;
    if (a->bits != b->bits)
        return b->bits - a->bits;
    return memcmp(a->address.bytes, b->address.bytes, ADDRESS_BYTES);
}

void prefix_table_open(struct prefix_table *table, struct prefix *prefixes, size_t n) {
    *table = (struct prefix_table){.prefixes = prefixes};
    for (size_t i = 0; i < n; i++)
        prefixes[i].address = network_of(&prefixes[i].address, prefixes[i].bits);
    qsort(prefixes, n, sizeof *prefixes, compare);
    struct prefix_run *run = NULL;
    for (size_t i = 0; i < n; i++) {
        const struct prefix *each = &prefixes[i];
        if (run == NULL || run->family != each->address.family || run->bits != each->bits) {
            run = &table->runs[table->run_count++];
            *run = (struct prefix_run){
                .first = (uint32_t)i, .family = each->address.family, .bits = each->bits};
        }
        run->count++;
    }
}

static uint32_t find_in(const struct prefix_table *table, const struct prefix_run *run,
                        const struct address *address) {
    struct prefix wanted = {.address = network_of(address, run->bits), .bits = run->bits};
    const struct prefix *found = bsearch(&wanted, &table->prefixes[run->first], run->count,
                                         sizeof wanted, compare);
    return found == NULL ? PREFIX_NONE : (uint32_t)(found - table->prefixes);
}

uint32_t prefix_find(const struct prefix_table *table, const struct address *address) {
    for (size_t i = 0; i < table->run_count; i++) {
        const struct prefix_run *run = &table->runs[i];
        if (run->family != address->family)
            continue;
        uint32_t found = find_in(table, run, address);
        if (found != PREFIX_NONE)
            return found;
    }
    return PREFIX_NONE;
}
