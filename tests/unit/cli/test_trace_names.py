"""Names of addresses: each asked for once, some at once, and never waited for long."""

import asyncio

from netsonde.cli import trace_names
from netsonde.cli.trace_names import AT_ONCE_MAX, ReverseNames


class Server:
    """Answers when it is let go, and only addresses that end in 1."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.running = self.most = 0
        self.open = asyncio.Event()

    async def name_of(self, address: str) -> str | None:
        self.asked.append(address)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
        finally:
            self.running -= 1
        return f"host-{address}" if address.endswith("1") else None


async def turns() -> None:
    """Let the loop do all that waits for nothing."""
    for _ in range(8):
        await asyncio.sleep(0)


async def test_only_addresses_with_a_name_have_one() -> None:
    server = Server()
    server.open.set()
    async with ReverseNames(server.name_of) as names:
        found = await names.of(["192.0.2.1", "192.0.2.2", "2001:db8::1"])
        assert found == {"192.0.2.1": "host-192.0.2.1", "2001:db8::1": "host-2001:db8::1"}
        assert await names.of([]) == {}


async def test_an_address_is_asked_for_once() -> None:
    server = Server()
    async with ReverseNames(server.name_of) as names, asyncio.TaskGroup() as group:
        waiting = [group.create_task(names.of(["192.0.2.1", "192.0.2.2"])) for _ in range(3)]
        await asyncio.sleep(0)
        server.open.set()
    assert [await each for each in waiting] == [{"192.0.2.1": "host-192.0.2.1"}] * 3
    assert sorted(server.asked) == ["192.0.2.1", "192.0.2.2"]


async def test_questions_at_once_are_bounded() -> None:
    server = Server()
    addresses = [f"192.0.2.{number}" for number in range(AT_ONCE_MAX * 2)]
    async with ReverseNames(server.name_of) as names, asyncio.TaskGroup() as group:
        found = group.create_task(names.of(addresses))
        await turns()
        assert server.running == AT_ONCE_MAX
        server.open.set()
    assert len(await found) == sum(each.endswith("1") for each in addresses)
    assert server.most == AT_ONCE_MAX


async def test_nobody_waits_longer_than_agreed_and_what_comes_later_is_kept() -> None:
    server = Server()
    async with ReverseNames(server.name_of, wait_s=0) as names:
        assert await names.of(["192.0.2.1"]) == {}
        server.open.set()
        await turns()
        assert await names.of(["192.0.2.1"]) == {"192.0.2.1": "host-192.0.2.1"}
        assert server.asked == ["192.0.2.1"]


async def test_what_is_still_asked_for_is_given_up_at_the_end() -> None:
    server = Server()
    async with ReverseNames(server.name_of, wait_s=0) as names:
        await names.of(["192.0.2.1", "192.0.2.2"])
        await turns()
        assert server.running == 2
    assert server.running == 0


async def test_the_oldest_names_are_forgotten() -> None:
    server = Server()
    server.open.set()
    async with ReverseNames(server.name_of) as names:
        for number in range(trace_names.KEPT_MAX + 1):
            await names.of([f"a{number}"])
        await names.of(["a1", f"a{trace_names.KEPT_MAX}"])
        assert len(server.asked) == trace_names.KEPT_MAX + 1
        await names.of(["a0"])
        assert server.asked[-1] == "a0"
