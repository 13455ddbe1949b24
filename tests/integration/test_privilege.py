"""What the kernel grants with and without capabilities."""

import socket

import pytest

from netsonde.probe import privilege
from support.privileges import CAP_NET_RAW, with_capabilities


def test_a_process_without_capabilities_gets_the_buffer_that_anybody_may_have() -> None:
    buffer = with_capabilities(0, privilege.receive_buffer)

    assert not buffer.is_unlimited
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
        limit = other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    assert buffer.granted_bytes == min(limit, privilege.RECEIVE_BUFFER_WANTED_BYTES)


@pytest.mark.raw
def test_packet_sockets_need_cap_net_raw() -> None:
    assert with_capabilities(1 << CAP_NET_RAW, privilege.can_send_frames)
    assert not with_capabilities(0, privilege.can_send_frames)


def test_transmit_time_stamps_need_nothing() -> None:
    assert with_capabilities(0, privilege.has_transmit_timestamps)
