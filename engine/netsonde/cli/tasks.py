"""`netsonde task add`: one-off tasks, from options or in bulk from a file or a pipe."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import click

from netsonde import wire
from netsonde.cli.check_words import spec_option
from netsonde.cli.exits import Exit
from netsonde.cli.inputs import opened
from netsonde.cli.operate import operate
from netsonde.cli.options import examples, json_options, operator_options
from netsonde.cli.output import Progress, warn, write_text, write_value
from netsonde.cli.task_lines import LongLine, Read, TaskLine, tasks_in
from netsonde.clock import SystemClock
from netsonde.control_plane.operator import OperatorClient
from netsonde.control_plane.uploading import Uploader
from netsonde.errors import ConfigError, ControlPlaneError, NetsondeError, TransportError
from netsonde.model import TaskKind

KEY_MAX_CHARS = 255  # the server's own limit

EPILOG = examples(
    "netsonde task add --kind ping --target 192.0.2.1 --target 192.0.2.2 -o count=3",
    "netsonde task add tasks.ndjson",
    "zcat tasks.gz | netsonde task add - --key monday --json",
)


@click.group(epilog=EPILOG)
def task() -> None:
    """Add one-off tasks: what is measured once."""


@task.command(epilog=EPILOG)
@click.argument("file", required=False, metavar="[FILE|-]")
@click.option("--kind", type=click.Choice([kind.value for kind in TaskKind]), help="With --target.")
@click.option("--target", "targets", multiple=True, help="Measure this; may be repeated.")
@click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the kind, such as count=10 or qtype=MX; with --kind.",
)
@click.option("--agent", metavar="ID|HOSTNAME", help="This agent; with --kind.")
@click.option(
    "--priority",
    type=click.IntRange(-100, 100),
    help="-100 (first) to 100 (last), 0 without it; with --kind.",
)
@click.option(
    "--key",
    help="Idempotency-Key of the upload: run again with the same one, tasks that were added are"
    " not added twice (for a day).",
)
@operator_options
@json_options
def add(
    file: str | None,
    key: str | None,
    server_url: str,
    token_file: Path | None,
    as_json: bool,
    **more: Any,
) -> int:
    """Add tasks from FILE, or from standard input (-).

    FILE holds a JSON array of tasks, or one a line (NDJSON), such as
    {"kind": "ping", "spec": {"host": "192.0.2.1"}}. Or name one:
    netsonde task add --kind ping --target 192.0.2.1.

    A task that is refused costs itself: it is named with its line on standard error, and the exit
    code is 2.
    """
    key = str(uuid.uuid4()) if key is None else _checked_key(key)
    named = _named(file, more)
    adding = _Adding(file or "", key, as_json)

    async def work(client: OperatorClient) -> None:
        uploader = client.uploader(key, clock=SystemClock(), rng=Random())  # noqa: S311 (jitter)
        if file is None:
            await adding.run(uploader, _one_part(named))
            return
        with opened([file], "task file") as (source,):
            await adding.run(uploader, tasks_in(source))

    operate(server_url, token_file, work)
    return adding.finish()


class _Adding:
    """Uploads parts one after another and tells what becomes of each line."""

    def __init__(self, name: str, key: str, as_json: bool) -> None:
        self._name = name
        self._key = key
        self._as_json = as_json
        self._progress = Progress()
        self._sent = 0
        self._added = 0
        self._refused = 0

    async def run(self, uploader: Uploader, parts: AsyncGenerator[list[Read], None]) -> None:
        """Upload every part.

        Raises:
            NetsondeError: the upload could not be completed; says how to go on.
        """
        try:
            async with aclosing(parts):
                async for part in parts:
                    await self._upload(uploader, part)
        except asyncio.CancelledError:
            self._progress.clear()
            warn(self._how_to_go_on())
            raise
        except TransportError as error:
            raise NetsondeError(f"{error}; {self._how_to_go_on()}") from error
        except ControlPlaneError as error:
            if not error.retryable:
                raise
            raise NetsondeError(f"{error}; {self._how_to_go_on()}") from error
        finally:
            self._progress.clear()

    def finish(self) -> Exit:
        """Say how many there are; return the exit code."""
        if not self._as_json:
            refused = f", {self._refused} refused" if self._refused else ""
            write_text(f"{self._counted()}{refused}")
        return Exit.USAGE if self._refused else Exit.OK

    async def _upload(self, uploader: Uploader, part: Sequence[Read]) -> None:
        numbers = [one.number for one in part if isinstance(one, TaskLine)]
        bodies = [one.body for one in part if isinstance(one, TaskLine)]
        first_line = self._sent + 1
        self._sent += len(bodies)
        for one in part:
            if isinstance(one, LongLine):
                self._tell(one.number, one.answer)
        if bodies:
            async with aclosing(uploader.answers(first_line, bodies)) as answers:
                async for answer in answers:
                    self._tell(numbers[answer.line - first_line], answer)
        self._progress.show(f"{self._counted()}, {self._refused} refused")

    def _tell(self, number: int, answer: wire.LineAnswer) -> None:
        is_refused = answer.task_id is None
        self._refused += is_refused
        self._added += not is_refused
        if self._as_json:
            what = (
                {"error": answer.error, "message": answer.message}
                if is_refused
                else {"task_id": answer.task_id}
            )
            write_value({"line": number} | what)
        elif is_refused:
            self._progress.clear()
            where = f"{self._name or 'target'}:{number}"
            warn(f"{where}: {answer.error}: {answer.message}")

    def _counted(self) -> str:
        return f"{self._added} task{'s' * (self._added != 1)} added"

    def _how_to_go_on(self) -> str:
        return (
            f"{self._counted()} so far; run it again with --key {self._key}, which adds"
            " none of them twice"
        )


def _checked_key(key: str) -> str:
    if not 0 < len(key) <= KEY_MAX_CHARS or not key.isascii() or not key.isprintable():
        raise ConfigError(f"--key must have 1 to {KEY_MAX_CHARS} ASCII characters")
    return key


async def _one_part(named: Sequence[Read]) -> AsyncGenerator[list[Read], None]:
    yield list(named)


def _named(file: str | None, more: dict[str, Any]) -> list[Read]:
    """Build the tasks that options name.

    Raises:
        ConfigError: there are a file and options, or neither.
        RequestError: a target or an option is wrong.
    """
    kind, targets = more["kind"], more["targets"]
    if (file is None) == (kind is None) or (kind is None) != (not targets):
        raise ConfigError("give either FILE (- for standard input), or --kind and --target")
    if file is not None and (more["options"] or more["agent"] or more["priority"] is not None):
        raise ConfigError("--option, --agent and --priority belong to --kind; FILE has its own")
    options = dict(spec_option(text) for text in more["options"])
    agent = more["agent"]
    who = {} if agent is None else {"agent": int(agent) if agent.isdecimal() else agent}
    when = {} if more["priority"] is None else {"priority": more["priority"]}
    return [
        TaskLine(
            number,
            wire.encode(
                {"kind": kind, "spec": wire.build_spec(TaskKind(kind), target, options)}
                | who
                | when
            ),
        )
        for number, target in enumerate(targets, 1)
    ]
