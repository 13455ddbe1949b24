"""Name look-ups on real threads; the C library's part is a stand-in that hangs when told to."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS
from netsonde.errors import ResolveError
from netsonde.policy import TargetPolicy
from netsonde.probe import lookup
from netsonde.probe.lookup import LOOKUPS_MAX, SystemLookUp
from netsonde.probe.targets import TargetResolver

ENTRY = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))


class Library:
    """getaddrinfo(3): names that begin with "dead" get no answer until `revive`."""

    def __init__(self) -> None:
        self.revived = threading.Event()
        self.running = 0

    def getaddrinfo(self, name: str, *_: Any, **__: Any) -> list[Any]:
        self.running += 1
        if name.startswith("dead"):
            self.revived.wait(10)
        if name.startswith("odd"):
            raise UnicodeError("not a name")
        return [ENTRY]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    library = Library()
    monkeypatch.setattr(lookup, "getaddrinfo", library.getaddrinfo)
    yield library
    library.revived.set()


async def test_names_that_hang_do_not_hold_up_others(library: Library) -> None:
    resolver = TargetResolver(TargetPolicy.person())

    async def dead(number: int) -> None:
        with pytest.raises(ResolveError, match="not resolved within"):
            await resolver.resolve(f"dead{number}.example", timeout_ns=50 * NS_PER_MS)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(dead(number))
        assert await resolver.addresses("alive.example") == ("192.0.2.1",)
        assert not library.revived.is_set()
    assert await resolver.addresses("alive.example") == ("192.0.2.1",)


async def test_look_ups_at_once_are_bounded_and_the_next_one_waits(library: Library) -> None:
    look_up = SystemLookUp()

    async with asyncio.TaskGroup() as group:
        for number in range(LOOKUPS_MAX):
            group.create_task(look_up(f"dead{number}.example", 0))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await look_up("alive.example", 0)
        assert library.running == LOOKUPS_MAX
        library.revived.set()
        assert await look_up("alive.example", 0) == [ENTRY]
    assert library.running == LOOKUPS_MAX + 1


async def test_an_error_of_the_library_is_the_look_ups(library: Library) -> None:
    with pytest.raises(UnicodeError, match="not a name"):
        await SystemLookUp()("odd.example", 0)


HANGING = """
import asyncio, time
import uvloop
from netsonde.probe import lookup

async def main():
    lookup.getaddrinfo = lambda *_, **__: time.sleep(60)
    try:
        async with asyncio.timeout(0.1):
            await lookup.SystemLookUp()("dead.example", 0)
    except TimeoutError:
        print("given up")

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_a_name_that_was_given_up_does_not_keep_the_process() -> None:
    started_s = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30, check=True
    )
    assert (told.stdout, told.stderr) == ("given up\n", "")
    assert time.monotonic() - started_s < 20
