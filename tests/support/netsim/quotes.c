#include "quotes.h"

enum {
    ERROR4_MAX_BYTES = 576 - IPV4_BYTES,
    ERROR6_MAX_BYTES = 1280 - IPV6_BYTES,
    EXTENDED_MIN_BYTES = 128, /* RFC 4884 4.5 */
};

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* The length field counts in words of so many bytes, and is at this place (RFC 4884 4). */
static size_t word_bytes(uint8_t family) { return family == 4 ? 4 : 8; }
static size_t length_at(uint8_t family) { return family == 4 ? 5 : 4; }

static uint8_t length_of(const struct quote *quote, size_t padded) {
    switch (quote->length_field) {
    case LENGTH_ZERO:
        return 0;
    case LENGTH_LONG:
        return UINT8_MAX;
    case LENGTH_SHORT:
        return 1;
    default:
        return (uint8_t)(padded / word_bytes(quote->envelope.source.family));
    }
}

/* Pad the quote as RFC 4884 says and write the extension; returns the size of both. */
static size_t extend(const struct quote *quote, uint8_t *error, size_t quoted) {
    uint8_t family = quote->envelope.source.family;
    size_t word = word_bytes(family);
    size_t padded = (quoted + word - 1) / word * word;
    uint8_t *at = error + ICMP_BYTES;
    if (padded < EXTENDED_MIN_BYTES)
        padded = EXTENDED_MIN_BYTES;
    memset(at + quoted, 0, padded - quoted);
    memcpy(at + padded, quote->extension->bytes, quote->extension->size);
    error[length_at(family)] = length_of(quote, padded);
    return padded + quote->extension->size;
}

/* How much of the message is quoted. */
static size_t kept_of(const struct quote *quote) {
    uint8_t family = quote->envelope.source.family;
    size_t header = ip_header_bytes(family), word = word_bytes(family);
    size_t room = (family == 4 ? ERROR4_MAX_BYTES : ERROR6_MAX_BYTES) - ICMP_BYTES;
    if (quote->extension != NULL)
        room = (room - quote->extension->size) / word * word;
    if (quote->extension != NULL && quote->length_field == LENGTH_ZERO)
        room = EXTENDED_MIN_BYTES; /* where it is looked for */
    size_t kept = least(quote->size, room - header);
    return quote->quoted_bytes == QUOTE_FULL ? kept : least(kept, quote->quoted_bytes);
}

size_t quote_write(const struct quote *quote, uint8_t *error) {
    size_t header = ip_header_bytes(quote->envelope.source.family), kept = kept_of(quote);
    ip_header_write(error + ICMP_BYTES, &quote->envelope, quote->size);
    memcpy(error + ICMP_BYTES + header, quote->message, kept);
    if (quote->extension == NULL)
        return ICMP_BYTES + header + kept;
    return ICMP_BYTES + extend(quote, error, header + kept);
}
