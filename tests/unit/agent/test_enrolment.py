"""Where an agent's enrolment token comes from."""

import logging
from pathlib import Path

import pytest

from netsonde.agent.config import AgentConfig
from netsonde.agent.enrolment import EnrolmentToken


def reader(path: Path | None, text: str | None = None) -> EnrolmentToken:
    return EnrolmentToken(
        AgentConfig(control_plane="http://one", enrolment_token=text, enrolment_token_file=path)
    )


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "action", None) == "enrolment_token_unreadable"
    ]


def test_without_a_file_it_is_the_setting() -> None:
    assert reader(None).read() is None
    assert reader(None, "net_text").read() == "net_text"


def test_a_new_token_in_the_file_needs_no_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    token = reader(path, "net_text")
    assert token.read() == "net_text", "until the file is there"
    path.write_text("net_first\n")
    assert token.read() == "net_first"
    path.write_text("  net_second")
    assert token.read() == "net_second"
    path.unlink()
    assert token.read() == "net_second", "what is known is gone on with"
    assert len(complaints(caplog)) == 2


@pytest.mark.parametrize(
    "body", [b"", b"\n", b"net_a net_b", b"net_a\nnet_b", b"net_\xe9", b"x" * 5000, b"net_\x00"]
)
def test_what_is_no_token_is_said_once_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    path = tmp_path / "token"
    path.write_bytes(body)
    token = reader(path)
    assert [token.read(), token.read()] == [None, None]
    (said,) = complaints(caplog)
    assert str(path) in said
    assert "must hold one token and nothing else" in said
    assert "net_" not in said
    assert caplog.records[0].levelno == logging.WARNING


def test_a_directory_in_the_files_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert reader(tmp_path).read() is None
    assert "Is a directory" in complaints(caplog)[0]
