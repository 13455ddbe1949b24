import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import SystemClock
from netsonde.errors import ErrorCode, RequestError, StorageError
from netsonde.server.store import InlineWriter, MemoryStore, SqliteStore, Store, ThreadWriter
from netsonde.server.store.writer import GROUP_ITEMS_MAX
from support.stores import new_task


class CountingStore(SqliteStore):
    """Counts commits, and can be told to fail the next one."""

    commits = 0
    failure: Exception | None = None

    def commit(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        super().commit()
        self.commits += 1


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore.open(tmp_path / "server.db")  # type: ignore[return-value]


@pytest.fixture
async def writer(store: CountingStore) -> Any:
    made = ThreadWriter(store, store.reader, SystemClock())
    yield made
    await made.close()


async def test_who_waits_shares_a_commit(writer: ThreadWriter, store: CountingStore) -> None:
    gate = threading.Event()
    blocked = asyncio.ensure_future(writer.write(lambda _: gate.wait(5)))  # noqa: TID251
    await asyncio.sleep(0)
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(writer.write(lambda store: store.count("x", 1)))
        await asyncio.sleep(0)
        gate.set()
    await blocked
    assert await writer.read(lambda store: store.counters()) == {"x": 50}
    assert store.commits <= 3


async def test_a_large_operation_ends_its_group(writer: ThreadWriter, store: CountingStore) -> None:
    gate = threading.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.write(lambda _: gate.wait(5), GROUP_ITEMS_MAX))
        group.create_task(writer.write(lambda store: store.count("x", 1), GROUP_ITEMS_MAX))
        group.create_task(writer.write(lambda store: store.count("x", 1), GROUP_ITEMS_MAX))
        await asyncio.sleep(0)
        gate.set()
    assert store.commits == 3


async def test_one_that_raises_is_undone_and_the_others_commit(writer: ThreadWriter) -> None:
    gate = threading.Event()

    def bad(store: Store) -> None:
        store.count("bad", 1)
        raise RequestError(ErrorCode.CONFLICT, "no")

    async def expect_conflict() -> None:
        with pytest.raises(RequestError, match="no"):
            await writer.write(bad)

    async with asyncio.TaskGroup() as group:
        group.create_task(writer.write(lambda _: gate.wait(5)))
        group.create_task(writer.write(lambda store: store.count("good", 1)))
        group.create_task(expect_conflict())
        group.create_task(writer.write(lambda store: store.count("good", 1)))
        await asyncio.sleep(0)
        gate.set()
    assert await writer.read(lambda store: store.counters()) == {"good": 2}


async def test_nobody_is_told_of_a_commit_that_failed(
    writer: ThreadWriter, store: CountingStore
) -> None:
    store.failure = StorageError("server.db: the disk is gone")
    with pytest.raises(StorageError, match="the disk is gone"):
        await writer.write(lambda store: store.add_tasks([new_task()]))
    assert await writer.read(lambda store: store.depths(10)) == []
    await writer.write(lambda store: store.add_tasks([new_task()]))
    assert (await writer.read(lambda store: store.depths(10)))[0].ready == 1


async def test_a_disk_without_room_is_told_of(writer: ThreadWriter, store: CountingStore) -> None:
    told = threading.Event()
    writer.on_full = told.set
    store.failure = StorageError("server.db: the disk is gone")
    with pytest.raises(StorageError):
        await writer.write(lambda store: store.count("x", 1))

    def refuse(_: Store) -> None:
        raise RequestError(ErrorCode.STORAGE_FULL, "what the control plane itself says")

    with pytest.raises(RequestError):
        await writer.write(refuse)
    assert not told.is_set()
    pages = store.select("PRAGMA page_count", ()).fetchone()[0]
    store.select(f"PRAGMA max_page_count = {pages}", ())
    with pytest.raises(RequestError) as caught:
        await writer.write(lambda store: store.add_tasks([new_task(spec=b"x" * 100_000)]))
    assert caught.value.code is ErrorCode.STORAGE_FULL
    assert told.is_set()


