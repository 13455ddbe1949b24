"""The link addresses of next hops, for senders that build their own frames (packet(7)).

The kernel resolves a neighbour for whoever sends to it. The request to do so without sending
(RTM_NEWNEIGH with NTF_USE) is for CAP_NET_ADMIN, which an agent does not have, so an unknown
neighbour is sent one ICMP echo request through an ordinary raw socket (CAP_NET_RAW): to the next
hop and never beyond it, whatever the target is, with a hop limit of 1. It is what any host may get
at any time, keeps no state anywhere, and it leaves only once the neighbour has been found. ARP and
neighbour discovery stay the kernel's: their retries, their cache and its limits. Linux 5.0 is the
first that can be asked for one neighbour.
"""

import errno
import select
import socket
from ipaddress import ip_address
from typing import NamedTuple

from pyroute2.netlink.rtnl import RTM_GETNEIGH, RTMGRP_NEIGH
from pyroute2.netlink.rtnl.ndmsg import (
    NUD_DELAY,
    NUD_FAILED,
    NUD_NOARP,
    NUD_PERMANENT,
    NUD_PROBE,
    NUD_REACHABLE,
    NUD_STALE,
)

from netsonde.clock import NS_PER_MS, NS_PER_S, SystemClock
from netsonde.errors import PrivilegeError, RouteError
from netsonde.netinfo import netlink
from netsonde.netinfo.routes import IPAddress, Route

NO_ADDRESS = bytes(6)  # what AF_PACKET takes where frames are not addressed
USABLE = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE
RESOLVE_TIMEOUT_NS = 4 * NS_PER_S  # the kernel gives up after 3 requests, a second apart

ECHO_REQUEST = bytes.fromhex("0800f7ff00000000")  # RFC 792; the checksum is of these 8 bytes
ECHO_REQUEST_V6 = bytes.fromhex("8000000000000000")  # RFC 4443; the kernel fills the checksum in

_clock = SystemClock()


class Neighbour(NamedTuple):
    """An entry of the kernel's neighbour table; `link_address` is None until it is known."""

    link_address: bytes | None
    has_failed: bool = False


def link_address(route: Route, destination: str, *, timeout_ns: int = RESOLVE_TIMEOUT_NS) -> bytes:
    """Return the link address that frames by route to destination go to.

    It is the gateway's, or the destination's own where it is on the link; zeros where frames are
    not addressed (loopback, tunnels, NOARP). One that the kernel does not know is resolved: this
    blocks until the neighbour has answered, the kernel has given up or timeout_ns has passed.
    A sender of frames does not keep the entry fresh: ask again when `LinkMonitor` tells of it.

    Raises:
        RouteError: nobody answers for the next hop.
        PrivilegeError: it has to be resolved and raw sockets are not allowed.
    """
    if not route.has_neighbours:
        return NO_ADDRESS
    next_hop = ip_address(route.gateway or destination)
    return _known(route, next_hop).link_address or _resolve(route, next_hop, timeout_ns)


def known_neighbour(message: netlink.Message) -> Neighbour:
    """Read an RTM_NEWNEIGH."""
    state = message["state"]
    text = message.get_attr("NDA_LLADDR") if state & USABLE else None
    return Neighbour(text and bytes.fromhex(text.replace(":", "")), bool(state & NUD_FAILED))


def _known(route: Route, next_hop: IPAddress) -> Neighbour:
    family = socket.AF_INET if next_hop.version == 4 else socket.AF_INET6
    address = str(ip_address(next_hop.packed))  # without the zone
    try:
        answer = netlink.ask(
            RTM_GETNEIGH,
            {"family": family, "ifindex": route.interface_index},
            (("NDA_DST", address),),
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Neighbour(None)
        raise RouteError(_cannot(route, next_hop, str(error))) from error
    return known_neighbour(answer)


def _resolve(route: Route, next_hop: IPAddress, timeout_ns: int) -> bytes:
    """Let the kernel find the neighbour; its announcements say when to look again."""
    deadline_ns = _clock.monotonic_ns() + timeout_ns
    with netlink.subscribe(RTMGRP_NEIGH) as events:
        _send_echo(route, next_hop)
        while True:
            neighbour = _known(route, next_hop)
            if neighbour.link_address is not None:
                return neighbour.link_address
            if neighbour.has_failed or not _heard(events, deadline_ns):
                advice = "check that the next hop is up and on that link"
                raise RouteError(_cannot(route, next_hop, f"nobody answers for it: {advice}"))


def _send_echo(route: Route, next_hop: IPAddress) -> None:
    try:
        with _raw_socket(next_hop) as sender:
            name = route.interface.encode()
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
            if next_hop.version == 4:
                sender.sendto(ECHO_REQUEST, (str(next_hop), 0))
            else:
                to = (str(ip_address(next_hop.packed)), 0, 0, route.interface_index)
                sender.sendto(ECHO_REQUEST_V6, to)
    except PermissionError as error:
        why = f"{error}; raw sockets need CAP_NET_RAW, `netsonde doctor` has the line that gives it"
        raise PrivilegeError(_cannot(route, next_hop, why)) from error
    except OSError as error:
        raise RouteError(_cannot(route, next_hop, str(error))) from error


def _raw_socket(next_hop: IPAddress) -> socket.socket:
    if next_hop.version == 4:
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    else:
        sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
    return sender


def _heard(events: socket.socket, deadline_ns: int) -> bool:
    """Wait for announcements and throw them away; return whether there were any in time."""
    left_ns = deadline_ns - _clock.monotonic_ns()
    poller = select.poll()
    poller.register(events, select.POLLIN)
    if left_ns <= 0 or not poller.poll(-(-left_ns // NS_PER_MS)):
        return False
    while True:
        try:
            events.recv(1)  # the rest of a datagram goes with it
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # some were lost, which is an announcement too
                raise


def _cannot(route: Route, next_hop: IPAddress, why: str) -> str:
    return f"cannot find the link address of {next_hop} on {route.interface}: {why}"
