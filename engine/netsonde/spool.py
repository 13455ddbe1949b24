"""The durable queue of results on their way to the control plane: SQLite, one commit per group.

Whoever appends while a commit is on its way to the disk shares the next one. A commit writes one
row however many results it holds: their bodies as one blob, their heads as another, and a bitmap of
those nobody has acknowledged. The row goes when the last of them is.
"""

import asyncio
import logging
import sqlite3
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from netsonde.clock import Clock, SystemClock
from netsonde.errors import SpoolFull, StorageError
from netsonde.wire import REPORT_ITEMS_MAX

T = TypeVar("T")

GROUP_ROWS_MAX = REPORT_ITEMS_MAX  # a group is read back whole
GROUP_BYTES_MAX = 4 << 20  # one report's worth
INDEX_BITS = 16  # of a record's number, its place in its group; the rest is the group's
INDEX_MASK = (1 << INDEX_BITS) - 1
RECENT_BYTES_MAX = 8 << 20  # of results on the disk that are kept at hand for the report
ASIDE_MAX = 100  # so many broken files in one directory need a person, not another file
APPLICATION_ID = 0x6E73_7031  # "nsp1", PRAGMA application_id: the file is ours
WAL_LEFT_BYTES = 4 << 20  # what the journal shrinks to after a burst

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


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much may wait. `size_bytes` counts a group whole until its last result has gone."""

    rows: int = 1_000_000
    size_bytes: int = 256 << 20


class SpoolRecord(NamedTuple):
    """One result that waits; `seq` orders and names it."""

    seq: int
    lease_id: int
    cancelled: bool
    body: bytes


class _Append(NamedTuple):
    """Results that came together, in columns."""

    lease_ids: Sequence[int]
    bodies: Sequence[bytes]
    cancelled: Sequence[bool]
    bytes_: int
    done: "asyncio.Future[None]"


@dataclass(slots=True)
class _Batch:
    """What is known in memory of one row of the file."""

    stored_at_ns: int
    bytes_: int
    unacknowledged: int


@dataclass(slots=True)
class _Group:
    """One transaction: at most one new row, and what acknowledgements make of the old ones."""

    number: int = 0
    stored_at_ns: int = 0
    appends: list[_Append] = field(default_factory=list)
    updates: list[tuple[int, int]] = field(default_factory=list)
    waiting: "list[asyncio.Future[None]]" = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(append.bodies) for append in self.appends)

    @property
    def bytes_(self) -> int:
        return sum(append.bytes_ for append in self.appends)

    def records(self) -> tuple[SpoolRecord, ...]:
        """Return the results as they would be read."""
        first = self.number << INDEX_BITS
        fields = (
            zip(append.lease_ids, append.cancelled, append.bodies, strict=True)
            for append in self.appends
        )
        return tuple(
            SpoolRecord(seq, *field) for seq, field in enumerate(chain.from_iterable(fields), first)
        )


class Spool:
    """Keeps results until the control plane has them. Made by `Spool.open`.

    Belongs to one event loop; the file belongs to one process.
    """

    def __init__(self, file: "_File", limits: SpoolLimits, clock: Clock) -> None:
        self._file = file
        self._limits = limits
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netsonde-spool")
        self._batches: dict[int, _Batch] = {}
        self._appends: deque[_Append] = deque()
        self._touched: set[int] = set()
        self._acknowledging: list[asyncio.Future[None]] = []
        self._writing: asyncio.Future[None] | None = None
        self._next_number = 1
        self._rows = 0
        self._bytes = 0
        self._is_closed = False
        self._is_disk_full = False

    @classmethod
    async def open(
        cls, path: Path, limits: SpoolLimits | None = None, clock: Clock | None = None
    ) -> Self:
        """Open the spool at path, making it where there is none.

        A file that is damaged or not a spool is moved aside, which is logged, and a new one made.

        Raises:
            StorageError: the file cannot be opened or written, or another process has it.
        """
        spool = cls(_File(path), limits or SpoolLimits(), clock or SystemClock())
        try:
            spool._load(await spool._on_thread(spool._file.open))
        except BaseException:
            spool._thread.shutdown()
            raise
        return spool

    @property
    def rows(self) -> int:
        """Results that wait, those not yet durable included."""
        return self._rows

    @property
    def size_bytes(self) -> int:
        """Bytes they take in the file; a group counts whole until its last result goes."""
        return self._bytes

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest of them came, on the wall clock; None when nothing waits."""
        return next((batch.stored_at_ns for batch in self._batches.values()), None)

    @property
    def is_full(self) -> bool:
        """Whether a limit is reached, or the disk was full at the last try."""
        return (
            self._rows >= self._limits.rows
            or self._bytes >= self._limits.size_bytes
            or self._is_disk_full
        )

    async def append(self, lease_id: int, body: bytes, *, cancelled: bool) -> None:
        """Keep one encoded report item; return when it is durable.

        Raises:
            SpoolFull, StorageError: as `append_many`; the result is still the caller's.
        """
        await self.append_many([lease_id], [body], [cancelled])

    async def append_many(
        self, lease_ids: Sequence[int], bodies: Sequence[bytes], cancelled: Sequence[bool]
    ) -> int:
        """Keep encoded report items; return how many, from the first on, once they are durable.

        They are fewer than all when a limit is reached, or at a group's end.

        Raises:
            SpoolFull: a limit is reached or the disk is full; the results are still the caller's.
            StorageError: they could not be written; they are still the caller's.
        """
        self._check_open()
        if not bodies:
            return 0
        count = self._fitting(bodies)
        if not count:
            raise SpoolFull(
                f"the spool {self._file.path} is full: {self._rows} results, {self._bytes} bytes; "
                "it empties when the control plane takes them"
            )
        append = _Append(
            lease_ids[:count],
            bodies[:count],
            cancelled[:count],
            sum(map(len, bodies[:count])),
            asyncio.get_running_loop().create_future(),
        )
        self._appends.append(append)
        self._rows += count
        self._bytes += append.bytes_
        self._write()
        await append.done
        return count

    def _fitting(self, bodies: Sequence[bytes]) -> int:
        """Return how many results, from the first on, one group and the limits have room for."""
        rows = min(self._limits.rows - self._rows, GROUP_ROWS_MAX)
        room = self._limits.size_bytes - self._bytes
        if len(bodies) <= rows and sum(map(len, bodies)) <= min(room, GROUP_BYTES_MAX):
            return len(bodies)
        ends = accumulate(map(len, bodies[: max(rows, 0)]))
        return sum(
            end <= room and (at == 0 or end <= GROUP_BYTES_MAX) for at, end in enumerate(ends)
        )

    async def pending(self, rows: int, bytes_: int, *, after_seq: int = 0) -> list[SpoolRecord]:
        """Return the oldest durable results after after_seq, in order, and remove none.

        At most `rows` of at most `bytes_` together, but one if there is any.

        Raises:
            StorageError: they could not be read.
        """
        self._check_open()
        numbers = self._candidates(rows, bytes_, after_seq)
        if not numbers:
            return []
        try:
            groups = await self._on_thread(lambda: [self._file.read(each) for each in numbers])
        except _Replaced:
            self._forget_all()
            raise
        found: list[SpoolRecord] = []
        for number, group in zip(numbers, groups, strict=True):
            for record in self._waiting(number, group, after_seq):
                bytes_ -= len(record.body)
                if len(found) == rows or (found and bytes_ < 0):
                    return found
                found.append(record)
        return found

    async def acknowledge(self, seqs: Iterable[int]) -> None:
        """Forget results the control plane has answered for; unknown numbers are ignored.

        Raises:
            StorageError: it could not be written; they may come up again after a restart.
        """
        self._check_open()
        indexes: defaultdict[int, list[int]] = defaultdict(list)
        for seq in seqs:
            indexes[seq >> INDEX_BITS].append(seq & INDEX_MASK)
        for number in indexes.keys() & self._batches.keys():
            batch = self._batches[number]
            left = batch.unacknowledged & ~_bits(indexes[number])
            if left != batch.unacknowledged:
                self._rows -= batch.unacknowledged.bit_count() - left.bit_count()
                batch.unacknowledged = left
                self._touched.add(number)
        if self._touched:
            done = asyncio.get_running_loop().create_future()
            self._acknowledging.append(done)
            self._write()
            await done

    async def close(self) -> None:
        """Finish what is being written and let go of the file. Idempotent."""
        if self._is_closed:
            return
        while self._writing is not None:
            await asyncio.wait((self._writing,))
            await asyncio.sleep(0)
        self._is_closed = True
        await self._on_thread(self._file.close)
        self._thread.shutdown()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError(f"the spool {self._file.path} is closed")

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _load(self, rows: Sequence[tuple[int, int, int, bytes]]) -> None:
        for number, stored_at_ns, bytes_, bitmap in rows:
            batch = _Batch(stored_at_ns, bytes_, int.from_bytes(bitmap, "little"))
            self._batches[number] = batch
            self._rows += batch.unacknowledged.bit_count()
            self._bytes += bytes_
            self._next_number = number + 1

    def _candidates(self, rows: int, bytes_: int, after_seq: int) -> list[int]:
        """Choose the groups that hold the next results."""
        after_number, after_index = _split(after_seq)
        chosen: list[int] = []
        for number, batch in self._batches.items():
            left = batch.unacknowledged
            if number == after_number:
                left >>= after_index + 1
            if number < after_number or not left:
                continue
            chosen.append(number)
            rows -= left.bit_count()
            bytes_ -= batch.bytes_
            if rows <= 0 or bytes_ <= 0:
                break
        return chosen

    def _waiting(
        self, number: int, group: Sequence[SpoolRecord], after_seq: int
    ) -> Sequence[SpoolRecord]:
        """Return a group's records after after_seq that nobody has acknowledged."""
        batch = self._batches.get(number)
        if batch is None or not group:
            return ()
        left = batch.unacknowledged
        if left.bit_count() == len(group) and after_seq < group[0].seq:
            return group
        return [
            record
            for record in group
            if record.seq > after_seq and left >> (record.seq & INDEX_MASK) & 1
        ]

    def _forget_all(self) -> None:
        """Account for a file that was moved aside with all that was in it."""
        for batch in self._batches.values():
            self._rows -= batch.unacknowledged.bit_count()
            self._bytes -= batch.bytes_
        self._batches.clear()
        self._touched.clear()

    # ── writing: one group at a time ──

    def _write(self) -> None:
        if self._writing is None and (self._appends or self._acknowledging):
            group = self._next_group()
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(self._thread, self._file.write, group)
            self._writing.add_done_callback(lambda done: self._written(group, done))

    def _next_group(self) -> _Group:
        group = _Group(number=self._next_number, stored_at_ns=self._clock.realtime_ns())
        rows = bytes_ = 0
        while self._appends:
            append = self._appends[0]
            rows += len(append.bodies)
            bytes_ += append.bytes_
            if group.appends and (rows > GROUP_ROWS_MAX or bytes_ > GROUP_BYTES_MAX):
                break
            group.appends.append(self._appends.popleft())
        group.updates = [(number, self._batches[number].unacknowledged) for number in self._touched]
        group.waiting, self._acknowledging = self._acknowledging, []
        self._touched.clear()
        return group

    def _written(self, group: _Group, done: "asyncio.Future[None]") -> None:
        """Tell everybody whose work was in the group, and write the next one."""
        self._writing = None
        error = done.exception()
        if error is None:
            self._keep(group)
            self._is_disk_full = False
        else:
            self._give_back(group, error)
        for future in (*(append.done for append in group.appends), *group.waiting):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(_fresh(error))
        self._write()

    def _keep(self, group: _Group) -> None:
        for number, unacknowledged in group.updates:
            if unacknowledged == 0 and number in self._batches:  # it was not moved aside meanwhile
                self._bytes -= self._batches.pop(number).bytes_
        if group.appends:
            everything = (1 << group.rows) - 1
            self._batches[group.number] = _Batch(group.stored_at_ns, group.bytes_, everything)
            self._next_number = group.number + 1

    def _give_back(self, group: _Group, error: BaseException) -> None:
        """Account for a group that was not written: results are their callers' again."""
        self._is_disk_full = isinstance(error, SpoolFull)
        self._rows -= group.rows
        self._bytes -= group.bytes_
        if isinstance(error, _Replaced):
            self._forget_all()
        # What was acknowledged stays so in memory; the file learns of it with a later group.
        self._touched |= self._batches.keys() & {number for number, _ in group.updates}


