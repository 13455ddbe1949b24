/* The probes of one run: what each looks like on the wire and which of them were answered. */
#ifndef FLOOR_PROBES_H
#define FLOOR_PROBES_H

#include <stddef.h>
#include <stdint.h>

enum {
    LINK_BYTES = 14,
    IP_BYTES = 20,
    ICMP_BYTES = 8,
    DATA_BYTES_MIN = 16, /* slot and check */
    DATA_BYTES_MAX = 1472,
};

/* Where a packet begins for each kind of socket: all are built alike, the IP header aligned. */
enum {
    LINK_OFFSET = 2,
    IP_OFFSET = LINK_OFFSET + LINK_BYTES,
    ICMP_OFFSET = IP_OFFSET + IP_BYTES,
};

struct probe {
    int64_t sent_ns; /* CLOCK_REALTIME, as the kernel stamps; 0 until sent */
    int32_t rtt_ns;  /* -1 until answered */
};

struct probes {
    struct probe *all;
    uint32_t count;
    uint32_t first_target; /* host order */
    uint32_t targets;
    uint64_t secret;
    uint16_t ident; /* network order */
    uint32_t sent;
    uint32_t matched;
    uint32_t mismatched;
    uint32_t written_off;
};

/* What all packets of a run share, and its sums. */
struct template {
    _Alignas(uint64_t) uint8_t bytes[ICMP_OFFSET + ICMP_BYTES + DATA_BYTES_MAX];
    size_t size; /* of the bytes used */
    uint32_t ip_sum;
    uint32_t icmp_sum;
};

struct link {
    uint8_t source[6];
    uint8_t gateway[6];
};

void probes_open(struct probes *probes, uint32_t count, uint32_t first_target, uint32_t targets);
uint32_t probes_in_flight(const struct probes *probes);
uint32_t probe_target(const struct probes *probes, uint32_t slot);

void template_make(struct template *template, const struct probes *probes, uint32_t source,
                   const struct link *link, size_t data_bytes);

/* Turn a copy of the template into the probe of this slot. */
void packet_fill(uint8_t *packet, const struct template *template, const struct probes *probes,
                 uint32_t slot);

/* Settle the probe that a datagram answers; ip is its IPv4 header, size what was received. */
void probes_match(struct probes *probes, const uint8_t *ip, size_t size, int64_t received_ns);

/* Return the round trip that this share of the answered probes did not exceed. */
double probes_rtt_us(const struct probes *probes, double share);

#endif
