"""Files and pipes that a command reads as they come, in constant memory."""

import asyncio
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from netsonde.errors import ConfigError

STANDARD_INPUT = "-"
CHUNK_BYTES = 1 << 16

_MISTAKES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


class Input(NamedTuple):
    """A file that has been opened; `what` is what errors call it."""

    path: str
    descriptor: int
    what: str = "target list"


@contextmanager
def opened(paths: Sequence[str], what: str = "target list") -> Iterator[list[Input]]:
    """Open every file, `-` for standard input, so that a missing one is noticed at once.

    Raises:
        ConfigError: one cannot be read; names it.
    """
    inputs: list[Input] = []
    try:
        for path in paths:
            inputs.append(Input(path, _open(path, what), what))
        yield inputs
    finally:
        for each in inputs:
            if each.descriptor != 0:
                os.close(each.descriptor)


def _open(path: str, what: str) -> int:
    try:
        # A FIFO is opened at once, not when somebody writes to it.
        descriptor = 0 if path == STANDARD_INPUT else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            if descriptor != 0:
                os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except ValueError as error:  # a NUL in it
        raise ConfigError(f"{what} {path!r} is not a file's name") from error
    except OSError as error:
        raise _unreadable(what, path, error) from (None if error.errno in _MISTAKES else error)
    return descriptor


async def read_chunk(source: Input) -> bytes:
    """Return what can be read, waiting for it; nothing at the end.

    Raises:
        ConfigError: it cannot be read on.
    """
    while True:
        await _readable(source.descriptor)
        try:
            return os.read(source.descriptor, CHUNK_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _unreadable(source.what, source.path, error) from error


async def _readable(descriptor: int) -> None:
    """Wait until a read will not block; of what cannot be waited for it never does for long."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_reader(descriptor, tell)
    except PermissionError:  # epoll_ctl(2) of a file or of /dev/null
        await asyncio.sleep(0)
        return
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _unreadable(what: str, path: str, error: OSError) -> ConfigError:
    return ConfigError(f"{what} {path} cannot be read: {error.strerror or error}")
