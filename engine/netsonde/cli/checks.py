"""`netsonde check add|list|remove`, and how a check is written on the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from netsonde import wire
from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import (
    DURATION,
    json_options,
    operator_options,
    split_pair,
)
from netsonde.cli.output import printable, write_table_or_json, write_text, write_value
from netsonde.control_plane.operator import OperatorClient
from netsonde.errors import ConfigError
from netsonde.model import TaskKind


@click.group()
def check() -> None:
    """Add, list and remove checks: what the agents measure."""


@check.command()
@click.argument("words", nargs=-1, required=True, metavar="KIND TARGET…")
@click.option("--every", "every_ms", type=DURATION, help="Repeat; without it the check runs once.")
@click.option("--jitter", "jitter_ms", type=DURATION, help="Spread each run by up to this.")
@click.option("--name", help="What to call it.")
@click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the kind, such as count=10 or qtype=MX.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only agents that carry this label.",
)
@click.option("--agent", "agents", multiple=True, metavar="ID|HOSTNAME", help="This agent.")
@click.option("--all", "everywhere", is_flag=True, help="Every agent with the labels, not one.")
@operator_options
@json_options
def add(
    words: tuple[str, ...],
    options: tuple[str, ...],
    server_url: str,
    token_file: Path | None,
    as_json: bool,
    **more: Any,
) -> int:
    """Add a check, such as: netsonde check add ping example.net --every 60s."""
    wanted = parse_check(words, options) | _chosen(more)
    made = operate(server_url, token_file, lambda client: client.create_check(wanted))
    if as_json:
        write_value(made)
    else:
        write_text(f"check {made.get('check_id')} added: {_described(made)}")
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
@click.argument("check_ids", nargs=-1, required=True, type=click.IntRange(min=1), metavar="ID…")
@operator_options
@json_options
def remove(
    check_ids: tuple[int, ...], server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Remove checks by their IDs; their results stay."""

    async def work(client: OperatorClient) -> None:
        for check_id in check_ids:
            answer = await client.remove_check(check_id)
            if as_json:
                write_value(answer)
            else:
                write_text(f"check {check_id} removed, {answer.get('cancelled', 0)} runs cancelled")

    operate(server_url, token_file, work)
    return Exit.OK


def parse_check(words: Sequence[str], options: Sequence[str] = ()) -> dict[str, Any]:
    """Turn `ping example.net`, in one word or several, into a check; its targets are checked here.

    Raises:
        ConfigError: the kind or a target is missing, or an option has no value.
        RequestError: the kind, a target or an option is wrong.
    """
    parts = words[0].split() if len(words) == 1 else list(words)
    allowed = ", ".join(TaskKind)
    if len(parts) < 2:
        raise ConfigError(
            f"a check is a kind and its targets, such as 'ping example.net', "
            f"not {' '.join(words)!r}; kinds are {allowed}"
        )
    if parts[0] not in list(TaskKind):
        raise ConfigError(f"kind must be one of {allowed}, not {parts[0]!r}")
    kind, targets = TaskKind(parts[0]), parts[1:]
    spec = dict(spec_option(text) for text in options)
    for target in targets:
        wire.build_spec(kind, target, spec)
    return {"kind": kind.value, "targets": targets} | ({"spec": spec} if spec else {})


def spec_option(text: str) -> tuple[str, Any]:
    """Read a spec option: numbers and booleans as such, the rest as text."""
    name, value = split_pair("--option", text)
    if value.isascii() and value.removeprefix("-").isdecimal() and len(value) <= 18:
        return name, int(value)
    return name, {"true": True, "false": False}.get(value, value)


def _chosen(more: Mapping[str, Any]) -> dict[str, Any]:
    """Build the check's remaining fields: when, what it is called, and who measures."""
    labels = dict(split_pair("--label", text) for text in more["labels"])
    agents = [int(agent) if agent.isdecimal() else agent for agent in more["agents"]]
    if agents and (labels or more["everywhere"]):
        raise ConfigError("--agent names the agents: give it without --label and --all")
    chosen = {
        name: more[name] for name in ("every_ms", "jitter_ms", "name") if more[name] is not None
    }
    if agents:
        chosen["select"] = {"agents": agents}
    elif labels or more["everywhere"]:
        chosen["select"] = {"labels": labels} | ({"all": True} if more["everywhere"] else {})
    return chosen


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
        "on" if made.get("enabled", True) else "off",
        str(made.get("tasks", "-")),
        str(made.get("skipped", "-")),
    ]


def _selected(select: Mapping[str, Any]) -> str:
    if select.get("agents"):
        return "agents " + ", ".join(map(str, select["agents"]))
    labels = " ".join(f"{name}={value}" for name, value in (select.get("labels") or {}).items())
    if select.get("all"):
        return f"all with {labels}" if labels else "all"
    return f"one with {labels}" if labels else "any"
