"""What an agent remembers of signed configurations, on disk: one small file, replaced whole.

It is what keeps an old revision from being taken again after a restart, and a revision that ended
the process from ending the next one. One in whose midst the whole host went down may be innocent: a
power cut comes when it likes. It is tried once more.
"""

import logging
from contextlib import suppress
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

    `accepted` is the greatest revision that was ever in force, `applying` one that was begun, and
    `boot_id` the boot of the host during which it was; `interrupted` is the last one in whose midst
    the host went down, `crashed` are those during which the process ended.
    """

    accepted: Mark | None = None
    envelope: Envelope | None = None
    applying: Mark | None = None
    boot_id: str = ""
    interrupted: Mark | None = None
    crashed: tuple[Mark, ...] = ()

    def begun(self, mark: Mark, boot_id: str) -> "KeptConfig":
        """Return what is to be remembered before the first value of a revision is set."""
        return structs.replace(self, applying=mark, boot_id=boot_id)

    def given_up(self) -> "KeptConfig":
        """Return what is to be remembered when what was begun has been undone."""
        return structs.replace(self, applying=None, boot_id="")

    def after_end(self, boot_id: str) -> "KeptConfig":
        """Return what is to be remembered by who finds, in this boot, a revision that was begun."""
        if self.applying is None:
            return self
        is_other_boot = "" not in {boot_id, self.boot_id} and boot_id != self.boot_id
        if is_other_boot and self.applying != self.interrupted:
            return structs.replace(self.given_up(), interrupted=self.applying)
        crashed = (*self.crashed, self.applying)[-CRASHED_KEPT:]
        return structs.replace(self.given_up(), crashed=crashed)

    def in_force(self, mark: Mark, envelope: Envelope) -> "KeptConfig":
        """Return what is to be remembered once a revision is in force: older ones cannot return."""
        crashed = tuple(one for one in self.crashed if one.revision > mark.revision)
        interrupted = self.interrupted
        if interrupted is not None and interrupted.revision <= mark.revision:
            interrupted = None
        return KeptConfig(
            accepted=mark, envelope=envelope, interrupted=interrupted, crashed=crashed
        )


class ConfigMemory:
    """The file of one agent, and what it says; `boot_id` names this boot of the host, if known."""

    def __init__(self, path: Path, boot_id: str | None) -> None:
        self.kept = KeptConfig()
        self._path = path
        self._boot_id = boot_id or ""

    def recall(self) -> Mark | None:
        """Read the file; return the revision during which the process ended, where one did.

        Raises:
            StorageError: it exists and cannot be read.
        """
        found = load(self._path)
        self.kept = found.after_end(self._boot_id)
        if found.applying is None:
            return None
        with suppress(StorageError):  # as it stands the file says so too
            save(self._path, self.kept)
        if found.applying in self.kept.crashed:
            return found.applying
        _log.warning(
            "this host went down while configuration %d was applied: it is tried once more",
            found.applying.revision,
            extra={"action": "config_interrupted", "revision": found.applying.revision},
        )
        return None

    def keep(self, kept: KeptConfig) -> None:
        """Remember durably. On this thread: the file is small and written twice per revision.

        Raises:
            StorageError: the disk would not have it.
        """
        save(self._path, kept)
        self.kept = kept

    def begin(self, mark: Mark) -> None:
        """Remember that a revision is about to be set.

        Raises:
            StorageError: the disk would not have it.
        """
        self._keep_unless_again(self.kept.begun(mark, self._boot_id), mark)

    def finish(self, mark: Mark, envelope: Envelope) -> None:
        """Remember that a revision is in force.

        Raises:
            StorageError: the disk would not have it.
        """
        self._keep_unless_again(self.kept.in_force(mark, envelope), mark)

    def _keep_unless_again(self, kept: KeptConfig, mark: Mark) -> None:
        """Remember how far it is; one that was in force before is so again without a disk, too."""
        try:
            self.keep(kept)
        except StorageError as error:
            if mark != self.kept.accepted:
                raise
            self.kept = kept
            text = "%s; configuration %d was in force before and is again"
            _log.warning(text, error, mark.revision, extra={"action": "config_not_kept"})


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
