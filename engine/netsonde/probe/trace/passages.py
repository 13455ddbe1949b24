"""Which flows pass which nodes, as far as answers have shown: the memory of multipath detection.

Everything that the search asks of it while answers come in is counted as they come.
"""

from collections import defaultdict
from itertools import pairwise

from netsonde.probe.trace.graph import Node


class Vertex:
    """A node of the graph and the flows that pass it.

    flows: as they were found, values unused. fresh: those of them never sent to the next TTL.
    after: how many of them go where next. before: how many came from a known node. pending: how
    many are under way to the next TTL. recovered: how many showed the next node only when they were
    asked again.

    Marks of the search: is_repeated, one flow was sent on again and again; is_rare, hardly any flow
    is found to pass it; lost, how many of its flows stayed silent and count for nothing; is_unsure,
    of some of these not even that is certain.
    """

    __slots__ = (
        "after", "before", "flows", "fresh", "is_rare", "is_repeated", "is_unsure", "lost",
        "node", "pending", "recovered",
    )  # fmt: skip

    def __init__(self, node: Node) -> None:
        self.node = node
        self.flows: dict[int, None] = {}
        self.fresh: dict[int, None] = {}
        self.after: dict[Vertex, int] = {}
        self.before = 0
        self.pending = 0
        self.recovered = 0
        self.lost = 0
        self.is_rare = False
        self.is_repeated = False
        self.is_unsure = False

    @property
    def is_star(self) -> bool:
        """Whether it stands for silence."""
        return self.node.responder is None

    @property
    def hops(self) -> list["Vertex"]:
        """The next hops that answer."""
        return [vertex for vertex in self.after if not vertex.is_star]

    @property
    def answered(self) -> int:
        """How many flows go to one of these, seen or presumed."""
        return sum(count for vertex, count in self.after.items() if not vertex.is_star)


