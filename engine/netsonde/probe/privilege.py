"""What the kernel lets this process do, found by trying, and how to be granted the rest."""

import contextlib
import socket
from typing import Literal, NamedTuple

IcmpAccess = Literal["raw", "datagram"]

GRANT_HINT = """\
ICMP needs CAP_NET_RAW, or ICMP datagram sockets. Any one of these grants it:
  systemd unit, section [Service] (preferred; nothing else needs privilege):
    AmbientCapabilities=CAP_NET_RAW
    CapabilityBoundingSet=CAP_NET_RAW
  ICMP datagram sockets for every group (of traces those by ICMP only):
    sysctl -w net.ipv4.ping_group_range="0 2147483647"
    echo 'net.ipv4.ping_group_range = 0 2147483647' > /etc/sysctl.d/60-netsonde.conf
  once, as root:
    sudo netsonde ping HOST
`setcap` on the netsonde script does nothing, and on the Python interpreter it would give raw
sockets to every Python program on this host."""

_PROTOCOLS = {
    4: (socket.AF_INET, socket.IPPROTO_ICMP),
    6: (socket.AF_INET6, socket.IPPROTO_ICMPV6),
}
RECEIVE_BUFFER_WANTED_BYTES = 8 << 20  # what ping asks for

# asm-generic/socket.h; the socket module does not name them
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_TIMESTAMPING = 37
_TRANSMIT_STAMPS = 1 << 1 | 1 << 4  # SOF_TIMESTAMPING_TX_SOFTWARE and SOFTWARE, net_tstamp.h


class ReceiveBuffer(NamedTuple):
    """How large a receive buffer is granted of RECEIVE_BUFFER_WANTED_BYTES.

    `granted_bytes` is what any process gets (net.core.rmem_max is the limit); `is_unlimited` says
    that this one gets what it asks for (CAP_NET_ADMIN).
    """

    granted_bytes: int
    is_unlimited: bool


def icmp_access(family: int) -> IcmpAccess | None:
    """Return the best kind of ICMP socket this process may open for family 4 or 6, or None."""
    domain, protocol = _PROTOCOLS[family]
    if _can_open(domain, socket.SOCK_RAW, protocol):
        return "raw"
    if _can_open(domain, socket.SOCK_DGRAM, protocol):
        return "datagram"
    return None


def capabilities() -> dict[str, bool]:
    """Return what this process can do, by the names the contract uses at registration."""
    return {
        "raw_icmp": _can_open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "datagram_icmp": _can_open(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        "raw_trace": _can_open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
        "ipv6": _has_ipv6(),
        "kernel_timestamps": _has_kernel_timestamps(),
    }


def receive_buffer() -> ReceiveBuffer:
    """Return how large a receive buffer may be here.

    Raises:
        OSError: no socket can be opened.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_WANTED_BYTES)
        doubled = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)  # socket(7)
        is_unlimited = _can_set(probe, _SO_RCVBUFFORCE, RECEIVE_BUFFER_WANTED_BYTES)
    return ReceiveBuffer(doubled // 2, is_unlimited)


def can_send_frames() -> bool:
    """Whether AF_PACKET sockets may be opened (packet(7), CAP_NET_RAW)."""
    return _can_open(socket.AF_PACKET, socket.SOCK_DGRAM, 0)


def has_transmit_timestamps() -> bool:
    """Whether the kernel stamps what is sent (SO_TIMESTAMPING), where the device's driver asks."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return _can_set(probe, _SO_TIMESTAMPING, _TRANSMIT_STAMPS)
    return False


def _can_set(probe: socket.socket, option: int, value: int) -> bool:
    try:
        probe.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError:
        return False
    return True


def _can_open(domain: int, kind: int, protocol: int) -> bool:
    try:
        socket.socket(domain, kind, protocol).close()
    except OSError:
        return False
    return True


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def _has_kernel_timestamps() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return _can_set(probe, _SO_TIMESTAMPNS, 1)
    return False
