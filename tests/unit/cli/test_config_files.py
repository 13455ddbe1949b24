"""The files of `netsonde config`: what is read, what is refused, what is never overwritten."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli import config_files
from netsonde.errors import ConfigError
from support.configs import KEY


def test_values_are_json_or_toml(tmp_path: Path) -> None:
    path = tmp_path / "values"
    for text in ('{"target_starts_per_s": 2}', "target_starts_per_s = 2\n"):
        path.write_text(text)
        assert config_files.read_table(path) == {"target_starts_per_s": 2}


@given(body=st.binary(max_size=100))
def test_any_bytes_are_values_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(body)
    said = ""
    try:
        config_files.read_table(path)
    except ConfigError as error:
        said = str(error)
    assert not said or said.startswith(f"{path} is neither JSON nor TOML")


def test_a_private_key_is_written_once_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "fleet.pem"
    config_files.write_new(path, KEY.pem())
    assert path.stat().st_mode & 0o777 == 0o600
    assert config_files.private_key(path).public.text == KEY.public.text
    with pytest.raises(ConfigError, match="is not overwritten"):
        config_files.write_new(path, b"x")
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        config_files.write_new(tmp_path / "none" / "a.pem", b"x")


def test_a_file_may_be_only_so_large(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b" " * (config_files.KEY_FILE_MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="has more than 16384 bytes"):
        config_files.private_key(path)


def test_a_wrong_ceiling_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ceiling.toml"
    path.write_text("[kinds.png]\n")
    with pytest.raises(ConfigError, match=r"ceiling\.toml: "):
        config_files.read_ceiling_file(path)
