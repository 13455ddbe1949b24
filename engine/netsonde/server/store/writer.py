"""One writer: operations from the loop run one after another and share commits.

An operation is a function of the store. It runs inside a transaction; its caller hears of it only
after the commit. Whoever arrives while a commit is on its way to the disk shares the next one,
so that load makes groups larger and nobody waits for a timer.
"""

import asyncio
import logging
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import ErrorCode, RequestError
from netsonde.metrics import Durations
from netsonde.server.store.base import Store

T = TypeVar("T")
Operation = Callable[[Store], T]

GROUP_ITEMS_MAX = 2_000  # rows that wait for the same commit
# SQLite runs without the GIL and wants it back after every statement; a busy loop would give it
# back only after Python's 5 ms, and an operation has ten statements.
SWITCH_INTERVAL_S = 0.000_1
GROUP_TIME_MAX_NS = 20 * NS_PER_MS  # how long the first of a group waits for the others' work

_log = logging.getLogger("netsonde.server.store")


class StoreWriter(Protocol):
    """Runs operations on a store.

    `commits` counts how long groups of them took; `on_full` is called when the store has no room,
    on any thread.
    """

    commits: Durations
    on_full: Callable[[], None]

    async def write(self, operation: Operation[T], items: int = 1) -> T:
        """Run operation in a transaction; return once it is durable. `items` is its size."""
        ...

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation that changes nothing, on what is committed."""
        ...

    async def look(self, operation: Operation[T]) -> T:
        """Run what an operator asks as `read` does; it may take long, and holds up no `read`."""
        ...

    async def close(self) -> None:
        """Finish what was given, then close the store."""
        ...


class InlineWriter:
    """Runs every operation at once on the caller's thread: for the store in memory."""

    def __init__(self, store: Store) -> None:
        self.commits = Durations()
        self._store = store
        self.on_full = _nothing

    async def write(self, operation: Operation[T], items: int = 1) -> T:
        """Run operation in a transaction of its own."""
        return run_alone(self._store, operation, self.on_full)

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation that changes nothing."""
        return operation(self._store)

    async def look(self, operation: Operation[T]) -> T:
        """Run an operation that changes nothing."""
        return operation(self._store)

    async def close(self) -> None:
        """Close the store."""
        self._store.close()


@dataclass(slots=True)
class _Work:
    operation: Operation[Any]
    items: int
    future: "Future[Any]" = field(default_factory=Future)
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class _Reader:
    """A thread with a connection of its own that only reads."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, operation: Operation[T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._run, operation)

    def close(self) -> None:
        """Finish what was given."""
        self._pool.shutdown()
        self._store.close()

    def _run(self, operation: Operation[T]) -> T:
        try:
            return operation(self._store)
        except Exception as error:
            raise self._store.fault(error) or error from error


