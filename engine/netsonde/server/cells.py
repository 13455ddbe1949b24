"""What series said at one time, as the bytes of a block.

A body is its form, how many series it has, and columns: ids in ascending order, then the numbers.
Bodies of one envelope are not packed, so that one series of thousands of them is found at once;
bodies of a minute or an hour, which many are kept of and few are read of, are.
"""

import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
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
    columns = zip(*(cells[one] for one in ids), strict=True)
    body = b"".join(
        (array("I", ids).tobytes(), *(array("d", column).tobytes() for column in columns))
    )
    return _ROLLED + len(ids).to_bytes(4, "little") + zlib.compress(body, _PACKING)


class Body:
    """A body, read where it is looked at."""

    def __init__(self, body: bytes) -> None:
        self._is_rolled = body[:1] == _ROLLED
        count = int.from_bytes(body[1:_HEAD], "little")
        plain = zlib.decompress(body[_HEAD:]) if self._is_rolled else body[_HEAD:]
        view = memoryview(plain)
        self.ids = view[: 4 * count].cast("I")
        self._numbers = view[4 * count :].cast("d")
        self._count = count

    def find(self, series_id: int) -> Cell | None:
        """Return one series' cell."""
        place = bisect_left(self.ids, series_id)
        if place == self._count or self.ids[place] != series_id:
            return None
        return self._at(place)

    def cells(self) -> Iterable[tuple[int, Cell]]:
        """Return every series' cell."""
        if self._is_rolled:
            size = self._count
            columns = [self._numbers[start * size : (start + 1) * size] for start in range(6)]
            return zip(self.ids, map(Cell._make, zip(*columns, strict=True)), strict=True)
        return zip(self.ids, map(self._at, range(self._count)), strict=True)

    def _at(self, place: int) -> Cell:
        numbers, size = self._numbers, self._count
        if self._is_rolled:
            return Cell._make(numbers[place::size])
        return sampled(numbers[place], numbers[place + size], numbers[place + 2 * size])


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
