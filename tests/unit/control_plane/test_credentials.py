"""An agent's identity on disk."""

import io
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde.control_plane import credentials
from netsonde.control_plane.credentials import Credentials
from netsonde.errors import StorageError
from netsonde.model import RegisterResponse

KEY = "0123456789abcdef0123456789abcdef"
FULL = Credentials(
    agent_key=KEY,
    control_plane="http://127.0.0.1:8080",
    prefix="/v1",
    is_legacy=True,
    registration=RegisterResponse(
        agent_id=2**64 - 1,
        lease_duration_ms=60_000,
        heartbeat_timeout_ms=45_000,
        auth_token="secret-token",
        limits={"claim": 5},
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "credentials.json"


def test_what_is_saved_is_loaded(path: Path) -> None:
    credentials.save(path, FULL)
    assert credentials.load(path) == FULL

    credentials.save(path, Credentials(agent_key=KEY))
    assert credentials.load(path) == Credentials(agent_key=KEY)
    assert [found.name for found in path.parent.iterdir()] == ["credentials.json"]


def test_nobody_else_can_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        credentials.save(path, FULL)
    finally:
        os.umask(old)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_others_can_read_is_closed_and_reported(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    credentials.save(path, FULL)
    path.chmod(0o644)

    assert credentials.load(path) == FULL

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "mode 644" in caplog.text


def test_an_absent_file_is_no_credentials(path: Path) -> None:
    assert credentials.load(path) is None


def test_keys_are_new_each_time() -> None:
    keys = {credentials.new_credentials().agent_key for _ in range(50)}

    assert len(keys) == 50
    assert {len(key) for key in keys} == {32}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"agent_key":5}',
        b'{"agent_key":"short"}',
        b'{"agent_key":"' + KEY.upper().encode() + b'"}',
        b"\x00" * 400,
        b"\xff",
        b'{"agent_key":"' + KEY.encode() + b'","registration":{"agent_id":"x"}}',
    ],
)
def test_a_damaged_file_is_moved_aside_and_reported(
    path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(body)

    assert credentials.load(path) is None

    aside = path.with_name("credentials.json.damaged-0")
    assert aside.read_bytes() == body
    assert not path.exists()
    assert str(aside) in caplog.text

    path.write_bytes(body)
    assert credentials.load(path) is None
    assert path.with_name("credentials.json.damaged-1").exists()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_torn_anywhere_is_damaged_and_its_token_is_not_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "credentials.json"
    credentials.save(path, FULL)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("netsonde.agent")
    logger.addHandler(handler)
    try:
        assert credentials.load(path) is None
    finally:
        logger.removeHandler(handler)

    assert "damaged" in said.getvalue()
    assert "secret" not in said.getvalue()


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_file(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials.save(path, FULL)

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if step == "write":
            patched.setattr(os, "open", fail)
        elif step == "fsync":
            patched.setattr(os, "fsync", fail)
        else:
            patched.setattr(Path, "replace", fail)
        with pytest.raises(StorageError, match="No space left"):
            credentials.save(path, Credentials(agent_key="f" * 32))

    assert credentials.load(path) == FULL
    credentials.save(path, Credentials(agent_key="f" * 32))  # what it left behind is no obstacle


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    with pytest.raises(StorageError, match=r"file/credentials\.json"):
        credentials.save(blocked / "credentials.json", FULL)
    with pytest.raises(StorageError, match="cannot read"):
        credentials.load(blocked / "credentials.json")


def test_a_link_somebody_left_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    target = tmp_path / "target"
    target.write_text("theirs")
    path.with_name("credentials.json.new").symlink_to(target)

    credentials.save(path, FULL)

    assert target.read_text() == "theirs"


def test_the_token_is_not_in_the_repr() -> None:
    assert "secret" not in repr(FULL)
    assert KEY not in repr(FULL)


def test_another_control_planes_registration_is_dropped_and_the_key_kept() -> None:
    assert credentials.without_registration(FULL) == Credentials(agent_key=KEY)


def test_fields_of_later_versions_are_ignored(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"agent_key": KEY, "later": [1, 2]}))

    assert credentials.load(path) == Credentials(agent_key=KEY)
