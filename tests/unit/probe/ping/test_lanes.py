"""The lanes of a process: opened once, replaced when full, closed when nothing runs any more."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netsonde.clock import ManualClock
from netsonde.errors import ConfigError, NetsondeError, RouteError, SendError
from netsonde.probe.ping.lane import Lane, Monitor
from netsonde.probe.ping.lanes import Lanes
from netsonde.probe.ping.ways import Wanted
from netsonde.probe.trace.driver import TraceDriver, TraceRun
from support.trace_endings import Ending, echo
from support.trace_twin import TraceTwin

ADDRESS = "192.0.2.1"


def marked(mark: int) -> Wanted:
    return Wanted(None, None, mark)


class Bench:
    """Lanes over twins that can name one way each."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.opened: list[TraceTwin] = []
        self.backend = "raw"
        self.lanes = Lanes(self.clock, self.open, self.deaf)

    def open(self, family: int) -> TraceTwin:
        twin = TraceTwin(self.clock, family, backend=self.backend)
        twin.paths_max = 1
        self.opened.append(twin)
        return twin

    def deaf(self) -> Monitor:
        raise ConfigError("cannot hear network changes")

    @property
    def closed(self) -> list[bool]:
        return [engine.closed for engine in self.opened]

    async def trace(self, lane: Lane) -> "asyncio.Task[object]":
        """Start a trace that ends when the test says."""
        engine = next(each for each in self.opened if each is lane.engine)
        driver = TraceDriver(self.clock, engine, lane.driver)
        run = TraceRun(bytes([192, 0, 2, 1]).ljust(16, b"\0"))
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(driver.run(run))
        await self.clock.settle()
        return task


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.lanes.close()
    assert all(bench.closed)


async def test_a_lane_is_opened_once_for_each_family(bench: Bench) -> None:
    lane = bench.lanes.get(4)
    assert bench.lanes.get(4) is lane
    other = bench.lanes.get(6)
    assert [engine.family for engine in bench.opened] == [4, 6]
    assert [*bench.lanes] == [lane, other]


async def test_an_engine_without_a_lane_is_closed(bench: Bench) -> None:
    bench.backend = "packet"  # which must hear of changes
    with pytest.raises(ConfigError, match="cannot hear"):
        bench.lanes.get(4)
    assert (bench.closed, [*bench.lanes]) == ([True], [])


async def test_an_engine_that_cannot_be_opened_is_tried_anew(bench: Bench) -> None:
    def refuse(family: int) -> TraceTwin:
        if not refusals:
            return bench.open(family)
        raise refusals.pop()

    refusals = [SendError("open ICMP socket", 24, "Too many open files")]
    lanes = Lanes(bench.clock, refuse)
    with pytest.raises(SendError, match="Too many open files"):
        lanes.get(4)
    assert lanes.get(4).engine is bench.opened[0]
    lanes.close()


async def test_a_way_is_the_lanes_and_its_number(bench: Bench) -> None:
    lane, path = await bench.lanes.way(4, ADDRESS, marked(7))
    assert (lane, path) == (bench.lanes.get(4), 1)
    assert await bench.lanes.way(4, ADDRESS, marked(7)) == (lane, 1)
    assert await bench.lanes.way(4, ADDRESS, Wanted(None, None, None)) == (lane, 0)
    assert [path.mark for path in bench.opened[0].paths] == [7]


async def test_a_full_lane_makes_way_for_another(bench: Bench) -> None:
    first, _ = await bench.lanes.way(4, ADDRESS, marked(1))
    second, path = await bench.lanes.way(4, ADDRESS, marked(2))
    assert (first.is_retired, second.is_retired, path) == (True, False, 1)
    assert bench.lanes.get(4) is second
    await bench.clock.settle()
    assert bench.closed == [True, False]
    assert first.is_closed


async def test_what_runs_on_a_full_lane_goes_on_to_its_end(bench: Bench) -> None:
    first, _ = await bench.lanes.way(4, ADDRESS, marked(1))
    task = await bench.trace(first)
    second, _ = await bench.lanes.way(4, ADDRESS, marked(2))
    await bench.clock.settle()
    assert bench.closed == [False, False]
    assert set(bench.lanes) == {first, second}
    (request,) = bench.opened[0].traces
    bench.opened[0].end(request, Ending(answers=[echo(1)]))
    await task
    await bench.clock.settle()
    assert bench.closed == [True, False]


async def test_lanes_that_have_closed_are_forgotten_with_the_next(bench: Bench) -> None:
    for mark in range(1, 6):
        await bench.lanes.way(4, ADDRESS, marked(mark))
        await bench.clock.settle()
    assert bench.closed == [True] * 4 + [False]
    assert len([*bench.lanes]) == 2  # and the one that was retired last


async def test_a_lane_that_was_retired_meanwhile_is_not_given(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Lane.path

    async def meanwhile(lane: Lane, address: str, wanted: Wanted) -> int:
        path = await find(lane, address, wanted)
        if wanted == marked(1) and lane.engine is bench.opened[0]:
            await bench.lanes.way(4, address, marked(2))  # it is full with this one
        return path

    monkeypatch.setattr(Lane, "path", meanwhile)
    bench.lanes.get(4)
    lane, path = await bench.lanes.way(4, ADDRESS, marked(1))
    assert not lane.is_retired
    engine = next(each for each in bench.opened if each is lane.engine)
    assert engine.paths[path - 1].mark == 1


async def test_a_full_lane_is_replaced_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    find = Lane.path

    async def too_late(lane: Lane, address: str, wanted: Wanted) -> int:
        if wanted == marked(1) and lane.engine is bench.opened[0]:
            await bench.lanes.way(4, address, marked(2))  # somebody else has found it full
        return await find(lane, address, wanted)

    monkeypatch.setattr(Lane, "path", too_late)
    await bench.lanes.way(4, ADDRESS, marked(0xF))
    await bench.lanes.way(4, ADDRESS, marked(1))
    await bench.clock.settle()
    assert bench.closed == [True, True, False]


async def test_no_way_at_all_retires_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nowhere(_lane: Lane, address: str, wanted: Wanted) -> int:
        raise RouteError(f"cannot send to {address}")

    monkeypatch.setattr(Lane, "path", nowhere)
    lane = bench.lanes.get(4)
    with pytest.raises(RouteError):
        await bench.lanes.way(4, ADDRESS, marked(1))
    assert (lane.is_retired, bench.lanes.get(4)) == (False, lane)


async def test_an_engine_that_can_name_no_way_is_not_opened_for_ever(bench: Bench) -> None:
    bench.lanes.get(4)
    bench.opened[0].paths_max = 0
    with pytest.raises(SendError, match="choose a way: at most 0 paths"):
        await bench.lanes.way(4, ADDRESS, marked(1))
    assert len(bench.opened) == 1


async def test_close_ends_retired_lanes_too_and_is_not_for_ever(bench: Bench) -> None:
    first, _ = await bench.lanes.way(4, ADDRESS, marked(1))
    task = await bench.trace(first)
    await bench.lanes.way(4, ADDRESS, marked(2))
    bench.lanes.close()
    bench.lanes.close()
    assert (bench.closed, [*bench.lanes]) == ([True, True], [])
    with pytest.raises(NetsondeError, match="was closed"):
        await task
    assert not bench.lanes.get(4).is_closed
