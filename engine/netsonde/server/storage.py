"""Room on the disk: while there is little left, no new work is given out, so that results get it.

Results are taken until the disk itself refuses them, and then wait at their agents. Nothing has
to be restarted: once there is room again, work goes on.
"""

import logging
from typing import Any

from netsonde.clock import NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.config import ServerConfig
from netsonde.server.leasing import ServerTime
from netsonde.server.store.retention import StoreSize

JOURNAL_BYTES = 16 << 20  # of the file system itself: free pages in the file are no journal
ENOUGH = 1.25  # of the reserve, before work goes on
FULL_NS = 5 * NS_PER_S  # after a write was refused for want of room
RETRY_AFTER_MS = 5_000

_log = logging.getLogger("netsonde.server")


class StorageGuard:
    """Knows how full the store is, and refuses what can wait."""

    def __init__(self, config: ServerConfig, time: ServerTime) -> None:
        self._limit = config.max_database_bytes
        self._reserve = config.storage_reserve_bytes
        self._time = time
        self._size = StoreSize(0, 0)
        self._shortage: str | None = None
        self._full_until_ns = 0
        self.refused = 0
        self.is_stuck = False  # too much is held, and nothing of it may be dropped

    @property
    def size(self) -> StoreSize:
        """How large the store was when it was last measured."""
        return self._size

    @property
    def is_over(self) -> bool:
        """Whether the store holds more than it may."""
        return self.is_above(1.0)

    def is_above(self, share: float) -> bool:
        """Whether the store holds more than this share of what it may."""
        return 0 < self._limit * share < self._size.used_bytes

    @property
    def shortage(self) -> str | None:
        """What there is too little of; None while there is enough."""
        if self._shortage is None and self._time.now_ns() < self._full_until_ns:
            return "the disk has just refused a write for want of room"
        return self._shortage

    def measured(self, size: StoreSize) -> None:
        """Learn how large the store is and what the file system has left."""
        self._size = size
        before, self._shortage = self._shortage, self._short_of(size)
        if self._shortage is not None and before is None:
            _log.error(
                "%s: claims and new tasks are refused, results are taken",
                self._shortage,
                extra={"action": "storage_low"},
            )
        elif before is not None and self._shortage is None:
            _log.warning("there is room again: work goes on", extra={"action": "storage_back"})

    def _short_of(self, size: StoreSize) -> str | None:
        more = ENOUGH if self._shortage is not None else 1.0
        if self.is_stuck and self.is_over:
            return (
                f"the database holds {size.used_bytes} bytes, more than max_database_bytes "
                f"({self._limit}), and there are no results left to drop"
            )
        if size.free_bytes is None or not self._reserve:
            return None
        room = size.free_bytes + size.file_bytes - size.used_bytes
        journal = min(self._reserve, JOURNAL_BYTES)
        if room < self._reserve * more or size.free_bytes < journal * more:
            return (
                f"{size.free_bytes} bytes are free on the database's file system and "
                f"{size.file_bytes - size.used_bytes} in it, {self._reserve} are kept in reserve"
            )
        return None

    def met_full(self) -> None:
        """Note that a write was refused for want of room; from any thread."""
        self._full_until_ns = self._time.now_ns() + FULL_NS

    def admit(self) -> None:
        """Let new work pass while there is room for its results.

        Raises:
            RequestError: ERR_STORAGE_FULL.
        """
        shortage = self.shortage
        if shortage is not None:
            self.refused += 1
            raise RequestError(
                ErrorCode.STORAGE_FULL,
                f"{shortage}; results are taken, new work is not until there is room",
                retry_after_ms=RETRY_AFTER_MS,
            )

    def health(self) -> dict[str, Any]:
        """Return what /readyz says: results are taken either way."""
        shortage = self.shortage
        if shortage is None:
            return {"status": "ok"}
        return {"status": "degraded", "storage": {"shortage": shortage, **self.facts()}}

    def facts(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "database_bytes": self._size.file_bytes,
            "used_bytes": self._size.used_bytes,
            "free_bytes": self._size.free_bytes,
            "max_database_bytes": self._limit or None,
            "reserve_bytes": self._reserve,
            "refused": self.refused,
        }
