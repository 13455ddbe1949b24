#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"

/* TPACKET_V2: a frame is seen at once. A block of V3 is handed over by a timer of at least a
 * millisecond, which is longer than many a delay that is to be played. */
enum {
    RING_FRAME_BYTES = 2048,
    RING_BLOCK_BYTES = 1 << 17,
    RING_BLOCK_FRAMES = RING_BLOCK_BYTES / RING_FRAME_BYTES,
    SEND_TRIES = 64,
};

static bool fail(const char *operation) {
    perror(operation);
    return false;
}

static bool set_option(int socket, int level, int name, const void *value, socklen_t bytes) {
    return setsockopt(socket, level, name, value, bytes) == 0 || fail("netsim: set socket option");
}

static bool bind_to(int socket, unsigned index, uint16_t protocol) {
    struct sockaddr_ll name = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(protocol),
        .sll_ifindex = (int)index,
    };
    return bind(socket, (struct sockaddr *)&name, sizeof name) == 0 || fail("netsim: bind");
}

static bool open_receiver(struct link *link, unsigned index, uint32_t ring_frames) {
    const int on = 1, version = TPACKET_V2;
    uint32_t blocks = (ring_frames + RING_BLOCK_FRAMES - 1) / RING_BLOCK_FRAMES;
    struct tpacket_req request = {
        .tp_block_size = RING_BLOCK_BYTES,
        .tp_block_nr = blocks,
        .tp_frame_size = RING_FRAME_BYTES,
        .tp_frame_nr = blocks * RING_BLOCK_FRAMES,
    };
    link->ring_frames = request.tp_frame_nr;
    link->receiver = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (link->receiver < 0)
        return fail("netsim: open packet socket");
    if (!set_option(link->receiver, SOL_PACKET, PACKET_VERSION, &version, sizeof version) ||
        !set_option(link->receiver, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) ||
        !set_option(link->receiver, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) ||
        !set_option(link->receiver, SOL_PACKET, PACKET_RX_RING, &request, sizeof request))
        return false;
    link->ring = mmap(NULL, (size_t)blocks * RING_BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                      link->receiver, 0);
    if (link->ring == MAP_FAILED)
        return fail("netsim: map receive ring");
    return bind_to(link->receiver, index, 0x0003 /* ETH_P_ALL */);
}

static bool open_sender(struct link *link, unsigned index) {
    const int on = 1, bytes = 1 << 22;
    link->sender = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* 0: receives nothing */
    if (link->sender < 0)
        return fail("netsim: open packet socket");
    return set_option(link->sender, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on) &&
           set_option(link->sender, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) &&
           bind_to(link->sender, index, 0);
}

bool link_open(struct link *link, const char *interface, uint32_t ring_frames) {
    *link = (struct link){.receiver = -1, .sender = -1};
    unsigned index = if_nametoindex(interface);
    if (index == 0)
        return fail("netsim: find interface");
    for (int i = 0; i < BATCH_FRAMES; i++) {
        link->vectors[i].iov_base = link->frames[i];
        link->headers[i].msg_hdr = (struct msghdr){.msg_iov = &link->vectors[i], .msg_iovlen = 1};
    }
    return open_sender(link, index) && open_receiver(link, index, ring_frames);
}

void link_close(struct link *link) {
    munmap(link->ring, (size_t)link->ring_frames * RING_FRAME_BYTES);
    close(link->receiver);
    close(link->sender);
}

static struct tpacket2_hdr *ring_header(const struct link *link) {
    return (struct tpacket2_hdr *)(void *)(link->ring + (size_t)link->cursor * RING_FRAME_BYTES);
}

bool link_peek(const struct link *link, struct frame *frame) {
    const struct tpacket2_hdr *header = ring_header(link);
    if (!(__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
        return false;
    frame->bytes = (const uint8_t *)header + header->tp_mac;
    frame->size = header->tp_snaplen;
    frame->arrival_ns = (int64_t)header->tp_sec * NS_PER_S + header->tp_nsec;
    return true;
}

void link_consume(struct link *link) {
    __atomic_store_n(&ring_header(link)->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    link->cursor = link->cursor + 1 == link->ring_frames ? 0 : link->cursor + 1;
}

uint8_t *link_next(struct link *link) { return link->frames[link->batched]; }

void link_push(struct link *link, size_t size, uint32_t event) {
    link->vectors[link->batched].iov_len = size;
    link->events[link->batched++] = event;
}

/* The kernel's stack for the receiver runs within the call, so its packets leave evenly. */
static void stamp(struct link *link, unsigned first, unsigned n, int64_t from_ns, int64_t to_ns) {
    for (unsigned i = 0; i < n; i++) {
        link->handed_ns[first + i] = from_ns + (to_ns - from_ns) * i / n;
        link->took_ns[first + i] = to_ns - from_ns;
    }
}

unsigned link_flush(struct link *link) {
    unsigned done = 0, tries = 0;
    while (done < link->batched) {
        int64_t before_ns = realtime_ns();
        int sent = sendmmsg(link->sender, link->headers + done, link->batched - done, MSG_DONTWAIT);
        if (sent > 0) {
            stamp(link, done, (unsigned)sent, before_ns, realtime_ns());
            done += (unsigned)sent;
            tries = 0;
        } else if ((errno == ENOBUFS || errno == EAGAIN) && ++tries < SEND_TRIES) {
            sched_yield(); /* the receiver's backlog is full: let it be worked off */
        } else {
            link->took_ns[done] = 0;
            link->handed_ns[done++] = REFUSED_NS;
        }
    }
    link->batched = 0;
    return done;
}

uint64_t link_drops(struct link *link) {
    struct tpacket_stats stats = {0};
    socklen_t bytes = sizeof stats;
    if (getsockopt(link->receiver, SOL_PACKET, PACKET_STATISTICS, &stats, &bytes) != 0)
        perror("netsim: read ring statistics");
    return stats.tp_drops; /* reading resets it: to be called once */
}
