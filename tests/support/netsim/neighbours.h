/* Answers to those who ask for a MAC address: ARP (RFC 826), neighbour discovery (RFC 4861). */
#ifndef NETSIM_NEIGHBOURS_H
#define NETSIM_NEIGHBOURS_H

#include <stddef.h>
#include <stdint.h>

#include "requests.h"

/* Write the frame that says `mac` has the address looked for; returns its size. */
size_t arp_reply(uint8_t *frame, const struct probe *asked, const uint8_t *mac);
size_t neighbour_advertisement(uint8_t *frame, const struct probe *asked, const uint8_t *mac);

#endif
