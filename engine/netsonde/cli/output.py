"""Standard output of the commands: JSON lines for programs, columns and colour for people.

Everything that is not a result goes to standard error. Text that came from the network is made
harmless before a terminal sees it.
"""

import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import click

from netsonde import wire

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
    click.echo(f"netsonde: {' '.join(printable(line) for line in text.split())}", err=True)


def explain(text: str) -> None:
    """Write a sentence and the lines to paste below it on standard error."""
    first, *rest = text.splitlines() or [""]
    click.echo("\n".join([f"netsonde: {printable(first)}", *map(printable, rest)]), err=True)


class Progress:
    """One line on standard error that is redrawn in place; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._is_wanted = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, text: str) -> None:
        """Draw the line."""
        if self._is_wanted:
            click.echo(f"{ERASE_LINE}{text}", err=True, nl=False, color=True)

    def clear(self) -> None:
        """Erase the line, before something else is written."""
        self.show("")


def coloured(word: str) -> str:
    """Give a word of `COLOURS` its colour; `write_text` removes it where none is wanted."""
    colour = COLOURS.get(word)
    return click.style(word, fg=colour) if colour else word


def printable(text: object) -> str:
    """Replace what could steer a terminal: controls, line breaks and directional overrides."""
    return "".join(
        _escaped(character) if unicodedata.category(character) in _STEERING else character
        for character in str(text)
    )


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns as wide as their widest cell; nothing is cut off."""
    table = [list(headings), *([*row] for row in rows)]
    widths = [max(len(click.unstyle(row[at])) for row in table) for at in range(len(headings))]
    return [
        "  ".join(
            cell + " " * (width - len(click.unstyle(cell)))
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in table
    ]


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table for people."""
    for line in columns(headings, rows):
        write_text(line)


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


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
