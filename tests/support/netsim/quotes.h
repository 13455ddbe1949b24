/* What an ICMP error says after its header: the packet it is about (RFC 792, RFC 4443), and perhaps
 * an extension structure behind it (RFC 4884). */
#ifndef NETSIM_QUOTES_H
#define NETSIM_QUOTES_H

#include <stddef.h>
#include <stdint.h>

#include "packet.h"
#include "topology.h"

struct quote {
    struct envelope envelope; /* the packet's, as it arrived */
    const uint8_t *message;
    size_t size;                   /* of the message */
    size_t quoted_bytes;           /* of it at most; or QUOTE_FULL: as much as there is room for */
    const struct bytes *extension; /* or NULL */
    uint32_t length_field;         /* enum length_field */
};

/* Write the quote behind an error's header, and its length into it; returns the error's size. An
 * IPv4 error has 576 bytes at most (RFC 1812 4.3.2.3), an IPv6 error 1280 (RFC 4443 2.4 (c)). */
size_t quote_write(const struct quote *quote, uint8_t *error);

#endif
