/* netsim INTERFACE DIRECTORY < SCENARIO
 *
 * Plays a scenario (scenario.h) on one end of a veth pair: answers echo requests and those who
 * look for neighbours. Prints `ready` once packets are received; runs until SIGTERM, SIGINT or the
 * end of standard input, then writes the truth (truth.h) to the directory. Needs CAP_NET_RAW.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clock.h"
#include "network.h"

/* A sleeping process wakes up late, so the last of the wait is spent awake. */
enum { AWAKE_NS = 60000, CONTROL_EVERY_NS = 1000000 };

enum { WAIT_STANDARD_INPUT, WAIT_SIGNAL, WAIT_FRAMES, WAITS };

static bool is_stopped(const struct pollfd *waits) {
    char discarded[256];
    if (waits[WAIT_SIGNAL].revents != 0 || waits[WAIT_FRAMES].revents & ~POLLIN)
        return true; /* the latter: the interface went down */
    return waits[WAIT_STANDARD_INPUT].revents != 0 &&
           read(STDIN_FILENO, discarded, sizeof discarded) <= 0;
}

/* Sleep until there is a frame, a packet is nearly due, or the end; returns whether it is that. */
static bool wait_for_work(struct pollfd *waits, int64_t next_ns) {
    struct timespec timeout, *limit = NULL;
    if (next_ns != NEVER_NS) {
        int64_t left_ns = next_ns - AWAKE_NS - realtime_ns();
        if (left_ns <= 0)
            return false;
        timeout = (struct timespec){.tv_sec = left_ns / NS_PER_S, .tv_nsec = left_ns % NS_PER_S};
        limit = &timeout;
    }
    return ppoll(waits, WAITS, limit, NULL) > 0 && is_stopped(waits);
}

static void play(struct network *network, struct pollfd *waits) {
    int64_t controlled_ns = realtime_ns();
    bool is_over = false;
    while (!is_over) {
        unsigned worked = network_receive(network);
        worked += network_send(network);
        if (worked == 0)
            is_over = wait_for_work(waits, wheel_next_ns(&network->wheel));
        if (realtime_ns() - controlled_ns > CONTROL_EVERY_NS) {
            is_over = is_over || (poll(waits, WAIT_FRAMES, 0) > 0 && is_stopped(waits));
            controlled_ns = realtime_ns();
        }
    }
}

static int open_signals(void) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    return signalfd(-1, &signals, SFD_CLOEXEC);
}

int main(int argc, char **argv) {
    static struct network network;
    if (argc != 3) {
        fprintf(stderr, "usage: %s INTERFACE DIRECTORY < SCENARIO\n", argv[0]);
        return 2;
    }
    if (!scenario_read(&network.scenario, stdin) || !network_open(&network, argv[1], argv[2]))
        return EXIT_FAILURE;
    prctl(PR_SET_TIMERSLACK, 1);
    struct pollfd waits[WAITS] = {
        [WAIT_STANDARD_INPUT] = {.fd = STDIN_FILENO, .events = POLLIN},
        [WAIT_SIGNAL] = {.fd = open_signals(), .events = POLLIN},
        [WAIT_FRAMES] = {.fd = network.link.receiver, .events = POLLIN},
    };
    puts("ready");
    fflush(stdout);
    play(&network, waits);
    bool is_reported = network_report(&network);
    network_close(&network);
    return is_reported ? EXIT_SUCCESS : EXIT_FAILURE;
}
