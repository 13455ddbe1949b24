"""`netsonde config keygen|sign|verify|publish|show`: signed configurations of a fleet's agents."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from netsonde import wire
from netsonde.ceiling import clamp
from netsonde.cli.config_files import (
    private_key,
    read_ceiling_file,
    read_envelope,
    read_table,
    write_new,
)
from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import DURATION, examples, json_options, operator_options
from netsonde.cli.output import (
    instant,
    printable,
    write_table,
    write_table_or_json,
    write_text,
    write_value,
)
from netsonde.cli.signing import Wanted, new_envelope, signed_too
from netsonde.clock import SystemClock
from netsonde.control_plane.operator import OperatorClient
from netsonde.dsse import SEED_BYTES, PublicKey, SigningKey, TrustedKeys
from netsonde.model import MINTED_ID_MAX
from netsonde.remote_config import PAYLOAD_TYPE, Payload, inspect, read_verified

EPILOG = examples(
    "netsonde config keygen fleet.pem",
    "netsonde config sign values.toml --key fleet.pem --revision 18 --label site=ams > 18.json",
    "netsonde config verify 18.json --key ed25519:… --ceiling ceiling.toml",
    "netsonde config publish 18.json",
    "netsonde config show 18",
)
FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@click.group(epilog=EPILOG)
def config() -> None:
    """Sign, check and publish the configuration of a fleet's agents.

    The private key stays with whoever signs: neither the control plane nor an agent needs it.
    """


@config.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@json_options
def keygen(file: Path, as_json: bool) -> int:
    """Make a key, write its private half to FILE and print the public one.

    FILE is readable by you only, and is never overwritten. The public key goes into the setting
    trusted_keys of every agent.
    """
    key = SigningKey(secrets.token_bytes(SEED_BYTES))
    write_new(file, key.pem())
    public = key.public
    if as_json:
        write_value({"keyid": public.keyid, "public_key": public.text, "file": str(file)})
    else:
        write_text(f"key id      {public.keyid}")
        write_text(f"public key  {public.text}")
        write_text(f"private key in {printable(file)}: keep it off control planes and agents")
    return Exit.OK


@config.command()
@click.argument("source", type=FILE, metavar="FILE")
@click.option(
    "--key",
    "key_files",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private key; may be repeated, as while keys are exchanged.",
)
@click.option(
    "--revision", type=click.IntRange(1, MINTED_ID_MAX), help="Greater than any published before."
)
@click.option(
    "--expires", "expires_ms", type=DURATION, help="How long from now on it may be taken (90d)."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only agents whose own settings have this label.",
)
@click.option("--agent", "agents", multiple=True, metavar="ID|HOSTNAME", help="Only this agent.")
@json_options
def sign(source: Path, key_files: tuple[Path, ...], as_json: bool, **more: Any) -> int:
    """Sign the values in FILE (TOML or JSON, - for standard input) and print the envelope.

    Without --label and --agent it is for all agents. An envelope in FILE keeps its payload and its
    signatures, and gets another from each key.
    """
    keys = [private_key(path) for path in key_files]
    values, wanted = read_table(source), Wanted(**more)
    if "payload" in values:
        sealed = signed_too(read_envelope(values, source), wanted, keys)
    else:
        sealed = new_envelope(values, wanted, keys)
    write_value(sealed)
    return Exit.OK


@config.command()
@click.argument("file", type=FILE, metavar="FILE")
@click.option(
    "--key",
    "keys",
    multiple=True,
    required=True,
    metavar="ed25519:…",
    help="Public key that is trusted; may be repeated.",
)
@click.option(
    "--ceiling",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An agent's ceiling file: say what it would lower.",
)
@json_options
def verify(file: Path, keys: tuple[str, ...], ceiling: Path | None, as_json: bool) -> int:
    """Check an envelope as an agent would, and show what it says.

    It ends with 1 when the configuration is rightly signed and has expired.
    """
    sealed = read_envelope(read_table(file), file)
    verified = TrustedKeys(map(PublicKey, keys)).verify(sealed, PAYLOAD_TYPE)
    payload = read_verified(verified)
    lowered = () if ceiling is None else clamp(payload.config, read_ceiling_file(ceiling))[1]
    found = {
        **_described(payload),
        "digest": verified.digest,
        "keyids": verified.keyids,
        "expired": payload.is_expired(SystemClock().realtime_ns()),
        "clamped": msgspec.to_builtins(lowered),
    }
    code = Exit.TARGET_FAILED if found["expired"] else Exit.OK
    if as_json:
        write_value(found)
        return code
    write_text(f"revision {payload.revision}, signed by {', '.join(verified.keyids)}")
    write_text(f"for {_scope_text(found['scope'])}; {_ends(found)}")
    write_text(wire.encode(payload.config).decode())
    for one in lowered:
        write_text(printable(f"above the ceiling: {one.path} = {one.asked}, {one.applied}"))
    return code


@config.command()
@click.argument("file", type=FILE, metavar="FILE")
@operator_options
@json_options
def publish(file: Path, server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Hand an envelope to the control plane, which hands it to the agents it is for."""
    sealed = read_envelope(read_table(file), file)
    inspect(sealed)
    body = wire.parse(wire.encode(sealed))
    made = operate(server_url, token_file, lambda client: client.publish_config(body))
    if as_json:
        write_value(made)
    else:
        revision, scope = made.get("revision"), _scope_text(made.get("scope") or {})
        write_text(f"configuration {revision} published for {scope}")
        write_text(f"netsonde config show {revision} says what the agents make of it")
    return Exit.OK


