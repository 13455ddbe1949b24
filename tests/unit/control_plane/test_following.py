"""Following results over the memory transport, from a real operator API, through faults."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.control_plane import MemoryControlPlaneTransport
from netsonde.control_plane.following import IDLE_TIMEOUT_S, Followed, Outage, Resumed
from netsonde.control_plane.memory import (
    Answered,
    BrokenOff,
    Fault,
    Garbled,
    LostRequest,
    LostResponse,
    Truncated,
)
from netsonde.control_plane.operator import OperatorClient
from netsonde.errors import ControlPlaneError, ErrorCode, TransportError
from support.feeds import operator_transport
from support.stores import Caller, RegisteredAgent, callers

STREAM = "/v1/results/stream"


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


async def measured(agent: RegisteredAgent, count: int = 1) -> list[int]:
    await agent.caller.tasks(count)
    ids = [lease["lease_id"] for lease in await agent.claim(count)]
    await agent.report(*ids)
    return ids


class Following:
    """Follows results in a task of its own; `items` is what came."""

    def __init__(
        self, caller: Caller, transport: MemoryControlPlaneTransport, **query: Any
    ) -> None:
        self.items: list[Followed] = []
        self._caller = caller
        self._client = OperatorClient("http://x", transport=transport)
        self._query = query
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        follow = self._client.follow(self._query, clock=self._caller.clock, rng=Random(1))
        async with aclosing(follow) as items:
            async for item in items:
                self.items.append(item)

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            await self._caller.clock.settle(40)
            await self._caller.clock.advance(100 * NS_PER_MS)
        await self._caller.clock.settle(40)

    @property
    def lease_ids(self) -> list[int]:
        return [item["lease_id"] for item in self.items if isinstance(item, dict)]

    @property
    def events(self) -> list[Outage | Resumed]:
        return [item for item in self.items if not isinstance(item, dict)]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_results_come_over_one_stream_after_another(caller: Caller) -> None:
    agent, transport = await caller.register(), operator_transport(caller)
    following = Following(caller, transport)
    ids = []
    for _ in range(4):
        ids += await measured(agent, 2)
        await following.pass_time(20)
    assert following.lease_ids == ids
    assert following.events == [], "the end of a stream's time is no outage"
    assert 2 <= len(transport.requests) <= 3
    await following.stop()


async def test_it_begins_after_the_cursor_of_the_query(caller: Caller) -> None:
    agent = await caller.register()
    ids = await measured(agent, 5)
    _, page, _ = await caller.operator("GET", "/v1/results?limit=3")
    following = Following(caller, operator_transport(caller), cursor=page["cursor"], kind="tcp")
    await following.pass_time(1)
    assert following.lease_ids == ids[3:]
    await following.stop()


@pytest.mark.parametrize(
    "fault",
    [
        LostRequest(),
        LostResponse(),
        BrokenOff(300),
        Truncated(300),
        Answered(503, b"", {"Retry-After": "1"}),
        Answered(502, b"<html>bad gateway</html>"),
        Garbled(b'{"t":"r","cursor":7}\n'),
        Garbled(b'{"t":"r","cursor":"x"}\n'),
        Garbled(b'{"t":"r","cursor":"x","result":7}\n'),
        Garbled(b"<html>\n"),
        Garbled(b"x" * (wire.RESULT_LINE_MAX_BYTES + 1)),
    ],
)
async def test_an_outage_is_told_once_and_costs_nothing(caller: Caller, fault: Fault) -> None:
    agent, transport = await caller.register(), operator_transport(caller)
    following = Following(caller, transport)
    first = await measured(agent, 2)
    await following.pass_time(1)
    transport.inject(fault, path_end=STREAM, times=2)
    second = await measured(agent, 3)
    await following.pass_time(60)  # the stream that stands ends, and its followers meet the fault
    third = await measured(agent, 1)
    await following.pass_time(60)
    assert following.lease_ids == first + second + third
    assert [type(event) for event in following.events][:2] == [Outage, Resumed]
    assert all(not event.is_anew for event in following.events if isinstance(event, Resumed))
    await following.stop()


async def test_a_silent_connection_is_given_up(caller: Caller) -> None:
    agent, transport = await caller.register(), operator_transport(caller)
    following = Following(caller, transport)
    await following.pass_time(1)
    transport.is_partitioned = True
    ids = await measured(agent, 2)
    await following.pass_time(IDLE_TIMEOUT_S + 5)
    assert [type(event) for event in following.events] == [Outage]
    transport.is_partitioned = False
    await following.pass_time(10)
    assert following.lease_ids == ids
    resumed = following.events[-1]
    assert isinstance(resumed, Resumed)
    assert resumed.after_ms > 0
    await following.stop()


async def test_a_shutdown_is_an_outage(caller: Caller) -> None:
    following = Following(caller, operator_transport(caller))
    await following.pass_time(1)
    caller.plane.close()
    await following.pass_time(1)
    (event,) = following.events[:1]
    assert isinstance(event, Outage)
    assert "shutting down" in str(event.error)
    await following.stop()


async def test_results_that_are_gone_are_begun_after_and_that_is_said(
    caller: Caller, tmp_path: Path
) -> None:
    old = await caller.register()
    await measured(old, 5)
    transport = operator_transport(caller)
    following = Following(caller, transport)
    await following.pass_time(1)
    for other in callers("memory", tmp_path):  # restarted with an empty database
        agent = await other.register()
        ids = await measured(agent, 2)
        caller.operators = other.operators
        caller.plane.close()
        for _ in range(100):
            await other.clock.advance(100 * NS_PER_MS)
            await following.pass_time(0.1)
        assert following.lease_ids[5:] == ids
        assert [type(event) for event in following.events] == [Outage, Resumed]
        assert following.events[1] == Resumed(following.events[1].after_ms, is_anew=True)  # type: ignore[union-attr]
        await following.stop()


async def test_a_query_that_is_refused_ends_it(caller: Caller) -> None:
    following = Following(caller, operator_transport(caller), kind="quic")
    await following.pass_time(0.1)
    error = following.task.exception()
    assert isinstance(error, ControlPlaneError)
    assert error.code == ErrorCode.VALIDATION


@pytest.mark.parametrize("answer", [Answered(200, b"<html>"), Answered(200, b'{"results":[]}')])
async def test_what_is_no_such_server_is_not_asked_again(caller: Caller, answer: Fault) -> None:
    transport = operator_transport(caller)
    transport.inject(answer, path_end=STREAM, times=100)
    following = Following(caller, transport)
    await following.pass_time(0.1)
    assert isinstance(following.task.exception(), wire.DecodeError)


async def test_a_server_that_ends_every_stream_at_once_is_not_asked_in_a_loop(
    caller: Caller,
) -> None:
    transport = operator_transport(caller)
    transport.inject(
        Answered(200, b'{"t":"end","reason":"wait"}\n', {"Content-Type": wire.NDJSON}),
        path_end=STREAM,
        times=1000,
    )
    following = Following(caller, transport)
    await following.pass_time(5)
    assert len(transport.requests) <= 25
    await following.stop()


async def test_a_server_that_is_away_is_asked_seldom(caller: Caller) -> None:
    transport = operator_transport(caller)
    transport.inject(LostRequest(), path_end=STREAM, times=1000)
    following = Following(caller, transport)
    await following.pass_time(60)
    assert [type(event) for event in following.events] == [Outage]
    assert isinstance(following.events[0], Outage)
    assert isinstance(following.events[0].error, TransportError)
    assert 10 <= len(transport.requests) <= 60
    await following.stop()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cuts=st.lists(st.integers(0, 900), min_size=1, max_size=8), count=st.integers(1, 8))
async def test_cut_after_any_byte_the_union_is_what_was_accepted(
    caller: Caller, cuts: list[int], count: int
) -> None:
    """A cut may fall into a line, between two, and before the first."""
    for fresh in callers("memory", Path()):
        agent, transport = await fresh.register(), operator_transport(fresh)
        ids = await measured(agent, count)
        for cut in cuts:
            transport.inject(BrokenOff(cut), path_end=STREAM)
        following = Following(fresh, transport)
        late: list[int] = []
        for _ in range(200):
            if not transport._script and len(following.lease_ids) == len(ids + late):
                break
            if len(late) < 4:
                late += await measured(agent)
            await fresh.clock.settle(40)
            await fresh.clock.advance(2 * NS_PER_S)
        await fresh.clock.settle(40)
        assert following.lease_ids == ids + late
        await following.stop()
