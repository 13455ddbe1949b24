/* The floor of the ping benches: what a C loop reaches that does the work of an echo engine.
 *
 * usage: echo sweep|paced --count N --first ADDRESS --targets N --source ADDRESS [OPTION VALUE] ...
 *
 * A probe counts when its reply was matched to it by slot and 8-byte check and both were stamped.
 * `sweep` sends as fast as replies come in; `paced` sends --rate a second, waking for every packet,
 * or once every --quantum-us. Prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/ether.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "probes.h"
#include "receive.h"
#include "system.h"
#include "transmit.h"

enum { LINGER_MS = 1000 };
#define LINGER_NS (LINGER_MS * SECOND_NS / 1000)

struct options {
    bool paced;
    enum backend backend;
    enum reception reception;
    unsigned batch;
    uint32_t count;
    uint32_t first;
    uint32_t targets;
    uint32_t source;
    struct link link;
    size_t data_bytes;
    uint32_t window;
    int buffer_bytes;
    unsigned rate;
    int64_t quantum_ns;
    struct ring_shape ring;
};

struct usage {
    double seconds;
    double user;
    double system;
    long switches;
};

static struct usage usage_now(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return (struct usage){
        .seconds = (double)clock_ns(CLOCK_MONOTONIC) / 1e9,
        .user = (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec / 1e6,
        .system = (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec / 1e6,
        .switches = used.ru_nvcsw,
    };
}

/* Wait for replies; return whether any came. */
static bool await(const struct receiver *receiver, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = receiver->fd, .events = POLLIN};

    return poll(&poll_fd, 1, timeout_ms) > 0;
}

/* Send as fast as replies come in; what is unanswered after a while is lost and not waited for. */
static struct usage sweep(struct transmitter *transmitter, struct receiver *receiver,
                          struct probes *probes, uint32_t window)
{
    struct usage last = usage_now();

    while (probes->sent < probes->count || probes_in_flight(probes)) {
        const uint32_t in_flight = probes_in_flight(probes);
        unsigned done = in_flight < window ? transmit(transmitter, probes, window - in_flight) : 0;

        done += receive(receiver, probes, probes_in_flight(probes));
        if (done && probes->sent == probes->count)
            last = usage_now();
        if (!done && !await(receiver, LINGER_MS))
            probes->written_off += probes_in_flight(probes);
    }
    return last;
}

static struct timespec time_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS};
}

static uint32_t due_by(int64_t passed_ns, unsigned rate)
{
    return (uint32_t)(passed_ns * rate / SECOND_NS) + 1;
}

/* Send evenly, woken for each packet: by its time to be sent and by its reply. */
static struct usage pace_by_packet(struct transmitter *transmitter, struct receiver *receiver,
                                   struct probes *probes, unsigned rate)
{
    const int64_t begun_ns = clock_ns(CLOCK_MONOTONIC);
    struct pollfd poll_fd = {.fd = receiver->fd, .events = POLLIN};

    while (probes->sent < probes->count || probes_in_flight(probes)) {
        const bool all_sent = probes->sent == probes->count;
        const int64_t next_ns = begun_ns + (int64_t)probes->sent * SECOND_NS / rate;
        const int64_t left_ns = all_sent ? LINGER_NS : next_ns - clock_ns(CLOCK_MONOTONIC);
        const struct timespec left = time_of(left_ns > 0 ? left_ns : 0);
        const int ready = ppoll(&poll_fd, 1, &left, NULL);

        if (ready > 0)
            receive(receiver, probes, 1);
        else if (all_sent)
            break;
        if (!all_sent && clock_ns(CLOCK_MONOTONIC) >= next_ns)
            transmit(transmitter, probes, 1);
    }
    return usage_now();
}

/* Send evenly, woken once a quantum for all that is due and all that came. */
static struct usage pace_by_quantum(struct transmitter *transmitter, struct receiver *receiver,
                                    struct probes *probes, unsigned rate, int64_t quantum_ns)
{
    const int64_t begun_ns = clock_ns(CLOCK_MONOTONIC);
    const int64_t end_ns = begun_ns + probes->count * SECOND_NS / rate + LINGER_NS;