@config.command()
@click.argument("revision", type=click.IntRange(1, MINTED_ID_MAX), required=False)
@operator_options
@json_options
def show(revision: int | None, server_url: str, token_file: Path | None, as_json: bool) -> int:
    """List the published configurations, or show one and what the agents make of it."""
    if revision is None:
        found = operate(server_url, token_file, lambda client: client.configs())
        headings = ("REVISION", "FOR", "SIGNED BY", "EXPIRES", "PUBLISHED")
        write_table_or_json(found, as_json, headings, [_row(each) for each in found])
        return Exit.OK

    async def look(client: OperatorClient) -> dict[str, Any]:
        return await client.config(revision) | {"status": await client.config_status(revision)}

    one = operate(server_url, token_file, look)
    if as_json:
        write_value(one)
        return Exit.OK
    write_text(f"revision {revision} for {_scope_text(one.get('scope') or {})}; {_ends(one)}")
    write_text(printable(wire.encode(one.get("config")).decode()))
    headings = ("ID", "HOSTNAME", "STATUS", "IN FORCE", "WHY")
    status: Mapping[str, Any] = one["status"]
    write_table(headings, [_agent_row(agent) for agent in status.get("agents") or ()])
    counts: Mapping[str, Any] = status.get("counts") or {}
    write_text(", ".join(f"{count} {printable(name)}" for name, count in counts.items()))
    return Exit.OK


# ── for people ──


def _described(payload: Payload) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(payload)
    return described


def _scope_text(scope: Mapping[str, Any]) -> str:
    if scope.get("labels"):
        pairs = " ".join(f"{name}={value}" for name, value in scope["labels"].items())
        return printable(f"agents with {pairs}")
    if scope.get("agents"):
        return printable("agents " + ", ".join(map(str, scope["agents"])))
    return "all agents"


def _ends(found: Mapping[str, Any]) -> str:
    verb = "expired" if found.get("expired") else "expires"
    return printable(f"{verb} {found.get('expires_at')}")


def _row(found: Mapping[str, Any]) -> list[str]:
    return [
        str(found.get("revision")),
        _scope_text(found.get("scope") or {}),
        printable(" ".join(map(str, found.get("keyids") or ()))),
        instant(found.get("expires_at")),
        instant(found.get("published_at")),
    ]


def _agent_row(agent: Mapping[str, Any]) -> list[str]:
    in_force = agent.get("applied")
    why = ": ".join(str(agent[name]) for name in ("reason", "error") if agent.get(name))
    lowered = ", ".join(str(one.get("path")) for one in agent.get("clamped") or ())
    stale = "expired, still in force" if agent.get("stale") else ""
    reasons = [why, f"lowered: {lowered}" if lowered else "", stale]
    return [
        str(agent.get("agent_id")),
        printable(agent.get("hostname") or "-"),
        printable(agent.get("status")),
        "-" if in_force is None else str(in_force),
        printable("; ".join(filter(None, reasons)) or "-"),
    ]
