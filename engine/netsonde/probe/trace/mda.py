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

Silence beside answers has two meanings. A next hop may never answer, or it was loss or a rate limit
that spared other flows. Silent flows are asked again, and they count as a next hop only when they
are as many as one would get and asking again was of no use. If not, they count for nothing; if only
one next hop has been found, and no other is to be expected, they are taken to pass it.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from netsonde.probe.trace.answers import Answer
from netsonde.probe.trace.graph import Graph, Node, connect
from netsonde.probe.trace.passages import Passages, Vertex

FLOWS_MAX = 8192  # enough for 128 next hops at 99 %
PROBES_MAX = 20_000  # of one search
BATCH_MAX = 1024  # probes due at once, and not many more
REPEATS = 9  # of one flow where paths part: does it always go the same way?
LOOP_REPEATS = 3  # separate stretches of one address beyond which it is not followed
ASKS_MAX = 2  # of a silent flow where others answer
STAR_PROOFS = 3  # flows that stayed silent, if none answered later: the others need not be asked
# A silent next hop would get so few flows, or fewer, with this probability: then it is none.
STAR_DOUBT = 0.01
RECOVERED_MAX = 1 / 10  # of silent flows, that answered later: more are a rate limit or loss
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
        before = self._whence(ttl, flow)
        if probe.again and answer is not None and before is not None:
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
        flows: dict[tuple[Node, Node], list[int]] = defaultdict(list)
        for ttl in passages.ttls():
            for flow, vertex in sorted(passages.places(ttl).items()):
                before = passages.before(ttl, flow)
                if before is not None and self._is_link(before, vertex):
                    flows[before.node, vertex.node].append(flow)
        found = connect(passages.root.node, flows, self._balancers)
        is_cut = self._is_cut or any(map(self._is_given_up, self._vertices()))
        return found._replace(flows=self._flows, probes=self._probes, is_cut=is_cut)

    def _is_link(self, before: Vertex, vertex: Vertex) -> bool:
        """Whether what a flow showed one after another are two neighbours."""
        if vertex.is_star:
            return self._is_star_behind(before)
        # A router that refuses to send packets on does so at every TTL beyond its own.
        return not vertex.node.is_refusal or vertex.node.responder != before.node.responder

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
        hops, seen = len(vertex.hops), vertex.answered
        if self._is_star_behind(vertex):
            hops, seen = hops + 1, seen + vertex.silent
        return stopping_point(max(hops, 1), self._failure) - seen - vertex.pending

    def _is_given_up(self, vertex: Vertex) -> bool:
        """Whether more flows were lost behind a vertex than the stopping rule wants."""
        if vertex.pending or not vertex.silent or self._is_star_behind(vertex):
            return False
        need = stopping_point(len(vertex.hops), self._failure)
        return vertex.answered < need < vertex.silent

    def _steer(self, ttl: int, missing: dict[Vertex, int]) -> None:
        """Send flows to a TTL to find more of those that pass its vertices.

        First go such as are known to come from the nodes before; at most as many as are known now.
        """
        seen = len(self._passages.places(ttl))
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
        share = max(even, len(scarce.flows) / seen)
        effort = (seen + under_way) * even / (len(scarce.flows) + missing[scarce])
        if effort > EFFORT_MAX:
            self._is_cut = scarce.is_rare = True
            return
        # What a hop got that hardly answers is under way longest: all of that may be this one's.
        likely_hits = under_way * (share if effort < PATIENCE else 1)
        demand = min((missing[scarce] - likely_hits) / share, seen, BATCH_MAX)
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
        if vertex.is_star:
            befores = self._passages.befores(vertex)
            return vertex.is_settled and (not befores or any(map(self._is_star_behind, befores)))
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
        """Say whom flows pass that are silent where others answer, or ask them again."""
        passages, star = self._passages, self._passages.star(ttl)
        if star is None:
            return
        star.is_settled = True
        silent: dict[Vertex | None, list[int]] = defaultdict(list)
        for flow in star.flows:
            silent[self._whence(ttl, flow)].append(flow)
        for before, flows in silent.items():
            hop = self._sole_hop_behind(before) if before else self._sole_hop_at(ttl)
            is_unsure = self._is_unsure(before, ttl, flows)
            for flow in flows:
                if passages.is_under_way(ttl, flow):
                    star.is_settled = False
                elif hop is not None:
                    passages.place(hop.node, flow)
                elif is_unsure and passages.asked(ttl, flow) < ASKS_MAX:
                    star.is_settled = False
                    self._send(ttl, flow)

    def _is_unsure(self, before: Vertex | None, ttl: int, flows: list[int]) -> bool:
        """Whether silent flows are to be asked again: where others answer, unless it was no use."""
        if before is None:
            return len(self._passages.at(ttl)) > 1
        idle = sum(self._passages.asked(ttl, flow) == ASKS_MAX for flow in flows)
        return before.has_hops and (idle < STAR_PROOFS or before.recovered > 0)

    def _whence(self, ttl: int, flow: int) -> Vertex | None:
        """Return where a flow is one TTL before, if that is known or all pass one vertex there."""
        return self._passages.before(ttl, flow) or self._passages.only(ttl - 1)

    def _sole_hop_at(self, ttl: int) -> Vertex | None:
        """Return the vertex that all flows pass at a TTL, as far as all nodes before show."""
        passages = self._passages
        is_first = ttl == passages.first_ttl
        befores = [passages.root] if is_first else passages.at(ttl - 1)
        hops = {self._sole_hop_behind(each) for each in befores
                if not (each.node.is_last or each.is_star)}  # fmt: skip
        return hops.pop() if len(hops) == 1 else None

    def _sole_hop_behind(self, vertex: Vertex) -> Vertex | None:
        """Return the next hop of all flows through a vertex, those that showed nothing too."""
        hops = vertex.hops
        is_sole = len(hops) == 1 and vertex.answered >= stopping_point(1, self._failure)
        return hops[0] if is_sole and not self._is_star_behind(vertex) else None

    def _is_star_behind(self, vertex: Vertex) -> bool:
        """Whether the silent flows behind a vertex are so many that a next hop must be silent."""
        silent, answered, hops = vertex.silent, vertex.answered, len(vertex.hops)
        if not silent or not answered:
            return silent > 0
        if vertex.recovered > RECOVERED_MAX * silent:
            return False
        return _at_most(silent, silent + answered, 1 / (hops + 1)) >= STAR_DOUBT

    # ── one flow, two ways ──

    def _repeat(self, vertex: Vertex) -> None:
        """Send one flow again and again where paths part for the first time."""
        if vertex.is_repeated or len(vertex.hops) < 2:
            return
        vertex.is_repeated = True
        ttl = vertex.node.ttl + 1
        places = self._passages.places(ttl)
        through = places if vertex is self._passages.root else vertex.flows
        flow = next(flow for flow in through if flow in places and not places[flow].is_star)
        for _ in range(REPEATS):
            self._send(ttl, flow, is_repeat=True)

    def _compare(self, node: Node, place: Vertex | None, flow: int) -> None:
        """Learn where a flow went that was sent once more."""
        if place is None or place.is_star or node.responder is None or node == place.node:
            return
        before = self._passages.before(node.ttl, flow)
        if before is not None:
            self._balancers.add(before.node)


def _at_most(successes: int, trials: int, probability: float) -> float:
    """Return the probability of so many successes or fewer (binomial distribution)."""
    if successes >= trials * probability:
        return 1.0  # the mean or more: no less than a half, as good as certain here
    odds = probability / (1 - probability)
    term = total = (1 - probability) ** trials
    for number in range(successes):
        term *= odds * (trials - number) / (number + 1)
        total += term
    return total
