/* flood INTERFACE RATE RECIPES
 *
 * Sends the frames that a file of recipes says, in turn, RATE a second, until standard input ends.
 * A frame may quote a probe: the last ones that came in by the interface, changed as its recipe
 * says, with a right ICMP checksum. So whoever sent the probe gets what is nearly an answer to it
 * while it waits for one.
 */
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    FRAME_BYTES = 512,
    PROBE_BYTES = 128,
    PROBES = 64, /* of a protocol that are remembered */
    FLIPS = 3,
    BATCH = 64,
    REST_US = 500,
};

#define NS_PER_S INT64_C(1000000000)
#define CATCH_UP_NS INT64_C(4000000) /* what was missed earlier no queue would hold */

struct recipe { /* support/flood/__init__.py packs it */
    uint16_t size;     /* of the frame */
    uint16_t message;  /* where its ICMP message begins */
    uint16_t quote;    /* where a probe is quoted, 0: nowhere */
    uint16_t from;     /* which byte of the probe on */
    uint16_t quoted;   /* bytes of it */
    uint16_t protocol; /* of the probes to quote */
    uint32_t sum;      /* of the pseudo header, if the checksum has one */
    struct {
        uint16_t at; /* byte of the quote */
        uint16_t mask;
    } flips[FLIPS];
    uint8_t frame[FRAME_BYTES];
};

struct seen {
    uint32_t count;
    uint8_t probes[PROBES][PROBE_BYTES];
};

struct flood {
    int fd;
    struct recipe *recipes;
    size_t recipe_count;
    uint64_t next; /* frame, of all */
    struct seen seen[256]; /* by protocol */
    uint8_t frames[BATCH][FRAME_BYTES];
    struct iovec vectors[BATCH];
    struct mmsghdr messages[BATCH];
};

static _Noreturn void fail(const char *what) {
    perror(what);
    exit(EXIT_FAILURE);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* Open a socket that sends, and hears what comes in of the family that the recipes are of. */
static void open_socket(struct flood *flood, const char *interface) {
    struct sockaddr_ll link = {.sll_family = AF_PACKET,
                               .sll_ifindex = (int)if_nametoindex(interface)};
    const int yes = 1;
    memcpy(&link.sll_protocol, flood->recipes[0].frame + 2 * ETH_ALEN, sizeof link.sll_protocol);
    flood->fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (flood->fd < 0 || link.sll_ifindex == 0 ||
        setsockopt(flood->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof yes) ||
        bind(flood->fd, (const struct sockaddr *)&link, sizeof link))
        fail(interface);
}

static void read_recipes(struct flood *flood, const char *path) {
    FILE *file = fopen(path, "rb");
    long size;
    if (file == NULL || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0)
        fail(path);
    rewind(file);
    flood->recipe_count = (size_t)size / sizeof *flood->recipes;
    flood->recipes = calloc(flood->recipe_count, sizeof *flood->recipes);
    if (flood->recipe_count == 0 || flood->recipes == NULL ||
        fread(flood->recipes, sizeof *flood->recipes, flood->recipe_count, file) !=
            flood->recipe_count)
        fail(path);
    fclose(file);
}

/* Remember what has come in since the last look. */
static void look(struct flood *flood) {
    uint8_t frame[ETH_HLEN + PROBE_BYTES];
    ssize_t size;
    while ((size = recv(flood->fd, frame, sizeof frame, 0)) > ETH_HLEN) {
        const uint8_t *packet = frame + ETH_HLEN;
        struct seen *seen = &flood->seen[packet[0] >> 4 == 4 ? packet[9] : packet[6]];
        uint8_t *probe = seen->probes[seen->count++ % PROBES];
        memset(probe, 0, PROBE_BYTES);
        memcpy(probe, packet, (size_t)size - ETH_HLEN);
    }
}

/* RFC 1071 over an even number of bytes. */
static uint16_t checksum(const uint8_t *bytes, size_t size, uint32_t sum) {
    for (size_t i = 0; i < size; i += 2)
        sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)~sum;
}

static void quote(const struct flood *flood, const struct recipe *recipe, uint8_t *frame) {
    const struct seen *seen = &flood->seen[recipe->protocol];
    uint32_t kept = seen->count < PROBES ? seen->count : PROBES;
    uint16_t sum;
    if (recipe->quote == 0 || kept == 0)
        return;
    memcpy(frame + recipe->quote,
           seen->probes[flood->next / flood->recipe_count % kept] + recipe->from, recipe->quoted);
    for (int i = 0; i < FLIPS; i++)
        frame[recipe->quote + recipe->flips[i].at] ^= (uint8_t)recipe->flips[i].mask;
    memset(frame + recipe->message + 2, 0, 2);
    sum = checksum(frame + recipe->message, recipe->size - recipe->message, recipe->sum);
    frame[recipe->message + 2] = (uint8_t)(sum >> 8);
    frame[recipe->message + 3] = (uint8_t)sum;
}

static void send_batch(struct flood *flood, unsigned count) {
    int taken;
    for (unsigned i = 0; i < count; i++, flood->next++) {
        const struct recipe *recipe = &flood->recipes[flood->next % flood->recipe_count];
        memcpy(flood->frames[i], recipe->frame, recipe->size);
        quote(flood, recipe, flood->frames[i]);
        flood->vectors[i] = (struct iovec){flood->frames[i], recipe->size};
        flood->messages[i].msg_hdr = (struct msghdr){.msg_iov = &flood->vectors[i],
                                                     .msg_iovlen = 1};
    }
    taken = sendmmsg(flood->fd, flood->messages, count, 0);
    if (taken < 0 && errno != ENOBUFS && errno != EAGAIN)
        fail("sendmmsg");
}

/* Whether standard input has ended; waits a little if it has not. */
static bool is_over(void) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    const struct timespec rest = {.tv_nsec = REST_US * 1000};
    return ppoll(&input, 1, &rest, NULL) > 0;
}

/* Send what is due until there is nobody to send for. */
static void run(struct flood *flood, double rate) {
    const double gap_ns = NS_PER_S / rate;
    double due_ns = (double)now_ns();
    while (!is_over()) {
        double late_ns = (double)now_ns() - due_ns;
        if (late_ns > CATCH_UP_NS) {
            due_ns += late_ns - CATCH_UP_NS;
            late_ns = CATCH_UP_NS;
        }
        look(flood);
        for (unsigned count = (unsigned)(late_ns / gap_ns); count != 0;) {
            unsigned batch = count < BATCH ? count : BATCH;
            send_batch(flood, batch);
            due_ns += batch * gap_ns;
            count -= batch;
        }
    }
}

int main(int argc, char **argv) {
    static struct flood flood;
    double rate;
    if (argc != 4 || (rate = strtod(argv[2], NULL)) <= 0) {
        fprintf(stderr, "usage: %s INTERFACE RATE RECIPES\n", argv[0]);
        return 2;
    }
    read_recipes(&flood, argv[3]);
    open_socket(&flood, argv[1]);
    run(&flood, rate);
    return EXIT_SUCCESS;
}
