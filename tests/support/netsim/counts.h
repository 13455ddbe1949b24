/* What is counted for every target, and in total. */
#ifndef NETSIM_COUNTS_H
#define NETSIM_COUNTS_H

/* Requests meet one fate (dropped, limited, an error or a reply); the rest is beside it.
 *
 *   requests        echo requests seen
 *   dropped         unanswered by decision: loss
 *   limited         beyond the rate limit, with or without an error
 *   errors          ICMP errors that quote the request, sent
 *   replied         replies sent, one per request; reordered, elsewhere and duplicates not included
 *                   in any other count of this line
 *   duplicates      further copies of replies, sent
 *   reordered       requests whose reply was delayed to be overtaken
 *   elsewhere       requests whose reply comes from another address
 *   truncated       replies with a shortened payload, sent in place of `replied`
 *   forged, corrupted, foreign_errors, noise    injected packets, sent
 *   unsent          packets the kernel refused
 *   pending         packets not yet due when the simulator was stopped
 */
#define COUNTS(each)                                                                              \
    each(requests) each(dropped) each(limited) each(errors) each(replied) each(duplicates)        \
        each(reordered) each(elsewhere) each(truncated) each(forged) each(corrupted)              \
            each(foreign_errors) each(noise) each(unsent) each(pending)

#define COUNT_ENUMERATOR(name) COUNT_##name,
enum count { COUNTS(COUNT_ENUMERATOR) COUNT_KINDS };
#undef COUNT_ENUMERATOR

#endif
