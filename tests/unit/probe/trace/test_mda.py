"""Multipath detection against topologies that are known exactly."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde.probe.trace import mda
from netsonde.probe.trace.answers import Answer, Kind
from netsonde.probe.trace.graph import Graph, Node
from netsonde.probe.trace.mda import FlowProbe, MdaSearch, stopping_point

Router = tuple[int, int]  # level, number
TOPOLOGIES = 500
ATTEMPTS = 3  # of each probe, as the prober does
DUE_NS_MAX = 20_000_000  # the event loop runs nothing else meanwhile


@dataclass
class Topology:
    """Routers by level, each with its next hops; one without any is the destination.

    A flow takes the next hop that its number, hashed by the router, picks; `salt` makes the hashes
    of each topology its own. limited: answers so many packets between two rounds of the search.
    """

    after: dict[Router, list[Router]]
    silent: frozenset[Router] = frozenset()
    per_packet: frozenset[Router] = frozenset()
    limited: dict[Router, int] = field(default_factory=dict)
    loss: float = 0.0
    salt: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    sent: int = 0
    answered: dict[Router, int] = field(default_factory=dict)
    paths: dict[int, list[Router]] = field(default_factory=dict)

    def path(self, flow: int) -> list[Router]:
        """Return whom a flow passes, the destination at the end."""
        if flow not in self.paths or self.per_packet:
            at = (0, 0)
            self.paths[flow] = [at]
            while hops := self.after.get(at):
                at = hops[self._draw(at, flow) % len(hops)]
                self.paths[flow].append(at)
        return self.paths[flow]

    def _draw(self, at: Router, flow: int) -> int:
        if at in self.per_packet:
            return self.rng.getrandbits(32)
        what = f"{self.salt} {at} {flow}".encode()
        return int.from_bytes(blake2b(what, digest_size=4).digest())

    def answer(self, probe: FlowProbe) -> Answer | None:
        """Return what a probe gets after all its attempts."""
        path = self.path(probe.flow)
        router = path[min(probe.ttl, len(path)) - 1]
        self.sent += 1
        if router in self.silent or all(self.rng.random() < self.loss for _ in range(ATTEMPTS)):
            return None
        self.answered[router] = self.answered.get(router, 0) + 1
        if self.answered[router] > self.limited.get(router, self.sent):
            return None
        is_end = not self.after.get(router)
        kind, icmp_type = (Kind.ECHO, 0) if is_end else (Kind.ERROR, 11)
        return Answer(probe.ttl, 0, kind, address(router), icmp_type, 0, 0, 1, 64, 1, 0, 0, 0, b"")

    def links(self) -> set[tuple[bytes, bytes]]:
        """Return every pair of answering neighbours."""
        return {
            (address(router), address(hop))
            for router, hops in self.after.items()
            for hop in hops
            if not self.silent & {router, hop}
        }


def address(router: Router) -> bytes:
    return bytes((10, *router, 1))


def layered(widths: list[int], links: str, rng: random.Random, **more: object) -> Topology:
    """Return levels of these widths, each router linked to some or all of the next level."""
    after: dict[Router, list[Router]] = {}
    levels = [1, *widths, 1, 1]
    for level, (width, beyond) in enumerate(pairwise(levels)):
        unmet = set(range(beyond))
        for number in range(width):
            count = rng.randint(1, beyond) if links == "some" else beyond
            hops = rng.sample(range(beyond), count)
            after[level, number] = [(level + 1, hop) for hop in hops]
            unmet -= set(hops)
        after[level, 0] += [(level + 1, hop) for hop in unmet]
    salt = rng.getrandbits(64)
    return Topology(after, rng=rng, salt=salt, **more)  # type: ignore[arg-type]


def tree(degree: int, depth: int, rng: random.Random) -> Topology:
    """Return a tree that parts at each level, and comes together at the destination."""
    after: dict[Router, list[Router]] = {}
    for level in range(depth):
        for number in range(degree**level):
            after[level, number] = [(level + 1, number * degree + hop) for hop in range(degree)]
    after |= {(depth, number): [(depth + 1, 0)] for number in range(degree**depth)}
    return Topology(after, rng=rng, salt=rng.getrandbits(64))


def branches(width: int, depth: int, rng: random.Random, **more: object) -> Topology:
    """Return a diamond of branches that do not mix."""
    after: dict[Router, list[Router]] = {(0, 0): [(1, number) for number in range(width)]}
    for level in range(1, depth):
        after |= {(level, number): [(level + 1, number)] for number in range(width)}
    after |= {(depth, number): [(depth + 1, 0)] for number in range(width)}
    after[depth + 1, 0] = [(depth + 2, 0)]
    salt = rng.getrandbits(64)
    return Topology(after, rng=rng, salt=salt, **more)  # type: ignore[arg-type]


def random_topology(rng: random.Random) -> Topology:
    """Return a topology of any of these forms, next hops up to 16; 5 % of packets are lost."""
    form = rng.choice(["layers", "layers", "some", "tree", "branches"])
    if form == "tree":
        topology = tree(rng.choice([2, 2, 3]), rng.randint(1, 3), rng)
    elif form == "branches":
        topology = branches(rng.randint(2, 16), rng.randint(1, 3), rng)
    else:
        widths = [1] * rng.randint(2, 8)
        for _ in range(rng.randint(1, 2)):
            widths[rng.randrange(len(widths))] = rng.randint(1, 16 if form == "layers" else 6)
        topology = layered(widths, "some" if form == "some" else "all", rng)
    topology.loss = 0.05
    return topology


def answer_now_and_then(topology: Topology, router: Router, every: int) -> None:
    """Let a router answer the first of so many packets."""
    plain, asked = topology.answer, []

    def answer(probe: FlowProbe) -> Answer | None:
        got = plain(probe)
        if got is None or got.responder != address(router):
            return got
        asked.append(probe)
        return got if len(asked) % every == 1 else None

    topology.answer = answer  # type: ignore[method-assign]


def explore(topology: Topology, confidence: float = 95, **options: int) -> Graph:
    """Search a topology, a few answers at a time."""
    options.setdefault("end_ttl", len(topology.path(0)))
    search = MdaSearch(method="udp", confidence=confidence, **options)
    waiting: deque[FlowProbe] = deque()
    seen: set[FlowProbe] = set()
    while True:
        topology.answered.clear()
        due = search.due()
        assert seen.isdisjoint(due)
        seen.update(due)
        waiting.extend(due)
        if not waiting:
            assert search.graph().probes == len(seen)
            return search.graph()
        for _ in range(min(len(waiting), 40)):
            probe = waiting.popleft()
            search.take(probe, topology.answer(probe))


def found(graph: Graph) -> set[tuple[bytes, bytes]]:
    """Return the links between nodes that answered."""
    return {
        (link.source.responder, link.target.responder)
        for link in graph.links
        if link.source.responder and link.target.responder
    }


# ── the stopping rule ──


def test_the_stopping_points_are_the_literatures() -> None:
    """What other implementations of the algorithm list for 95 and 99 %."""
    listed = {
        0.05: [6, 11, 16, 21, 27, 33, 38, 44, 51, 57, 63, 70, 76, 83, 90, 96],
        0.01: [8, 15, 21, 28, 36, 43, 51, 58],
    }
    for failure, points in listed.items():
        for hops, point in enumerate(points, 1):
            assert 0 <= stopping_point(hops, failure) - point <= 1


@pytest.mark.parametrize("hops", [2, 3, 8, 16])
def test_a_node_fails_no_more_often_than_it_may(hops: int) -> None:
    """The exact probability over all ways to stop, by the Markov chain of Veitch et al."""
    failure = 0.05 / 20
    states = {0: 1.0}  # distinct next hops seen so far: probability
    failed = 0.0
    for sent in range(1, stopping_point(hops - 1, failure) + 1):
        following: dict[int, float] = {}
        for seen, probability in states.items():
            for more, chance in ((0, seen / hops), (1, 1 - seen / hops)):
                reached = following.get(seen + more, 0.0) + probability * chance
                following[seen + more] = reached
        failed += sum(
            following.pop(seen)
            for seen in list(following)
            if 0 < seen < hops and sent >= stopping_point(seen, failure)
        )
        states = following
    assert 0 < failed <= failure * (1 + failure)


def test_a_single_path_takes_as_many_flows_as_its_length_wants() -> None:
    topology = layered([1, 1, 1], "all", random.Random(1))
    graph = explore(topology)
    assert found(graph) == topology.links()
    # This host and five routers may each part the ways with 1 - 0.95 ** (1 / 6).
    flows = stopping_point(1, 1 - 0.95 ** (1 / 6))
    assert (graph.flows, graph.probes, graph.is_cut) == (flows, 6 * flows, False)
    assert [node.ttl for node in graph.nodes if node.is_end] == [6]


def test_links_of_many_topologies_are_missed_as_seldom_as_promised() -> None:
    """Links missed over the whole set, and graphs that miss any: neither above 5 %."""
    rng = random.Random(20261127)
    missed = total = failed = 0
    for _ in range(TOPOLOGIES):
        topology = random_topology(rng)
        graph = explore(topology)
        truth, seen = topology.links(), found(graph)
        assert seen <= truth
        assert not graph.balancers
        assert not graph.is_cut
        missed += len(truth - seen)
        failed += truth != seen
        total += len(truth)
    assert missed / total <= 0.05
    assert failed / TOPOLOGIES <= 0.05


@pytest.mark.parametrize("confidence", [60, 95])
def test_the_bound_is_the_graphs_and_not_each_nodes(confidence: float) -> None:
    """Five balancers in a row: with a bound for each, three times as many graphs miss something."""
    rng = random.Random(20261128)
    topologies = [layered([2, 1] * 5, "all", rng) for _ in range(TOPOLOGIES)]
    failed = sum(found(explore(each, confidence)) != each.links() for each in topologies)
    assert 0 < failed / TOPOLOGIES <= 1 - confidence / 100


@pytest.mark.parametrize("first_width", [1, 4])
def test_more_confidence_costs_more(first_width: int) -> None:
    topology = layered([1, 2, 1], "all", random.Random(8))
    topology.after[0, 0] = [(1, 0)] * first_width
    probes = [explore(topology, confidence).probes for confidence in (60, 95, 99)]
    assert probes == sorted(set(probes))


# ── what paths are like ──


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(0, 2**32), st.booleans())
def test_whatever_it_finds_is_there(widths: list[int], seed: int, is_partial: bool) -> None:
    rng = random.Random(seed)
    topology = layered(widths, "some" if is_partial else "all", rng, loss=0.1)
    graph = explore(topology)
    assert found(graph) <= topology.links()
    assert not graph.is_cut
    assert {node.ttl for node in graph.nodes if node.is_end} == {len(widths) + 3}
    assert {(node.ttl, node.responder) for node in graph.nodes if node.responder} <= {
        (level + 1, address((level, number)))
        for level, width in enumerate([1, *widths, 1, 1])
        for number in range(width)
    }


def test_branches_of_unequal_length() -> None:
    after: dict[Router, list[Router]] = {
        (0, 0): [(1, 0), (1, 1)], (1, 0): [(2, 0)], (1, 1): [(3, 0)], (2, 0): [(3, 0)],
        (3, 0): [(4, 0)],
    }  # fmt: skip
    graph = explore(Topology(after))
    assert found(graph) == Topology(after).links()
    assert [node.ttl for node in graph.nodes if node.is_end] == [4, 5]
    assert not graph.is_cut


def test_one_router_at_many_ttls_of_different_paths_is_no_loop() -> None:
    """A detour of one, two and three hops: what follows is found at each of the TTLs."""
    after: dict[Router, list[Router]] = {
        (0, 0): [(4, 0), (1, 0), (1, 1)], (1, 0): [(4, 0)], (1, 1): [(2, 1)], (2, 1): [(4, 0)],
        (4, 0): [(5, 0), (5, 1)], (5, 0): [(6, 0)], (5, 1): [(6, 0)],
    }  # fmt: skip
    graph = explore(Topology(after))
    assert [node.ttl for node in graph.nodes if node.responder == address((4, 0))] == [2, 3, 4]
    for ttl in (3, 4, 5):
        assert {node.responder for node in graph.at(ttl)} >= {address((5, 0)), address((5, 1))}


def test_a_loop_is_not_followed_for_ever() -> None:
    after: dict[Router, list[Router]] = {(0, 0): [(1, 0)], (1, 0): [(2, 0)], (2, 0): [(3, 0)]}
    topology = Topology(after)
    circle = [(0, 0), *[(1, 0), (2, 0)] * 100]
    topology.path = lambda flow: circle  # type: ignore[method-assign]
    graph = explore(topology, end_ttl=2, last_ttl=200)
    assert max(node.ttl for node in graph.nodes) == 6  # 0 1 2 1 2 1: the third time and no more
    assert not graph.is_cut


def test_a_path_longer_than_the_plain_trace_was_is_followed_to_its_end() -> None:
    topology = layered([1] * 12, "all", random.Random(2))
    graph = explore(topology, end_ttl=2)
    assert found(graph) == topology.links()
    # What was enough flows for two nodes is too little for this host and 14 routers.
    assert graph.flows == stopping_point(1, 1 - 0.95 ** (1 / 15)) > stopping_point(1, 0.05 / 2)


def test_hops_before_the_first_ttl_are_left_out() -> None:
    topology = layered([1, 3, 2, 1], "all", random.Random(2))
    graph = explore(topology, first_ttl=4)
    assert min(node.ttl for node in graph.nodes) == 4
    assert len(graph.at(4)) == 2
    assert {link.source.ttl for link in graph.links} == {4, 5, 6}


def test_balancing_right_behind_this_host_is_found() -> None:
    topology = layered([16, 1], "all", random.Random(12))
    graph = explore(topology, first_ttl=2)
    assert len(graph.at(2)) == 16
    assert graph.probes < 800


@pytest.mark.parametrize("is_first", [True, False])
def test_who_refuses_to_send_packets_on_ends_its_paths(is_first: bool) -> None:
    """At its own TTL or beyond it; what it says at a TTL beyond is no hop of its own."""
    topology = layered([2, 1], "all", random.Random(3))
    refusal = Answer(0, 0, Kind.ERROR, address((1, 0)), 3, 13, 0, 1, 64, 1, 0, 0, 0, b"")
    plain = topology.answer

    def answer(probe: FlowProbe) -> Answer | None:
        is_refused = topology.path(probe.flow)[1] == (1, 0)
        return refusal if is_refused and probe.ttl > 2 - is_first else plain(probe)

    topology.answer = answer  # type: ignore[method-assign]
    graph = explore(topology)
    refuser = Node(2, address((1, 0)), is_refusal=is_first)
    assert [node for node in graph.nodes if node.responder == refuser.responder] == [refuser]
    assert not list(graph.after(refuser))
    assert [node.ttl for node in graph.nodes if node.is_end] == [5]


@pytest.mark.parametrize(("method", "is_end"), [("udp", True), ("icmp", False), ("tcp", False)])
def test_a_port_unreachable_is_the_destinations_by_udp_only(method: str, is_end: bool) -> None:
    refusal = Answer(1, 0, Kind.ERROR, address((0, 0)), 3, 3, 0, 1, 64, 1, 0, 0, 0, b"")
    search = MdaSearch(method=method, end_ttl=1)
    for probe in search.due():
        search.take(probe, refusal)
    assert search.graph().nodes == (Node(1, address((0, 0)), is_end, not is_end),)


# ── silence ──


def test_silence_in_the_middle_is_a_node_of_its_own() -> None:
    topology = layered([1, 1, 4], "all", random.Random(3), silent=frozenset({(2, 0)}))
    graph = explore(topology)
    assert found(graph) == topology.links()
    assert [node.responder for node in graph.at(3)] == [None]
    assert len(graph.at(4)) == 4
    assert graph.probes < 350


def test_silence_on_a_branch_is_a_node_of_its_own_and_what_follows_is_found() -> None:
    topology = branches(4, 3, random.Random(4), silent=frozenset({(2, 3)}))
    graph = explore(topology)
    assert not graph.is_cut
    assert graph.probes < 600
    assert [node.responder for node in graph.at(3)].count(None) == 1
    assert {node.responder for node in graph.at(4)} == {address((3, n)) for n in range(4)}
    assert found(graph) == topology.links()


def test_a_rate_limit_is_not_taken_for_a_silent_hop() -> None:
    """The only hop at a TTL answers few flows; the others are taken to pass it nevertheless."""
    topology = layered([1, 1, 8, 1], "all", random.Random(5), limited={(2, 0): 4})
    graph = explore(topology)
    assert graph.probes < 350
    assert not any(node.responder is None for node in graph.nodes)
    assert found(graph) == topology.links()
    assert not graph.is_cut


@pytest.mark.parametrize(("hops", "every"), [(1, 1000), (2, 1000), (1, 20)])
def test_a_hop_that_hardly_answers_ends_the_search_and_it_is_told(hops: int, every: int) -> None:
    """What it answers is too little to find out how many follow it, or whether it is alone."""
    topology = layered([hops, 1], "all", random.Random(5))
    answer_now_and_then(topology, (1, 0), every)
    graph = explore(topology)
    assert graph.is_cut
    assert graph.probes < 1500
    assert found(graph) <= topology.links()


@pytest.mark.parametrize("every", [2, 6, 12])
def test_a_hop_that_seldom_answers_is_found_to_be_alone(every: int) -> None:
    """Flows are asked until that is of no use: none of them passes a silent hop."""
    topology = layered([1, 4], "all", random.Random(5))
    answer_now_and_then(topology, (1, 0), every)
    graph = explore(topology)
    assert not graph.is_cut
    assert not any(node.responder is None for node in graph.nodes)
    assert found(graph) == topology.links()


@pytest.mark.parametrize("limit", [3, 6, 20])
def test_a_silent_hop_beside_one_with_a_rate_limit_is_told_from_it(limit: int) -> None:
    """And what is behind it is behind nobody else."""
    silent = frozenset({(1, 1)})
    topology = branches(2, 2, random.Random(7), silent=silent, limited={(1, 0): limit})
    graph = explore(topology)
    assert found(graph) == topology.links()
    silence = Node(2, None)
    assert [node.responder for node in graph.after(silence)] == [address((2, 1))]
    assert [node.responder for node in graph.after(Node(2, address((1, 0))))] == [address((2, 0))]


def test_a_silent_hop_is_found_where_only_some_nodes_lead_to_it() -> None:
    """Silence behind one of several nodes, at a TTL at which others are answered."""
    topology = branches(4, 2, random.Random(8), silent=frozenset({(2, 1)}))
    graph = explore(topology)
    before = Node(2, address((1, 1)))
    assert list(graph.after(before)) == [Node(3, None)]
    assert found(graph) == topology.links()
    assert not graph.is_cut


def test_random_silence_makes_up_no_link_and_hides_none_untold() -> None:
    """Routers silent and limited at random: all is found that is there, or the search says so."""
    rng = random.Random(20261129)
    missed = total = told = 0
    for _ in range(TOPOLOGIES // 5):
        topology = random_topology(rng)
        routers = [each for each in topology.after if each[0] > 1]
        topology.silent = frozenset(each for each in routers if rng.random() < 0.1)
        topology.limited = {each: 6 for each in routers if rng.random() < 0.1}
        graph = explore(topology)
        assert found(graph) <= topology.links()
        told += graph.is_cut
        if not graph.is_cut:
            missed += len(topology.links() - found(graph))
            total += len(topology.links())
    assert missed / total <= 0.05
    assert told <= TOPOLOGIES / 5 / 10


def test_a_flow_that_one_hop_drops_is_no_hop() -> None:
    topology = layered([1, 3, 1], "all", random.Random(6))
    plain = topology.answer
    topology.answer = lambda probe: (  # type: ignore[method-assign]
        None if (probe.ttl, probe.flow) == (3, 1) else plain(probe)
    )
    graph = explore(topology)
    assert len(graph.at(3)) == 3
    assert found(graph) == topology.links()
    assert not graph.is_cut


def test_flows_lost_here_and_there_are_no_hop() -> None:
    topology = layered([1, 2, 1, 3, 1], "all", random.Random(6), loss=0.5)
    graph = explore(topology)  # an eighth of the probes get nothing in all attempts
    assert not any(node.responder is None for node in graph.nodes)
    assert found(graph) == topology.links()


@pytest.mark.parametrize("gap_limit", [1, 3])
def test_nothing_is_sent_beyond_a_gap(gap_limit: int) -> None:
    silent = frozenset((level, 0) for level in range(2, 9))
    topology = layered([1] * 6, "all", random.Random(5), silent=silent)
    graph = explore(topology, gap_limit=gap_limit, end_ttl=2)
    assert max(node.ttl for node in graph.nodes) == 2 + gap_limit
    assert not any(node.is_end for node in graph.nodes)


def test_nobody_answers() -> None:
    topology = layered([1], "all", random.Random(5), loss=1.0)
    graph = explore(topology, end_ttl=4)
    assert all(node.responder is None for node in graph.nodes)
    assert not graph.is_cut


# ── one flow, two ways ──


def test_who_sends_one_flow_two_ways_is_named() -> None:
    topology = layered([1, 3, 1], "all", random.Random(6), per_packet=frozenset({(1, 0)}))
    graph = explore(topology)
    assert {node.responder for node in graph.balancers} == {address((1, 0))}
    assert found(graph) == topology.links()


def test_links_that_nobody_can_see_are_not_claimed() -> None:
    """Behind packets sent either way it is unknown which router sent what came to the next TTL."""
    topology = branches(3, 2, random.Random(6), per_packet=frozenset({(0, 0)}))
    graph = explore(topology)
    assert {node.responder for node in graph.balancers} == {address((0, 0))}
    unseen = {(address((1, n)), address((2, n))) for n in range(3)}
    assert found(graph) == topology.links() - unseen
    assert len(graph.at(3)) == 3


# ── limits ──


def test_limits_end_it_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mda, "PROBES_MAX", 100)
    graph = explore(layered([16, 16], "all", random.Random(9)))
    assert (graph.is_cut, graph.probes) == (True, 100)


def test_flows_run_out_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mda, "FLOWS_MAX", 20)
    graph = explore(layered([16], "all", random.Random(9)))
    assert (graph.is_cut, graph.flows) == (True, 20)


def test_wide_levels_are_found() -> None:
    topology = layered([128], "all", random.Random(10))
    graph = explore(topology, 99)
    assert found(graph) == topology.links()
    assert not graph.is_cut
    assert graph.probes < 9000


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: layered([16, 16, 16], "all", rng),
        lambda rng: layered([100], "all", rng),
        lambda rng: branches(16, 8, rng),
    ],
)
def test_the_event_loop_is_not_held(make: Callable[[random.Random], Topology]) -> None:
    """The second longest of all calls: the longest may have met the collector."""
    topology = make(random.Random(11))
    search = MdaSearch(method="udp", end_ttl=len(topology.path(0)))
    waiting: deque[FlowProbe] = deque()
    took: list[int] = []
    while True:
        begun_ns = time.thread_time_ns()
        waiting.extend(search.due())
        took.append(time.thread_time_ns() - begun_ns)
        if not waiting:
            break
        for probe in list(taken(waiting, 64)):
            search.take(probe, topology.answer(probe))
    assert sorted(took)[-2] < DUE_NS_MAX


def taken(waiting: deque[FlowProbe], count: int) -> Iterator[FlowProbe]:
    for _ in range(min(count, len(waiting))):
        yield waiting.popleft()
