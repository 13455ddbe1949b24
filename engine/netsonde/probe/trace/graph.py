"""What multipath detection finds: who answers at each TTL, and who follows whom."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

LINK_FLOWS = 8  # named per link


class Node(NamedTuple):
    """Who answers at a TTL: the same router at two TTLs is two nodes. None: nobody does."""

    ttl: int
    responder: bytes | None  # 4 or 16
    is_end: bool = False  # the destination
    is_refusal: bool = False  # says that it does not send packets on

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return self.is_end or self.is_refusal


class Link(NamedTuple):
    """Two nodes at neighbouring TTLs that a flow passes, and the lowest such flow numbers."""

    source: Node
    target: Node
    flows: tuple[int, ...]


class Graph(NamedTuple):
    """Every path that was found.

    balancers: nodes that send packets of one flow different ways. How their next hops are linked to
    what follows cannot be seen until the paths meet again, and no such link is listed. is_cut: a
    limit ended the search before the stopping rule did, somewhere at least.
    """

    nodes: tuple[Node, ...]  # by TTL
    links: tuple[Link, ...]  # by TTL
    balancers: frozenset[Node]
    flows: int = 0
    probes: int = 0
    is_cut: bool = False

    def at(self, ttl: int) -> tuple[Node, ...]:
        """Return the nodes of a TTL."""
        return tuple(node for node in self.nodes if node.ttl == ttl)

    def after(self, node: Node) -> Iterator[Node]:
        """Yield who follows a node."""
        return (link.target for link in self.links if link.source == node)


def connect(
    root: Node, flows: Mapping[tuple[Node, Node], Sequence[int]], balancers: Set[Node]
) -> Graph:
    """Return the graph of all that can be reached from the root, which is not part of it.

    flows: that pass two nodes one after another, in the order of the farther one's TTL. balancers:
    nodes behind which a flow was seen to change its way; only the first on a path is known to be
    one.
    """
    after: dict[Node, list[Node]] = defaultdict(list)
    reached = {root: None}  # in order
    for source, target in flows:
        if source in reached:
            reached[target] = None
            after[source].append(target)
    blurred: set[Node] = set()
    unproven: set[tuple[Node, Node]] = set()
    true = []
    for balancer in sorted(balancers & reached.keys(), key=lambda node: node.ttl):
        if balancer not in blurred:
            true.append(balancer)
            _blur(balancer, after, blurred, unproven)
    del reached[root]
    return Graph(
        tuple(reached),
        tuple(
            Link(source, target, tuple(sorted(each)[:LINK_FLOWS]))
            for (source, target), each in flows.items()
            if source in reached and (source, target) not in unproven
        ),
        frozenset(true),
    )


def _blur(
    balancer: Node,
    after: Mapping[Node, Sequence[Node]],
    blurred: set[Node],
    unproven: set[tuple[Node, Node]],
) -> None:
    """Add the nodes and links behind a balancer up to where all paths meet again."""
    level = dict.fromkeys(after.get(balancer, ()))
    while len(level) > 1:
        blurred.update(level)
        links = [(source, target) for source in level for target in after.get(source, ())]
        level = dict.fromkeys(target for _, target in links)
        if len(level) > 1:
            unproven.update(links)
