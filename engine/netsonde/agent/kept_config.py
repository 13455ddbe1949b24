"""What an agent remembers of signed configurations, on disk: one small file, replaced whole.

It is what keeps an old revision from being taken again after a restart, and a revision that ended
the process from ending the next one.
"""

import logging
from pathlib import Path

from msgspec import Struct, structs

from netsonde import wire
from netsonde.control_plane import credentials
from netsonde.dsse import Envelope
from netsonde.errors import StorageError

CRASHED_KEPT = 16  # an operator who signs more of them has looked away
FILE_MAX_BYTES = 2 << 20  # an envelope of the largest payload and many signatures

_log = logging.getLogger("netsonde.agent")


class Mark(Struct, frozen=True):
    """One revision, by number and by its payload's digest."""

    revision: int
    digest: str


class KeptConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The configuration in force, and those that were begun and not survived.

    `accepted` is the greatest revision that was ever in force, `applying` one that was begun,
    `crashed` are those during which the process ended.
    """

    accepted: Mark | None = None
    envelope: Envelope | None = None
    applying: Mark | None = None
    crashed: tuple[Mark, ...] = ()

    def after_crash(self) -> "KeptConfig":
        """Return what is to be remembered by who finds a revision that was begun."""
        if self.applying is None:
            return self
        crashed = (*self.crashed, self.applying)[-CRASHED_KEPT:]
        return structs.replace(self, applying=None, crashed=crashed)

    def in_force(self, mark: Mark, envelope: Envelope) -> "KeptConfig":
        """Return what is to be remembered once a revision is in force: older ones cannot return."""
        crashed = tuple(one for one in self.crashed if one.revision > mark.revision)
        return KeptConfig(accepted=mark, envelope=envelope, crashed=crashed)


def load(path: Path) -> KeptConfig:
    """Read the file; a damaged one is moved aside, and what it knew is lost.

    Raises:
        StorageError: it exists and cannot be read.
    """
    try:
        with path.open("rb") as file:
            body = file.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        return KeptConfig()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    try:
        return wire.decode_answer(KeptConfig, body)
    except wire.DecodeError:
        _log.error(
            "the kept configuration %s is damaged and was moved to %s: until a new one comes this"
            " agent works by its own settings, and takes any revision that is signed and in time",
            path,
            credentials.move_aside(path),
            extra={"action": "config_damaged", "path": str(path)},
        )
        return KeptConfig()


def save(path: Path, kept: KeptConfig) -> None:
    """Replace the file so that a crash at any point leaves the old one or the new one whole.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        credentials.replace_file(path, wire.encode(kept))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
