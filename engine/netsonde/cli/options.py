"""Options that several commands share, and the types of what people type."""

import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from netsonde.cli.tls import operator_tls_options
from netsonde.errors import ConfigError
from netsonde.pacing import RATE_MAX_PPS, RATE_MIN_PPS

F = TypeVar("F", bound=Callable[..., Any])

OTHER_OPTIONS = "Other"
OPERATOR_URL = "http://127.0.0.1:8090"  # where `server run` and `up` listen for operators
OPERATOR_TOKEN_VARIABLE = "NETSONDE_OPERATOR_TOKEN"  # noqa: S105 (a name, not a token)
TOKEN_MAX_BYTES = 4096  # a token file that is longer is not one

_UNIT_MS = {"ms": 1, "": 1000, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNIT_BITS = {"": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}


class Bounded(click.ParamType[int]):
    """A whole number of some unit, from low to high where they are given; 0 may be no bound."""

    def __init__(self, low: int = 0, high: int | None = None, *, is_boundless_at_0: bool = False):
        self._low = low
        self._high = high
        self._is_boundless_at_0 = is_boundless_at_0

    @property
    def range(self) -> str:
        """What is allowed, as people write it; empty where anything is."""
        if self._high is None:
            return ""
        least, most = self.text(self._low), self.text(self._high)
        return f"{'0 (no bound) or ' if self._is_boundless_at_0 else ''}{least} to {most}"

    def text(self, value: int) -> str:
        """Write a value as people do, with its unit."""
        return str(value)

    def bounded(
        self, value: int, text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return value when it is within the bounds."""
        is_boundless = self._is_boundless_at_0 and value == 0
        if self._high is not None and not is_boundless and not self._low <= value <= self._high:
            self.fail(f"must be {self.range}, not {text}", param, ctx)
        return value


class Duration(Bounded):
    """A duration in whole milliseconds: 500ms, 2s, 1m, 1h, 1d; a bare number is seconds."""

    name = "duration"

    def text(self, value: int) -> str:
        """Write milliseconds in the largest unit that has no fraction."""
        for unit in ("d", "h", "m", "s"):
            if value and value % _UNIT_MS[unit] == 0:
                return f"{value // _UNIT_MS[unit]}{unit}"
        return f"{value}ms" if value else "0"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return milliseconds."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d|)", value.strip())
        if match is None:
            self.fail(f"{value!r} is not a duration such as 500ms, 2s or 1m", param, ctx)
        exact = float(match[1]) * _UNIT_MS[match[2]]
        if abs(exact - round(exact)) > 1e-6:
            self.fail(f"{value!r} is not a whole number of milliseconds", param, ctx)
        return self.bounded(round(exact), value.strip(), param, ctx)


class Size(Bounded):
    """A size in bytes: 512MiB, 20GiB, 2TiB; a bare number is bytes."""

    name = "size"

    def text(self, value: int) -> str:
        """Write bytes in the largest unit that has no fraction."""
        for unit, bits in reversed(_UNIT_BITS.items()):
            if value and value % (1 << bits) == 0:
                return f"{value >> bits}{unit}"
        return str(value)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,15}) ?(|[KMGT]iB)", value.strip())
        if match is None:
            self.fail(f"{value!r} is not a size such as 512MiB or 20GiB", param, ctx)
        size = int(match[1]) << _UNIT_BITS[match[2]]
        return self.bounded(size, value.strip(), param, ctx)


class Count(Bounded):
    """A whole number."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        if re.fullmatch(r"-?[0-9]{1,18}", value.strip()) is None:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return self.bounded(int(value), value.strip(), param, ctx)


class Listed(click.types.StringParamType):
    """Texts of an option that repeats; a variable has them with commas between."""

    envvar_list_splitter = ","


class Number(click.ParamType[Any]):
    """A whole number; anything else goes on as it is, so that the refusal names the range."""

    name = "n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the number, or the text for the spec's own check to refuse."""
        text = str(value)
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


class Real(click.ParamType[Any]):
    """A number; anything else goes on as it is, so that the refusal names the range."""

    name = "n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Return the number, or the text for the spec's own check to refuse."""
        text = str(value)
        return float(text) if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text) else text


class Rate(click.ParamType[float]):
    """Packets per second."""

    name = "pps"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return packets per second."""
        try:
            rate_pps = float(value)
        except ValueError:
            rate_pps = math.nan
        if not RATE_MIN_PPS <= rate_pps <= RATE_MAX_PPS:
            self.fail(
                f"{value!r} is not a number of packets a second from {RATE_MIN_PPS:f} to"
                f" {RATE_MAX_PPS}",
                param,
                ctx,
            )
        return rate_pps


class Sectioned(click.Command):
    """A command whose help has its options under headings.

    sections: the names of parameters by heading; those in none stand last.
    """

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **attrs: Any
    ) -> None:
        super().__init__(*args, **attrs)
        self._sections = sections or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        headings = {name: heading for heading, names in self._sections.items() for name in names}
        for heading in (*self._sections, OTHER_OPTIONS):
            of_it = [each for each in options if headings.get(each.name, OTHER_OPTIONS) == heading]
            self._write(ctx, formatter, heading, of_it)

    @staticmethod
    def _write(
        ctx: click.Context,
        formatter: click.HelpFormatter,
        heading: str,
        options: Sequence[click.Option],
    ) -> None:
        records = [record for each in options if (record := each.get_help_record(ctx)) is not None]
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)


class Listing(click.Command):
    """A command that lists; that it is said, as in `netsonde queues list`, changes nothing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options."""
        return super().parse_args(ctx, args[1:] if args[:1] == ["list"] else args)


DURATION = Duration()
LISTED = Listed()
SIZE = Size()
NUMBER = Number()
REAL = Real()
RATE = Rate()


def examples(*lines: str) -> str:
    """Return what ends the help of a command that talks to a control plane."""
    shown = "\n".join(f"  {line}" for line in lines)
    return f"""\b
Examples:
{shown}

\b
Exit codes:
  0    done
  2    what was asked for makes no sense, or there is no such thing
  3    the control plane cannot be reached, or refuses
  130  interrupted, 141 nobody reads standard output any more
"""


def json_options(command: F) -> F:
    """Add --json and --ndjson: the same, one JSON object per line."""
    return click.option(
        "--json",
        "--ndjson",
        "as_json",
        is_flag=True,
        help="Print one JSON object per line, nothing else.",
    )(command)


def family_options(command: F) -> F:
    """Add -4 and -6."""
    command = click.option("-4", "family", flag_value=4, type=int, help="IPv4 only.")(command)
    return click.option("-6", "family", flag_value=6, type=int, help="IPv6 only.")(command)


def operator_options(command: F) -> F:
    """Add where the operator API is, the token for it and the certificates to reach it with."""
    command = operator_tls_options(command)
    command = click.option(
        "--server",
        "server_url",
        metavar="URL",
        default=OPERATOR_URL,
        envvar="NETSONDE_OPERATOR_URL",
        show_default=True,
        show_envvar=True,
        help="The control plane's operator API.",
    )(command)
    return click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="NETSONDE_OPERATOR_TOKEN_FILE",
        show_envvar=True,
        help=f"File that holds the operator token; else {OPERATOR_TOKEN_VARIABLE} is the token.",
    )(command)


def yes_option(command: F) -> F:
    """Add --yes, for what cannot be undone."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def is_asked() -> bool:
    """Whether there is somebody who can answer a question."""
    return sys.stdin.isatty()


def confirm(what: str, yes: bool) -> None:
    """Ask whether to do what cannot be undone, unless --yes has said so.

    Raises:
        UsageError: there is nobody to ask.
        Abort: the answer is no.
    """
    if yes:
        return
    if not is_asked():
        raise click.UsageError(f"{what}: say so with --yes")
    click.confirm(f"{what}?", abort=True, err=True)


def read_token(path: Path | None) -> str | None:
    """Read the token in a file, where one is named.

    Raises:
        ConfigError: the file cannot be read or holds no token.
    """
    if path is None:
        return None
    try:
        text = path.read_bytes()[: TOKEN_MAX_BYTES + 1].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path} cannot be read: {error}") from error
    if not text or len(text) > TOKEN_MAX_BYTES or any(character.isspace() for character in text):
        raise ConfigError(f"token file {path} must hold one token and nothing else")
    return text


def operator_token(path: Path | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the token that a file holds, or else the environment; None where neither does.

    Raises:
        ConfigError: what is there is no token.
    """
    if path is not None:
        return read_token(path)
    text = environ.get(OPERATOR_TOKEN_VARIABLE, "").strip()
    is_token = text.isascii() and text.isprintable() and " " not in text
    if not is_token or len(text) > TOKEN_MAX_BYTES:
        raise ConfigError(f"{OPERATOR_TOKEN_VARIABLE} must be one token and nothing else")
    return text or None


def split_pair(option: str, text: str, separator: str = "=") -> tuple[str, str]:
    """Split `name=value`, or what else separates the two.

    Raises:
        ConfigError: text has no separator or no name.
    """
    name, found, value = text.partition(separator)
    if not found or not name.strip():
        raise ConfigError(f"{option} must be NAME{separator}VALUE, not {text!r}")
    return name.strip(), value.strip()
