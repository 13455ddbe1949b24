/* Sending echo requests, a batch a system call. */
#ifndef FLOOR_TRANSMIT_H
#define FLOOR_TRANSMIT_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "probes.h"

enum backend {
    BACKEND_RAW,     /* the kernel writes the IP header */
    BACKEND_HDRINCL, /* we do */
    BACKEND_PACKET,  /* AF_PACKET: we write the link's too, and no route is looked up */
};

struct transmitter {
    int fd;
    unsigned batch;
    struct template template;
    uint8_t *packets;
    struct sockaddr_in *targets;
    struct iovec *vectors;
    struct mmsghdr *messages;
};

/* Open for a back end; ifindex is AF_PACKET's. */
void transmit_open(struct transmitter *transmitter, enum backend backend, int ifindex,
                   unsigned batch, const struct template *template);

/* Send the next probes, at most a batch of them; return how many the kernel took. */
unsigned transmit(struct transmitter *transmitter, struct probes *probes, uint32_t most);

#endif
