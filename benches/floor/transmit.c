#define _GNU_SOURCE
#include "transmit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/icmp.h>
#include <linux/if_packet.h>
#include <stdlib.h>
#include <string.h>

#include "system.h"

static int open_packet(int ifindex)
{
    /* Protocol 0: what arrives at the interface is not queued here. */
    const struct sockaddr_ll link = {.sll_family = AF_PACKET, .sll_ifindex = ifindex};
    const int yes = 1;
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof yes) ||
        bind(fd, (const struct sockaddr *)&link, sizeof link))
        fail("packet socket");
    return fd;
}

static int open_backend(enum backend backend, int ifindex)
{
    const struct icmp_filter nothing = {.data = UINT32_MAX};
    int fd;

    if (backend == BACKEND_PACKET)
        return open_packet(ifindex);
    fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC,
                backend == BACKEND_RAW ? IPPROTO_ICMP : IPPROTO_RAW);
    /* Replies are another socket's. (One of IPPROTO_RAW never gets any.) */
    if (fd < 0 || (backend == BACKEND_RAW &&
                   setsockopt(fd, SOL_RAW, ICMP_FILTER, &nothing, sizeof nothing)))
        fail("raw socket");
    return fd;
}

static const size_t offsets[] = {
    [BACKEND_RAW] = ICMP_OFFSET, [BACKEND_HDRINCL] = IP_OFFSET, [BACKEND_PACKET] = LINK_OFFSET};

void transmit_open(struct transmitter *transmitter, enum backend backend, int ifindex,
                   unsigned batch, const struct template *template)
{
    const size_t stride = (template->size + 63) / 64 * 64;

    transmitter->fd = open_backend(backend, ifindex);
    transmitter->batch = batch;
    transmitter->template = *template;
    transmitter->packets = calloc(batch, stride);
    transmitter->targets = calloc(batch, sizeof *transmitter->targets);
    transmitter->vectors = calloc(batch, sizeof *transmitter->vectors);
    transmitter->messages = calloc(batch, sizeof *transmitter->messages);
    if (!transmitter->packets || !transmitter->targets || !transmitter->vectors ||
        !transmitter->messages)
        fail("batch");
    for (unsigned i = 0; i < batch; i++) {
        uint8_t *packet = transmitter->packets + i * stride;
        struct msghdr *message = &transmitter->messages[i].msg_hdr;

        memcpy(packet, template->bytes, template->size);
        transmitter->targets[i].sin_family = AF_INET;
        transmitter->vectors[i].iov_base = packet + offsets[backend];
        transmitter->vectors[i].iov_len = template->size - offsets[backend];
        message->msg_iov = &transmitter->vectors[i];
        message->msg_iovlen = 1;
        if (backend != BACKEND_PACKET) {
            message->msg_name = &transmitter->targets[i];
            message->msg_namelen = sizeof transmitter->targets[i];
        }
    }
}

/* Spread the stamps of a batch over the call that sent it: the kernel sent one after another. */
static void stamp(struct probes *probes, unsigned taken, int64_t begun_ns, int64_t ended_ns)
{
    const int64_t gap_ns = taken ? (ended_ns - begun_ns) / taken : 0;

    for (unsigned i = 0; i < taken; i++)
        probes->all[probes->sent + i].sent_ns = begun_ns + i * gap_ns;
}

unsigned transmit(struct transmitter *transmitter, struct probes *probes, uint32_t most)
{
    const size_t stride = (transmitter->template.size + 63) / 64 * 64;
    unsigned count = transmitter->batch;
    int64_t begun_ns;
    int taken;

    if (count > most)
        count = most;
    if (count > probes->count - probes->sent)
        count = probes->count - probes->sent;
    for (unsigned i = 0; i < count; i++) {
        packet_fill(transmitter->packets + i * stride, &transmitter->template, probes,
                    probes->sent + i);
        transmitter->targets[i].sin_addr.s_addr = probe_target(probes, probes->sent + i);
    }
    begun_ns = clock_ns(CLOCK_REALTIME);
    taken = sendmmsg(transmitter->fd, transmitter->messages, count, 0);
    if (taken < 0) {
        if (errno != ENOBUFS && errno != EAGAIN)
            fail("sendmmsg");
        return 0;
    }
    stamp(probes, (unsigned)taken, begun_ns, clock_ns(CLOCK_REALTIME));
    probes->sent += (unsigned)taken;
    return (unsigned)taken;
}
