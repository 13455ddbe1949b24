#include "hosts.h"

#include "arena.h"

void host_table_open(struct host_table *table, uint32_t limit) {
    uint32_t slots = 64;
    while (slots < limit * UINT64_C(2))
        slots *= 2;
    *table = (struct host_table){.limit = limit, .slot_mask = slots - 1};
    table->hosts = arena_open(limit, sizeof *table->hosts);
    table->slots = arena_open(slots, sizeof *table->slots);
}

void host_table_close(struct host_table *table) {
    arena_close(table->hosts, table->limit, sizeof *table->hosts);
    arena_close(table->slots, table->slot_mask + UINT64_C(1), sizeof *table->slots);
}

uint32_t host_find(struct host_table *table, const struct address *address, uint64_t key) {
    uint32_t slot = (uint32_t)key & table->slot_mask;
    while (table->slots[slot] != 0) { /* at most half of the slots are taken */
        uint32_t index = table->slots[slot] - 1;
        if (address_equal(&table->hosts[index].address, address))
            return index;
        slot = (slot + 1) & table->slot_mask;
    }
    if (table->count == table->limit)
        return HOST_NONE;
    table->slots[slot] = ++table->count;
    struct host *added = &table->hosts[table->count - 1];
    added->address = *address;
    added->key = key;
    added->turnaround_min_ns = UINT64_MAX;
    return table->count - 1;
}
