"""Any number of targets: given one by one, as prefixes, and in lists that are read as they come."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, NamedTuple

from netsonde import wire
from netsonde.errors import ConfigError, RequestError
from netsonde.model import HOST_MAX, TaskKind, TaskSpec
from netsonde.probe.prefixes import host_count, hosts_of, is_prefix, prefix_of

STANDARD_INPUT = "-"
CHUNK_BYTES = 1 << 16
LINE_MAX_BYTES = 4096  # of a line's start; what is longer is no target, whatever follows

_MISTAKES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


class TargetList(NamedTuple):
    """A list that has been opened."""

    path: str
    descriptor: int


@contextmanager
def opened(paths: Sequence[str]) -> Iterator[list[TargetList]]:
    """Open every list, `-` for standard input, so that a missing one is noticed at once.

    Raises:
        ConfigError: one cannot be read; names it.
    """
    lists: list[TargetList] = []
    try:
        for path in paths:
            lists.append(TargetList(path, _open(path)))
        yield lists
    finally:
        for each in lists:
            if each.descriptor != 0:
                os.close(each.descriptor)


def spec_maker(kind: TaskKind, options: Mapping[str, Any]) -> Callable[[str], TaskSpec]:
    """Check the options; return what makes the spec of a host, or raises RequestError for none.

    Raises:
        RequestError: an option is wrong.
    """
    make = wire.host_specs(kind, options)

    def spec_of(host: str) -> TaskSpec:
        if is_prefix(host):
            prefix_of(host)  # says what is wrong with it
        return make(host)

    return spec_of


def count_hosts(targets: Sequence[str], spec_of: Callable[[str], TaskSpec]) -> int:
    """Check targets that were given one by one; return how many hosts they are.

    Raises:
        RequestError: one is neither a host nor a prefix.
    """
    total = 0
    for target in targets:
        if is_prefix(target):
            total += host_count(prefix_of(target))
        else:
            spec_of(target)
            total += 1
    return total


def hosts_in(target: str) -> Iterator[str]:
    """Return a target's hosts; of one that is wrong itself, for its result to say so."""
    if is_prefix(target):
        with suppress(RequestError):
            return hosts_of(prefix_of(target))
    return iter((target,))


async def all_hosts(
    targets: Sequence[str], lists: Sequence[TargetList]
) -> AsyncGenerator[str, None]:
    """Yield the hosts of every target, then those of every list.

    Raises:
        ConfigError: a list cannot be read on.
    """
    for target in targets:
        for host in hosts_in(target):
            yield host
    for each in lists:
        async with aclosing(targets_in(each)) as lines:
            async for line in lines:
                for host in hosts_in(line):
                    yield host


async def targets_in(source: TargetList) -> AsyncGenerator[str, None]:
    """Yield what stands in the lines: not blanks around it, comments (#) and empty lines.

    Bytes that are no text are written as `\\xNN`, and what is too long to be a target is cut.

    Raises:
        ConfigError: it cannot be read on.
    """
    start = b""
    while chunk := await _read(source):
        *lines, start = (start + chunk).split(b"\n")
        for line in lines:
            if target := _target(line):
                yield target
        if len(start) > LINE_MAX_BYTES:
            start = start.lstrip()[:LINE_MAX_BYTES]
    if target := _target(start):
        yield target


def _target(line: bytes) -> str:
    text = line.partition(b"#")[0].strip()
    return text.decode("utf-8", "backslashreplace").strip()[: HOST_MAX + 1]


def _open(path: str) -> int:
    try:
        # A FIFO is opened at once, not when somebody writes to it.
        descriptor = 0 if path == STANDARD_INPUT else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            if descriptor != 0:
                os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except ValueError as error:  # a NUL in it
        raise ConfigError(f"target list {path!r} is not a file's name") from error
    except OSError as error:
        raise _unreadable(path, error) from (None if error.errno in _MISTAKES else error)
    return descriptor


async def _read(source: TargetList) -> bytes:
    while True:
        await _readable(source.descriptor)
        try:
            return os.read(source.descriptor, CHUNK_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _unreadable(source.path, error) from error


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


def _unreadable(what: str, error: OSError) -> ConfigError:
    return ConfigError(f"target list {what} cannot be read: {error.strerror or error}")
