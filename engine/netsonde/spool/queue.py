"""The durable queue of results on their way to the control plane: one commit per group.

Whoever appends while a commit is on its way to the disk shares the next one.
"""

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from netsonde.clock import Clock, SystemClock
from netsonde.errors import SpoolFull, StorageError
from netsonde.spool.at_hand import AtHand
from netsonde.spool.file import Group, SpoolFile, SpoolReplacedError
from netsonde.spool.groups import Groups
from netsonde.spool.records import INDEX_BITS, SpoolRecords
from netsonde.wire import REPORT_ITEMS_MAX

T = TypeVar("T")

GROUP_ROWS_MAX = REPORT_ITEMS_MAX  # a group is read back whole
GROUP_BYTES_MAX = 4 << 20  # one report's worth
TOUCHED_MAX = 16  # groups of whose acknowledgements the file does not know yet

_log = logging.getLogger("netsonde.spool")


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much may wait. `size_bytes` counts a group whole until its last result has gone."""

    rows: int = 1_000_000
    size_bytes: int = 256 << 20


class _Append(NamedTuple):
    """Results that came together, in columns."""

    lease_ids: Sequence[int]
    bodies: Sequence[bytes]
    cancelled: Sequence[bool]
    size_bytes: int
    done: "asyncio.Future[None]"


@dataclass(slots=True)
class _Commit:
    """A group on its way to the disk, and who waits for it."""

    group: Group
    size_bytes: int = 0
    waiting: "list[asyncio.Future[None]]" = field(default_factory=list)


class Spool:
    """Keeps results until the control plane has them. Made by `Spool.open`.

    Belongs to one event loop; the file belongs to one process.
    """

    def __init__(self, file: SpoolFile, limits: SpoolLimits, clock: Clock) -> None:
        self._file = file
        self._limits = limits
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netsonde-spool")
        self._groups = Groups()
        self._at_hand = AtHand()
        self._appends: deque[_Append] = deque()
        self._flushing: list[asyncio.Future[None]] = []
        self._writing: asyncio.Future[None] | None = None
        self._is_updating = False  # what is being written has acknowledgements
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
        spool = cls(SpoolFile(path), limits or SpoolLimits(), clock or SystemClock())
        try:
            spool._groups.load(await spool._on_thread(spool._file.open))
        except BaseException:
            spool._thread.shutdown()
            raise
        return spool

    @property
    def rows(self) -> int:
        """Results that wait, those not yet durable included."""
        return self._groups.rows

    @property
    def size_bytes(self) -> int:
        """Bytes they take in the file; a group counts whole until its last result goes."""
        return self._groups.size_bytes

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest of them came, on the wall clock; None when nothing waits."""
        return self._groups.oldest_ns

    @property
    def is_full(self) -> bool:
        """Whether a limit is reached, or the disk was full at the last try."""
        return (
            self._groups.rows >= self._limits.rows
            or self._groups.size_bytes >= self._limits.size_bytes
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
            self._write()  # what was acknowledged takes room still
            raise SpoolFull(
                f"the spool {self._file.path} is full: {self.rows} results, {self.size_bytes} "
                "bytes; it empties when the control plane takes them"
            )
        append = _Append(
            lease_ids[:count],
            bodies[:count],
            cancelled[:count],
            sum(map(len, bodies[:count])),
            asyncio.get_running_loop().create_future(),
        )
        self._appends.append(append)
        self._groups.rows += count
        self._groups.size_bytes += append.size_bytes
        self._write()
        await append.done
        return count

    def _fitting(self, bodies: Sequence[bytes]) -> int:
        """Return how many results, from the first on, one group and the limits have room for."""
        rows = min(self._limits.rows - self._groups.rows, GROUP_ROWS_MAX)
        room = self._limits.size_bytes - self._groups.size_bytes
        if rows <= 0 or len(bodies[0]) > room:
            return 0
        return max(_leading(bodies, rows, min(room, GROUP_BYTES_MAX)), 1)

    async def pending(self, rows: int, bytes_: int, *, after_seq: int = 0) -> SpoolRecords:
        """Return the oldest durable results after after_seq, in order, and remove none.

        At most `rows` of at most `bytes_` together, but one if there is any.

        Raises:
            StorageError: they could not be read.
        """
        self._check_open()
        numbers = self._groups.candidates(rows, bytes_, after_seq)
        groups = await self._fetch(numbers)
        found: list[SpoolRecords] = []
        for number in numbers:
            waiting = self._groups.waiting(number, groups.get(number), after_seq)
            count = _leading(waiting.bodies, rows, bytes_)
            if waiting and not found and rows > 0:
                count = max(count, 1)
            if count:
                part = waiting if count == len(waiting) else waiting[:count]
                found.append(part)
                rows -= count
                bytes_ -= sum(map(len, part.bodies))
            if count < len(waiting):
                break
        return SpoolRecords.joined(found) if found else SpoolRecords()

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Forget results the control plane has answered for; unknown numbers are ignored.

        The file learns of it with the next results, or by `flush`. What comes up again after a
        crash before that, the control plane knows.
        """
        self._check_open()
        self._groups.acknowledge(seqs)
        if len(self._groups.touched) >= TOUCHED_MAX:
            self._write()

    async def flush(self) -> None:
        """Let the file learn of every acknowledgement; return when it is durable.

        Raises:
            StorageError: it could not be written; another flush tries again.
        """
        self._check_open()
        if self._groups.touched or self._is_updating:
            done = asyncio.get_running_loop().create_future()
            self._flushing.append(done)
            self._write()
            await done

    async def close(self) -> None:
        """Finish what is being written and let go of the file. Idempotent."""
        if self._is_closed:
            return
        try:
            await self.flush()
        except StorageError as error:
            text = "%s: results that the control plane has are reported once more"
            _log.warning(text, error, extra={"action": "spool_failed"})
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

    # ── reading ──

    async def _fetch(self, numbers: Sequence[int]) -> dict[int, SpoolRecords]:
        """Return groups; those that are not at hand are read, and kept until others are."""
        groups = self._at_hand.find(numbers)
        absent = [number for number in numbers if number not in groups]
        if not absent:
            return groups
        try:
            found = await self._on_thread(lambda: [self._file.read(each) for each in absent])
        except SpoolReplacedError:
            self._forget_all()
            raise
        groups |= zip(absent, found, strict=True)
        self._at_hand.looked(groups)
        return groups

    def _forget_all(self) -> None:
        """Account for a file that was moved aside with all that was in it."""
        self._groups.forget_all()
        self._at_hand.clear()

    # ── writing: one group at a time ──

    def _write(self) -> None:
        if self._writing is None and (self._appends or self._groups.touched or self._flushing):
            commit = self._next_commit()
            self._is_updating = bool(commit.group.updates)
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(self._thread, self._file.write, commit.group)
            self._writing.add_done_callback(lambda done: self._written(commit, done))

    def _next_commit(self) -> _Commit:
        appends: list[_Append] = []
        rows = size_bytes = 0
        while self._appends:
            append = self._appends[0]
            rows += len(append.bodies)
            size_bytes += append.size_bytes
            if appends and (rows > GROUP_ROWS_MAX or size_bytes > GROUP_BYTES_MAX):
                size_bytes -= append.size_bytes
                break
            appends.append(self._appends.popleft())
        waiting = [*(append.done for append in appends), *self._flushing]
        self._flushing = []
        updates = self._groups.take_updates()
        records = self._numbered(appends)
        group = Group(self._groups.next_number, self._clock.realtime_ns(), records, updates)
        return _Commit(group, size_bytes, waiting)

    def _numbered(self, appends: Sequence[_Append]) -> SpoolRecords:
        """Return appended results as the next group's records."""
        first = self._groups.next_number << INDEX_BITS
        parts = []
        for append in appends:
            seqs = range(first, first + len(append.bodies))
            parts.append(SpoolRecords(seqs, append.lease_ids, append.cancelled, append.bodies))
            first = seqs.stop
        return SpoolRecords.joined(parts) if parts else SpoolRecords()

    def _written(self, commit: _Commit, done: "asyncio.Future[None]") -> None:
        """Tell everybody whose work was in the group, and write the next one."""
        self._writing, self._is_updating = None, False
        error = done.exception()
        if error is None:
            self._keep(commit)
            self._is_disk_full = False
        else:
            self._give_back(commit, error)
        for future in commit.waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(_fresh(error))
        is_much = error is None and len(self._groups.touched) >= TOUCHED_MAX
        if self._appends or self._flushing or is_much:
            self._write()

    def _keep(self, commit: _Commit) -> None:
        group, size_bytes = commit.group, commit.size_bytes
        for number in self._groups.remove_emptied(group.updates):
            self._at_hand.drop(number)
        if group.records:
            self._groups.arrived(group, size_bytes)
            self._at_hand.written(group.number, group.records, size_bytes)

    def _give_back(self, commit: _Commit, error: BaseException) -> None:
        """Account for a group that was not written: results are their callers' again."""
        self._is_disk_full = isinstance(error, SpoolFull)
        self._groups.rows -= len(commit.group.records)
        self._groups.size_bytes -= commit.size_bytes
        if isinstance(error, SpoolReplacedError):
            self._forget_all()
        # What was acknowledged stays so in memory; the file learns of it with a later group.
        self._groups.untake(commit.group.updates)


def _leading(bodies: Sequence[bytes], rows: int, size_bytes: int) -> int:
    """Return how many bodies, from the first on, are at most so many of at most so many bytes."""
    if len(bodies) <= rows and sum(map(len, bodies)) <= size_bytes:
        return len(bodies)
    return bisect_right([*accumulate(map(len, bodies[: max(rows, 0)]))], size_bytes)


def _fresh(error: BaseException) -> BaseException:
    """Return an error of its own for each who waited: one shared would gather their tracebacks."""
    return type(error)(str(error)) if isinstance(error, StorageError) else error
