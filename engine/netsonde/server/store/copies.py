"""Copies of a control plane's database: taken while it runs, and put back while it does not.

A copy is what was committed when it began, whatever is written meanwhile: it is read in one
transaction. It is verified before it gets its name, so that there is a whole one or none.

What a restored database has forgotten may still be known outside: agents hold leases, and people
ids and cursors. So nothing that it counts by goes back: the clock, lease ids, and the ids of tasks,
checks, agents and results begin after everything that was handed out since the copy was taken.
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from netsonde.clock import NS_PER_S
from netsonde.errors import StorageError
from netsonde.server.leasing import LeaseIds
from netsonde.server.store.sqlite import (
    BUSY_TIMEOUT_S,
    explained,
    lock_file,
    refuse_foreign_bytes,
    refuse_foreign_schema,
)

STEP_PAGES = 1024  # between two looks at how far it is
JUMPS = {"next_task": 1 << 32, "result": 1 << 32}  # of ids that may have been used since
JUMP = 1 << 16  # of all others, which are made by hand or by an agent's first start
SIDES = ("-wal", "-shm")
RESULTS = "result"
SEQUENCES = (RESULTS, "audit")  # that SQLite itself keeps, by table

Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that was taken: how large it is, and how far it goes."""

    path: Path
    size_bytes: int
    last_result_id: int
    clock_ns: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. `aside` is where the database that was there is now."""

    copy: Copy
    aside: Path | None


def back_up(database: Path, target: Path, watch: Watch, *, may_replace: bool = False) -> Copy:
    """Copy a database, which a server may be writing to, to target; watch gets pages done and all.

    Raises:
        StorageError: it is none, target exists or cannot be written; target is as it was.
    """
    _refuse_missing(database, "database")
    if target.exists():
        if target.is_dir():
            raise StorageError(f"{target} is a directory; name a file in it")
        if target.samefile(database):
            raise StorageError(f"{target} is the database itself")
        if not may_replace:
            raise StorageError(f"{target} exists; name another file, or replace it with --force")
    with _partial(target) as partial:
        _copy(database, partial, watch)
        copy = _verified(partial, target)
        _name(partial, target, may_replace)
    return copy


def restore(backup: Path, database: Path, now_ns: int, watch: Watch) -> Restored:
    """Put a copy in the place of a database that no server has; the one there is kept aside.

    Raises:
        StorageError: a server has it, the copy is damaged or none; the database is as it was.
    """
    _refuse_missing(backup, "backup")
    with closing(lock_file(database)):
        if database.exists() and database.samefile(backup):
            raise StorageError(f"{backup} is the database itself")
        with _partial(database) as partial:
            _copy(backup, partial, watch)
            _verified(partial, backup)
            _raise_fence(partial, _numbers_of(database), now_ns)
            copy = _verified(partial, database)
            aside = _set_aside(database) if database.exists() else None
            for side in SIDES:  # of a database that is not there any more
                Path(f"{database}{side}").unlink(missing_ok=True)
            _name(partial, database, True)
    return Restored(copy, aside)


def _refuse_missing(path: Path, what: str) -> None:
    if not path.is_file():
        raise StorageError(f"there is no {what} at {path}")
    refuse_foreign_bytes(path)


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Make an empty file beside target, for its owner only; it goes, unless it has been renamed."""
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".partial", dir=target.parent
        )
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error.strerror}: {target.parent}"
        ) from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
    except sqlite3.Error as error:
        raise StorageError(explained(target, error)) from error
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        for side in ("", *SIDES, "-journal"):
            Path(f"{partial}{side}").unlink(missing_ok=True)


def _open(path: Path) -> sqlite3.Connection:
    """Open a database that is there."""
    address = f"file:{quote(str(path))}?mode=rw"
    return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _copy(source: Path, partial: Path, watch: Watch) -> None:
    """Copy what is committed now.

    Raises:
        StorageError: source is no database of ours, or is damaged.
    """
    with closing(_open(partial)) as into:
        into.execute("PRAGMA synchronous = OFF")  # it is synced as a whole, before it has a name
        into.execute("PRAGMA journal_mode = OFF")
        try:
            _copy_pages(source, into, watch)
        except sqlite3.Error as error:
            primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
            is_of_target = primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
            raise error if is_of_target else StorageError(explained(source, error)) from error


