"""Results that wait, and their numbers: which group a record belongs to, and its place there."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Self, overload

INDEX_BITS = 16  # of a record's number, its place in its group; the rest is the group's
INDEX_MASK = (1 << INDEX_BITS) - 1


class SpoolRecord(NamedTuple):
    """One result that waits; `seq` orders and names it."""

    seq: int
    lease_id: int
    cancelled: bool
    body: bytes


@dataclass(frozen=True, slots=True, eq=False)
class SpoolRecords(Sequence[SpoolRecord]):
    """Results that wait, oldest first: a column for each field of a record."""

    seqs: Sequence[int] = ()
    lease_ids: Sequence[int] = ()
    cancelled: Sequence[bool] = ()
    bodies: Sequence[bytes] = ()

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the records of all parts."""
        if len(parts) == 1:
            return parts[0]
        chained = chain.from_iterable
        return cls(
            [*chained(part.seqs for part in parts)],
            [*chained(part.lease_ids for part in parts)],
            [*chained(part.cancelled for part in parts)],
            [*chained(part.bodies for part in parts)],
        )

    def __len__(self) -> int:
        return len(self.bodies)

    def __iter__(self) -> Iterator[SpoolRecord]:
        columns = zip(self.seqs, self.lease_ids, self.cancelled, self.bodies, strict=True)
        return map(SpoolRecord._make, columns)

    @overload
    def __getitem__(self, at: int) -> SpoolRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> SpoolRecord | Self:
        if isinstance(at, slice):
            return type(self)(
                self.seqs[at], self.lease_ids[at], self.cancelled[at], self.bodies[at]
            )
        return SpoolRecord(self.seqs[at], self.lease_ids[at], self.cancelled[at], self.bodies[at])

    def at(self, places: Sequence[int]) -> Self:
        """Return the records at these places."""
        return type(self)(
            [self.seqs[place] for place in places],
            [self.lease_ids[place] for place in places],
            [self.cancelled[place] for place in places],
            [self.bodies[place] for place in places],
        )


def bitmaps_of(seqs: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Return the groups that records belong to, and a bitmap of the records of each."""
    ordered = sorted(set(seqs))
    begin = 0
    while begin < len(ordered):
        number, first = split(ordered[begin])
        end = bisect_left(ordered, (number + 1) << INDEX_BITS, begin)
        count = end - begin
        if split(ordered[end - 1])[1] - first + 1 == count:  # mostly, everything there is
            yield number, ((1 << count) - 1) << first
        else:
            yield number, sum(1 << (seq & INDEX_MASK) for seq in ordered[begin:end])
        begin = end


def split(seq: int) -> tuple[int, int]:
    """Return the number of a record's group and its place there."""
    return seq >> INDEX_BITS, seq & INDEX_MASK
