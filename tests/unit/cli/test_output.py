"""Standard output: columns, colour, and text that came from the network."""

import asyncio
import io
import unicodedata

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.cli.output import (
    FOLDED_MIN,
    GAP,
    GATHERED_MAX_BYTES,
    Outlet,
    Progress,
    columns,
    explain,
    folded,
    has_colour,
    printable,
    warn,
)


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


class Reader:
    """Standard output to somebody who leaves when `is_gone`."""

    encoding = "ascii"

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_gone = False
        self.buffer = self

    def write(self, data: bytes) -> None:
        if self.is_gone:
            raise BrokenPipeError(32, "Broken pipe")
        self.writes.append(data)

    def flush(self) -> None:
        """Nothing is kept."""


async def test_lines_of_one_turn_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, cleared = Reader(), []
    monkeypatch.setattr("sys.stdout", reader)
    outlet = Outlet(lambda: cleared.append(True))
    for text in ("a\n", "\u00e9\n"):
        outlet.write(text)
    outlet.take(b"c\n")
    assert reader.writes == []
    await asyncio.sleep(0)
    assert reader.writes == [b"a\n\\xe9\nc\n"]
    assert cleared == [True]
    await asyncio.sleep(0)
    assert len(reader.writes) == 1


async def test_what_is_gathered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    monkeypatch.setattr("sys.stdout", reader)
    outlet = Outlet(lambda: None)
    for _ in range(3):
        outlet.take(b"x" * GATHERED_MAX_BYTES)
    assert [len(data) for data in reader.writes] == [GATHERED_MAX_BYTES] * 3


async def test_a_reader_that_left_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    monkeypatch.setattr("sys.stdout", reader)
    outlet = Outlet(lambda: None)
    reader.is_gone = True
    outlet.write("lost\n")
    outlet.flush()
    assert isinstance(outlet.error, BrokenPipeError)
    assert outlet.failed.is_set()
    reader.is_gone = False
    outlet.write("never written\n")
    outlet.flush()
    assert reader.writes == []


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_nobody_who_reads_standard_error_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Broken())
    warn("a sentence")
    explain("a sentence\nand a line")
    progress = Progress()
    progress.show("measuring")
    progress.clear()
    assert not progress.is_wanted


def test_a_table_that_is_too_wide_is_folded_and_nothing_is_lost() -> None:
    headings = ("ID", "NAME", "WHY")
    why = "the agent that had it was lost"
    rows = folded(headings, [("1", "a" * 15, why), ("2", "b", "c")], 30)
    lines = columns(headings, rows)
    assert max(map(len, lines)) <= 30
    assert " ".join(row[2] for row in rows[:-1]).split() == why.split()
    assert rows[-1] == ("2", "b", "c")


@given(st.lists(st.tuples(*[st.text("ab ", max_size=40)] * 3), max_size=5), st.integers(1, 200))
def test_folding_keeps_every_letter(rows: list[tuple[str, ...]], width: int) -> None:
    made = folded(("A", "B", "C"), rows, width)
    for at in range(3):
        before = "".join("".join(row[at].split()) for row in rows)
        assert "".join("".join(row[at].split()) for row in made) == before
    least = 3 * FOLDED_MIN + 2 * len(GAP)
    assert all(len(line) <= max(width, least) for line in columns(("A", "B", "C"), made))
