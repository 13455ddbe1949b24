"""Drivers of an echo engine's turns: a thread of its own, or the descriptor of an event loop.

The thread never takes the GIL. It waits for packets, but turns at most once per quantum while there
are any: the kernel stamps them, so reading late costs no accuracy and saves a wake-up per packet.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from echo cimport NEVER_NS, QUANTUM_NS, TURN_PACKETS, echo_is_idle, echo_next_turn_ns, echo_turn
from echostate cimport BATCH_ROOM, SUBMIT_RING, echo_has_room, echo_t
from ring cimport atomic_load, atomic_store, atomic_swap, ring_count, ring_room
from stamps cimport monotonic_ns
from tracestate cimport TRACES_MAX
from sysnet cimport (
    CLOCK_MONOTONIC, EPOLL_CTL_MOD, EPOLLIN, POLLIN, PR_SET_NAME, PR_SET_TIMERSLACK, SIG_SETMASK,
    TFD_TIMER_ABSTIME, TIMER_ABSTIME, clock_nanosleep, epoll_ctl, epoll_event, getpid, itimerspec,
    pollfd, ppoll, prctl, pthread_create, pthread_join, pthread_sigmask, pthread_t, read,
    sigfillset, sigset_t, timerfd_settime, timespec, write,
)

cdef enum:
    TELL_NS = 5000000            # completions of a busy engine are handed over this often,
    TELL_COUNT = 8192            # or when so many are unread
    NS_PER_S = 1000000000


cdef inline void event_set(int fd) noexcept nogil:
    """Make an eventfd readable."""
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))


cdef inline void event_clear(int fd) noexcept nogil:
    """Make an eventfd unreadable."""
    cdef uint64_t count = 0
    read(fd, &count, sizeof(count))


cdef inline timespec to_timespec(int64_t ns) noexcept nogil:
    return timespec(tv_sec=ns // NS_PER_S, tv_nsec=ns % NS_PER_S)


cdef inline int64_t pump_tell(echo_t *e, int64_t now_ns) noexcept nogil:
    """Wake the reader of completions where that is due; returns when it will be, or NEVER_NS.

    At once when it has not been woken lately or nothing more is to come, else once per TELL_NS. A
    writer that found the ring of requests full is woken when half of it is free.
    """
    cdef uint32_t unread = ring_count(&e.done)
    cdef bint refill = e.starved and ring_room(&e.submitted) >= SUBMIT_RING // 2 and (
        e.traces.methods == 0 or ring_room(&e.traces.submitted) >= TRACES_MAX // 2)
    if not refill and (unread == 0 or atomic_load(&e.ready_told)):
        return NEVER_NS
    if (not refill and unread < TELL_COUNT and now_ns < e.told_ns + TELL_NS
            and not echo_is_idle(e)):
        return e.told_ns + TELL_NS
    atomic_store(&e.starved, 0)
    e.told_ns = now_ns
    if not atomic_swap(&e.ready_told, 1):
        event_set(e.ready)
    return NEVER_NS


cdef inline void pump_wait(echo_t *e, int64_t until_ns) noexcept nogil:
    """Wait for a packet, an order or an instant.

    Not for packets while there is no room for their completions: those that wait would not let it.
    """
    cdef pollfd fds[5]
    cdef timespec wait
    cdef int64_t wait_ns = until_ns - monotonic_ns()
    if wait_ns <= 0:
        return
    wait = to_timespec(wait_ns)
    memset(fds, 0, sizeof(fds))
    fds[0].fd = e.wake
    fds[1].fd = e.step_timer
    fds[2].fd = e.socket
    fds[3].fd = e.traces.socket if e.traces.methods else -1  # ppoll passes over those below 0
    fds[4].fd = e.traces.tcp_socket if e.traces.methods else -1
    fds[0].events = fds[1].events = fds[2].events = fds[3].events = fds[4].events = POLLIN
    ppoll(fds, 5 if echo_has_room(e, BATCH_ROOM) else 2,
          NULL if until_ns == NEVER_NS else &wait, NULL)
    if fds[0].revents:
        event_clear(e.wake)


cdef inline void sleep_until(int64_t instant_ns) noexcept nogil:
    cdef timespec instant = to_timespec(instant_ns)
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &instant, NULL)


cdef inline void *pump_main(void *argument) noexcept nogil:
    """Turn until told to stop."""
    cdef echo_t *e = <echo_t *>argument
    cdef int64_t begun_ns, now_ns, next_ns, tell_ns
    cdef size_t packets
    cdef const char *name = b"netsonde-pump"
    prctl(PR_SET_NAME, <unsigned long>name)
    prctl(PR_SET_TIMERSLACK, 1000)
    while not atomic_load(&e.stopping):
        begun_ns = monotonic_ns()
        packets = echo_turn(e, begun_ns, TURN_PACKETS)
        now_ns = monotonic_ns()
        next_ns = echo_next_turn_ns(e, now_ns)
        tell_ns = pump_tell(e, now_ns)
        if tell_ns < next_ns:
            next_ns = tell_ns
        if next_ns <= now_ns:
            continue
        if packets and now_ns < begun_ns + QUANTUM_NS:
            sleep_until(begun_ns + QUANTUM_NS)
        else:
            pump_wait(e, next_ns)
    return NULL


cdef inline int pump_start(echo_t *e) noexcept nogil:
    """Start the thread; returns 0 or an errno. It takes no signals: those are the main thread's."""
    cdef sigset_t all_signals, old
    cdef pthread_t thread = 0
    cdef int code
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &old)
    code = pthread_create(&thread, NULL, pump_main, e)
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    e.thread = thread
    e.owner = getpid()
    e.threaded = code == 0
    return code


cdef inline void pump_stop(echo_t *e) noexcept nogil:
    """End the thread and wait for it. Idempotent."""
    if e.threaded and e.owner == getpid():  # a forked child has no thread to wait for
        atomic_store(&e.stopping, 1)
        event_set(e.wake)
        pthread_join(e.thread, NULL)
        e.threaded = False


cdef inline void loop_arm(
    echo_t *e, size_t packets, int64_t begun_ns, int64_t now_ns,
) noexcept nogil:
    """Make the loop's descriptor readable when the next turn is due.

    While there are packets it is deaf to the socket until the quantum has passed.
    """
    cdef itimerspec when
    cdef epoll_event event
    cdef int64_t next_ns = echo_next_turn_ns(e, now_ns)
    cdef bint deaf = packets > 0
    if deaf and next_ns > now_ns:
        next_ns = begun_ns + QUANTUM_NS
    if deaf != e.deaf:
        memset(&event, 0, sizeof(event))
        event.events = 0 if deaf else EPOLLIN
        event.data.fd = e.socket
        epoll_ctl(e.epoll, EPOLL_CTL_MOD, e.socket, &event)
        e.deaf = deaf
    memset(&when, 0, sizeof(when))
    if next_ns != NEVER_NS:
        when.it_value = to_timespec(next_ns if next_ns > 1 else 1)
    timerfd_settime(e.turn_timer, TFD_TIMER_ABSTIME, &when, NULL)
