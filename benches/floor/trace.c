/* The floor of the trace bench: what a C loop reaches that does the work of a trace engine.
 *
 * usage: trace --count N --first ADDRESS --source ADDRESS [OPTION VALUE] ...
 *
 * Every path is asked for --burst hops at once, and for as many more until its target replied. A
 * hop that is silent for --retry-ms is asked again, --attempts times in all, and given up
 * --timeout-ms after the last. At most --window paths are in flight. An answer counts when its
 * quote or echo has the path's target and identifier and the probe's cookie, a quote the path's
 * checksum too, and both were stamped. Prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "exchange.h"
#include "paths.h"
#include "system.h"

struct options {
    struct shape shape;
    uint32_t window;
    unsigned batch;
    int buffer_bytes;
};

struct usage {
    double seconds;
    double user;
    double system;
};

static struct usage usage_now(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return (struct usage){
        .seconds = (double)clock_ns(CLOCK_MONOTONIC) / 1e9,
        .user = (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec / 1e6,
        .system = (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec / 1e6,
    };
}

/* Wait for an answer until a probe has waited long enough. */
static void await(const struct inbox *inbox, struct paths *paths)
{
    struct pollfd poll_fd = {.fd = inbox->fd, .events = POLLIN};
    const int64_t left_ns = paths_expiry_ns(paths) - clock_ns(CLOCK_REALTIME);
    const struct timespec left = {
        .tv_sec = left_ns > 0 ? left_ns / SECOND_NS : 0,
        .tv_nsec = left_ns > 0 ? left_ns % SECOND_NS : 0,
    };

    ppoll(&poll_fd, 1, &left, NULL);
}

/* Ends, because every path does: each of its probes is answered or times out. */
static void run(struct sender *sender, struct inbox *inbox, struct paths *paths, uint32_t window)
{
    while (paths->finished < paths->shape.count) {
        unsigned done;

        paths_expire(paths, clock_ns(CLOCK_REALTIME));
        paths_begin(paths, window);
        /* Batch by batch: where rmem_max is the default, the buffer holds 256 answers. */
        done = send_batch(sender, paths);
        done += receive_batch(inbox, paths);
        if (!done && paths->finished < paths->shape.count)
            await(inbox, paths);
    }
}

static void report(const struct paths *paths, const struct inbox *inbox, struct usage begun,
                   struct usage ended)
{
    printf("{\"traces\": %u, \"hops\": %u, \"sent\": %u, \"mismatched\": %u, "
           "\"rx_dropped\": %u, \"seconds\": %.6f, \"cpu_seconds\": %.6f, "
           "\"user_seconds\": %.6f, \"rtt_mean_us\": %.1f}\n",
           paths->finished, paths_found(paths), paths->packets, paths->mismatched,
           inbox->dropped, ended.seconds - begun.seconds,
           ended.user - begun.user + ended.system - begun.system, ended.user - begun.user,
           paths_rtt_us(paths));
}

_Noreturn static void refuse(const char *what, const char *value)
{
    fprintf(stderr, "trace: %s: %s\n", what, value);
    exit(2);
}

static uint32_t address(const char *value)
{
    struct in_addr parsed;

    if (inet_pton(AF_INET, value, &parsed) != 1)
        refuse("no address", value);
    return parsed.s_addr;
}

static unsigned number(const char *value, unsigned most)
{
    char *end;
    unsigned long parsed = strtoul(value, &end, 10);

    if (*end || end == value || !parsed || parsed > most)
        refuse("no number that fits", value);
    return (unsigned)parsed;
}

static const struct option long_options[] = {
    {"count", required_argument, NULL, 'c'},      {"first", required_argument, NULL, 'f'},
    {"source", required_argument, NULL, 's'},     {"window", required_argument, NULL, 'w'},
    {"batch", required_argument, NULL, 'b'},      {"burst", required_argument, NULL, 'B'},
    {"last-ttl", required_argument, NULL, 'l'},   {"attempts", required_argument, NULL, 'a'},
    {"retry-ms", required_argument, NULL, 'r'},   {"timeout-ms", required_argument, NULL, 't'},
    {"buffer-bytes", required_argument, NULL, 'u'},
    {NULL, 0, NULL, 0},
};

static void take(struct options *options, int letter, const char *value)
{
    struct shape *shape = &options->shape;

    switch (letter) {
    case 'c': shape->count = number(value, 1 << 20); break;
    case 'f': shape->first_target = ntohl(address(value)); break;
    case 's': shape->source = address(value); break;
    case 'w': options->window = number(value, UINT32_MAX); break;
    case 'b': options->batch = number(value, BATCH_MAX); break;
    case 'u': options->buffer_bytes = (int)number(value, INT32_MAX); break;
    case 'B': shape->burst = number(value, LAST_TTL_MAX); break;
    case 'l': shape->last_ttl = number(value, LAST_TTL_MAX - 1); break;
    case 'a': shape->attempts = number(value, ATTEMPTS_MAX); break;
    case 'r': shape->retry_ns = number(value, 1 << 20) * INT64_C(1000000); break;
    case 't': shape->timeout_ns = number(value, 1 << 20) * INT64_C(1000000); break;
    default: exit(2);
    }
}

static struct options parse(int argc, char **argv)
{
    struct options options = {
        .shape = {.attempts = 3, .burst = 16, .last_ttl = 30,
                  .retry_ns = SECOND_NS / 4, .timeout_ns = SECOND_NS},
        .window = 4096,
        .batch = 64,
        .buffer_bytes = 8 << 20,
    };
    int letter;

    while ((letter = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        take(&options, letter, optarg);
    if (optind != argc)
        refuse("not an option", argv[optind]);
    if (!options.shape.count || !options.shape.first_target || !options.shape.source)
        refuse("needs", "--count, --first, --source");
    if (options.shape.retry_ns > options.shape.timeout_ns)
        refuse("not more than --timeout-ms", "--retry-ms");
    return options;
}

int main(int argc, char **argv)
{
    const struct options options = parse(argc, argv);
    static struct sender sender;
    static struct inbox inbox;
    struct paths paths;
    struct usage begun;

    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    paths_open(&paths, &options.shape);
    sender_open(&sender, options.batch);
    inbox_open(&inbox, options.buffer_bytes);
    begun = usage_now();
    run(&sender, &inbox, &paths, options.window);
    report(&paths, &inbox, begun, usage_now());
    return 0;
}
