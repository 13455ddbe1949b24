"""What the kernel says of this host's network: addresses, routes, neighbours, and their changes."""

import asyncio
import ipaddress
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from netsonde import netinfo
from netsonde.clock import NS_PER_MS, NS_PER_S, SystemClock
from netsonde.errors import ConfigError, NetsondeError, PrivilegeError, RouteError
from netsonde.netinfo import Change, LinkChange, LinkMonitor, Route, netlink
from support.namespaces import Chain, Namespace, chain, connect, left_address, right_address
from support.privileges import CAP_NET_RAW, with_capabilities

ONLY_NET_RAW = 1 << CAP_NET_RAW
WAIT_NS = 5 * NS_PER_S
MARK = 7
ELSEWHERE = {4: "198.51.100.7", 6: "2001:db8::7"}  # nobody has a route to these
EVERYWHERE = {4: "198.51.100.0/24", 6: "2001:db8::/32"}

families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def network() -> Iterator[Chain]:
    with chain(1) as network:
        yield network


@pytest.fixture
def host(network: Chain) -> Namespace:
    return network.host


def link_address_of(node: Namespace, interface: str) -> bytes:
    (link,) = node.route.link("get", index=node.index(interface))
    return bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", ""))


def refusal(error: type[NetsondeError], host: Namespace, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        host.call(netinfo.route_to, *args, **kwargs)
    return str(caught.value)


# ── addresses and interfaces ──


def test_every_address_of_a_host_is_its_own() -> None:
    addresses = netinfo.local_addresses()

    assert "127.0.0.1" in addresses
    assert all(ipaddress.ip_address(address) for address in addresses)


async def test_it_can_be_asked_beside_a_running_loop_and_on_its_thread() -> None:
    assert "127.0.0.1" in await asyncio.to_thread(netinfo.local_addresses)
    assert "127.0.0.1" in netinfo.local_addresses()
    assert netinfo.route_to("127.0.0.1").is_local


@pytest.mark.netns
def test_the_near_end_of_a_link_counts_and_the_far_end_does_not() -> None:
    space = Namespace("own")
    try:
        space.address("lo", "192.0.2.77", 32)
        space.address("lo", "2001:db8::77", 128)
        space.route.addr(
            "add",
            index=space.index("lo"),
            local="192.0.2.1",
            address="192.0.2.2",
            prefixlen=32,
        )
        addresses = space.call(netinfo.local_addresses)
    finally:
        space.close()

    assert addresses == {"127.0.0.1", "::1", "192.0.2.77", "2001:db8::77", "192.0.2.1"}


def test_a_kernel_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(netlink, "_open", refuse)
    with pytest.raises(NetsondeError, match=r"cannot list .* addresses: .*Too many"):
        netinfo.local_addresses()
    with pytest.raises(RouteError, match=r"cannot send to 192\.0\.2\.1: .*Too many"):
        netinfo.route_to("192.0.2.1")
    with pytest.raises(NetsondeError, match=r"cannot hear network changes: .*Too many"):
        LinkMonitor()


@pytest.mark.netns
def test_interfaces_are_found_by_name(host: Namespace) -> None:
    assert host.call(netinfo.interfaces) == ("lo", "right")
    assert host.call(netinfo.interface_index, "right") == host.index("right")
    with pytest.raises(ConfigError, match=r"no interface 'eth7', it has lo, right"):
        host.call(netinfo.interface_index, "eth7")


# ── routes ──


@pytest.mark.netns
@families
def test_a_destination_on_the_link(host: Namespace, family: int) -> None:
    assert host.call(netinfo.route_to, right_address(0, family)) == Route(
        source=left_address(0, family),
        interface_index=host.index("right"),
        interface="right",
        mtu=1500,
    )


@pytest.mark.netns
@families
def test_a_destination_behind_a_gateway(host: Namespace, family: int) -> None:
    route = host.call(netinfo.route_to, right_address(1, family))

    assert (route.gateway, route.interface) == (right_address(0, family), "right")
    assert route.source == left_address(0, family)
    assert not route.is_local


@pytest.mark.netns
def test_an_ipv4_destination_behind_an_ipv6_gateway(host: Namespace) -> None:
    gateway = right_address(0, 6)
    via = {"family": socket.AF_INET6, "addr": gateway}
    host.route.route("add", dst=EVERYWHERE[4], via=via, oif=host.index("right"))

    assert host.call(netinfo.route_to, ELSEWHERE[4]).gateway == gateway


@pytest.mark.netns
@families
def test_an_address_of_this_host_is_local(host: Namespace, family: int) -> None:
    route = host.call(netinfo.route_to, left_address(0, family))

    assert (route.interface, route.is_local, route.has_neighbours) == ("lo", True, False)
    assert host.call(netinfo.link_address, route, left_address(0, family)) == bytes(6)


@pytest.mark.netns
@families
def test_the_mtu_is_the_routes_where_it_has_one(host: Namespace, family: int) -> None:
    gateway = right_address(0, family)
    host.route.route("add", dst=EVERYWHERE[family], gateway=gateway, metrics={"mtu": 1300})
    assert host.call(netinfo.route_to, ELSEWHERE[family]).mtu == 1300

    host.route.route("replace", dst=EVERYWHERE[family], gateway=gateway, metrics={"mtu": 9000})
    assert host.call(netinfo.route_to, ELSEWHERE[family]).mtu == 1500


@pytest.mark.netns
def test_a_router_may_advertise_a_smaller_mtu_for_ipv6(host: Namespace) -> None:
    host.sysctl("net.ipv6.conf.right.mtu", 1400)

    assert host.call(netinfo.route_to, right_address(0, 6)).mtu == 1400
    assert host.call(netinfo.route_to, right_address(0, 4)).mtu == 1500


@pytest.mark.netns
@families
def test_a_mark_chooses_the_table(network: Chain, family: int) -> None:
    host = network.host
    number = socket.AF_INET if family == 4 else socket.AF_INET6
    host.route.rule("add", family=number, fwmark=MARK, table=100, priority=100)
    host.route.route("add", dst=EVERYWHERE[family], gateway=right_address(0, family), table=100)

    route = host.call(netinfo.route_to, ELSEWHERE[family], mark=MARK)

    assert route.gateway == right_address(0, family)
    assert f"{ELSEWHERE[family]} with mark 8" in refusal(
        RouteError, host, ELSEWHERE[family], mark=8
    )


@pytest.mark.netns
@families
def test_a_source_and_an_interface_choose_the_way(network: Chain, family: int) -> None:
    host, router = network.host, network.nodes[1]
    connect(host, router, "second", "below")
    bits, near, far = (24, "10.78.0.1", "10.78.0.2") if family == 4 else (64, "fd78::1", "fd78::2")
    host.address("second", near, bits)
    router.address("below", far, bits)
    for number, (gateway, name) in enumerate(
        ((right_address(0, family), "right"), (far, "second"))
    ):
        host.route.route(
            "add",
            dst=EVERYWHERE[family],
            gateway=gateway,
            oif=host.index(name),
            priority=number + 1,
        )

    first = host.call(netinfo.route_to, ELSEWHERE[family])
    bound = host.call(netinfo.route_to, ELSEWHERE[family], interface="second")
    sourced = host.call(netinfo.route_to, ELSEWHERE[family], source=near)

    assert (first.interface, first.source) == ("right", left_address(0, family))
    assert (bound.interface, bound.source, bound.gateway) == ("second", near, far)
    assert (sourced.interface, sourced.source) == ("right", near)


@pytest.mark.netns
@families
def test_longer_routes_addresses_and_rules_part_a_prefix(network: Chain, family: int) -> None:
    host = network.host
    bits, part = (24, 25) if family == 4 else (64, 65)
    af = socket.AF_INET if family == 4 else socket.AF_INET6
    first, second = "198.51.100.0", "203.0.113.0"
    if family == 6:
        first, second = "2001:db8:1::", "2001:db8:2::"
    before = host.call(netinfo.parted_prefixes, family, bits)
    host.route.route("add", dst=f"{first}/{part}", oif=host.index("right"), family=af)
    host.route.route("add", dst=f"{second}/{bits}", oif=host.index("right"), family=af)
    added = host.call(netinfo.parted_prefixes, family, bits) - before
    assert added == {f"{first}/{bits}"}
    host.route.rule("add", dst=second, dst_len=part, table=254, family=af)
    added = host.call(netinfo.parted_prefixes, family, bits) - before
    assert added == {f"{first}/{bits}", f"{second}/{bits}"}


@pytest.mark.netns
def test_a_zone_is_an_interface(host: Namespace) -> None:
    route = host.call(netinfo.route_to, "fe80::1%right")

    assert route.interface == "right"
    assert route.source.startswith("fe80::")
    assert "no interface 'left'" in refusal(ConfigError, host, "fe80::1%left")


@pytest.mark.netns
@families
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (None, "this host has no route to it: add one"),
        ("unreachable", "type unreachable refuses"),
        ("prohibit", "type prohibit refuses"),
        ("blackhole", "type blackhole drops"),
    ],
)
def test_no_way_there_says_why(host: Namespace, family: int, kind: str | None, said: str) -> None:
    if kind is not None:
        host.refuse(EVERYWHERE[family], kind)

    told = refusal(RouteError, host, ELSEWHERE[family])

    assert told.startswith(f"cannot send to {ELSEWHERE[family]}: ")
    assert said in told


