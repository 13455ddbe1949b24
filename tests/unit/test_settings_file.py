"""A file of settings, and what is wrong with one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde import settings_file
from netsonde.errors import ConfigError

NAMES = ("hostname", "labels")


def test_each_setting_comes_with_the_line_it_is_on(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('\n"hostname" = "x"\n[labels]\nhostname = "y"\n')
    assert list(settings_file.read(path, NAMES)) == [
        ("hostname", f"{path}, line 2", "x"),
        ("labels", f"{path}, line 3", {"hostname": "y"}),
    ]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"hostnme = 1", "line 1: there is no setting hostnme; did you mean hostname"),
        (b"zzz = 1", "there is no setting zzz; there are hostname, labels"),
        (b"hostname = ", "is not TOML"),
        (b"\xff", "is not UTF-8"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"#" * (settings_file.FILE_MAX_BYTES + 1), "has more than"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, body: bytes, sentence: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(body)
    with pytest.raises(ConfigError, match=sentence):
        list(settings_file.read(path, NAMES))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        list(settings_file.read(tmp_path, NAMES))


@given(body=st.binary(max_size=200))
def test_any_bytes_are_settings_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(body)
    said = ""
    found: list[tuple[str, str, object]] = []
    try:
        found += settings_file.read(path, NAMES)
    except ConfigError as error:
        said = str(error)
    assert not said or said.startswith(str(path))
    assert {name for name, _, _ in found} <= set(NAMES)
