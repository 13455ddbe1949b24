"""The spool's file: SQLite, one row for each group of results. All of it runs on one thread.

A row holds the bodies of its results as one blob, their heads as another, and a bitmap of those
that nobody has acknowledged. It goes when the last of them is.
"""

import logging
import sqlite3
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from netsonde.errors import SpoolFull, StorageError
from netsonde.spool.records import INDEX_BITS, SpoolRecords

ASIDE_MAX = 100  # so many broken files in one directory need a person, not another file
APPLICATION_ID = 0x6E73_7031  # "nsp1", PRAGMA application_id: the file is ours
PAGE_BYTES = 16 << 10  # of a new file: a group of results is dozens of SQLite's own, and each costs
WAL_LEFT_BYTES = 4 << 20  # the journal is worked off at this size, and shrinks to it after a burst

_HEAD = struct.Struct("<QIB")  # lease id, body length, whether it was cancelled
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch (
    number INTEGER PRIMARY KEY,
    stored_at_ns INTEGER NOT NULL,
    heads BLOB NOT NULL,
    bodies BLOB NOT NULL,
    unacknowledged BLOB NOT NULL  -- little endian, bit i is record i
) STRICT;
"""
_log = logging.getLogger("netsonde.spool")


@dataclass(slots=True)
class Group:
    """One transaction: at most one new row, and what acknowledgements make of the old ones.

    `updates` are the numbers of old rows and their bitmaps, 0 for those that go.
    """

    number: int
    stored_at_ns: int
    records: SpoolRecords
    updates: list[tuple[int, int]] = field(default_factory=list)


class StoredGroup(NamedTuple):
    """What is known of a row without reading its results."""

    number: int
    stored_at_ns: int
    size_bytes: int
    unacknowledged: int


class SpoolReplacedError(StorageError):
    """The file was found damaged and was moved aside with what was in it."""


class _ForeignFileError(Exception):
    """The file is an SQLite database of somebody else's."""


