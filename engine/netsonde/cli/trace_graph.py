"""The graph of a multipath trace as text: a lane per node, its links as lines between the TTLs.

Each TTL has a line per node, which stands at its lane. Between two TTLs a horizontal line joins
nodes with the same successors, which it leaves upwards, to these successors, which it enters
downwards. Where it enters a lane that another one has entered before there is an arrow, and where
it only crosses a lane the lane goes on over it. So sixteen nodes side by side take 32 columns, 48
where their links are entangled.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from ipaddress import ip_address
from typing import Any, NamedTuple

from netsonde.cli.trace_table import SILENT, named

WIDE_LANES_MAX = 8  # so many side by side are drawn wide
WIDE, NARROW, NARROWEST = 4, 3, 2  # columns per lane; the narrowest has no room between lanes

Links = set[tuple[int, int]]  # by lanes: above, below
Turns = dict[int, set[int]]  # by number: those that come first


class Glyphs(NamedTuple):
    """The characters lines are drawn with."""

    joints: Mapping[str, str]  # by the sides a line leaves to: up, down, left, right
    entry: str = "v"  # down into a lane that has been entered before
    node: str = "o"

    @property
    def crossed(self) -> str:
        """A lane that is none of a line's."""
        return self.joints["ud"]


BOX = Glyphs(
    {
        "ud": "│", "lr": "─", "udr": "├", "udl": "┤", "dlr": "┬", "ulr": "┴", "udlr": "┼",
        "dr": "┌", "dl": "┐", "ur": "└", "ul": "┘",
    },
    entry="▼",
)  # fmt: skip
ASCII = Glyphs(
    {
        "ud": "|", "lr": "-", "udr": "+", "udl": "+", "dlr": ".", "ulr": "'", "udlr": "+",
        "dr": ".", "dl": ".", "ur": "'", "ul": "'",
    }
)  # fmt: skip


class Bundle(NamedTuple):
    """Lanes above that have the same successors below."""

    above: tuple[int, ...]
    below: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where lanes stand, in columns; those of a TTL may stand between those above it."""

    pitch: int
    is_shifted: bool = False

    def column(self, lane: int) -> int:
        """Return the column of a lane."""
        return lane * self.pitch + self.is_shifted * self.pitch // 2

    def shifted(self) -> "Lanes":
        """Return the lanes between these."""
        return Lanes(self.pitch, not self.is_shifted)


class Band:
    """The lines between two TTLs: rows of bundles that do not touch."""

    def __init__(self, above: Lanes, below: Lanes, rows: list[list[Bundle]]) -> None:
        self.above, self.below, self.rows = above, below, rows
        numbered = [(row, each) for row, bundles in enumerate(rows) for each in bundles]
        self._left = {lane: row for row, each in numbered for lane in each.above}
        self._entered: dict[int, int] = {}
        for row, each in numbered:
            for lane in each.below:
                self._entered.setdefault(lane, row)

    def draw(self, row: int, width: int, glyphs: Glyphs) -> str:
        """Draw one row."""
        cells = [" "] * width
        for column in self._passing(row):
            cells[column] = glyphs.crossed
        for bundle in self.rows[row]:
            self._draw_bundle(bundle, row, cells, glyphs)
        return "".join(cells)

    def _passing(self, row: int) -> Iterator[int]:
        """Yield the columns of lanes that have not ended yet, or have begun before."""
        yield from (self.above.column(lane) for lane, left in self._left.items() if left > row)
        yield from (self.below.column(lane) for lane, begun in self._entered.items() if begun < row)

    def _draw_bundle(self, bundle: Bundle, row: int, cells: list[str], glyphs: Glyphs) -> None:
        sides: dict[int, str] = {self.above.column(lane): "u" for lane in bundle.above}
        again = set()
        for lane in bundle.below:
            column = self.below.column(lane)
            sides[column] = sides.get(column, "") + "d"
            if self._entered[lane] < row:
                again.add(column)
        first, last = min(sides), max(sides)
        for column in range(first, last + 1):
            ways = "l" * (column > first) + "r" * (column < last)
            if column in again:
                cells[column] = glyphs.entry
            elif column in sides:
                cells[column] = glyphs.joints[sides[column] + ways]
            elif cells[column] == " ":
                cells[column] = glyphs.joints[ways]


@dataclass(slots=True)
class Layer:
    """The nodes of one TTL by lane, none where it was not tried; links and lines to the next."""

    ttl: int
    nodes: list[str]
    links: Links
    lanes: Lanes
    band: Band | None = None


def graph_lines(
    multipath: Mapping[str, Any], names: Mapping[str, str], *, glyphs: Glyphs = BOX
) -> list[str]:
    """Draw the graph of a `trace` observation's `multipath`; names: of addresses."""
    layers = _layers(multipath)
    texts = {_place(node): _node_text(node, names) for node in multipath["nodes"]}
    width = max((each.lanes.column(len(each.nodes)) for each in layers), default=0)
    lines: list[str] = []
    entered: set[int] = set()
    for layer in layers:
        lines += _node_lines(layer, entered, width, texts, glyphs)
        if (band := layer.band) is not None:
            drawn = (band.draw(row, width, glyphs) for row in range(len(band.rows)))
            lines += [f"     {each}".rstrip() for each in drawn]
        entered = {below for _, below in layer.links}
    return lines


def _place(node: Mapping[str, Any]) -> tuple[int, str]:
    return node["ttl"], node.get("address") or SILENT


def _node_text(node: Mapping[str, Any], names: Mapping[str, str]) -> str:
    text = named(_place(node)[1], names)
    return f"{text}, balances per packet" if node.get("per_packet") else text


