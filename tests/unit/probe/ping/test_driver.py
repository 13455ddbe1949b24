"""The driver: requests in one batch, packets that find their runs, ends that are told."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.errors import NetsondeError, ResolveError
from netsonde.probe.ping.driver import STOP_WAIT_NS, EchoDriver
from netsonde.probe.ping.run import Completion, Counts, PingRun
from support.echo import Event, MemoryEchoEngine, silence


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = MemoryEchoEngine(self.clock, 4)
        self.driver = EchoDriver(self.clock, self.engine)

    def run(self, address: str = "192.0.2.1", count: int = 1, interval_ms: int = 10) -> PingRun:
        return PingRun(
            carrier=self.driver, address=address, count=count, interval_ns=interval_ms * NS_PER_MS,
            timeout_ns=100 * NS_PER_MS,
        )  # fmt: skip


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.driver.close()


async def test_what_begins_in_one_turn_is_one_batch(bench: Bench) -> None:
    runs = [bench.run(f"192.0.2.{n}") for n in range(100)]
    for run in runs:
        bench.driver.start(run)
    assert bench.engine.batches == []
    await bench.clock.settle()
    assert bench.engine.batches == [100]
    await bench.clock.advance(NS_PER_MS)
    assert all(run.is_settled for run in runs)


async def test_an_end_is_told_once(bench: Bench) -> None:
    ended: list[PingRun] = []
    run = bench.run(count=3)
    run.on_end = ended.append
    bench.driver.start(run)
    await bench.clock.advance(NS_PER_S)
    assert ended == [run]
    assert run.counts.received == 3


async def test_a_watched_run_is_told_of_every_packet(bench: Bench) -> None:
    bench.engine.script = lambda _: [Event(), Event(kind=icmp.DUPLICATE, after_ns=5 * NS_PER_MS)]
    seen: list[Completion] = []
    run, other = bench.run(count=2), bench.run("192.0.2.2", count=2)
    run.on_packet = lambda _run, packet: seen.append(packet)
    bench.driver.start(run)
    bench.driver.start(other)
    await bench.clock.advance(NS_PER_S)
    assert [(each.attempt, each.kind) for each in seen] == [
        (0, icmp.REPLY), (0, icmp.DUPLICATE), (1, icmp.REPLY), (1, icmp.DUPLICATE),
    ]  # fmt: skip
    assert other.counts.duplicates == 2


async def test_a_full_engine_delays_and_loses_nothing(bench: Bench) -> None:
    bench.engine.room = 5
    runs = [bench.run(f"192.0.2.{n}", count=3) for n in range(20)]
    for run in runs:
        bench.driver.start(run)
    await bench.clock.advance(NS_PER_S)
    assert [run.counts.received for run in runs] == [3] * 20
    assert bench.engine.batches[0] == 5


async def test_a_run_that_is_forgotten_leaves_nothing_behind(bench: Bench) -> None:
    bench.engine.script = lambda _: [Event(after_ns=20 * NS_PER_MS)]
    run = bench.run(count=2)
    bench.driver.start(run)
    await bench.clock.settle()
    bench.driver.forget(run)
    bench.driver.forget(run)  # twice is once
    assert len(bench.driver._ledger) == 0
    await bench.clock.advance(NS_PER_S)
    assert bench.driver._ledger.strays == 2


async def test_forgetting_what_never_began_is_nothing(bench: Bench) -> None:
    bench.driver.forget(bench.run())


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────


async def stopped_after(bench: Bench, run: PingRun, after_ns: int, *, cancels: int = 1) -> Counts:
    """Run and cancel; return what is counted then."""
    counted: list[Counts] = []

    async def work() -> None:
        try:
            await bench.driver.run(run)
        finally:
            counted.append(run.counts)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
        await bench.clock.advance(after_ns)
        for _ in range(cancels):
            task.cancel()
            await bench.clock.settle()
        await bench.clock.advance(3 * STOP_WAIT_NS)
    assert task.cancelled()
    return counted[0]


async def test_a_stopped_run_knows_how_many_were_sent(bench: Bench) -> None:
    bench.engine.script = silence
    counts = await stopped_after(bench, bench.run(count=1000), 35 * NS_PER_MS)
    assert (counts.submitted, counts.sent, counts.received) == (4, 4, 0)
    assert len(bench.engine.requests) == 4


async def test_a_run_that_was_not_handed_over_is_taken_back(bench: Bench) -> None:
    bench.engine.room = 0
    counts = await stopped_after(bench, bench.run(count=1000), 35 * NS_PER_MS)
    assert counts.submitted == 0
    assert bench.engine.cancelled == []
    bench.engine.room = 1
    await bench.clock.advance(NS_PER_S)
    assert bench.engine.requests == []


async def test_stopping_what_has_ended_changes_nothing(bench: Bench) -> None:
    run = bench.run(count=2)
    bench.driver.start(run)
    await bench.clock.advance(NS_PER_S)
    await bench.driver.stop([run])
    assert run.counts.submitted == 2
    bench.driver.forget(run)
    await bench.driver.stop([run])
    assert len(bench.engine.cancelled) == 1


async def test_more_are_stopped_than_orders_may_wait(bench: Bench) -> None:
    bench.engine.cancellations_max = 3
    runs = [bench.run(f"192.0.2.{n}", count=100) for n in range(20)]
    for run in runs:
        bench.driver.start(run)
    await bench.clock.advance(25 * NS_PER_MS)
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.driver.stop(runs))
        await bench.clock.advance(NS_PER_S)
    sent = Counter(request.address for request in bench.engine.requests)
    assert {run.address: run.counts.submitted for run in runs} == sent
    assert max(sent.values()) < 10


@pytest.mark.parametrize("cancels", [1, 2])
async def test_an_engine_that_does_not_confirm_leaves_what_is_known(
    bench: Bench, cancels: int
) -> None:
    bench.engine.is_deaf = True
    counts = await stopped_after(bench, bench.run(count=1000), 35 * NS_PER_MS, cancels=cancels)
    waited_ns = STOP_WAIT_NS if cancels == 1 else 0  # it went on sending meanwhile
    assert counts.submitted == counts.received == 4 + waited_ns // (10 * NS_PER_MS)


# ── refusals and the end ─────────────────────────────────────────────────────────────────────────


async def test_a_wrong_request_fails_alone(bench: Bench) -> None:
    bench.engine.size_max = 100
    good = [bench.run(f"192.0.2.{n}") for n in range(3)]
    bad = bench.run("192.0.2.9")
    bad.size = 101
    ended: list[PingRun] = []
    bad.on_end = ended.append
    for run in (good[0], bad, *good[1:]):
        bench.driver.start(run)
    wrong = bench.driver.probe("192.0.2.8", timeout_ns=NS_PER_MS, size=101)
    right = bench.driver.probe("192.0.2.7", timeout_ns=NS_PER_S)
    await bench.clock.advance(NS_PER_S)
    assert [run.counts.received for run in good] == [1, 1, 1]
    assert ended == [bad]
    assert "size must be 16 to 100" in str(bad.failure)
    assert bad.counts.submitted == 0
    with pytest.raises(NetsondeError, match="size must be"):
        await wrong
    assert (await right).kind == icmp.REPLY


async def test_what_runs_when_it_is_closed_fails(bench: Bench) -> None:
    running, ended, offered = bench.run(count=100), bench.run(), bench.run()
    failed: list[PingRun] = []
    for run in (running, ended, offered):
        run.on_end = failed.append
    bench.driver.start(running)
    bench.driver.start(ended)
    await bench.clock.advance(15 * NS_PER_MS)
    probe = bench.driver.probe("192.0.2.1", timeout_ns=NS_PER_S)
    bench.driver.start(offered)
    failed.clear()
    bench.driver.close()
    bench.driver.close()
    await bench.clock.settle()
    assert failed == [running, offered]
    assert ended.failure is None
    with pytest.raises(NetsondeError, match="closed before the reply"):
        await probe
    assert bench.driver.clock_steps is None
    await bench.driver.stop([running])
    for run in (running, ended, offered):
        bench.driver.forget(run)
    assert len(bench.driver._ledger) == 0


# ── single probes ────────────────────────────────────────────────────────────────────────────────


async def test_a_single_probe_says_what_became_of_it(bench: Bench) -> None:
    probe = bench.driver.probe("192.0.2.1", timeout_ns=NS_PER_S, size=100, ttl=3)
    given_up = bench.driver.probe("192.0.2.2", timeout_ns=NS_PER_S)
    given_up.cancel()
    await bench.clock.advance(NS_PER_MS)
    completion = await probe
    assert (completion.kind, completion.rtt_ns) == (icmp.REPLY, NS_PER_MS)
    assert [(each.size, each.ttl) for each in bench.engine.requests] == [(100, 3), (56, 64)]
    assert bench.driver._probes == {}


async def test_a_zone_that_is_not_there_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(ResolveError, match="no interface"):
        bench.driver.probe("fe80::1%nosuch0", timeout_ns=NS_PER_S)
    with pytest.raises(ResolveError, match="no interface"):
        bench.run("fe80::1%nosuch0")


async def test_who_fails_when_told_costs_nobody_else(bench: Bench) -> None:
    noted: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: noted.append(context))
    ended: list[PingRun] = []

    def fail(_run: PingRun, *_: object) -> None:
        raise ZeroDivisionError

    runs = [bench.run(f"192.0.2.{n}") for n in range(4)]
    for run in runs:
        run.on_end = ended.append
    runs[0].on_end = fail
    runs[1].on_packet = fail
    for run in runs:
        bench.driver.start(run)
    await bench.clock.advance(NS_PER_MS)
    assert ended == runs[1:]
    assert [type(each["exception"]) for each in noted] == [ZeroDivisionError] * 2
