import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.errors import ResolveError
from netsonde.probe.connect import kernel_stamp_ns
from netsonde.probe.datagram import DatagramSocket, _round_trip

WALL = 1_700_000_000 * NS_PER_S


def test_the_kernels_stamp_takes_the_wait_in_the_queue_off() -> None:
    before, now = (WALL, 5), (WALL + 30 * NS_PER_MS, 5 + 30 * NS_PER_MS)

    assert _round_trip(before, now, WALL + 10 * NS_PER_MS) == (10 * NS_PER_MS, "kernel")


def test_a_step_of_the_wall_clock_leaves_the_monotonic_time() -> None:
    for step_s in (-3600, 3600):
        now = (WALL + step_s * NS_PER_S + 30 * NS_PER_MS, 5 + 30 * NS_PER_MS)
        stamp = now[0] - 20 * NS_PER_MS
        assert _round_trip((WALL, 5), now, stamp) == (30 * NS_PER_MS, "user")


def test_without_a_stamp_the_process_own_time_is_told_as_such() -> None:
    before, now = (WALL, 0), (WALL + NS_PER_MS, NS_PER_MS)

    assert _round_trip(before, now, None) == (NS_PER_MS, "user")


@given(
    st.integers(0, 60 * NS_PER_S),
    st.integers(-(10**15), 10**15),
    st.integers(-(10**15), 10**15),
)
def test_no_stamp_and_no_step_makes_a_round_trip_wrong(
    elapsed_ns: int, step_ns: int, stamp_offset_ns: int
) -> None:
    now = (WALL + elapsed_ns + step_ns, elapsed_ns)

    rtt_ns, clock = _round_trip((WALL, 0), now, WALL + stamp_offset_ns)

    assert 0 <= rtt_ns <= elapsed_ns
    assert clock == "kernel" or rtt_ns == elapsed_ns


def test_the_stamp_is_found_among_other_messages() -> None:
    stamp = struct.pack("@ll", 17, 23)

    assert kernel_stamp_ns([(0, 2, b"\0\0\0\0"), (1, 35, stamp)]) == 17 * NS_PER_S + 23
    assert kernel_stamp_ns([(1, 35, b"short")]) is None
    assert kernel_stamp_ns([]) is None


def test_a_socket_that_cannot_be_prepared_is_closed() -> None:
    prepared: list[socket.socket] = []

    def prepare(sock: socket.socket) -> None:
        prepared.append(sock)
        raise ResolveError("no interface")

    with pytest.raises(ResolveError):
        DatagramSocket.open(ManualClock(), "127.0.0.1", 9, prepare)
    assert prepared[0].fileno() == -1
