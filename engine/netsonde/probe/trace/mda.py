"""The Multipath Detection Algorithm: every path that routers balance load over.

Augustin, Friedman, Teixeira, "Multipath tracing with Paris traceroute" (2007); Veitch, Augustin,
Friedman, Teixeira, "Failure control in multipath route tracing" (2009). No I/O: probes to send come
out, answers come in.

A router that balances by flow sends each flow the same way, and flows evenly over its next hops. So
next hops are found by sending flow after flow through a node; the search stops after so many
without a new one that another is as unlikely as was asked for (`stopping_point`). Only flows that
are known to pass a node count for it: new ones are first sent to its TTL to find some (node
control). All nodes of all TTLs are searched at once.

The bound is for the graph, not for a node: the probability of failure is spread over the nodes
found so far, as if each might be a branching point (Veitch et al., section IV, take 30 of them). A
node that was done is looked at again when the graph grows. The bound does not reach behind silence:
who hides there is not known, and so not whether flows are spread evenly over them.

silence.py says what it means that some flows are silent where others are answered. A link is found
when one flow showed both of its ends; where one was presumed, such flows are asked again for proof.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from netsonde.probe.trace.answers import Answer
from netsonde.probe.trace.graph import Graph, Node, connect
from netsonde.probe.trace.links import links_of, unproven_links
from netsonde.probe.trace.passages import Passages, Vertex
from netsonde.probe.trace.silence import ASKS_MAX, Silence

FLOWS_MAX = 8192  # enough for 128 next hops at 99 %
PROBES_MAX = 20_000  # of one search
BATCH_MAX = 1024  # probes due at once, and not many more
REPEATS = 9  # of one flow where paths part: does it always go the same way?
LOOP_REPEATS = 3  # separate stretches of one address beyond which it is not followed
# Of the flows that an even spread takes to find those of a node, so many times that is sent to its
# TTL: then before more, what is under way is waited for; and at last the node is given up.
PATIENCE, EFFORT_MAX = 2, 16


class FlowProbe(NamedTuple):
    """A probe of a flow at a TTL. again: once more, since it was silent or may go elsewhere."""

    ttl: int
    flow: int
    again: int = 0


def stopping_point(hops: int, failure: float) -> int:
    """Return how many flows through a node must have shown only `hops` next hops, to stop.

    If there were one more and all equally likely, then some would have stayed unseen with
    probability `failure` at the most (Augustin et al., section III). It is the union bound, at most
    one more than their table has. Veitch et al. count the stops before that one too: they add less
    than the square of `failure`.
    """
    return math.ceil(math.log(failure / (hops + 1)) / math.log(hops / (hops + 1)))


class MdaSearch:
    """A search from `first_ttl` on, for the `Search` protocol.

    confidence: in percent, that no link between nodes that answer is missed. end_ttl: where a plain
    trace ended, to begin with; paths may be shorter or longer. method: of the probes.
    """

    def __init__(
        self,
        *,
        method: str,
        first_ttl: int = 1,
        end_ttl: int,
        last_ttl: int = 30,
        gap_limit: int = 5,
        confidence: float = 95,
    ) -> None:
        self._method = method
        self._last_ttl = last_ttl
        self._gap_limit = gap_limit
        self._doubt = 1 - confidence / 100
        self._passages = Passages(first_ttl)
        self._due: list[FlowProbe] = []
        self._repeats: set[FlowProbe] = set()
        self._balancers: set[Node] = set()
        self._next_flow: dict[int, int] = defaultdict(lambda: 1)  # by TTL: the least untried one
        self._depth: dict[int, int] = defaultdict(int)  # by TTL: after how many silences one spoke
        self._flows = 0
        self._probes = 0
        self._is_cut = False
        self._failure = self._failure_of(end_ttl - first_ttl + 1)
        self._start = [
            (ttl, flow)
            for flow in range(1, stopping_point(1, self._failure) + 1)
            for ttl in range(first_ttl, end_ttl + 1)
        ]

    def due(self) -> list[FlowProbe]:
        """Return the probes that may be sent now."""
        self._due = []
        if self._start:
            for ttl, flow in self._start:
                self._send(ttl, flow)
            self._start = []
            return self._due
        nodes = sum(not vertex.node.is_last for vertex in self._vertices())
        self._failure = min(self._failure, self._failure_of(nodes))
        self._explore(self._passages.root)
        for ttl in self._passages.ttls():
            if len(self._due) < BATCH_MAX:
                self._look_at(ttl)
        return self._due

    def take(self, probe: FlowProbe, answer: Answer | None) -> None:
        """Learn who answered a probe."""
        ttl, flow = probe.ttl, probe.flow
        node = self._node(ttl, answer)
        if probe in self._repeats:
            self._repeats.discard(probe)
            self._compare(node, self._passages.places(ttl).get(flow), flow)
            return
        self._passages.receive(ttl, flow)
        if answer is None:
            self._passages.fall_silent(ttl, flow)
            return
        before = self._whence(ttl, flow)
        if probe.again:
            self._depth[ttl] = max(self._depth[ttl], probe.again)
            if before is not None:
                before.recovered += 1
        self._passages.place(node, flow)

    def _node(self, ttl: int, answer: Answer | None) -> Node:
        if answer is None:
            return Node(ttl, None)
        is_end = answer.is_end(self._method)
        return Node(ttl, answer.responder, is_end, not is_end and not answer.is_expiry)

    def graph(self) -> Graph:
        """Return what has been found."""
        passages = self._passages
        flows, unproven = links_of(passages)
        found = connect(passages.root.node, flows, self._balancers)
        is_cut = (
            self._is_cut
            or bool(unproven)
            or any(each.is_unsure or self._is_given_up(each) for each in self._vertices())
            or self._is_any_apart(found)
        )
        return found._replace(flows=self._flows, probes=self._probes, is_cut=is_cut)

    def _is_any_apart(self, found: Graph) -> bool:
        """Whether somebody answers who is linked to nobody."""
        linked = {self._passages.root.node, *found.nodes}
        return any(
            each.node not in linked and not each.is_star and not each.node.is_refusal
            for each in self._vertices()
        )

    def _vertices(self) -> Iterator[Vertex]:
        yield self._passages.root
        for ttl in self._passages.ttls():
            yield from self._passages.at(ttl)

    def _failure_of(self, nodes: int) -> float:
        """Return the probability that one of so many nodes may fail with."""
        return -math.expm1(math.log1p(-self._doubt) / nodes)

    # ── what to send ──

    def _send(self, ttl: int, flow: int, *, is_repeat: bool = False) -> None:
        if self._probes >= PROBES_MAX:
            self._is_cut = True
            return
        note = self._passages.repeat if is_repeat else self._passages.send
        probe = FlowProbe(ttl, flow, note(ttl, flow))
        if is_repeat:
            self._repeats.add(probe)
        self._flows = max(self._flows, flow)
        self._probes += 1
        self._due.append(probe)

    def _look_at(self, ttl: int) -> None:
        """Send what the vertices of a TTL want."""
        self._look_again(ttl)
        goes_on = self._goes_on_from(ttl)
        missing: dict[Vertex, int] = {}
        for vertex in self._passages.at(ttl):
            self._trace_back(vertex)
            if goes_on and self._is_followed(vertex):
                missing[vertex] = self._explore(vertex)
        self._steer(ttl, missing)

    def _explore(self, vertex: Vertex) -> int:
        """Send flows of a vertex on; return how many more are wanted than it has."""
        self._repeat(vertex)
        ttl, wanted = vertex.node.ttl + 1, self._wanted(vertex)
        for flow in list(vertex.fresh)[: max(wanted, 0)]:
            self._send(ttl, flow)
            wanted -= 1
        if self._passes_all(vertex):
            for flow in islice(self._new_flows(ttl), max(wanted, 0)):
                self._passages.take_for_passing(vertex, flow)
                self._send(ttl, flow)
            return 0
        return wanted

    def _passes_all(self, vertex: Vertex) -> bool:
        """Whether every flow passes a vertex: this host, or a TTL that is all silence.

        At a TTL with a single router it is asked nevertheless: there may still be another.
        """
        is_only = vertex is self._passages.only(vertex.node.ttl)
        return vertex is self._passages.root or (vertex.is_star and is_only)

    def _wanted(self, vertex: Vertex) -> int:
        """Return how many more flows the stopping rule wants to see behind a vertex."""
        if self._is_given_up(vertex):
            return 0
        hops, known = len(vertex.after), sum(vertex.after.values())
        return stopping_point(max(hops, 1), self._failure) - known - vertex.pending

    def _is_given_up(self, vertex: Vertex) -> bool:
        """Whether more flows were lost behind a vertex than the stopping rule wants."""
        if vertex.pending or not vertex.lost:
            return False
        need = stopping_point(max(len(vertex.after), 1), self._failure)
        return sum(vertex.after.values()) < need < vertex.lost

    def _steer(self, ttl: int, missing: dict[Vertex, int]) -> None:
        """Send flows to a TTL to find more of those that pass its vertices.

        First go such as are known to come from the nodes before; at most as many as are known now.
        """
        tried = self._passages.tried(ttl)
        wanting = [
            vertex
            for vertex, wanted in missing.items()
            if wanted > 0 and not vertex.is_rare and not vertex.is_star
        ]
        if not wanting:
            return
        scarce = max(wanting, key=lambda vertex: missing[vertex] / len(vertex.flows))
        befores, under_way = self._passages.befores(scarce), self._passages.under_way(ttl)
        even = self._even_share(scarce, befores)
        # As many as were seen, or as are due: of the one that got the fewest, the first is too few.
        share = max(even, len(scarce.flows) / tried)
        effort = (tried + under_way) * even / (len(scarce.flows) + missing[scarce])
        if effort > EFFORT_MAX:
            self._is_cut = scarce.is_rare = True
            return
        # What a hop got that hardly answers is under way longest: all of that may be this one's.
        likely_hits = under_way * (share if effort < PATIENCE else 1)
        demand = min((missing[scarce] - likely_hits) / share, tried, BATCH_MAX)
        for before in befores:
            likely = max(before.after[scarce] / sum(before.after.values()), share)
            for flow in islice(list(before.fresh), max(math.ceil(demand * share / likely), 0)):
                self._send(ttl, flow)
                demand -= likely / share
        for flow in islice(self._new_flows(ttl), max(math.ceil(demand), 0)):
            self._send(ttl, flow)

    def _even_share(self, vertex: Vertex, befores: list[Vertex]) -> float:
        """Return the share of all flows that passes a vertex, if they spread evenly before it."""
        passages, ttl = self._passages, vertex.node.ttl
        if passages.root in befores or passages.only(ttl - 1) is not None:
            return 1 / len(passages.at(ttl))
        earlier = len(passages.places(ttl - 1))
        return sum(len(each.flows) / len(each.after) for each in befores) / max(earlier, 1)

    def _new_flows(self, ttl: int) -> Iterator[int]:
        """Yield flows that were never sent to a TTL, nor seen right before it."""
        passages = self._passages
        while self._next_flow[ttl] <= FLOWS_MAX:
            flow = self._next_flow[ttl]
            self._next_flow[ttl] += 1
            before = passages.before(ttl, flow)
            is_new = before is None or before is passages.root
            if is_new and not passages.asked(ttl, flow) and passages.goes_to(ttl, flow):
                yield flow
        self._is_cut = True

    def _trace_back(self, vertex: Vertex) -> None:
        """Ask where a vertex is reached from, when no flow has shown it."""
        ttl = vertex.node.ttl - 1
        if vertex.before or vertex.is_star or ttl < self._passages.first_ttl:
            return
        if not any(self._passages.is_under_way(ttl, flow) for flow in vertex.flows):
            unasked = (flow for flow in vertex.flows if not self._passages.asked(ttl, flow))
            for flow in islice(unasked, 1):
                self._send(ttl, flow)

    def _is_followed(self, vertex: Vertex) -> bool:
        """Whether something may come after a vertex."""
        return not vertex.node.is_last and self._passages.runs(vertex) < LOOP_REPEATS

    def _goes_on_from(self, ttl: int) -> bool:
        """Whether to look beyond a TTL: not after the last one, nor after a gap of silent ones."""
        first = max(ttl - self._gap_limit + 1, self._passages.first_ttl)
        recent = [self._passages.at(each) for each in range(first, ttl + 1)]
        is_gap = len(recent) == self._gap_limit and all(
            vertices and all(vertex.is_star for vertex in vertices) for vertices in recent
        )
        return ttl < self._last_ttl and not is_gap

    # ── silence ──

    def _look_again(self, ttl: int) -> None:
        """Say where silent flows are thought to be, and ask them again."""
        silent: dict[Vertex | None, list[int]] = defaultdict(list)
        for flow in self._passages.silent(ttl):
            silent[self._whence(ttl, flow)].append(flow)
        for flow in silent.pop(None, ()):
            self._ask_whence(ttl, flow)
        first = ttl == self._passages.first_ttl
        for before in [self._passages.root] if first else self._passages.at(ttl - 1):
            self._judge(before, ttl, silent.get(before, []))

    def _judge(self, before: Vertex, ttl: int, flows: list[int]) -> None:
        """Judge the silence of flows that come from one vertex."""
        passages, hops = self._passages, before.hops
        presumed = sum(
            passages.before(ttl, flow) is before and passages.places(ttl).get(flow) in hops
            for flow in flows
        )
        meaning = Silence(
            ttl=ttl,
            silences={
                flow: passages.asked(ttl, flow) - passages.is_under_way(ttl, flow) for flow in flows
            },
            hops=[vertex.node for vertex in hops],
            seen=before.answered - presumed,
            recovered=before.recovered,
            depth=self._depth[ttl],
            is_alone=all(vertex.is_star for vertex in passages.at(ttl)),
            enough=stopping_point(1, self._failure),
        ).meaning()
        before.lost, before.is_unsure = meaning.lost, meaning.is_unsure
        for flow, node in meaning.places.items():
            passages.presume(ttl, flow, node)
        if meaning.is_presumed:
            self._prove(ttl, flows)
        self._ask_again(ttl, meaning.again)

    def _prove(self, ttl: int, flows: list[int]) -> None:
        """Ask for links that these flows alone show one of each, the one least often asked."""
        for through in unproven_links(self._passages, ttl, flows):
            if not any(self._passages.is_under_way(ttl, flow) for flow in through):
                flow = min(through, key=lambda flow: self._passages.asked(ttl, flow))
                if self._passages.asked(ttl, flow) < ASKS_MAX:
                    self._send(ttl, flow)

    def _ask_again(self, ttl: int, flows: list[int]) -> None:
        for flow in flows:
            if not self._passages.is_under_way(ttl, flow):
                self._send(ttl, flow)

    def _ask_whence(self, ttl: int, flow: int) -> None:
        """Ask where a silent flow is one TTL before; where all are silent, it is one of them."""
        if all(vertex.is_star for vertex in self._passages.at(ttl)):
            self._passages.presume(ttl, flow, Node(ttl, None))
            return
        self._passages.presume(ttl, flow, None)
        if not self._passages.asked(ttl - 1, flow):
            self._send(ttl - 1, flow)

    def _whence(self, ttl: int, flow: int) -> Vertex | None:
        """Return where a flow is one TTL before, if that is known or all pass one vertex there."""
        before = self._passages.before(ttl, flow)
        if before is None and not self._passages.asked(ttl - 1, flow):
            return self._passages.only(ttl - 1)
        return before

    # ── one flow, two ways ──

    def _repeat(self, vertex: Vertex) -> None:
        """Send one flow again and again where paths part for the first time."""
        if vertex.is_repeated or len(vertex.hops) < 2:
            return
        vertex.is_repeated = True
        ttl = vertex.node.ttl + 1
        places = self._passages.places(ttl)
        through = places if vertex is self._passages.root else vertex.flows
        flow = next(flow for flow in through
                    if self._passages.is_shown(ttl, flow) and not places[flow].is_star)  # fmt: skip
        for _ in range(REPEATS):
            self._send(ttl, flow, is_repeat=True)

    def _compare(self, node: Node, place: Vertex | None, flow: int) -> None:
        """Learn where a flow went that was sent once more."""
        if place is None or place.is_star or node.responder is None or node == place.node:
            return
        before = self._passages.before(node.ttl, flow)
        if before is not None:
            self._balancers.add(before.node)
