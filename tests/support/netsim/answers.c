#include "answers.h"

#include "injections.h"
#include "plan.h"

enum {
    ERROR4_MAX_BYTES = 576 - IPV4_BYTES,  /* RFC 1812 4.3.2.3 */
    ERROR6_MAX_BYTES = 1280 - IPV6_BYTES, /* RFC 4443 2.4 (c) */
};

size_t reply_message(const struct subject *subject, uint8_t *message) {
    size_t n = request_message(subject->table, subject->request, message);
    message[0] = subject->destination.family == 4 ? ICMP4_ECHO_REPLY : ICMP6_ECHO_REPLY;
    return n;
}

struct address error_source(const struct subject *subject, const struct icmp_error *error) {
    struct address source = subject->destination.family == 4 ? error->from4 : error->from6;
    return source.family == 0 ? subject->destination : source;
}

size_t error_message(const struct subject *subject, const struct icmp_error *error,
                     const struct address *quoted_destination, const uint8_t *quoted, size_t n,
                     uint8_t *message) {
    uint8_t family = quoted_destination->family;
    size_t header = ip_header_bytes(family);
    size_t room = (family == 4 ? ERROR4_MAX_BYTES : ERROR6_MAX_BYTES) - ICMP_BYTES - header;
    struct envelope envelope = {
        .source = subject->client->address,
        .destination = *quoted_destination,
        .ip_word = subject->request->ip_word,
        .ttl = subject->request->ttl,
        .tos = subject->request->tos,
    };
    message[0] = (uint8_t)(family == 4 ? error->type4 : error->type6);
    message[1] = (uint8_t)(family == 4 ? error->code4 : error->code6);
    store32(message + 4, 0);
    ip_header_write(message + ICMP_BYTES, &envelope, n);
    size_t kept = least(n, room);
    if (error->quoted_bytes != QUOTE_FULL)
        kept = least(kept, error->quoted_bytes);
    memcpy(message + ICMP_BYTES + header, quoted, kept);
    return ICMP_BYTES + header + kept;
}

size_t answer_wrap(const struct subject *subject, const struct address *source, uint8_t *frame,
                   size_t n) {
    struct envelope envelope = {
        .source = *source,
        .destination = subject->client->address,
        .source_mac = subject->mac,
        .destination_mac = subject->client->mac,
        .ip_word = source->family == 4 ? subject->request->serial << 16 : 0,
        .ttl = (uint8_t)subject->behaviour->reply_ttl,
        .tos = subject->request->tos, /* RFC 1812 4.3.3.6: as in the request */
    };
    return frame_wrap(frame, &envelope, n);
}

size_t answer_seal(const struct subject *subject, const struct address *source, uint8_t *frame,
                   size_t n) {
    message_seal(source, &subject->client->address, answer_message(subject, frame), n);
    return answer_wrap(subject, source, frame, n);
}

static struct address reply_source(const struct subject *subject, uint8_t variant) {
    if (variant == FROM_ELSEWHERE)
        return *behaviour_elsewhere(subject->behaviour, subject->destination.family);
    return subject->destination;
}

static size_t write_reply(const struct subject *subject, uint8_t variant, size_t payload_max,
                          uint8_t *frame) {
    struct address source = reply_source(subject, variant);
    size_t n = reply_message(subject, answer_message(subject, frame));
    return answer_seal(subject, &source, frame, least(n, ICMP_BYTES + payload_max));
}

static size_t write_error(const struct subject *subject, uint8_t variant, uint8_t *frame) {
    const struct behaviour *b = subject->behaviour;
    const struct icmp_error *error =
        variant == ERROR_OF_RATE_LIMIT ? &b->rate_limit.error : &b->error;
    struct address source = error_source(subject, error);
    uint8_t quoted[MTU_BYTES];
    size_t n = request_message(subject->table, subject->request, quoted);
    n = error_message(subject, error, &subject->destination, quoted, n,
                      answer_message(subject, frame));
    return answer_seal(subject, &source, frame, n);
}

size_t answer_write(const struct subject *subject, const struct event *event, uint8_t *frame) {
    switch (event->kind) {
    case ANSWER_REPLY:
    case ANSWER_DUPLICATE:
        return write_reply(subject, event->variant, MTU_BYTES, frame);
    case ANSWER_TRUNCATED:
        return write_reply(subject, event->variant, subject->behaviour->truncate_payload_bytes,
                           frame);
    case ANSWER_ERROR:
        return write_error(subject, event->variant, frame);
    case ANSWER_FORGED:
        return forged_write(subject, event, frame);
    case ANSWER_CORRUPTED:
        return corrupted_write(subject, event, frame);
    case ANSWER_FOREIGN_ERROR:
        return foreign_error_write(subject, event, frame);
    default:
        return noise_write(subject, event, frame);
    }
}
