"""The memory of multipath detection: what it counts as answers come is what counting anew gives."""

from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde.probe.trace.graph import Node
from netsonde.probe.trace.passages import Passages, Vertex

FIRST_TTL, LAST_TTL = 2, 6
FLOWS = range(1, 6)

nodes = st.builds(
    Node,
    st.integers(FIRST_TTL, LAST_TTL),
    st.sampled_from([None, b"\1", b"\2", b"\3"]),
    st.booleans(),
    st.booleans(),
).filter(lambda node: node.responder is not None or not node.is_last)
steps = st.tuples(st.sampled_from(["send", "place", "presume"]), nodes, st.sampled_from(FLOWS))


def play(events: list[tuple[str, Node, int]]) -> Passages:
    """Send flows, and let answers come for what is under way."""
    passages = Passages(FIRST_TTL)
    for what, node, flow in events:
        if what == "send" and not passages.is_under_way(node.ttl, flow):
            passages.send(node.ttl, flow)
        elif what == "place" and passages.is_under_way(node.ttl, flow):
            passages.receive(node.ttl, flow)
            if node.responder is None:
                passages.fall_silent(node.ttl, flow)
            else:
                passages.place(node, flow)
        elif what == "presume" and flow in passages.silent(node.ttl):
            passages.presume(node.ttl, flow, node if node.ttl < LAST_TTL else None)
    return passages


def each_vertex(passages: Passages) -> list[Vertex]:
    return [vertex for ttl in passages.ttls() for vertex in passages.at(ttl)]


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=120))
def test_counts_are_those_of_counting_anew(events: list[tuple[str, Node, int]]) -> None:
    passages = play(events)
    ttls = range(FIRST_TTL, LAST_TTL + 1)
    for vertex in [passages.root, *each_vertex(passages)]:
        ttl, is_root = vertex.node.ttl, vertex is passages.root
        through = [flow for flow in FLOWS if is_root or passages.places(ttl).get(flow) is vertex]
        after: dict[Vertex, int] = {}
        for flow in through:
            if (place := passages.places(ttl + 1).get(flow)) is not None:
                after[place] = after.get(place, 0) + 1
        assert vertex.after == after
        assert vertex.pending == sum(passages.is_under_way(ttl + 1, flow) for flow in through)
        if is_root:
            continue
        assert sorted(vertex.flows) == through
        assert sorted(vertex.fresh) == [f for f in through if not passages.asked(ttl + 1, f)]
        befores = [passages.before(ttl, flow) for flow in through]
        assert vertex.before == sum(each is not None for each in befores)
        assert set(passages.befores(vertex)) == {each for each in befores if each is not None}
    for ttl in ttls:
        assert passages.under_way(ttl) == sum(passages.is_under_way(ttl, f) for f in FLOWS)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=120))
def test_no_flow_is_beyond_its_end(events: list[tuple[str, Node, int]]) -> None:
    passages = play(events)
    for vertex in each_vertex(passages):
        for flow in vertex.flows:
            assert passages.goes_to(vertex.node.ttl, flow)
            assert passages.goes_to(vertex.node.ttl + 1, flow) is not vertex.node.is_last


def placed(places: list[tuple[int, bytes | None]], flow: int = 1) -> tuple[Passages, Vertex]:
    """Return one flow's places, and the last of them."""
    passages = Passages(1)
    for ttl, responder in places:
        if responder is None:
            passages.fall_silent(ttl, flow)
            passages.presume(ttl, flow, Node(ttl, None))
        else:
            passages.place(Node(ttl, responder), flow)
    return passages, passages.places(places[-1][0])[flow]


def test_stretches_of_one_address_on_one_path() -> None:
    a, b = b"\1", b"\2"
    cases: list[tuple[list[tuple[int, bytes | None]], int]] = [
        ([(1, a), (2, b)], 1),
        ([(1, a), (2, a), (3, a)], 1),
        ([(1, a), (2, b), (3, a)], 2),
        ([(1, a), (2, None), (3, a), (4, b), (5, a)], 3),
        ([(1, None), (2, None), (4, None)], 1),
    ]
    for path, runs in cases:
        passages, last = placed(path)
        assert passages.runs(last) == runs


def test_one_address_on_two_paths_is_one_stretch() -> None:
    passages, last = placed([(1, b"\1"), (5, b"\2")])
    passages.place(Node(3, b"\2"), 2)
    passages.place(Node(1, b"\2"), 2)
    assert passages.runs(last) == 1
    assert passages.runs(passages.places(3)[2]) == 2


def test_a_flow_is_numbered_by_how_often_it_was_sent() -> None:
    passages = Passages(1)
    assert [passages.send(1, 7), passages.repeat(1, 7), passages.repeat(1, 7)] == [0, 1, 2]
    assert passages.root.pending == 1
    assert passages.asked(1, 7) == 3


def test_a_presumed_place_is_not_shown_until_it_answers() -> None:
    passages, a = Passages(1), Node(1, b"\1")
    passages.place(a, 1)
    passages.fall_silent(1, 2)
    passages.presume(1, 2, a)
    assert (passages.is_shown(1, 1), passages.is_shown(1, 2)) == (True, False)
    assert (passages.silent(1), passages.tried(1)) == ([2], 2)
    passages.place(a, 2)
    assert passages.is_shown(1, 2)
    assert passages.silent(1) == []


def test_silence_is_shown_by_silence() -> None:
    passages, _ = placed([(1, None)])
    assert passages.is_shown(1, 1)
    passages.presume(1, 1, None)
    assert not passages.is_shown(1, 1)
    assert passages.at(1) == []
    assert passages.ttls() == [1]


def test_what_answered_does_not_fall_silent() -> None:
    passages, last = placed([(1, b"\1")])
    passages.fall_silent(1, 1)
    assert passages.silent(1) == []
    assert passages.places(1)[1] is last


def test_a_flow_thought_to_be_at_its_end_goes_on_when_it_is_not() -> None:
    passages = Passages(1)
    passages.place(Node(1, b"\1", is_end=True), 1)
    passages.fall_silent(1, 2)
    passages.presume(1, 2, Node(1, b"\1", is_end=True))
    assert not passages.goes_to(2, 2)
    passages.presume(1, 2, None)
    assert passages.goes_to(2, 2)
    assert not passages.goes_to(2, 1)
