/* What a received frame is. */
#ifndef NETSIM_CLASSIFY_H
#define NETSIM_CLASSIFY_H

#include <stddef.h>
#include <stdint.h>

#include "requests.h"

enum frame_class {
    FRAME_PROBE, /* an echo request, a UDP datagram or a TCP SYN */
    FRAME_ARP_REQUEST,
    FRAME_SOLICITATION,
    FRAME_MALFORMED, /* lengths or a checksum that do not hold: whoever built it has a fault */
    FRAME_OTHER,
};

/* Who asks whom; for a solicitation and an ARP request `destination` is the address looked for. */
enum frame_class classify(const uint8_t *frame, size_t size, const uint8_t *own_mac,
                          struct probe *probe);

#endif
