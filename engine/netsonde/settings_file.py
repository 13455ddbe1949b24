"""A TOML file of settings, read so that whoever refuses one can say which line it is on."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

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


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            body = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(body) > FILE_MAX_BYTES:
        raise ConfigError(f"{path} has more than {FILE_MAX_BYTES} bytes")
    try:
        return body.decode()
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
