"""A TOML file of settings, read so that whoever refuses one can say which line it is on."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from netsonde.errors import ConfigError

FILE_MAX_BYTES = 8 << 20  # a deny list of 100 000 prefixes has 2 MiB

Found = Iterator[tuple[str, str, Any]]  # setting, where it was written, value


def read(path: Path, names: Collection[str]) -> Found:
    """Yield the settings of a file; names are those that there are.

    Raises:
        ConfigError: it cannot be read, is no TOML, or has a setting that there is not.
    """
    text = _text(path)
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for name, value in table.items():
        where = f"{path}{_line_of(name, text)}"
        if name not in names:
            raise ConfigError(f"{where}: there is no setting {name}{_near(name, names)}")
        yield name, where, value


def read_bytes(path: Path, most: int, opened: BinaryIO | None = None) -> bytes:
    """Return what is in a file, or in one that is open already and goes by that name.

    Raises:
        ConfigError: it cannot be read, or has more bytes than that.
    """
    try:
        with path.open("rb") if opened is None else nullcontext(opened) as file:
            body = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(body) > most:
        raise ConfigError(f"{path} has more than {most} bytes")
    return body


def _text(path: Path) -> str:
    try:
        return read_bytes(path, FILE_MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error


def _line_of(name: str, text: str) -> str:
    """Find the line that writes a setting or its table; a TOML parser does not tell."""
    pattern = re.compile(rf"\s*\[?\s*[\"']?{re.escape(name)}[\"']?\s*[\].=]")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.match(line):
            return f", line {number}"
    return ""


def _near(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
