#include "tails.h"

#include <string.h>

#include "arena.h"
#include "draw.h"

enum { BUCKETS = 1 << 20 };

void tail_table_open(struct tail_table *table, uint32_t limit) {
    *table = (struct tail_table){.limit = limit, .unused = TAIL_NONE};
    table->tails = arena_open(limit, sizeof *table->tails);
    table->buckets = arena_open(BUCKETS, sizeof *table->buckets);
}

void tail_table_close(struct tail_table *table) {
    for (uint32_t i = 0; i < table->touched; i++)
        if (table->tails[i].users != 0)
            free(table->tails[i].bytes);
    arena_close(table->tails, table->limit, sizeof *table->tails);
    arena_close(table->buckets, BUCKETS, sizeof *table->buckets);
}

static uint32_t hash_of(const uint8_t *bytes, size_t size) {
    uint64_t hash = size, word;
    for (; size >= sizeof word; bytes += sizeof word, size -= sizeof word) {
        memcpy(&word, bytes, sizeof word);
        hash = draw_mix(hash ^ word);
    }
    word = 0;
    memcpy(&word, bytes, size);
    return (uint32_t)(draw_mix(hash ^ word) >> 32);
}

static uint32_t find(const struct tail_table *table, uint32_t hash, const uint8_t *bytes,
                     size_t size) {
    uint32_t index = table->buckets[hash % BUCKETS] - 1;
    while (index != TAIL_NONE) {
        const struct tail *tail = &table->tails[index];
        if (tail->hash == hash && tail->size == size && memcmp(tail->bytes, bytes, size) == 0)
            return index;
        index = tail->next;
    }
    return TAIL_NONE;
}

static uint32_t reserve(struct tail_table *table) {
    uint32_t index = table->unused;
    if (index != TAIL_NONE)
        table->unused = table->tails[index].next;
    else if (table->touched < table->limit)
        index = table->touched++;
    return index;
}

uint32_t tail_keep(struct tail_table *table, const uint8_t *bytes, size_t size) {
    uint32_t hash = hash_of(bytes, size);
    uint32_t index = find(table, hash, bytes, size);
    if (index != TAIL_NONE) {
        table->tails[index].users++;
        return index;
    }
    uint8_t *copy = malloc(size + 1); /* a tail may be empty */
    if (copy == NULL || (index = reserve(table)) == TAIL_NONE) {
        free(copy);
        return TAIL_NONE;
    }
    memcpy(copy, bytes, size);
    uint32_t *bucket = &table->buckets[hash % BUCKETS];
    table->tails[index] = (struct tail){
        .bytes = copy, .hash = hash, .next = *bucket - 1, .users = 1, .size = (uint16_t)size};
    *bucket = index + 1;
    return index;
}

static void unlink_tail(struct tail_table *table, uint32_t index) {
    uint32_t *bucket = &table->buckets[table->tails[index].hash % BUCKETS];
    if (*bucket - 1 == index) {
        *bucket = table->tails[index].next + 1;
        return;
    }
    uint32_t before = *bucket - 1;
    while (table->tails[before].next != index)
        before = table->tails[before].next;
    table->tails[before].next = table->tails[index].next;
}

void tail_release(struct tail_table *table, uint32_t index) {
    struct tail *tail = &table->tails[index];
    if (--tail->users != 0)
        return;
    unlink_tail(table, index);
    free(tail->bytes);
    tail->next = table->unused;
    table->unused = index;
}