@pytest.mark.netns
def test_what_is_not_one_host_is_refused(host: Namespace) -> None:
    host.route.route("add", dst="224.0.0.0/4", oif=host.index("right"))
    for address in ("10.77.0.3", "224.0.0.1", "ff02::1"):
        assert "not the address of one host" in refusal(RouteError, host, address)


@pytest.mark.netns
@families
def test_wrong_conditions_are_named(host: Namespace, family: int) -> None:
    there = right_address(0, family)

    assert "no interface 'eth7', it has lo, right" in refusal(
        ConfigError, host, there, interface="eth7"
    )
    told = refusal(ConfigError, host, there, source=ELSEWHERE[family])
    assert f"source {ELSEWHERE[family]} is not an address of this host" in told
    assert left_address(0, family) in told
    assert "'nowhere' is not an IP address" in refusal(ConfigError, host, "nowhere")
    host.route.link("set", index=host.index("right"), state="down")
    assert "interface right is down" in refusal(RouteError, host, there, interface="right")


@pytest.mark.netns
def test_a_link_without_an_address_has_no_source() -> None:
    near, far = Namespace("near"), Namespace("far")
    try:
        connect(near, far, "bare", "other")
        near.route.route("add", dst=EVERYWHERE[4], oif=near.index("bare"))
        told = refusal(RouteError, near, ELSEWHERE[4])
    finally:
        near.close()
        far.close()
    assert told.endswith("give bare an IPv4 address")


