"""`netsonde token create|list|revoke`: what operators and new agents prove themselves with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import (
    DURATION,
    examples,
    json_options,
    operator_options,
    split_pair,
)
from netsonde.cli.output import (
    instant,
    printable,
    warn,
    write_table_or_json,
    write_text,
    write_value,
)
from netsonde.control_plane.operator import OperatorClient
from netsonde.errors import ConfigError, NetsondeError

SCOPES = (
    "read",
    "checks:write",
    "agents:write",
    "enrol:write",
    "configs:write",
    "tokens:write",
)

EPILOG = examples(
    "netsonde token create grafana --scope read > grafana",
    "netsonde token create ci --scope read --scope checks:write --expires 90d",
    "netsonde token create --enrol --uses 40 --expires 2h --label site=ams > rack",
    "netsonde token list --enrol",
    "netsonde token revoke 7",
)

enrol_option = click.option(
    "--enrol", "is_enrolment", is_flag=True, help="Tokens that new agents enrol with."
)


@click.group(epilog=EPILOG)
def token() -> None:
    """Make, list and revoke tokens of operators and, with --enrol, of new agents."""


@token.command()
@click.argument("name", required=False)
@enrol_option
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What its holder may do; repeatable. Operators' tokens need one.",
)
@click.option(
    "--expires",
    "expires_ms",
    type=DURATION,
    help="How long it is valid: for ever, or with --enrol 1d.",
)
@click.option(
    "--uses", type=click.IntRange(1, 100_000), help="With --enrol: how many agents it enrols (1)."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="With --enrol: a label of those agents; repeatable.",
)
@operator_options
@json_options
def create(
    name: str | None,
    is_enrolment: bool,
    server_url: str,
    token_file: Path | None,
    as_json: bool,
    **wish: Any,
) -> int:
    """Make a token called NAME and print it, once: netsonde token create ci --scope read.

    Standard output has the token and nothing else, as in:
    netsonde token create --enrol > /etc/netsonde/enrolment.
    """
    wanted = _enrolment_wish(name, wish) if is_enrolment else _operator_wish(name, wish)

    async def work(client: OperatorClient) -> Mapping[str, Any]:
        if is_enrolment:
            return await client.create_enrolment_token(wanted)
        return await client.create_token(wanted)

    made = operate(server_url, token_file, work)
    if as_json:
        write_value(made)
        return Exit.OK
    if not made.get("token"):
        raise NetsondeError(f"token {made.get('token_id')} was made and cannot be shown any more")
    warn(f"token {made.get('token_id')} {_about(made, is_enrolment)}; it is not shown again")
    write_text(printable(made["token"]))
    return Exit.OK


@token.command("list")
@enrol_option
@operator_options
@json_options
def list_tokens(is_enrolment: bool, server_url: str, token_file: Path | None, as_json: bool) -> int:
    """List the tokens of operators, or with --enrol those of new agents."""
    if is_enrolment:
        found = operate(server_url, token_file, lambda client: client.enrolment_tokens())
        headings = ("ID", "NAME", "USED", "EXPIRES", "CREATED", "LABELS")
        rows = [_enrolment_row(each) for each in found]
    else:
        found = operate(server_url, token_file, lambda client: client.tokens())
        headings = ("ID", "NAME", "SCOPES", "EXPIRES", "LAST USED", "CREATED")
        rows = [_operator_row(each) for each in found]
    write_table_or_json(found, as_json, headings, rows)
    return Exit.OK


@token.command()
@click.argument("token_ids", nargs=-1, required=True, type=click.IntRange(min=1), metavar="ID…")
@enrol_option
@operator_options
@json_options
def revoke(
    token_ids: tuple[int, ...],
    is_enrolment: bool,
    server_url: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Revoke tokens by their IDs, at once; agents that enrolled with one stay."""

    async def work(client: OperatorClient) -> None:
        for token_id in token_ids:
            if is_enrolment:
                answer = await client.revoke_enrolment_token(token_id)
            else:
                answer = await client.revoke_token(token_id)
            if as_json:
                write_value(answer)
            else:
                write_text(f"token {token_id} revoked")

    operate(server_url, token_file, work)
    return Exit.OK


def _operator_wish(name: str | None, wish: Mapping[str, Any]) -> dict[str, Any]:
    if wish["uses"] is not None or wish["labels"]:
        raise ConfigError("--uses and --label are for --enrol, which makes tokens of new agents")
    if name is None:
        raise ConfigError("a token of operators needs a NAME, by which the audit log knows it")
    if not wish["scopes"]:
        raise ConfigError(f"--scope is needed, any of {', '.join(SCOPES)}")
    wanted = {"name": name, "scopes": list(wish["scopes"])}
    return wanted | _expiry(wish)


def _enrolment_wish(name: str | None, wish: Mapping[str, Any]) -> dict[str, Any]:
    if wish["scopes"]:
        raise ConfigError("--scope is for tokens of operators: leave it or --enrol out")
    wanted = {"name": name, "uses": wish["uses"]}
    labels = dict(split_pair("--label", text) for text in wish["labels"])
    given = {key: value for key, value in wanted.items() if value is not None}
    return given | ({"labels": labels} if labels else {}) | _expiry(wish)


def _expiry(wish: Mapping[str, Any]) -> dict[str, Any]:
    return {} if wish["expires_ms"] is None else {"expires_in_ms": wish["expires_ms"]}


def _about(made: Mapping[str, Any], is_enrolment: bool) -> str:
    expires = f"until {printable(made['expires_at'])}" if made.get("expires_at") else "for ever"
    if is_enrolment:
        uses = made.get("uses")
        return f"enrols {'one agent' if uses == 1 else f'{uses} agents'}, {expires}"
    return f"allows {printable(', '.join(map(str, made.get('scopes') or ())))}, {expires}"


def _operator_row(each: Mapping[str, Any]) -> list[str]:
    return [
        str(each.get("token_id")),
        printable(each.get("name")),
        printable(" ".join(map(str, each.get("scopes") or ()))),
        instant(each.get("expires_at")),
        instant(each.get("last_used_at")),
        instant(each.get("created_at")),
    ]


def _enrolment_row(each: Mapping[str, Any]) -> list[str]:
    labels = each.get("labels") or {}
    return [
        str(each.get("token_id")),
        printable(each.get("name") or "-"),
        f"{each.get('used')}/{each.get('uses')}",
        instant(each.get("expires_at")),
        instant(each.get("created_at")),
        printable(" ".join(f"{name}={value}" for name, value in labels.items()) or "-"),
    ]
