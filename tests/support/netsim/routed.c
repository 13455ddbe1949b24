#include "routed.h"

#include "draw.h"
#include "kinds.h"
#include "quotes.h"

struct address routed_source(const struct subject *subject) {
    if (subject->route == NULL)
        return subject->destination;
    const struct address *from = address_for(&subject->route->from4, &subject->route->from6,
                                             subject->destination.family);
    return from->family == 0 ? subject->destination : *from;
}

/* ---- errors ---------------------------------------------------------------------------------- */

/* The request as it arrived where its journey ended, and as its quote comes back. */
static void quote_request(const struct subject *subject, struct quote *quote, uint8_t *message) {
    const struct ending *ending = subject->ending;
    struct translated packet = {
        .source = subject->client->address,
        .protocol = subject->request->protocol,
        .message = message,
        .size = request_message(subject->table, subject->request, message),
    };
    nat_quote(subject->routers, ending->crossed, ending->crossed_count, &packet);
    quote->envelope = request_envelope(subject);
    quote->envelope.source = packet.source;
    quote->envelope.ttl = ending->ttl;
    quote->envelope.tos = ending->tos;
    quote->message = message;
    quote->size = packet.size;
}

static void set_kind(const struct subject *subject, uint8_t kind, const struct refusal *refusal,
                     uint8_t *message) {
    bool is_ipv4 = subject->destination.family == 4;
    store32(message + 4, 0);
    message[1] = 0;
    switch (kind) {
    case ANSWER_EXPIRED:
        message[0] = is_ipv4 ? ICMP4_TIME_EXCEEDED : ICMP6_TIME_EXCEEDED;
        break;
    case ANSWER_TOO_BIG:
        message[0] = is_ipv4 ? ICMP4_UNREACHABLE : ICMP6_TOO_BIG;
        message[1] = is_ipv4 ? ICMP4_FRAGMENT_NEEDED : 0;
        store16(message + 6, subject->ending->mtu); /* RFC 1191 4, RFC 4443 3.2 */
        break;
    default:
        message[0] = (uint8_t)(is_ipv4 ? refusal->type4 : refusal->type6);
        message[1] = (uint8_t)(is_ipv4 ? refusal->code4 : refusal->code6);
    }
}

static size_t write_router_error(const struct subject *subject, uint8_t kind, uint8_t *frame) {
    const struct router *router = &subject->routers[subject->ending->router];
    uint8_t family = subject->destination.family, quoted[MTU_BYTES];
    uint8_t *message = answer_message(subject, frame);
    struct quote quote = {.quoted_bytes = router->quoted_bytes};
    bool may_extend = kind != ANSWER_TOO_BIG || family == 4; /* RFC 4884 4.6: not this one */
    quote_request(subject, &quote, quoted);
    quote.envelope.ttl = (uint8_t)(quote.envelope.ttl + router->quoted_ttl - 1);
    if (router->extension.size != 0 && may_extend) {
        quote.extension = &router->extension;
        quote.length_field = router->extension_length;
    }
    set_kind(subject, kind, &router->refusal, message);
    return answer_seal(subject, address_for(&router->address4, &router->address6, family), frame,
                       quote_write(&quote, message));
}

static size_t write_port_unreachable(const struct subject *subject, uint8_t *frame) {
    static const struct refusal port = {
        .type4 = ICMP4_UNREACHABLE,
        .code4 = ICMP4_PORT,
        .type6 = ICMP6_UNREACHABLE,
        .code6 = ICMP6_PORT,
    };
    uint8_t quoted[MTU_BYTES];
    uint8_t *message = answer_message(subject, frame);
    struct quote quote = {.quoted_bytes = subject->route->quoted_bytes};
    struct address source = routed_source(subject);
    quote_request(subject, &quote, quoted);
    set_kind(subject, ANSWER_PORT_UNREACHABLE, &port, message);
    return answer_seal(subject, &source, frame, quote_write(&quote, message));
}

/* ---- TCP ------------------------------------------------------------------------------------- */

/* RFC 9293 3.10.7.1 and 3.10.7.2: both acknowledge the SYN and what came with it. */
static size_t write_tcp(const struct subject *subject, bool is_reset, uint8_t *frame) {
    uint8_t syn[MTU_BYTES], *tcp = answer_message(subject, frame);
    size_t n = request_message(subject->table, subject->request, syn);
    size_t data = n - message_header_bytes(PROTOCOL_TCP, syn);
    struct address source = routed_source(subject);
    memset(tcp, 0, TCP_BYTES);
    memcpy(tcp, syn + 2, 2);
    memcpy(tcp + 2, syn, 2);
    store32(tcp + 4, is_reset ? 0 : (uint32_t)draw_mix(subject->request->serial));
    store32(tcp + 8, load32(syn + 4) + 1 + (uint32_t)data);
    tcp[12] = TCP_BYTES / 4 << 4;
    tcp[13] = TCP_ACK | (is_reset ? TCP_RST : TCP_SYN);
    store16(tcp + 14, is_reset ? 0 : UINT16_MAX);
    message_seal(PROTOCOL_TCP, &source, &subject->client->address, tcp, TCP_BYTES);
    return answer_wrap(subject, PROTOCOL_TCP, &source, frame, TCP_BYTES);
}

size_t routed_write(const struct subject *subject, const struct event *event, uint8_t *frame) {
    switch (event->kind) {
    case ANSWER_PORT_UNREACHABLE:
        return write_port_unreachable(subject, frame);
    case ANSWER_SYN_ACK:
    case ANSWER_RESET:
        return write_tcp(subject, event->kind == ANSWER_RESET, frame);
    default:
        return write_router_error(subject, event->kind, frame);
    }
}
