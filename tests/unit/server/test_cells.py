"""Bodies of blocks: what is written is read, whole and one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.server.cells import (
    ID_MAX,
    Body,
    Cell,
    Latest,
    encode_rolled,
    encode_samples,
    merged,
    sampled,
)

NUMBERS = st.floats(allow_nan=False)
IDS = st.integers(1, ID_MAX)


@given(st.dictionaries(IDS, st.builds(sampled, NUMBERS, NUMBERS, NUMBERS), max_size=30), IDS)
def test_samples_are_read_as_they_were_written(cells: dict[int, Cell], other: int) -> None:
    body = Body(encode_samples(cells))
    assert dict(body.cells()) == cells
    assert {one: body.find(one) for one in cells} == cells
    assert body.find(other) == cells.get(other)


@given(st.dictionaries(IDS, st.builds(Cell, *[NUMBERS] * 6), max_size=30), IDS)
def test_sums_are_read_as_they_were_written(cells: dict[int, Cell], other: int) -> None:
    body = Body(encode_rolled(cells))
    assert dict(body.cells()) == cells
    assert {one: body.find(one) for one in cells} == cells
    assert body.find(other) == cells.get(other)


def test_cells_are_merged_the_earlier_one_first() -> None:
    cell = merged(merged(sampled(5), sampled(9, 4, 2)), sampled(7, 1, 3))
    assert cell == Cell(last=7, peak=9, total=21, samples=3, increase=5, elapsed_s=5)


@given(st.dictionaries(IDS, st.tuples(NUMBERS, st.integers(0, 2**62)), max_size=30))
def test_the_latest_are_read_as_they_were_written(values: dict[int, tuple[float, int]]) -> None:
    latest = Latest()
    for series_id, (value, at_ns) in values.items():
        latest.put(series_id, value, at_ns)
    again = Latest(latest.encode())
    assert {one: again.get(one) for one in values} == values


def test_an_id_that_fits_no_column_is_an_error() -> None:
    with pytest.raises(OverflowError):
        encode_samples({ID_MAX + 1: sampled(1)})
