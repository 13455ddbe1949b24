"""Standard output of the commands: JSON lines for programs, columns and colour for people.

Everything that is not a result goes to standard error. Text that came from the network is made
harmless before a terminal sees it.
"""

import asyncio
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, TextIO

import click

from netsonde import wire

GATHERED_MAX_BYTES = 1 << 16
GAP = "  "  # between columns
FOLDED_MIN = 10  # a narrower column is no easier to read
ERASE_LINE = "\r\x1b[K"  # ECMA-48 EL

_STEERING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # Unicode general categories

COLOURS = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "target_error": "red",
    "agent_error": "magenta",
    "rejected": "yellow",
    "cancelled": "yellow",
}


def has_colour(stream: TextIO) -> bool:
    """Whether colour may be written to stream (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write_line(body: bytes) -> None:
    """Write one JSON value as a line on standard output, at once."""
    sys.stdout.buffer.write(body + b"\n")
    sys.stdout.buffer.flush()


def write_value(value: Any) -> None:
    """Encode value and write it as a line on standard output."""
    write_line(wire.encode(value))


def write_text(text: str) -> None:
    """Write a line for people on standard output, at once."""
    click.echo(text, color=has_colour(sys.stdout))


def warn(text: str) -> None:
    """Write one sentence on standard error."""
    _say(f"netsonde: {' '.join(printable(line) for line in text.split())}")


def explain(text: str) -> None:
    """Write a sentence and the lines to paste below it on standard error."""
    first, *rest = text.splitlines() or [""]
    _say("\n".join([f"netsonde: {printable(first)}", *map(printable, rest)]))


def _say(text: str) -> None:
    with suppress(OSError):  # nobody reads it: that ends no measurement
        click.echo(text, err=True)


class Progress:
    """One line on standard error that is redrawn in place; nothing where that is no terminal."""

    def __init__(self) -> None:
        self.is_wanted = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_drawn = False

    def show(self, text: str) -> None:
        """Draw the line."""
        if self.is_wanted:
            self._is_drawn = True
            try:
                click.echo(f"{ERASE_LINE}{text}", err=True, nl=False, color=True)
            except OSError:
                self.is_wanted = False  # the terminal has gone

    def clear(self) -> None:
        """Erase the line, before something else is written."""
        if self._is_drawn:
            self.show("")
            self._is_drawn = False


class Outlet:
    """Standard output for many lines: gathered, and written once in every turn of the event loop.

    before: called before anything is written. What ends it, such as a reader that has left, is kept
    in `error` and sets `failed`; nothing is taken or written any more then.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self.error: OSError | None = None
        self.failed = asyncio.Event()
        self._before = before
        self._gathered: list[bytes] = []
        self._size = 0

    def write(self, text: str) -> None:
        """Take text, colours as they are to be seen."""
        self.take(text.encode(sys.stdout.encoding, "backslashreplace"))

    def take(self, data: bytes) -> None:
        """Take bytes; only in the event loop."""
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self.flush)
        self._gathered.append(data)
        self._size += len(data)
        if self._size >= GATHERED_MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken."""
        data, self._gathered, self._size = b"".join(self._gathered), [], 0
        if not data or self.error is not None:
            return
        try:
            self._before()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as error:
            self.error = error
            self.failed.set()


def coloured(word: str) -> str:
    """Give a word of `COLOURS` its colour; `write_text` removes it where none is wanted."""
    colour = COLOURS.get(word)
    return click.style(word, fg=colour) if colour else word


def uncoloured(text: str) -> str:
    """Take colours out, for who wants none."""
    return click.unstyle(text)


def printable(text: object) -> str:
    """Replace what could steer a terminal: controls, line breaks and directional overrides."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(
        _escaped(character) if unicodedata.category(character) in _STEERING else character
        for character in plain
    )


def instant(text: object) -> str:
    """Show an instant to the second."""
    return f"{printable(text)[:19].replace('T', ' ')}Z" if text else "never"


def fields_of(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Write an object as rows of name and value, what is nested under dotted names."""
    rows: list[list[str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            rows += fields_of(value, f"{prefix}{name}.")
        else:
            rows.append([printable(f"{prefix}{name}"), _plain(value)])
    return rows


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns as wide as their widest cell; nothing is cut off."""
    table = [list(headings), *([*row] for row in rows)]
    widths = [max(len(click.unstyle(row[at])) for row in table) for at in range(len(headings))]
    return [
        GAP.join(
            cell + " " * (width - len(click.unstyle(cell)))
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in table
    ]


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table for people; on a terminal it is as wide as that at most."""
    if sys.stdout.isatty():
        rows = folded(headings, rows, shutil.get_terminal_size().columns)
    for line in columns(headings, rows):
        write_text(line)


def folded(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[Sequence[str]]:
    """Fold the widest cells onto further rows, so that a table fits; nothing is cut off.

    A column is never narrower than FOLDED_MIN or its heading, so that many columns may be wider.
    """
    table = [headings, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(headings))]
    least = [min(one, max(FOLDED_MIN, len(headings[at]))) for at, one in enumerate(widths)]
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while over > 0:
        at = max(range(len(widths)), key=lambda at: widths[at] - least[at])
        if widths[at] <= least[at]:
            break
        widths[at] -= 1
        over -= 1
    return [line for row in rows for line in _folded_row(row, widths)]


def _folded_row(row: Sequence[str], widths: Sequence[int]) -> list[Sequence[str]]:
    cells = [
        [cell] if len(cell) <= width else textwrap.wrap(cell, width, break_on_hyphens=False)
        for cell, width in zip(row, widths, strict=True)
    ]
    return list(zip_longest(*cells, fillvalue=""))


def write_table_or_json(
    values: Sequence[Mapping[str, Any]],
    as_json: bool,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Write one JSON object per value, or the rows as a table."""
    if not as_json:
        write_table(headings, rows)
        return
    for value in values:
        write_value(value)


def _plain(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    return printable(value if isinstance(value, str) else wire.encode(value).decode())


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
