"""`netsonde check`: what the agents measure, and when."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import click

from netsonde import wire
from netsonde.cli.check_words import check_options, parse_check, read_fields, read_spec
from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import examples, json_options, operator_options
from netsonde.cli.output import (
    fields_of,
    printable,
    warn,
    write_table,
    write_table_or_json,
    write_text,
    write_value,
)
from netsonde.control_plane.operator import JsonObject, OperatorClient
from netsonde.errors import ConfigError
from netsonde.model import TaskKind

EPILOG = examples(
    "netsonde check add ping example.net --every 60s",
    'netsonde check add "tcp [2001:db8::1]:443" --every 10s --label site=ams --all',
    "netsonde check add ping gw1 gw2 --every 1m --expect loss_pct_max=1 --count 3",
    "netsonde check list",
    "netsonde check run 7",
    "netsonde check change 7 --every 5m -o count=10",
)
_ids_argument = click.argument(
    "check_ids", nargs=-1, required=True, type=click.IntRange(min=1), metavar="ID…"
)


@click.group(epilog=EPILOG)
def check() -> None:
    """Add, list, change, run and remove checks: what the agents measure."""


@check.command(epilog=EPILOG)
@click.argument("words", nargs=-1, required=True, metavar="KIND TARGET…")
@check_options
@click.option("--paused", is_flag=True, help="Do not run it before `check resume`.")
@operator_options
@json_options
def add(
    words: tuple[str, ...],
    paused: bool,
    server_url: str,
    token_file: Path | None,
    as_json: bool,
    **more: Any,
) -> int:
    """Add a check, such as: netsonde check add ping example.net --every 60s."""
    wanted = parse_check(words, more["options"], more["expectations"]) | read_fields(more)
    if paused:
        wanted["enabled"] = False
    made = operate(server_url, token_file, lambda client: client.create_check(wanted))
    if as_json:
        write_value(made)
        return Exit.OK
    state = ", paused" if paused else ""
    write_text(f"check {made.get('check_id')} added: {_described(made)}{state}")
    if made.get("tasks") == 0 and not paused:
        warn("no agent that it is for is known yet: it waits for one (`netsonde agents`)")
    return Exit.OK


@check.command("list")
@operator_options
@json_options
def list_checks(server_url: str, token_file: Path | None, as_json: bool) -> int:
    """List the checks."""
    checks = operate(server_url, token_file, lambda client: client.checks())
    headings = ("ID", "NAME", "WHAT", "EVERY", "WHO", "STATE", "TASKS", "SKIPPED")
    write_table_or_json(checks, as_json, headings, [_row(each) for each in checks])
    return Exit.OK


@check.command()
@_ids_argument
@operator_options
@json_options
def show(
    check_ids: tuple[int, ...], server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Show everything that is known of checks."""

    def tell(found: JsonObject) -> None:
        write_table(("FIELD", "VALUE"), fields_of(found))

    return _each(
        check_ids,
        (server_url, token_file, as_json),
        lambda client, check_id: client.check(check_id),
        tell,
    )


@check.command()
@click.argument("check_id", type=click.IntRange(min=1), metavar="ID")
@click.option("--target", "targets", multiple=True, help="Measure this instead; may be repeated.")
@click.option("--once", is_flag=True, help="Repeat no more: run it once, now.")
@click.option("--anybody", is_flag=True, help="Let any agent measure.")
@check_options
@operator_options
@json_options
def change(
    check_id: int,
    server_url: str,
    token_file: Path | None,
    as_json: bool,
    **more: Any,
) -> int:
    """Change a check; what is not named stays. Runs that are under way are cancelled.

    --option and --expect are put over the check's own.
    """
    changes = _changes(more)
    spec = read_spec(more["options"], more["expectations"])
    if not changes and not spec:
        raise ConfigError("say what to change: `netsonde check change --help` lists what can be")

    async def work(client: OperatorClient) -> JsonObject:
        if not spec and not more["targets"]:
            return await client.change_check(check_id, changes)
        found = await client.check(check_id)
        merged = _merged(found.get("spec") or {}, spec)
        for target in changes.get("targets") or found.get("targets") or ():
            wire.build_spec(TaskKind(found["kind"]), str(target), merged)
        return await client.change_check(check_id, changes | ({"spec": merged} if spec else {}))

    made = operate(server_url, token_file, work)
    if as_json:
        write_value(made)
    else:
        write_text(f"check {check_id} changed: {_described(made)}")
    return Exit.OK


