#define _DEFAULT_SOURCE
#include "probes.h"

#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "system.h"

struct data {
    uint32_t slot;
    uint32_t zero;
    uint64_t check;
};

/* splitmix64 of the slot: as unguessable as a comparison of speed needs. */
static inline uint64_t check_of(const struct probes *probes, uint32_t slot)
{
    uint64_t word = probes->secret + slot * UINT64_C(0x9e3779b97f4a7c15);

    word = (word ^ (word >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    word = (word ^ (word >> 27)) * UINT64_C(0x94d049bb133111eb);
    return word ^ (word >> 31);
}

/* Sum bytes for the Internet checksum; the order of bytes does not matter to it (RFC 1071). */
static uint32_t sum_of(const void *bytes, size_t size)
{
    const uint8_t *from = bytes;
    uint32_t sum = 0;

    for (; size > 1; size -= 2, from += 2) {
        uint16_t word;
        memcpy(&word, from, sizeof word);
        sum += word;
    }
    if (size)
        sum += htons((uint16_t)(*from << 8));
    return sum;
}

static inline uint32_t sum_of_32(uint32_t word)
{
    return (word & 0xffff) + (word >> 16);
}

static inline uint16_t checksum_of(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    return (uint16_t)~sum;
}

void probes_open(struct probes *probes, uint32_t count, uint32_t first_target, uint32_t targets)
{
    *probes = (struct probes){.count = count, .first_target = first_target, .targets = targets};
    probes->all = calloc(count, sizeof *probes->all);
    if (!probes->all)
        fail("probes");
    for (uint32_t slot = 0; slot < count; slot++)
        probes->all[slot].rtt_ns = -1;
    if (getrandom(&probes->secret, sizeof probes->secret, 0) != sizeof probes->secret ||
        getrandom(&probes->ident, sizeof probes->ident, 0) != sizeof probes->ident)
        fail("getrandom");
}

uint32_t probes_in_flight(const struct probes *probes)
{
    const uint32_t settled = probes->matched + probes->written_off;

    /* A reply may come to what was written off. */
    return probes->sent > settled ? probes->sent - settled : 0;
}

uint32_t probe_target(const struct probes *probes, uint32_t slot)
{
    return htonl(probes->first_target + slot % probes->targets);
}

void template_make(struct template *template, const struct probes *probes, uint32_t source,
                   const struct link *link, size_t data_bytes)
{
    struct iphdr ip = {
        .version = 4,
        .ihl = IP_BYTES / 4,
        .tot_len = htons((uint16_t)(IP_BYTES + ICMP_BYTES + data_bytes)),
        .frag_off = htons(IP_DF),
        .ttl = 64,
        .protocol = IPPROTO_ICMP,
        .saddr = source,
    };
    struct icmphdr icmp = {.type = ICMP_ECHO, .un.echo.id = probes->ident};
    const uint16_t ethertype = htons(0x0800);

    *template = (struct template){.size = ICMP_OFFSET + ICMP_BYTES + data_bytes};
    memcpy(template->bytes + LINK_OFFSET, link->gateway, 6);
    memcpy(template->bytes + LINK_OFFSET + 6, link->source, 6);
    memcpy(template->bytes + LINK_OFFSET + 12, &ethertype, 2);
    memcpy(template->bytes + IP_OFFSET, &ip, sizeof ip);
    memcpy(template->bytes + ICMP_OFFSET, &icmp, sizeof icmp);
    template->ip_sum = sum_of(&ip, sizeof ip);
    template->icmp_sum = sum_of(&icmp, sizeof icmp);
}

void packet_fill(uint8_t *packet, const struct template *template, const struct probes *probes,
                 uint32_t slot)
{
    struct iphdr *ip = (struct iphdr *)(packet + IP_OFFSET);
    struct icmphdr *icmp = (struct icmphdr *)(packet + ICMP_OFFSET);
    const struct data data = {.slot = slot, .check = check_of(probes, slot)};
    const uint16_t sequence = htons((uint16_t)slot);
    const uint32_t target = probe_target(probes, slot);

    ip->daddr = target;
    ip->check = checksum_of(template->ip_sum + sum_of_32(target));
    icmp->un.echo.sequence = sequence;
    memcpy(icmp + 1, &data, sizeof data);
    icmp->checksum = checksum_of(template->icmp_sum + sequence + sum_of_32(slot) +
                                 sum_of_32((uint32_t)data.check) +
                                 sum_of_32((uint32_t)(data.check >> 32)));
}

void probes_match(struct probes *probes, const uint8_t *datagram, size_t size, int64_t received_ns)
{
    struct iphdr ip;
    struct icmphdr icmp;
    struct data data;
    size_t header_bytes;
    struct probe *probe;

    if (size < IP_BYTES + ICMP_BYTES + DATA_BYTES_MIN)
        return;
    memcpy(&ip, datagram, sizeof ip);
    header_bytes = ip.ihl * 4U;
    if (ip.protocol != IPPROTO_ICMP || size < header_bytes + ICMP_BYTES + DATA_BYTES_MIN)
        return;
    memcpy(&icmp, datagram + header_bytes, sizeof icmp);
    if (icmp.type != ICMP_ECHOREPLY || icmp.un.echo.id != probes->ident)
        return;
    memcpy(&data, datagram + header_bytes + ICMP_BYTES, sizeof data);
    if (data.slot >= probes->sent || data.check != check_of(probes, data.slot) ||
        ip.saddr != probe_target(probes, data.slot)) {
        probes->mismatched++;
        return;
    }
    probe = &probes->all[data.slot];
    if (probe->rtt_ns >= 0)
        return;
    /* A stamp interpolated over a batch may lie behind the reply's. */
    probe->rtt_ns = received_ns > probe->sent_ns ? (int32_t)(received_ns - probe->sent_ns) : 0;
    probes->matched++;
}

static int compare(const void *left, const void *right)
{
    const int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;

    return (a > b) - (a < b);
}

double probes_rtt_us(const struct probes *probes, double share)
{
    int32_t *sorted = malloc(sizeof *sorted * (probes->matched + 1U));
    uint32_t answered = 0;
    double rtt_us;

    if (!sorted)
        fail("round trips");
    for (uint32_t slot = 0; slot < probes->count; slot++)
        if (probes->all[slot].rtt_ns >= 0)
            sorted[answered++] = probes->all[slot].rtt_ns;
    qsort(sorted, answered, sizeof *sorted, compare);
    rtt_us = answered ? sorted[(uint32_t)(share * (answered - 1))] / 1e3 : 0;
    free(sorted);
    return rtt_us;
}
