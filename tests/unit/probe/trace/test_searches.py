"""Searches carried over the engine's twin: what is sent when, and what is learnt."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from netsonde._native import icmp
from netsonde.clock import ManualClock
from netsonde.errors import NetsondeError, RequestError
from netsonde.probe.ping.driver import EchoDriver
from netsonde.probe.trace import searches
from netsonde.probe.trace.answers import Answer, Flag, Kind
from netsonde.probe.trace.driver import TraceDriver, TraceRun
from support.trace_endings import Ending, answer
from support.trace_twin import TraceTwin

TRACE = TraceRun(bytes([198, 51, 100, 7]).ljust(16, b"\0"))


class Script:
    """A search for TTLs that were given; `then` says which ones an answer makes due."""

    def __init__(self, *ttls: int, then: Callable[[int], list[int]] = lambda _: []) -> None:
        self.ready = list(ttls)
        self.learnt: list[tuple[int, Answer | None]] = []
        self._then = then

    def due(self) -> list[int]:
        due, self.ready = self.ready, []
        return due

    def take(self, probe: int, answer: Answer | None) -> None:
        self.learnt.append((probe, answer))
        self.ready += self._then(probe)


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = TraceTwin(self.clock)
        self.engine.plan = lambda request: Ending(answers=[answer(request.first_ttl)])
        self.echo = EchoDriver(self.clock, self.engine)
        self.driver = TraceDriver(self.clock, self.engine, self.echo)

    @property
    def sent(self) -> list[int]:
        """The TTLs of the probes that were sent."""
        return [request.first_ttl for request in self.engine.traces]

    async def carry(self, search: Script) -> None:
        await searches.carry(self.driver, search, TRACE.probe)

    async def start(self, search: Script) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self.carry(search))
        await self.clock.settle()
        return task

    async def end(self, number: int) -> None:
        request = self.engine.traces[number]
        self.engine.end(request, Ending(answers=[answer(request.first_ttl)]))
        await self.clock.settle()


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.driver.is_idle
    bench.echo.close()


async def test_a_search_that_wants_nothing_is_done(bench: Bench) -> None:
    search = Script()
    await bench.carry(search)
    assert (search.learnt, bench.sent) == ([], [])


async def test_each_probe_is_sent_once_and_its_answer_taken(bench: Bench) -> None:
    search = Script(1, 2, 3)
    await bench.carry(search)
    assert bench.sent == [1, 2, 3]
    assert sorted(search.learnt) == [(ttl, answer(ttl)) for ttl in (1, 2, 3)]


async def test_answers_make_more_due_until_none_do(bench: Bench) -> None:
    search = Script(1, then=lambda ttl: [2 * ttl, 2 * ttl + 1] if ttl < 8 else [])
    await bench.carry(search)
    assert sorted(bench.sent) == list(range(1, 16))
    assert sorted(probe for probe, _ in search.learnt) == list(range(1, 16))


async def test_a_slow_probe_keeps_nobody_waiting(bench: Bench) -> None:
    bench.engine.plan = lambda _: None
    search = Script(1, 2, then=lambda ttl: [ttl + 10] if ttl < 10 else [])
    task = await bench.start(search)
    await bench.end(1)
    assert bench.sent == [1, 2, 12]
    assert not task.done()
    await bench.end(2)
    await bench.end(0)
    await bench.end(3)
    await task
    assert [probe for probe, _ in search.learnt] == [2, 12, 1, 11]


async def test_so_many_are_under_way_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "IN_FLIGHT_MAX", 4)
    bench.engine.plan = lambda _: None
    task = await bench.start(Script(*range(1, 11)))
    for number in range(10):
        assert bench.sent == list(range(1, min(number + 4, 10) + 1))
        assert not task.done()
        await bench.end(number)
    await task


async def test_all_of_a_full_batch_are_learnt(bench: Bench) -> None:
    search = Script(*[1, 2, 3, 4] * searches.IN_FLIGHT_MAX)
    await bench.carry(search)
    assert len(search.learnt) == len(bench.sent) == 4 * searches.IN_FLIGHT_MAX


@pytest.mark.parametrize(
    ("ending", "learnt"),
    [
        (Ending(stop=icmp.STOPPED_MAX_HOPS, attempts=b"\3"), None),
        (Ending(answers=[answer(1, flags=Flag.LATE)]), None),
        (Ending(answers=[answer(1, kind=Kind.REFUSED)]), None),
        (Ending(answers=[answer(1)], stop=icmp.STOPPED_TX_ERROR), None),
        (
            Ending(answers=[answer(1, flags=Flag.LATE), answer(1, attempt=1)]),
            answer(1, attempt=1),
        ),
        (Ending(answers=[answer(1), answer(1, attempt=1)]), answer(1)),
    ],
)
async def test_the_first_answer_in_time_is_learnt(
    bench: Bench, ending: Ending, learnt: Answer | None
) -> None:
    bench.engine.plan = lambda _: ending
    search = Script(1)
    await bench.carry(search)
    assert search.learnt == [(1, learnt)]


async def test_what_the_engine_refuses_comes_out_as_itself(bench: Bench) -> None:
    bench.engine.wrong = 198
    search = Script(1, 2, 3)
    with pytest.raises(RequestError, match="cannot send this: size must be another"):
        await bench.carry(search)
    assert search.learnt == []


async def test_an_engine_that_is_closed_ends_the_search(bench: Bench) -> None:
    bench.engine.plan = lambda _: None
    task = await bench.start(Script(1, 2, 3))
    bench.echo.close()
    with pytest.raises(NetsondeError, match="was closed before the trace ended"):
        await task


async def test_a_search_that_is_cancelled_ends_what_is_under_way(bench: Bench) -> None:
    bench.engine.plan = lambda _: None
    task = await bench.start(Script(1, 2, 3))
    task.cancel()
    await bench.clock.settle()
    assert task.cancelled()
    tokens = [request.token for request in bench.engine.traces]
    assert sorted(bench.engine.cancelled_traces) == tokens
    assert len(tokens) == 3


async def test_a_bug_of_a_search_comes_out_as_itself(bench: Bench) -> None:
    class Broken(Script):
        def take(self, probe: int, answer: Any) -> None:
            raise ZeroDivisionError("by accident")

    with pytest.raises(ZeroDivisionError):
        await bench.carry(Broken(1))
