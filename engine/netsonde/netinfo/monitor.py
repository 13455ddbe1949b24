"""Hearing of changes to links, addresses, routes and neighbours: until then answers hold."""

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
)

from netsonde.errors import NetsondeError
from netsonde.netinfo import netlink
from netsonde.netinfo.links import IFF_RUNNING, IFF_UP, own_address
from netsonde.netinfo.neighbours import known_neighbour

GROUPS = (
    RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_ROUTE
)
STARTS_ANEW = (
    errno.ENOBUFS,  # announcements were lost
    errno.EBUSY,  # the links were asked for while the last list of them was still coming
)
DATAGRAMS_MAX = 64  # read at once; the descriptor stays readable while there are more
FAMILIES = (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6)  # a bridge's are of its ports
RTM_F_CLONED = 0x200  # linux/rtnetlink.h: an entry of the route cache, not a route
UNHEARD = b""  # a neighbour that nothing was announced of: somebody may know its address


class Change(StrEnum):
    """What has changed."""

    UP = "up"  # the interface can send
    DOWN = "down"  # it cannot, or it is new and cannot yet
    CHANGED = "changed"  # its name, MTU or link address
    REMOVED = "removed"
    ADDRESS = "address"  # one of its IP addresses came, changed or went
    ROUTE = "route"  # a route came or went
    NEIGHBOUR = "neighbour"  # a neighbour's link address was found, changed or lost
    LOST = "lost"  # more than the kernel could tell: anything may have changed


@dataclass(frozen=True, slots=True)
class LinkChange:
    """One change. A route through several interfaces or none, and LOST, have no interface: 0, None.

    `address` is the IP address of ADDRESS and NEIGHBOUR.
    """

    what: Change
    index: int = 0
    interface: str | None = None
    address: str | None = None


LOST = LinkChange(Change.LOST)


class Announcements:
    """Tells changes from the kernel's repetitions; remembers what was announced last."""

    def __init__(self, links: Iterable[netlink.Message] = ()) -> None:
        self._links: dict[int, _LinkState] = {}
        self._neighbours: dict[tuple[int, str], bytes | None] = {}
        self._readers: dict[int, Callable[[netlink.Message], LinkChange | None]] = {
            RTM_NEWLINK: self._link_seen,
            RTM_DELLINK: self._link_removed,
            RTM_NEWADDR: self._address_change,
            RTM_DELADDR: self._address_change,
            RTM_NEWROUTE: self._route_change,
            RTM_DELROUTE: self._route_change,
            RTM_NEWNEIGH: self._neighbour_seen,
            RTM_DELNEIGH: self._neighbour_removed,
        }
        for message in links:
            self._link_seen(message)

    def change(self, message: netlink.Message) -> LinkChange | None:
        """Return what a message changes, or None when that is nothing new."""
        if message["family"] not in FAMILIES:
            return None
        reader = self._readers.get(message["header"]["type"])
        return None if reader is None else reader(message)

    def _about(self, what: Change, index: int, address: str | None = None) -> LinkChange:
        state = self._links.get(index)
        return LinkChange(what, index, None if state is None else state.name, address)

    def _link_seen(self, message: netlink.Message) -> LinkChange | None:
        if message.get_attr("IFLA_MTU") is None:
            return None  # it tells something else of the link, such as a wireless event
        index = message["index"]
        before = self._links.get(index)
        now = self._links[index] = _LinkState.of(message)
        if before == now:
            return None
        if before is None or before.is_up != now.is_up:
            return self._about(Change.UP if now.is_up else Change.DOWN, index)
        return self._about(Change.CHANGED, index)

    def _link_removed(self, message: netlink.Message) -> LinkChange:
        change = self._about(Change.REMOVED, message["index"])
        self._links.pop(message["index"], None)
        return change

    def _address_change(self, message: netlink.Message) -> LinkChange:
        return self._about(Change.ADDRESS, message["index"], own_address(message))

    def _route_change(self, message: netlink.Message) -> LinkChange | None:
        if message["flags"] & RTM_F_CLONED:
            return None
        return self._about(Change.ROUTE, message.get_attr("RTA_OIF") or 0)

    def _neighbour_seen(self, message: netlink.Message) -> LinkChange | None:
        """Compare link addresses: the state of a neighbour in use changes twice a minute."""
        key = message["ifindex"], message.get_attr("NDA_DST")
        before, now = self._neighbours.get(key, UNHEARD), known_neighbour(message).link_address
        self._neighbours[key] = now
        return None if now == before else self._about(Change.NEIGHBOUR, *key)

    def _neighbour_removed(self, message: netlink.Message) -> LinkChange | None:
        key = message["ifindex"], message.get_attr("NDA_DST")
        before = self._neighbours.pop(key, UNHEARD)
        return None if before is None else self._about(Change.NEIGHBOUR, *key)


class LinkMonitor:
    """The changes of the network namespace that it was made in.

    An event loop watches `fileno` and calls `changes` when it is readable; neither blocks. Changes
    are remembered from the moment it is made. Close it, or use it as a context manager.
    """

    def __init__(self) -> None:
        """Subscribe.

        Raises:
            NetsondeError: the kernel refused.
        """
        try:
            self._events = netlink.subscribe(GROUPS)
        except OSError as error:
            raise NetsondeError(f"cannot hear network changes: {error}") from error
        try:
            self._announcements = Announcements(netlink.ask_for_all(RTM_GETLINK, {}))
        except OSError as error:
            self._events.close()
            raise NetsondeError(f"cannot list this host's interfaces: {error}") from error

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are changes."""
        return self._events.fileno()

    def changes(self) -> list[LinkChange]:
        """Return what has changed since the last call, in order; of equal changes the last.

        Nothing is a common answer: the kernel repeats itself. After LOST come UP and DOWN of every
        interface as it is now.

        Raises:
            NetsondeError: the kernel's announcements cannot be read any more.
        """
        heard: dict[LinkChange, None] = {}
        for change in self._read():
            heard.pop(change, None)
            heard[change] = None
        return list(heard)

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> Iterator[LinkChange]:
        for _ in range(DATAGRAMS_MAX):
            try:
                messages = list(netlink.parse(self._events.recv(netlink.DATAGRAM_BYTES_MAX)))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in STARTS_ANEW:
                    raise NetsondeError(f"cannot hear network changes: {error}") from error
                self._start_anew()
                yield LOST
                continue
            changes = map(self._announcements.change, messages)
            yield from (change for change in changes if change is not None)

    def _start_anew(self) -> None:
        """Forget what may have changed; the links' list comes as announcements.

        It is asked for on this socket, whose namespace the calling thread may have left.
        """
        self._announcements = Announcements()
        try:
            self._events.send(netlink.pack(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, {}, ()))
        except OSError as error:
            raise NetsondeError(f"cannot list this host's interfaces: {error}") from error


@dataclass(frozen=True, slots=True)
class _LinkState:
    name: str
    is_up: bool
    mtu: int
    link_address: Any

    @classmethod
    def of(cls, message: netlink.Message) -> Self:
        usable = IFF_UP | IFF_RUNNING
        return cls(
            name=message.get_attr("IFLA_IFNAME"),
            is_up=message["flags"] & usable == usable,
            mtu=message.get_attr("IFLA_MTU"),
            link_address=message.get_attr("IFLA_ADDRESS"),
        )
