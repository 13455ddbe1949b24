"""Load balancing, random topologies and the chain of the network simulator, on the wire."""

import itertools
from collections import defaultdict
from typing import Any, get_args

import pytest

from support.netsim import SCENARIOS, End, Flow, Probe, Reply, load_scenario
from support.netsim.client import FENCE, Family
from support.netsim.paths import Link, paths_to
from support.netsim.routes import DESTINATION, HOST, TokenBucket
from support.netsim.topologies import (
    Shape,
    chain_destination,
    chain_router,
    random_destination,
    random_topology,
    trace_chain,
)
from support.netsim.tracer import TARGET, Method, Play, Tracer, fenced, routed, router_address

pytestmark = [pytest.mark.raw, pytest.mark.netns]

METHODS: tuple[Method, ...] = get_args(Method)
FOUR = ["b1", "b2", "b3", "b4"]
SIXTEEN = [f"b{n}" for n in range(1, 17)]


def probes_of(tracer: Tracer) -> list[Probe]:
    """The truth of what was sent, without the fence."""
    probes = tracer.network.stop().probes
    return [probe for probe in probes if probe.destination != FENCE[tracer.family]]


def met(tracer: Tracer) -> list[str | None]:
    """The routers where the probes ended."""
    return [probe.router for probe in probes_of(tracer)]


@pytest.mark.parametrize("method", METHODS)
def test_flows_spread_over_a_diamond(play: Play, family: Family, method: Method) -> None:
    tracer = play(routed(["a1", SIXTEEN, "c1"]))
    for flow in range(200):
        tracer.send(TARGET[family], 2, method, flow=flow)
    seen = tracer.read()
    assert {each.source for each in seen} == {router_address(family, name) for name in SIXTEEN}
    assert [each.source for each in seen] == [
        router_address(family, name or "") for name in met(tracer)
    ]
    truth = tracer.network.stop()
    shares = [truth.links["tested", "a1", name].forward for name in SIXTEEN]
    assert sum(shares) == 200
    assert max(shares) <= 40


def constant(tracer: Tracer, method: Method, ttl: int, **more: Any) -> None:
    """Send a probe whose flow does not depend on its number."""
    if method == "icmp":  # the sequence is under the checksum: let the payload make up for it
        balance = (0xFFFF - tracer.number - 1).to_bytes(2)
        more["payload"] = balance + bytes(18)
    tracer.send(TARGET[tracer.family], ttl, method, **more)


@pytest.mark.parametrize("method", METHODS)
def test_a_flow_keeps_its_way(play: Play, family: Family, method: Method) -> None:
    tracer = play(routed(["a1", SIXTEEN, "c1", [f"d{n}" for n in range(1, 17)], "e1"]))
    for ttl in itertools.chain([2] * 10, [4] * 10):
        constant(tracer, method, ttl, flow=5)
    assert len({each.source for each in tracer.read()}) == 2
    assert len({probe.flow for probe in probes_of(tracer)}) == 1


@pytest.mark.parametrize("differing", ["ident", "checksum", "label", "destination"])
def test_a_flow_is_all_of_its_fields(play: Play, family: Family, differing: str) -> None:
    tracer = play(routed(["a1", SIXTEEN, "c1"]))
    target = TARGET[family]
    for n in range(60):
        balance = (0xFFFF - tracer.number - 1 - (n if differing == "ident" else 0)) & 0xFFFF
        if differing == "ident":
            tracer.send(target, 2, flow=n, payload=balance.to_bytes(2) + bytes(18))
        elif differing == "checksum":
            tracer.send(target, 2)
        elif differing == "label":
            tracer.send(target, 2, label=n, payload=balance.to_bytes(2) + bytes(18))
        else:
            other = f"{target[:-1]}{n % 10}"
            tracer.send(other, 2, payload=balance.to_bytes(2) + bytes(18))
    ways = len(set(met(tracer)))
    probes = probes_of(tracer)
    if differing in {"ident", "label"}:
        assert len({probe.head[:4] for probe in probes}) == 1
    if differing == "label" and family == 4:
        assert ways == 1
    else:
        assert ways > 4