# ── neighbours ──


@pytest.mark.raw
@pytest.mark.netns
@families
@pytest.mark.parametrize("hops", [1, 2], ids=["on the link", "behind a gateway"])
def test_an_unknown_neighbour_is_found_with_cap_net_raw_alone(
    network: Chain, family: int, hops: int
) -> None:
    host, destination = network.host, network.hops(family)[hops - 1]

    def ask() -> list[bytes]:
        route = netinfo.route_to(destination)
        return [netinfo.link_address(route, destination) for _ in range(2)]

    found = host.call(with_capabilities, ONLY_NET_RAW, ask)

    assert found == [link_address_of(network.nodes[1], "left")] * 2


@pytest.mark.netns
def test_a_known_neighbour_needs_no_privilege(network: Chain) -> None:
    host, there = network.host, right_address(0, 4)
    host.route.neigh(
        "add", dst=there, lladdr="02:00:00:00:00:07", ifindex=host.index("right"), state="permanent"
    )

    def ask() -> bytes:
        return netinfo.link_address(netinfo.route_to(there), there)

    assert host.call(with_capabilities, 0, ask) == bytes.fromhex("020000000007")


@pytest.mark.netns
def test_an_unknown_neighbour_without_privilege_says_what_is_missing(network: Chain) -> None:
    there = right_address(0, 4)

    def ask() -> bytes:
        return netinfo.link_address(netinfo.route_to(there), there)

    with pytest.raises(
        PrivilegeError, match=r"link address of 10\.77\.0\.2 on right: .*CAP_NET_RAW"
    ):
        network.host.call(with_capabilities, 0, ask)


