/* Chance that repeats: every draw is a function of a key and a label, never of what came before.
 *
 * So a behaviour that is added to a scenario moves no decision of another, and the n-th request to
 * an address meets the same fate whatever else is on the wire.
 */
#ifndef NETSIM_DRAW_H
#define NETSIM_DRAW_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "address.h"

enum draw_label {
    DRAW_HOST_DELAY = 1,
    DRAW_LOSS,
    DRAW_BURST_TURN,
    DRAW_BURST_LOSS,
    DRAW_JITTER,
    DRAW_ERROR,
    DRAW_REORDER,
    DRAW_DUPLICATE,
    DRAW_ELSEWHERE,
    DRAW_TRUNCATE,
    DRAW_FORGED,
    DRAW_CORRUPTED,
    DRAW_FOREIGN_ERROR,
    DRAW_NOISE,
    DRAW_LINK_LOSS,
    DRAW_LINK_RETURN_LOSS,
    DRAW_LINK_JITTER,
    DRAW_LINK_RETURN_JITTER,
    DRAW_BALANCE,
};

/* The finaliser of SplitMix64 (Steele, Lea and Flood, 2014). */
static inline uint64_t draw_mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ x >> 27) * 0x94D049BB133111EBULL;
    return x ^ x >> 31;
}

static inline uint64_t draw(uint64_t key, uint64_t label) { return draw_mix(key ^ label << 56); }

static inline uint64_t draw_address_key(uint64_t seed, const struct address *address) {
    uint64_t halves[2];
    memcpy(halves, address->bytes, sizeof halves);
    return draw_mix(draw_mix(draw_mix(seed ^ address->family) ^ halves[0]) ^ halves[1]);
}

static inline uint64_t draw_request_key(uint64_t address_key, uint32_t n) {
    return draw_mix(address_key + n);
}

/* A number in [0, 1). */
static inline double draw_unit(uint64_t drawn) { return (double)(drawn >> 11) * 0x1p-53; }

static inline bool draw_happens(uint64_t key, uint64_t label, double share) {
    return share > 0 && draw_unit(draw(key, label)) < share;
}

static inline uint32_t draw_below(uint64_t drawn, uint32_t limit) {
    return (uint32_t)((drawn >> 32) * limit >> 32);
}

#endif
