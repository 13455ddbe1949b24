"""How a packet to an address leaves this host: the kernel's own decision, not a copy of it."""

import errno
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from pyroute2.netlink.rtnl import RTM_GETROUTE, RTM_GETRULE

from netsonde.errors import ConfigError, NetsondeError, RouteError
from netsonde.netinfo import netlink
from netsonde.netinfo.links import IFF_UP, Link, interface_index, link, local_addresses

IPAddress = IPv4Address | IPv6Address

RTN_UNICAST = 1  # linux/rtnetlink.h
RTN_LOCAL = 2
RTN_ANYCAST = 4  # IPv6: an address of this host that others have too
OWN_TYPES = frozenset({RTN_LOCAL, RTN_ANYCAST})

NO_ROUTE = {
    errno.ENETUNREACH: "this host has no route to it: add one",
    errno.EHOSTUNREACH: "a route of type unreachable refuses it: remove that route",
    errno.EACCES: "a route or rule of type prohibit refuses it: remove that one",
    errno.EINVAL: "a route or rule of type blackhole drops it: remove that one",
}


@dataclass(frozen=True, slots=True)
class Route:
    """The way to one destination, as of the moment it was asked for.

    `source` is the address that the kernel would send from, or the one that was asked for.
    `gateway` is the next hop, None when the destination is on the link itself; an IPv4 route may
    have an IPv6 one (RFC 5549). `mtu` is the largest IP packet in bytes: the route's where it has
    one or has learned one (RFC 1191), never more than the interface's. `is_local`: the destination
    is this host. `has_neighbours`: frames need a link address (`link_address`).
    """

    source: str
    interface_index: int
    interface: str
    mtu: int
    gateway: str | None = None
    is_local: bool = False
    has_neighbours: bool = True


@dataclass(frozen=True, slots=True)
class _Question:
    destination: IPAddress
    source: IPAddress | None
    interface: str | None
    mark: int | None

    def __str__(self) -> str:
        conditions = {"from": self.source, "through": self.interface, "with mark": self.mark}
        said = (f" {word} {value}" for word, value in conditions.items() if value is not None)
        return f"{self.destination}{''.join(said)}"


def route_to(
    destination: str,
    *,
    source: str | None = None,
    interface: str | None = None,
    mark: int | None = None,
) -> Route:
    """Ask the kernel for the way to destination, as a socket would take it.

    Rules and tables are honoured with source, interface (as SO_BINDTODEVICE) and mark (SO_MARK).
    Bound to an interface without a route, IPv4 takes the destination to be on the link. Of several
    equal ways the answer is one. The zone of a link-local address is an interface. The answer holds
    until the routes change (`LinkMonitor`); it takes most of a millisecond, so keep it.

    Raises:
        ConfigError: no IP address, no such interface, or the source is not this host's.
        RouteError: there is no way to it, or it is a broadcast or multicast address.
    """
    address = _address(destination)
    interface = interface or getattr(address, "scope_id", None)
    own = None if source is None else _own_address(source)
    question = _Question(address, own, interface, mark)
    try:
        answer = _lookup(question)
        out = link(answer.get_attr("RTA_OIF"))
    except OSError as error:
        raise RouteError(f"cannot send to {question}: {_reason(question, error)}") from error
    if answer["type"] != RTN_UNICAST and answer["type"] not in OWN_TYPES:
        raise RouteError(f"cannot send to {question}: it is not the address of one host")
    return _route(question, answer, out)


def parted_prefixes(version: int, bits: int) -> frozenset[str]:
    """Return those IPv4 or IPv6 prefixes of so many bits that a longer route or rule lies in.

    Of any table, this host's own addresses included: what any other prefix holds goes one way.

    Raises:
        NetsondeError: the kernel does not tell.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        found = netlink.ask_for_destinations(RTM_GETROUTE, family, bits)
        found += _rules(family, bits)
    except OSError as error:
        raise NetsondeError(f"cannot list this host's routes: {error}") from error
    starts = {address[: bits // 8] for address in found}  # whole bytes
    width = 4 if version == 4 else 16
    return frozenset(str(ip_network((start.ljust(width, b"\0"), bits))) for start in starts)


def _rules(family: int, longer_than: int) -> list[bytes]:
    try:
        return netlink.ask_for_destinations(RTM_GETRULE, family, longer_than)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a kernel without policy routing
            return []
        raise


def _address(text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not an IP address") from error


def _lookup(question: _Question) -> netlink.Message:
    address, source = question.destination, question.source
    fields = {"family": _family(address), "dst_len": address.max_prefixlen}
    attributes: list[tuple[str, Any]] = [("RTA_DST", _bare(address))]
    if source is not None:
        fields["src_len"] = source.max_prefixlen
        attributes.append(("RTA_SRC", _bare(source)))
    if question.interface is not None:
        attributes.append(("RTA_OIF", interface_index(question.interface)))
    if question.mark is not None:
        attributes.append(("RTA_MARK", question.mark))
    return netlink.ask(RTM_GETROUTE, fields, attributes)


def _route(question: _Question, answer: netlink.Message, out: Link) -> Route:
    source = question.source or answer.get_attr("RTA_PREFSRC")
    if source is None:
        raise RouteError(
            f"cannot send to {question}: no address of this host can be the source;"
            f" give {out.name} an IPv{question.destination.version} address"
        )
    largest = out.mtu if question.destination.version == 4 else out.mtu6
    return Route(
        source=str(source),
        interface_index=out.index,
        interface=out.name,
        mtu=min(largest, _learned_mtu(answer) or largest),
        gateway=_gateway(answer),
        is_local=answer["type"] in OWN_TYPES,
        has_neighbours=out.has_neighbours,
    )


def _learned_mtu(answer: netlink.Message) -> int | None:
    metrics = answer.get_attr("RTA_METRICS")
    mtu: int | None = None if metrics is None else metrics.get_attr("RTAX_MTU")
    return mtu


def _gateway(answer: netlink.Message) -> str | None:
    via = answer.get_attr("RTA_VIA")  # of another family than the destination
    gateway: str | None = answer.get_attr("RTA_GATEWAY") if via is None else via["addr"]
    return gateway


def _own_address(text: str) -> IPAddress:
    """Parse a source and refuse one that is not this host's: of IPv6 the kernel does not.

    Raises:
        ConfigError: it is not.
    """
    source = _address(text)
    try:
        if _lookup(_Question(source, None, None, None))["type"] in OWN_TYPES:
            return source
    except OSError:
        pass  # a virtual router's (VRF) address is in a table of its own
    own = local_addresses()
    if _bare(source) not in own:
        there = ", ".join(sorted(own))
        raise ConfigError(f"source {source} is not an address of this host, which has {there}")
    return source


def _reason(question: _Question, error: OSError) -> str:
    if question.interface is not None and not _is_up(question.interface):
        return f"interface {question.interface} is down: set it up"
    return NO_ROUTE.get(error.errno or 0) or f"the kernel does not tell the route: {error}"


def _is_up(interface: str) -> bool:
    try:
        return bool(link(interface_index(interface)).flags & IFF_UP)
    except OSError:
        return False  # gone meanwhile


def _family(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _bare(address: IPAddress) -> str:
    """Write an address without its zone."""
    return str(ip_address(address.packed))