def _copy_pages(source: Path, into: sqlite3.Connection, watch: Watch) -> None:
    with closing(_open(source)) as connection:
        connection.execute("PRAGMA query_only = 1")
        refuse_foreign_schema(connection, source)
        # One transaction: without it every write of the server would begin the copy anew.
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

        def progress(_: int, remaining: int, total: int) -> None:
            watch(total - remaining, total)

        connection.backup(into, pages=STEP_PAGES, progress=progress, sleep=0)
        connection.execute("COMMIT")


def _verified(partial: Path, shown: Path) -> Copy:
    """Check a copy, make it one file, and say how far it goes.

    Raises:
        StorageError: it is damaged, or no control plane's.
    """
    with closing(_open(partial)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE")
        finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if finding != "ok":
            raise StorageError(f"{shown} is damaged ({finding}); use another copy")
        refuse_foreign_schema(connection, shown)
        numbers = _numbers(connection)
    return Copy(shown, partial.stat().st_size, numbers[RESULTS], numbers.get("clock_ns", 0))


def _numbers(connection: sqlite3.Connection) -> dict[str, int]:
    """Return what a database counts by."""
    numbers: dict[str, int] = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    begun = dict(connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    return numbers | {table: begun.get(table, 0) for table in SEQUENCES}


def _numbers_of(database: Path) -> Mapping[str, int] | None:
    """Return what the database that is to be replaced counted by, None when it cannot be read.

    What its journal holds is put into it, so that it is one file.
    """
    if not database.exists():
        return None
    try:
        refuse_foreign_bytes(database)  # SQLite would throw away the journal of what it cannot read
        with closing(_open(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return _numbers(connection)
    except (sqlite3.Error, StorageError):
        return None  # that is why it is replaced


def _raise_fence(partial: Path, before: Mapping[str, int] | None, now_ns: int) -> None:
    """Let everything that is counted go on after all that was handed out since the copy."""
    with closing(_open(partial)) as connection:
        numbers = _numbers(connection)
        past = before if before is not None else {}
        is_known = _goes_on_from(past, numbers)
        clock_ns = max(now_ns, numbers.get("clock_ns", 0), past.get("clock_ns", 0))
        raised = {
            "clock_ns": clock_ns,
            "lease_id": max(
                numbers.get("lease_id", 0),
                past.get("lease_id", 0),
                LeaseIds.first_of(clock_ns + NS_PER_S),
            ),
        }
        for name, value in numbers.items():
            if name.startswith("next_") or name in SEQUENCES:
                jump = 0 if is_known else JUMPS.get(name, JUMP)
                raised[name] = max(value + jump, past.get(name, 0))
        if is_known:  # sequences that have begun since
            began = {name for name in past if name.startswith("next_")} - numbers.keys()
            raised |= {name: past[name] for name in began}
        _write_numbers(connection, raised)


def _goes_on_from(past: Mapping[str, int], numbers: Mapping[str, int]) -> bool:
    """Whether a database is the one that the copy was taken of, as it is since."""
    is_same = "lineage" in past and past["lineage"] == numbers.get("lineage")
    return is_same and past.get("clock_ns", 0) >= numbers.get("clock_ns", 0)


def _write_numbers(connection: sqlite3.Connection, raised: dict[str, int]) -> None:
    sequences = [(table, raised.pop(table)) for table in SEQUENCES]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO meta (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        raised.items(),
    )
    for table, seq in sequences:
        connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, seq))
    connection.execute("COMMIT")


def _set_aside(database: Path) -> Path:
    """Give the database a second name, and its journal that name's; nothing is lost on the way."""
    number = 1
    while (aside := database.with_name(f"{database.name}.replaced-{number}")).exists():
        number += 1
    try:
        os.link(database, aside)
    except OSError:
        database.rename(aside)  # a file system without links
    for side in SIDES:
        with suppress(FileNotFoundError):
            Path(f"{database}{side}").rename(f"{aside}{side}")
    return aside


def _name(partial: Path, target: Path, may_replace: bool) -> None:
    """Make a file durable, and give it its name at once."""
    _sync(partial)
    if target.exists() and not may_replace:
        raise StorageError(f"{target} exists by now; it was left alone")
    partial.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
