"""Which flows pass which nodes, as far as answers have shown: the memory of multipath detection.

Everything that the search asks of it while answers come in is counted as they come.
"""

from collections import defaultdict
from itertools import pairwise

from netsonde.probe.trace.graph import Node


class Vertex:
    """A node of the graph and the flows that pass it.

    flows: as they were found, values unused. fresh: those of them never sent to the next TTL.
    after: how many of them the next TTL showed to go where. before: how many came from a known
    node. pending: how many are under way to the next TTL. recovered: how many showed the next node
    only when they were asked again.

    Marks of the search: is_repeated, one flow was sent on again and again; is_settled, of silence,
    all its flows were asked often enough; is_rare, hardly any flow is found to pass it.
    """

    __slots__ = (
        "after", "before", "flows", "fresh", "is_rare", "is_repeated", "is_settled", "node",
        "pending", "recovered",
    )  # fmt: skip

    def __init__(self, node: Node) -> None:
        self.node = node
        self.flows: dict[int, None] = {}
        self.fresh: dict[int, None] = {}
        self.after: dict[Vertex, int] = {}
        self.before = 0
        self.pending = 0
        self.recovered = 0
        self.is_rare = False
        self.is_repeated = False
        self.is_settled = False

    @property
    def is_star(self) -> bool:
        """Whether it stands for silence."""
        return self.node.responder is None

    @property
    def has_hops(self) -> bool:
        """Whether a next hop answers."""
        return any(not vertex.is_star for vertex in self.after)

    @property
    def hops(self) -> list["Vertex"]:
        """The next hops that answer."""
        return [vertex for vertex in self.after if not vertex.is_star]

    @property
    def answered(self) -> int:
        """How many flows showed one of these."""
        return sum(count for vertex, count in self.after.items() if not vertex.is_star)

    @property
    def silent(self) -> int:
        """How many flows showed nothing at the next TTL."""
        return sum(count for vertex, count in self.after.items() if vertex.is_star)


class Passages:
    """Vertices by TTL, and where each flow was seen and asked for. The root is this host."""

    def __init__(self, first_ttl: int) -> None:
        self.first_ttl = first_ttl
        self.root = Vertex(Node(first_ttl - 1, b""))
        self._vertices: dict[int, dict[Node, Vertex]] = defaultdict(dict)
        self._places: dict[int, dict[int, Vertex]] = defaultdict(dict)  # by TTL and flow
        self._asked: dict[int, dict[int, int]] = defaultdict(dict)  # by TTL and flow: how often
        self._under_way: dict[int, set[int]] = defaultdict(set)  # by TTL: flows
        self._ends: dict[int, int] = {}  # by flow: the TTL of its end
        self._ttls_of: dict[bytes, set[int]] = defaultdict(set)

    # ── questions ──

    def ttls(self) -> list[int]:
        """Return the TTLs at which something is known, in order."""
        return sorted(ttl for ttl, vertices in self._vertices.items() if vertices)

    def at(self, ttl: int) -> list[Vertex]:
        """Return the vertices of a TTL."""
        return list(self._vertices[ttl].values())

    def only(self, ttl: int) -> Vertex | None:
        """Return the vertex of a TTL that has just one."""
        vertices = self._vertices[ttl]
        return next(iter(vertices.values())) if len(vertices) == 1 else None

    def star(self, ttl: int) -> Vertex | None:
        """Return the vertex of the flows that showed nothing at a TTL."""
        return self._vertices[ttl].get(Node(ttl, None))

    def places(self, ttl: int) -> dict[int, Vertex]:
        """Return where flows are at a TTL."""
        return self._places[ttl]

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
        """Note where a flow is; it may have been thought to be elsewhere."""
        ttl = node.ttl
        if not self.goes_to(ttl, flow):
            return
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
        elif self._ends.get(flow) == ttl:
            del self._ends[flow]

    def take_for_passing(self, vertex: Vertex, flow: int) -> None:
        """Note that a flow passes a vertex, as all do, though it was not sent to its TTL."""
        if vertex is not self.root:
            self.place(vertex.node, flow)

    def _end(self, ttl: int, flow: int) -> None:
        self._ends[flow] = ttl
        for beyond in [each for each in self._places if each > ttl]:
            self._displace(beyond, flow)

    def _displace(self, ttl: int, flow: int) -> None:
        vertex = self._places[ttl].pop(flow, None)
        if vertex is None:
            return
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
