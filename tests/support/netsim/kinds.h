/* What a packet of the simulator is. */
#ifndef NETSIM_KINDS_H
#define NETSIM_KINDS_H

enum answer_kind {
    ANSWER_REPLY = 1,
    ANSWER_DUPLICATE,
    ANSWER_TRUNCATED,
    ANSWER_ERROR,
    ANSWER_FORGED,
    ANSWER_CORRUPTED,
    ANSWER_FOREIGN_ERROR,
    ANSWER_NOISE,
    ANSWER_EXPIRED, /* from here on: of a route */
    ANSWER_TOO_BIG,
    ANSWER_REFUSED,
    ANSWER_PORT_UNREACHABLE,
    ANSWER_SYN_ACK,
    ANSWER_RESET,
    ANSWER_KINDS,
};

/* Variants of a reply and of its duplicates, and of an error; of what is injected, its kind. */
enum { FROM_DESTINATION, FROM_ELSEWHERE };
enum { ERROR_OF_BEHAVIOUR, ERROR_OF_RATE_LIMIT };

#endif