class Passages:
    """Vertices by TTL, and where each flow was seen and asked for. The root is this host.

    A flow that showed nothing at a TTL is silent there until it does. It may have a place all the
    same, if there is reason to presume one.
    """

    def __init__(self, first_ttl: int) -> None:
        self.first_ttl = first_ttl
        self.root = Vertex(Node(first_ttl - 1, b""))
        self._vertices: dict[int, dict[Node, Vertex]] = defaultdict(dict)
        self._places: dict[int, dict[int, Vertex]] = defaultdict(dict)  # by TTL and flow
        self._silent: dict[int, dict[int, None]] = defaultdict(dict)  # by TTL: flows, in order
        self._asked: dict[int, dict[int, int]] = defaultdict(dict)  # by TTL and flow: how often
        self._under_way: dict[int, set[int]] = defaultdict(set)  # by TTL: flows
        self._ends: dict[int, int] = {}  # by flow: the TTL of its end
        self._ttls_of: dict[bytes, set[int]] = defaultdict(set)

    # ── questions ──

    def ttls(self) -> list[int]:
        """Return the TTLs at which something is known, in order."""
        known = {ttl for ttl, flows in self._silent.items() if flows}
        return sorted(known.union(ttl for ttl, vertices in self._vertices.items() if vertices))

    def at(self, ttl: int) -> list[Vertex]:
        """Return the vertices of a TTL."""
        return list(self._vertices[ttl].values())

    def only(self, ttl: int) -> Vertex | None:
        """Return the vertex of a TTL that has just one."""
        vertices = self._vertices[ttl]
        return next(iter(vertices.values())) if len(vertices) == 1 else None

    def places(self, ttl: int) -> dict[int, Vertex]:
        """Return where flows are at a TTL."""
        return self._places[ttl]

    def silent(self, ttl: int) -> list[int]:
        """Return the flows that have shown nothing at a TTL."""
        return list(self._silent[ttl])

    def is_shown(self, ttl: int, flow: int) -> bool:
        """Whether a flow has a place for what it showed there: who answers, or nobody."""
        place = self._places[ttl].get(flow)
        return place is not None and (place.is_star or flow not in self._silent[ttl])

    def tried(self, ttl: int) -> int:
        """Count the flows of which a TTL has shown something or nothing."""
        silent, places = self._silent[ttl], self._places[ttl]
        return len(places) + sum(flow not in places for flow in silent)

    def before(self, ttl: int, flow: int) -> Vertex | None:
        """Return where a flow is one TTL before, if that is known."""
        return self.root if ttl == self.first_ttl else self._places[ttl - 1].get(flow)

    def asked(self, ttl: int, flow: int) -> int:
        """Return how often a flow was sent to a TTL."""
        return self._asked[ttl].get(flow, 0)

    def is_under_way(self, ttl: int, flow: int) -> bool:
        """Whether a probe of a flow to a TTL has not ended."""
        return flow in self._under_way[ttl]

    def under_way(self, ttl: int) -> int:
        """Return how many flows are under way to a TTL."""
        return len(self._under_way[ttl])

    def befores(self, vertex: Vertex) -> list[Vertex]:
        """Return from where flows come to a vertex, as far as that is known."""
        ttl = vertex.node.ttl
        found = (self.before(ttl, flow) for flow in vertex.flows)
        return list(dict.fromkeys(each for each in found if each is not None))

    def goes_to(self, ttl: int, flow: int) -> bool:
        """Whether a flow may come as far as a TTL: it is not known to end before."""
        return self._ends.get(flow, ttl) >= ttl

    def runs(self, vertex: Vertex) -> int:
        """Count the separate stretches of the path of one flow on which this address answers."""
        responder = vertex.node.responder
        if responder is None or len(self._ttls_of[responder]) < 2:
            return 1
        flow = next(iter(vertex.flows))
        ttls = sorted(
            ttl
            for ttl in self._ttls_of[responder]
            if (place := self._places[ttl].get(flow)) and place.node.responder == responder
        )
        return 1 + sum(later - earlier > 1 for earlier, later in pairwise(ttls))

    # ── what happens ──

    def send(self, ttl: int, flow: int) -> int:
        """Note that a flow is sent to a TTL; return how often it was before."""
        before = self.before(ttl, flow)
        if before is not None:
            before.fresh.pop(flow, None)
            before.pending += 1
        self._under_way[ttl].add(flow)
        return self.repeat(ttl, flow)

    def repeat(self, ttl: int, flow: int) -> int:
        """Note that a flow is sent to a TTL where its place is known; return as `send`."""
        times = self.asked(ttl, flow)
        self._asked[ttl][flow] = times + 1
        return times

    def receive(self, ttl: int, flow: int) -> None:
        """Note that a flow that was sent is no longer under way."""
        self._under_way[ttl].discard(flow)
        before = self.before(ttl, flow)
        if before is not None:
            before.pending -= 1

    def place(self, node: Node, flow: int) -> None:
        """Note where a flow showed itself; it may have been thought to be elsewhere."""
        if self.goes_to(node.ttl, flow):
            self._silent[node.ttl].pop(flow, None)
            self._place(node, flow)

    def fall_silent(self, ttl: int, flow: int) -> None:
        """Note that a flow showed nothing where it had not shown anything before."""
        if self.goes_to(ttl, flow) and not self.is_shown(ttl, flow):
            self._silent[ttl][flow] = None

    def presume(self, ttl: int, flow: int, node: Node | None) -> None:
        """Note where a silent flow is thought to be; None: that is not known."""
        place = self._places[ttl].get(flow)
        if node is None:
            self._displace(ttl, flow)
        elif place is None or place.node != node:
            self._place(node, flow)

    def _place(self, node: Node, flow: int) -> None:
        ttl = node.ttl
        self._displace(ttl, flow)
        vertex = self._vertices[ttl].get(node)
        if vertex is None:
            vertex = self._vertices[ttl][node] = Vertex(node)
            if node.responder is not None:
                self._ttls_of[node.responder].add(ttl)
        vertex.flows[flow] = None
        self._places[ttl][flow] = vertex
        self._pair(self.before(ttl, flow), vertex, 1)
        self._pair(vertex, self._places[ttl + 1].get(flow), 1)
        vertex.pending += flow in self._under_way[ttl + 1]
        if not self.asked(ttl + 1, flow):
            vertex.fresh[flow] = None
        if node.is_last:
            self._end(ttl, flow)

    def take_for_passing(self, vertex: Vertex, flow: int) -> None:
        """Note that a flow passes this host or silence, as all do; it is not sent to that TTL."""
        if vertex is not self.root:
            self.fall_silent(vertex.node.ttl, flow)
            self.presume(vertex.node.ttl, flow, vertex.node)

    def _end(self, ttl: int, flow: int) -> None:
        self._ends[flow] = ttl
        for beyond in {*self._places, *self._silent}:
            if beyond > ttl:
                self._silent[beyond].pop(flow, None)
                self._displace(beyond, flow)

    def _displace(self, ttl: int, flow: int) -> None:
        vertex = self._places[ttl].pop(flow, None)
        if vertex is None:
            return
        if self._ends.get(flow) == ttl:
            del self._ends[flow]
        self._pair(self.before(ttl, flow), vertex, -1)
        self._pair(vertex, self._places[ttl + 1].get(flow), -1)
        vertex.pending -= flow in self._under_way[ttl + 1]
        vertex.fresh.pop(flow, None)
        del vertex.flows[flow]
        if not vertex.flows:
            del self._vertices[ttl][vertex.node]

    def _pair(self, before: Vertex | None, after: Vertex | None, change: int) -> None:
        """Count a flow that passes both, or one less."""
        if before is None or after is None:
            return
        after.before += change
        count = before.after.get(after, 0) + change
        if count:
            before.after[after] = count
        else:
            del before.after[after]
