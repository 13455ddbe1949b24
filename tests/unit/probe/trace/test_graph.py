"""Drawing the graph of what flows showed."""

from netsonde.probe.trace.graph import LINK_FLOWS, Graph, Node, connect

ROOT = Node(0, b"")


def node(ttl: int, name: str) -> Node:
    return Node(ttl, name.encode())


def graph(*paths: str, balancers: str = "") -> Graph:
    """Return the graph of paths of one letter per TTL, each shown by one flow."""
    flows: dict[tuple[Node, Node], list[int]] = {}
    for ttl in range(1, max(map(len, paths)) + 1):
        for flow, path in enumerate(paths, 1):
            if ttl <= len(path) and path[ttl - 1] != " ":
                before = ROOT if ttl == 1 else node(ttl - 1, path[ttl - 2])
                flows.setdefault((before, node(ttl, path[ttl - 1])), []).append(flow)
    suspects = {each for path in paths for ttl, name in enumerate(path, 1)
                if name in balancers for each in [node(ttl, name)]}  # fmt: skip
    return connect(ROOT, flows, frozenset(suspects | ({ROOT} if "0" in balancers else set())))


def links(found: Graph) -> list[str]:
    return [f"{a.responder.decode()}{b.responder.decode()}" for a, b, _ in found.links
            if a.responder and b.responder]  # fmt: skip


def test_nodes_and_links_come_by_ttl_and_the_root_is_none_of_them() -> None:
    found = graph("acd", "bcd", "ace")
    assert [each.ttl for each in found.nodes] == [1, 1, 2, 3, 3]
    assert links(found) == ["ac", "bc", "cd", "ce"]
    assert [link.flows for link in found.links] == [(1, 3), (2,), (1, 2), (3,)]
    assert found.at(3) == (node(3, "d"), node(3, "e"))
    assert list(found.after(node(2, "c"))) == [node(3, "d"), node(3, "e")]
    assert found.balancers == frozenset()


def test_a_link_names_its_lowest_flows_only() -> None:
    found = graph(*["ab"] * 20)
    assert found.links[0].flows == tuple(range(1, LINK_FLOWS + 1))


def test_what_no_path_leads_to_is_left_out() -> None:
    found = graph("ab", "  c", " de")
    assert [each.responder for each in found.nodes] == [b"a", b"b"]
    assert links(found) == ["ab"]


def test_links_behind_a_balancer_of_packets_are_left_out_until_paths_meet() -> None:
    found = graph("abdfg", "acefg", balancers="a")
    assert links(found) == ["ab", "ac", "df", "ef", "fg"]
    assert found.balancers == {node(1, "a")}
    assert len(found.nodes) == 7


def test_links_are_kept_where_paths_meet_at_once() -> None:
    assert links(graph("abd", "acd", balancers="a")) == ["ab", "ac", "bd", "cd"]


def test_a_balancer_behind_another_cannot_be_told_from_none() -> None:
    found = graph("abdg", "aceg", balancers="abc")
    assert found.balancers == {node(1, "a")}
    found = graph("abdegh", "acdfgh", balancers="ad")
    assert found.balancers == {node(1, "a"), node(3, "d")}
    assert len(found.links) == 9


def test_this_host_may_balance_too() -> None:
    found = graph("ac", "bd", balancers="0")
    assert found.balancers == {ROOT}
    assert links(found) == []
    assert len(found.nodes) == 4
