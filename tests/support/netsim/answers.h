/* Packets that are built when they are due, from the request they belong to. */
#ifndef NETSIM_ANSWERS_H
#define NETSIM_ANSWERS_H

#include <stddef.h>
#include <stdint.h>

#include "journey.h"
#include "packet.h"
#include "requests.h"
#include "scenario.h"
#include "wheel.h"

/* A request in flight and what is known about its two ends; route is NULL when it had none. */
struct subject {
    const struct behaviour *behaviour;
    const struct request_table *table;
    const struct request *request;
    const struct client *client;
    const struct router *routers;
    const struct route *route;
    const struct ending *ending;
    struct address destination;
    const uint8_t *mac; /* the simulator's */
    uint8_t reply_ttl;
};

/* The TTL an answer of this kind arrives with. */
uint8_t answer_ttl(const struct subject *subject, uint8_t kind);

/* Write the frame of an event; returns its size, at most FRAME_MAX_BYTES. */
size_t answer_write(const struct subject *subject, const struct event *event, uint8_t *frame);

/* What answers are made of: */

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Where the message of an answer goes. */
static inline uint8_t *answer_message(const struct subject *subject, uint8_t *frame) {
    return frame_message(frame, subject->destination.family);
}

/* Write the reply as it should be but for its checksum; returns the message's size. */
size_t reply_message(const struct subject *subject, uint8_t *message);

/* The IP header that a request came with. */
struct envelope request_envelope(const struct subject *subject);

/* Write an error that quotes a message of n bytes sent by the client; returns its size. */
size_t error_message(const struct subject *subject, const struct icmp_error *error,
                     const struct address *quoted_destination, const uint8_t *quoted, size_t n,
                     uint8_t *message);

/* Who says an error. */
struct address error_source(const struct subject *subject, const struct icmp_error *error);

/* Put headers around a message in its frame, as it is. */
size_t answer_wrap(const struct subject *subject, uint8_t protocol, const struct address *source,
                   uint8_t *frame, size_t n);

/* Put headers around an ICMP message in its frame, with its checksum. */
size_t answer_seal(const struct subject *subject, const struct address *source, uint8_t *frame,
                   size_t n);

#endif
