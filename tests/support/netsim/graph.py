"""The graph of a route: its hops, and how they are joined.

`hops` is a sequence. An element is a router's name, or a list of branches that part before it and
meet after it; a branch is a name or again a sequence, which may be empty: a shortcut. Where
branches meet branches, each end is joined to each beginning. `links` with a pair that is not joined
by that add a link.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from support.netsim.parts import ScenarioError
from support.netsim.routes import DESTINATION, HOST, NOWHERE, RESERVED, Link, Route

BRANCHES_MAX = 64


class Edge(NamedTuple):
    """A link between two nodes."""

    tail: str
    head: str
    link: Link


@dataclass(frozen=True)
class Graph:
    """Nodes by name, the host first, and edges grouped by where they begin, in the nodes' order."""

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]

    @cached_property
    def leaving(self) -> Mapping[str, Sequence[Edge]]:
        """The edges that begin at each node."""
        found: dict[str, list[Edge]] = {node: [] for node in self.nodes}
        for edge in self.edges:
            found[edge.tail].append(edge)
        return found


def graph_of(route: Route, place: str = "route", routers: Collection[str] | None = None) -> Graph:
    """Return the graph of a route; ScenarioError names the field that is wrong.

    routers: the names that are described; None when they have been checked.
    """
    builder = _Builder(place, routers)
    last = builder.join(route.hops, [HOST], "hops")
    nodes = [*builder.nodes]
    if route.end == DESTINATION:
        nodes.append(DESTINATION)
    elif route.end not in {*builder.nodes[1:], NOWHERE}:
        raise ScenarioError(f"{place}.end: {route.end} is no hop of the route")
    if route.end != NOWHERE:
        builder.connect(last, route.end)
    links = dict.fromkeys(builder.pairs, route.link)
    for index, link in enumerate(route.links):
        tail, head = link.between
        if tail not in nodes or head not in nodes or tail == DESTINATION or head == HOST:
            raise ScenarioError(f"{place}.links[{index}].between: {tail}, {head}: no such hops")
        links[tail, head] = link
    rank = {node: number for number, node in enumerate(nodes)}
    edges = [Edge(*pair, link) for pair, link in links.items()]
    return Graph(tuple(nodes), tuple(sorted(edges, key=lambda edge: rank[edge.tail])))


class _Builder:
    """Reads hops; keeps what it has seen, in order."""

    def __init__(self, place: str, routers: Collection[str] | None) -> None:
        self.place = place
        self.routers = routers
        self.nodes = [HOST]
        self.pairs: dict[tuple[str, str], None] = {}

    def join(self, hops: Sequence[Any], before: list[str], place: str) -> list[str]:
        """Add a sequence behind some nodes; returns the nodes it ends with."""
        for index, hop in enumerate(hops):
            here = f"{place}[{index}]"
            if isinstance(hop, str):
                self._add(hop, here)
                self.connect(before, hop)
                before = [hop]
            else:
                before = self._part(hop, before, here)
        return before

    def connect(self, before: Sequence[str], node: str) -> None:
        self.pairs.update(dict.fromkeys((each, node) for each in before))

    def _part(self, branches: object, before: list[str], place: str) -> list[str]:
        if not isinstance(branches, list | tuple) or not 0 < len(branches) <= BRANCHES_MAX:
            raise self._fault(place, f"neither a name nor a list of 1 to {BRANCHES_MAX} branches")
        ends: list[str] = []
        for index, branch in enumerate(branches):
            hops = [branch] if isinstance(branch, str) else branch
            if not isinstance(hops, list | tuple):
                raise self._fault(f"{place}[{index}]", "neither a name nor a list of hops")
            ends += self.join(hops, before, f"{place}[{index}]")
        return list(dict.fromkeys(ends))

    def _add(self, name: str, place: str) -> None:
        if name in RESERVED or (self.routers is not None and name not in self.routers):
            raise self._fault(place, f"{name} is not a described router")
        if name in self.nodes:
            raise self._fault(place, f"{name} comes twice; `end` makes a loop")
        self.nodes.append(name)

    def _fault(self, place: str, complaint: str) -> ScenarioError:
        return ScenarioError(f"{self.place}.{place}: {complaint}")
