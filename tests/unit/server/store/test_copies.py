"""Copies of a database: whole, as of their beginning, and with ids that never come again."""

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import StorageError
from netsonde.model import TaskKind
from netsonde.server.leasing import LeaseIds
from netsonde.server.store import SqliteStore, Store, copies
from netsonde.server.store.copies import back_up, restore
from netsonde.server.store.results import NewResult, ResultQuery
from netsonde.server.store.writer import run_alone
from support.stores import Caller, control_plane, new_task

NOW_NS = 1_790_000_000 * NS_PER_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "server.db"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup.db"


def unwatched(_done: int, _all: int) -> None:
    """Look at no progress."""


def result(lease_id: int, **changes: Any) -> NewResult:
    fields: dict[str, Any] = {
        "lease_id": lease_id,
        "task_id": lease_id,
        "agent_id": 1,
        "kind": TaskKind.TCP,
        "outcome": "ok",
        "attempt": 1,
        "received_ns": lease_id,
        "is_final": True,
        "spec_id": 1,
        "body": random.Random(lease_id).randbytes(2_000),  # which compression leaves alone
    }
    return NewResult(**(fields | changes))


def add(store: Store, first: int, count: int) -> None:
    """Add a task and results in one transaction: a copy has both or neither."""

    def operation(store: Store) -> None:
        store.add_tasks([new_task()])
        store.add_results([result(first + number) for number in range(count)])
        store.count("added", count)

    run_alone(store, operation)


def leases(path: Path) -> list[int]:
    store = SqliteStore.open(path)
    rows = [row.lease_id for row in store.results(ResultQuery(limit=100_000))]
    assert store.counters()["added"] == len(rows), "half a transaction"
    store.close()
    return rows


def test_a_copy_under_load_has_all_that_was_there_and_nothing_by_halves(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "STEP_PAGES", 16)
    store = SqliteStore.open(path)
    add(store, 1, 500)
    written = [500]
    seen: list[tuple[int, int]] = []

    def write_more(done: int, all_pages: int) -> None:
        seen.append((done, all_pages))
        add(store, written[0] + 1, 7)
        written[0] += 7

    copy = back_up(path, target, write_more)
    store.close()
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == seen[0][1], "it does not begin anew"
    assert (copy.last_result_id, copy.size_bytes) == (500, target.stat().st_size)
    assert [one.name for one in target.parent.iterdir() if "backup" in one.name] == ["backup.db"]
    assert target.stat().st_mode & 0o777 == 0o600, "tokens are in it"
    assert leases(target) == list(range(1, 501))


def test_a_copy_is_one_file_and_as_good_as_the_database(path: Path, target: Path) -> None:
    store = SqliteStore.open(path)
    add(store, 1, 3)
    back_up(path, target, unwatched)  # what is still in the journal only
    assert leases(target) == [1, 2, 3]
    store.close()
    back_up(path, target, unwatched, may_replace=True)  # without a server
    assert leases(target) == [1, 2, 3]


def test_a_target_that_exists_is_replaced_only_when_told_to(path: Path, target: Path) -> None:
    SqliteStore.open(path).close()
    target.write_text("dear to somebody")
    with pytest.raises(StorageError, match=r"backup\.db exists; .*--force"):
        back_up(path, target, unwatched)
    assert target.read_text() == "dear to somebody"
    back_up(path, target, unwatched, may_replace=True)
    SqliteStore.open(target).close()


@pytest.mark.parametrize("may_replace", [False, True])
def test_bad_targets_are_named(path: Path, tmp_path: Path, may_replace: bool) -> None:
    SqliteStore.open(path).close()
    for bad, sentence in (
        (path, "is the database itself"),
        (tmp_path, "is a directory; name a file in it"),
        (tmp_path / "none" / "b.db", "cannot be written: No such file or directory"),
    ):
        with pytest.raises(StorageError, match=sentence):
            back_up(path, bad, unwatched, may_replace=may_replace)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["state"]


def test_what_is_no_database_of_ours_is_not_copied(path: Path, target: Path) -> None:
    with pytest.raises(StorageError, match="there is no database at"):
        back_up(path, target, unwatched)
    path.write_text("a letter")
    with pytest.raises(StorageError, match="not a netsonde database"):
        back_up(path, target, unwatched)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StorageError, match="another program's database"):
        back_up(path, target, unwatched)
    assert not target.exists()


