"""Standard output: columns, colour, and text that came from the network."""

import io
import unicodedata

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli.output import Progress, columns, has_colour, printable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colour(Terminal())
    assert not has_colour(io.StringIO())


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not has_colour(Terminal())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ümlaut 漢", "plain ümlaut 漢"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202edef", "abc\\u202edef"),
        (7, "7"),
    ],
)
def test_printable_disarms_what_steers_a_terminal(text: object, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_leaves_one_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(character).startswith("C") for character in shown)


def test_progress_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, drawn in ((Terminal(), "\r\x1b[Kmeasuring\r\x1b[K"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        progress = Progress()
        progress.show("measuring")
        progress.clear()
        assert stream.getvalue() == drawn


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [["1", click.style("ok", fg="green"), "x"], ["100", "target_error", ""]]
    assert [click.unstyle(line) for line in columns(["ID", "OUTCOME", "T"], rows)] == [
        "ID   OUTCOME       T",
        "1    ok            x",
        "100  target_error",
    ]
