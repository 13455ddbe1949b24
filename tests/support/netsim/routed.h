/* Answers to a probe that had a journey: errors of routers, and what a destination says. */
#ifndef NETSIM_ROUTED_H
#define NETSIM_ROUTED_H

#include "answers.h"

/* Who speaks for the destination. */
struct address routed_source(const struct subject *subject);

size_t routed_write(const struct subject *subject, const struct event *event, uint8_t *frame);

#endif
