"""One time line for send and receive stamps: CLOCK_MONOTONIC, and where CLOCK_REALTIME is on it.

The kernel stamps received packets with CLOCK_REALTIME. Both clocks are slewed alike, so their
difference changes only when somebody sets the wall clock. Reading REALTIME between two readings of
MONOTONIC gives an interval the difference lies in; intervals that do not overlap prove a step,
whatever the scheduler did in between. A step there and back between two samples is seen by a
TFD_TIMER_CANCEL_ON_SET timer (timerfd_create(2)).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from packet cimport store_be32
from sysnet cimport (
    AF_INET, CLOCK_MONOTONIC, CLOCK_REALTIME, CMSG_DATA, CMSG_FIRSTHDR, ECANCELED,
    SCM_TIMESTAMPNS, SO_TIMESTAMPNS, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET,
    TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET, bind, clock_gettime,
    clock_nanosleep, close, cmsghdr, connect, errno, getsockname, iovec, itimerspec, msghdr, read,
    recvmsg, sendmsg, setsockopt, sockaddr, sockaddr_in, socket, socklen_t, timerfd_create,
    timerfd_settime, timespec,
)

cdef enum:
    SAMPLE_TRIES = 3         # the tightest of three: one is often cut by an interrupt
    SAMPLE_WIDTH_NS = 1000   # tight enough to stop trying
    STEP_SLACK_NS = 1000     # rounding of the two clocks; smaller steps do not matter to an RTT
    STAMPING_TRIES = 50      # with STAMPING_PAUSE_NS: 5 ms, where 0.2 ms is usual
    STAMPING_PAUSE_NS = 100000

cdef extern from *:
    """
    /* Far enough that the timer never fires: only setting the clock wakes it. */
    #define NETSONDE_NEVER_S 0x3fffffffL
    """
    long NETSONDE_NEVER_S

ctypedef struct wall_t:
    int64_t low_ns      # REALTIME - MONOTONIC lies in low_ns .. high_ns
    int64_t high_ns
    uint32_t steps      # how often the wall clock was seen to step
    bint known


cdef inline int64_t timespec_ns(const timespec *t) noexcept nogil:
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return timespec_ns(&now)


cdef inline int64_t monotonic_ns() noexcept nogil:
    return clock_ns(CLOCK_MONOTONIC)


cdef inline void wall_stepped(wall_t *wall) noexcept nogil:
    """Note a step: what was known of the difference is void."""
    wall.steps += 1
    wall.known = False


cdef inline void wall_merge(wall_t *wall, int64_t low_ns, int64_t high_ns) noexcept nogil:
    """Take one more interval that the difference lies in; disjoint from the others: a step."""
    if wall.known and (low_ns > wall.high_ns + STEP_SLACK_NS
                       or high_ns < wall.low_ns - STEP_SLACK_NS):
        wall_stepped(wall)
    if not wall.known:
        wall.low_ns = low_ns
        wall.high_ns = high_ns
        wall.known = True
        return
    if low_ns > wall.low_ns:
        wall.low_ns = low_ns
    if high_ns < wall.high_ns:
        wall.high_ns = high_ns


cdef inline void wall_sample(wall_t *wall) noexcept nogil:
    """Read both clocks and learn whether the wall clock stepped since the last sample."""
    cdef int64_t before, real, after, low = 0, high = 0
    cdef int attempt
    for attempt in range(SAMPLE_TRIES):
        before = monotonic_ns()
        real = clock_ns(CLOCK_REALTIME)
        after = monotonic_ns()
        if attempt == 0 or after - before < high - low:
            low = real - after
            high = real - before
        if high - low <= SAMPLE_WIDTH_NS:
            break
    wall_merge(wall, low, high)


cdef inline int64_t wall_to_monotonic(const wall_t *wall, int64_t real_ns) noexcept nogil:
    """Convert a REALTIME stamp taken since the last step."""
    return real_ns - (wall.low_ns + (wall.high_ns - wall.low_ns) // 2)


cdef inline int step_timer_arm(int fd) noexcept nogil:
    """(Re)arm the timer that wakes when the wall clock is set; -1 and errno on failure."""
    cdef itimerspec when
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = NETSONDE_NEVER_S * 4  # the year 2106, still far below KTIME_MAX
    return timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &when, NULL)


cdef inline int step_timer_open() noexcept nogil:
    """Open a timer that becomes readable when the wall clock is set; -1 and errno on failure.

    Not armed yet.
    """
    return timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC)


cdef inline bint step_timer_fired(int fd) noexcept nogil:
    """Read the timer; whether the wall clock was set since it was armed. Arms it again."""
    cdef uint64_t count = 0
    if read(fd, &count, sizeof(count)) < 0 and errno == ECANCELED:
        step_timer_arm(fd)
        return True
    return False


cdef inline int64_t loopback_stamp(int fd, int64_t *before_ns) noexcept nogil:
    """Send ourselves a byte; return the stamp it got and when the reception was asked for."""
    cdef uint8_t control[64]
    cdef uint8_t data[1]
    cdef timespec stamp
    cdef cmsghdr *found
    cdef iovec part
    cdef msghdr message
    part.iov_base = <void *>data
    part.iov_len = sizeof(data)
    memset(&message, 0, sizeof(message))
    memset(data, 0, sizeof(data))
    message.msg_iov = &part
    message.msg_iovlen = 1
    if sendmsg(fd, &message, 0) != 1:
        return 0
    message.msg_control = control
    message.msg_controllen = sizeof(control)
    before_ns[0] = clock_ns(CLOCK_REALTIME)
    if recvmsg(fd, &message, 0) != 1:
        return 0
    found = CMSG_FIRSTHDR(&message)
    if found == NULL or found.cmsg_level != SOL_SOCKET or found.cmsg_type != SCM_TIMESTAMPNS:
        return 0
    memcpy(&stamp, CMSG_DATA(found), sizeof(stamp))
    return timespec_ns(&stamp)


cdef inline bint await_stamping() noexcept nogil:
    """Wait, at most 5 ms, until the kernel stamps packets as they arrive; whether it was seen to.

    Call once the socket has SO_TIMESTAMPNS. The first such socket of a host only schedules the
    change (net_enable_timestamp, net/core/dev.c); until it is done a packet is stamped when it is
    read, and an RTT would hold the reader's delay. A byte over loopback tells the two apart. Where
    loopback is down the full time is waited and nothing is known.
    """
    cdef sockaddr_in here
    cdef socklen_t length = sizeof(here)
    cdef timespec pause = timespec(tv_sec=0, tv_nsec=STAMPING_PAUSE_NS)
    cdef int64_t stamp_ns, before_ns = 0
    cdef int _, on = 1
    cdef bint is_stamping = False
    cdef int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    memset(&here, 0, sizeof(here))
    here.sin_family = <unsigned short>AF_INET
    store_be32(<uint8_t *>&here.sin_addr, 0x7F000001)
    if fd >= 0:
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on))
        bind(fd, <sockaddr *>&here, sizeof(here))
        getsockname(fd, <sockaddr *>&here, &length)
        connect(fd, <sockaddr *>&here, sizeof(here))
    for _ in range(STAMPING_TRIES):
        stamp_ns = loopback_stamp(fd, &before_ns)
        if 0 < stamp_ns < before_ns:
            is_stamping = True
            break
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL)
    if fd >= 0:
        close(fd)
    return is_stamping
