"""Links and what proves them."""

from netsonde.probe.trace.graph import Node
from netsonde.probe.trace.links import links_of, unproven_links
from netsonde.probe.trace.passages import Passages

A, B, C, SILENCE = Node(1, b"\1"), Node(2, b"\2"), Node(2, b"\3"), Node(2, None)


def paths(*flows: list[Node]) -> Passages:
    """Return where flows 1, 2 and so on showed themselves."""
    passages = Passages(1)
    for flow, nodes in enumerate(flows, 1):
        for node in nodes:
            passages.place(node, flow)
    return passages


def presumed(passages: Passages, flow: int, node: Node) -> None:
    passages.fall_silent(node.ttl, flow)
    passages.presume(node.ttl, flow, node)


def test_a_flow_seen_at_both_ends_proves_a_link() -> None:
    root = Passages(1).root.node
    links, unproven = links_of(paths([A, B], [A, C], [A, B]))
    assert links == {(root, A): [1, 2, 3], (A, B): [1, 3], (A, C): [2]}
    assert not unproven


def test_a_presumed_end_proves_nothing() -> None:
    passages = paths([A, B], [C])
    presumed(passages, 2, A)
    links, unproven = links_of(passages)
    assert (A, C) not in links
    assert unproven == {(A, C)}
    assert list(unproven_links(passages, 1, [2])) == [[2]]


def test_what_another_flow_proves_is_proven() -> None:
    passages = paths([A, B], [B], [C], [A, C])
    presumed(passages, 2, A)
    presumed(passages, 3, A)
    assert not links_of(passages)[1]
    assert not list(unproven_links(passages, 1, [2, 3]))


def test_flows_of_one_unproven_link_come_together() -> None:
    passages = paths([A], [B], [C], [B])
    for flow in (2, 3, 4):
        presumed(passages, flow, A)
    assert list(unproven_links(passages, 1, [2, 3, 4])) == [[2, 4], [3]]


def test_silence_proves_itself() -> None:
    passages = paths([A])
    presumed(passages, 1, SILENCE)
    assert links_of(passages)[0][A, SILENCE] == [1]


def test_a_refusal_beyond_its_router_is_no_link() -> None:
    refusal = Node(2, A.responder, is_refusal=True)
    assert (A, refusal) not in links_of(paths([A, refusal]))[0]
