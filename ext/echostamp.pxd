"""When packets arrived, and when they left: the kernel's stamps on our clock.

Transmit stamps come one per packet, through the error queue (exact mode).

The kernel numbers the packets of a socket that ask for a stamp, and its report carries the number,
the stamp and no packet (SOF_TIMESTAMPING_OPT_ID, _OPT_TSONLY; Documentation/networking/
timestamping.rst). A send that fails may or may not have used a number up. From then on none is
asked for, until those under way have come and the numbering can start again: the old numbers must
not meet the new ones.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset

from echostate cimport CLOCK_RX_KERNEL, CLOCK_TX_KERNEL, STAMPS, arrival_t, awaited_t, echo_t
from inflight cimport SLOT_IN_FLIGHT, slot_t
from stamps cimport wall_to_monotonic
from sysnet cimport (
    SO_TIMESTAMPING, SOF_TIMESTAMPING_OPT_ID, SOF_TIMESTAMPING_OPT_TSONLY,
    SOF_TIMESTAMPING_SOFTWARE, SOL_SOCKET, setsockopt,
)

cdef enum:
    EARLY_NS = 100000000         # what an interpolated stamp may be wrong by: sendmmsg may be
    #                              preempted for some scheduler slices
    STAMP_WAIT_NS = 2000000000   # longer than a queue holds a packet; some stamps never come
    LATE_NS = 1000000            # what two clocks read one after the other may differ by


cdef inline int stamps_ask(int fd, int flags) noexcept nogil:
    """Say how stamps are to be reported; -1 and errno when the kernel cannot."""
    cdef int all_flags = flags | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_TSONLY
    return setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &all_flags, sizeof(all_flags))


cdef inline void echo_await_stamp(echo_t *e, uint32_t index) noexcept nogil:
    """Note whose stamp the kernel's next number is, unless that is not known."""
    cdef awaited_t *awaited
    e.stamps_out += 1
    if e.stamps_lost:
        return
    awaited = &e.awaited[e.stamp_number & (STAMPS - 1)]
    awaited.number = e.stamp_number
    awaited.slot = index
    awaited.serial = e.slab.slots[index].serial
    e.stamp_number += 1


cdef inline void echo_renumber_stamps(echo_t *e) noexcept nogil:
    """Make the kernel number from 0 again."""
    stamps_ask(e.tx_socket, 0)
    stamps_ask(e.tx_socket, SOF_TIMESTAMPING_OPT_ID)
    memset(e.awaited, 0xFF, STAMPS * sizeof(awaited_t))
    e.stamp_number = 0
    e.stamps_out = 0
    e.stamps_lost = False


cdef inline void echo_lose_stamps(echo_t *e, int64_t now_ns) noexcept nogil:
    """Note that a packet that asked for a stamp was refused."""
    e.stamps_lost = True
    e.stamps_lost_ns = now_ns


cdef inline void echo_resume_stamps(echo_t *e, int64_t now_ns) noexcept nogil:
    """Start a new numbering, once no stamp of the old one can come any more."""
    if e.stamps_out == 0 or now_ns >= e.stamps_lost_ns + STAMP_WAIT_NS:
        echo_renumber_stamps(e)


cdef inline void echo_take_stamp(
    echo_t *e, uint32_t number, int64_t stamp_ns, int64_t user_ns,
) noexcept nogil:
    """Put a transmit stamp (CLOCK_REALTIME) on the packet with this number."""
    cdef awaited_t *awaited = &e.awaited[number & (STAMPS - 1)]
    cdef slot_t *slot
    cdef int64_t at
    if e.stamps_out:
        e.stamps_out -= 1
    if awaited.number != number or awaited.slot >= e.slab.size:
        return
    slot = &e.slab.slots[awaited.slot]
    if slot.state != SLOT_IN_FLIGHT or slot.serial != awaited.serial or (
            slot.steps != e.wall.steps):
        return
    at = wall_to_monotonic(&e.wall, stamp_ns)
    if slot.sent_ns - EARLY_NS <= at <= user_ns:
        slot.sent_ns = at
        slot.clocks = CLOCK_TX_KERNEL


cdef inline int64_t echo_received_ns(
    echo_t *e, const slot_t *slot, const arrival_t *a, uint8_t *clocks,
) noexcept nogil:
    """Return when a packet arrived, CLOCK_MONOTONIC, and which clock says so.

    The kernel's stamp, unless there is none, the wall clock stepped while the probe was under way,
    or the stamp makes no sense: after it was read, or further before it was sent than
    the interpolation of send stamps can be wrong.
    """
    cdef int64_t at
    if a.stamp_ns and slot.steps == e.wall.steps:
        at = wall_to_monotonic(&e.wall, a.stamp_ns)
        if slot.sent_ns - EARLY_NS <= at <= a.user_ns + LATE_NS:
            clocks[0] |= CLOCK_RX_KERNEL
            return at
    return a.user_ns
