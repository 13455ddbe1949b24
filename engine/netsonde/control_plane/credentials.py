"""An agent's identity on disk: one small file that must survive torn writes and curious readers."""

import logging
import os
import re
import secrets
import stat
from pathlib import Path

import msgspec
from msgspec import Struct

from netsonde import wire
from netsonde.errors import StorageError
from netsonde.model import RegisterResponse

KEY_BYTES = 16  # 128 bits: nobody guesses another agent's identity
FILE_MAX_BYTES = 1 << 20
MODE = 0o600
ASIDE_MAX = 100  # damaged files kept; a machine that makes more has another problem

logger = logging.getLogger("netsonde.agent")


class Credentials(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who this agent is; `registration` holds its token and belongs to `control_plane` only."""

    agent_key: str
    control_plane: str = ""
    prefix: str = ""
    is_legacy: bool = False
    registration: RegisterResponse | None = None

    def __repr__(self) -> str:
        agent_id = self.registration.agent_id if self.registration else None
        return f"Credentials(control_plane={self.control_plane!r}, agent_id={agent_id})"


def new_credentials() -> Credentials:
    """Make the identity of an agent that has none."""
    return Credentials(agent_key=secrets.token_hex(KEY_BYTES))


def load(path: Path) -> Credentials | None:
    """Read credentials; None when there are none yet, or only a damaged file.

    A damaged file is moved aside and reported, because its agent key cannot be made again. Group's
    and others' rights to the file are withdrawn.

    Raises:
        StorageError: the file exists and cannot be read.
    """
    try:
        body = _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read the credentials {path}: {error.strerror}") from error
    try:
        return _decode(body)
    except wire.DecodeError:
        # The decoder's words are not repeated: they quote the file, which may be most of a token.
        logger.error(  # noqa: TRY400 (as above)
            "the credentials %s are damaged and were moved to %s; this agent becomes a new one",
            path,
            move_aside(path),
            extra={"action": "credentials_damaged", "path": str(path)},
        )
        return None


def save(path: Path, credentials: Credentials) -> None:
    """Replace the file so that a crash at any point leaves the old one or the new one whole.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        replace_file(path, wire.encode(credentials))
    except OSError as error:
        raise StorageError(f"cannot write the credentials {path}: {error.strerror}") from error


def replace_file(path: Path, body: bytes) -> None:
    """Replace a file that only its owner may read, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, MODE), "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def without_registration(credentials: Credentials) -> Credentials:
    """Keep who the agent is and forget what one control plane gave it."""
    return msgspec.structs.replace(
        credentials, control_plane="", prefix="", is_legacy=False, registration=None
    )


def _decode(body: bytes) -> Credentials:
    credentials = wire.decode_answer(Credentials, body)
    if not re.fullmatch(f"[0-9a-f]{{{2 * KEY_BYTES}}}", credentials.agent_key):
        raise wire.DecodeError(f"agent_key is not {KEY_BYTES} bytes in hexadecimal")
    return credentials


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            os.fchmod(file.fileno(), MODE)
            logger.warning(
                "the credentials %s could be read by others (mode %03o); now they cannot",
                path,
                mode,
                extra={"action": "credentials_exposed", "path": str(path)},
            )
        return file.read(FILE_MAX_BYTES)


def move_aside(path: Path) -> Path:
    """Keep a damaged file under another name, and return that.

    Raises:
        StorageError: it cannot be moved.
    """
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in range(ASIDE_MAX))
    aside = next((name for name in names if not name.exists()), path.with_name(path.name + ".bad"))
    try:
        path.replace(aside)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot move {path} aside: {error.strerror}") from error
    return aside


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
