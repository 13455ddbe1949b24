"""The graph of a multipath trace as text: what is drawn is what is linked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli.trace_graph import ASCII, BOX, graph_lines

Link = tuple[int, int, int]  # TTL, node there, node at the next one

SIDES = {glyph: frozenset(sides) for sides, glyph in BOX.joints.items()}
OPPOSITE = {"l": "r", "r": "l"}
STEPS = {"l": (0, -1), "r": (0, 1), "d": (1, 0)}


def address(ttl: int, number: int) -> str:
    return f"10.{ttl}.0.{number}"


def multipath(widths: dict[int, int], links: set[Link]) -> dict[str, Any]:
    """Make the `multipath` of a trace: so many nodes at each TTL, and links by their numbers."""
    return {
        "confidence": 95,
        "nodes": [
            {"ttl": ttl, "address": address(ttl, number)}
            for ttl, width in widths.items()
            for number in range(width)
        ],
        "links": [
            {"ttl": ttl, "from": address(ttl, above), "to": address(ttl + 1, below)}
            for ttl, above, below in sorted(links)
        ],
    }


def drawn(widths: dict[int, int], links: set[Link]) -> list[str]:
    return graph_lines(multipath(widths, links), {})


def fan(ttl: int, above: int, below: int) -> set[Link]:
    """Link everything to everything."""
    return {(ttl, one, other) for one in range(above) for other in range(below)}


# ── what it looks like ──


def test_a_single_path_has_no_lines() -> None:
    assert drawn({1: 1, 2: 1, 3: 1}, {(1, 0, 0), (2, 0, 0)}) == [
        "  1  o    10.1.0.0",
        "  2  o    10.2.0.0",
        "  3  o    10.3.0.0",
    ]


def test_a_diamond_opens_and_closes() -> None:
    links = fan(1, 1, 3) | {(2, number, number) for number in range(3)} | fan(3, 3, 1)
    assert drawn({1: 1, 2: 3, 3: 3, 4: 1}, links) == [
        "  1  o            10.1.0.0",
        "     ├───┬───┐",
        "  2  o   │   │    10.2.0.0",
        "     │   o   │    10.2.0.1",
        "     │   │   o    10.2.0.2",
        "  3  o   │   │    10.3.0.0",
        "     │   o   │    10.3.0.1",
        "     │   │   o    10.3.0.2",
        "     ├───┴───┘",
        "  4  o            10.4.0.0",
    ]


def test_a_line_into_a_lane_that_has_been_entered_is_an_arrow() -> None:
    links = {(1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 2)}
    assert drawn({1: 2, 2: 3}, links)[2:4] == [
        "     │   ├───┐",
        "     ├───▼   │",
    ]


def test_lines_that_are_in_each_others_way_move_between_the_lanes() -> None:
    assert drawn({1: 3, 2: 2}, {(1, 0, 1), (1, 1, 0), (1, 2, 1)}) == [
        "  1  o            10.1.0.0",
        "     │   o        10.1.0.1",
        "     │   │   o    10.1.0.2",
        "     └───│─┬─┘",
        "       ┌─┘ │",
        "  2    o   │      10.2.0.0",
        "           o      10.2.0.1",
    ]


def test_a_silent_ttl_ends_the_lines() -> None:
    assert drawn({1: 1, 3: 2}, set()) == [
        "  1  o        10.1.0.0",
        "",
        "  2  *",
        "",
        "  3  o        10.3.0.0",
        "         o    10.3.0.1",
    ]


def test_a_node_that_says_nothing_has_a_lane() -> None:
    graph = multipath({1: 1, 3: 1}, set())
    graph["nodes"] += [{"ttl": 2, "address": None}, {"ttl": 2, "address": "192.0.2.7"}]
    graph["links"] += [
        {"ttl": 1, "from": address(1, 0), "to": None},
        {"ttl": 1, "from": address(1, 0), "to": "192.0.2.7"},
        {"ttl": 2, "from": None, "to": address(3, 0)},
    ]
    assert graph_lines(graph, {}) == [
        "  1  o        10.1.0.0",
        "     ├───┐",
        "  2  o   │    *",
        "     │   o    192.0.2.7",
        "     │",
        "  3  o        10.3.0.0",
    ]


def test_a_graph_of_nothing_is_nothing() -> None:
    assert drawn({}, set()) == []


def test_sixteen_side_by_side_take_half_a_line() -> None:
    lines = drawn({1: 1, 2: 16, 3: 1}, fan(1, 1, 16) | fan(2, 16, 1))
    assert lines[1] == "     ├─┬─┬─┬─┬─┬─┬─┬─┬─┬─┬─┬─┬─┬─┬─┐"
    assert max(map(len, lines)) <= 50
    entangled = {(1, one, one * step % 16) for one in range(16) for step in (3, 5)}
    lines = drawn({1: 16, 2: 16}, entangled)
    assert max(map(len, lines)) <= 70
    assert read(lines) == named(entangled)


def test_names_stand_before_addresses() -> None:
    graph = multipath({1: 1, 2: 1}, {(1, 0, 0)})
    lines = graph_lines(graph, {"10.2.0.0": "gw.example\x1b"})
    assert lines[1] == "  2  o    gw.example\\x1b (10.2.0.0)"


def test_who_balances_per_packet_is_named() -> None:
    graph = multipath({1: 1}, set())
    graph["nodes"][0]["per_packet"] = True
    assert graph_lines(graph, {}) == ["  1  o    10.1.0.0, balances per packet"]


# ── what it says ──


def named(links: set[Link]) -> set[tuple[str, str]]:
    return {(address(ttl, above), address(ttl + 1, below)) for ttl, above, below in links}


class Reader:
    """Follows lines down from a node, as a person does."""

    def __init__(self, lines: list[str]) -> None:
        self.nodes: dict[tuple[int, int], str] = {}
        self.cells: dict[tuple[int, int], str] = {}
        for row, line in enumerate(lines):
            lane_part = line[5:]
            if "o" in line:
                lane_part, _, text = line[5:].rpartition(" ")
                self.nodes[row, lane_part.index("o")] = text
            self.cells |= {(row, column): cell for column, cell in enumerate(lane_part)}

    def links(self) -> set[tuple[str, str]]:
        return {(text, end) for at, text in self.nodes.items() for end in self._ends(at)}

    def _ends(self, start: tuple[int, int]) -> set[str]:
        ends: set[str] = set()
        ways = [(start[0] + 1, start[1], "d")]
        seen: set[tuple[int, int, str]] = set()
        while ways:
            row, column, way = ways.pop()
            if (row, column, way) in seen:
                continue
            seen.add((row, column, way))
            cell = self.cells.get((row, column), " ")
            if cell == "o":
                ends.add(self.nodes[row, column])
                continue
            for to in self._onwards(cell, way):
                down, right = STEPS[to]
                ways.append((row + down, column + right, to))
        return ends

    @staticmethod
    def _onwards(cell: str, way: str) -> str:
        """Return where a line goes on that comes to a cell by a way."""
        if cell == BOX.entry:
            return "d" if way == "d" else f"d{way}"
        sides = SIDES.get(cell, frozenset())
        if cell == BOX.crossed:
            return way
        if way == "d":
            return "".join(sides & set("lrd")) if "u" in sides else ""
        return "".join(sides & {"d", way}) if OPPOSITE[way] in sides else ""


def read(lines: list[str]) -> set[tuple[str, str]]:
    return Reader(lines).links()


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, int], set[Link]]:
    """Up to four TTLs of up to 16 nodes, some of them silent, linked anyhow."""
    sizes = draw(st.lists(st.integers(0, 5) | st.integers(0, 16), min_size=1, max_size=4))
    widths = {ttl: width for ttl, width in enumerate(sizes, start=1) if width}
    links: set[Link] = set()
    for ttl, width in widths.items():
        if below := widths.get(ttl + 1):
            ends = st.tuples(st.just(ttl), st.integers(0, width - 1), st.integers(0, below - 1))
            links |= draw(st.sets(ends, max_size=40))
    return widths, links


@given(graphs())
def test_what_is_drawn_is_what_is_linked(graph: tuple[dict[int, int], set[Link]]) -> None:
    widths, links = graph
    lines = drawn(widths, links)
    assert read(lines) == named(links)
    shown = set(Reader(lines).nodes.values())
    assert shown == {address(ttl, number) for ttl in widths for number in range(widths[ttl])}


@given(graphs())
def test_ascii_has_the_same_lines(graph: tuple[dict[int, int], set[Link]]) -> None:
    table = {box: ASCII.joints[sides] for sides, box in BOX.joints.items()}
    translated = [
        "".join(table.get(cell, cell) for cell in line).replace(BOX.entry, ASCII.entry)
        for line in drawn(*graph)
    ]
    lines = graph_lines(multipath(*graph), {}, glyphs=ASCII)
    assert lines == translated
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("glyphs", [BOX, ASCII])
def test_every_joint_has_a_character(glyphs: Any) -> None:
    assert set(glyphs.joints) == set(BOX.joints)
    assert all(len(glyph) == 1 for glyph in glyphs.joints.values())
