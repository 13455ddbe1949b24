"""What series said at one time, as the bytes of a block.

A body is its form, how many series it has, and columns: ids in ascending order, then the numbers.
Bodies of one envelope are not packed, so that one series of thousands of them is found at once;
bodies of a minute or an hour, which many are kept of and few are read of, are.
"""

import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

ID_MAX = 2**32 - 1  # an unsigned column of 4 bytes
_RAW, _ROLLED = b"\x00", b"\x01"
_HEAD = 5  # the form, and the number of series
_PACKING = 1  # zlib's fastest halves twice; a better one saves little more
if sys.byteorder != "little":  # bodies are files that move between hosts
    raise ImportError("netsonde's metrics are stored little-endian, and this host is not")


class Cell(NamedTuple):
    """One series at, or over, one time.

    `increase` is what a counter grew by in `elapsed_s`, the time between samples of one run; both
    are 0 where there is no earlier one, and for gauges.
    """

    last: float
    peak: float
    total: float
    samples: float
    increase: float = 0.0
    elapsed_s: float = 0.0


def sampled(value: float, increase: float = 0.0, elapsed_s: float = 0.0) -> Cell:
    """Make the cell of one sample."""
    return Cell(value, value, value, 1.0, increase, elapsed_s)


def merged(first: Cell, second: Cell) -> Cell:
    """Sum up two cells, the earlier one first."""
    return Cell(
        second.last,
        max(first.peak, second.peak),
        first.total + second.total,
        first.samples + second.samples,
        first.increase + second.increase,
        first.elapsed_s + second.elapsed_s,
    )


def encode_samples(cells: Mapping[int, Cell]) -> bytes:
    """Write cells of one sample each."""
    ids = sorted(cells)
    rows = [cells[one] for one in ids]
    return b"".join(
        (
            _RAW,
            len(ids).to_bytes(4, "little"),
            array("I", ids).tobytes(),
            array("d", [cell.last for cell in rows]).tobytes(),
            array("d", [cell.increase for cell in rows]).tobytes(),
            array("d", [cell.elapsed_s for cell in rows]).tobytes(),
        )
    )


def encode_rolled(cells: Mapping[int, Cell]) -> bytes:
    """Write cells that sum up many samples."""
    ids = sorted(cells)
    return _rolled(ids, [*zip(*(cells[one] for one in ids), strict=True)])


def _rolled(ids: Sequence[int], columns: Sequence[Sequence[float]]) -> bytes:
    body = b"".join(
        (array("I", ids).tobytes(), *(array("d", column).tobytes() for column in columns))
    )
    return _ROLLED + len(ids).to_bytes(4, "little") + zlib.compress(body, _PACKING)


class Body:
    """A body, read where it is looked at. `ids` are its series, `layout` the same as bytes.

    `numbers` are its columns, one after another.
    """

    def __init__(self, body: bytes) -> None:
        self.is_rolled = body[:1] == _ROLLED
        self.count = int.from_bytes(body[1:_HEAD], "little")
        plain = zlib.decompress(body[_HEAD:]) if self.is_rolled else body[_HEAD:]
        self.layout = plain[: 4 * self.count]
        view = memoryview(plain)
        self.ids = view[: 4 * self.count].cast("I")
        self.numbers = view[4 * self.count :].cast("d")

    def place(self, series_id: int) -> int | None:
        """Return where in each column a series is."""
        place = bisect_left(self.ids, series_id)
        is_there = place < self.count and self.ids[place] == series_id
        return place if is_there else None

    def start(self, field: str) -> int | None:
        """Return where the column of a cell's field begins; None: it is 1 throughout."""
        columns = _ROLLED_COLUMNS if self.is_rolled else _RAW_COLUMNS
        column = columns[field]
        return None if column is None else column * self.count

    def columns(self) -> list[Sequence[float]]:
        """Return the columns of a cell's fields, in their order."""
        starts = [self.start(field) for field in Cell._fields]
        return [
            _ones(self.count) if start is None else self.numbers[start : start + self.count]
            for start in starts
        ]


_ROLLED_COLUMNS: Mapping[str, int | None] = {name: at for at, name in enumerate(Cell._fields)}
_RAW_COLUMNS: Mapping[str, int | None] = {
    "last": 0, "peak": 0, "total": 0, "samples": None, "increase": 1, "elapsed_s": 2,
}  # fmt: skip


def _ones(count: int) -> Sequence[float]:
    return array("d", [1.0]) * count


def summed(bodies: Sequence[bytes]) -> tuple[list[int], bytes]:
    """Sum bodies up, in their order; return the series there are, and the body of the sum.

    Bodies of the same series, which are nearly all, are summed up by the column.
    """
    runs = [
        [*run] for _, run in groupby(map(Body, bodies), key=lambda body: (body.layout, body.count))
    ]
    if len(runs) == 1:
        ids = [*runs[0][0].ids]
        return ids, _rolled(ids, _summed_columns(runs[0]))
    cells: dict[int, Cell] = {}
    for run in runs:
        rows = map(Cell._make, zip(*_summed_columns(run), strict=True))
        for series_id, cell in zip(run[0].ids, rows, strict=True):
            before = cells.get(series_id)
            cells[series_id] = cell if before is None else merged(before, cell)
    return sorted(cells), encode_rolled(cells)


def _summed_columns(run: Sequence[Body]) -> Sequence[Sequence[float]]:
    columns = [body.columns() for body in run]
    if len(columns) == 1:
        return columns[0]
    last, peak, *sums = zip(*columns, strict=True)
    return [
        last[-1],
        [*map(max, *peak)],
        *([*map(sum, zip(*column, strict=True))] for column in sums),
    ]


class Latest:
    """What each series of a run said last, and when: the numbers that the next ones follow."""

    def __init__(self, body: bytes = b"") -> None:
        count = len(body) // 20
        ids, values, times = array("I"), array("d"), array("q")
        ids.frombytes(body[: 4 * count])
        values.frombytes(body[4 * count : 12 * count])
        times.frombytes(body[12 * count :])
        self._last = dict(zip(ids, zip(values, times, strict=True), strict=True))

    def get(self, series_id: int) -> tuple[float, int] | None:
        """Return a series' last value and its instant."""
        return self._last.get(series_id)

    def put(self, series_id: int, value: float, at_ns: int) -> None:
        """Note a series' value."""
        self._last[series_id] = value, at_ns

    def encode(self) -> bytes:
        """Return it as bytes."""
        return b"".join(
            (
                array("I", self._last).tobytes(),
                array("d", [value for value, _ in self._last.values()]).tobytes(),
                array("q", [at_ns for _, at_ns in self._last.values()]).tobytes(),
            )
        )
