"""The `netsonde` command: finds the subcommand, and gives every failure its sentence."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, TextIO

import click

from netsonde import __version__
from netsonde.cli.exits import Exit, exit_for, first_leaf
from netsonde.errors import NetsondeError, PrivilegeError

PROGRAM = "netsonde"


class Entry(NamedTuple):
    """Where a subcommand lives; its help stands here so that `--help` imports nothing."""

    place: str
    summary: str


ENTRIES = {
    "up": Entry("up:up", "Run a control plane and an agent here, and measure."),
    "ping": Entry("ping:ping", "Ping any number of targets."),
    "trace": Entry("trace:trace", "Find the routers on the way to any number of targets."),
    "dns": Entry("probe:dns", "Ask a DNS server."),
    "http": Entry("probe:http", "Make an HTTP request and time its phases."),
    "tcp": Entry("probe:tcp", "Open a TCP connection."),
    "agent": Entry("agent:agent", "Run a measuring agent; or what `agents` does."),
    "server": Entry("server:server", "Run a control plane."),
    "check": Entry("checks:check", "Add, list and remove checks."),
    "task": Entry("tasks:task", "Add one-off tasks, one by one or in bulk."),
    "results": Entry("results:results", "Show results."),
    "config": Entry("config:config", "Sign, check and publish the agents' configuration."),
    "agents": Entry("fleet:agents", "Show the agents; drain, resume and revoke them."),
    "queues": Entry("queues:queues", "Show how much work waits."),
    "dead-letters": Entry("dead_letters:dead_letters", "Look after work that was given up."),
    "token": Entry("tokens:token", "Make, list and revoke tokens."),
    "audit": Entry("audit:audit", "Show who changed what."),
    "metrics": Entry("metrics:metrics", "Show what agents count of themselves."),
    "doctor": Entry("doctor:doctor", "Say what this host lacks, and how to grant it."),
    "version": Entry("version:version", "Print the version."),
}
# Other names of subcommands that help does not list; `agent` is the program that measures.
ALIASES = {
    "result": "results",
    "queue": "queues",
    "dead-letter": "dead-letters",
    "checks": "check",
    "tasks": "task",
    "tokens": "token",
    "configs": "config",
}


class Root(click.Group):
    """A group that imports a subcommand when it is called, and never shows a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order people meet them."""
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand of that name."""
        entry = ENTRIES.get(ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command: click.Command = getattr(
            importlib.import_module(f"netsonde.cli.{module}"), attribute
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that args begin with, or say what it may have been meant to be."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], [*ENTRIES, *ALIASES], n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the subcommands' summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in ENTRIES.items()])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line and exit with its code; it is called `netsonde` however started."""
        extra.pop("standalone_mode", None)
        debug = _wants_debug(sys.argv[1:] if args is None else args)
        try:
            code = _run(super().main, args, extra)
        except Exception as error:
            code = _explain(error, debug)
        sys.exit(_flushed(code))


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM)
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Measure networks: ping, trace, dns, http and tcp, alone or as a fleet.

    Exit codes: 0 every target is ok, 1 some target failed, 2 bad input,
    3 could not measure, 130 interrupted.
    """


def _run(run: Any, args: Sequence[str] | None, extra: Any) -> int:
    try:
        code = run(args, prog_name=PROGRAM, standalone_mode=False, **extra)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    except click.ClickException as error:
        _say(f"{error.format_message()}{_help_for(error)}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except SystemExit:  # click's own answer to a reader that has gone, and to nothing else
        return Exit.BROKEN_PIPE
    return code if isinstance(code, int) else Exit.OK


def _help_for(error: click.ClickException) -> str:
    """Say which help has what is allowed, where a command was not understood."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    return "" if context is None else f" (`{context.command_path} --help` says what is)"


def _explain(error: Exception, debug: bool) -> int:
    leaf = first_leaf(error)
    if debug:
        traceback.print_exception(error)
    if isinstance(leaf, BrokenPipeError):
        return Exit.BROKEN_PIPE
    if isinstance(leaf, PrivilegeError):
        with suppress(OSError):
            click.echo(f"netsonde: {leaf}", err=True)  # with the lines to paste
        return exit_for(leaf)
    if isinstance(leaf, (NetsondeError, OSError)):
        _say(str(leaf))
        return exit_for(leaf)
    _say(f"internal error: {type(leaf).__name__}: {leaf} (`netsonde --debug …` shows where)")
    return Exit.BUG


def _say(sentence: str) -> None:
    """Write one line on standard error, whatever the sentence holds."""
    text = " ".join(sentence.split())
    with suppress(OSError):  # nobody reads standard error: the exit code is left
        click.echo(f"netsonde: {text}", err=True)


def _flushed(code: int) -> int:
    """Flush standard output while what is wrong with it can still be put in a sentence."""
    is_broken = code == Exit.BROKEN_PIPE
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code, is_broken = Exit.BROKEN_PIPE, True
    except OSError as error:
        if code != Exit.CANNOT:  # else the sentence has been said
            _say(f"standard output: {error.strerror or error}")
        code, is_broken = Exit.CANNOT, True
    if is_broken:
        _silence(sys.stdout)
    try:
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)
    return code


def _silence(stream: TextIO) -> None:
    """Let what is left in stream go nowhere: Python flushes it at exit and would complain."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())


def _wants_debug(args: Sequence[str]) -> bool:
    return "--debug" in args[:1] or os.environ.get("NETSONDE_DEBUG") == "1"
