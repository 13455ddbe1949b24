"""The spool's file: full, damaged, somebody else's, in use, or left by a killed process."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netsonde.errors import SpoolFull, StorageError
from netsonde.spool import Spool, SpoolRecords
from netsonde.spool.file import PAGE_BYTES, WAL_LEFT_BYTES
from support.spools import everything, fill


async def test_on_a_full_disk_a_result_takes_the_place_of_what_has_gone(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "spool.db")
    for number in range(8):
        await spool.append(number, b"z" * 50_000, cancelled=False)
    await limit_pages(spool, 0)
    spool.acknowledge([one.seq for one in await everything(spool)])

    await spool.append(9, b"y" * 50_000, cancelled=False)
    assert spool.rows == 1
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
        spool._at_hand.clear()
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
    monkeypatch.setattr("netsonde.spool.at_hand.RECENT_BYTES_MAX", 0)
    path = tmp_path / "spool.db"
    spool = await Spool.open(path)
    await spool.append(1, b"z" * 100_000, cancelled=False)
    await spool.append(2, b"small", cancelled=False)
    (_, second) = await everything(spool)
    spool._at_hand.clear()
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
