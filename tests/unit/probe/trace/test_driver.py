"""The trace driver over the engine's twin: what is submitted, and how a run ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from netsonde._native import icmp
from netsonde.clock import ManualClock
from netsonde.errors import NetsondeError, RequestError
from netsonde.probe.ping.driver import EchoDriver
from netsonde.probe.trace.answers import Answer, Stop, Traced
from netsonde.probe.trace.driver import PROBE_ATTEMPTS, STOP_WAIT_NS, TraceDriver, TraceRun
from support.trace_endings import Ending, answer, echo
from support.trace_twin import TraceRequest, TraceTwin

TARGET = bytes([198, 51, 100, 7]).ljust(16, b"\0")
REACHED = Ending(answers=[answer(1), echo(2)], end_ttl=2)


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = TraceTwin(self.clock)
        self.echo = EchoDriver(self.clock, self.engine)
        self.driver = TraceDriver(self.clock, self.engine, self.echo)

    async def start(self, *runs: TraceRun) -> "list[asyncio.Task[Traced]]":
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self.driver.run(run)) for run in runs]
        await self.clock.settle()
        return tasks


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.driver.is_idle
    bench.echo.close()


def run(first: int = 198, **fields: Any) -> TraceRun:
    """Return a run to a destination with this first byte."""
    return TraceRun(bytes([first]) + TARGET[1:], **fields)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_run_is_one_request(bench: Bench) -> None:
    bench.engine.plan = lambda _: REACHED
    wanted = run(
        scope=3, method="udp", port=53, flow=8, first_ttl=2, last_ttl=9, attempts=4, gap_limit=6,
        timeout_ns=70, interval_ns=80, size=100, tos=184, path=5,
    )  # fmt: skip
    await bench.driver.run(wanted)
    assert bench.engine.traces == [
        TraceRequest(
            wanted.token, 70, 80, TARGET, bytes(16), 3, 8, 5, 53, 100, icmp.TRACE_UDP, 2, 9, 4, 6,
            184, 0,
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, 0),
        ({"df": True}, icmp.TRACE_FORBID_FRAGMENTS),
        ({"all_probes": True}, icmp.TRACE_ALL_ATTEMPTS),
        ({"on_answer": lambda _: None}, icmp.TRACE_WATCHED),
        (
            {"df": True, "all_probes": True, "on_answer": lambda _: None},
            icmp.TRACE_FORBID_FRAGMENTS | icmp.TRACE_ALL_ATTEMPTS | icmp.TRACE_WATCHED,
        ),
    ],
)
async def test_what_is_yes_or_no_is_a_flag(
    bench: Bench, fields: dict[str, Any], flags: int
) -> None:
    bench.engine.plan = lambda _: REACHED
    await bench.driver.run(run(**fields))
    assert bench.engine.traces[0].flags == flags


@pytest.mark.parametrize(
    ("method", "bit"),
    [("icmp", icmp.TRACE_ICMP), ("udp", icmp.TRACE_UDP), ("tcp", icmp.TRACE_TCP)],
)
async def test_a_method_is_opened_and_asked_for_by_its_bit(
    bench: Bench, method: str, bit: int
) -> None:
    bench.engine.plan = lambda _: REACHED
    bench.driver.open(method)
    await bench.driver.run(run(method=method))
    assert (bench.engine.opened, bench.engine.traces[0].method) == ([bit], bit)


async def test_a_probe_is_a_run_of_one_ttl_that_is_like_its_trace(bench: Bench) -> None:
    trace = run(
        scope=3, method="udp", port=53, timeout_ns=70, size=100, tos=4, path=5, all_probes=True,
        attempts=9,
    )  # fmt: skip
    probe = trace.probe(7, flow=2)
    assert (probe.first_ttl, probe.last_ttl, probe.flow) == (7, 7, 2)
    assert (probe.attempts, probe.all_probes, probe.df) == (PROBE_ATTEMPTS, False, False)
    for name in ("destination", "scope", "method", "port", "timeout_ns", "size", "tos", "path"):
        assert getattr(probe, name) == getattr(trace, name)


async def test_a_probe_of_a_size_may_not_be_fragmented(bench: Bench) -> None:
    probe = run(size=100).probe(7, size=1472)
    assert (probe.size, probe.df, probe.flow) == (1472, True, 0)


# ── results ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_run_gives_what_was_seen(bench: Bench) -> None:
    bench.engine.plan = lambda _: REACHED
    wanted = run()
    traced = await bench.driver.run(wanted)
    assert traced is wanted.traced
    assert (traced.token, traced.stop, traced.end_ttl) == (wanted.token, Stop.COMPLETED, 2)
    assert traced.answers == tuple(REACHED.answers)


async def test_runs_end_in_any_order_with_their_own_result(bench: Bench) -> None:
    tasks = await bench.start(run(1), run(2), run(3))
    assert not bench.driver.is_idle
    for number in (2, 0, 1):
        request = bench.engine.traces[number]
        bench.engine.end(request, Ending(answers=[echo(request.destination[0])]))
    ended = await asyncio.gather(*tasks)
    assert [traced.answers[0].ttl for traced in ended] == [1, 2, 3]


async def test_a_watched_run_tells_its_answers_as_they_come(bench: Bench) -> None:
    told: list[Answer] = []
    (task,) = await bench.start(run(on_answer=told.append))
    (request,) = bench.engine.traces
    bench.engine.tell(request, answer(3, attempt=2, flags=1, icmp_code=1))
    await bench.clock.settle()
    assert told == [answer(3, attempt=2, flags=1, icmp_code=1, reply_ttl=0, quoted_ttl=0)]
    assert not task.done()
    bench.engine.end(request, REACHED)
    await task


async def test_answers_and_ends_of_nobody_are_dropped(bench: Bench) -> None:
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    (task,) = await bench.start(run())
    (request,) = bench.engine.traces
    stranger = request._replace(token=request.token + 1)
    bench.engine.tell(request, answer(1))  # that nobody watches
    bench.engine.tell(stranger, answer(1))
    bench.engine.end(stranger, REACHED)
    await bench.clock.settle()
    assert not task.done()
    bench.engine.end(request, REACHED)
    assert (await task).token == request.token
    assert problems == []


# ── what the engine does not take ────────────────────────────────────────────────────────────────


async def test_what_there_is_no_room_for_follows_in_order(bench: Bench) -> None:
    bench.engine.plan = lambda _: REACHED
    bench.engine.trace_room = 1
    tasks = await bench.start(run(1), run(2), run(3))
    assert [task.done() for task in tasks] == [True, False, False]
    for room, taken in ((0, 1), (1, 2), (5, 3)):
        bench.engine.trace_room = room
        bench.engine.ring()
        await bench.clock.settle()
        assert [each.destination[0] for each in bench.engine.traces] == [1, 2, 3][:taken]
    assert [task.result().stop for task in tasks] == [Stop.COMPLETED] * 3


async def test_a_wrong_request_fails_alone(bench: Bench) -> None:
    bench.engine.plan = lambda _: REACHED
    bench.engine.wrong = 2
    good, bad, other = await bench.start(run(1), run(2), run(3))
    with pytest.raises(RequestError, match=r"^the ICMP engine cannot send this: size "):
        await bad
    assert [(await task).stop for task in (good, other)] == [Stop.COMPLETED] * 2


async def test_behind_a_wrong_request_room_still_counts(bench: Bench) -> None:
    bench.engine.plan = lambda _: REACHED
    bench.engine.wrong = 2
    bench.engine.trace_room = 1
    good, bad, later = await bench.start(run(1), run(2), run(3))
    assert (good.done(), bad.done(), later.done()) == (True, True, False)
    assert isinstance(bad.exception(), RequestError)
    bench.engine.trace_room = 1
    bench.engine.ring()
    await later
    assert [each.destination[0] for each in bench.engine.traces] == [1, 3]


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cancelled_run_keeps_what_was_seen_so_far(bench: Bench) -> None:
    bench.engine.partial = [answer(1)]
    wanted = run()
    (task,) = await bench.start(wanted)
    task.cancel()
    await bench.clock.settle()
    assert task.cancelled()
    assert bench.engine.cancelled_traces == [wanted.token]
    assert wanted.traced is not None
    assert (wanted.traced.stop, wanted.traced.answers) == (Stop.CANCELLED, (answer(1),))


async def test_an_engine_that_confirms_no_cancellation_is_not_waited_for(bench: Bench) -> None:
    bench.engine.is_deaf = True
    wanted = run()
    (task,) = await bench.start(wanted)
    task.cancel()
    await bench.clock.advance(STOP_WAIT_NS - 1)
    assert not task.done()
    await bench.clock.advance(1)
    assert task.cancelled()
    assert wanted.traced is None


async def test_what_was_not_submitted_yet_is_withdrawn(bench: Bench) -> None:
    bench.engine.trace_room = 0
    (task,) = await bench.start(run())
    task.cancel()
    await bench.clock.settle()
    bench.engine.trace_room = 1
    bench.engine.ring()
    await bench.clock.settle()
    assert task.cancelled()
    assert (bench.engine.traces, bench.engine.cancelled_traces) == ([], [])


async def test_an_engine_that_is_closed_fails_its_runs(bench: Bench) -> None:
    bench.engine.trace_room = 1
    tasks = await bench.start(run(1), run(2))
    bench.echo.close()
    for task in tasks:
        with pytest.raises(NetsondeError, match="was closed before the trace ended"):
            await task


async def test_who_waits_for_an_idle_engine_waits_for_traces(bench: Bench) -> None:
    idle: list[bool] = []
    (task,) = await bench.start(run())
    bench.echo.when_idle(lambda: idle.append(True))
    await bench.clock.settle()
    assert idle == []
    bench.engine.end(bench.engine.traces[0], REACHED)
    await task
    await bench.clock.settle()
    assert idle == [True]


async def test_the_backend_is_the_engines(bench: Bench) -> None:
    assert bench.driver.backend == "raw"
