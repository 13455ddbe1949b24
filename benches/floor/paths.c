#define _DEFAULT_SOURCE
#include "paths.h"

#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "system.h"

struct data {
    uint64_t cookie;
    uint16_t balance; /* makes the checksum the path's: Paris traceroute's constant flow */
    uint8_t zeros[TRACE_DATA_BYTES - 10];
};

/* What of a probe an answer shows. */
struct shown {
    uint32_t target;
    struct icmphdr icmp;
    bool is_reply;
    bool has_cookie;
    uint64_t cookie;
};

/* splitmix64: as unguessable as a comparison of speed needs. */
static inline uint64_t keyed(const struct paths *paths, uint64_t number)
{
    uint64_t word = paths->secret + number * UINT64_C(0x9e3779b97f4a7c15);

    word = (word ^ (word >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    word = (word ^ (word >> 27)) * UINT64_C(0x94d049bb133111eb);
    return word ^ (word >> 31);
}

static inline uint64_t cookie_of(const struct paths *paths, uint32_t path, uint16_t sequence)
{
    return keyed(paths, (uint64_t)path << 16 | sequence);
}

static inline uint32_t sum_of_64(uint64_t word)
{
    return (uint32_t)((word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) +
                      (word >> 48));
}

/* The complement of a one's complement sum; the order of bytes does not matter to it (RFC 1071). */
static inline uint16_t checksum_of(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    return (uint16_t)~sum;
}

static inline uint64_t bit(unsigned ttl)
{
    return UINT64_C(1) << ttl;
}

static inline struct hop *hop_of(const struct paths *paths, uint32_t path, unsigned ttl)
{
    return &paths->hops[(size_t)path * paths->shape.last_ttl + ttl - 1];
}

static inline uint32_t target_of(const struct paths *paths, uint32_t path)
{
    return htonl(paths->shape.first_target + path);
}

void paths_open(struct paths *paths, const struct shape *shape)
{
    const size_t hops = (size_t)shape->count * shape->last_ttl;

    *paths = (struct paths){.shape = *shape};
    paths->all = calloc(shape->count, sizeof *paths->all);
    paths->hops = calloc(hops, sizeof *paths->hops);
    paths->probes.entries = calloc(hops * shape->attempts, sizeof(struct entry));
    paths->lasts.entries = calloc(hops, sizeof(struct entry));
    if (!paths->all || !paths->hops || !paths->probes.entries || !paths->lasts.entries)
        fail("paths");
    if (getrandom(&paths->secret, sizeof paths->secret, 0) != sizeof paths->secret)
        fail("getrandom");
    for (uint32_t path = 0; path < shape->count; path++) {
        const uint64_t flow = keyed(paths, UINT64_C(1) << 63 | path);
        const uint16_t checksum = (uint16_t)(flow >> 16);

        paths->all[path].identifier = (uint16_t)flow;
        /* No sum is 0, so no checksum is its complement. */
        paths->all[path].checksum = checksum == UINT16_MAX ? 0 : checksum;
    }
}

static void want(struct paths *paths, uint32_t path, unsigned ttl, unsigned attempt)
{
    paths->probes.entries[paths->probes.wanted++] =
        (struct entry){.path = path, .ttl = (uint8_t)ttl, .attempt = (uint8_t)attempt};
}

static void ask_further(struct paths *paths, uint32_t path)
{
    struct path *of = &paths->all[path];
    const unsigned end = of->asked + paths->shape.burst;

    while (of->asked < end && of->asked < paths->shape.last_ttl)
        want(paths, path, ++of->asked, 0);
}

void paths_begin(struct paths *paths, uint32_t window)
{
    while (paths->begun < paths->shape.count && paths->begun - paths->finished < window)
        ask_further(paths, paths->begun++);
}

static bool is_needed(const struct paths *paths, const struct entry *entry)
{
    const struct path *path = &paths->all[entry->path];

    return !path->is_over && !(path->settled & bit(entry->ttl)) &&
           (!path->distance || entry->ttl < path->distance);
}

struct entry *paths_next(struct paths *paths)
{
    struct queue *probes = &paths->probes;

    while (probes->sent < probes->wanted) {
        struct entry *entry = &probes->entries[probes->sent++];

        if (is_needed(paths, entry))
            return entry;
    }
    return NULL;
}

uint32_t paths_fill(const struct paths *paths, const struct entry *entry, uint8_t *packet)
{
    const struct path *path = &paths->all[entry->path];
    const uint32_t target = target_of(paths, entry->path);
    const uint16_t sequence = htons((uint16_t)(entry->attempt << 8 | entry->ttl));
    /* The kernel sums the header up itself. */
    const struct iphdr ip = {
        .version = 4,
        .ihl = sizeof ip / 4,
        .tot_len = htons(TRACE_BYTES),
        .id = sequence,
        .ttl = entry->ttl,
        .protocol = IPPROTO_ICMP,
        .saddr = paths->shape.source,
        .daddr = target,
    };
    const struct icmphdr icmp = {
        .type = ICMP_ECHO,
        .checksum = path->checksum,
        .un.echo = {.id = path->identifier, .sequence = sequence},
    };
    struct data data = {.cookie = cookie_of(paths, entry->path, sequence)};
    uint64_t header;

    memcpy(&header, &icmp, sizeof header);
    data.balance = checksum_of(sum_of_64(header) + sum_of_64(data.cookie));
    memcpy(packet, &ip, sizeof ip);
    memcpy(packet + sizeof ip, &icmp, sizeof icmp);
    memcpy(packet + sizeof ip + sizeof icmp, &data, TRACE_DATA_BYTES);
    return target;
}

void paths_stamp(struct paths *paths, struct entry *entry, int64_t sent_ns)
{
    hop_of(paths, entry->path, entry->ttl)->sent_ns[entry->attempt] = sent_ns;
    entry->is_sent = true;
    paths->packets++;
}

/* End a path when all up to its target is settled, or ask further when no target is known. */
static void conclude(struct paths *paths, uint32_t path)
{
    struct path *of = &paths->all[path];
    const unsigned last = of->distance ? of->distance : of->asked;
    const uint64_t all = bit(last + 1) - bit(1);

    if (of->is_over || (of->settled & all) != all)
        return;
    if (!of->distance && of->asked < paths->shape.last_ttl) {
        ask_further(paths, path);
    } else {
        of->is_over = true;
        paths->finished++;
    }
}

/* Read the probe's header at `icmp`, and its cookie if it was quoted. */
static bool show_probe(struct shown *shown, const uint8_t *icmp, size_t size)
{
    if (size < sizeof shown->icmp)
        return false;
    memcpy(&shown->icmp, icmp, sizeof shown->icmp);
    shown->has_cookie = size >= sizeof shown->icmp + sizeof shown->cookie;
    if (shown->has_cookie)
        memcpy(&shown->cookie, icmp + sizeof shown->icmp, sizeof shown->cookie);
    return true;
}

static bool show_quoted(struct shown *shown, const uint8_t *quoted, size_t size)
{
    struct iphdr ip;

    if (size < sizeof ip)
        return false;
    memcpy(&ip, quoted, sizeof ip);
    shown->target = ip.daddr;
    return ip.protocol == IPPROTO_ICMP && size >= ip.ihl * 4U &&
           show_probe(shown, quoted + ip.ihl * 4U, size - ip.ihl * 4U) &&
           shown->icmp.type == ICMP_ECHO;
}

static bool show(struct shown *shown, const struct iphdr *ip, const uint8_t *datagram, size_t size)
{
    const size_t header = ip->ihl * 4U;
    const uint8_t *icmp = datagram + header;

    if (size < header + sizeof(struct icmphdr))
        return false;
    if (*icmp == ICMP_ECHOREPLY) {
        shown->is_reply = true;
        shown->target = ip->saddr;
        return show_probe(shown, icmp, size - header) && shown->has_cookie;
    }
    return show_quoted(shown, icmp + sizeof(struct icmphdr),
                       size - header - sizeof(struct icmphdr));
}

/* Whether what is shown is a probe of this path that was sent. */
static bool is_ours(const struct paths *paths, const struct shown *shown, uint32_t path)
{
    const struct path *of = &paths->all[path];
    const uint16_t sequence = shown->icmp.un.echo.sequence;
    const unsigned ttl = ntohs(sequence) & 0xff, attempt = ntohs(sequence) >> 8;

    return shown->icmp.un.echo.id == of->identifier && ttl && ttl <= of->asked &&
           attempt < paths->shape.attempts && hop_of(paths, path, ttl)->sent_ns[attempt] &&
           (shown->is_reply || shown->icmp.checksum == of->checksum) &&
           (!shown->has_cookie || shown->cookie == cookie_of(paths, path, sequence));
}

static void settle(struct paths *paths, const struct shown *shown, uint32_t path,
                   uint32_t responder, int64_t received_ns)
{
    struct path *of = &paths->all[path];
    const uint16_t sequence = ntohs(shown->icmp.un.echo.sequence);
    const unsigned ttl = sequence & 0xff;
    struct hop *hop = hop_of(paths, path, ttl);
    const int64_t rtt_ns = received_ns - hop->sent_ns[sequence >> 8];

    if (hop->responder)
        return;
    hop->responder = responder;
    /* A stamp interpolated over a batch may lie behind the reply's. */
    hop->rtt_ns = rtt_ns > 0 ? (int32_t)rtt_ns : 0;
    of->settled |= bit(ttl);
    if (shown->is_reply && (!of->distance || ttl < of->distance))
        of->distance = (uint8_t)ttl;
    conclude(paths, path);
}

void paths_match(struct paths *paths, const uint8_t *datagram, size_t size, int64_t received_ns)
{
    struct shown shown = {0};
    struct iphdr ip;
    uint32_t path;

    if (size < sizeof ip)
        return;
    memcpy(&ip, datagram, sizeof ip);
    if (!show(&shown, &ip, datagram, size))
        return;
    path = ntohl(shown.target) - paths->shape.first_target;
    if (path >= paths->begun || !is_ours(paths, &shown, path))
        paths->mismatched++;
    else
        settle(paths, &shown, path, ip.saddr, received_ns);
}

/* Return the first probe of a queue that is still unanswered, or NULL. */
static struct entry *unanswered(const struct paths *paths, struct queue *queue)
{
    for (; queue->due < queue->sent; queue->due++) {
        struct entry *entry = &queue->entries[queue->due];

        if (entry->is_sent && is_needed(paths, entry))
            return entry;
    }
    return NULL;
}

static int64_t due_ns(const struct paths *paths, struct queue *queue, int64_t after_ns)
{
    const struct entry *entry = unanswered(paths, queue);

    return entry ? hop_of(paths, entry->path, entry->ttl)->sent_ns[entry->attempt] + after_ns
                 : INT64_MAX;
}

int64_t paths_expiry_ns(struct paths *paths)
{
    const int64_t retry_ns = due_ns(paths, &paths->probes, paths->shape.retry_ns);
    const int64_t timeout_ns = due_ns(paths, &paths->lasts, paths->shape.timeout_ns);

    return retry_ns < timeout_ns ? retry_ns : timeout_ns;
}

void paths_expire(struct paths *paths, int64_t now_ns)
{
    struct queue *probes = &paths->probes, *lasts = &paths->lasts;

    while (due_ns(paths, probes, paths->shape.retry_ns) <= now_ns) {
        const struct entry entry = probes->entries[probes->due++];

        if (entry.attempt + 1U < paths->shape.attempts) {
            want(paths, entry.path, entry.ttl, entry.attempt + 1U);
        } else {
            lasts->entries[lasts->wanted++] = entry;
            lasts->sent = lasts->wanted;
        }
    }
    while (due_ns(paths, lasts, paths->shape.timeout_ns) <= now_ns) {
        const struct entry entry = lasts->entries[lasts->due++];

        paths->all[entry.path].settled |= bit(entry.ttl);
        conclude(paths, entry.path);
    }
}

uint32_t paths_found(const struct paths *paths)
{
    uint32_t found = 0;

    for (uint32_t path = 0; path < paths->shape.count; path++)
        for (unsigned ttl = 1; ttl <= paths->all[path].distance; ttl++)
            found += hop_of(paths, path, ttl)->responder != 0;
    return found;
}

double paths_rtt_us(const struct paths *paths)
{
    double sum_ns = 0;
    uint32_t answered = 0;

    for (size_t hop = 0; hop < (size_t)paths->shape.count * paths->shape.last_ttl; hop++) {
        answered += paths->hops[hop].responder != 0;
        sum_ns += paths->hops[hop].rtt_ns;
    }
    return answered ? sum_ns / answered / 1e3 : 0;
}
