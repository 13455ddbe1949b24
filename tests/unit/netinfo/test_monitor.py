"""Which announcements are changes."""

import errno
import os
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from pyroute2.netlink import NLMSG_ERROR
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from pyroute2.netlink.rtnl.ndmsg import NUD_FAILED, NUD_REACHABLE, NUD_STALE

from netsonde.errors import NetsondeError
from netsonde.netinfo import netlink
from netsonde.netinfo.links import IFF_RUNNING, IFF_UP
from netsonde.netinfo.monitor import (
    LOST,
    RTM_F_CLONED,
    Announcements,
    Change,
    LinkChange,
    LinkMonitor,
)
from netsonde.netinfo.netlink import Message, pack, parse

AF_INET, AF_BRIDGE = 2, 7
ETH0 = 2
UP = IFF_UP | IFF_RUNNING
MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
THERE = "192.0.2.9"


def message(kind: int, fields: dict[str, Any], **attributes: Any) -> Message:
    return next(parse(pack(kind, 0, fields, tuple(attributes.items()))))


def link(flags: int = UP, kind: int = RTM_NEWLINK, family: int = 0, **changed: Any) -> Message:
    attributes = {"IFLA_IFNAME": "eth0", "IFLA_MTU": 1500, "IFLA_ADDRESS": MAC} | changed
    fields = {"index": ETH0, "flags": flags, "family": family}
    return message(kind, fields, **attributes)


def neighbour(state: int, mac: str | None = MAC, kind: int = RTM_NEWNEIGH) -> Message:
    attributes = {"NDA_DST": THERE} | ({} if mac is None else {"NDA_LLADDR": mac})
    return message(kind, {"family": AF_INET, "ifindex": ETH0, "state": state}, **attributes)


def told(announcements: Announcements, *messages: Message) -> list[LinkChange | None]:
    return [announcements.change(message) for message in messages]


def about(what: Change, address: str | None = None) -> LinkChange:
    return LinkChange(what, ETH0, "eth0", address)


@pytest.fixture
def announcements() -> Announcements:
    return Announcements([link()])


def test_a_link_is_told_when_it_differs(announcements: Announcements) -> None:
    assert told(
        announcements,
        link(),
        link(IFF_UP),  # no carrier
        link(0),
        link(),
        link(IFLA_MTU=1400),
        link(IFLA_MTU=1400, IFLA_ADDRESS=OTHER_MAC),
        link(kind=RTM_DELLINK),
        link(0),
    ) == [
        None,
        about(Change.DOWN),
        None,
        about(Change.UP),
        about(Change.CHANGED),
        about(Change.CHANGED),
        about(Change.REMOVED),
        about(Change.DOWN),
    ]


def test_a_new_name_is_the_name_from_then_on(announcements: Announcements) -> None:
    renamed = announcements.change(link(IFLA_IFNAME="lan"))

    assert renamed == LinkChange(Change.CHANGED, ETH0, "lan")
    assert announcements.change(link(kind=RTM_DELLINK)) == LinkChange(Change.REMOVED, ETH0, "lan")


def test_bridges_wireless_events_and_rules_tell_nothing(announcements: Announcements) -> None:
    wireless = message(RTM_NEWLINK, {"index": ETH0, "flags": 0}, IFLA_IFNAME="eth0")
    rule = {"family": AF_INET, "header": {"type": RTM_NEWRULE}}

    assert told(announcements, wireless, link(0, family=AF_BRIDGE)) == [None, None]
    assert announcements.change(rule) is None  # type: ignore[arg-type]


def test_an_address_is_told_with_its_own_end(announcements: Announcements) -> None:
    fields = {"family": AF_INET, "index": ETH0}
    tunnel = message(RTM_NEWADDR, fields, IFA_ADDRESS="192.0.2.2", IFA_LOCAL="192.0.2.1")

    assert announcements.change(tunnel) == about(Change.ADDRESS, "192.0.2.1")


def test_a_route_is_told_with_its_interface_if_it_has_one(announcements: Announcements) -> None:
    one = message(RTM_NEWROUTE, {"family": AF_INET}, RTA_OIF=ETH0)
    several = message(RTM_NEWROUTE, {"family": AF_INET})
    cached = message(RTM_NEWROUTE, {"family": AF_INET, "flags": RTM_F_CLONED}, RTA_OIF=ETH0)

    assert told(announcements, one, several, cached) == [
        about(Change.ROUTE),
        LinkChange(Change.ROUTE),
        None,
    ]


def test_a_neighbour_is_told_when_its_link_address_differs(announcements: Announcements) -> None:
    changed = about(Change.NEIGHBOUR, THERE)

    assert told(
        announcements,
        neighbour(NUD_REACHABLE),
        neighbour(NUD_STALE),
        neighbour(NUD_REACHABLE, OTHER_MAC),
        neighbour(NUD_FAILED, None),
        neighbour(NUD_FAILED, None),
        neighbour(NUD_FAILED, None, RTM_DELNEIGH),
        neighbour(NUD_STALE),
        neighbour(NUD_STALE, MAC, RTM_DELNEIGH),
    ) == [changed, None, changed, changed, None, None, changed, changed]


@pytest.mark.parametrize("kind", [RTM_NEWNEIGH, RTM_DELNEIGH])
def test_a_neighbour_that_was_never_heard_of_may_be_known_to_somebody(
    announcements: Announcements, kind: int
) -> None:
    lost = neighbour(NUD_FAILED, None, kind)

    assert announcements.change(lost) == about(Change.NEIGHBOUR, THERE)


# ── what goes wrong with the socket ──────────────────────────────────────────────────────────────


class Events:
    """A netlink socket that hands out datagrams and raises errors, in order."""

    def __init__(self, *heard: bytes | int, deaf_to: int = 0) -> None:
        self.heard = list(heard)
        self.questions = 0
        self.deaf_to = deaf_to

    def recv(self, _size: int) -> bytes:
        if not self.heard:
            raise BlockingIOError
        event = self.heard.pop(0)
        if isinstance(event, int):
            raise OSError(event, os.strerror(event))
        return event

    def send(self, _question: bytes) -> None:
        self.questions += 1
        if self.deaf_to:
            raise OSError(self.deaf_to, os.strerror(self.deaf_to))


def refused(code: int) -> bytes:
    return struct.pack("=IHHIIi", 20, NLMSG_ERROR, 0, 0, 0, -code)


def heard_of(
    monkeypatch: pytest.MonkeyPatch, events: Events, links: Sequence[Message] = ()
) -> list[LinkChange]:
    monkeypatch.setattr(netlink, "subscribe", lambda _groups: events)
    monkeypatch.setattr(netlink, "ask_for_all", lambda *_: links)
    return LinkMonitor().changes()


def test_more_is_lost_while_the_links_are_still_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    down = pack(
        RTM_NEWLINK, 0, {"index": ETH0, "flags": 0}, (("IFLA_IFNAME", "eth0"), ("IFLA_MTU", 1500))
    )
    events = Events(errno.ENOBUFS, errno.ENOBUFS, refused(errno.EBUSY), down)
    assert heard_of(monkeypatch, events) == [LOST, about(Change.DOWN)]
    assert events.questions == 3  # the one that was refused is asked again


@pytest.mark.parametrize(
    "events",
    [
        Events(errno.ENETDOWN),
        Events(refused(errno.EPERM)),
        Events(errno.ENOBUFS, deaf_to=errno.ENOBUFS),
    ],
)
def test_what_cannot_be_heard_any_more_is_said(
    monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    with pytest.raises(NetsondeError, match="cannot"):
        heard_of(monkeypatch, events)
