"""What need not be read again, and that it stays within its bound."""

import pytest

from netsonde.spool import SpoolRecords
from netsonde.spool.at_hand import AtHand

ONE, TWO, THREE = (SpoolRecords([seq], [seq], [False], [b"xx"]) for seq in (1, 2, 3))


def test_what_was_written_is_kept_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsonde.spool.at_hand.RECENT_BYTES_MAX", 4)
    groups = AtHand()
    groups.written(1, ONE, 2)
    groups.written(2, TWO, 3)  # no room
    groups.written(3, THREE, 2)

    assert groups.find([1, 2, 3]) == {1: ONE, 3: THREE}
    groups.drop(1)
    groups.drop(2)
    assert (len(groups), groups.recent_bytes) == (1, 2)


def test_a_look_takes_the_place_of_the_one_before() -> None:
    groups = AtHand()
    groups.written(3, THREE, 2)
    groups.looked({1: ONE, 3: THREE})
    assert len(groups) == 2  # the third is kept once
    groups.looked({2: TWO})

    assert groups.find([1, 2, 3]) == {2: TWO, 3: THREE}
    groups.clear()
    assert (len(groups), groups.recent_bytes) == (0, 0)
