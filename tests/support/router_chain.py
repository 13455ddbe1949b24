"""Kernels in a row that can be traced under load: every hop is known, none is slow or silent.

The path of `namespaces.chain`, 16 hops by default, whose target answers for a whole prefix of
each family. Whatever a kernel does now and then is settled beforehand: neighbours are known for
good, and no router limits its ICMP errors.
"""

import contextlib
from collections.abc import Iterator
from ipaddress import ip_network

from support.namespaces import Chain, Namespace, chain, left_address, right_address

HOPS = 16  # the target included
TARGETS = {4: "10.64.0.0/20", 6: "fd64::/116"}  # 4096 addresses
NUD_PERMANENT = 0x80  # linux/neighbour.h
MESSAGES = 1_000_000  # per second and at once; times HZ it still fits the kernel's 32 bits


@contextlib.contextmanager
def router_chain(hops: int = HOPS) -> Iterator[Chain]:
    """Build the path for the block. Build it on one thread, as every network of namespaces."""
    with chain(hops - 1) as built:
        for node in built.nodes:
            _unlimit(node)
        for link in range(hops):
            _introduce(built, link)
        for prefix in TARGETS.values():
            built.route_all_to(prefix)
            built.target.answer_for(prefix)
        yield built


def target_address(family: int, number: int) -> str:
    """Return the address of a target by its number from 0; family 4 or 6."""
    return str(ip_network(TARGETS[family])[number])


def true_hops(built: Chain, family: int, number: int = 0) -> list[str]:
    """Return who answers along the path to a target, in order; family 4 or 6."""
    return [*built.hops(family)[:-1], target_address(family, number)]


def link_addresses(built: Chain, link: int) -> tuple[str, str]:
    """Return the link addresses of a link's left and right end."""
    return _link_address(built.nodes[link], "right"), _link_address(built.nodes[link + 1], "left")


def _unlimit(node: Namespace) -> None:
    """Lift the limit on all ICMP errors of a node, which those of IPv6 count against."""
    node.sysctl("net.ipv4.icmp_msgs_per_sec", MESSAGES)
    node.sysctl("net.ipv4.icmp_msgs_burst", MESSAGES)


def _introduce(built: Chain, link: int) -> None:
    """Tell both ends of a link the other's link address for good."""
    left, right = link_addresses(built, link)
    for family in (4, 6):
        _know(built.nodes[link], "right", right_address(link, family), right)
        _know(built.nodes[link + 1], "left", left_address(link, family), left)


def _know(node: Namespace, interface: str, neighbour: str, address: str) -> None:
    node.route.neigh(
        "replace",
        dst=neighbour,
        lladdr=address,
        ifindex=node.index(interface),
        state=NUD_PERMANENT,
    )


def _link_address(node: Namespace, interface: str) -> str:
    (found,) = node.route.get_links(node.index(interface))
    address: str = found.get_attr("IFLA_ADDRESS")
    return address
