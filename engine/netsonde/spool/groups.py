"""What is known in memory of the groups in the file: whose results still wait, and how much."""

from collections.abc import Iterable
from dataclasses import dataclass

from netsonde.spool.file import Group, StoredGroup
from netsonde.spool.records import SpoolRecords, bitmaps_of, split


@dataclass(slots=True)
class _Facts:
    """Of one row of the file."""

    stored_at_ns: int
    size_bytes: int
    unacknowledged: int


class Groups:
    """The groups, oldest first.

    `rows` and `size_bytes` count what waits; whoever has more on its way to the disk adds it, and
    takes it off again when it does not arrive. `touched` are groups of whose acknowledgements the
    file does not know yet.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.size_bytes = 0
        self.touched: set[int] = set()
        self.next_number = 1
        self._facts: dict[int, _Facts] = {}

    def __len__(self) -> int:
        return len(self._facts)

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest result that waits came; None when nothing waits."""
        waiting = (one.stored_at_ns for one in self._facts.values() if one.unacknowledged)
        return next(waiting, None)

    def load(self, stored: Iterable[StoredGroup]) -> None:
        """Account for what a file held when it was opened."""
        for number, *facts in stored:
            one = self._facts[number] = _Facts(*facts)
            self.rows += one.unacknowledged.bit_count()
            self.size_bytes += one.size_bytes
            self.next_number = number + 1

    def arrived(self, group: Group, size_bytes: int) -> None:
        """Take note of a new group, whose results are counted already."""
        everything = (1 << len(group.records)) - 1
        self._facts[group.number] = _Facts(group.stored_at_ns, size_bytes, everything)
        self.next_number = group.number + 1

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Let results wait no longer; unknown numbers are ignored."""
        for number, bits in bitmaps_of(seqs):
            one = self._facts.get(number)
            if one is not None and one.unacknowledged & bits:
                self.rows -= (one.unacknowledged & bits).bit_count()
                one.unacknowledged &= ~bits
                self.touched.add(number)

    def take_updates(self) -> list[tuple[int, int]]:
        """Return the touched groups with their bitmaps; they count as known to the file."""
        updates = [(number, self._facts[number].unacknowledged) for number in self.touched]
        self.touched.clear()
        return updates

    def untake(self, updates: Iterable[tuple[int, int]]) -> None:
        """Give updates back that did not reach the file: it learns of them with a later group."""
        self.touched |= self._facts.keys() & {number for number, _ in updates}

    def remove_emptied(self, updates: Iterable[tuple[int, int]]) -> list[int]:
        """Forget the groups that have left the file with these updates; return their numbers."""
        gone = []
        for number, unacknowledged in updates:
            if unacknowledged == 0 and number in self._facts:  # it was not moved aside meanwhile
                self.size_bytes -= self._facts.pop(number).size_bytes
                gone.append(number)
        return gone

    def forget_all(self) -> None:
        """Account for a file that was moved aside with all that was in it."""
        for one in self._facts.values():
            self.rows -= one.unacknowledged.bit_count()
            self.size_bytes -= one.size_bytes
        self._facts.clear()
        self.touched.clear()

    def candidates(self, rows: int, bytes_: int, after_seq: int) -> list[int]:
        """Choose the groups that hold the next results."""
        after_number, after_index = split(after_seq)
        chosen: list[int] = []
        for number, one in self._facts.items():
            left = one.unacknowledged
            if number == after_number:
                left >>= after_index + 1
            if number < after_number or not left:
                continue
            chosen.append(number)
            rows -= left.bit_count()
            bytes_ -= one.size_bytes
            if rows <= 0 or bytes_ <= 0:
                break
        return chosen

    def waiting(self, number: int, records: SpoolRecords | None, after_seq: int) -> SpoolRecords:
        """Return a group's records after after_seq that nobody has acknowledged."""
        one = self._facts.get(number)
        if one is None or not records:  # it went while others were read
            return SpoolRecords()
        left = one.unacknowledged
        if left.bit_count() == len(records) and after_seq < records.seqs[0]:
            return records
        return records.at(
            [at for at, seq in enumerate(records.seqs) if seq > after_seq and left >> at & 1]
        )