@pytest.mark.raw
@pytest.mark.netns
@families
@pytest.mark.parametrize("times", [1, 2], ids=["unknown", "failed before"])
def test_nobody_there_is_an_error_as_soon_as_the_kernel_gives_up(
    host: Namespace, family: int, times: int
) -> None:
    kernel = f"net.ipv{family}.neigh.right"
    host.sysctl(f"{kernel}.retrans_time_ms", 20)
    nobody = "10.77.9.9" if family == 4 else "fd77:0:0:1::9"
    host.address("right", "10.77.9.1", 24)
    route = host.call(netinfo.route_to, nobody)
    for _ in range(times):
        with pytest.raises(RouteError, match=rf"link address of {nobody} on right: nobody answers"):
            host.call(netinfo.link_address, route, nobody)


@pytest.mark.raw
@pytest.mark.netns
def test_waiting_for_a_neighbour_is_bounded(host: Namespace) -> None:
    host.address("right", "10.77.9.1", 24)
    route = host.call(netinfo.route_to, "10.77.9.9")
    clock = SystemClock()
    started_ns = clock.monotonic_ns()
    with pytest.raises(RouteError, match="nobody answers"):
        host.call(netinfo.link_address, route, "10.77.9.9", timeout_ns=30 * NS_PER_MS)

    assert 30 * NS_PER_MS <= clock.monotonic_ns() - started_ns < NS_PER_S


@pytest.mark.raw
@pytest.mark.netns
def test_a_link_that_is_gone_is_an_error(host: Namespace) -> None:
    there = right_address(0, 4)
    route = host.call(netinfo.route_to, there)
    host.route.link("del", index=host.index("right"))

    with pytest.raises(RouteError, match=r"link address of 10\.77\.0\.2 on right: "):
        host.call(netinfo.link_address, route, there)


# ── changes ──


@pytest.fixture
def monitor(host: Namespace) -> Iterator[LinkMonitor]:
    with host.call(LinkMonitor) as monitor:
        yield monitor


