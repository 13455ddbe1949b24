/* What is counted for every target, and in total. */
#ifndef NETSIM_COUNTS_H
#define NETSIM_COUNTS_H

/* Requests meet one fate; the rest is beside it. On a host: dropped, limited, an error or a reply.
 * On a route: lost, lost_on_return, limited, withheld, an error of a router or what the destination
 * does.
 *
 *   requests        echo requests seen; on a route, UDP datagrams and TCP SYNs as well
 *   dropped         unanswered by decision: loss
 *   limited         beyond the rate limit of host, prefix or router, with or without an error
 *   errors          ICMP errors that quote the request, sent
 *   replied         replies sent, one per request; reordered, elsewhere and duplicates not included
 *                   in any other count of this line
 *   duplicates      further copies of replies, sent
 *   reordered       requests whose reply was delayed to be overtaken
 *   elsewhere       requests whose reply comes from another address
 *   truncated       replies with a shortened payload, sent in place of `replied`
 *   forged, corrupted, foreign_errors, noise    injected packets, sent
 *   lost            on a link on the way there
 *   lost_on_return  answers on a link on the way back
 *   withheld        unanswered by whoever should: silent routers, black holes, destinations
 *   expired, too_big, refused    errors of routers, sent
 *   port_unreachable, syn_acks, resets    what a destination says to UDP and TCP, sent
 *   unsent          packets the kernel refused
 *   pending         packets not yet due when the simulator was stopped
 */
#define COUNTS(each)                                                                              \
    each(requests) each(dropped) each(limited) each(errors) each(replied) each(duplicates)        \
        each(reordered) each(elsewhere) each(truncated) each(forged) each(corrupted)              \
            each(foreign_errors) each(noise) each(lost) each(lost_on_return) each(withheld)       \
                each(expired) each(too_big) each(refused) each(port_unreachable) each(syn_acks)   \
                    each(resets) each(unsent) each(pending)

#define COUNT_ENUMERATOR(name) COUNT_##name,
enum count { COUNTS(COUNT_ENUMERATOR) COUNT_KINDS };
#undef COUNT_ENUMERATOR

#endif