class _Replaced(StorageError):
    """The file was found damaged and was moved aside with what was in it."""


class _File:
    """The SQLite file. All but the constructor runs on the spool's thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        self._last_read: tuple[int, tuple[SpoolRecord, ...]] = (0, ())
        self._recent: dict[int, _Group] = {}  # written, and still to be read for a report
        self._recent_bytes = 0

    def open(self) -> list[tuple[int, int, int, bytes]]:
        """Open or make the file; return number, time, bytes and bitmap of every group in it.

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
        except _ForeignFile as error:
            self._replace(str(error))
        try:
            return self._open_checked()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def write(self, group: _Group) -> None:
        """Commit one group.

        Raises:
            SpoolFull: there is no space on the disk.
            StorageError: it could not be written.
        """
        database = self._opened()
        try:
            database.execute("BEGIN IMMEDIATE")
            if group.appends:
                database.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", _row(group))
            for number, unacknowledged in group.updates:
                if unacknowledged:
                    bitmap = _bitmap(unacknowledged)
                    database.execute(
                        "UPDATE batch SET unacknowledged = ? WHERE number = ?", (bitmap, number)
                    )
                else:
                    database.execute("DELETE FROM batch WHERE number = ?", (number,))
            database.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # a full disk may have rolled back already
                database.execute("ROLLBACK")
            raise self._failure_handled(error) from error
        self._remember(group)

    def _remember(self, group: _Group) -> None:
        """Keep what was written at hand, the oldest first: that is what is reported next."""
        for number, unacknowledged in group.updates:
            if not unacknowledged and number in self._recent:
                self._recent_bytes -= self._recent.pop(number).bytes_
        if group.appends and self._recent_bytes + group.bytes_ <= RECENT_BYTES_MAX:
            self._recent[group.number] = group
            self._recent_bytes += group.bytes_

    def read(self, number: int) -> tuple[SpoolRecord, ...]:
        """Return every record of a group; none when it has gone.

        Raises:
            StorageError: it could not be read.
        """
        if self._last_read[0] != number:
            recent = self._recent.get(number)
            records = self._select(number) if recent is None else recent.records()
            self._last_read = (number, records)
        return self._last_read[1]

    def _select(self, number: int) -> tuple[SpoolRecord, ...]:
        try:
            row = (
                self._opened()
                .execute("SELECT heads, bodies FROM batch WHERE number = ?", (number,))
                .fetchone()
            )
        except sqlite3.Error as error:
            raise self._failure_handled(error) from error
        return _records(number, *row) if row else ()

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

    def _open_checked(self) -> list[tuple[int, int, int, bytes]]:
        database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute(f"PRAGMA journal_size_limit = {WAL_LEFT_BYTES}")
            database.execute("BEGIN IMMEDIATE")  # takes the lock that keeps others out
            _claim_file(database)
            rows: list[tuple[int, int, int, bytes]] = database.execute(
                "SELECT number, stored_at_ns, length(bodies), unacknowledged FROM batch"
                " ORDER BY number"
            ).fetchall()
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        self._database = database
        return rows

    def _replace(self, reason: str) -> None:
        """Move a damaged or foreign file out of the way."""
        self.close()
        self._recent.clear()
        self._recent_bytes = 0
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
        return _Replaced(f"the spool {self.path} was damaged ({error}) and was moved aside")

    def _failure(self, error: sqlite3.Error) -> StorageError:
        match _code(error):
            case sqlite3.SQLITE_FULL:
                return SpoolFull(f"no space is left on the disk of the spool {self.path}")
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StorageError(f"the spool {self.path} is in use by another process")
            case _:
                return StorageError(f"the spool {self.path} cannot be used: {error}")


