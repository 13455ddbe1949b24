"""What Linux declares for sockets, batches of datagrams, control messages and clocks.

Declarations only: no code of ours. Constants whose kernel headers clash with the C library's are
given by value, with the header they come from.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <time.h>
    #include <unistd.h>
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/prctl.h>
    #include <sys/random.h>
    #include <sys/socket.h>
    #include <sys/timerfd.h>
    #include <sys/uio.h>
    #include <linux/errqueue.h>
    #include <linux/if_packet.h>
    #include <linux/net_tstamp.h>

    /* linux/icmp.h and linux/icmpv6.h redefine what netinet/ declares. */
    #define NETSONDE_ICMP_FILTER 1
    #define NETSONDE_ICMP6_FILTER 1
    #ifndef SO_TIMESTAMPNS
    #define SO_TIMESTAMPNS 35
    #endif
    #ifndef SCM_TIMESTAMPNS
    #define SCM_TIMESTAMPNS SO_TIMESTAMPNS
    #endif
    #ifndef SO_RXQ_OVFL
    #define SO_RXQ_OVFL 40
    #endif
    #ifndef SO_TIMESTAMPING
    #define SO_TIMESTAMPING 37
    #endif
    #ifndef SCM_TIMESTAMPING
    #define SCM_TIMESTAMPING SO_TIMESTAMPING
    #endif
    #ifndef PACKET_QDISC_BYPASS
    #define PACKET_QDISC_BYPASS 20
    #endif
    #ifndef SO_MEMINFO
    #define SO_MEMINFO 55
    #endif
    #ifndef TFD_TIMER_CANCEL_ON_SET
    #define TFD_TIMER_CANCEL_ON_SET 2
    #endif
    /* linux/sock_diag.h: the numbers SO_MEMINFO fills, and which is which. */
    #define NETSONDE_MEMINFO_VARS 9
    #define NETSONDE_MEMINFO_DROPS 8
    #define NETSONDE_MEMINFO_RMEM_ALLOC 0
    #define NETSONDE_MEMINFO_RCVBUF 1
    """
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    ctypedef Py_ssize_t ssize_t

    # ── addresses ──
    ctypedef struct in_addr:
        uint32_t s_addr
    ctypedef struct in6_addr:
        uint8_t s6_addr[16]
    ctypedef struct sockaddr "struct sockaddr":
        sa_family_t sa_family
    ctypedef struct sockaddr_in "struct sockaddr_in":
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    ctypedef struct sockaddr_in6 "struct sockaddr_in6":
        sa_family_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    ctypedef struct sockaddr_storage "struct sockaddr_storage":
        sa_family_t ss_family

    ctypedef struct sockaddr_ll "struct sockaddr_ll":   # packet(7)
        unsigned short sll_family
        uint16_t sll_protocol
        int sll_ifindex
        unsigned short sll_hatype
        unsigned char sll_pkttype
        unsigned char sll_halen
        unsigned char sll_addr[8]
    ctypedef struct in_pktinfo "struct in_pktinfo":     # ip(7)
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    ctypedef struct in6_pktinfo "struct in6_pktinfo":   # RFC 3542 6
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex

    int AF_INET, AF_INET6, AF_UNSPEC, AF_PACKET

    # ── sockets ──
    int SOCK_RAW, SOCK_DGRAM, SOCK_CLOEXEC, SOCK_NONBLOCK
    int IPPROTO_IP, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_IPV6, IPPROTO_ICMPV6
    int IPPROTO_RAW
    int SOL_SOCKET, SO_RCVBUF, SO_RCVBUFFORCE, SO_SNDBUF, SO_ERROR, SO_BINDTODEVICE
    int SO_TIMESTAMPNS, SCM_TIMESTAMPNS, SO_TIMESTAMPING, SCM_TIMESTAMPING, SO_RXQ_OVFL, SO_MEMINFO
    int SOF_TIMESTAMPING_TX_SOFTWARE, SOF_TIMESTAMPING_SOFTWARE, SOF_TIMESTAMPING_OPT_ID
    int SOF_TIMESTAMPING_OPT_TSONLY, SO_MARK, SOL_PACKET, PACKET_QDISC_BYPASS, PACKET_TX_TIMESTAMP
    int NETSONDE_MEMINFO_VARS, NETSONDE_MEMINFO_DROPS
    int NETSONDE_MEMINFO_RMEM_ALLOC, NETSONDE_MEMINFO_RCVBUF
    int NETSONDE_ICMP_FILTER, NETSONDE_ICMP6_FILTER
    int IP_TTL, IP_TOS, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_HDRINCL, IP_PKTINFO
    int IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT, IP_PMTUDISC_PROBE
    int IPV6_HOPLIMIT, IPV6_UNICAST_HOPS, IPV6_TCLASS, IPV6_RECVERR, IPV6_RECVHOPLIMIT
    int IPV6_RECVTCLASS, IPV6_CHECKSUM, IPV6_V6ONLY, IPV6_PKTINFO, IPV6_RECVPKTINFO
    int IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO, IPV6_PMTUDISC_PROBE, IPV6_DONTFRAG
    int MSG_DONTWAIT, MSG_TRUNC, MSG_CTRUNC, MSG_ERRQUEUE, MSG_NOSIGNAL

    int socket(int domain, int kind, int protocol) nogil
    int bind(int fd, const sockaddr *address, socklen_t length) nogil
    int connect(int fd, const sockaddr *address, socklen_t length) nogil
    int getsockname(int fd, sockaddr *address, socklen_t *length) nogil
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length) nogil
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length) nogil
    int close(int fd) nogil
    ssize_t read(int fd, void *data, size_t length) nogil
    int getpid() nogil
    ssize_t write(int fd, const void *data, size_t length) nogil

    # ── messages, one and in batches ──
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    ctypedef struct msghdr "struct msghdr":
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    ctypedef struct mmsghdr "struct mmsghdr":
        msghdr msg_hdr
        unsigned int msg_len
    ctypedef struct cmsghdr "struct cmsghdr":
        size_t cmsg_len
        int cmsg_level
        int cmsg_type

    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags) nogil
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *wait) nogil
    ssize_t sendmsg(int fd, const msghdr *message, int flags) nogil
    ssize_t recvmsg(int fd, msghdr *message, int flags) nogil
    ssize_t sendto(int fd, const void *data, size_t length, int flags,
                   const sockaddr *address, socklen_t address_length) nogil

    cmsghdr *CMSG_FIRSTHDR(msghdr *message) nogil
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *previous) nogil
    unsigned char *CMSG_DATA(cmsghdr *control) nogil
    size_t CMSG_SPACE(size_t length) nogil
    size_t CMSG_LEN(size_t length) nogil

    # ── the error queue (ip(7), linux/errqueue.h) ──
    ctypedef struct sock_extended_err "struct sock_extended_err":
        uint32_t ee_errno
        uint8_t ee_origin
        uint8_t ee_type
        uint8_t ee_code
        uint32_t ee_info
        uint32_t ee_data
    int SO_EE_ORIGIN_NONE, SO_EE_ORIGIN_LOCAL, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
    int SO_EE_ORIGIN_TIMESTAMPING
    sockaddr *SO_EE_OFFENDER(const sock_extended_err *error) nogil

    # ── clocks, randomness, readiness ──
    ctypedef long time_t
    ctypedef struct timespec "struct timespec":
        time_t tv_sec
        long tv_nsec
    ctypedef struct itimerspec "struct itimerspec":
        timespec it_interval
        timespec it_value
    int CLOCK_REALTIME, CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now) nogil
    int clock_nanosleep(int clock, int flags, const timespec *wait, timespec *rest) nogil
    int TIMER_ABSTIME
    int TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
    int timerfd_create(int clock, int flags) nogil
    int timerfd_settime(int fd, int flags, const itimerspec *value, itimerspec *old) nogil
    ssize_t getrandom(void *data, size_t length, unsigned int flags) nogil

    ctypedef union epoll_data_t:
        int fd
        uint32_t u32
        uint64_t u64
    ctypedef struct epoll_event "struct epoll_event":
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLET
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event) nogil
    int epoll_wait(int epoll, epoll_event *events, int limit, int timeout_ms) nogil

    ctypedef struct pollfd "struct pollfd":
        int fd
        short events
        short revents
    short POLLIN
    int ppoll(pollfd *fds, unsigned long count, const timespec *wait, const void *signals) nogil
    int EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int value, int flags) nogil

    # ── threads ──
    ctypedef unsigned long pthread_t
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t *signals) nogil
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *old) nogil
    int pthread_create(pthread_t *thread, const void *attributes,
                       void *(*main)(void *) noexcept nogil, void *argument) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    int sched_yield() nogil
    int PR_SET_TIMERSLACK, PR_SET_NAME
    int prctl(int option, unsigned long value) nogil

    # ── errno ──
    int errno
    int EAGAIN, EINTR, EWOULDBLOCK, ENOBUFS, EMSGSIZE, EINVAL, EPERM, EACCES, ECANCELED
    int ENETUNREACH, EHOSTUNREACH, ENETDOWN, EADDRNOTAVAIL, ENOMEM, EPROTO, ECONNREFUSED
    int EHOSTDOWN, ENODEV
