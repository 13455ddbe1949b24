"""What only the SQLite store has: durability, ownership, and files that are not fit for use."""

import sqlite3
from pathlib import Path

import pytest

from netsonde.errors import ErrorCode, RequestError, StorageError
from netsonde.model import TaskKind
from netsonde.server.store import SqliteStore, sqlite, statements
from netsonde.server.store.tasks import ANY_QUEUE, Grant
from netsonde.server.store.writer import run_alone
from support.stores import new_task

GRANT = Grant(agent_id=1, claim_key=0, first_lease_id=500, now_ns=10, until_ns=20, due_ns=30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.db"


def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    store = SqliteStore.open(path)
    store.begin()
    store.add_tasks([new_task(), new_task()])
    store.take(ANY_QUEUE, TaskKind.TCP, 1, GRANT)
    store.keep_clock(77, 500)
    store.commit()
    store.begin()
    store.add_tasks([new_task()])
    store.close()  # as a crash would: the second transaction never ended
    again = SqliteStore.open(path)
    assert (again.clock_ns(), again.last_lease_id()) == (77, 500)
    assert [task.task_id for task in again.held_by(1)] == [1]
    assert again.depths(100)[0].ready == 1
    again.close()


def test_a_transaction_that_changes_nothing_writes_nothing(path: Path) -> None:
    store = SqliteStore.open(path)
    store.follow(lambda: (77, 500))
    journal = path.with_name("server.db-wal")
    before = journal.stat().st_size
    assert run_alone(store, lambda store: store.take(ANY_QUEUE, TaskKind.TCP, 1, GRANT)) == []
    assert (store.clock_ns(), journal.stat().st_size) == (0, before)
    run_alone(store, lambda store: store.count("writes", 1))
    store.close()
    again = SqliteStore.open(path)
    assert (again.clock_ns(), again.last_lease_id()) == (77, 500)
    again.close()


def test_every_commit_reaches_the_disk(path: Path) -> None:
    store = SqliteStore.open(path)
    assert store.select("PRAGMA synchronous", ()).fetchone()[0] == 2
    assert store.select("PRAGMA journal_mode", ()).fetchone()[0] == "wal"
    store.close()


def test_a_rolled_back_spec_is_not_remembered(path: Path) -> None:
    store = SqliteStore.open(path)
    store.begin()
    store.add_tasks([new_task()])
    store.rollback()
    store.begin()
    store.add_tasks([new_task()])
    store.commit()
    (task,) = store.take(ANY_QUEUE, TaskKind.TCP, 1, GRANT)
    assert task.spec == new_task().spec
    store.close()


def test_undo_takes_back_one_operation_of_a_group(path: Path) -> None:
    store = SqliteStore.open(path)
    store.begin()
    store.savepoint()
    store.count("kept", 1)
    store.savepoint()
    store.count("lost", 1)
    store.undo()
    store.commit()
    assert store.counters() == {"kept": 1}
    store.close()


def test_a_second_server_is_kept_out(path: Path) -> None:
    store = SqliteStore.open(path)
    with pytest.raises(StorageError, match=r"server\.db is in use by another netsonde server"):
        SqliteStore.open(path)
    store.close()
    SqliteStore.open(path).close()


def test_a_database_locked_by_another_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsonde.server.store.sqlite.BUSY_TIMEOUT_S", 0.01)
    SqliteStore.open(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="is locked by another process"):
        SqliteStore.open(path)
    other.execute("ROLLBACK")
    other.close()
    SqliteStore.open(path).close()


def test_a_lock_met_later_is_a_503(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsonde.server.store.sqlite.BUSY_TIMEOUT_S", 0.01)
    store = SqliteStore.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RequestError, match="locked") as caught:
        run_alone(store, lambda store: store.count("x", 1))
    assert caught.value.code is ErrorCode.UNAVAILABLE
    other.execute("ROLLBACK")
    other.close()
    run_alone(store, lambda store: store.count("x", 1))
    assert store.counters() == {"x": 1}
    store.close()


def test_a_full_disk_is_a_507_and_loses_nothing(path: Path) -> None:
    store = SqliteStore.open(path)
    run_alone(store, lambda store: store.count("x", 1))
    pages = store.select("PRAGMA page_count", ()).fetchone()[0]
    store.select(f"PRAGMA max_page_count = {pages}", ())
    spec = b'"' + b"x" * 100_000 + b'"'
    with pytest.raises(RequestError) as caught:
        run_alone(store, lambda store: store.add_tasks([new_task(spec=spec)]))
    assert caught.value.code is ErrorCode.STORAGE_FULL
    store.select("PRAGMA max_page_count = 1000000", ())
    assert len(run_alone(store, lambda store: store.add_tasks([new_task(spec=spec)]))) == 1
    assert store.counters() == {"x": 1}
    store.close()


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_text("my diary\n" * 100)
    with pytest.raises(StorageError, match="is not a netsonde database"):
        SqliteStore.open(path)
    assert path.read_text() == "my diary\n" * 100


def test_another_programs_database_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE diary (day)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="is another program's database"):
        SqliteStore.open(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    SqliteStore.open(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StorageError, match="schema version 99"):
        SqliteStore.open(path)


def with_step(monkeypatch: pytest.MonkeyPatch, script: str) -> int:
    """Let the schema have a version more than it has; return that version."""
    steps = statements.schema()
    newest = max(steps) + 1
    monkeypatch.setattr(sqlite, "schema", lambda: {**steps, newest: script})
    return newest


def test_an_earlier_schema_gets_what_it_lacks_and_keeps_what_it_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore.open(path)
    run_alone(store, lambda store: store.add_tasks([new_task()] * 3))
    store.close()
    newest = with_step(
        monkeypatch, "CREATE TABLE news (what);\nCREATE INDEX news_what ON news (what)"
    )
    store = SqliteStore.open(path)
    assert [depth.ready for depth in store.depths(2)] == [3]
    store.close()
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM news").fetchone() == (0,)
    assert other.execute("PRAGMA user_version").fetchone() == (newest,)
    other.close()
    SqliteStore.open(path).close()


def test_a_step_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteStore.open(path).close()
    with monkeypatch.context() as patched:
        with_step(patched, "CREATE TABLE news (what);\nCREATE TABLE task (again)")
        with pytest.raises(StorageError, match=r"server\.db cannot be used: table task"):
            SqliteStore.open(path)
    SqliteStore.open(path).close()
    other = sqlite3.connect(path)
    tables = {name for (name,) in other.execute("SELECT name FROM sqlite_master")}
    assert "news" not in tables
    other.close()


def test_a_damaged_database_is_refused(path: Path) -> None:
    store = SqliteStore.open(path)
    for number in range(200):
        run_alone(store, lambda store, n=number: store.add_tasks([new_task(spec=b"%d" % n)] * 9))  # type: ignore[misc]
    store.close()
    body = bytearray(path.read_bytes())
    body[8192:-4096] = b"\xff" * (len(body) - 12288)
    path.write_bytes(body)
    with pytest.raises(StorageError, match="is damaged"):
        SqliteStore.open(path)
    assert path.read_bytes() == body, "what may still be rescued is left alone"


def test_a_truncated_database_is_refused(path: Path) -> None:
    SqliteStore.open(path).close()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StorageError, match=r"server\.db is damaged"):
        SqliteStore.open(path)


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StorageError, match=r"file/server\.db cannot be used"):
        SqliteStore.open(blocker / "server.db")


