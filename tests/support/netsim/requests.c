#include "requests.h"

#include <string.h>

#include "arena.h"

void request_table_open(struct request_table *table, uint32_t limit) {
    *table = (struct request_table){.limit = limit, .unused = REQUEST_NONE};
    table->requests = arena_open(limit, sizeof *table->requests);
    tail_table_open(&table->tails, limit);
}

void request_table_close(struct request_table *table) {
    tail_table_close(&table->tails);
    arena_close(table->requests, table->limit, sizeof *table->requests);
}

static bool is_client(const struct client *client, const struct probe *probe) {
    return address_equal(&client->address, &probe->source) &&
           memcmp(client->mac, probe->source_mac, MAC_BYTES) == 0;
}

/* The sender's index, or CLIENTS_MAX when there are too many. */
static uint16_t client_of(struct request_table *table, const struct probe *probe) {
    if (table->client_count != 0 && is_client(&table->clients[table->last_client], probe))
        return table->last_client;
    uint16_t index = 0;
    while (index < table->client_count && !is_client(&table->clients[index], probe))
        index++;
    if (index == CLIENTS_MAX)
        return index;
    if (index == table->client_count) {
        struct client *added = &table->clients[table->client_count++];
        added->address = probe->source;
        memcpy(added->mac, probe->source_mac, MAC_BYTES);
    }
    return table->last_client = index;
}

static uint32_t reserve(struct request_table *table) {
    uint32_t index = table->unused;
    if (index != REQUEST_NONE)
        table->unused = table->requests[index].answers;
    else if (table->touched < table->limit)
        index = table->touched++;
    return index;
}

static void give_back(struct request_table *table, uint32_t index) {
    table->requests[index].answers = table->unused;
    table->unused = index;
}

uint32_t request_keep(struct request_table *table, const struct probe *probe, uint32_t host) {
    uint16_t client = client_of(table, probe);
    uint32_t index = client == CLIENTS_MAX ? REQUEST_NONE : reserve(table);
    if (index == REQUEST_NONE)
        return index;
    size_t bytes = probe->message_bytes;
    size_t head = bytes < MESSAGE_HEAD_BYTES ? bytes : MESSAGE_HEAD_BYTES;
    uint32_t tail = tail_keep(&table->tails, probe->message + head, bytes - head);
    if (tail == TAIL_NONE) {
        give_back(table, index);
        return REQUEST_NONE;
    }
    struct request *kept = &table->requests[index];
    *kept = (struct request){
        .arrival_ns = probe->arrival_ns,
        .host = host,
        .tail = tail,
        .ip_word = probe->ip_word,
        .client = client,
        .message_bytes = probe->message_bytes,
        .protocol = probe->protocol,
        .tos = probe->tos,
        .ttl = probe->ttl,
    };
    memcpy(kept->head, probe->message, head);
    return index;
}

void request_hold(struct request_table *table, uint32_t index) {
    table->requests[index].answers++;
}

void request_release(struct request_table *table, uint32_t index) {
    if (--table->requests[index].answers != 0)
        return;
    tail_release(&table->tails, table->requests[index].tail);
    give_back(table, index);
}

size_t request_message(const struct request_table *table, const struct request *request,
                       uint8_t *message) {
    size_t bytes = request->message_bytes;
    size_t head = bytes < MESSAGE_HEAD_BYTES ? bytes : MESSAGE_HEAD_BYTES;
    memcpy(message, request->head, head);
    memcpy(message + head, table->tails.tails[request->tail].bytes, bytes - head);
    return bytes;
}
