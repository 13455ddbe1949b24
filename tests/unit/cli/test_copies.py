"""`netsonde server backup` and `restore` as people see them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netsonde.cli.root import main
from netsonde.server.store import SqliteStore
from netsonde.server.store.writer import run_alone


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["server", *map(str, words)])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    store = SqliteStore.open(tmp_path / "state" / "server.db")
    run_alone(store, lambda store: store.count("x", 1))
    store.close()
    return tmp_path / "state"


def test_backup_and_restore_say_what_they_did(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    done = call("backup", target, "--state-dir", state)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"backed up to {target}: 0.3 MiB, result ids to 0")
    done = call("restore", target, "--state-dir", state)
    assert done.exit_code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"restored {state / 'server.db'}: 0.3 MiB")
    assert second == f"the database that was there is now {state / 'server.db.replaced-1'}"


def test_json_has_the_same(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    backup = json.loads(call("backup", target, "--state-dir", state, "--json").stdout)
    assert backup == {
        "backup": str(target),
        "bytes": target.stat().st_size,
        "last_result_id": 0,
        "clock_at": None,
    }
    restored = json.loads(call("restore", target, "--state-dir", state, "--json").stdout)
    assert restored["aside"] == str(state / "server.db.replaced-1")
    assert restored["database"] == str(state / "server.db")
    assert restored["clock_at"].startswith("20")


def test_refusals_are_one_sentence_and_end_with_3(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    assert call("backup", target, "--state-dir", state).exit_code == 0
    running = SqliteStore.open(state / "server.db")
    for words, sentence in (
        (("backup", target), "copy.db exists; name another file, or replace it with --force"),
        (("restore", tmp_path / "none.db"), "there is no backup at"),
        (("restore", target), "in use by another netsonde server"),
    ):
        done = call(*words, "--state-dir", state)
        assert (done.exit_code, done.stdout) == (3, "")
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
    running.close()
    done = call("backup", tmp_path / "b.db", "--state-dir", tmp_path / "empty")
    assert done.exit_code == 3
    assert "there is no database at" in done.stderr
    assert not (tmp_path / "empty").exists(), "nothing is made to be copied"
    assert call("backup", target, "--force", "--state-dir", state).exit_code == 0


def test_usage_is_2() -> None:
    assert call("backup").exit_code == 2
    assert call("restore").exit_code == 2


def test_the_state_directory_is_where_the_servers_variable_says(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSONDE_SERVER_STATE_DIR", str(state))
    assert call("backup", tmp_path / "copy.db").exit_code == 0
    assert call("restore", tmp_path / "copy.db").exit_code == 0
    assert (state / "server.db.replaced-1").exists()
