"""Which nodes follow one another: a flow that showed both ends of a link proves it.

A flow whose place at one of them is only presumed does not.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from netsonde.probe.trace.graph import Node
from netsonde.probe.trace.passages import Passages, Vertex

Pair = tuple[Node, Node]


def links_of(passages: Passages) -> tuple[dict[Pair, list[int]], set[Pair]]:
    """Return the flows that prove each link, by TTL, and the links that none proves."""
    proofs: dict[Pair, list[int]] = defaultdict(list)
    claims: set[Pair] = set()
    for ttl in passages.ttls():
        for flow, vertex in sorted(passages.places(ttl).items()):
            before = passages.before(ttl, flow)
            if before is None or not _is_link(before, vertex):
                continue
            pair = before.node, vertex.node
            if _is_proof(passages, ttl, flow):
                proofs[pair].append(flow)
            else:
                claims.add(pair)
    return proofs, claims.difference(proofs)


def unproven_links(passages: Passages, ttl: int, flows: Sequence[int]) -> Iterator[list[int]]:
    """Yield those of these flows that lead from a TTL to one next hop, if none proves that link."""
    beyond = passages.places(ttl + 1)
    leading: dict[tuple[Vertex, Vertex], list[int]] = defaultdict(list)
    for flow in flows:
        if flow in beyond and not beyond[flow].is_star:
            leading[passages.places(ttl)[flow], beyond[flow]].append(flow)
    for (before, after), through in leading.items():
        if not any(
            passages.before(ttl + 1, flow) is before and _is_proof(passages, ttl + 1, flow)
            for flow in after.flows
        ):
            yield through


def _is_proof(passages: Passages, ttl: int, flow: int) -> bool:
    """Whether a flow showed its place at a TTL and the one before."""
    is_first = ttl == passages.first_ttl
    return passages.is_shown(ttl, flow) and (is_first or passages.is_shown(ttl - 1, flow))


def _is_link(before: Vertex, vertex: Vertex) -> bool:
    """Whether what a flow showed one after another are two neighbours."""
    # A router that refuses to send packets on does so at every TTL beyond its own.
    return not vertex.node.is_refusal or vertex.node.responder != before.node.responder
