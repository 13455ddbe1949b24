"""`netsonde up`: everything in one process, measuring this host until told to stop."""

import asyncio
import sys
import tempfile
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import click
from rich.live import Live

from netsonde.cli.board import Board
from netsonde.cli.check_words import parse_check
from netsonde.cli.embedded import Embedding, embedded
from netsonde.cli.exits import Exit
from netsonde.cli.logs import log_options
from netsonde.cli.loop import draining, run, until
from netsonde.cli.options import DURATION, json_options
from netsonde.cli.output import explain, warn
from netsonde.cli.printer import Printer
from netsonde.cli.results import tell_outage, write_result
from netsonde.cli.starter import Check, Services, install, named, refusal, starter_checks
from netsonde.cli.state import default_state_dir, owned_dir
from netsonde.clock import SystemClock
from netsonde.control_plane.operator import OperatorClient
from netsonde.errors import PrivilegeError
from netsonde.model import TaskKind

ONCE_TIMEOUT_S = 60.0  # the longest starter check may take 10 s; the rest is for a slow host
EVERY_MS = 5_000
REDRAWS_PER_S = 4

Result = Mapping[str, Any]
Show = Callable[[Result], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which checks `up` was asked for; `every_ms` None runs each once."""

    checks: tuple[Check, ...]
    has_starters: bool
    every_ms: int | None
    as_json: bool


@click.command()
@click.option("--once", is_flag=True, help="Run each check once, print the results, exit.")
@click.option(
    "--check",
    "texts",
    multiple=True,
    metavar="'KIND TARGET'",
    help="Measure this too, such as 'ping example.net'.",
)
@click.option("--every", "every_ms", type=DURATION, default=EVERY_MS, help="How often (5s).")
@click.option("--no-starter-checks", is_flag=True, help="Leave this host's own services out.")
@click.option(
    "--allow",
    multiple=True,
    metavar="private|PREFIX",
    help="Let checks reach more than the public internet and this host's loopback.",
)
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where everything is kept.")
@click.option("--listen", metavar="HOST:PORT", help="Where agents reach it (127.0.0.1:8080).")
@click.option(
    "--operator-listen", metavar="HOST:PORT", help="Where operators reach it (127.0.0.1:8090)."
)
@log_options("warning")
@json_options
def up(once: bool, texts: tuple[str, ...], state_dir: Path | None, **options: Any) -> int:
    """Run a control plane and an agent in one process and measure, until Ctrl-C.

    It begins with all five kinds against this host's loopback and its own services.
    """
    wanted = Wanted(
        checks=tuple(parse_check([text]) for text in texts),
        has_starters=not options.pop("no_starter_checks"),
        every_ms=None if once else options["every_ms"],
        as_json=options.pop("as_json"),
    )
    del options["every_ms"]
    printer = Printer()
    with _state(state_dir, once) as path:
        code = run(_run(Embedding.of(path, is_brief=once, **options), wanted, printer))
    printer.leave(code)
    return code


@contextmanager
def _state(path: Path | None, once: bool) -> Iterator[Path]:
    """Hold the state directory; a single run needs none that stays."""
    if path is None and once:
        with tempfile.TemporaryDirectory(prefix="netsonde-", ignore_cleanup_errors=True) as made:
            yield Path(made)
        return
    with owned_dir(path or default_state_dir()) as held:
        yield held


async def _run(embedding: Embedding, wanted: Wanted, printer: Printer) -> Exit:
    stopped = asyncio.Event()
    with draining(stopped.set):
        async with (
            embedded(embedding) as place,
            OperatorClient(place.operator_url) as client,
        ):
            newest = await client.results({"order": "desc", "limit": 1})
            results = _results(client, newest.cursor)
            show = partial(_show, printer, wanted.as_json)
            checks = await install(client, _checks(wanted, place.services, embedding.left_out))
            if wanted.every_ms is None:
                code = await until(stopped, run_once(results, checks, show))
                return Exit.INTERRUPTED if code is None else code
            warn(f"agents reach this control plane at {place.agent_url}")
            warn(f"operators at {place.operator_url}, such as: netsonde results --follow")
            await until(stopped, _watch(results, show, is_live=_is_live(wanted.as_json)))
            return Exit.OK


def _checks(wanted: Wanted, services: Services, left_out: Collection[TaskKind]) -> list[Check]:
    """Return the checks to run; starters that this process may not measure are named only.

    Raises:
        PrivilegeError: a check that was asked for is one of those.
    """
    refused = {check["kind"] for check in wanted.checks if check["kind"] in left_out}
    if refused:
        raise PrivilegeError(refusal(refused))
    starters = starter_checks(services) if wanted.has_starters else []
    if starters and left_out:
        explain(refusal(left_out))
    possible = [check for check in starters if check["kind"] not in left_out]
    return [named(check, wanted.every_ms) for check in (*possible, *wanted.checks)]


async def _results(client: OperatorClient, cursor: str | None) -> AsyncGenerator[Result, None]:
    """Yield every result after cursor."""
    rng = Random()  # noqa: S311 (jitter)
    async with aclosing(client.follow({"cursor": cursor}, clock=SystemClock(), rng=rng)) as items:
        async for item in items:
            if isinstance(item, dict):
                yield item
            else:
                tell_outage(item)


async def run_once(
    results: AsyncGenerator[Result, None], checks: Sequence[Check], show: Show
) -> Exit:
    """Show one result per check and target, and tell the worst of them."""
    left = {check["check_id"]: len(check["targets"]) for check in checks}
    codes = [Exit.OK]
    try:
        async with asyncio.timeout(ONCE_TIMEOUT_S), aclosing(results):
            while any(left.values()):
                result = await anext(results)
                check_id = result.get("check_id")
                if left.get(check_id, 0) > 0:
                    left[check_id] -= 1
                    await show(result)
                    codes.append(exit_of(result))
    except TimeoutError:
        names = [check["name"] for check in checks if left[check["check_id"]]]
        warn(f"no result within {ONCE_TIMEOUT_S:g} s of {', '.join(names)}")
        return Exit.CANNOT
    return max(codes)


async def _watch(results: AsyncGenerator[Result, None], show: Show, *, is_live: bool) -> None:
    """Show results as they come: a live table on a terminal, else a line each."""
    async with aclosing(results):
        if not is_live:
            async for result in results:
                await show(result)
            return
        board = Board()
        # Its own thread redraws it: a terminal that is held up (Ctrl-S) holds up nothing else.
        with Live(
            get_renderable=board.table,
            refresh_per_second=REDRAWS_PER_S,
            redirect_stderr=sys.stderr.isatty(),  # a log that goes elsewhere stays there
        ):
            async for result in results:
                board.add(result)


async def _show(printer: Printer, as_json: bool, result: Result) -> None:
    await printer.write(lambda: write_result(result, as_json))


def _is_live(as_json: bool) -> bool:
    return sys.stdout.isatty() and not as_json


def exit_of(result: Result) -> Exit:
    """Return the exit code of one result."""
    match result.get("outcome"):
        case "ok":
            return Exit.OK
        case "agent_error":
            return Exit.CANNOT
        case _:
            return Exit.TARGET_FAILED
