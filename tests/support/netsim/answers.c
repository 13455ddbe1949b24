#include "answers.h"

#include "injections.h"
#include "kinds.h"
#include "quotes.h"
#include "routed.h"

size_t reply_message(const struct subject *subject, uint8_t *message) {
    size_t n = request_message(subject->table, subject->request, message);
    message[0] = subject->destination.family == 4 ? ICMP4_ECHO_REPLY : ICMP6_ECHO_REPLY;
    return n;
}

struct address error_source(const struct subject *subject, const struct icmp_error *error) {
    struct address source = subject->destination.family == 4 ? error->from4 : error->from6;
    return source.family == 0 ? subject->destination : source;
}

struct envelope request_envelope(const struct subject *subject) {
    return (struct envelope){
        .source = subject->client->address,
        .destination = subject->destination,
        .ip_word = subject->request->ip_word,
        .protocol = subject->request->protocol,
        .ttl = subject->request->ttl,
        .tos = subject->request->tos,
    };
}

size_t error_message(const struct subject *subject, const struct icmp_error *error,
                     const struct address *quoted_destination, const uint8_t *quoted, size_t n,
                     uint8_t *message) {
    uint8_t family = quoted_destination->family;
    struct quote quote = {
        .envelope = request_envelope(subject),
        .message = quoted,
        .size = n,
        .quoted_bytes = error->quoted_bytes,
    };
    quote.envelope.destination = *quoted_destination;
    message[0] = (uint8_t)(family == 4 ? error->type4 : error->type6);
    message[1] = (uint8_t)(family == 4 ? error->code4 : error->code6);
    store32(message + 4, 0);
    return quote_write(&quote, message);
}

uint8_t answer_ttl(const struct subject *subject, uint8_t kind) {
    const struct ending *ending = subject->ending;
    bool is_injected = kind >= ANSWER_FORGED && kind <= ANSWER_NOISE;
    if (subject->route == NULL || is_injected)
        return (uint8_t)subject->behaviour->reply_ttl;
    uint32_t ttl = ending->router == ROUTER_DESTINATION
                       ? subject->route->reply_ttl
                       : subject->routers[ending->router].reply_ttl;
    return (uint8_t)(ttl > ending->back ? ttl - ending->back : 1);
}

size_t answer_wrap(const struct subject *subject, uint8_t protocol, const struct address *source,
                   uint8_t *frame, size_t n) {
    struct envelope envelope = {
        .source = *source,
        .destination = subject->client->address,
        .source_mac = subject->mac,
        .destination_mac = subject->client->mac,
        .ip_word = source->family == 4 ? subject->request->serial << 16 : 0,
        .protocol = protocol,
        .ttl = subject->reply_ttl,
        .tos = subject->request->tos, /* RFC 1812 4.3.3.6: as in the request */
    };
    return frame_wrap(frame, &envelope, n);
}

size_t answer_seal(const struct subject *subject, const struct address *source, uint8_t *frame,
                   size_t n) {
    uint8_t protocol = icmp_of(source->family);
    message_seal(protocol, source, &subject->client->address, answer_message(subject, frame), n);
    return answer_wrap(subject, protocol, source, frame, n);
}

static struct address reply_source(const struct subject *subject, uint8_t variant) {
    if (variant == FROM_ELSEWHERE)
        return *behaviour_elsewhere(subject->behaviour, subject->destination.family);
    return routed_source(subject);
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
    case ANSWER_NOISE:
        return noise_write(subject, event, frame);
    default:
        return routed_write(subject, event, frame);
    }
}
