/* IP addresses of both families in one value, and the draws that derive from them. */
#ifndef NETSIM_ADDRESS_H
#define NETSIM_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { ADDRESS_BYTES = 16, MAC_BYTES = 6 };

/* family is 4, 6, or 0 for no address; what an IPv4 address does not use is zero. */
struct address {
    uint8_t bytes[ADDRESS_BYTES];
    uint8_t family;
};

static inline size_t address_size(uint8_t family) { return family == 4 ? 4 : ADDRESS_BYTES; }

static inline struct address address_of(uint8_t family, const uint8_t *bytes) {
    struct address made = {.family = family};
    memcpy(made.bytes, bytes, address_size(family));
    return made;
}

static inline bool address_equal(const struct address *a, const struct address *b) {
    return a->family == b->family && memcmp(a->bytes, b->bytes, ADDRESS_BYTES) == 0;
}

#endif
