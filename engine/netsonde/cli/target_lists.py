"""Any number of targets: given one by one, as prefixes, and in lists that are read as they come."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from netsonde import wire
from netsonde.cli.inputs import Input, read_chunk
from netsonde.errors import RequestError
from netsonde.model import HOST_MAX, TaskKind, TaskSpec
from netsonde.probe.prefixes import host_count, hosts_of, is_prefix, prefix_of

LINE_MAX_BYTES = 4096  # of a line's start; what is longer is no target, whatever follows


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


async def all_hosts(targets: Sequence[str], lists: Sequence[Input]) -> AsyncGenerator[str, None]:
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


async def targets_in(source: Input) -> AsyncGenerator[str, None]:
    """Yield what stands in the lines: not blanks around it, comments (#) and empty lines.

    Bytes that are no text are written as `\\xNN`, and what is too long to be a target is cut.

    Raises:
        ConfigError: it cannot be read on.
    """
    start = b""
    while chunk := await read_chunk(source):
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
