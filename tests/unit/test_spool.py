"""The spool: what it took it keeps, in order, until told otherwise; and it says when it cannot."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import SpoolFull, StorageError
from netsonde.spool import GROUP_ROWS_MAX, Spool, SpoolLimits, SpoolRecord, SpoolRecords, queue
from netsonde.spool.file import PAGE_BYTES, WAL_LEFT_BYTES, Group, SpoolReplacedError
from netsonde.spool.queue import RECENT_BYTES_MAX, TOUCHED_MAX

EVERYTHING = 1 << 30


async def fill(spool: Spool, count: int, first: int = 1) -> None:
    """Append count results at once: they share commits."""
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            group.create_task(spool.append(number, b"body %d" % number, cancelled=number % 2 == 0))


async def everything(spool: Spool) -> list[SpoolRecord]:
    return [*await spool.pending(1_000_000, EVERYTHING)]


async def test_results_come_back_in_order_with_all_they_came_with(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await spool.append(2**64 - 1, b"{}", cancelled=True)
    await spool.append(0, b"", cancelled=False)
    await fill(spool, 10)

    records = await everything(spool)

    assert [(one.lease_id, one.cancelled, one.body) for one in records[:2]] == [
        (2**64 - 1, True, b"{}"),
        (0, False, b""),
    ]
    assert [one.lease_id for one in records[2:]] == list(range(1, 11))
    assert [one.seq for one in records] == sorted(one.seq for one in records)
    await spool.close()


async def test_what_waits_survives_a_restart_and_what_was_acknowledged_does_not(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    spool = await Spool.open(tmp_path / "spool.db", clock=clock)
    await fill(spool, 50)
    first = await everything(spool)
    spool.acknowledge(one.seq for one in first[:20])
    await spool.flush()
    spool.acknowledge([first[30].seq])
    await spool.flush()
    oldest_ns, size = spool.oldest_ns, spool.size_bytes
    await spool.close()
    await clock.advance(NS_PER_S)

    again = await Spool.open(tmp_path / "spool.db", clock=clock)

    assert await everything(again) == [*first[20:30], *first[31:]]
    assert (again.rows, again.size_bytes, again.oldest_ns) == (29, size, oldest_ns)
    await fill(again, 1, first=99)
    assert [one.lease_id for one in await everything(again)][-1] == 99
    await again.close()


async def test_appends_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await fill(spool, GROUP_ROWS_MAX)

    # The first append starts a commit of its own; all others waited for it and share the next.
    groups = {one.seq >> 16 for one in await everything(spool)}
    await spool.close()

    assert len(groups) == 2


async def test_a_group_is_bounded(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await fill(spool, 2 * GROUP_ROWS_MAX + 2)

    groups: dict[int, int] = {}
    for one in await everything(spool):
        groups[one.seq >> 16] = groups.get(one.seq >> 16, 0) + 1
    await spool.close()

    assert max(groups.values()) == GROUP_ROWS_MAX


async def test_many_results_come_in_one_group_and_in_order(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")

    kept = await spool.append_many([7, 5, 6], [b"{}", b"[1]", b"null"], [False, True, False])
    records = await everything(spool)
    await spool.close()
    again = await Spool.open(tmp_path / "spool.db")

    assert kept == 3
    assert [(one.lease_id, one.cancelled, one.body) for one in records] == [
        (7, False, b"{}"),
        (5, True, b"[1]"),
        (6, False, b"null"),
    ]
    assert len({one.seq >> 16 for one in records}) == 1
    assert await everything(again) == records
    await again.close()


async def test_as_many_are_kept_as_there_is_room_for(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db", SpoolLimits(rows=5, size_bytes=100))
    bodies = [b"x" * 30] * 4

    assert await spool.append_many([1, 2, 3, 4], bodies, [False] * 4) == 3  # 90 of 100 bytes
    with pytest.raises(SpoolFull, match="3 results, 90 bytes"):
        await spool.append_many([4], bodies[3:], [False])
    assert await spool.append_many([4, 5, 6], [b"x"] * 3, [False] * 3) == 2  # 5 of 5 rows
    assert await spool.append_many([], [], []) == 0
    assert [one.lease_id for one in await everything(spool)] == [1, 2, 3, 4, 5]
    await spool.close()


async def test_more_than_a_group_is_kept_in_parts(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    count = GROUP_ROWS_MAX + 1

    kept = await spool.append_many(range(count), [b"x"] * count, [False] * count)
    large = await spool.append_many([1, 2], [b"x" * (5 << 20)] * 2, [False] * 2)
    await spool.close()

    assert kept == GROUP_ROWS_MAX
    assert large == 1  # whatever its size


@pytest.mark.parametrize(("at_hand", "from_file"), [(8 << 20, 0), (2, 1), (0, 2)])
async def test_what_was_written_lately_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_hand: int, from_file: int
) -> None:
    monkeypatch.setattr("netsonde.spool.queue.RECENT_BYTES_MAX", at_hand)
    spool = await Spool.open(tmp_path / "spool.db")
    selected: list[int] = []
    read = spool._file.read

    def noted(number: int) -> SpoolRecords:
        selected.append(number)
        return read(number)

    monkeypatch.setattr(spool._file, "read", noted)
    await spool.append_many([7, 5], [b"1", b"2"], [False, True])
    await spool.append_many([6], [b"3"], [False])

    records = await everything(spool)
    spool.acknowledge([one.seq for one in records])
    await spool.flush()
    left = dict(spool._recent), spool._recent_bytes, dict(spool._read)
    await spool.close()

    assert [(one.lease_id, one.cancelled, one.body) for one in records] == [
        (7, False, b"1"),
        (5, True, b"2"),
        (6, False, b"3"),
    ]
    assert len(selected) == from_file
    assert left == ({}, 0, {})


@pytest.mark.parametrize("gone", [[0, 1, 2, 3], [0, 3], [1, 2], [2, 2, 0], [3, 0, 9]])
async def test_results_are_acknowledged_in_any_order(tmp_path: Path, gone: list[int]) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await spool.append_many([0, 1, 2, 3], [b"x"] * 4, [False] * 4)
    first = (await everything(spool))[0].seq

    spool.acknowledge([first + index for index in gone])
    await spool.flush()

    assert [one.lease_id for one in await everything(spool)] == sorted({0, 1, 2, 3} - {*gone})
    assert spool.rows == len({0, 1, 2, 3} - {*gone})
    await spool.close()


async def test_pending_keeps_to_rows_and_bytes_but_brings_one_whatever_its_size(
    tmp_path: Path,
) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    for number in range(1, 6):
        await spool.append(number, b"x" * 100, cancelled=False)

    assert [one.lease_id for one in await spool.pending(2, EVERYTHING)] == [1, 2]
    assert [one.lease_id for one in await spool.pending(10, 350)] == [1, 2, 3]
    assert [one.lease_id for one in await spool.pending(10, 1)] == [1]
    await spool.close()


async def test_pending_goes_on_after_a_record(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await fill(spool, 30)
    await fill(spool, 30, first=31)

    seen: list[int] = []
    cursor = 0
    while batch := await spool.pending(7, EVERYTHING, after_seq=cursor):
        seen += [one.lease_id for one in batch]
        cursor = batch[-1].seq
    await spool.close()

    assert seen == list(range(1, 61))


async def test_acknowledgements_reach_the_disk_with_the_next_results(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = await Spool.open(path)
    await fill(spool, 1)
    spool.acknowledge([one.seq for one in await everything(spool)])
    assert (spool.rows, spool.size_bytes) == (0, len(b"body 1"))  # it is still in the file

    await fill(spool, 1, first=2)
    assert (spool.rows, spool.size_bytes) == (1, len(b"body 2"))
    await spool.close()


async def test_acknowledgements_of_many_groups_do_not_wait(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    seqs = await fill_groups(spool)

    spool.acknowledge(seqs[:-1])
    assert spool._writing is None
    spool.acknowledge(seqs[-1:])
    assert spool._writing is not None
    await spool.close()
    assert spool.size_bytes == 0


async def fill_groups(spool: Spool) -> list[int]:
    """Fill so many groups that acknowledging all of them is written at once; return the numbers."""
    for number in range(TOUCHED_MAX):
        await spool.append(number, b"x", cancelled=False)
    return [one.seq for one in await everything(spool)]


class Gate:
    """Holds commits until it is opened, and then lets them fail with `error` if there is one."""

    def __init__(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: StorageError | None = None
        self._open = threading.Event()
        write = spool._file.write

        def held(group: Group) -> None:
            assert self._open.wait(20)
            error, self.error = self.error, None
            if error is not None:
                raise error
            write(group)

        monkeypatch.setattr(spool._file, "write", held)

    def open(self) -> None:
        self._open.set()


async def test_a_flush_waits_for_acknowledgements_that_are_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    seqs = await fill_groups(spool)
    gate = Gate(spool, monkeypatch)
    gate.error = SpoolFull("no space is left")
    spool.acknowledge(seqs)  # so many are written at once
    async with asyncio.TaskGroup() as group:
        flushing = group.create_task(spool.flush())
        await asyncio.sleep(0)
        assert not flushing.done()
        gate.open()

    assert (spool.size_bytes, spool.is_full) == (0, False)  # what failed was tried again
    await spool.close()


async def test_a_flush_ends_when_the_file_is_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await fill(spool, 2)
    first, second = await everything(spool)
    gate = Gate(spool, monkeypatch)
    gate.error = SpoolReplacedError("the spool was damaged and was moved aside")
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        appending = group.create_task(_error_of(spool.append(3, b"x", cancelled=False)))
        await asyncio.sleep(0)
        spool.acknowledge([first.seq, second.seq])
        group.create_task(spool.flush())
        await asyncio.sleep(0)
        gate.open()
    assert isinstance(appending.result(), StorageError)
    async with asyncio.timeout(20):
        await spool.close()


async def test_acknowledgements_that_came_during_a_commit_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    seqs = await fill_groups(spool)
    gate = Gate(spool, monkeypatch)
    async with asyncio.TaskGroup() as group:
        appending = group.create_task(spool.append(99, b"y", cancelled=False))
        await asyncio.sleep(0)
        spool.acknowledge(seqs)
        gate.open()
        await appending
        assert spool._writing is not None
    await spool.close()
    assert spool.size_bytes == 1


async def test_what_was_acknowledged_makes_room_for_what_is_refused(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db", SpoolLimits(size_bytes=10))
    await spool.append(1, b"x" * 10, cancelled=False)
    spool.acknowledge([(await everything(spool))[0].seq])
    with pytest.raises(SpoolFull):
        await spool.append(2, b"y", cancelled=False)  # it is in the file still
    await spool.flush()
    await spool.append(2, b"y", cancelled=False)
    await spool.close()


async def test_on_a_full_disk_a_result_takes_the_place_of_what_has_gone(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    for number in range(8):
        await spool.append(number, b"z" * 50_000, cancelled=False)
    await limit_pages(spool, 0)
    spool.acknowledge([one.seq for one in await everything(spool)])

    await spool.append(9, b"y" * 50_000, cancelled=False)
    assert spool.rows == 1
    await spool.close()


async def test_what_has_gone_is_not_the_oldest(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = await Spool.open(tmp_path / "spool.db", clock=clock)
    await fill(spool, 1)
    spool.acknowledge([(await everything(spool))[0].seq])
    assert spool.oldest_ns is None
    await spool.close()


async def test_two_looks_at_once_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.spool.queue.RECENT_BYTES_MAX", 0)
    spool = await Spool.open(tmp_path / "spool.db")
    for number in range(1, 5):
        await spool.append(number, b"x", cancelled=False)
    first = (await spool.pending(2, EVERYTHING)).seqs[-1]
    looks = await asyncio.gather(
        spool.pending(4, EVERYTHING), spool.pending(4, EVERYTHING, after_seq=first)
    )

    assert [[*look.lease_ids] for look in looks] == [[1, 2, 3, 4], [3, 4]]
    assert not await spool.pending(0, EVERYTHING)
    await spool.close()


async def _error_of(work: Awaitable[object]) -> BaseException | None:
    try:
        await work
    except StorageError as error:
        return error
    return None


async def test_closing_writes_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = await Spool.open(path)
    await fill(spool, 3)
    spool.acknowledge([(await everything(spool))[1].seq])
    await spool.close()

    again = await Spool.open(path)
    assert [one.lease_id for one in await everything(again)] == [1, 3]
    await again.close()


async def test_records_are_columns_and_a_sequence(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await spool.append_many([7, 5, 6], [b"a", b"b", b"c"], [False, True, False])
    records = await spool.pending(10, EVERYTHING)
    await spool.close()

    first, second, third = records
    assert [*records.lease_ids] == [7, 5, 6]
    assert (records[1], records[-1]) == (second, third)
    assert [*records[1:]] == [second, third]
    assert [*records.at([2, 0])] == [third, first]
    assert [*SpoolRecords.joined([records[:1], records[1:]])] == [*records]
    assert not SpoolRecords()


async def test_an_emptied_spool_has_nothing_left(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await fill(spool, 300)
    records = await everything(spool)
    spool.acknowledge([one.seq for one in records] * 2)
    await spool.flush()
    spool.acknowledge([12345678, 0, -1])
    await spool.flush()

    assert (spool.rows, spool.size_bytes, spool.oldest_ns) == (0, 0, None)
    await spool.close()
    with sqlite3.connect(tmp_path / "spool.db") as database:
        assert database.execute("SELECT count(*) FROM batch").fetchone() == (0,)
    database.close()


async def test_a_file_of_other_pages_is_used_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("netsonde.spool.file.PAGE_BYTES", 4096)
        spool = await Spool.open(tmp_path / "spool.db")
        await fill(spool, 3)
        await spool.close()
    spool = await Spool.open(tmp_path / "spool.db")
    await fill(spool, 300)

    def pages() -> tuple[int, int]:
        """Return how large they are, and after how many the journal is worked off."""
        database = spool._file._opened()
        names = ("page_size", "wal_autocheckpoint")
        size, most = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return size, most

    assert await spool._on_thread(pages) == (4096, WAL_LEFT_BYTES // 4096)
    assert len(await everything(spool)) == 303
    await spool.close()


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 40)),
            st.tuples(st.just("acknowledge"), st.sets(st.integers(0, 60), max_size=30)),
            st.tuples(st.just("flush"), st.just(0)),
            st.tuples(st.just("reopen"), st.just(0)),
        ),
        max_size=12,
    ),
    recent_bytes=st.sampled_from((0, 100, RECENT_BYTES_MAX)),
)
async def test_it_agrees_with_a_list(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]], recent_bytes: int
) -> None:
    with mock.patch.object(queue, "RECENT_BYTES_MAX", recent_bytes):
        await agree_with_a_list(tmp_path_factory.mktemp("spool") / "spool.db", steps)


async def agree_with_a_list(path: Path, steps: list[tuple[str, object]]) -> None:
    spool = await Spool.open(path)
    model: list[int] = []
    next_id = 1
    for step, argument in steps:
        if step == "append" and isinstance(argument, int):
            await fill(spool, argument, first=next_id)
            model += range(next_id, next_id + argument)
            next_id += argument
        elif step == "acknowledge" and isinstance(argument, set):
            records = await everything(spool)
            chosen = [records[index] for index in argument if index < len(records)]
            spool.acknowledge(one.seq for one in chosen)
            gone = {one.lease_id for one in chosen}
            model = [each for each in model if each not in gone]
        elif step == "flush":
            await spool.flush()
        else:
            await spool.close()
            spool = await Spool.open(path)
        assert [one.lease_id for one in await everything(spool)] == model
        assert spool.rows == len(model)
    await spool.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from netsonde.spool import Spool

async def main():
    spool = await Spool.open(Path(sys.argv[1]))
    for number in range(1, 6):
        await spool.append(number, b"kept %d" % number, cancelled=False)
    first = await spool.pending(2, 1 << 20)
    spool.acknowledge([first[0].seq])
    await spool.flush()
    print("durable", flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


@contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that has five results in the spool, one acknowledged, and does not let go."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "durable\n"
            yield child
        finally:
            child.kill()


async def test_what_append_returned_for_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with holder(path) as child:
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL

    spool = await Spool.open(path)
    found = [(one.lease_id, one.body) for one in await everything(spool)]
    await spool.close()

    assert found == [(number, b"kept %d" % number) for number in range(2, 6)]


@pytest.mark.parametrize(
    "limits", [SpoolLimits(rows=3), SpoolLimits(size_bytes=25)], ids=["rows", "bytes"]
)
async def test_a_full_spool_says_so_and_loses_nothing(tmp_path: Path, limits: SpoolLimits) -> None:
    spool = await Spool.open(tmp_path / "spool.db", limits)
    for number in range(1, 4):
        await spool.append(number, b"12345678", cancelled=False)

    with pytest.raises(SpoolFull, match="is full: 3 results, 24 bytes; it empties when"):
        await spool.append(4, b"12345678", cancelled=False)
    assert [one.lease_id for one in await everything(spool)] == [1, 2, 3]

    first = (await spool.pending(1, EVERYTHING))[0]
    spool.acknowledge([first.seq])
    await spool.flush()
    await spool.append(4, b"12345678", cancelled=False)
    assert [one.lease_id for one in await everything(spool)] == [2, 3, 4]
    assert spool.is_full is (limits.rows == 3)
    await spool.close()


async def test_results_on_their_way_to_the_disk_count(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db", SpoolLimits(rows=10))
    answers = await asyncio.gather(
        *(spool.append(number, b"x", cancelled=False) for number in range(1, 21)),
        return_exceptions=True,
    )

    assert [type(answer) for answer in answers] == [type(None)] * 10 + [SpoolFull] * 10
    assert spool.rows == 10
    await spool.close()


async def limit_pages(spool: Spool, more: int) -> None:
    """Let the disk have room for so many pages more: SQLite then fails as on a full one."""

    def limit() -> None:
        database = spool._file._opened()
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages + more}")

    await spool._on_thread(limit)


async def test_a_full_disk_gives_the_result_back_and_is_tried_again(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await spool.append(1, b"small", cancelled=False)
    await limit_pages(spool, 2)
    body = b"x" * 100_000

    for _ in range(2):
        with pytest.raises(SpoolFull, match=r"no space is left on the disk of the spool .*spool"):
            await spool.append(2, body, cancelled=False)
    assert spool.is_full
    assert (spool.rows, spool.size_bytes) == (1, 5)

    await limit_pages(spool, 1000)
    await spool.append(2, body, cancelled=False)
    assert not spool.is_full
    assert [one.lease_id for one in await everything(spool)] == [1, 2]
    await spool.close()


async def test_everybody_in_a_group_that_failed_hears_of_it(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    await limit_pages(spool, 1)
    answers = await asyncio.gather(
        *(spool.append(number, b"x" * 5000, cancelled=False) for number in range(1, 21)),
        return_exceptions=True,
    )

    failed = [answer for answer in answers if answer is not None]
    assert failed
    assert all(isinstance(answer, SpoolFull) for answer in failed)
    assert len({id(answer) for answer in failed}) == len(failed)
    assert len(await everything(spool)) == spool.rows == 20 - len(failed)
    await spool.close()


@pytest.mark.parametrize(
    "content", [b"this is no database, " * 500, b"SQLite format 3\0" + b"\xff" * 8000]
)
async def test_a_file_that_is_no_spool_is_moved_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(content)

    spool = await Spool.open(path)
    await spool.append(1, b"new", cancelled=False)
    await spool.close()

    assert (tmp_path / "spool.db.aside-1").read_bytes() == content
    assert f"moved to {path}.aside-1, starting an empty one" in caplog.text


async def test_somebody_elses_database_is_moved_aside_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool.db"
    for attempt in (1, 2):
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE theirs (a)")
            database.execute("INSERT INTO theirs VALUES (?)", (attempt,))
        database.close()
        await (await Spool.open(path)).close()
        path.unlink()

    assert caplog.text.count("is not a spool of this version") == 2
    for attempt in (1, 2):
        with sqlite3.connect(f"{path}.aside-{attempt}") as database:
            assert database.execute("SELECT a FROM theirs").fetchone() == (attempt,)
        database.close()


async def test_a_file_that_is_damaged_while_in_use_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool.db"
    spool = await Spool.open(path)
    await spool.append(1, b"z" * 100_000, cancelled=False)
    await spool.close()
    spool = await Spool.open(path)
    await spool.append(2, b"small", cancelled=False)

    def damage() -> None:
        spool._recent.clear()
        database = spool._file._opened()
        database.execute("PRAGMA cache_size = 0")
        database.execute("PRAGMA shrink_memory")
        with path.open("r+b") as file:
            for page in range(2, path.stat().st_size // PAGE_BYTES):
                file.seek(page * PAGE_BYTES)
                file.write(b"\xff" * PAGE_BYTES)

    await spool._on_thread(damage)

    with pytest.raises(StorageError, match=r"was damaged .* and was moved aside"):
        await everything(spool)
    assert (spool.rows, spool.size_bytes, spool.oldest_ns) == (0, 0, None)
    assert "starting an empty one" in caplog.text
    await spool.append(3, b"after", cancelled=False)
    assert [one.lease_id for one in await everything(spool)] == [3]
    await spool.close()


async def test_an_acknowledgement_survives_the_file_it_was_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.spool.queue.RECENT_BYTES_MAX", 0)
    path = tmp_path / "spool.db"
    spool = await Spool.open(path)
    await spool.append(1, b"z" * 100_000, cancelled=False)
    await spool.append(2, b"small", cancelled=False)
    (_, second) = await everything(spool)
    spool._read.clear()
    read = spool._file.read

    def damaged(number: int) -> SpoolRecords:
        if number == 1:
            raise spool._file._failure_handled(_damage())
        return read(number)

    spool._file.read = damaged  # type: ignore[method-assign]

    spool.acknowledge([second.seq])
    async with asyncio.timeout(5):
        answers = await asyncio.gather(
            spool.pending(10, 1 << 20),
            spool.flush(),
            spool.append(3, b"after", cancelled=False),
            return_exceptions=True,
        )

    assert isinstance(answers[0], StorageError)
    assert (answers[1], answers[2]) == (None, None)
    spool._file.read = read  # type: ignore[method-assign]
    assert [one.lease_id for one in await everything(spool)] == [3]
    assert (spool.rows, spool.size_bytes) == (1, 5)
    await spool.close()


def _damage() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


async def test_a_file_that_was_damaged_since_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = await Spool.open(path)
    for number in range(1, 4):
        await spool.append(number, b"y" * 50_000, cancelled=False)
    await spool.close()
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xff" * PAGE_BYTES)  # the root page of the table

    again = await Spool.open(path)

    assert again.rows == 0
    await again.append(7, b"after", cancelled=False)
    assert [one.lease_id for one in await everything(again)] == [7]
    assert (tmp_path / "spool.db.aside-1").exists()
    await again.close()


async def test_a_spool_in_use_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    refusal = pytest.raises(StorageError, match=r"^the spool .*spool\.db is in use by another pro")
    with holder(path), refusal:
        await Spool.open(path)
    assert not (tmp_path / "spool.db.aside-1").exists()


async def test_a_place_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.db").mkdir()

    with pytest.raises(StorageError, match=r"^cannot make the spool .*: File exists$"):
        await Spool.open(tmp_path / "file" / "spool.db")
    with pytest.raises(StorageError, match=r"^the spool .* cannot be used: unable to open"):
        await Spool.open(tmp_path / "folder.db")


async def test_its_files_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "spool.db"
    spool = await Spool.open(path)
    await spool.append(1, b"x", cancelled=False)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    await spool.close()

    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}


async def test_close_finishes_what_was_given_and_then_refuses(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    appends = [
        asyncio.ensure_future(spool.append(number, b"x", cancelled=False))  # noqa: TID251
        for number in range(1, 2000)
    ]
    await asyncio.sleep(0)
    await spool.close()
    await spool.close()

    assert all(append.done() and append.exception() is None for append in appends)
    with pytest.raises(StorageError, match="is closed"):
        await spool.append(1, b"x", cancelled=False)
    again = await Spool.open(tmp_path / "spool.db")
    assert again.rows == 1999
    await again.close()


async def test_a_cancelled_caller_harms_nobody_else(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    async with asyncio.TaskGroup() as group:
        impatient = group.create_task(spool.append(1, b"x", cancelled=False))
        group.create_task(spool.append(2, b"x", cancelled=False))
        await asyncio.sleep(0)
        impatient.cancel()
    await spool.append(3, b"x", cancelled=False)

    assert {2, 3} <= {one.lease_id for one in await everything(spool)}
    await spool.close()
