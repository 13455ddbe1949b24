#include "injections.h"

#include "draw.h"

enum { IDENTITY_BYTES = 16 }; /* of payload, which tell a probe */

static void fill_randomly(uint8_t *bytes, size_t n, uint64_t drawn) {
    for (; n != 0; drawn = draw_mix(drawn)) {
        size_t part = least(n, sizeof drawn);
        memcpy(bytes, &drawn, part);
        bytes += part;
        n -= part;
    }
}

/* Make a byte another one. */
static void alter(uint8_t *byte, uint64_t drawn) {
    *byte ^= (uint8_t)(1 + draw_below(drawn, 255));
}

/* Where a message tells its flow: an ICMP identifier, or a source port. */
static size_t ident_at(uint8_t protocol) { return is_icmp(protocol) ? 4 : 0; }

/* Where it has the number of a probe, as an ICMP message and a TCP segment do, or another port. */
static size_t sequence_at(uint8_t protocol) {
    return is_icmp(protocol) ? 6 : protocol == PROTOCOL_TCP ? 4 : 2;
}

/* Make one of the payload's first bytes another one, or the flow's when there are none. */
static void alter_payload(uint8_t protocol, uint8_t *message, size_t n, uint64_t drawn) {
    size_t header = message_header_bytes(protocol, message);
    uint32_t choices = (uint32_t)least(n - header, IDENTITY_BYTES);
    uint8_t *at = choices == 0 ? message + ident_at(protocol) + 1
                               : message + header + draw_below(drawn, choices);
    alter(at, draw_mix(drawn));
}

size_t forged_write(const struct subject *subject, const struct event *event, uint8_t *frame) {
    uint8_t *message = answer_message(subject, frame);
    size_t n = reply_message(subject, message);
    uint64_t drawn = draw_mix(event->drawn);
    if (event->variant == FORGED_RANDOM)
        fill_randomly(message + ICMP_BYTES, n - ICMP_BYTES, drawn);
    else if (event->variant == FORGED_ZERO)
        memset(message + ICMP_BYTES, 0, n - ICMP_BYTES);
    else if (n > ICMP_BYTES)
        alter_payload(subject->request->protocol, message, n, drawn);
    return answer_seal(subject, &subject->destination, frame, n);
}

static void flip_bit(uint8_t *bytes, size_t n, uint64_t drawn) {
    uint32_t bit = draw_below(drawn, (uint32_t)n * 8);
    bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
}

size_t corrupted_write(const struct subject *subject, const struct event *event, uint8_t *frame) {
    uint8_t *message = answer_message(subject, frame);
    size_t n = reply_message(subject, message);
    uint64_t drawn = draw_mix(event->drawn);
    if (event->variant == CORRUPTED_BAD_CHECKSUM) {
        uint8_t protocol = subject->request->protocol;
        message_seal(protocol, &subject->destination, &subject->client->address, message, n);
        flip_bit(message, n, drawn);
        return answer_wrap(subject, protocol, &subject->destination, frame, n);
    }
    flip_bit(message + 4, least(n - 4, 4 + IDENTITY_BYTES), drawn);
    return answer_seal(subject, &subject->destination, frame, n);
}

/* An address of a documentation prefix (RFC 5737, RFC 3849), which no scenario plays. */
static struct address nowhere(uint8_t family, uint64_t drawn) {
    struct address made = {.family = family, .bytes = {192, 0, 2, (uint8_t)drawn}};
    if (family == 6) {
        store32(made.bytes, 0x20010DB8);
        memcpy(made.bytes + 8, &drawn, sizeof drawn);
    }
    return made;
}

size_t foreign_error_write(const struct subject *subject, const struct event *event,
                           uint8_t *frame) {
    const struct icmp_error *error = &subject->behaviour->foreign;
    struct address source = error_source(subject, error), quoted_to = subject->destination;
    uint8_t protocol = subject->request->protocol;
    uint8_t quoted[MTU_BYTES];
    size_t n = request_message(subject->table, subject->request, quoted);
    uint64_t drawn = draw_mix(event->drawn);
    if (event->variant == FOREIGN_IDENT)
        alter(quoted + ident_at(protocol), drawn);
    else if (event->variant == FOREIGN_SEQUENCE)
        alter(quoted + sequence_at(protocol), drawn);
    else if (event->variant == FOREIGN_DESTINATION)
        quoted_to = nowhere(quoted_to.family, drawn);
    else
        alter_payload(protocol, quoted, n, drawn);
    message_seal(protocol, &subject->client->address, &quoted_to, quoted, n);
    n = error_message(subject, error, &quoted_to, quoted, n, answer_message(subject, frame));
    return answer_seal(subject, &source, frame, n);
}

/* A reply that answers nothing: no byte of identifier, sequence and payload is the request's. */
static size_t foreign_reply(const struct subject *subject, uint64_t drawn, uint8_t *message) {
    size_t n = reply_message(subject, message);
    uint8_t first_of_ident = message[4];
    fill_randomly(message + 4, n - 4, drawn);
    message[4] = first_of_ident;
    alter(message + 4, drawn);
    return n;
}

/* Let the IP header claim another length of what follows it. */
static void claim_length(const struct subject *subject, uint8_t *frame, size_t n) {
    uint8_t *ip = frame + ETHERNET_BYTES;
    if (subject->destination.family == 6) {
        store16(ip + 4, (uint32_t)n);
        return;
    }
    store16(ip + 2, (uint32_t)(IPV4_BYTES + n));
    store16(ip + 10, 0);
    store16(ip + 10, checksum_of(ip, IPV4_BYTES));
}

/* An error whose lengths point behind its end: RFC 4884's, and the quoted header's own. */
static size_t lying_quote(const struct subject *subject, uint8_t *message) {
    static const struct icmp_error error = {
        .type4 = ICMP4_UNREACHABLE, .code4 = 1, .type6 = ICMP6_UNREACHABLE, .quoted_bytes = 8};
    uint8_t quoted[MTU_BYTES];
    size_t n = request_message(subject->table, subject->request, quoted);
    n = error_message(subject, &error, &subject->destination, quoted, n, message);
    if (subject->destination.family == 4) {
        message[5] = 255;
        message[ICMP_BYTES] = 0x4F;
    } else {
        message[4] = 255;
        message[ICMP_BYTES + 6] = 60; /* destination options, which would be longer than the rest */
        message[ICMP_BYTES + IPV6_BYTES] = PROTOCOL_ICMP6;
        message[ICMP_BYTES + IPV6_BYTES + 1] = 255;
    }
    return n;
}

size_t noise_write(const struct subject *subject, const struct event *event, uint8_t *frame) {
    uint8_t *message = answer_message(subject, frame);
    uint64_t drawn = draw_mix(event->drawn);
    size_t n, size;
    if (event->variant == NOISE_LYING_QUOTE)
        return answer_seal(subject, &subject->destination, frame, lying_quote(subject, message));
    n = foreign_reply(subject, drawn, message);
    if (event->variant == NOISE_SHORT)
        n = 1 + draw_below(draw_mix(drawn), ICMP_BYTES - 1);
    size = answer_seal(subject, &subject->destination, frame, n);
    if (event->variant == NOISE_LONG_LENGTH)
        claim_length(subject, frame, n + 1 + draw_below(draw_mix(drawn), 1000));
    else if (event->variant == NOISE_SHORT_LENGTH)
        claim_length(subject, frame, ICMP_BYTES / 2);
    return size;
}
