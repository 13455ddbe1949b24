/* Requests whose answers are not all sent: what is needed to build a packet when it is due. */
#ifndef NETSIM_REQUESTS_H
#define NETSIM_REQUESTS_H

#include <stdbool.h>
#include <stdint.h>

#include "address.h"
#include "tails.h"

#define REQUEST_NONE UINT32_MAX

enum {
    MESSAGE_HEAD_BYTES = 28, /* ICMP's 8, and 20 of payload, which tell a probe */
    CLIENTS_MAX = 1024,
};

/* A request as it was parsed; pointers into the received frame. */
struct probe {
    struct address source;
    struct address destination;
    const uint8_t *source_mac;
    const uint8_t *message; /* what follows the IP header */
    uint16_t message_bytes;
    uint8_t protocol;
    uint8_t tos;
    uint8_t ttl;
    uint32_t ip_word; /* IPv4: identification and fragment field; IPv6: flow label */
    int64_t arrival_ns;     /* CLOCK_REALTIME, the kernel's stamp */
};

/* Where requests come from: a sender's address and the MAC it is reached by. */
struct client {
    struct address address;
    uint8_t mac[MAC_BYTES];
};

struct request {
    int64_t arrival_ns;
    uint32_t serial; /* of its truth record */
    uint32_t host;
    uint32_t tail;
    uint32_t ip_word;
    uint32_t answers; /* filed and not yet sent; the next unused request when there are none */
    uint16_t client;
    uint16_t message_bytes;
    uint8_t protocol;
    uint8_t tos;
    uint8_t ttl;
    uint8_t head[MESSAGE_HEAD_BYTES];
};

_Static_assert(sizeof(struct request) <= 64, "it is memory of each probe in flight");

struct request_table {
    struct request *requests;
    uint32_t limit;
    uint32_t touched;
    uint32_t unused;
    struct tail_table tails;
    struct client clients[CLIENTS_MAX];
    uint16_t client_count;
    uint16_t last_client;
};

void request_table_open(struct request_table *table, uint32_t limit);
void request_table_close(struct request_table *table);

/* Keep a probe to a host; it is given back with its last answer. REQUEST_NONE when full. */
uint32_t request_keep(struct request_table *table, const struct probe *probe, uint32_t host);

/* Count an answer that was filed, or one that left. */
void request_hold(struct request_table *table, uint32_t index);
void request_release(struct request_table *table, uint32_t index);

/* Write the message as it came; returns its size. */
size_t request_message(const struct request_table *table, const struct request *request,
                       uint8_t *message);

#endif