def test_a_damaged_database_gives_no_copy_and_keeps_the_last_one(path: Path, target: Path) -> None:
    store = SqliteStore.open(path)
    add(store, 1, 500)
    store.close()
    back_up(path, target, unwatched)
    before = target.read_bytes()
    body = bytearray(path.read_bytes())
    body[40_960:-40_960] = b"\xff" * (len(body) - 81_920)
    path.write_bytes(body)
    with pytest.raises(StorageError, match="damaged"):
        back_up(path, target, unwatched, may_replace=True)
    assert target.read_bytes() == before
    assert [one.name for one in target.parent.iterdir()] != [], "and nothing is left over"
    assert not [one for one in target.parent.iterdir() if "partial" in one.name]


def test_one_who_gives_up_leaves_nothing(path: Path, target: Path) -> None:
    store = SqliteStore.open(path)
    add(store, 1, 50)
    store.close()

    def interrupt(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(path, target, interrupt)
    assert [one.name for one in target.parent.iterdir()] == ["state"]


def test_a_restore_is_refused_while_a_server_runs(path: Path, target: Path) -> None:
    store = SqliteStore.open(path)
    back_up(path, target, unwatched)
    with pytest.raises(StorageError, match="is in use by another netsonde server"):
        restore(target, path, NOW_NS, unwatched)
    store.close()
    assert restore(target, path, NOW_NS, unwatched).aside is not None


def test_what_was_there_is_kept_aside_with_its_journal(path: Path, target: Path) -> None:
    store = SqliteStore.open(path)
    add(store, 1, 3)
    back_up(path, target, unwatched)
    add(store, 4, 3)
    reader = store.reader()  # as long as it is open the journal stays
    store.close()
    done = restore(target, path, NOW_NS, unwatched)
    reader.close()
    again = restore(target, path, NOW_NS, unwatched)
    assert leases(path) == [1, 2, 3]
    assert done.aside is not None
    assert again.aside is not None
    assert done.aside.name == "server.db.replaced-1"
    assert again.aside.name == "server.db.replaced-2"
    assert leases(done.aside) == [1, 2, 3, 4, 5, 6]


def test_a_database_that_is_past_reading_is_replaced_and_kept(path: Path, target: Path) -> None:
    store = SqliteStore.open(path)
    add(store, 1, 3)
    back_up(path, target, unwatched)
    store.close()
    path.write_bytes(b"\xff" * 5_000)
    Path(f"{path}-wal").write_bytes(b"not for the new one")
    done = restore(target, path, NOW_NS, unwatched)
    assert leases(path) == [1, 2, 3]
    assert done.aside is not None
    assert done.aside.read_bytes() == b"\xff" * 5_000
    assert Path(f"{done.aside}-wal").read_bytes() == b"not for the new one"


def test_a_bad_backup_changes_nothing(path: Path, target: Path) -> None:
    store = SqliteStore.open(path)
    add(store, 1, 400)
    back_up(path, target, unwatched)
    store.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="there is no backup at"):
        restore(target.with_name("none.db"), path, NOW_NS, unwatched)
    body = bytearray(target.read_bytes())
    body[40_960:-40_960] = b"\xff" * (len(body) - 81_920)
    target.write_bytes(body)
    with pytest.raises(StorageError, match="damaged"):
        restore(target, path, NOW_NS, unwatched)
    with pytest.raises(StorageError, match="is the database itself"):
        restore(path, path, NOW_NS, unwatched)
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["server.db", "server.db.lock"]


# ── the fence ──


async def grown(path: Path, clock: ManualClock, tasks: int) -> tuple[Caller, SqliteStore]:
    store = SqliteStore.open(path)
    caller = Caller(control_plane(store, clock), clock)
    agent = await caller.register()
    await caller.tasks(tasks)
    await agent.report(*[lease["lease_id"] for lease in await agent.claim(tasks)])
    return caller, store


async def test_nothing_handed_out_since_comes_again(path: Path, target: Path) -> None:
    clock = ManualClock(realtime_ns=NOW_NS)
    caller, store = await grown(path, clock, 3)
    back_up(path, target, unwatched)
    other = await caller.register(agent_key="other" * 8)
    await caller.tasks(5)
    later = [lease["lease_id"] for lease in await other.claim(5)]
    await other.report(*later[:4])
    check = (await caller.operator("POST", "/v1/checks", {"kind": "tcp", "targets": ["h:1"]}))[1]
    last = store.last_lease_id()
    store.close()
    restore(target, path, NOW_NS, unwatched)
    caller, store = await reopened(path, clock)
    agent = await caller.register()
    (new_task_id,) = await caller.tasks(1)
    (lease,) = await agent.claim(1)
    assert new_task_id == 10, "3 and 5 and the check's have been"
    assert lease["lease_id"] > last
    assert (await agent.report(*later, lease["lease_id"])) == ["fenced"] * 5 + ["accepted"]
    made = (await caller.operator("POST", "/v1/checks", {"kind": "tcp", "targets": ["h:1"]}))[1]
    assert made["check_id"] == check["check_id"] + 1
    assert (await caller.register(agent_key="new" * 8)).agent_id == other.agent_id + 1
    rows = store.results(ResultQuery(limit=9))
    assert [row.result_id for row in rows] == [1, 2, 3, 8], "cursors stay in their places"
    store.close()