class SpoolFile:
    """The file at a path. All but the constructor runs on the spool's thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None

    def open(self) -> list[StoredGroup]:
        """Open or make the file; return what is in it, oldest first.

        A file that is damaged or not a spool is moved aside, which is logged, and a new one made.

        Raises:
            StorageError: the file cannot be opened or written, or another process has it.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)
        except OSError as error:
            raise StorageError(f"cannot make the spool {self.path}: {error.strerror}") from error
        try:
            return self._open_checked()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise self._failure(error) from error
            self._replace(str(error))
        except _ForeignFileError as error:
            self._replace(str(error))
        try:
            return self._open_checked()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def write(self, group: Group) -> None:
        """Commit one group.

        Raises:
            SpoolFull: there is no space on the disk.
            SpoolReplacedError: the file was damaged.
            StorageError: it could not be written.
        """
        database = self._opened()
        try:
            database.execute("BEGIN IMMEDIATE")
            for number, unacknowledged in group.updates:
                if unacknowledged:
                    bitmap = _bitmap(unacknowledged)
                    database.execute(
                        "UPDATE batch SET unacknowledged = ? WHERE number = ?", (bitmap, number)
                    )
                else:
                    database.execute("DELETE FROM batch WHERE number = ?", (number,))
            if group.records:  # last: on a full disk it takes the place of what has gone
                database.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", _row(group))
            database.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # a full disk may have rolled back already
                database.execute("ROLLBACK")
            raise self._failure_handled(error) from error

    def read(self, number: int) -> SpoolRecords:
        """Return every record of a group; none when it has gone.

        Raises:
            SpoolReplacedError: the file was damaged.
            StorageError: it could not be read.
        """
        try:
            row = (
                self._opened()
                .execute("SELECT heads, bodies FROM batch WHERE number = ?", (number,))
                .fetchone()
            )
        except sqlite3.Error as error:
            raise self._failure_handled(error) from error
        return _records(number, *row) if row else SpoolRecords()

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self.open()
        if self._database is None:
            raise StorageError(f"the spool {self.path} is closed")
        return self._database

    def _open_checked(self) -> list[StoredGroup]:
        database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # before there is a journal
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(
                f"PRAGMA wal_autocheckpoint = {WAL_LEFT_BYTES // _page_bytes(database)}"
            )
            database.execute("PRAGMA synchronous = FULL")
            database.execute(f"PRAGMA journal_size_limit = {WAL_LEFT_BYTES}")
            database.execute("BEGIN IMMEDIATE")  # takes the lock that keeps others out
            _claim_file(database)
            rows = database.execute(
                "SELECT number, stored_at_ns, length(bodies), unacknowledged FROM batch"
                " ORDER BY number"
            ).fetchall()
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        self._database = database
        return [
            StoredGroup(number, stored_at_ns, size_bytes, int.from_bytes(bits, "little"))
            for number, stored_at_ns, size_bytes, bits in rows
        ]

    def _replace(self, reason: str) -> None:
        """Move a damaged or foreign file out of the way."""
        self.close()
        for attempt in range(1, ASIDE_MAX + 1):
            aside = self.path.with_name(f"{self.path.name}.aside-{attempt}")
            if not aside.exists():
                break
        else:
            raise StorageError(
                f"the spool {self.path} cannot be used ({reason}) and {ASIDE_MAX} such files lie"
                " beside it already: remove them"
            )
        try:
            self.path.rename(aside)
            for suffix in ("-wal", "-shm", "-journal"):
                with suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).rename(f"{aside}{suffix}")
            self.path.touch(mode=0o600)
        except OSError as error:
            raise StorageError(f"cannot move {self.path} aside: {error.strerror}") from error
        _log.error(
            "the spool %s cannot be used (%s): moved to %s, starting an empty one",
            self.path,
            reason,
            aside,
            extra={"action": "spool_replaced", "path": str(self.path), "aside": str(aside)},
        )

    def _failure_handled(self, error: sqlite3.Error) -> StorageError:
        if not _is_damage(error):
            return self._failure(error)
        self._replace(str(error))
        return SpoolReplacedError(
            f"the spool {self.path} was damaged ({error}) and was moved aside"
        )

    def _failure(self, error: sqlite3.Error) -> StorageError:
        match _code(error):
            case sqlite3.SQLITE_FULL:
                return SpoolFull(f"no space is left on the disk of the spool {self.path}")
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StorageError(f"the spool {self.path} is in use by another process")
            case _:
                return StorageError(f"the spool {self.path} cannot be used: {error}")


def _page_bytes(database: sqlite3.Connection) -> int:
    """Return the size of a file's pages, which an old one keeps."""
    (size_bytes,) = database.execute("PRAGMA page_size").fetchone()
    return int(size_bytes)


def _claim_file(database: sqlite3.Connection) -> None:
    """Make a new file ours; check that an old one is ours and whole."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID:
        if application or tables:
            raise _ForeignFileError("it is not a spool of this version")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(_SCHEMA)
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _ForeignFileError(verdict)


def _row(group: Group) -> tuple[int, int, bytes, bytes, bytes]:
    records = group.records
    lengths = map(len, records.bodies)
    heads = b"".join(map(_HEAD.pack, records.lease_ids, lengths, records.cancelled))
    unacknowledged = _bitmap((1 << len(records)) - 1)
    return group.number, group.stored_at_ns, heads, b"".join(records.bodies), unacknowledged


def _records(number: int, heads: bytes, bodies: bytes) -> SpoolRecords:
    lease_ids, lengths, cancelled = zip(*_HEAD.iter_unpack(heads), strict=True)
    cut = [bodies[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))]
    first = number << INDEX_BITS
    return SpoolRecords(range(first, first + len(cut)), lease_ids, [*map(bool, cancelled)], cut)


def _bitmap(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF
