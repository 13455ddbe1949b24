"""Uploading tasks over the memory transport, to a real operator API, through faults."""

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.control_plane import MemoryControlPlaneTransport
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
from netsonde.control_plane.uploading import FAILURES_MAX, FIRST_FAILURES_MAX, Uploader
from netsonde.errors import ControlPlaneError, TransportError
from support.feeds import operator_transport, task_line
from support.stores import Caller, callers

T = TypeVar("T")
STREAMED = {"Content-Type": wire.NDJSON}


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


def uploader(caller: Caller, transport: MemoryControlPlaneTransport, key: str = "k") -> Uploader:
    client = OperatorClient("http://x", transport=transport)
    return client.uploader(key, clock=caller.clock, rng=Random(1))


async def sent(uploader: Uploader, lines: list[bytes], first_line: int = 1) -> list[Any]:
    return [answer async for answer in uploader.answers(first_line, lines)]


async def passing(caller: Caller, work: Coroutine[Any, Any, T]) -> T:
    """Let time pass until work is done."""
    task = asyncio.get_running_loop().create_task(work)
    for _ in range(2_000):
        await caller.clock.settle(40)
        if task.done():
            break
        await caller.clock.advance(100 * NS_PER_MS)
    return task.result()


async def queued(caller: Caller) -> int:
    _, answer, _ = await caller.operator("GET", "/v1/queues")
    return sum(queue["ready"] for queue in answer["queues"])


def some_lines(count: int) -> list[bytes]:
    return [task_line(priority=at % 100).rstrip(b"\n") for at in range(count)]


async def test_each_line_has_its_answer(caller: Caller) -> None:
    lines = [*some_lines(2), b'{"kind":7}', *some_lines(1)]
    answers = await passing(caller, sent(uploader(caller, operator_transport(caller)), lines, 11))
    assert [answer.line for answer in answers] == [11, 12, 13, 14]
    assert [answer.task_id is None for answer in answers] == [False, False, True, False]
    assert answers[2].error == "ERR_VALIDATION"
    assert "kind" in answers[2].message


async def test_more_lines_than_one_stream_takes(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LINES_MAX", 4)
    transport = operator_transport(caller)
    answers = await passing(caller, sent(uploader(caller, transport), some_lines(10)))
    assert [answer.line for answer in answers] == list(range(1, 11))
    assert await queued(caller) == 10
    assert len(transport.requests) == 3


@pytest.mark.parametrize(
    "fault",
    [
        LostRequest(),
        LostResponse(),
        BrokenOff(0),
        BrokenOff(100),
        Truncated(100),
        Answered(503, b"", {"Retry-After": "1"}),
        Answered(429),
        Garbled(b'{"t":"end","reason":"time","through":0}\n'),
        Garbled(
            b'{"t":"end","reason":"error","error":{"error":"ERR_UNAVAILABLE","message":"later",'
            b'"retryable":true}}\n'
        ),
    ],
)
async def test_an_upload_that_was_cut_off_makes_nothing_twice(caller: Caller, fault: Fault) -> None:
    transport = operator_transport(caller)
    transport.inject(fault, times=3)
    answers = await passing(caller, sent(uploader(caller, transport), some_lines(6)))
    assert [answer.line for answer in answers] == list(range(1, 7))
    assert len({answer.task_id for answer in answers}) == 6
    assert await queued(caller) == 6


async def test_a_server_that_stays_away_ends_it(caller: Caller) -> None:
    transport = operator_transport(caller)
    begun = uploader(caller, transport)
    await passing(caller, sent(begun, some_lines(2)))
    transport.requests.clear()
    transport.inject(LostRequest(), times=100)
    with pytest.raises(TransportError):
        await passing(caller, sent(begun, some_lines(2), 3))
    assert len(transport.requests) == FAILURES_MAX


async def test_a_server_that_never_was_there_ends_it_sooner(caller: Caller) -> None:
    transport = operator_transport(caller)
    transport.inject(LostRequest(), times=100)
    with pytest.raises(TransportError):
        await passing(caller, sent(uploader(caller, transport), some_lines(2)))
    assert len(transport.requests) == FIRST_FAILURES_MAX


async def test_a_server_that_answers_nothing_ends_it(caller: Caller) -> None:
    transport = operator_transport(caller)
    transport.inject(Answered(200, b'{"t":"end","reason":"done"}\n', STREAMED), times=100)
    with pytest.raises(TransportError, match="left without an answer"):
        await passing(caller, sent(uploader(caller, transport), some_lines(2)))
    assert len(transport.requests) == FIRST_FAILURES_MAX


async def test_a_refusal_is_final(caller: Caller) -> None:
    transport = operator_transport(caller)
    with pytest.raises(ControlPlaneError, match="Idempotency-Key"):
        await passing(caller, sent(uploader(caller, transport, "k" * 300), some_lines(2)))
    assert len(transport.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answered(200, b"<html>"),
        Answered(200, b"<html>\n", STREAMED),
        Answered(200, b'{"t":"a"}\n', STREAMED),
        Answered(200, b'{"t":"a","line":2,"task_id":7}\n', STREAMED),
        Answered(200, b'{"t":"a","line":1}\n', STREAMED),
        Answered(200, b'{"t":"a","line":1,"task_id":7,"error":"x"}\n', STREAMED),
        Answered(200, b'{"t":"a","line":1,"error":7}\n', STREAMED),
        Answered(200, b'{"t":"a","line":1,"task_id":7}\n' * 2, STREAMED),
    ],
)
async def test_what_is_no_such_server_is_not_asked_again(caller: Caller, answer: Fault) -> None:
    transport = operator_transport(caller)
    transport.inject(answer, times=100)
    with pytest.raises(wire.DecodeError):
        await passing(caller, sent(uploader(caller, transport), some_lines(1)))
    assert len(transport.requests) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cuts=st.lists(st.integers(0, 400), max_size=FIRST_FAILURES_MAX - 1),
    good=st.lists(st.booleans(), min_size=1, max_size=8),
)
async def test_cut_after_any_byte_each_good_line_is_one_task(
    caller: Caller, cuts: list[int], good: list[bool]
) -> None:
    lines = [line if one else b"[]" for one, line in zip(good, some_lines(len(good)), strict=True)]
    for fresh in callers("memory", Path()):
        transport = operator_transport(fresh)
        for cut in cuts:
            transport.inject(BrokenOff(cut))
        answers = await passing(fresh, sent(uploader(fresh, transport), lines))
        assert [answer.task_id is not None for answer in answers] == good
        assert await queued(fresh) == sum(good)
