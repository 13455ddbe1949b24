"""Where a host keeps netsonde's state, and the lock that gives it to one process."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netsonde.errors import StorageError

SYSTEM_STATE_DIR = Path("/var/lib/netsonde")
DATABASE = "server.db"  # the control plane's, in its state directory
AGENT_DIR = "agent"  # an agent's credentials and spool, below a shared state directory
LOCK_NAME = "up.lock"


def default_state_dir() -> Path:
    """Return root's /var/lib/netsonde, or the user's own (XDG Base Directory Specification)."""
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIR
    base = os.environ.get("XDG_STATE_HOME")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "state"
    return root / "netsonde"


def usable_dir(path: Path) -> Path:
    """Make path, for this user only, and return it.

    Raises:
        StorageError: path cannot be made or is not a directory this process may write.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error.strerror or "no such directory") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise _unusable(path, os.strerror(errno.EACCES))
    return path


@contextmanager
def owned_dir(path: Path) -> Iterator[Path]:
    """Make path and hold it: a second process that wants it is refused at once.

    Raises:
        StorageError: path cannot be made or written, or another process holds it.
    """
    handle = _open_lock(usable_dir(path))
    try:
        _lock(handle, path)
        yield path
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(
            f"state directory {path} is in use by another netsonde; "
            "stop that one, or name another directory with --state-dir"
        ) from error


def _unusable(path: Path, cause: str) -> StorageError:
    return StorageError(
        f"state directory {path} cannot be used: {cause}; name another with --state-dir"
    )
