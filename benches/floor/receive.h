/* Receiving echo replies with the kernel's stamps: by raw socket, or by a packet socket's ring. */
#ifndef FLOOR_RECEIVE_H
#define FLOOR_RECEIVE_H

#include "probes.h"

enum reception { RECEPTION_SOCKET, RECEPTION_FRAMES, RECEPTION_BLOCKS };

struct ring_shape {
    int ifindex;
    unsigned block_bytes;
    unsigned blocks;
    unsigned frame_bytes; /* of RECEPTION_FRAMES (TPACKET_V2) */
    unsigned retire_ms;   /* of RECEPTION_BLOCKS (TPACKET_V3) */
};

struct receiver {
    int fd;
    enum reception reception;
    struct inbox *inbox; /* of a socket */
    uint8_t *ring;       /* of a ring, as are: */
    struct ring_shape shape;
    unsigned next; /* frame or block */
};

/* Open a raw socket; buffer_bytes 0 leaves the kernel's default. */
void receive_open_socket(struct receiver *receiver, int buffer_bytes);
void receive_open_ring(struct receiver *receiver, enum reception reception,
                       const struct ring_shape *shape, uint16_t ident);

/* Take what is there, at most this many datagrams of a socket; return how many there were. */
unsigned receive(struct receiver *receiver, struct probes *probes, unsigned most);

/* Return how many datagrams the kernel dropped because nobody took them in time. */
unsigned receive_dropped(const struct receiver *receiver);

#endif
