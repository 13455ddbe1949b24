/* Sending the probes of paths and receiving what answers them, a batch a system call. */
#ifndef FLOOR_EXCHANGE_H
#define FLOOR_EXCHANGE_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "paths.h"

enum { INBOX = 256, DATAGRAM_BYTES = 256, CONTROL_BYTES = 128, BATCH_MAX = 256 };

struct sender {
    int fd;
    unsigned batch;
    struct entry *entries[BATCH_MAX];
    uint8_t packets[BATCH_MAX][TRACE_BYTES];
    struct sockaddr_in targets[BATCH_MAX];
    struct iovec vectors[BATCH_MAX];
    struct mmsghdr messages[BATCH_MAX];
};

struct inbox {
    int fd;
    unsigned dropped; /* by the kernel, because nobody took them in time */
    struct mmsghdr messages[INBOX];
    struct iovec vectors[INBOX];
    uint8_t datagrams[INBOX][DATAGRAM_BYTES];
    _Alignas(struct cmsghdr) uint8_t controls[INBOX][CONTROL_BYTES];
};

void sender_open(struct sender *sender, unsigned batch);

/* Open with a buffer that is as large as this, or as large as net.core.rmem_max lets it be. */
void inbox_open(struct inbox *inbox, int buffer_bytes);

/* Send what is due, at most a batch; return how many that were. */
unsigned send_batch(struct sender *sender, struct paths *paths);

/* Take the answers there are; return how many datagrams those were. */
unsigned receive_batch(struct inbox *inbox, struct paths *paths);

#endif
