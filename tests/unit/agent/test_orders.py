"""Commands are carried out once each, in their order, and told of until that is known."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from netsonde.agent.orders import WAITING_MAX, Orders
from netsonde.clock import ManualClock
from netsonde.model import AgentCommand


class Bench:
    """Orders whose handlers note what they did; those of `drain` wait for the gate."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.did: list[str] = []
        self.told = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.orders = Orders({"drain": self._handler("drain"), "resume": self._handler("resume")})
        self.orders.on_done = self._tell

    def _tell(self) -> None:
        self.told += 1

    def _handler(self, name: str) -> Callable[[], Awaitable[None]]:
        async def handler() -> None:
            if name == "drain":
                await self.gate.wait()
            self.did.append(name)

        return handler

    async def take(self, *commands: tuple[int, str]) -> None:
        self.orders.take([AgentCommand(id=one, type=type_) for one, type_ in commands])
        await self.clock.settle()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.orders.run())
            yield
            task.cancel()


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_command_is_carried_out_once_however_often_it_comes(bench: Bench) -> None:
    async with bench.running():
        await bench.take((1, "drain"))
        await bench.take((1, "drain"), (2, "resume"))
        await bench.take((1, "drain"), (2, "resume"))
        assert bench.did == ["drain", "resume"]
        assert list(bench.orders.done) == [1, 2]
        assert bench.told == 2
        assert bench.orders.counters == {"drain": 1, "resume": 1}


async def test_it_is_told_of_until_an_answer_lists_it_no_more(bench: Bench) -> None:
    async with bench.running():
        await bench.take((1, "drain"))
        await bench.take((1, "drain"))
        assert list(bench.orders.done) == [1], "the answer to that heartbeat may have been lost"
        await bench.take()
        assert list(bench.orders.done) == []


async def test_it_is_done_only_when_it_has_been_carried_out(bench: Bench) -> None:
    bench.gate.clear()
    async with bench.running():
        await bench.take((1, "drain"))
        assert list(bench.orders.done) == []
        await bench.take((1, "drain"), (2, "resume"))
        assert bench.did == [], "one after another"
        bench.gate.set()
        await bench.clock.settle()
        assert bench.did == ["drain", "resume"]
        assert list(bench.orders.done) == [1, 2]


async def test_what_is_called_off_before_its_turn_is_not_done(bench: Bench) -> None:
    bench.gate.clear()
    async with bench.running():
        await bench.take((1, "drain"), (2, "resume"))
        await bench.take((1, "drain"), (3, "drain"))
        bench.gate.set()
        await bench.clock.settle()
        assert bench.did == ["drain", "drain"]
        assert list(bench.orders.done) == [1, 3]
        assert bench.orders.counters["called_off"] == 1


async def test_unknown_commands_are_left_alone_and_stay_open(bench: Bench) -> None:
    async with bench.running():
        await bench.take((1, "self_destruct"), (2, "resume"))
        await bench.take((1, "self_destruct"))
        assert bench.did == ["resume"]
        assert list(bench.orders.done) == []
        assert bench.orders.counters["unknown"] == 1


async def test_commands_that_wait_have_a_limit(bench: Bench) -> None:
    bench.gate.clear()
    every = [(number, "drain") for number in range(1, 3 * WAITING_MAX)]
    async with bench.running():
        await bench.take(*every)
        bench.gate.set()
        await bench.clock.settle(4 * WAITING_MAX)
        assert len(bench.did) == WAITING_MAX
        await bench.take(*every)
        await bench.clock.settle(4 * WAITING_MAX)
        assert len(bench.did) == 2 * WAITING_MAX, "the rest comes with the next answer"