@check.command()
@_ids_argument
@operator_options
@json_options
def pause(
    check_ids: tuple[int, ...], server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Stop checks until they are resumed; runs that are under way are cancelled."""

    async def one(client: OperatorClient, check_id: int) -> JsonObject:
        return await client.change_check(check_id, {"enabled": False})

    return _each(check_ids, (server_url, token_file, as_json), one, lambda _: "is paused")


@check.command()
@_ids_argument
@operator_options
@json_options
def resume(
    check_ids: tuple[int, ...], server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Let paused checks run again, from now on."""

    async def one(client: OperatorClient, check_id: int) -> JsonObject:
        return await client.change_check(check_id, {"enabled": True})

    return _each(check_ids, (server_url, token_file, as_json), one, lambda _: "runs again")


@check.command()
@_ids_argument
@operator_options
@json_options
def run(check_ids: tuple[int, ...], server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Run checks once now, beside their schedule; `netsonde results --check ID` has what comes."""

    def tell(answer: JsonObject) -> str:
        tasks, skipped = answer.get("tasks", 0), answer.get("skipped", 0)
        return f"runs now: {_counted(tasks, 'task')}" + (f", {skipped} skipped" if skipped else "")

    return _each(
        check_ids,
        (server_url, token_file, as_json),
        lambda client, check_id: client.run_check(check_id),
        tell,
    )


@check.command()
@_ids_argument
@operator_options
@json_options
def cancel(
    check_ids: tuple[int, ...], server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Cancel runs of checks that wait or are under way; the checks go on with the next one."""

    def tell(answer: JsonObject) -> str:
        return f"goes on, {_counted(answer.get('cancelled', 0), 'run')} cancelled"

    return _each(
        check_ids,
        (server_url, token_file, as_json),
        lambda client, check_id: client.cancel_check(check_id),
        tell,
    )


@check.command()
@_ids_argument
@operator_options
@json_options
def remove(
    check_ids: tuple[int, ...], server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Remove checks by their IDs; their results stay."""

    def tell(answer: JsonObject) -> str:
        return f"removed, {_counted(answer.get('cancelled', 0), 'run')} cancelled"

    return _each(
        check_ids,
        (server_url, token_file, as_json),
        lambda client, check_id: client.remove_check(check_id),
        tell,
    )


def _each(
    check_ids: tuple[int, ...],
    where: tuple[str, Path | None, bool],
    one: Callable[[OperatorClient, int], Awaitable[JsonObject]],
    tell: Callable[[JsonObject], str | None],
) -> int:
    """Do something to each check and tell it: as JSON, or in the words of tell."""
    server_url, token_file, as_json = where

    async def work(client: OperatorClient) -> None:
        for check_id in dict.fromkeys(check_ids):
            answer = await one(client, check_id)
            if as_json:
                write_value(answer)
            elif said := tell(answer):
                write_text(f"check {check_id} {said}")

    operate(server_url, token_file, work)
    return Exit.OK


def _changes(more: Mapping[str, Any]) -> dict[str, Any]:
    """Build a patch, the spec aside.

    Raises:
        ConfigError: some options exclude each other.
    """
    fields = read_fields(more)
    if more["once"] and "every_ms" in fields:
        raise ConfigError("--once and --every exclude each other")
    if more["anybody"] and "select" in fields:
        raise ConfigError(
            "--anybody is any agent: give it without --label, --agent, --all, --count"
        )
    if more["once"]:
        fields["every_ms"] = None
    if more["anybody"]:
        fields["select"] = None
    if more["targets"]:
        fields["targets"] = list(more["targets"])
    return fields


def _merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Put options over a check's own; expectations one by one."""
    merged = {**own, **given}
    if "expect" in own and "expect" in given:
        merged["expect"] = {**own["expect"], **given["expect"]}
    return merged


def _counted(count: Any, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _described(made: Mapping[str, Any]) -> str:
    what = f"{made.get('kind')} {' '.join(map(str, made.get('targets') or ()))}"
    every_ms = made.get("every_ms")
    return printable(f"{what} every {every_ms / 1000:g} s" if every_ms else f"{what} once")


def _row(made: Mapping[str, Any]) -> list[str]:
    every_ms = made.get("every_ms")
    return [
        str(made.get("check_id")),
        printable(made.get("name") or "-"),
        printable(f"{made.get('kind')} {' '.join(map(str, made.get('targets') or ()))}"),
        f"{every_ms / 1000:g} s" if every_ms else "once",
        printable(_selected(made.get("select") or {})),
        "on" if made.get("enabled", True) else "paused",
        str(made.get("tasks", "-")),
        str(made.get("skipped", "-")),
    ]


def _selected(select: Mapping[str, Any]) -> str:
    if select.get("agents"):
        return "agents " + ", ".join(map(str, select["agents"]))
    labels = " ".join(f"{name}={value}" for name, value in (select.get("labels") or {}).items())
    if select.get("all"):
        return f"all with {labels}" if labels else "all"
    if select.get("count"):
        return f"{select['count']} with {labels}" if labels else f"any {select['count']}"
    return f"one with {labels}" if labels else "any"
