"""The embedded store: one SQLite file, one owner, durable at every commit.

WAL with `synchronous=FULL`: a commit that returned survives power loss. A lock file beside the
database keeps a second server out; a file that is not ours is refused before it is touched.
"""

import fcntl
import itertools
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from netsonde.errors import ErrorCode, RequestError, StorageError
from netsonde.server.store.base import Reached
from netsonde.server.store.sqlite_access import SqliteAccess
from netsonde.server.store.sqlite_configs import SqliteConfigs
from netsonde.server.store.sqlite_dead import SqliteDead
from netsonde.server.store.sqlite_feed import SqliteFeed
from netsonde.server.store.sqlite_fleet import SqliteFleet
from netsonde.server.store.sqlite_metrics import SqliteMetrics
from netsonde.server.store.sqlite_records import SqliteRecords
from netsonde.server.store.sqlite_retention import SqliteRetention
from netsonde.server.store.sqlite_standing import SqliteStanding
from netsonde.server.store.sqlite_tasks import SqliteTasks
from netsonde.server.store.sqlite_uploads import SqliteUploads
from netsonde.server.store.statements import named_queries, schema

APPLICATION_ID = 0x6E736F6E  # "nson"
BUSY_TIMEOUT_S = 2.0  # a backup tool's lock passes in less; a stuck process should not hang us
CHECK_MAX_BYTES = 64 << 20  # a full check reads the file: half a second for this much
JOURNAL_MAX_BYTES = 64 << 20  # that stays after a backup had let it grow
CACHE_KIB = 32 << 10  # SQLite's 2 MiB are less than a group changes: pages were written twice
INSERT_SIZES = (256, 64, 16, 4, 1)  # rows per statement; 256 of our widest are 3328 parameters
_MAGIC = b"SQLite format 3\x00"
_RETRY_AFTER_MS = 1_000


