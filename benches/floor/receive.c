#define _GNU_SOURCE
#include "receive.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "system.h"

enum { INBOX = 256, DATAGRAM_BYTES = 256, CONTROL_BYTES = 128 };

struct inbox {
    struct mmsghdr messages[INBOX];
    struct iovec vectors[INBOX];
    uint8_t datagrams[INBOX][DATAGRAM_BYTES];
    _Alignas(struct cmsghdr) uint8_t controls[INBOX][CONTROL_BYTES];
    unsigned dropped;
};

static struct inbox *make_inbox(void)
{
    struct inbox *inbox = calloc(1, sizeof *inbox);

    if (!inbox)
        fail("inbox");
    for (unsigned i = 0; i < INBOX; i++) {
        struct msghdr *message = &inbox->messages[i].msg_hdr;

        inbox->vectors[i] =
            (struct iovec){.iov_base = inbox->datagrams[i], .iov_len = DATAGRAM_BYTES};
        message->msg_iov = &inbox->vectors[i];
        message->msg_iovlen = 1;
        message->msg_control = inbox->controls[i];
        message->msg_controllen = CONTROL_BYTES;
    }
    return inbox;
}

void receive_open_socket(struct receiver *receiver, int buffer_bytes)
{
    const struct icmp_filter blocked = {
        .data = ~(1U << ICMP_ECHOREPLY | 1U << ICMP_DEST_UNREACH | 1U << ICMP_TIME_EXCEEDED |
                  1U << ICMP_PARAMETERPROB)};
    const int yes = 1;
    int fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_ICMP);

    if (fd < 0 || setsockopt(fd, SOL_RAW, ICMP_FILTER, &blocked, sizeof blocked) ||
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes) ||
        setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &yes, sizeof yes))
        fail("receiving raw socket");
    if (buffer_bytes &&
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes))
        fail("receive buffer");
    *receiver =
        (struct receiver){.fd = fd, .reception = RECEPTION_SOCKET, .inbox = make_inbox()};
}

/* Let only answers to this ident in, and ICMP errors, and no fragment's tail. */
static void filter_answers(int fd, uint16_t ident)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, offsetof(struct iphdr, protocol)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_ICMP, 0, 10),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, offsetof(struct iphdr, frag_off)),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, IP_OFFMASK, 8, 0),
        BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0), /* the IP header's length */
        BPF_STMT(BPF_LD | BPF_B | BPF_IND, offsetof(struct icmphdr, type)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ICMP_ECHOREPLY, 0, 2),
        BPF_STMT(BPF_LD | BPF_H | BPF_IND, offsetof(struct icmphdr, un.echo.id)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ntohs(ident), 2, 3),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ICMP_DEST_UNREACH, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ICMP_TIME_EXCEEDED, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, DATAGRAM_BYTES),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};

    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        fail("filter");
}

static void request_ring(int fd, enum reception reception, const struct ring_shape *shape)
{
    const int version = reception == RECEPTION_FRAMES ? TPACKET_V2 : TPACKET_V3;
    const int yes = 1;
    const struct tpacket_req3 request = {
        .tp_block_size = shape->block_bytes,
        .tp_block_nr = shape->blocks,
        .tp_frame_size = shape->frame_bytes,
        .tp_frame_nr = shape->block_bytes / shape->frame_bytes * shape->blocks,
        .tp_retire_blk_tov = shape->retire_ms,
    };
    /* TPACKET_V2's request is how TPACKET_V3's begins. */
    const socklen_t size =
        reception == RECEPTION_FRAMES ? sizeof(struct tpacket_req) : sizeof request;

    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) ||
        setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes) ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, size))
        fail("receive ring");
}

void receive_open_ring(struct receiver *receiver, enum reception reception,
                       const struct ring_shape *shape, uint16_t ident)
{
    const struct sockaddr_ll link = {.sll_family = AF_PACKET,
                                     .sll_protocol = htons(ETH_P_IP),
                                     .sll_ifindex = shape->ifindex};
    const size_t size = (size_t)shape->block_bytes * shape->blocks;
    /* Nothing is queued before the ring and its filter stand and the socket is bound. */
    int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fail("receiving packet socket");
    filter_answers(fd, ident);
    request_ring(fd, reception, shape);
    *receiver = (struct receiver){.fd = fd, .reception = reception, .shape = *shape};
    receiver->ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (receiver->ring == MAP_FAILED)
        fail("map ring");
    if (bind(fd, (const struct sockaddr *)&link, sizeof link))
        fail("bind ring");
}

static unsigned receive_socket(struct receiver *receiver, struct probes *probes, unsigned most)
{
    struct inbox *inbox = receiver->inbox;
    int count;

    if (!most)
        return 0;
    count = recvmmsg(receiver->fd, inbox->messages, most < INBOX ? most : INBOX, 0, NULL);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail("recvmmsg");
        return 0;
    }
    for (int i = 0; i < count; i++) {
        struct msghdr *message = &inbox->messages[i].msg_hdr;
        const int64_t received_ns = read_controls(message, &inbox->dropped);

        probes_match(probes, inbox->datagrams[i], inbox->messages[i].msg_len, received_ns);
        message->msg_controllen = CONTROL_BYTES;
    }
    return (unsigned)count;
}

static unsigned receive_frames(struct receiver *receiver, struct probes *probes)
{
    const unsigned per_block = receiver->shape.block_bytes / receiver->shape.frame_bytes;
    const unsigned frames = per_block * receiver->shape.blocks;
    unsigned count = 0;

    for (;;) {
        /* Blocks hold whole frames, so the end of one may be unused. */
        struct tpacket2_hdr *header =
            (void *)(receiver->ring +
                     (size_t)(receiver->next / per_block) * receiver->shape.block_bytes +
                     receiver->next % per_block * receiver->shape.frame_bytes);

        if (!(__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            return count;
        probes_match(probes, (uint8_t *)header + header->tp_net, header->tp_snaplen,
                     header->tp_sec * SECOND_NS + header->tp_nsec);
        __atomic_store_n(&header->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        receiver->next = receiver->next + 1 == frames ? 0 : receiver->next + 1;
        count++;
    }
}

static unsigned receive_blocks(struct receiver *receiver, struct probes *probes)
{
    unsigned count = 0;

    for (;;) {
        struct tpacket_block_desc *block =
            (void *)(receiver->ring + (size_t)receiver->next * receiver->shape.block_bytes);
        const uint8_t *at = (uint8_t *)block + block->hdr.bh1.offset_to_first_pkt;

        if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            return count;
        for (unsigned i = 0; i < block->hdr.bh1.num_pkts; i++) {
            const struct tpacket3_hdr *header = (const void *)at;

            probes_match(probes, at + header->tp_net, header->tp_snaplen,
                         header->tp_sec * SECOND_NS + header->tp_nsec);
            at += header->tp_next_offset;
        }
        count += block->hdr.bh1.num_pkts;
        __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        receiver->next = receiver->next + 1 == receiver->shape.blocks ? 0 : receiver->next + 1;
    }
}

unsigned receive(struct receiver *receiver, struct probes *probes, unsigned most)
{
    switch (receiver->reception) {
    case RECEPTION_FRAMES:
        return receive_frames(receiver, probes);
    case RECEPTION_BLOCKS:
        return receive_blocks(receiver, probes);
    default:
        return receive_socket(receiver, probes, most);
    }
}

unsigned receive_dropped(const struct receiver *receiver)
{
    union tpacket_stats_u stats = {0};
    socklen_t size =
        receiver->reception == RECEPTION_FRAMES ? sizeof stats.stats1 : sizeof stats.stats3;

    if (receiver->reception == RECEPTION_SOCKET)
        return receiver->inbox->dropped;
    if (getsockopt(receiver->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size))
        fail("ring statistics");
    return stats.stats1.tp_drops;
}
