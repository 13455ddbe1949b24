/* Stamps of the echo requests and replies of some targets, as they pass an interface.
 *
 * usage: capture IFINDEX NETWORK BITS
 *
 * Says `ready` and watches until standard input ends; then prints a line per packet in order,
 * `request|reply TARGET IDENT SEQUENCE NS`, and last `dropped N`. The kernel hands over a block of
 * stamped packets ten times a second, so that who is measured is not disturbed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "system.h"

enum {
    BLOCK_BYTES = 1 << 18,
    BLOCKS = 16,
    FRAME_BYTES = 256,
    RETIRE_MS = 100,
    KEPT_BYTES = IP_MAXPACKET,
};

struct packet {
    int64_t ns;
    uint32_t target;
    uint16_t ident;
    uint16_t sequence;
    bool outgoing;
};

struct capture {
    int fd;
    uint8_t *ring;
    unsigned next;
    struct packet *packets;
    size_t count;
    size_t room;
};

static void filter_network(int fd, uint32_t network, uint32_t mask)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, SKF_AD_OFF + SKF_AD_PROTOCOL),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 0, 9),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, offsetof(struct iphdr, protocol)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_ICMP, 0, 7),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct iphdr, daddr)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, network, 3, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct iphdr, saddr)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, network, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, KEPT_BYTES),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};

    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        fail("filter");
}

static void request_ring(int fd)
{
    const int version = TPACKET_V3;
    const struct tpacket_req3 request = {
        .tp_block_size = BLOCK_BYTES,
        .tp_block_nr = BLOCKS,
        .tp_frame_size = FRAME_BYTES,
        .tp_frame_nr = BLOCK_BYTES / FRAME_BYTES * BLOCKS,
        .tp_retire_blk_tov = RETIRE_MS,
    };

    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request))
        fail("ring");
}

static struct capture capture_open(int ifindex, uint32_t network, uint32_t mask)
{
    const struct sockaddr_ll link = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = ifindex};
    const int yes = 1;
    /* Protocol 0 until the filter and the ring stand. */
    struct capture capture = {.fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};

    if (capture.fd < 0)
        fail("packet socket");
    /* Without it packets would be stamped here and not where they arrive. */
    if (setsockopt(capture.fd, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes))
        fail("stamps");
    filter_network(capture.fd, network, mask);
    request_ring(capture.fd);
    capture.ring = mmap(NULL, (size_t)BLOCK_BYTES * BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED,
                        capture.fd, 0);
    if (capture.ring == MAP_FAILED)
        fail("map ring");
    if (bind(capture.fd, (const struct sockaddr *)&link, sizeof link))
        fail("bind");
    return capture;
}

static void keep(struct capture *capture, struct packet packet)
{
    if (capture->count == capture->room) {
        capture->room = capture->room ? 2 * capture->room : 1 << 14;
        capture->packets =
            realloc(capture->packets, capture->room * sizeof *capture->packets);
        if (!capture->packets)
            fail("packets");
    }
    capture->packets[capture->count++] = packet;
}

static void take_packet(struct capture *capture, const struct tpacket3_hdr *header)
{
    const struct sockaddr_ll *link = (const void *)((const uint8_t *)header +
                                                    TPACKET_ALIGN(sizeof(struct tpacket3_hdr)));
    const bool outgoing = link->sll_pkttype == PACKET_OUTGOING;
    const uint8_t *datagram = (const uint8_t *)header + header->tp_net;
    struct iphdr ip;
    struct icmphdr icmp;

    if (header->tp_snaplen < sizeof ip + sizeof icmp)
        return;
    memcpy(&ip, datagram, sizeof ip);
    if (header->tp_snaplen < ip.ihl * 4U + sizeof icmp)
        return;
    memcpy(&icmp, datagram + ip.ihl * 4U, sizeof icmp);
    if (icmp.type != (outgoing ? ICMP_ECHO : ICMP_ECHOREPLY))
        return;
    keep(capture, (struct packet){
                      .ns = header->tp_sec * SECOND_NS + header->tp_nsec,
                      .target = outgoing ? ip.daddr : ip.saddr,
                      .ident = ntohs(icmp.un.echo.id),
                      .sequence = ntohs(icmp.un.echo.sequence),
                      .outgoing = outgoing,
                  });
}

static void take_blocks(struct capture *capture)
{
    for (;;) {
        struct tpacket_block_desc *block =
            (void *)(capture->ring + (size_t)capture->next * BLOCK_BYTES);
        const uint8_t *at = (const uint8_t *)block + block->hdr.bh1.offset_to_first_pkt;

        if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            return;
        for (unsigned i = 0; i < block->hdr.bh1.num_pkts; i++) {
            const struct tpacket3_hdr *header = (const void *)at;

            take_packet(capture, header);
            at += header->tp_next_offset;
        }
        __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        capture->next = (capture->next + 1) % BLOCKS;
    }
}

static void watch(struct capture *capture)
{
    struct pollfd fds[] = {{.fd = capture->fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};

    while (!fds[1].revents) {
        if (poll(fds, 2, -1) < 0)
            fail("poll");
        take_blocks(capture);
    }
    /* The block that is being filled comes when its time is over. */
    usleep(3 * RETIRE_MS * 1000);
    take_blocks(capture);
}

static void report(const struct capture *capture)
{
    struct tpacket_stats_v3 stats;
    socklen_t size = sizeof stats;

    for (const struct packet *packet = capture->packets;
         packet < capture->packets + capture->count; packet++) {
        char target[INET_ADDRSTRLEN];

        inet_ntop(AF_INET, &packet->target, target, sizeof target);
        printf("%s %s %u %u %lld\n", packet->outgoing ? "request" : "reply", target,
               packet->ident, packet->sequence, (long long)packet->ns);
    }
    if (getsockopt(capture->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size))
        fail("statistics");
    printf("dropped %u\n", stats.tp_drops);
}

int main(int argc, char **argv)
{
    struct in_addr network;
    struct capture capture;
    int bits;

    if (argc != 4 || inet_pton(AF_INET, argv[2], &network) != 1 ||
        (bits = atoi(argv[3])) < 1 || bits > 32) {
        fputs("usage: capture IFINDEX NETWORK BITS\n", stderr);
        return 2;
    }
    capture = capture_open(atoi(argv[1]), ntohl(network.s_addr), UINT32_MAX << (32 - bits));
    puts("ready");
    fflush(stdout);
    watch(&capture);
    report(&capture);
    return 0;
}
