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
    summed,
)

NUMBERS = st.floats(allow_nan=False)
IDS = st.integers(1, ID_MAX)


SAMPLES = st.dictionaries(IDS, st.builds(sampled, NUMBERS, NUMBERS, NUMBERS), max_size=30)
SUMS = st.dictionaries(IDS, st.builds(Cell, *[NUMBERS] * 6), max_size=30)


def cells_of(body: Body) -> dict[int, Cell]:
    rows = map(Cell._make, zip(*body.columns(), strict=True))
    return dict(zip(body.ids, rows, strict=True))


@given(SAMPLES | SUMS, st.booleans(), IDS)
def test_cells_are_read_as_they_were_written(
    cells: dict[int, Cell], is_rolled: bool, other: int
) -> None:
    if not is_rolled:
        cells = {one: sampled(cell.last, *cell[4:]) for one, cell in cells.items()}
    body = Body((encode_rolled if is_rolled else encode_samples)(cells))
    assert cells_of(body) == cells
    for one, cell in cells.items():
        place = body.place(one)
        assert place is not None
        for field, value in cell._asdict().items():
            start = body.start(field)
            assert value == (1 if start is None else body.numbers[start + place])
    assert (body.place(other) is None) == (other not in cells)


SMALL = st.integers(0, 1000).map(float)  # so that sums do not depend on their order


@given(
    st.lists(
        st.dictionaries(
            st.integers(1, 4), st.builds(Cell, *[SMALL] * 6) | st.builds(sampled, SMALL)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_bodies_are_summed_up_series_by_series(batches: list[dict[int, Cell]]) -> None:
    expected: dict[int, Cell] = {}
    bodies = []
    for cells in batches:
        is_raw = all(cell == sampled(cell.last, *cell[4:]) for cell in cells.values())
        bodies.append((encode_samples if is_raw else encode_rolled)(cells))
        for one, cell in cells.items():
            expected[one] = merged(expected[one], cell) if one in expected else cell
    ids, body = summed(bodies)
    assert ids == sorted(expected)
    assert cells_of(Body(body)) == expected


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
