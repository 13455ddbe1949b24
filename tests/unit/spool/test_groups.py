"""The groups of the file in memory: counts, what comes next, what the file must hear."""

from netsonde.spool import SpoolRecords
from netsonde.spool.file import Group, StoredGroup
from netsonde.spool.groups import Groups
from netsonde.spool.records import INDEX_BITS


def seq(number: int, at: int) -> int:
    return (number << INDEX_BITS) + at


def records(number: int, count: int) -> SpoolRecords:
    seqs = range(seq(number, 0), seq(number, count))
    return SpoolRecords(seqs, seqs, [False] * count, [b"x"] * count)


def loaded() -> Groups:
    """Three groups of three results, the middle one of the first acknowledged."""
    groups = Groups()
    groups.load([StoredGroup(number, 100 + number, 3, bits) for number, bits in BITMAPS.items()])
    return groups


BITMAPS = {1: 0b101, 2: 0b111, 3: 0b111}


def test_what_a_file_held_counts() -> None:
    groups = loaded()

    assert (groups.rows, groups.size_bytes, len(groups)) == (8, 9, 3)
    assert (groups.oldest_ns, groups.next_number) == (101, 4)


def test_an_acknowledgement_counts_once_and_the_file_is_told_once() -> None:
    groups = loaded()
    groups.acknowledge([seq(1, 0), seq(1, 1), seq(1, 2), seq(9, 0)])
    groups.acknowledge([seq(1, 0)])

    assert (groups.rows, groups.size_bytes, groups.oldest_ns) == (6, 9, 102)
    assert groups.take_updates() == [(1, 0)]
    assert groups.take_updates() == []


def test_a_group_goes_when_the_file_has_heard() -> None:
    groups = loaded()
    groups.acknowledge([seq(1, 0), seq(1, 2), seq(2, 1)])
    updates = groups.take_updates()

    assert groups.remove_emptied(updates) == [1]
    assert groups.remove_emptied(updates) == []
    assert (groups.size_bytes, len(groups)) == (6, 2)


def test_what_did_not_reach_the_file_is_told_again() -> None:
    groups = loaded()
    groups.acknowledge([seq(2, 1)])
    updates = groups.take_updates()
    groups.untake([*updates, (9, 0)])

    assert groups.take_updates() == updates == [(2, 0b101)]


def test_the_next_results_are_in_the_fewest_groups() -> None:
    groups = loaded()

    assert groups.candidates(2, 100, 0) == [1]
    assert groups.candidates(3, 100, 0) == [1, 2]
    assert groups.candidates(100, 6, 0) == [1, 2]
    assert groups.candidates(100, 100, seq(1, 2)) == [2, 3]


def test_what_waits_of_a_group_comes_after_a_record() -> None:
    groups = loaded()

    assert [*groups.waiting(1, records(1, 3), 0).seqs] == [seq(1, 0), seq(1, 2)]
    assert [*groups.waiting(2, records(2, 3), seq(2, 0)).seqs] == [seq(2, 1), seq(2, 2)]
    assert groups.waiting(2, whole := records(2, 3), 0) is whole
    assert not groups.waiting(9, records(9, 3), 0)
    assert not groups.waiting(3, None, 0)


def test_a_new_group_is_the_youngest_and_what_is_on_its_way_outlives_the_file() -> None:
    groups = loaded()
    groups.rows += 2
    groups.size_bytes += 2
    groups.arrived(Group(4, 200, records(4, 2)), 2)
    assert (groups.candidates(100, 100, seq(3, 2)), groups.next_number) == ([4], 5)

    groups.rows += 1  # on its way to the disk
    groups.size_bytes += 1
    groups.forget_all()
    assert (groups.rows, groups.size_bytes, groups.oldest_ns) == (1, 1, None)
    assert groups.next_number == 5