class _ForeignFile(Exception):
    """The file is an SQLite database of somebody else's."""


def _claim_file(database: sqlite3.Connection) -> None:
    """Make a new file ours; check that an old one is ours and whole."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID:
        if application or tables:
            raise _ForeignFile("it is not a spool of this version")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(_SCHEMA)
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _ForeignFile(verdict)


def _row(group: _Group) -> tuple[int, int, bytes, bytes, bytes]:
    heads: list[bytes] = []
    bodies: list[bytes] = []
    for append in group.appends:
        heads += map(_HEAD.pack, append.lease_ids, map(len, append.bodies), append.cancelled)
        bodies += append.bodies
    unacknowledged = _bitmap((1 << len(bodies)) - 1)
    return group.number, group.stored_at_ns, b"".join(heads), b"".join(bodies), unacknowledged


def _records(number: int, heads: bytes, bodies: bytes) -> tuple[SpoolRecord, ...]:
    lease_ids, lengths, cancelled = zip(*_HEAD.iter_unpack(heads), strict=True)
    cut = [bodies[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))]
    first = number << INDEX_BITS
    fields = zip(range(first, first + len(cut)), lease_ids, map(bool, cancelled), cut, strict=True)
    return tuple(map(SpoolRecord._make, fields))


def _bits(indexes: Sequence[int]) -> int:
    """Return an integer with these bits set."""
    alone = set(indexes)
    first, last = min(alone), max(alone)
    if last - first + 1 == len(alone):  # mostly, everything there is
        return ((1 << len(alone)) - 1) << first
    return sum(1 << index for index in alone)


def _bitmap(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _split(seq: int) -> tuple[int, int]:
    """Return the number of a record's group and its place there."""
    return seq >> INDEX_BITS, seq & INDEX_MASK


def _is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _fresh(error: BaseException) -> BaseException:
    """Return an error of its own for each who waited: one shared would gather their tracebacks."""
    return type(error)(str(error)) if isinstance(error, StorageError) else error