async def test_a_locked_database_refuses_everybody_who_waits_at_once(
    writer: ThreadWriter, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
    begin, tries = store.begin, 0

    def refuse() -> None:
        nonlocal tries
        tries += 1
        gate.wait(5)  # as long as the lock is waited for
        raise locked

    async def expect_refusal() -> None:
        with pytest.raises(RequestError, match="database is locked") as caught:
            await writer.write(lambda store: store.count("x", 1))
        assert caught.value.code is ErrorCode.UNAVAILABLE

    gate = threading.Event()
    monkeypatch.setattr(store, "begin", refuse)
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(expect_refusal())
        await asyncio.sleep(0)
        gate.set()
    assert tries <= 2  # whoever came while the first waited was refused with it

    monkeypatch.setattr(store, "begin", begin)
    await writer.write(lambda store: store.count("x", 1))
    assert await writer.read(lambda store: store.counters()) == {"x": 1}


async def test_a_caller_who_left_is_not_served(writer: ThreadWriter) -> None:
    gate = threading.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.write(lambda _: gate.wait(5), 500))
        await asyncio.sleep(0)
        leaving = group.create_task(writer.write(lambda store: store.count("x", 1)))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        gate.set()
    assert await writer.read(lambda store: store.counters()) == {}


async def test_a_caller_who_leaves_amid_the_commit_hears_of_it_first(writer: ThreadWriter) -> None:
    begun, gate = threading.Event(), threading.Event()
    heard: list[str] = []

    def operation(store: Store) -> None:
        begun.set()
        gate.wait(5)
        store.count("x", 1)

    async def call() -> None:
        await writer.write(operation)
        heard.append("committed")
        await asyncio.sleep(0)
        heard.append("stayed")

    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(call())
        await asyncio.to_thread(begun.wait, 5)
        for _ in range(2):  # a second hurry changes nothing
            leaving.cancel()
            await asyncio.sleep(0)
        assert not leaving.done()
        gate.set()
    assert leaving.cancelled()
    assert heard == ["committed"]
    assert await writer.read(lambda store: store.counters()) == {"x": 1}


async def test_a_time_limit_amid_the_commit_stays_one(writer: ThreadWriter) -> None:
    gate, loop = threading.Event(), asyncio.get_running_loop()
    heard: list[str] = []

    async def call() -> None:
        async with asyncio.timeout(None) as limit:

            def operation(_: Store) -> None:
                loop.call_soon_threadsafe(limit.reschedule, 0)
                loop.call_soon_threadsafe(loop.call_soon, gate.set)
                gate.wait(5)

            await writer.write(operation)
            heard.append("committed")
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await call()
    assert heard == ["committed"]


async def test_closing_finishes_what_was_given(store: CountingStore, tmp_path: Path) -> None:
    writer = ThreadWriter(store, store.reader, SystemClock())
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(writer.write(lambda store: store.count("x", 1)))
        await asyncio.sleep(0)
        group.create_task(writer.close())
    await writer.close()
    with pytest.raises(RequestError) as caught:
        await writer.write(lambda store: store.count("x", 1))
    assert caught.value.code is ErrorCode.UNAVAILABLE
    again = SqliteStore.open(tmp_path / "server.db")
    assert again.counters() == {"x": 20}
    again.close()


async def test_an_operator_who_asks_much_holds_up_no_other_read(writer: ThreadWriter) -> None:
    gate = threading.Event()
    slow = asyncio.ensure_future(writer.look(lambda _: gate.wait(30)))  # noqa: TID251
    async with asyncio.timeout(10):
        assert await writer.read(lambda store: store.counters()) == {}
    assert not slow.done()
    gate.set()
    assert await slow


async def test_who_reads_after_the_end_is_turned_away(writer: ThreadWriter) -> None:
    await writer.close()
    for verb in (writer.read, writer.look):
        with pytest.raises(RequestError) as caught:
            await verb(lambda store: store.counters())
        assert caught.value.code is ErrorCode.UNAVAILABLE


async def test_inline_runs_at_once() -> None:
    writer = InlineWriter(MemoryStore())
    await writer.write(lambda store: store.count("x", 1))
    assert await writer.read(lambda store: store.counters()) == {"x": 1}
    assert await writer.look(lambda store: store.counters()) == {"x": 1}
    await writer.close()
