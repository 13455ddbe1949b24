/* What really happened, in files of a directory; integers in this machine's byte order.
 *
 *     totals     text, `name value` a line: the sums of counts.h and what network.h counts
 *     targets    struct target_record for each host that was asked
 *     requests   struct request_record in the order of arrival, when probes are recorded
 *     answers    struct answer_record in the order of sending, when probes are recorded
 *     routers    struct router_counts for each router, links    struct edge_counts for each edge
 */
#ifndef NETSIM_TRUTH_H
#define NETSIM_TRUTH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "hosts.h"
#include "journey.h"
#include "plan.h"
#include "requests.h"

enum request_flag {
    REQUEST_DROPPED = 1,
    REQUEST_LIMITED = 2,
    REQUEST_REORDERED = 4,
    REQUEST_ELSEWHERE = 8,
};

struct request_record {
    int64_t arrival_ns; /* CLOCK_REALTIME */
    uint8_t source[ADDRESS_BYTES];
    uint8_t destination[ADDRESS_BYTES];
    uint8_t head[8];     /* of the message */
    uint8_t payload[16]; /* the first bytes, zeros where there are none */
    uint32_t n;          /* of the host's requests, from 0 */
    uint32_t ip_word;    /* IPv4: identification and fragment field; IPv6: flow label */
    uint32_t router;     /* where its journey ended, or ROUTER_DESTINATION, or ROUTER_NONE */
    uint16_t payload_bytes;
    uint8_t family;
    uint8_t flags;
    uint8_t genuine; /* replies and duplicates that were planned */
    uint8_t planned; /* packets that were planned, of every kind */
    uint8_t ttl;
    uint8_t tos;
    uint8_t protocol;
    uint8_t end;   /* enum journey_end */
    uint8_t reply; /* enum journey_reply */
    uint8_t hops;  /* links passed */
};

_Static_assert(sizeof(struct request_record) == 88, "the reader relies on it");

struct answer_record {
    int64_t due_ns;  /* CLOCK_REALTIME */
    int64_t sent_ns; /* CLOCK_REALTIME, handed to the kernel; 0 when it refused */
    uint32_t request; /* position in `requests` */
    uint8_t kind;     /* enum answer_kind */
    uint8_t variant;
    uint16_t within_us; /* sent_ns is right to so much: the call that sent it took as long */
};

_Static_assert(sizeof(struct answer_record) == 24, "the reader relies on it");

struct target_record {
    uint8_t address[ADDRESS_BYTES];
    uint32_t family;
    uint32_t counts[COUNT_KINDS];
    uint64_t turnaround_sum_ns;
    uint64_t turnaround_min_ns;
    uint64_t turnaround_max_ns;
};

_Static_assert(sizeof(struct target_record) == 144, "the reader relies on it");

struct truth {
    const char *directory;
    FILE *requests; /* NULL when probes are not recorded */
    FILE *answers;
    uint32_t serial;
};

/* On failure say why on standard error, return false. */
bool truth_open(struct truth *truth, const char *directory, bool record_probes);

/* Record a request and number it. */
void truth_request(struct truth *truth, const struct probe *probe, const struct plan *plan,
                   const struct journey *journey, uint32_t n, uint32_t *serial);

void truth_answer(struct truth *truth, const struct answer_record *record);

/* Write the targets; returns false when anything could not be written. */
bool truth_targets(const struct truth *truth, const struct host_table *hosts);

/* Write what routers and edges counted; returns false when it could not be written. */
bool truth_topology(const struct truth *truth, const struct topology *topology);

/* Create a text or binary file in the directory, or return NULL and say why. */
FILE *truth_file(const struct truth *truth, const char *name);

/* Close what was recorded; returns false when anything could not be written. */
bool truth_close(struct truth *truth);

#endif
