"""`netsonde agents`: who measures, and taking them out of service."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import confirm, examples, json_options, operator_options, yes_option
from netsonde.cli.output import (
    fields_of,
    instant,
    printable,
    write_table,
    write_table_or_json,
    write_text,
    write_value,
)
from netsonde.control_plane.operator import JsonObject, OperatorClient
from netsonde.errors import ConfigError

SAID = {
    "drain": "is to finish what runs and claim nothing, until it is resumed",
    "resume": "may claim work",
    "revoke": "is shut out",
    "disable": "is refused until it is enabled",
    "enable": "is let in",
}
CHANGES = {"disable": {"disabled": True}, "enable": {"disabled": False}}
_agents_argument = click.argument("names", nargs=-1, required=True, metavar="ID|HOSTNAME…")

EPILOG = examples(
    "netsonde agents",
    "netsonde agents show ams1",
    "netsonde agents drain ams1 ams2",
    "netsonde agents revoke 7 --yes",
)


@click.group(invoke_without_command=True, epilog=EPILOG)
@operator_options
@json_options
@click.pass_context
def agents(
    context: click.Context, server_url: str, token_file: Path | None, as_json: bool
) -> int | None:
    """Show the agents; drain, resume and revoke them.

    Without a subcommand: who they are, when they were last heard of, what they are doing.
    """
    if context.invoked_subcommand is None:
        return _list(server_url, token_file, as_json)
    for name, source in ((name, context.get_parameter_source(name)) for name in context.params):
        if source is ParameterSource.COMMANDLINE:
            option = next(one.opts[0] for one in context.command.params if one.name == name)
            raise click.UsageError(f"give {option} after `{context.invoked_subcommand}`")
    return None


@agents.command("list")
@operator_options
@json_options
def list_agents(server_url: str, token_file: Path | None, as_json: bool) -> int:
    """List the agents."""
    return _list(server_url, token_file, as_json)


def _list(server_url: str, token_file: Path | None, as_json: bool) -> int:
    found = operate(server_url, token_file, lambda client: client.agents())
    headings = ("ID", "HOSTNAME", "STATE", "LAST SEEN", "RUNNING", "VERSION", "LABELS")
    write_table_or_json(found, as_json, headings, [_row(agent) for agent in found])
    return Exit.OK


@agents.command()
@_agents_argument
@operator_options
@json_options
def show(names: tuple[str, ...], server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Show everything that is known of agents."""

    async def work(client: OperatorClient) -> list[JsonObject]:
        return [await client.agent(agent_id) for agent_id in await _ids(client, names)]

    for agent in operate(server_url, token_file, work):
        if as_json:
            write_value(agent)
        else:
            write_table(("FIELD", "VALUE"), _details(agent))
    return Exit.OK


@agents.command()
@_agents_argument
@operator_options
@json_options
def drain(names: tuple[str, ...], server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Take agents out of service until they are resumed.

    They give back what they have not begun, finish what runs, hand in their results and stay
    registered.
    """
    return _order("drain", names, server_url, token_file, as_json)


@agents.command()
@_agents_argument
@operator_options
@json_options
def resume(names: tuple[str, ...], server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Grant drained agents work again."""
    return _order("resume", names, server_url, token_file, as_json)


@agents.command()
@_agents_argument
@yes_option
@operator_options
@json_options
def revoke(
    names: tuple[str, ...], yes: bool, server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Shut agents out and give their work to others.

    Their tokens end at once. An agent that is enabled again registers anew with the key it has.
    """
    confirm(f"revoke {', '.join(map(printable, names))}", yes)
    return _order("revoke", names, server_url, token_file, as_json)


@agents.command()
@_agents_argument
@operator_options
@json_options
def disable(names: tuple[str, ...], server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Refuse agents until they are enabled.

    Their tokens and leases stay as they are.
    """
    return _order("disable", names, server_url, token_file, as_json)


@agents.command()
@_agents_argument
@operator_options
@json_options
def enable(names: tuple[str, ...], server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Let agents in that were disabled or revoked."""
    return _order("enable", names, server_url, token_file, as_json)


def _order(
    verb: str, names: Sequence[str], server_url: str, token_file: Path | None, as_json: bool
) -> int:
    async def work(client: OperatorClient) -> None:
        for agent_id in await _ids(client, names):
            if verb in CHANGES:
                agent = await client.change_agent(agent_id, CHANGES[verb])
            else:
                agent = await client.order(agent_id, verb)
            if as_json:
                write_value(agent)
                continue
            hostname = printable(agent.get("hostname") or "-")
            returned = f", {agent.get('returned_leases')} leases went back" * (verb == "revoke")
            write_text(f"agent {agent_id} ({hostname}) {SAID[verb]}{returned}")

    operate(server_url, token_file, work)
    return Exit.OK


async def _ids(client: OperatorClient, names: Sequence[str]) -> list[int]:
    """Find every agent before anything is done to one.

    Raises:
        ConfigError: a name is nobody's, or several agents'.
    """
    hostnames = [name for name in names if not _is_id(name)]
    found = await client.agents() if hostnames else []
    ids: dict[str, int] = {name: int(name) for name in names if _is_id(name)}
    for name in hostnames:
        same = [int(agent["agent_id"]) for agent in found if agent.get("hostname") == name]
        if not same:
            raise ConfigError(f"no agent is named {name!r}; `netsonde agents` lists them")
        if len(same) > 1:
            listed = ", ".join(map(str, same))
            raise ConfigError(f"several agents are named {name!r}: say which by its id, {listed}")
        ids[name] = same[0]
    return list(dict.fromkeys(ids[name] for name in names))


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 16


def _state(agent: Mapping[str, Any]) -> str:
    """Say in a word how an agent stands."""
    if agent.get("revoked"):
        return "revoked"
    if agent.get("disabled"):
        return "disabled"
    if agent.get("drained"):
        is_idle = agent.get("state") == "draining" and not agent.get("active_leases")
        return "drained" if is_idle or agent.get("legacy") else "draining"
    return "draining" if agent.get("state") == "draining" else "enabled"


def _row(agent: Mapping[str, Any]) -> list[str]:
    labels = agent.get("labels") or {}
    return [
        str(agent.get("agent_id")),
        printable(agent.get("hostname") or "-"),
        _state(agent),
        instant(agent.get("last_seen_at")),
        _counts(agent.get("in_flight") or {}),
        printable(agent.get("version") or ("original" if agent.get("legacy") else "-")),
        printable(" ".join(f"{name}={value}" for name, value in labels.items()) or "-"),
    ]


def _counts(running: Mapping[str, Any]) -> str:
    return " ".join(f"{printable(kind)}:{count}" for kind, count in running.items() if count) or "-"


def _details(agent: Mapping[str, Any]) -> list[list[str]]:
    """Write an agent field by field."""
    return [["stands", _state(agent)], *fields_of(agent)]
