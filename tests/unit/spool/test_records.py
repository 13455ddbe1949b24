"""Records in columns, and the numbers that say where they belong."""

from hypothesis import given
from hypothesis import strategies as st

from netsonde.spool import SpoolRecords
from netsonde.spool.records import INDEX_BITS, bitmaps_of, split

FIRST = 3 << INDEX_BITS


def test_records_are_columns_and_a_sequence() -> None:
    records = SpoolRecords(
        range(FIRST, FIRST + 3), [7, 5, 6], [False, True, False], [b"a", b"b", b"c"]
    )

    first, second, third = records
    assert [*records.lease_ids] == [7, 5, 6]
    assert (records[1], records[-1]) == (second, third)
    assert [*records[1:]] == [second, third]
    assert [*records.at([2, 0])] == [third, first]
    assert [*SpoolRecords.joined([records[:1], records[1:]])] == [*records]
    assert not SpoolRecords()


def test_a_number_says_the_group_and_the_place() -> None:
    assert split(FIRST + 9) == (3, 9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 70)), max_size=80))
def test_bitmaps_name_what_they_were_made_of(places: list[tuple[int, int]]) -> None:
    bitmaps = [*bitmaps_of((number << INDEX_BITS) + at for number, at in places)]

    found = {(number, at) for number, bits in bitmaps for at in range(80) if bits >> at & 1}
    assert found == {*places}
    assert [number for number, _ in bitmaps] == sorted({number for number, _ in places})
