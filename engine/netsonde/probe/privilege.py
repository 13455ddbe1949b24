"""What the kernel lets this process do, found by trying, and how to be granted the rest."""

import contextlib
import socket
from typing import Literal

IcmpAccess = Literal["raw", "datagram"]

GRANT_HINT = """\
ICMP needs CAP_NET_RAW, or ICMP datagram sockets. Any one of these grants it:
  systemd unit, section [Service] (preferred; nothing else needs privilege):
    AmbientCapabilities=CAP_NET_RAW
    CapabilityBoundingSet=CAP_NET_RAW
  ICMP datagram sockets for every group (ping only, not trace):
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
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module does not name it


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
        probe.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        return True
    return False