class SqliteStore(
    SqliteTasks,
    SqliteStanding,
    SqliteRecords,
    SqliteFleet,
    SqliteDead,
    SqliteConfigs,
    SqliteAccess,
    SqliteMetrics,
    SqliteFeed,
    SqliteUploads,
    SqliteRetention,
):
    """The store protocol on one connection.

    The connection may be used by one thread at a time. `reader()` makes a second one that only
    reads, for another thread.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, lock: IO[bytes] | None) -> None:
        SqliteTasks.__init__(self, self)
        SqliteStanding.__init__(self, self)
        SqliteRecords.__init__(self, self)
        SqliteConfigs.__init__(self, self)
        SqliteFleet.__init__(self, self)
        SqliteDead.__init__(self, self)
        SqliteAccess.__init__(self, self)
        SqliteMetrics.__init__(self, self)
        SqliteFeed.__init__(self, self)
        SqliteUploads.__init__(self, self)
        SqliteRetention.__init__(self, self, path)
        self._connection = connection
        self._path = path
        self._lock = lock
        self._queries = named_queries()
        self._inserts: dict[tuple[str, int], str] = {}
        self._meta: dict[str, int] = dict(self.run("meta").fetchall())
        self._changed: set[str] = set()
        self._reached: Reached | None = None
        self._changes_begun = 0

    @classmethod
    def open(cls, path: Path) -> "SqliteStore":
        """Open the database at path, making it when there is none.

        Raises:
            StorageError: it is unusable; the message names the path and the cause.
        """
        lock = lock_file(path)
        try:
            connection = _prepared(path)
            return cls(connection, path, lock)
        except BaseException:
            lock.close()
            raise

    def reader(self) -> "SqliteStore":
        """Open a second connection that only reads."""
        connection = _connect(self._path)
        connection.execute("PRAGMA query_only = 1")
        return SqliteStore(connection, self._path, None)

    # transactions

    def begin(self) -> None:
        """Open a transaction that may write."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._changes_begun = self._connection.total_changes

    def savepoint(self) -> None:
        """Mark the point that `undo` returns to."""
        self._connection.execute("SAVEPOINT operation")

    def undo(self) -> None:
        """Take back what was done since the savepoint."""
        self._connection.execute("ROLLBACK TO operation")
        self.forget_specs()

    def commit(self) -> None:
        """Make everything durable; returns when it is."""
        if self._reached is not None and self._has_changes():
            self.keep_clock(*self._reached())
        if self._changed:
            self.run_many("save_meta", [(name, self._meta[name]) for name in self._changed])
        self._connection.execute("COMMIT")
        self._changed.clear()

    def _has_changes(self) -> bool:
        return bool(self._changed) or self._connection.total_changes > self._changes_begun

    def rollback(self) -> None:
        """Give up the open transaction; harmless without one."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self.forget_specs()

    def fault(self, error: BaseException) -> Exception | None:
        """Translate a failure of the storage itself; None when error is none of that."""
        if not isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError):
            return None
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return None
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = f"{self._path}: {error}"
        if primary == sqlite3.SQLITE_FULL:
            return RequestError(ErrorCode.STORAGE_FULL, text, retry_after_ms=_RETRY_AFTER_MS)
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR):
            return RequestError(ErrorCode.UNAVAILABLE, text, retry_after_ms=_RETRY_AFTER_MS)
        return StorageError(text)

    def close(self) -> None:
        """Let go of files. Idempotent."""
        self._connection.close()
        if self._lock is not None:
            self._lock.close()

    # the clock and the fence

    def clock_ns(self) -> int:
        """Return the latest instant this store was told."""
        return self.number("clock_ns")

    def keep_clock(self, now_ns: int, last_lease_id: int) -> None:
        """Remember how far the clock and the lease ids are."""
        self.keep_number("clock_ns", now_ns)
        self.keep_number("lease_id", last_lease_id)

    def follow(self, reached: Reached) -> None:
        """Remember them with every transaction from now on that changes anything."""
        self._reached = reached

    def last_lease_id(self) -> int:
        """Return the greatest lease id ever granted from here."""
        return self.number("lease_id")

    # what the verbs run on

    def run(self, name: str, *parameters: Any) -> sqlite3.Cursor:
        """Run a named statement."""
        return self._connection.execute(self._queries[name], parameters)

    def run_named(self, name: str, parameters: Mapping[str, Any]) -> sqlite3.Cursor:
        """Run a named statement whose parameters have names."""
        return self._connection.execute(self._queries[name], parameters)

    def run_many(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named statement once per row."""
        self._connection.executemany(self._queries[name], rows)

    def insert(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a named `INSERT … VALUES (…)` for all rows in few steps."""
        start = 0
        for size in INSERT_SIZES:
            while len(rows) - start >= size:
                chunk = rows[start : start + size]
                self._connection.execute(
                    self._insert_of(name, size), list(itertools.chain.from_iterable(chunk))
                )
                start += size

    def _insert_of(self, name: str, size: int) -> str:
        statement = self._inserts.get((name, size))
        if statement is None:
            head, _, values = self._queries[name].rpartition("VALUES")
            statement = f"{head}VALUES {', '.join([values.strip()] * size)}"
            self._inserts[name, size] = statement
        return statement

    def select(self, statement: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        """Run a statement that was put together from our own text."""
        return self._connection.execute(statement, parameters)

    def number(self, name: str) -> int:
        """Return a number that is kept under a name; 0 when there is none."""
        return self._meta.get(name, 0)

    def keep_number(self, name: str, value: int) -> None:
        """Keep a number under a name, unless a greater one is kept."""
        if value > self.number(name):
            self._meta[name] = value
            self._changed.add(name)

    def next_id(self, name: str, count: int = 1) -> int:
        """Reserve count ids of a sequence and return the first.

        A rollback leaves a gap: an id that was once handed out is never handed out again.
        """
        first = self._meta.get(name, 1)
        self._meta[name] = first + count
        self._changed.add(name)
        return first


def lock_file(path: Path) -> IO[bytes]:
    """Take the lock beside the database, which the kernel drops with the process.

    Raises:
        StorageError: another process has it, or its folder cannot be used.
    """
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_path.open("ab")
    except OSError as error:
        raise StorageError(f"{path} cannot be used: {error.strerror}: {error.filename}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StorageError(f"{path} is in use by another netsonde server") from error
    return lock


def _prepared(path: Path) -> sqlite3.Connection:
    """Open, recognise and, when it is empty, furnish the database."""
    refuse_foreign_bytes(path)
    try:
        connection = _connect(path)
    except sqlite3.Error as error:
        raise StorageError(explained(path, error)) from error
    try:
        refuse_foreign_schema(connection, path)
        _refuse_damage(connection, path)
        _furnish(connection)
    except sqlite3.Error as error:
        connection.close()
        raise StorageError(explained(path, error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def refuse_foreign_bytes(path: Path) -> None:
    """Refuse a file that is no SQLite database.

    Raises:
        StorageError: it is none, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    if head and head != _MAGIC:
        raise StorageError(f"{path} is not a netsonde database (not SQLite); it was left alone")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,  # BEGIN and COMMIT are the writer's, not the module's
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute("PRAGMA synchronous = FULL")
    # Every savepoint keeps pages as they were; in a file that was half of what the disk was given.
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_MAX_BYTES}")
    return connection


def refuse_foreign_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is another program's, or of a version that is not known here.

    Raises:
        StorageError: it is one.
    """
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application_id != APPLICATION_ID and tables:
        raise StorageError(f"{path} is another program's database; it was left alone")
    version, known = _version(connection), [*schema()]
    if tables and not known[0] <= version <= known[-1]:
        raise StorageError(
            f"{path} has schema version {version}, this netsonde knows {known[0]} to {known[-1]}; "
            "it was left alone"
        )


def _refuse_damage(connection: sqlite3.Connection, path: Path) -> None:
    if path.stat().st_size > CHECK_MAX_BYTES:
        return
    finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if finding != "ok":
        raise StorageError(f"{path} is damaged ({finding}); restore a copy or move it aside")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _furnish(connection: sqlite3.Connection) -> None:
    """Make the tables that are missing in one transaction, and prove that this process may write.

    A database of an earlier version gets what the later ones added; it keeps what it has.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for version, script in schema().items():
            if version > _version(connection):
                for statement in script.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("PRAGMA journal_mode = WAL")


def explained(path: Path, error: sqlite3.Error) -> str:
    """Return what an error says about a database, and what to do."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} is locked by another process"
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"{path} is damaged ({error}); restore a copy or move it aside"
    if primary == sqlite3.SQLITE_FULL:
        return f"{path} cannot be used: its disk is full; make room on it"
    if primary == sqlite3.SQLITE_READONLY and not os.access(path, os.W_OK):
        return f"{path} is read-only for this user"
    return f"{path} cannot be used: {error}"
