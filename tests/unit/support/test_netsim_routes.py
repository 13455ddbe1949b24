"""Routes of the network simulator: what is refused and where, graphs, and the truth about them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import packets
from support.netsim import SCENARIOS, Scenario, ScenarioError, load_scenario, make_scenario
from support.netsim.extension import extension_bytes
from support.netsim.graph import graph_of
from support.netsim.paths import Hop, Link, paths_to
from support.netsim.routes import DESTINATION, HOST, Extension, ExtensionObject, Label, Route
from support.netsim.settings import scenario_text
from support.netsim.topologies import (
    Shape,
    chain_destination,
    chain_router,
    random_destination,
    random_topology,
    trace_chain,
)
from support.netsim.tracer import TARGET, routed, router_address

ROUTERS = {name: {"address4": f"10.1.0.{n}"} for n, name in enumerate("abcdefgh", 1)}


def table(route: dict[str, Any], **router: Any) -> dict[str, Any]:
    return {
        "hosts": [{"prefixes": ["10.0.0.0/16", "fd00::/64"], "route": "r"}],
        "route": {"r": route},
        "router": {**ROUTERS, "a": {**ROUTERS["a"], **router}},
    }


@pytest.mark.parametrize(
    ("route", "complaint"),
    [
        ({"hops": ["a", "z"]}, "route.r.hops[1]: z is not a described router"),
        ({"hops": ["a", "host"]}, "route.r.hops[1]: host is not a described router"),
        ({"hops": ["a", ["b", "a"]]}, "route.r.hops[1][1][0]: a comes twice; `end` makes a loop"),
        ({"hops": ["a", []]}, "route.r.hops[1]: neither a name nor a list of 1 to 64 branches"),
        ({"hops": [1]}, "route.r.hops[0]: neither a name nor a list of 1 to 64 branches"),
        ({"hops": ["a", [1]]}, "route.r.hops[1][0]: neither a name nor a list of hops"),
        ({"hops": ["a"], "end": "b"}, "route.r.end: b is no hop of the route"),
        ({"hops": ["a"], "end": "host"}, "route.r.end: host is no hop of the route"),
        (
            {"hops": ["a"], "links": [{"between": ["a", "b"]}]},
            "route.r.links[0].between: a, b: no such hops",
        ),
        (
            {"hops": ["a"], "links": [{"between": ["destination", "a"]}]},
            "route.r.links[0].between: destination, a: no such hops",
        ),
        ({"hops": ["a"], "links": [{"between": ["a"]}]}, "route.r.links[0].between: Expected `arr"),
        ({"hops": ["a"], "link": {"loss": 2}}, "route.r.link.loss: Expected `float` <= 1.0"),
        ({"hops": ["a"], "link": {"mtu": 60}}, "route.r.link.mtu: Expected `int` >= 68"),
        ({"hops": "a", "end": "b"}, "route.r.hops: Expected `array`, got `str`"),
        (
            {"hops": ["a"], "destination": {"tcp": "open"}},
            "route.r.destination.tcp: Invalid enum value 'open'",
        ),
        (
            {"hops": ["a"], "destination": {"from6": "10.0.0.1"}},
            "route.r.destination.from6: 10.0.0.1 is not an IPv6 address",
        ),
    ],
)
def test_a_wrong_route_is_named(route: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        make_scenario(table(route))
    assert str(raised.value).startswith(complaint)


@pytest.mark.parametrize(
    ("router", "complaint"),
    [
        ({"address4": "fd00::1"}, "router.a.address4: fd00::1 is not an IPv4 address"),
        ({"balance": "coin"}, "router.a.balance: Invalid enum value 'coin'"),
        ({"quoted_ttl": 2}, "router.a.quoted_ttl: Invalid enum value 2"),
        ({"mpls": [{"label": 1 << 20}]}, "router.a.mpls[0].label: Expected `int` <= 1048575"),
        ({"rate_limit": {"per_second": 0}}, "router.a.rate_limit.per_second: Expected `float` > 0"),
        ({"nat": {"address6": "10.0.0.1"}}, "router.a.nat.address6: 10.0.0.1 is not an IPv6"),
        ({"refuses": {"protocols": []}}, "router.a.refuses.protocols: nothing to choose from"),
        (
            {"extension": {"objects": [{"class": 1, "data": "0102"}]}},
            "router.a.extension.objects[0].data: Expected `str` matching regex",
        ),
        (
            {"extension": {"objects": [{"class": 1, "data": "00" * 80}] * 4}},
            "router.a.extension: more than 256 bytes",
        ),
    ],
)
def test_a_wrong_router_is_named(router: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        make_scenario(table({"hops": ["a"]}, **router))
    assert str(raised.value).startswith(complaint)


def test_too_many_nats_are_refused() -> None:
    routers = {f"a{n}": {"nat": {"address4": f"10.2.0.{n}"}} for n in range(1, 6)}
    with pytest.raises(ScenarioError, match=r"route\.tested\.hops: more than 4 routers with a NAT"):
        routed(list(routers), routers)


def test_hosts_have_something_attached() -> None:
    bare = table({"hops": ["a"]})
    with pytest.raises(ScenarioError, match=r"^hosts\[0\]: neither a behaviour nor a route"):
        make_scenario({**bare, "hosts": [{"prefixes": ["10.0.0.0/16"]}]})
    with pytest.raises(ScenarioError, match=r"^hosts\[0\]\.route: s is not described"):
        make_scenario({**bare, "hosts": [{"prefixes": ["10.0.0.0/16"], "route": "s"}]})
    with pytest.raises(ScenarioError, match=r"^route: not a table of tables"):
        make_scenario({**bare, "route": 1})


def edges_of(**route: Any) -> set[str]:
    return {f"{edge.tail}>{edge.head}" for edge in graph_of(Route(**route)).edges}


def test_hops_are_joined_in_sequence() -> None:
    assert edges_of(hops=()) == {"host>destination"}
    assert edges_of(hops=("a", "b")) == {"host>a", "a>b", "b>destination"}


def test_branches_part_and_meet() -> None:
    hops = ("a", ("b", ("c", "d"), ()), "e")
    assert edges_of(hops=hops) == {
        "host>a", "a>b", "a>c", "c>d", "b>e", "d>e", "a>e", "e>destination",
    }  # fmt: skip


def test_branches_that_meet_branches_are_meshed() -> None:
    assert edges_of(hops=(("a", "b"), ("c", "d"))) == {
        "host>a", "host>b", "a>c", "a>d", "b>c", "b>d", "c>destination", "d>destination",
    }  # fmt: skip


def test_branches_may_branch() -> None:
    assert edges_of(hops=("a", (("b", ("c", "d")), "e"))) == {
        "host>a", "a>b", "b>c", "b>d", "a>e", "c>destination", "d>destination", "e>destination",
    }  # fmt: skip


def test_routes_may_have_another_end() -> None:
    assert edges_of(hops=("a", "b"), end="a") == {"host>a", "a>b", "b>a"}
    assert edges_of(hops=("a", "b"), end="nowhere") == {"host>a", "a>b"}


def test_links_say_more_of_a_pair_or_add_it() -> None:
    scenario = routed(
        ["a1", "a2", "a3"], link={"delay_ms": 1},
        links=[{"between": ["a1", "a2"], "loss": 0.5}, {"between": ["a1", "a3"], "mtu": 1300}],
    )  # fmt: skip
    links = {(e.tail, e.head): e.link for e in graph_of(scenario.route["tested"]).edges}
    assert links["a2", "a3"].delay_ms == 1
    assert (links["a1", "a2"].loss, links["a1", "a2"].delay_ms) == (0.5, 0)
    assert links["a1", "a3"].mtu == 1300


def test_the_program_is_told_of_routes() -> None:
    scenario = routed(
        ["a1", ["b1", "b2"]],
        {
            "a1": {"seed": 9, "balance": "packet", "mpls": [{"label": 3}], "tos": 4},
            "b1": {"refuses": {"protocols": ["tcp"]}, "rate_limit": {"per_second": 2}},
        },
        links=[{"between": ["a1", "b1"], "delay_ms": 1, "mtu": 1300, "reported_mtu": 0}],
        destination={"tcp": "reset"},
    )
    text = scenario_text(scenario)
    a1, b1, b2 = text.split("\nrouter\n")[1:]
    assert "seed 9\n" in a1
    assert "balance 1\n" in a1
    assert "tos 4\n" in a1
    assert "extension 2000" in a1
    assert "refuses.protocols 4\n" in b1
    assert "limit.per_second 2.0\nlimit.burst 1.0" in b1
    route = b2[b2.index("\nroute\n") :]
    assert "tcp 1\n" in route
    assert (
        "node host\nedge 1\nnode 0\nedge 2\ndelay_ns 1000000\nreturn_delay_ns 1000000\n"
        "mtu 1300\nreported_mtu 0\nblack_hole 0\nedge 3\nnode 1\nedge 4\nnode 2\nedge 4\n"
        "node destination\nprefix 10.20.0.0/24 1 0\n"
    ) in route


def test_a_label_stack_is_as_rfc_4950_says() -> None:
    found = extension_bytes(Extension(), (Label(label=16, tc=3, ttl=7), Label(label=1)))
    assert found[:2] == b"\x20\0"
    assert packets.checksum(found) == 0
    assert found[4:] == bytes.fromhex("000c0101 00010607 00001101")


def test_no_objects_make_no_structure() -> None:
    assert extension_bytes(Extension(checksum="wrong"), ()) == b""
    alone = extension_bytes(Extension(objects=(ExtensionObject(class_=2, type=5),)), ())
    assert alone[4:] == bytes.fromhex("00040205")


def test_paths_say_who_is_where() -> None:
    scenario = routed(
        ["a1", ["b1", ["c1", "c2"]], "d1"],
        {
            "b1": {"silent": True},
            "c1": {"mpls": [{"label": 7}]},
            "d1": {"rate_limit": {"per_second": 1}},
        },
    )
    paths = paths_to(scenario, TARGET[4])
    c1 = Hop("c1", router_address(4, "c1"), "expired", False, (Label(label=7),), "")
    assert {hop.node: hop for hop in paths.at(2)}["c1"] == c1
    assert paths.addresses(2) == {router_address(4, "c1")}
    assert paths.nodes(2) == {"b1", "c1"}
    assert paths.nodes(3) == {"d1", "c2"}
    assert {hop.node for hop in paths.at(3) if hop.is_limited} == {"d1"}
    assert paths.end_ttls == (4, 5)
    assert paths.addresses(5) == paths.addresses(99) == {TARGET[4]}
    assert Link(3, "b1", "d1") in paths.links
    assert paths.address_links == {
        (2, router_address(4, "a1"), router_address(4, "c1")),
        (3, router_address(4, "c1"), router_address(4, "c2")),
        (4, router_address(4, "c2"), router_address(4, "d1")),
        (4, router_address(4, "d1"), TARGET[4]),
        (5, router_address(4, "d1"), TARGET[4]),
    }
    assert paths.stop_reason() == "completed"
    assert paths.stop_reason(max_hops=3) == "max_hops"


def test_paths_need_a_route() -> None:
    with pytest.raises(KeyError):
        paths_to(routed(["a1"]), "10.99.0.1")
    with pytest.raises(KeyError):
        paths_to(routed(["a1"]), "10.255.0.1")


def test_the_chain_is_the_example() -> None:
    assert load_scenario(SCENARIOS / "trace_chain.toml") == trace_chain()


@pytest.mark.parametrize("hops", [1, 2, 16, 255])
def test_the_chain_has_its_length(hops: int) -> None:
    scenario = trace_chain(hops=hops, destinations=100, rtt_ms=30, loss=0.1)
    for family in (4, 6):
        paths = paths_to(scenario, chain_destination(family, 99), max_hops=255)
        assert paths.end_ttls == (hops,)
        assert hops == 1 or paths.addresses(hops - 1) == {chain_router(family, hops - 1)}
    with pytest.raises(KeyError):
        paths_to(scenario, chain_destination(4, 128))
    edges = graph_of(scenario.route["chain"]).edges
    assert sum(edge.link.delay_ms for edge in edges) == 15
    assert (1 - edges[0].link.loss) * (1 - edges[0].link.return_loss) == pytest.approx(0.9)


def test_the_chain_may_spread_its_delay() -> None:
    edges = graph_of(trace_chain(rtt_ms=32, delay="spread").route["chain"]).edges
    assert [edge.link.delay_ms for edge in edges] == [1.0] * 16


@pytest.mark.parametrize("wrong", [{"destinations": 0}, {"hops": 256}, {"destinations": 65_537}])
def test_the_chain_has_bounds(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="destinations 1 to 65536, hops 1 to 255"):
        trace_chain(**wrong)  # type: ignore[arg-type]


shapes = st.builds(
    Shape,
    hops=st.sampled_from([(4, 20), (4, 4), (20, 20), (1, 3)]),
    diamonds=st.sampled_from([0.0, 0.5, 1.0]),
    width=st.sampled_from([(1, 16), (2, 2), (16, 16)]),
    meshed=st.sampled_from([0.0, 0.5, 1.0]),
    uneven=st.sampled_from([0.0, 1.0]),
    mpls=st.sampled_from([0.0, 1.0]),
    nat=st.sampled_from([0.0, 1.0]),
    silent=st.sampled_from([0.0, 0.3]),
    limited=st.sampled_from([0.0, 0.3]),
    loss=st.sampled_from([0.0, 0.05]),
)


@given(st.integers(0, 1 << 32), shapes)
def test_random_topologies_repeat_and_hang_together(seed: int, shape: Shape) -> None:
    scenario = random_topology(seed, destinations=3, shape=shape)
    assert random_topology(seed, destinations=3, shape=shape) == scenario
    for number in range(3):
        for family in (4, 6):
            check(scenario, shape, random_destination(family, number))


def check(scenario: Scenario, shape: Shape, destination: str) -> None:
    paths = paths_to(scenario, destination)
    least, most = shape.hops
    assert least <= paths.end_ttls[-1] <= most
    assert shape.uneven or len(paths.end_ttls) == 1
    for ttl in range(1, paths.end_ttls[-1] + 1):
        assert 1 <= len(paths.nodes(ttl)) <= shape.width[1] or shape.uneven
        heads = {link.head for link in paths.links if link.ttl == ttl - 1} or {HOST}
        assert {link.tail for link in paths.links if link.ttl == ttl} <= heads
        leaving = {link.tail for link in paths.links if link.ttl == ttl + 1}
        assert paths.nodes(ttl) - leaving <= {DESTINATION}
        for hop in paths.at(ttl):
            assert bool(hop.labels) <= (shape.mpls > 0)
            assert hop.address is not None or shape.silent
    first = graph_of(scenario.route[f"to{0}"]).edges[0].link
    assert (1 - first.loss) * (1 - first.return_loss) == pytest.approx(1 - shape.loss)


def test_random_topologies_differ_by_seed() -> None:
    assert random_topology(1) != random_topology(2)


def test_random_topologies_have_all_there_is() -> None:
    scenario = random_topology(1, destinations=60)
    routers = scenario.router.values()
    assert any(router.mpls for router in routers)
    assert any(router.nat for router in routers)
    assert any(router.silent for router in routers)
    assert any(router.rate_limit for router in routers)
    widths, lengths = set(), set()
    for number in range(60):
        paths = paths_to(scenario, random_destination(4, number))
        lengths.add(paths.end_ttls[-1])
        widths |= {len(paths.nodes(ttl)) for ttl in range(1, paths.end_ttls[-1])}
    assert widths == set(range(1, 17))
    assert lengths == set(range(4, 21))
