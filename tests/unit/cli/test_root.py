"""The root command: lazy, one sentence per failure, the documented exit codes."""

import importlib
import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from netsonde.cli.exits import Exit
from netsonde.cli.root import ENTRIES, main
from netsonde.errors import (
    ConfigError,
    ControlPlaneError,
    ErrorCode,
    PrivilegeError,
    RequestError,
    StorageError,
    TransportError,
)


def run_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, *args: str) -> Result:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: broken)
    return CliRunner().invoke(main, [*args, "broken"])


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from netsonde.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'aiohttp', 'dns', 'rich', 'msgspec', 'orjson', 'uvloop', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() == "[]"
    for name in ENTRIES:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_entry_is_a_command_with_the_same_name(name: str) -> None:
    module, _, attribute = ENTRIES[name].place.partition(":")
    command = getattr(importlib.import_module(f"netsonde.cli.{module}"), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_command_has_help(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: netsonde {name}")


def test_no_command_shows_the_help_and_exits_2() -> None:
    done = CliRunner().invoke(main, [])
    assert done.exit_code == Exit.USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: netsonde")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["pong"], "No such command 'pong'. Did you mean 'ping'? (`netsonde --help` says what is)"),
        (["zzzzz"], "No such command 'zzzzz'. (`netsonde --help` says what is)"),
        (["check", "add", "--nope"], "(`netsonde check add --help` says what is)"),
        (["tcp"], "Missing argument 'HOST:PORT…'"),
        (["ping", "--nope", "x"], "No such option"),
    ],
)
def test_usage_errors_are_one_line(args: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, args)
    assert done.exit_code == Exit.USAGE
    assert done.stdout == ""
    assert sentence in done.stderr
    assert done.stderr.startswith("netsonde: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("listen must be host:port"), Exit.USAGE),
        (RequestError(ErrorCode.VALIDATION, "count must be 1 to 100000"), Exit.USAGE),
        (PrivilegeError("no raw socket"), Exit.CANNOT),
        (StorageError("/x is full"), Exit.CANNOT),
        (TransportError("agents", "connection refused"), Exit.CANNOT),
        (
            ControlPlaneError("no such check", code="ERR_NOT_FOUND", status=404, retryable=False),
            Exit.USAGE,
        ),
        (
            ControlPlaneError("later", code="ERR_UNAVAILABLE", status=503, retryable=True),
            Exit.CANNOT,
        ),
        (PermissionError(13, "Permission denied"), Exit.CANNOT),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [StorageError("inner")])]), Exit.CANNOT),
    ],
)
def test_an_error_is_one_sentence_and_its_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: Exit
) -> None:
    done = run_raising(monkeypatch, error)
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.startswith("netsonde: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_sentence_stays_one_line_whatever_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_raising(monkeypatch, StorageError("two\nlines"))
    assert done.stderr == "netsonde: two lines\n"


def test_a_bug_is_one_line_that_names_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_raising(monkeypatch, KeyError("lost"))
    assert done.exit_code == Exit.BUG
    assert done.stderr.count("\n") == 1
    assert "internal error: KeyError" in done.stderr
    assert "--debug" in done.stderr


def test_debug_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_raising(monkeypatch, KeyError("lost"), "--debug")
    assert done.exit_code == Exit.BUG
    assert "Traceback" in done.stderr


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_raising(monkeypatch, KeyboardInterrupt()).exit_code == Exit.INTERRUPTED


def test_a_reader_that_left_is_not_talked_about() -> None:
    command = [sys.executable, "-m", "netsonde", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(timeout=60) == Exit.BROKEN_PIPE


@pytest.mark.parametrize("args", [["version"], ["--help"]])
def test_output_that_cannot_be_written_is_one_sentence(args: list[str]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "netsonde", *args],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == Exit.CANNOT
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("netsonde: ")
    assert "No space left on device" in done.stderr


def test_what_was_gathered_and_cannot_be_written_is_one_sentence() -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    code = (
        "import sys\n"
        "from netsonde.cli import root\n"
        "sys.stdout.write('x')\n"
        "sys.exit(root._flushed(0))\n"
    )
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=False, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == Exit.CANNOT
    assert done.stderr == "netsonde: standard output: No space left on device\n"


def test_where_nothing_can_be_written_the_exit_code_is_left() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "netsonde", "pong"],
            check=False, stdout=full, stderr=full, timeout=60,
        )  # fmt: skip
    assert done.returncode == Exit.USAGE


OPERATORS = ["check", "task", "results", "agents", "token", "config", "queues", "dead-letters"]


@pytest.mark.parametrize("name", [*OPERATORS, "audit", "metrics"])
def test_help_of_an_operators_command_has_examples_and_exit_codes(name: str) -> None:
    shown = CliRunner().invoke(main, [name, "--help"]).stdout
    assert re.search(rf"Examples:\n +netsonde {name}", shown)
    assert re.search(r"Exit codes:\n +0    done\n +2    what", shown)


@pytest.mark.parametrize("name", OPERATORS)
def test_singular_and_plural_are_the_same(name: str) -> None:
    other = name.removesuffix("s") if name.endswith("s") else f"{name}s"
    found = main.get_command(click.Context(main), name)
    same = main.get_command(click.Context(main), other)
    assert isinstance(same, click.Command)
    if name != "agents":
        assert same is found
        return
    assert isinstance(same, click.Group)
    assert isinstance(found, click.Group)
    assert same.commands.items() >= found.commands.items()


def leaves(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    return [one for name, each in command.commands.items() for one in leaves(each, *path, name)]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operators_command_takes_json(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for path in leaves(command, name):
        assert "--json" in CliRunner().invoke(main, [*path, "--help"]).stdout, path
