/* blaster INTERFACE SOURCE_MAC DESTINATION_MAC SOURCE FIRST_TARGET TARGETS WINDOW RATE SECONDS HOPS
 *
 * Sends echo requests, no more than RATE a second and WINDOW unanswered at a time, and prints
 * `SENT RECEIVED NANOSECONDS`. The load for netsim's rate; addresses of either family. With HOPS
 * the TTLs 1 to HOPS come in turn and errors count as replies; with 0 the TTL is 64.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#include "../clock.h"
#include "../link.h"

enum { PAYLOAD_BYTES = 56, RING_FRAMES = 1 << 14 };

#define DRAIN_NS (INT64_C(15) * NS_PER_S) /* without a reply: the rest is lost */

struct blast {
    struct link link;
    struct envelope envelope;
    uint8_t source_mac[MAC_BYTES];
    uint8_t destination_mac[MAC_BYTES];
    struct address first_target;
    uint32_t targets;
    uint32_t hops;
    uint64_t window;
    double rate;
    uint64_t sent;
    uint64_t received;
    int64_t last_ns; /* of receiving */
};

static bool parse_mac(const char *text, uint8_t *mac) {
    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &mac[0], &mac[1], &mac[2], &mac[3],
                  &mac[4], &mac[5]) == MAC_BYTES;
}

static bool parse_address(const char *text, struct address *address) {
    *address = (struct address){.family = strchr(text, ':') == NULL ? 4 : 6};
    return inet_pton(address->family == 4 ? AF_INET : AF_INET6, text, address->bytes) == 1;
}

/* The target of a number: the first one's last 4 bytes count on. */
static struct address target_of(const struct blast *blast, uint64_t number) {
    struct address target = blast->first_target;
    uint8_t *last = target.bytes + address_size(target.family) - 4;
    store32(last, load32(last) + (uint32_t)(number % blast->targets));
    return target;
}

static void push_request(struct blast *blast, uint64_t number) {
    uint8_t *frame = link_next(&blast->link);
    uint8_t *message = frame_message(frame, blast->first_target.family);
    memset(message, 0x5A, ICMP_BYTES + PAYLOAD_BYTES);
    message[0] = blast->first_target.family == 4 ? ICMP4_ECHO_REQUEST : ICMP6_ECHO_REQUEST;
    message[1] = 0;
    store32(message + 4, (uint32_t)number);
    memcpy(message + ICMP_BYTES, &number, sizeof number);
    blast->envelope.destination = target_of(blast, number);
    if (blast->hops != 0)
        blast->envelope.ttl = (uint8_t)(1 + number / blast->targets % blast->hops);
    message_seal(blast->envelope.protocol, &blast->envelope.source,
                 &blast->envelope.destination, message, ICMP_BYTES + PAYLOAD_BYTES);
    link_push(&blast->link, frame_wrap(frame, &blast->envelope, ICMP_BYTES + PAYLOAD_BYTES), 0);
}

static void send_batch(struct blast *blast) {
    for (int i = 0; i < BATCH_FRAMES; i++)
        push_request(blast, blast->sent + (uint64_t)i);
    unsigned n = link_flush(&blast->link);
    for (unsigned i = 0; i < n; i++)
        blast->sent += blast->link.handed_ns[i] != REFUSED_NS;
}

static bool is_answer(const struct blast *blast, const struct frame *frame) {
    uint8_t family = blast->first_target.family;
    size_t at = ETHERNET_BYTES + ip_header_bytes(family);
    if (frame->size <= at)
        return false;
    uint8_t type = frame->bytes[at];
    return type == (family == 4 ? ICMP4_ECHO_REPLY : ICMP6_ECHO_REPLY) ||
           (blast->hops != 0 && type == (family == 4 ? ICMP4_TIME_EXCEEDED : ICMP6_TIME_EXCEEDED));
}

static void receive_all(struct blast *blast) {
    struct frame frame;
    uint64_t before = blast->received;
    while (link_peek(&blast->link, &frame)) {
        blast->received += is_answer(blast, &frame);
        link_consume(&blast->link);
    }
    if (blast->received != before)
        blast->last_ns = realtime_ns();
}

static void wait_for_replies(struct blast *blast) {
    struct pollfd wait = {.fd = blast->link.receiver, .events = POLLIN};
    poll(&wait, 1, 1);
}

/* Whether the window and the rate allow another batch. */
static bool may_send(const struct blast *blast, int64_t elapsed_ns) {
    return blast->sent + BATCH_FRAMES <= blast->received + blast->window &&
           (double)blast->sent <= blast->rate * (double)elapsed_ns / NS_PER_S;
}

static void run(struct blast *blast, int64_t began_ns, int64_t duration_ns) {
    int64_t elapsed_ns = 0;
    while (elapsed_ns < duration_ns) {
        if (may_send(blast, elapsed_ns))
            send_batch(blast);
        else
            wait_for_replies(blast);
        receive_all(blast);
        elapsed_ns = realtime_ns() - began_ns;
    }
    blast->last_ns = realtime_ns();
    while (blast->received < blast->sent && realtime_ns() - blast->last_ns < DRAIN_NS) {
        wait_for_replies(blast);
        receive_all(blast);
    }
}

int main(int argc, char **argv) {
    static struct blast blast;
    if (argc != 11 || !parse_mac(argv[2], blast.source_mac) ||
        !parse_mac(argv[3], blast.destination_mac) ||
        !parse_address(argv[4], &blast.envelope.source) ||
        !parse_address(argv[5], &blast.first_target)) {
        fprintf(stderr, "usage: %s INTERFACE SOURCE_MAC DESTINATION_MAC SOURCE FIRST_TARGET TARGETS"
                        " WINDOW RATE SECONDS HOPS\n", argv[0]);
        return 2;
    }
    blast.envelope.source_mac = blast.source_mac;
    blast.envelope.destination_mac = blast.destination_mac;
    blast.envelope.ttl = 64;
    blast.envelope.protocol = icmp_of(blast.first_target.family);
    blast.targets = (uint32_t)strtoul(argv[6], NULL, 10);
    blast.window = strtoull(argv[7], NULL, 10);
    blast.rate = strtod(argv[8], NULL);
    blast.hops = (uint32_t)strtoul(argv[10], NULL, 10);
    if (blast.targets == 0 || !link_open(&blast.link, argv[1], RING_FRAMES))
        return EXIT_FAILURE;
    int64_t began_ns = realtime_ns();
    run(&blast, began_ns, (int64_t)(strtod(argv[9], NULL) * NS_PER_S));
    printf("%llu %llu %lld\n", (unsigned long long)blast.sent, (unsigned long long)blast.received,
           (long long)(blast.last_ns - began_ns));
    link_close(&blast.link);
    return EXIT_SUCCESS;
}
