"""What people type: durations, numbers, pairs, token files."""

import re
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli.options import (
    DURATION,
    NUMBER,
    SIZE,
    Count,
    Duration,
    Size,
    read_token,
    split_pair,
)
from netsonde.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("500ms", 500),
        ("0.5s", 500),
        ("2", 2000),
        ("0.2", 200),
        ("2s", 2000),
        ("1m", 60_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
        (" 5 s ", 5000),
        ("0", 0),
    ],
)
def test_a_duration_is_milliseconds(text: str, ms: int) -> None:
    assert DURATION.convert(text, None, None) == ms


@pytest.mark.parametrize("text", ["", "x", "-1s", "1w", "1e3", "1.5ms", "0.0001", "1 2", "٣s"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"500ms|milliseconds"):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1KiB", 1 << 10), ("64MiB", 64 << 20), (" 2 GiB", 2 << 30)],
)
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5GiB", "1GB", "1gib", "9" * 16, "٣MiB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size such as 512MiB or 20GiB"):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("-1", -1), ("abc", "abc"), ("1.5", "1.5"), ("9" * 30, "9" * 30)]
)
def test_a_number_that_is_none_goes_on_as_text(text: str, value: object) -> None:
    assert NUMBER.convert(text, None, None) == value


def test_pairs() -> None:
    assert split_pair("--label", "site=ams") == ("site", "ams")
    assert split_pair("--label", "site=") == ("site", "")
    assert split_pair("--header", "Host: a:b", ":") == ("Host", "a:b")
    for text in ("site", "=ams", ""):
        with pytest.raises(ConfigError, match="--label must be NAME=VALUE"):
            split_pair("--label", text)


def test_a_token_file_holds_one_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("net_abc\n")
    assert read_token(path) == "net_abc"
    assert read_token(None) is None


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe", b"x" * 5000])
def test_a_token_file_that_holds_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_token(path)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


@given(st.integers(0, 10**9 - 1))  # nine digits are read
def test_what_is_written_of_a_bound_is_read_as_the_same(value: int) -> None:
    assert DURATION.convert(DURATION.text(value), None, None) == value
    assert SIZE.convert(SIZE.text(value), None, None) == value
    assert Count().convert(Count().text(value), None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (Duration(10, 600_000), "9ms", "must be 10ms to 10m, not 9ms"),
        (Duration(60_000, 86_400_000, is_boundless_at_0=True), "1s", "0 (no bound) or 1m to 1d"),
        (Size(1 << 20, 1 << 30), "2GiB", "must be 1MiB to 1GiB, not 2GiB"),
        (Count(1, 5), "0", "must be 1 to 5, not 0"),
        (Count(1, 5), "-3", "must be 1 to 5, not -3"),
        (Count(1, 5), "1.5", "'1.5' is not a whole number"),
    ],
)
def test_bounds_are_said_with_their_units(
    kind: Duration | Size | Count, text: str, sentence: str
) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(sentence)):
        kind.convert(text, None, None)


def test_0_is_no_bound_where_that_is_said() -> None:
    assert Duration(60_000, 86_400_000, is_boundless_at_0=True).convert("0", None, None) == 0
