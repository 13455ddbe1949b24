/* The interface: a ring of received frames with the kernel's stamps, and batches of sent ones. */
#ifndef NETSIM_LINK_H
#define NETSIM_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "packet.h"

enum { BATCH_FRAMES = 16 };

#define REFUSED_NS INT64_MIN

struct frame {
    const uint8_t *bytes;
    size_t size;
    int64_t arrival_ns; /* CLOCK_REALTIME */
};

struct link {
    int receiver;
    int sender;
    uint8_t *ring;
    uint32_t ring_frames;
    uint32_t cursor;
    unsigned batched;
    uint32_t events[BATCH_FRAMES];    /* what each frame is the packet of */
    int64_t handed_ns[BATCH_FRAMES]; /* CLOCK_REALTIME, or REFUSED_NS */
    int64_t took_ns[BATCH_FRAMES];   /* the call that it was handed over in */
    struct mmsghdr headers[BATCH_FRAMES];
    struct iovec vectors[BATCH_FRAMES];
    uint8_t frames[BATCH_FRAMES][FRAME_MAX_BYTES];
};

/* Open both sockets on an interface; on failure say why on standard error, return false. */
bool link_open(struct link *link, const char *interface, uint32_t ring_frames);
void link_close(struct link *link);

/* Look at the next received frame, which stays until it is consumed. */
bool link_peek(const struct link *link, struct frame *frame);
void link_consume(struct link *link);

/* Where to write the next frame to send; flush before the batch has BATCH_FRAMES. */
uint8_t *link_next(struct link *link);
void link_push(struct link *link, size_t size, uint32_t event);

/* Hand the batch to the kernel, fill in handed_ns and took_ns; returns how many frames it had. */
unsigned link_flush(struct link *link);

/* Frames that the ring had no room for since it was opened. */
uint64_t link_drops(struct link *link);

#endif
