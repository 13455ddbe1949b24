"""`netsonde dead-letters list|requeue|delete`: tasks that were given up."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import confirm, examples, json_options, operator_options, yes_option
from netsonde.cli.output import printable, write_table_or_json, write_text, write_value
from netsonde.control_plane.operator import JsonObject, OperatorClient
from netsonde.errors import ConfigError
from netsonde.model import TaskKind

F = TypeVar("F", bound=Callable[..., Any])

PAGE_MAX = 1_000  # the server's own limit
BULK_MAX = 10_000

One = Callable[[OperatorClient, int], Awaitable[JsonObject]]
Many = Callable[[OperatorClient, Mapping[str, Any]], Awaitable[JsonObject]]

EPILOG = examples(
    "netsonde dead-letters list --kind http",
    "netsonde dead-letters requeue 17 18",
    "netsonde dead-letters requeue --check 7 --yes",
    "netsonde dead-letters delete --all --limit 100",
)


def _filters(command: F) -> F:
    """Add what dead letters are chosen by."""
    for option in (
        click.option("--to", metavar="RFC3339", help="Given up before this instant."),
        click.option(
            "--from", "from_", metavar="RFC3339", help="Given up at or after this instant."
        ),
        click.option("--agent", metavar="ID|HOSTNAME", help="Last held by this agent."),
        click.option("--check", "check_id", type=click.IntRange(min=1), help="Only this check's."),
        click.option(
            "--kind", type=click.Choice([kind.value for kind in TaskKind]), help="Only this kind."
        ),
    ):
        command = option(command)
    return command


def _bulk(command: F) -> F:
    """Add what many dead letters are dealt with by."""
    command = yes_option(command)
    command = click.option(
        "--limit",
        type=click.IntRange(1, BULK_MAX),
        default=PAGE_MAX,
        show_default=True,
        help="At most so many, the youngest first.",
    )(command)
    command = click.option("--all", "everything", is_flag=True, help="Every dead letter.")(command)
    command = _filters(command)
    return click.argument("task_ids", nargs=-1, type=click.IntRange(min=1), metavar="[TASK_ID…]")(
        command
    )


@click.group(epilog=EPILOG)
def dead_letters() -> None:
    """Look after tasks that were given up after their last attempt."""


@dead_letters.command("list")
@_filters
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(1, PAGE_MAX),
    default=100,
    show_default=True,
    help="The youngest so many.",
)
@operator_options
@json_options
def list_dead_letters(server_url: str, token_file: Path | None, as_json: bool, **query: Any) -> int:
    """List dead letters, the youngest first."""
    asked = {name.removesuffix("_"): value for name, value in query.items()}
    page = operate(server_url, token_file, lambda client: client.dead_letters(asked))
    headings = ("TASK", "CHECK", "KIND", "TARGET", "ATTEMPTS", "AGENT", "GIVEN UP", "WHY")
    write_table_or_json(page.items, as_json, headings, [_row(letter) for letter in page.items])
    return Exit.OK


@dead_letters.command()
@_bulk
@operator_options
@json_options
def requeue(server_url: str, token_file: Path | None, as_json: bool, **chosen: Any) -> int:
    """Queue tasks again with fresh attempts: by their IDs, or all that filters choose."""
    return _deal(
        ("requeue", "requeued"),
        chosen,
        (server_url, token_file, as_json),
        lambda client, task_id: client.requeue_dead_letter(task_id),
        lambda client, selection: client.requeue_dead_letters(selection),
    )


@dead_letters.command()
@_bulk
@operator_options
@json_options
def delete(server_url: str, token_file: Path | None, as_json: bool, **chosen: Any) -> int:
    """Give tasks up for good: by their IDs, or all that filters choose."""
    return _deal(
        ("delete", "deleted"),
        chosen,
        (server_url, token_file, as_json),
        lambda client, task_id: client.delete_dead_letter(task_id),
        lambda client, selection: client.delete_dead_letters(selection),
    )


def _deal(
    verbs: tuple[str, str],
    chosen: Mapping[str, Any],
    where: tuple[str, Path | None, bool],
    one: One,
    many: Many,
) -> int:
    """Do to each dead letter that is named, or to all that are chosen."""
    server_url, token_file, as_json = where
    doing, done = verbs
    task_ids: tuple[int, ...] = chosen["task_ids"]
    selection = _selection(chosen)

    async def each(client: OperatorClient) -> None:
        for task_id in dict.fromkeys(task_ids):
            answer = await one(client, task_id)
            if as_json:
                write_value(answer)
            else:
                write_text(f"task {task_id} {done}")

    if task_ids:
        operate(server_url, token_file, each)
        return Exit.OK
    confirm(f"{doing} {_described(selection)}", chosen["yes"])
    answer = operate(server_url, token_file, lambda client: many(client, selection))
    if as_json:
        write_value(answer)
    else:
        more = "; there are more, run it again" if answer.get("more") else ""
        write_text(f"{answer.get(done)} {done}{more}")
    return Exit.OK


def _selection(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Build what a bulk call is about; empty where tasks are named.

    Raises:
        ConfigError: nothing is chosen, or by two ways at once.
    """
    names = {"kind": "kind", "check_id": "check_id", "agent": "agent"}
    names |= {"from_": "died_from", "to": "died_to"}
    filters = {ours: chosen[name] for name, ours in names.items() if chosen[name] is not None}
    if sum((bool(chosen["task_ids"]), chosen["everything"], bool(filters))) != 1:
        raise ConfigError(
            "say which dead letters: task IDs, or filters such as --kind and --check, or --all"
        )
    if chosen["task_ids"]:
        return {}
    return (filters or {"all": True}) | {"limit": chosen["limit"]}


def _described(selection: Mapping[str, Any]) -> str:
    names = [name for name in selection if name not in ("all", "limit")]
    filters = [f"{name} {selection[name]}" for name in names]
    which = f" of {', '.join(filters)}" if filters else ""
    return printable(f"up to {selection['limit']} dead letters{which}")


def _row(letter: Mapping[str, Any]) -> list[str]:
    spec = letter.get("spec") or {}
    target = next((spec[name] for name in ("host", "url", "query") if name in spec), "-")
    attempts = f"{letter.get('attempt')} of {letter.get('max_attempts')}"
    return [
        str(letter.get("task_id")),
        str(letter.get("check_id") or "-"),
        printable(letter.get("kind")),
        printable(f"{target}:{spec['port']}" if "port" in spec else target),
        attempts,
        str(letter.get("agent_id") or "-"),
        printable(letter.get("died_at") or "-")[:19].replace("T", " "),
        printable(letter.get("reason") or "-"),
    ]