@pytest.mark.parametrize("is_lost", [False, True])
async def test_the_audit_log_goes_on_after_what_was_in_it(
    path: Path, target: Path, is_lost: bool
) -> None:
    clock = ManualClock(realtime_ns=NOW_NS)
    caller, store = await grown(path, clock, 1)
    back_up(path, target, unwatched)
    await caller.tasks(1)
    await caller.tasks(1)
    (last, *_) = await audited(caller)
    store.close()
    place = path.with_name("elsewhere.db") if is_lost else path
    restore(target, place, NOW_NS, unwatched)
    caller, store = await reopened(place, clock)
    (kept,) = await audited(caller)
    await caller.tasks(1)
    (new, _) = await audited(caller)
    assert (kept, last) == (1, 3)
    assert new == (2 + copies.JUMP if is_lost else last + 1)
    store.close()


async def audited(caller: Caller) -> list[int]:
    """Return the ids of the calls in the audit log, the newest first."""
    _, answer, _ = await caller.operator("GET", "/v1/audit")
    return [call["audit_id"] for call in answer["calls"]]


async def reopened(path: Path, clock: ManualClock) -> tuple[Caller, SqliteStore]:
    store = SqliteStore.open(path)
    return Caller(control_plane(store, clock), clock), store


async def test_without_the_database_that_was_ids_jump(path: Path, target: Path) -> None:
    clock = ManualClock(realtime_ns=NOW_NS)
    caller, store = await grown(path, clock, 3)
    back_up(path, target, unwatched)
    await caller.tasks(5)
    store.close()
    for state in ("lost", "another"):
        elsewhere = path.with_name(f"{state}.db")
        if state == "another":
            (await grown(elsewhere, clock, 30))[1].close()
        assert (restore(target, elsewhere, NOW_NS, unwatched).aside is None) == (state == "lost")
        caller, store = await reopened(elsewhere, clock)
        agent = await caller.register()
        (task_id,) = await caller.tasks(1)
        (lease,) = await agent.claim(1)
        await agent.report(lease["lease_id"])
        assert task_id == 4 + copies.JUMPS["next_task"]
        rows = store.results(ResultQuery(limit=9))
        assert rows[-1].result_id == 4 + copies.JUMPS["result"]
        fresh = await caller.register(agent_key="fresh" * 8)
        assert fresh.agent_id == agent.agent_id + 1 + copies.JUMP
        store.close()


def test_an_older_copy_of_the_same_database_does_not_tell_what_was_handed_out(
    path: Path, target: Path
) -> None:
    store = SqliteStore.open(path)
    back_up(path, target.with_name("older.db"), unwatched)
    run_alone(store, lambda store: store.keep_clock(NOW_NS, 5))
    add(store, 1, 1)
    back_up(path, target, unwatched)
    store.close()
    path.write_bytes(target.with_name("older.db").read_bytes())
    restore(target, path, NOW_NS, unwatched)
    store = SqliteStore.open(path)
    assert run_alone(store, lambda store: store.add_tasks([new_task()]))[0] > 1 << 32
    store.close()


@pytest.mark.parametrize("ahead_s", [-3_600, 0, 3_600])
def test_clock_and_lease_ids_never_go_back(path: Path, target: Path, ahead_s: int) -> None:
    store = SqliteStore.open(path)
    at_ns = NOW_NS + ahead_s * NS_PER_S  # what the server's clock said last, by this host's
    run_alone(store, lambda store: store.keep_clock(at_ns, LeaseIds.first_of(at_ns) + 77))
    back_up(path, target, unwatched)
    run_alone(store, lambda store: store.keep_clock(at_ns + 9, LeaseIds.first_of(at_ns) + 99))
    store.close()
    restore(target, path, NOW_NS, unwatched)
    store = SqliteStore.open(path)
    assert store.clock_ns() == max(NOW_NS, at_ns + 9)
    assert store.last_lease_id() >= LeaseIds.first_of(max(NOW_NS, at_ns) + NS_PER_S)
    store.close()