class ThreadWriter:
    """A thread that owns the writing connection, one that reads, one that reads for operators.

    `reader` makes a connection that only reads.
    """

    def __init__(self, store: Store, reader: Callable[[], Store], clock: Clock) -> None:
        self.commits = Durations()
        self.on_full = _nothing
        self._store = store
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._reader = _Reader(reader(), "netsonde-store-reader")
        self._looker = _Reader(reader(), "netsonde-store-looker")
        self._thread = threading.Thread(target=self._loop, name="netsonde-store-writer")
        self._is_closed = False
        self._switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_INTERVAL_S, self._switch_interval_s))
        self._thread.start()

    async def write(self, operation: Operation[T], items: int = 1) -> T:
        """Run operation in a shared transaction; return after its commit."""
        self._require_open()
        work = _Work(operation, items)
        self._inbox.put(work)
        result: T = await _settled(work.future)
        return result

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation that changes nothing on the reading connection."""
        self._require_open()
        return await self._reader.run(operation)

    async def look(self, operation: Operation[T]) -> T:
        """Run an operation that changes nothing on the connection that operators read on."""
        self._require_open()
        return await self._looker.run(operation)

    async def close(self) -> None:
        """Finish what was given, then close the store."""
        if self._is_closed:
            return
        self._is_closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)
        sys.setswitchinterval(self._switch_interval_s)
        await asyncio.to_thread(self._reader.close)
        await asyncio.to_thread(self._looker.close)
        self._store.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise RequestError(ErrorCode.UNAVAILABLE, "the control plane is shutting down")

    # ── on the writer's thread ──

    def _loop(self) -> None:
        while (work := self._inbox.get()) is not None:
            self._run_group(work)

    def _run_group(self, first: _Work) -> None:
        done: list[_Work] = []
        begun_ns = self._clock.monotonic_ns()
        try:
            self._begin(first, done)
            self._fill_group(first, done)
            self._store.commit()
        except Exception as error:
            self._fail_group(done, error)
        self.commits.observe(self._clock.monotonic_ns() - begun_ns)
        for work in done:
            work.settle()

    def _begin(self, first: _Work, done: list[_Work]) -> None:
        """Open a transaction; when that fails, it fails for everybody who waits by now.

        A database that another process holds is waited for once, not once for each of them: the
        queue would grow faster than they are refused.
        """
        try:
            self._store.begin()
        except Exception:
            work: _Work | None = first
            while work is not None:
                if work.future.set_running_or_notify_cancel():
                    done.append(work)
                work = self._next()
            raise

    def _fill_group(self, first: _Work, done: list[_Work]) -> None:
        started_ns = self._clock.monotonic_ns()
        items = 0
        work: _Work | None = first
        while work is not None:
            # A caller who went away before its turn came is not served.
            if work.future.set_running_or_notify_cancel():
                done.append(work)
                self._run_one(work)
                items += work.items
            full = items >= GROUP_ITEMS_MAX
            if full or self._clock.monotonic_ns() - started_ns >= GROUP_TIME_MAX_NS:
                return
            work = self._next()

    def _next(self) -> _Work | None:
        try:
            work = self._inbox.get_nowait()
        except queue.Empty:
            return None
        if work is None:  # the end: let this group commit, then let the loop see it again
            self._inbox.put(None)
        return work

    def _run_one(self, work: _Work) -> None:
        self._store.savepoint()
        try:
            work.result = work.operation(self._store)
        except Exception as error:
            if self._store.fault(error) is not None:
                raise
            self._store.undo()
            work.error = error

    def _fail_group(self, done: list[_Work], error: Exception) -> None:
        fault = self._store.fault(error) or error
        _log.error("commit failed: %s", fault, extra={"action": "commit_failed"})
        if _is_full(fault):
            self.on_full()
        try:
            self._store.rollback()
        except Exception as second:
            _log.error("rollback failed: %s", second, extra={"action": "rollback_failed"})
        for work in done:
            work.error = fault


def _nothing() -> None:
    """Do nothing about a store without room that nobody watches."""


def _is_full(fault: Exception) -> bool:
    return isinstance(fault, RequestError) and fault.code is ErrorCode.STORAGE_FULL


async def _settled(future: "Future[T]") -> T:
    """Wait for an operation; who goes away before its turn withdraws it.

    After that it may be committed, and what follows from it has to: its caller hears of it even
    though it was cancelled, and ends at the next thing that it waits for.
    """
    answer = asyncio.wrap_future(future)
    is_cancelled = False
    while not answer.done():
        try:
            await asyncio.wait((answer,))
        except asyncio.CancelledError:
            if future.cancel():
                raise
            is_cancelled = True
    if is_cancelled and (caller := asyncio.current_task()) is not None:
        caller.uncancel()
        caller.cancel()
    return answer.result()


def run_alone(store: Store, operation: Operation[T], on_full: Callable[[], None] = _nothing) -> T:
    """Run one operation in a transaction of its own, on this thread.

    Raises:
        RequestError, StorageError: the storage failed; whatever operation raised.
    """
    try:
        store.begin()
        result = operation(store)
        store.commit()
    except BaseException as error:
        store.rollback()
        fault = store.fault(error)
        if fault is not None:
            if _is_full(fault):
                on_full()
            raise fault from error
        raise
    return result
