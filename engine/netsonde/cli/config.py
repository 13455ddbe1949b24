"""`netsonde config keygen|sign|verify|publish|show`: signed configurations of a fleet's agents."""

import os
import secrets
import stat
import sys
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from netsonde import wire
from netsonde.ceiling import clamp, read_ceiling
from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import DURATION, json_options, operator_options, split_pair
from netsonde.cli.output import (
    printable,
    warn,
    write_table,
    write_table_or_json,
    write_text,
    write_value,
)
from netsonde.clock import NS_PER_S, SystemClock
from netsonde.control_plane.operator import OperatorClient
from netsonde.dsse import (
    SEED_BYTES,
    Envelope,
    PublicKey,
    SigningKey,
    TrustedKeys,
    payload_bytes,
    seal,
)
from netsonde.errors import ConfigError
from netsonde.model import MINTED_ID_MAX
from netsonde.remote_config import (
    PAYLOAD_TYPE,
    Payload,
    RemoteConfig,
    inspect,
    read_verified,
)

FILE_MAX_BYTES = 4 << 20  # an envelope has a quarter of it
KEY_FILE_MAX_BYTES = 16 << 10
DAY_MS = 86_400_000
EXPIRES_MS = 90 * DAY_MS
EXPIRES_MAX_MS = 3650 * DAY_MS  # what lives longer is never looked at again
ID_DIGITS_MAX = 16  # 2^53 has 16
STDIN = Path("-")
FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@click.group()
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
    _write_new(file, key.pem())
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
    keys = [_private_key(path) for path in key_files]
    values = _table(source)
    if "payload" in values:
        sealed = _signed_too(_envelope(values, source), keys, more)
    else:
        sealed = seal(PAYLOAD_TYPE, _payload(values, more), keys)
        inspect(sealed)
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
    sealed = _envelope(_table(file), file)
    verified = TrustedKeys(map(PublicKey, keys)).verify(sealed, PAYLOAD_TYPE)
    payload = read_verified(verified)
    lowered = () if ceiling is None else clamp(payload.config, _ceiling(ceiling))[1]
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
    sealed = _envelope(_table(file), file)
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


# ── files ──


def _write_new(path: Path, body: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists and is not overwritten: a lost key cannot be made again; name another"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _private_key(path: Path) -> SigningKey:
    body = _read(path, KEY_FILE_MAX_BYTES)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        warn(f"others can read the private key {path} (mode {mode:03o}): chmod 600 it")
    try:
        return SigningKey.from_pem(body)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; `netsonde config keygen` makes one") from error


def _read(path: Path, limit: int) -> bytes:
    try:
        if path == STDIN:
            body = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                body = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(body) > limit:
        raise ConfigError(f"{path} has more than {limit} bytes")
    return body


def _table(path: Path) -> dict[str, Any]:
    """Read a file of values: JSON when it begins so, else TOML."""
    body = _read(path, FILE_MAX_BYTES)
    try:
        is_json = body.lstrip()[:1] == b"{"
        value = wire.parse(body) if is_json else tomllib.loads(body.decode())
    except (wire.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is neither JSON nor TOML: {error}") from error
    return dict(value)


def _envelope(values: Mapping[str, Any], path: Path) -> Envelope:
    try:
        return msgspec.convert(values, Envelope)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path} is not an envelope ({error}): `netsonde config sign` makes one"
        ) from error


def _ceiling(path: Path) -> Any:
    try:
        return read_ceiling(_table(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


# ── payloads ──


def _payload(values: Mapping[str, Any], more: Mapping[str, Any]) -> bytes:
    if more["revision"] is None:
        raise ConfigError(
            "--revision is needed: one more than the greatest that `netsonde config show` lists"
        )
    now_s = SystemClock().realtime_ns() // NS_PER_S
    expires_ms = EXPIRES_MS if more["expires_ms"] is None else more["expires_ms"]
    if not 0 < expires_ms <= EXPIRES_MAX_MS:
        raise ConfigError(f"--expires must be more than 0 and at most {EXPIRES_MAX_MS // DAY_MS}d")
    try:
        config_values = msgspec.convert(values, RemoteConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the values are not a configuration's: {error}") from error
    return wire.encode(
        {
            "spec": 1,
            "revision": more["revision"],
            "issued_at": _instant(now_s),
            "expires_at": _instant(now_s + -(-expires_ms // 1000)),
            "scope": _scope(more),
            "config": config_values,
        }
    )


def _scope(more: Mapping[str, Any]) -> dict[str, Any]:
    labels = dict(split_pair("--label", text) for text in more["labels"])
    agents = [
        int(one) if one.isascii() and one.isdecimal() and len(one) <= ID_DIGITS_MAX else one
        for one in more["agents"]
    ]
    if labels and agents:
        raise ConfigError("--agent names the agents: give it without --label")
    if agents:
        return {"agents": agents}
    return {"labels": labels} if labels else {"all": True}


def _signed_too(sealed: Envelope, keys: Sequence[SigningKey], more: Mapping[str, Any]) -> Envelope:
    """Add signatures to an envelope; one that a key has made already is replaced."""
    given = [name for name in ("revision", "expires_ms", "labels", "agents") if more[name]]
    if given:
        raise ConfigError(
            "an envelope is signed as it is: --revision, --expires, --label and --agent are for new"
            " ones"
        )
    inspect(sealed)
    payload = payload_bytes(sealed)
    added = [key.sign(sealed.payload_type, payload) for key in keys]
    made = {one.keyid for one in added}
    kept = [one for one in sealed.signatures if one.keyid not in made]
    return msgspec.structs.replace(sealed, signatures=(*kept, *added))


def _instant(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
        printable(found.get("expires_at")),
        printable(found.get("published_at")),
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