def _node_lines(
    layer: Layer,
    entered: set[int],
    width: int,
    texts: Mapping[tuple[int, str], str],
    glyphs: Glyphs,
) -> Iterator[str]:
    """Yield a line per node; entered: lanes that a link comes to."""
    left = {above for above, _ in layer.links}
    if not layer.nodes:
        yield f"{layer.ttl:>3}  {SILENT}"
    for number, address in enumerate(layer.nodes):
        cells = [" "] * width
        for lane in range(len(layer.nodes)):
            passes = lane in left if lane < number else lane in entered
            if lane == number:
                cells[layer.lanes.column(lane)] = glyphs.node
            elif passes:
                cells[layer.lanes.column(lane)] = glyphs.crossed
        ttl = "" if number else str(layer.ttl)
        yield f"{ttl:>3}  {''.join(cells)} {texts[layer.ttl, address]}"


def _layers(multipath: Mapping[str, Any]) -> list[Layer]:
    """Give every node its lane, and lay the lines out as narrow as they can be read."""
    nodes: dict[int, set[str]] = {}
    for ttl, address in map(_place, multipath["nodes"]):
        nodes.setdefault(ttl, set()).add(address)
    links: dict[int, set[tuple[str, str]]] = {}
    for link in multipath["links"]:
        ends = (link.get("from") or SILENT, link.get("to") or SILENT)
        links.setdefault(link["ttl"], set()).add(ends)
    if max(map(len, nodes.values()), default=0) <= WIDE_LANES_MAX:
        return _laid_out(nodes, links, Lanes(WIDE))
    layers = _laid_out(nodes, links, Lanes(NARROWEST))
    if any(each.lanes.is_shifted for each in layers):
        return _laid_out(nodes, links, Lanes(NARROW))
    return layers


def _laid_out(
    nodes: Mapping[int, set[str]], links: Mapping[int, set[tuple[str, str]]], lanes: Lanes
) -> list[Layer]:
    layers: list[Layer] = []
    for ttl in range(min(nodes, default=0), max(nodes, default=-1) + 1):
        above = layers[-1].nodes if layers else []
        found = links.get(ttl - 1, set())
        layer = Layer(ttl, _ordered(nodes.get(ttl, set()), above, found), set(), lanes)
        if layers:
            _join(layers[-1], layer, found)
            lanes = layer.lanes
        layers.append(layer)
    return layers


def _ordered(
    nodes: Iterable[str], above: Sequence[str], links: Iterable[tuple[str, str]]
) -> list[str]:
    """Put nodes below their predecessors (the barycentre heuristic: Sugiyama et al., 1981)."""
    lanes = {address: lane for lane, address in enumerate(above)}
    over: dict[str, list[int]] = {}
    for start, end in links:
        if start in lanes:
            over.setdefault(end, []).append(lanes[start])

    def place(address: str) -> tuple[float, bytes]:
        found = over.get(address)
        mean = sum(found) / len(found) if found else float(len(above))
        return mean, b"" if address == SILENT else ip_address(address).packed

    return sorted(nodes, key=place)


def _join(above: Layer, below: Layer, links: Iterable[tuple[str, str]]) -> None:
    """Link two layers, and lay out the lines unless all go straight down."""
    over = {address: lane for lane, address in enumerate(above.nodes)}
    under = {address: lane for lane, address in enumerate(below.nodes)}
    above.links = {(over[start], under[end]) for start, end in links
                   if start in over and end in under}  # fmt: skip
    is_straight = above.links == {(lane, lane) for lane in range(len(over))}
    if is_straight and len(over) == len(under):
        return
    above.band = _band(above.links, above.lanes)
    below.lanes = above.band.below


def _band(links: Links, above: Lanes) -> Band:
    """Lay lines out, lanes below between those above only where there is no other way."""
    bundles = _bundles(links)
    try:
        return Band(above, above, _rows(bundles, _turns(bundles), above, above))
    except CycleError:
        below = above.shifted()
        anyhow: Turns = {number: set() for number in range(len(bundles))}
        return Band(above, below, _rows(bundles, anyhow, above, below))


def _turns(bundles: Sequence[Bundle]) -> Turns:
    """Return which bundles have to come before each: a lane ends before one begins in its place."""
    leaving = {lane: number for number, each in enumerate(bundles) for lane in each.above}
    return {
        number: {leaving[lane] for lane in each.below if lane in leaving} - {number}
        for number, each in enumerate(bundles)
    }


def _bundles(links: Links) -> list[Bundle]:
    ends: dict[int, list[int]] = {}
    for above, below in sorted(links):
        ends.setdefault(above, []).append(below)
    starts: dict[tuple[int, ...], list[int]] = {}
    for above, found in ends.items():
        starts.setdefault(tuple(found), []).append(above)
    return [Bundle(tuple(found), below) for below, found in starts.items()]


def _rows(
    bundles: Sequence[Bundle], turns: Turns, above: Lanes, below: Lanes
) -> list[list[Bundle]]:
    """Put bundles side by side where they leave each other room; one row where there are none.

    Raises:
        CycleError: some would have to come before each other.
    """
    rows: list[list[Bundle]] = [[]]
    spans: list[list[tuple[int, int]]] = [[]]
    placed: dict[int, int] = {}
    for number in TopologicalSorter(turns).static_order():
        bundle = bundles[number]
        columns = [*map(above.column, bundle.above), *map(below.column, bundle.below)]
        first, last = min(columns), max(columns)
        row = max((placed[each] + 1 for each in turns[number]), default=0)
        while row < len(rows) and any(
            first <= end + 1 and start <= last + 1 for start, end in spans[row]
        ):
            row += 1
        if row == len(rows):
            rows.append([])
            spans.append([])
        rows[row].append(bundle)
        spans[row].append((first, last))
        placed[number] = row
    return rows
