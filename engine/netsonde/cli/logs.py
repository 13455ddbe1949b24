"""Logging of the long-running commands, on standard error: text for people or JSON lines."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar, cast

import click

from netsonde import wire
from netsonde.cli.output import printable
from netsonde.clock import NS_PER_US, rfc3339

US_PER_S = 1_000_000

F = TypeVar("F", bound=Callable[..., Any])

# What every record has; the rest came with `extra` and is shown.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        extra = {name: _json_value(value) for name, value in _extra(record).items()}
        return wire.encode(extra | line).decode()


class TextFormatter(logging.Formatter):
    """Time, level, the message's first line and the record's own fields; the rest is indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; what it says below its first line is indented."""
        time = _time(record)[:23] + "Z"
        fields = "".join(f" {name}={printable(value)}" for name, value in _extra(record).items())
        first, *rest = record.getMessage().splitlines() or [""]
        lines = [f"{time} {record.levelname.lower():<7} {printable(first)}{fields}"]
        lines += [f"    {printable(line)}" for line in rest]  # such as lines to paste
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever standard error is now: a live table puts itself in front of it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def configure(level: str, as_json: bool) -> None:
    """Send netsonde's log, from level upwards, to standard error; others' from warning upwards."""
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("netsonde").setLevel(level.upper())


def _time(record: logging.LogRecord) -> str:
    """Return when record was made, to the microsecond that a float of today resolves."""
    return rfc3339(round(record.created * US_PER_S) * NS_PER_US)


def log_options(level: str = "info") -> Callable[[F], F]:
    """Add how a long-running command logs, from which level on, and see to it before it runs."""

    def add(command: F) -> F:
        @functools.wraps(command)
        def logged(*args: Any, log_level: str, log_json: bool, **options: Any) -> Any:
            configure(log_level, log_json)
            return command(*args, **options)

        optioned = click.option(
            "--log-json", is_flag=True, help="Log JSON lines instead of text on standard error."
        )(logged)
        optioned = click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
            default=level,
            show_default=True,
            help="Log from this level on.",
        )(optioned)
        return cast("F", optioned)

    return add


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _json_value(value: object) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)