def heard(monitor: LinkMonitor, wanted: set[Change]) -> list[LinkChange]:
    """What the monitor tells until everything wanted is among it, from outside its namespace."""
    clock = SystemClock()
    deadline_ns = clock.monotonic_ns() + WAIT_NS
    poller = select.poll()
    poller.register(monitor, select.POLLIN)
    changes: list[LinkChange] = []
    while not wanted <= {change.what for change in changes}:
        left_ns = deadline_ns - clock.monotonic_ns()
        assert left_ns > 0, f"heard only {changes}"
        if poller.poll(left_ns // NS_PER_MS):
            changes += monitor.changes()
    return changes


@pytest.mark.netns
def test_silence_is_no_change(monitor: LinkMonitor) -> None:
    monitor.changes()  # a link that was just made has things to tell
    assert monitor.changes() == []


@pytest.mark.netns
@families
def test_an_address_is_heard(host: Namespace, monitor: LinkMonitor, family: int) -> None:
    index, address = host.index("right"), ELSEWHERE[family]
    expected = LinkChange(Change.ADDRESS, index, "right", address)
    host.address("right", address, 24)
    assert expected in heard(monitor, {Change.ADDRESS, Change.ROUTE})

    host.route.addr("del", index=index, address=address, prefixlen=24)
    assert expected in heard(monitor, {Change.ADDRESS})


@pytest.mark.netns
@families
def test_a_route_is_heard(host: Namespace, monitor: LinkMonitor, family: int) -> None:
    host.route_to(EVERYWHERE[family], right_address(0, family))
    expected = LinkChange(Change.ROUTE, host.index("right"), "right")
    assert expected in heard(monitor, {Change.ROUTE})


@pytest.mark.netns
def test_a_link_that_goes_comes_changes_and_is_removed(
    host: Namespace, monitor: LinkMonitor
) -> None:
    index = host.index("right")

    def expect(what: Change, name: str = "right") -> None:
        assert LinkChange(what, index, name) in heard(monitor, {what})

    host.route.link("set", index=index, state="down")
    expect(Change.DOWN)
    host.route.link("set", index=index, mtu=1400)
    expect(Change.CHANGED)
    host.route.link("set", index=index, ifname="renamed")
    expect(Change.CHANGED, "renamed")
    host.route.link("set", index=index, state="up")
    expect(Change.UP, "renamed")
    host.route.link("del", index=index)
    expect(Change.REMOVED, "renamed")


@pytest.mark.netns
def test_a_neighbour_is_heard_once_until_its_link_address_changes(
    host: Namespace, monitor: LinkMonitor
) -> None:
    there, index = right_address(0, 4), host.index("right")
    expected = LinkChange(Change.NEIGHBOUR, index, "right", there)

    def set_neighbour(link_address: str, state: str) -> None:
        host.route.neigh("replace", dst=there, lladdr=link_address, ifindex=index, state=state)

    set_neighbour("02:00:00:00:00:07", "reachable")
    assert expected in heard(monitor, {Change.NEIGHBOUR})
    set_neighbour("02:00:00:00:00:07", "stale")
    host.route_to(EVERYWHERE[4], there)
    assert expected not in heard(monitor, {Change.ROUTE})
    set_neighbour("02:00:00:00:00:08", "stale")
    assert expected in heard(monitor, {Change.NEIGHBOUR})
    host.route.neigh("del", dst=there, ifindex=index)
    assert expected in heard(monitor, {Change.NEIGHBOUR})


@pytest.mark.netns
def test_what_was_missed_is_said_and_the_links_told_anew(
    host: Namespace, monitor: LinkMonitor
) -> None:
    monitor._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
    for last in range(1, 30):
        host.address("right", f"198.51.100.{last}", 32)
    host.route.link("set", index=host.index("right"), state="down")

    changes = heard(monitor, {Change.LOST, Change.UP, Change.DOWN})

    assert changes.index(netinfo.LinkChange(Change.LOST)) < changes.index(
        LinkChange(Change.DOWN, host.index("right"), "right")
    )
    assert LinkChange(Change.UP, host.index("lo"), "lo") in changes


@pytest.fixture
def changed(host: Namespace, monitor: LinkMonitor) -> LinkMonitor:
    host.address("right", ELSEWHERE[4], 24)
    return monitor


@pytest.mark.netns
async def test_a_loop_can_watch_it(changed: LinkMonitor) -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[list[LinkChange]] = loop.create_future()

    def tell() -> None:
        loop.remove_reader(changed.fileno())
        told.set_result(changed.changes())

    loop.add_reader(changed.fileno(), tell)
    try:
        async with asyncio.timeout(WAIT_NS / NS_PER_S):
            changes = await told
    finally:
        loop.remove_reader(changed.fileno())

    assert ELSEWHERE[4] in {change.address for change in changes}


def test_a_closed_monitor_can_be_closed_again() -> None:
    monitor = LinkMonitor()
    monitor.close()
    monitor.close()
    with pytest.raises(NetsondeError, match="cannot hear network changes"):
        monitor.changes()
