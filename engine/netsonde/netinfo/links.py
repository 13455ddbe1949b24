"""This host's interfaces and their addresses."""

import socket
from dataclasses import dataclass

from pyroute2.netlink.rtnl import RTM_GETADDR, RTM_GETLINK

from netsonde.errors import ConfigError, NetsondeError
from netsonde.netinfo import netlink

ADDRESS_ATTRIBUTES = ("IFA_LOCAL", "IFA_ADDRESS")  # of a point-to-point link the second is the peer
WITHOUT_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h

IFF_UP = 1 << 0  # linux/if.h
IFF_LOOPBACK = 1 << 3
IFF_POINTOPOINT = 1 << 4
IFF_RUNNING = 1 << 6
IFF_NOARP = 1 << 7


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: MTUs in bytes, per family because routers may advertise a smaller one."""

    index: int
    name: str
    flags: int
    mtu: int
    mtu6: int

    @property
    def has_neighbours(self) -> bool:
        """Whether frames are addressed to one of several hosts (as arp_constructor decides)."""
        return not self.flags & (IFF_LOOPBACK | IFF_NOARP | IFF_POINTOPOINT)


def interfaces() -> tuple[str, ...]:
    """Return the names of this host's interfaces, by index."""
    return tuple(name for _, name in sorted(socket.if_nameindex()))


def interface_index(name: str) -> int:
    """Return an interface's index.

    Raises:
        ConfigError: there is none of that name; lists those that there are.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        there = ", ".join(interfaces())
        raise ConfigError(f"this host has no interface {name!r}, it has {there}") from error


def local_addresses() -> frozenset[str]:
    """Return every IP address of this host's interfaces, the loopback's included.

    Raises:
        NetsondeError: the kernel did not answer.
    """
    try:
        messages = netlink.ask_for_all(RTM_GETADDR, {})
    except OSError as error:
        raise NetsondeError(f"cannot list this host's own addresses: {error}") from error
    return frozenset(own_address(message) for message in messages)


def own_address(message: netlink.Message) -> str:
    """Return the address that an RTM_NEWADDR or RTM_DELADDR is about."""
    values = (message.get_attr(name) for name in ADDRESS_ATTRIBUTES)
    return next(str(value) for value in values if value is not None)


def link(index: int) -> Link:
    """Return an interface.

    Raises:
        OSError: the kernel refused; ENODEV when there is no such interface.
    """
    mask = ("IFLA_EXT_MASK", WITHOUT_STATISTICS)
    message = netlink.ask(RTM_GETLINK, {"index": index}, (mask,))
    mtu = message.get_attr("IFLA_MTU")
    return Link(
        index=index,
        name=message.get_attr("IFLA_IFNAME"),
        flags=message["flags"],
        mtu=mtu,
        mtu6=min(mtu, _ipv6_mtu(message) or mtu),
    )


def _ipv6_mtu(message: netlink.Message) -> int | None:
    for name in ("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_CONF"):
        inner = message.get_attr(name)
        if inner is None:
            return None
        message = inner
    mtu: int = message["mtu"]
    return mtu
