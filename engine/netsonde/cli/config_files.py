"""The files that `netsonde config` reads and writes: keys, values, envelopes, ceilings."""

import os
import stat
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from netsonde import wire
from netsonde.ceiling import Ceiling, read_ceiling
from netsonde.cli.output import warn
from netsonde.dsse import Envelope, SigningKey
from netsonde.errors import ConfigError
from netsonde.settings_file import read_bytes

FILE_MAX_BYTES = 4 << 20  # an envelope has a quarter of it
KEY_FILE_MAX_BYTES = 16 << 10
STDIN = Path("-")


def write_new(path: Path, body: bytes) -> None:
    """Write a file that only its owner may read, and never over another.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
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


def private_key(path: Path) -> SigningKey:
    """Read a private key; warn when others can read it, too.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    body = _read(path, KEY_FILE_MAX_BYTES)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        warn(f"others can read the private key {path} (mode {mode:03o}): chmod 600 it")
    try:
        return SigningKey.from_pem(body)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; `netsonde config keygen` makes one") from error


def _read(path: Path, limit: int) -> bytes:
    return read_bytes(path, limit, sys.stdin.buffer if path == STDIN else None)


def read_table(path: Path) -> dict[str, Any]:
    """Read a file of values: JSON when it begins so, else TOML.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    body = _read(path, FILE_MAX_BYTES)
    try:
        is_json = body.lstrip()[:1] == b"{"
        value = wire.parse(body) if is_json else tomllib.loads(body.decode())
    except (wire.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is neither JSON nor TOML: {error}") from error
    return dict(value)


def read_envelope(values: Mapping[str, Any], path: Path) -> Envelope:
    """Return the envelope that the values of the file at path are.

    Raises:
        ConfigError: they are none.
    """
    try:
        return msgspec.convert(values, Envelope)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path} is not an envelope ({error}): `netsonde config sign` makes one"
        ) from error


def read_ceiling_file(path: Path) -> Ceiling:
    """Read an agent's ceiling file.

    Raises:
        ConfigError: naming what is wrong with it.
    """
    try:
        return read_ceiling(read_table(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
