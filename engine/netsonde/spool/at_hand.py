"""Results that need not be read from the file: what was written lately, and the last look at it."""

from collections.abc import Mapping, Sequence

from netsonde.spool.records import SpoolRecords

RECENT_BYTES_MAX = 8 << 20  # of results on the disk that are kept at hand for the report


class AtHand:
    """Groups in memory: what was written, up to a bound, and what was read, until others are."""

    def __init__(self) -> None:
        self.recent_bytes = 0
        self._recent: dict[int, SpoolRecords] = {}  # written, and still to be reported
        self._sizes: dict[int, int] = {}  # of these
        self._read: dict[int, SpoolRecords] = {}  # what the last look at the file brought

    def __len__(self) -> int:
        return len(self._recent) + len(self._read)

    def find(self, numbers: Sequence[int]) -> dict[int, SpoolRecords]:
        """Return those of the groups that are at hand."""
        at_hand = self._read | self._recent
        return {number: at_hand[number] for number in numbers if number in at_hand}

    def written(self, number: int, records: SpoolRecords, size_bytes: int) -> None:
        """Keep a group that was written, if there is room: the oldest is reported next."""
        if self.recent_bytes + size_bytes <= RECENT_BYTES_MAX:
            self._recent[number] = records
            self._sizes[number] = size_bytes
            self.recent_bytes += size_bytes

    def looked(self, groups: Mapping[int, SpoolRecords]) -> None:
        """Keep what a look at the file brought, in place of what the one before did."""
        self._read = {
            number: records for number, records in groups.items() if number not in self._recent
        }

    def drop(self, number: int) -> None:
        """Let go of a group that has left the file."""
        self._read.pop(number, None)
        if self._recent.pop(number, None) is not None:
            self.recent_bytes -= self._sizes.pop(number)

    def clear(self) -> None:
        """Let go of everything: the file is another."""
        self.recent_bytes = 0
        self._recent.clear()
        self._sizes.clear()
        self._read.clear()
