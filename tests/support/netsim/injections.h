/* What an adversary or a broken network sends: none of it answers a probe. */
#ifndef NETSIM_INJECTIONS_H
#define NETSIM_INJECTIONS_H

#include "answers.h"

/* A reply with the right addresses, identifier and sequence, and a payload that is not the
 * request's (event->variant: enum forged_kind). Needs a request with payload to differ. */
size_t forged_write(const struct subject *subject, const struct event *event, uint8_t *frame);

/* The reply with one bit flipped: anywhere under its old checksum, or in identifier, sequence and
 * the first 16 bytes of payload under a new one (enum corrupted_kind). */
size_t corrupted_write(const struct subject *subject, const struct event *event, uint8_t *frame);

/* An error that quotes a datagram nobody sent: the request with another identifier, sequence,
 * destination or payload, well-formed in itself (enum foreign_kind). For an identifier UDP and TCP
 * have a source port, for a sequence UDP has a destination port. */
size_t foreign_error_write(const struct subject *subject, const struct event *event,
                           uint8_t *frame);

/* Replies to nobody, and packets that end early or lie about a length (enum noise_kind). */
size_t noise_write(const struct subject *subject, const struct event *event, uint8_t *frame);

#endif