def test_each_packet_may_go_its_own_way(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", FOUR, "c1"], {"a1": {"balance": "packet"}}))
    for _ in range(40):
        constant(tracer, "udp", 2, flow=1)
    assert set(met(tracer)) == set(FOUR)


def test_a_destination_may_keep_its_way(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", FOUR, "c1"], {"a1": {"balance": "destination"}}))
    for flow, last in itertools.product(range(10), range(1, 10)):
        tracer.send(f"{TARGET[family][:-1]}{last}", 2, "udp", flow=flow)
    ways = defaultdict(set)
    for probe in probes_of(tracer):
        ways[probe.destination].add(probe.router)
    assert all(len(routers) == 1 for routers in ways.values())
    assert len(set[str | None]().union(*ways.values())) > 1


@pytest.mark.parametrize("seeds", [(5, 5), (5, 6)])
def test_equal_seeds_choose_alike(play: Play, family: Family, seeds: tuple[int, int]) -> None:
    second = [f"d{n}" for n in range(1, 5)]
    routers = {"a1": {"seed": seeds[0]}, "c1": {"seed": seeds[1]}}
    tracer = play(routed(["a1", FOUR, "c1", second, "e1"], routers))
    for flow in range(40):
        tracer.send(TARGET[family], 2, "udp", flow=flow)
        tracer.send(TARGET[family], 4, "udp", flow=flow)
    ways = met(tracer)
    pairs = {(str(a)[1:], str(b)[1:]) for a, b in zip(ways[::2], ways[1::2], strict=True)}
    assert all(a == b for a, b in pairs) == (seeds[0] == seeds[1])


def test_a_nat_changes_the_flow(play: Play, family: Family) -> None:
    second = [f"d{n}" for n in range(1, 5)]
    nat = {"address4": "10.23.0.1", "address6": "fd23::1"}
    routers = {"a1": {"seed": 5}, "c1": {"nat": nat}, "c2": {"seed": 5}}
    tracer = play(routed(["a1", FOUR, "c1", "c2", second, "e1"], routers))
    for flow in range(40):
        tracer.send(TARGET[family], 2, "udp", flow=flow)
        tracer.send(TARGET[family], 5, "udp", flow=flow)
    ways = met(tracer)
    pairs = {(str(a)[1:], str(b)[1:]) for a, b in zip(ways[::2], ways[1::2], strict=True)}
    assert len(pairs) > 4


def test_branches_may_differ_in_length(play: Play, family: Family) -> None:
    hops = ["a1", ["b1", ["c1", "c2", "c3"], []], [["d1", "d2"], "e1"]]
    tracer = play(routed(hops))
    for flow, ttl in itertools.product(range(60), range(1, 8)):
        tracer.send(TARGET[family], ttl, "udp", flow=flow)
        if flow % 15 == 14 and ttl == 7:
            tracer.read()
    ways: dict[Flow, dict[int, str]] = defaultdict(dict)
    for probe in probes_of(tracer):
        ways[probe.flow][probe.ttl] = probe.router or DESTINATION
    paths = paths_to(tracer.network.scenario, TARGET[family])
    assert paths.end_ttls == (3, 4, 5, 6, 7)
    found = set()
    for way in ways.values():
        nodes = [HOST, *(way[ttl] for ttl in range(1, 8))]
        end = nodes.index(DESTINATION)
        assert set(nodes[end:]) == {DESTINATION}
        found |= {Link(ttl, nodes[ttl - 1], nodes[ttl]) for ttl in range(1, end + 1)}
    assert found == paths.links


def test_the_chain_is_as_it_says(play: Play, family: Family) -> None:
    tracer = play(fenced(trace_chain(rtt_ms=4, loss=0.05, record="probes")))
    for number, ttl in itertools.product(range(25), range(1, 18)):
        tracer.send(chain_destination(family, number * 160), ttl)
        if number % 5 == 4 and ttl == 17:
            tracer.read()
    lost = 0
    for probe in probes_of(tracer):
        assert probe.end in {End.LOST, End.EXPIRED if probe.ttl < 16 else End.ARRIVED}
        lost += probe.reply != Reply.COMES
        assert all(answer.due_ns - probe.arrival_ns == 4_000_000 for answer in probe.answers)
    assert 0.02 < lost / (25 * 17) < 0.09
    assert chain_router(family, 3) in paths_to(
        tracer.network.scenario, chain_destination(family, 9)
    ).addresses(3)


@pytest.mark.parametrize("seed", range(3))
def test_random_topologies_are_what_their_truth_says(play: Play, family: Family, seed: int) -> None:
    shape = Shape(
        hops=(4, 14), loss=0.05, uneven=0.3, nat=1.0,
        limit=TokenBucket(per_second=0.01, burst=3),
    )  # fmt: skip
    tracer = play(fenced(random_topology(seed, destinations=6, shape=shape)))
    method = METHODS[seed]
    scenario = tracer.network.scenario
    for number, half in itertools.product(range(6), range(2)):
        target = random_destination(family, number)
        for flow, ttl in itertools.product(range(5), range(1, 16)):
            tracer.send(target, ttl, method, flow=5 * half + flow)
        paths = paths_to(scenario, target, method=method)
        known = frozenset[str]().union(*map(paths.addresses, range(1, 16)))
        assert {each.source for each in tracer.read()} <= known
    for probe in probes_of(tracer):
        paths = paths_to(scenario, probe.destination, method=method)
        if probe.end in {End.EXPIRED, End.ARRIVED}:
            node = probe.router or DESTINATION
            (hop,) = {hop for hop in paths.at(probe.ttl) if hop.node == node}
            assert (probe.reply == Reply.WITHHELD) == (hop.address is None)
            assert hop.is_limited or probe.reply != Reply.LIMITED
            assert node in paths.nodes(probe.hops)
        else:
            assert probe.end == End.LOST


@pytest.mark.parametrize("method", METHODS)
def test_the_oddities_are_as_they_say(play: Play, family: Family, method: Method) -> None:
    tracer = play(fenced(load_scenario(SCENARIOS / "trace_oddities.toml")))
    scenario = tracer.network.scenario
    stops = {}
    for name, hosts in zip(scenario.route, scenario.hosts, strict=False):
        target = hosts.prefixes[family == 6].replace("0/24", "9").replace("::/64", "::9")
        paths = paths_to(scenario, target, method=method)
        expected = [address for ttl in range(1, 9) for address in paths.addresses(ttl)]
        if name == "balanced":
            flows = (range(first, first + 10) for first in range(0, 40, 10))
            found = {source for some in flows for source in walk(tracer, target, method, some)}
            assert found == set(expected)
        else:
            assert walk(tracer, target, method, range(1)) == expected
        stops[name] = paths.stop_reason(gap_limit=4)
    odd = {"looping": "loop", "prohibited": "unreachable", "dark": "gap_limit"}
    assert stops == dict.fromkeys(scenario.route, "completed") | odd


def walk(tracer: Tracer, target: str, method: Method, flows: range) -> list[str]:
    """Who answers TTLs 1 to 8, in order."""
    for flow, ttl in itertools.product(flows, range(1, 9)):
        tracer.send(target, ttl, method, flow=flow)
    return [seen.source for seen in tracer.read()]