def test_a_directory_in_the_files_place(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        SqliteStore.open(path)


def test_a_refusal_frees_the_lock(path: Path) -> None:
    path.write_text("my diary")
    with pytest.raises(StorageError):
        SqliteStore.open(path)
    path.unlink()
    SqliteStore.open(path).close()


def test_the_reader_sees_commits_only(path: Path) -> None:
    store = SqliteStore.open(path)
    reader = store.reader()
    store.begin()
    store.count("x", 1)
    assert reader.counters() == {}
    store.commit()
    assert reader.counters() == {"x": 1}
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.count("x", 1)
    reader.close()
    store.close()


def test_hot_statements_use_their_indexes(path: Path) -> None:
    store = SqliteStore.open(path)
    plans = {
        "by_lease": (("[1]",), "task_lease"),
        "result_owners": (("[1]",), "result_lease"),
        "have_run": (("[[1,1]]",), "result_tick"),
        "standing_of_check": ((1,), "task_check"),
        "standing_leases": (("[1]",), "INTEGER PRIMARY KEY"),
        "follow_standing": ((1, 2, 3), "standing_lease_task"),
        "add_standing": ((1, 2), "task_lease"),
        "end_standing": (("[1]", 1), "standing_lease_task"),
        "due": ((1, 1), "task_due"),
        "held_by": ((1,), "task_holder"),
        "granted_under": ((1, 1), "task_holder"),
        "live_of_check": ((1, 1), "task_check"),
        "is_sweep_due": ((1, 1), "task_stale"),
        "next_tick": ((), "probe_check_next"),
    }
    for name, (parameters, index) in plans.items():
        explained = "EXPLAIN QUERY PLAN " + store._queries[name]
        plan = " ".join(row[3] for row in store.select(explained, parameters).fetchall())
        assert index in plan, (name, plan)
        assert "SCAN task" not in plan, (name, plan)
    store.close()
