#define _GNU_SOURCE
#include "exchange.h"

#include <errno.h>
#include <linux/icmp.h>
#include <string.h>

#include "system.h"

void sender_open(struct sender *sender, unsigned batch)
{
    *sender = (struct sender){.batch = batch};
    /* No datagram is ever received by a socket of IPPROTO_RAW. */
    sender->fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
    if (sender->fd < 0)
        fail("sending raw socket");
    for (unsigned i = 0; i < batch; i++) {
        struct msghdr *message = &sender->messages[i].msg_hdr;

        sender->targets[i].sin_family = AF_INET;
        sender->vectors[i] =
            (struct iovec){.iov_base = sender->packets[i], .iov_len = TRACE_BYTES};
        message->msg_name = &sender->targets[i];
        message->msg_namelen = sizeof sender->targets[i];
        message->msg_iov = &sender->vectors[i];
        message->msg_iovlen = 1;
    }
}

void inbox_open(struct inbox *inbox, int buffer_bytes)
{
    const struct icmp_filter blocked = {
        .data = ~(1U << ICMP_ECHOREPLY | 1U << ICMP_DEST_UNREACH | 1U << ICMP_TIME_EXCEEDED)};
    const int yes = 1;

    *inbox = (struct inbox){0};
    inbox->fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_ICMP);
    if (inbox->fd < 0 || setsockopt(inbox->fd, SOL_RAW, ICMP_FILTER, &blocked, sizeof blocked) ||
        setsockopt(inbox->fd, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes) ||
        setsockopt(inbox->fd, SOL_SOCKET, SO_RXQ_OVFL, &yes, sizeof yes) ||
        setsockopt(inbox->fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes))
        fail("receiving raw socket");
    for (unsigned i = 0; i < INBOX; i++) {
        struct msghdr *message = &inbox->messages[i].msg_hdr;

        inbox->vectors[i] =
            (struct iovec){.iov_base = inbox->datagrams[i], .iov_len = DATAGRAM_BYTES};
        message->msg_iov = &inbox->vectors[i];
        message->msg_iovlen = 1;
        message->msg_control = inbox->controls[i];
        message->msg_controllen = CONTROL_BYTES;
    }
}

/* Send one behind the other. In these networks nothing refuses a packet. */
static void send_all(struct sender *sender, unsigned count)
{
    for (unsigned done = 0; done < count;) {
        const int taken = sendmmsg(sender->fd, sender->messages + done, count - done, 0);

        if (taken < 0 && errno != EINTR)
            fail("sendmmsg");
        done += taken > 0 ? (unsigned)taken : 0;
    }
}

unsigned send_batch(struct sender *sender, struct paths *paths)
{
    unsigned count = 0;
    int64_t begun_ns, gap_ns;
    struct entry *entry;

    while (count < sender->batch && (entry = paths_next(paths))) {
        sender->entries[count] = entry;
        sender->targets[count].sin_addr.s_addr = paths_fill(paths, entry, sender->packets[count]);
        count++;
    }
    if (!count)
        return 0;
    begun_ns = clock_ns(CLOCK_REALTIME);
    send_all(sender, count);
    /* Spread the stamps over the call: the kernel sent one after another. */
    gap_ns = (clock_ns(CLOCK_REALTIME) - begun_ns) / count;
    for (unsigned i = 0; i < count; i++)
        paths_stamp(paths, sender->entries[i], begun_ns + i * gap_ns);
    return count;
}

unsigned receive_batch(struct inbox *inbox, struct paths *paths)
{
    const int count = recvmmsg(inbox->fd, inbox->messages, INBOX, 0, NULL);

    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail("recvmmsg");
        return 0;
    }
    for (int i = 0; i < count; i++) {
        struct msghdr *message = &inbox->messages[i].msg_hdr;
        const int64_t received_ns = read_controls(message, &inbox->dropped);

        paths_match(paths, inbox->datagrams[i], inbox->messages[i].msg_len, received_ns);
        message->msg_controllen = CONTROL_BYTES;
    }
    return (unsigned)count;
}