    while (probes->sent < probes->count || probes_in_flight(probes)) {
        const int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
        const uint32_t due = due_by(now_ns - begun_ns, rate);
        const struct timespec next =
            time_of(begun_ns + ((now_ns - begun_ns) / quantum_ns + 1) * quantum_ns);

        if (now_ns > end_ns)
            break;
        /* Replies are taken batch by batch: when late by many they would not fit the buffer. */
        do
            receive(receiver, probes, probes_in_flight(probes));
        while (probes->sent < due && transmit(transmitter, probes, due - probes->sent));
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
    return usage_now();
}

static void report(const struct probes *probes, const struct receiver *receiver,
                   struct usage begun, struct usage ended)
{
    printf("{\"sent\": %u, \"matched\": %u, \"mismatched\": %u, \"rx_dropped\": %u, "
           "\"seconds\": %.6f, \"cpu_seconds\": %.6f, \"user_seconds\": %.6f, "
           "\"switches\": %ld, \"rtt_p50_us\": %.1f, \"rtt_p99_us\": %.1f}\n",
           probes->sent, probes->matched, probes->mismatched, receive_dropped(receiver),
           ended.seconds - begun.seconds, ended.user - begun.user + ended.system - begun.system,
           ended.user - begun.user, ended.switches - begun.switches, probes_rtt_us(probes, 0.5),
           probes_rtt_us(probes, 0.99));
}

_Noreturn static void refuse(const char *what, const char *value)
{
    fprintf(stderr, "echo: %s: %s\n", what, value);
    exit(2);
}

static unsigned choose(const char *what, const char *value, const char *const *names)
{
    for (unsigned i = 0; names[i]; i++)
        if (!strcmp(names[i], value))
            return i;
    refuse(what, value);
}

static uint32_t address(const char *value)
{
    struct in_addr parsed;

    if (inet_pton(AF_INET, value, &parsed) != 1)
        refuse("no address", value);
    return parsed.s_addr;
}

static void link_address(const char *value, uint8_t *into)
{
    struct ether_addr parsed;

    if (!ether_aton_r(value, &parsed))
        refuse("no link address", value);
    memcpy(into, &parsed, sizeof parsed);
}

static unsigned number(const char *value)
{
    char *end;
    unsigned long parsed = strtoul(value, &end, 10);

    if (*end || end == value || parsed > UINT32_MAX)
        refuse("no number", value);
    return (unsigned)parsed;
}

static const struct option long_options[] = {
    {"backend", required_argument, NULL, 'k'},   {"receive", required_argument, NULL, 'r'},
    {"batch", required_argument, NULL, 'b'},     {"count", required_argument, NULL, 'c'},
    {"first", required_argument, NULL, 'f'},     {"targets", required_argument, NULL, 't'},
    {"source", required_argument, NULL, 's'},    {"source-link", required_argument, NULL, 'L'},
    {"gateway-link", required_argument, NULL, 'G'},
    {"ifindex", required_argument, NULL, 'i'},   {"size", required_argument, NULL, 'z'},
    {"window", required_argument, NULL, 'w'},    {"buffer-bytes", required_argument, NULL, 'u'},
    {"rate", required_argument, NULL, 'R'},      {"quantum-us", required_argument, NULL, 'q'},
    {"block-bytes", required_argument, NULL, 'B'},
    {"blocks", required_argument, NULL, 'n'},    {"frame-bytes", required_argument, NULL, 'F'},
    {"retire-ms", required_argument, NULL, 'm'}, {NULL, 0, NULL, 0},
};

static const char *const backends[] = {"raw", "hdrincl", "packet", NULL};
static const char *const receptions[] = {"socket", "frames", "blocks", NULL};
static const char *const modes[] = {"sweep", "paced", NULL};

static void take(struct options *options, int letter, const char *value)
{
    switch (letter) {
    case 'k': options->backend = choose("no back end", value, backends); break;
    case 'r': options->reception = choose("no reception", value, receptions); break;
    case 'b': options->batch = number(value); break;
    case 'c': options->count = number(value); break;
    case 'f': options->first = ntohl(address(value)); break;
    case 't': options->targets = number(value); break;
    case 's': options->source = address(value); break;
    case 'L': link_address(value, options->link.source); break;
    case 'G': link_address(value, options->link.gateway); break;
    case 'i': options->ring.ifindex = (int)number(value); break;
    case 'z': options->data_bytes = number(value); break;
    case 'w': options->window = number(value); break;
    case 'u': options->buffer_bytes = (int)number(value); break;
    case 'R': options->rate = number(value); break;
    case 'q': options->quantum_ns = number(value) * INT64_C(1000); break;
    case 'B': options->ring.block_bytes = number(value); break;
    case 'n': options->ring.blocks = number(value); break;
    case 'F': options->ring.frame_bytes = number(value); break;
    case 'm': options->ring.retire_ms = number(value); break;
    default: exit(2);
    }
}

static struct options parse(int argc, char **argv)
{
    struct options options = {
        .backend = BACKEND_HDRINCL, .batch = 16, .data_bytes = 56, .window = 128, .rate = 50000,
        .ring = {.block_bytes = 1 << 16, .blocks = 16, .frame_bytes = 256, .retire_ms = 1},
    };
    int letter;

    while ((letter = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        take(&options, letter, optarg);
    if (optind != argc - 1)
        refuse("one mode", "sweep or paced");
    options.paced = choose("no mode", argv[optind], modes) == 1;
    if (!options.count || !options.targets || !options.first || !options.batch || !options.rate)
        refuse("needs", "--count, --first, --targets");
    if (options.data_bytes < DATA_BYTES_MIN || options.data_bytes > DATA_BYTES_MAX)
        refuse("size", "16 to 1472");
    return options;
}

int main(int argc, char **argv)
{
    const struct options options = parse(argc, argv);
    static struct template template;
    struct transmitter transmitter;
    struct receiver receiver;
    struct probes probes;
    struct usage begun, ended;

    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    probes_open(&probes, options.count, options.first, options.targets);
    template_make(&template, &probes, options.source, &options.link, options.data_bytes);
    transmit_open(&transmitter, options.backend, options.ring.ifindex, options.batch, &template);
    if (options.reception == RECEPTION_SOCKET)
        receive_open_socket(&receiver, options.buffer_bytes);
    else
        receive_open_ring(&receiver, options.reception, &options.ring, probes.ident);
    begun = usage_now();
    if (!options.paced)
        ended = sweep(&transmitter, &receiver, &probes, options.window);
    else if (options.quantum_ns)
        ended = pace_by_quantum(&transmitter, &receiver, &probes, options.rate,
                                options.quantum_ns);
    else
        ended = pace_by_packet(&transmitter, &receiver, &probes, options.rate);
    report(&probes, &receiver, begun, ended);
    return 0;
}
