"""The state directory: where it is, and that it has one owner."""

import os
from pathlib import Path

import pytest

from netsonde.cli.state import default_state_dir, owned_dir, usable_dir
from netsonde.errors import StorageError


@pytest.mark.parametrize(
    ("uid", "xdg", "expected"),
    [
        (0, "/x", "/var/lib/netsonde"),
        (1000, "/x", "/x/netsonde"),
        (1000, "relative", "/home/u/.local/state/netsonde"),
        (1000, "", "/home/u/.local/state/netsonde"),
    ],
)
def test_the_default(monkeypatch: pytest.MonkeyPatch, uid: int, xdg: str, expected: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/u")
    assert default_state_dir() == Path(expected)


def test_it_is_made_for_its_owner_only(tmp_path: Path) -> None:
    path = usable_dir(tmp_path / "a" / "b")
    assert path.stat().st_mode & 0o777 == 0o700


def test_what_is_no_directory_is_refused_with_the_option(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "x"):
        with pytest.raises(StorageError, match="--state-dir"):
            usable_dir(path)


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(StorageError, match="Permission denied"):
        usable_dir(tmp_path)


def test_a_second_owner_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    with owned_dir(tmp_path), pytest.raises(StorageError, match="in use"), owned_dir(tmp_path):
        os.abort()  # never reached
    with owned_dir(tmp_path) as path:
        assert path == tmp_path
