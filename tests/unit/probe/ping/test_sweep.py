"""A sweep: targets of any number, one after the other, and nothing left of those that ended."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, NS_PER_S, ClockQuality
from netsonde.errors import ConfigError, ErrorCode, PrivilegeError, RequestError
from netsonde.model import Outcome, PingSpec
from netsonde.probe.ping.run import Completion, PingRun
from netsonde.probe.ping.sockets import SOCKETS_MAX, timed_out
from netsonde.probe.ping.sweep import (
    PACKETS_HELD_MAX,
    WINDOW,
    Pinged,
    Sweep,
    capacity_for,
    measurement_of,
    window_for,
)
from support.echo import Event, MemoryEchoEngine, silence
from support.ping_bench import PingBench, summary


class Swept:
    """A sweep of a bench and what it told, as JSON would have it."""

    def __init__(self, bench: PingBench, window: int = 8192, **options: object) -> None:
        self.bench = bench
        self.options = options
        self.told: dict[str, str] = {}
        self.order: list[str] = []
        self.received: dict[str, int] = {}
        self.packets: list[tuple[str, int]] = []
        self.most = 0
        self.sweep = Sweep(
            bench.prober, self._spec_of, self._take, on_packet=self._take_packet, window=window
        )

    def _spec_of(self, target: str) -> PingSpec:
        if target.startswith("!"):
            raise RequestError(ErrorCode.VALIDATION, f"{target} is no host")
        return PingSpec(host=target, **self.options)  # type: ignore[arg-type]

    def _take(self, pinged: Pinged) -> None:
        measurement = measurement_of(self.bench.prober, pinged, {})
        self.told[pinged.target] = measurement.outcome.value
        self.order.append(pinged.target)
        self.received[pinged.target] = summary(measurement)["received"]

    def _take_packet(self, pinged: Pinged, run: PingRun, packet: Completion) -> None:
        self.packets.append((run.address, packet.attempt))
        self.most = max(self.most, len(self.sweep._running))

    async def over(self, targets: Iterable[str]) -> None:
        async def source() -> AsyncIterator[str]:
            for target in targets:
                yield target

        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.sweep.run(source()))
            await self.bench.finish([task])


def nothing_is_left(bench: PingBench) -> bool:
    return all(len(lane.driver._ledger) == 0 for lane in bench.prober.lanes)


async def test_every_target_is_told_when_it_ends(bench: PingBench) -> None:
    bench.script = lambda request: [] if request.address == "192.0.2.1" else [Event()]
    swept = Swept(bench, count=2, interval_ms=10)
    await swept.over(["192.0.2.1", "192.0.2.2", "2001:db8::3"])
    assert swept.told == {"192.0.2.1": "target_error", "192.0.2.2": "ok", "2001:db8::3": "ok"}
    assert swept.order[-1] == "192.0.2.1"
    assert sorted(swept.packets)[:2] == [("192.0.2.1", 0), ("192.0.2.1", 1)]
    assert swept.sweep.is_idle
    assert nothing_is_left(bench)


async def test_thousands_are_pinged_a_window_at_a_time(bench: PingBench) -> None:
    swept = Swept(bench, window=100, count=1)
    hosts = [f"10.0.{n >> 8}.{n & 255}" for n in range(3000)]
    await swept.over(hosts)
    assert set(swept.told) == set(hosts)
    assert set(swept.received.values()) == {1}
    assert swept.most <= 100


@pytest.mark.parametrize("count", [1, 4, 1000, 100_000])
def test_the_window_is_bounded_by_its_packets(count: int) -> None:
    window = window_for(PingSpec(host="192.0.2.1", count=count))
    assert 1 <= window <= WINDOW
    assert window * count <= PACKETS_HELD_MAX
    assert window_for(PingSpec(host="192.0.2.1", count=count, method="tcp", port=1)) <= SOCKETS_MAX


@pytest.mark.parametrize("count", [1, 4, 80, 1000, 100_000])
def test_an_engine_knows_every_packet_of_a_window(count: int) -> None:
    spec = PingSpec(host="192.0.2.1", count=count)
    assert capacity_for(spec) >= min(2 * window_for(spec) * count, icmp.CAPACITY)
    assert capacity_for(spec) <= icmp.CAPACITY


def test_single_packets_need_little_of_an_engine() -> None:
    assert capacity_for(PingSpec(host="192.0.2.1", count=1)) * 64 <= 2 << 20


async def test_names_are_resolved_side_by_side(bench: PingBench) -> None:
    bench.names = {f"h{n}.example": [f"192.0.2.{n}", f"2001:db8::{n}"] for n in range(1, 200)}
    swept = Swept(bench, count=1, addresses="all")
    await swept.over(bench.names)
    assert set(swept.told.values()) == {"ok"}
    assert set(swept.received.values()) == {2}
    assert nothing_is_left(bench)


async def test_what_cannot_be_pinged_is_told_and_costs_nobody_else(bench: PingBench) -> None:
    swept = Swept(bench, count=1)
    await swept.over(["!x", "224.0.0.1", "fe80::1%nosuch0", "192.0.2.1"])
    assert swept.told == {
        "!x": "target_error",
        "224.0.0.1": "rejected",
        "fe80::1%nosuch0": "target_error",
        "192.0.2.1": "ok",
    }
    assert swept.sweep.is_idle
    assert nothing_is_left(bench)


async def test_without_privilege_every_target_says_so(bench: PingBench) -> None:
    def refuse(family: int) -> MemoryEchoEngine:
        raise PrivilegeError

    bench.prober.lanes._open_engine = refuse
    swept = Swept(bench)
    await swept.over(["192.0.2.1", "192.0.2.2"])
    assert set(swept.told.values()) == {"agent_error"}


async def test_a_source_is_looked_at_once(
    bench: PingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    lane = bench.lane()

    async def find(address: str, _wanted: object) -> int:
        asked.append(address)
        lane.ways._sources.add("192.0.2.9")
        return 1

    monkeypatch.setattr(lane.ways, "find", find)
    swept = Swept(bench, window=1, count=1, source="192.0.2.9")
    await swept.over(["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    assert asked == ["192.0.2.1"]
    assert [request.path for request in bench.requests] == [1, 1, 1]


async def test_what_is_under_way_is_told_when_it_is_cancelled(bench: PingBench) -> None:
    bench.names = {"slow.example": ["192.0.2.9"]}
    swept = Swept(bench, count=100, interval_ms=10)

    async def source() -> AsyncIterator[str]:
        yield "192.0.2.1"
        yield "slow.example"
        await asyncio.get_running_loop().create_future()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(swept.sweep.run(source()))
        await bench.clock.advance(25 * NS_PER_MS)
        task.cancel()
    assert task.cancelled()
    assert swept.told == {"192.0.2.1": "cancelled", "slow.example": "cancelled"}
    assert swept.received == {"192.0.2.1": 3, "slow.example": 3}
    assert swept.sweep.is_idle
    assert nothing_is_left(bench)
    await bench.clock.advance(NS_PER_S)
    assert len(bench.requests) == 6


async def test_what_had_all_its_packets_by_then_was_not_cancelled(bench: PingBench) -> None:
    swept = Swept(bench, count=2, interval_ms=10)
    stop = bench.prober.stop

    async def stop_slowly(runs: Iterable[PingRun]) -> None:
        await bench.clock.sleep(20 * NS_PER_MS)
        await stop(runs)

    bench.prober.stop = stop_slowly  # type: ignore[method-assign]

    async def source() -> AsyncIterator[str]:
        yield "192.0.2.1"
        await bench.clock.sleep(10 * NS_PER_MS)
        yield "192.0.2.2"
        yield "192.0.2.3"
        await asyncio.get_running_loop().create_future()

    bench.script = lambda request: [] if request.address == "192.0.2.3" else [Event()]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(swept.sweep.run(source()))
        await bench.clock.advance(10 * NS_PER_MS)
        task.cancel()
        await bench.clock.advance(30 * NS_PER_MS)
    assert swept.told == {"192.0.2.1": "ok", "192.0.2.2": "ok", "192.0.2.3": "cancelled"}


async def test_what_is_no_host_has_the_options_of_the_others(bench: PingBench) -> None:
    ended: list[Pinged] = []
    swept = Swept(bench, count=7, ttl=9)
    swept.sweep._on_end = ended.append
    await swept.over(["!x"])
    assert ended[0].spec == PingSpec(host="!x", count=7, ttl=9)


async def test_the_clock_is_told_as_it_was_in_the_beginning(bench: PingBench) -> None:
    told: dict[str, object] = {}
    swept = Swept(bench, count=1, timeout_ms=5000)
    swept.sweep._on_end = lambda pinged: told.update(
        {pinged.target: measurement_of(bench.prober, pinged, {}).env["clock"]["synchronised"]}
    )
    bench.script = silence

    async def source() -> AsyncIterator[str]:
        yield "192.0.2.1"
        bench.clock.set_quality(ClockQuality(synchronised=False))
        yield "192.0.2.2"
        await bench.clock.sleep(NS_PER_S)
        yield "192.0.2.3"

    async with asyncio.TaskGroup() as group:
        await bench.finish([group.create_task(swept.sweep.run(source()))])
    assert told == {"192.0.2.1": True, "192.0.2.2": True, "192.0.2.3": False}


async def test_what_is_cancelled_before_its_turn_has_not_begun(bench: PingBench) -> None:
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ended: list[Pinged] = []

    async def look_up(name: str, family: int) -> list[tuple[object, ...]]:
        await waiting
        return []

    bench.prober.resolver._look_up = look_up
    sweep = Sweep(bench.prober, lambda target: PingSpec(host=target), ended.append)

    async def source() -> AsyncIterator[str]:
        yield "name.example"

    async with asyncio.TaskGroup() as group:
        task = group.create_task(sweep.run(source()))
        await bench.clock.settle()
        task.cancel()
    assert [(each.is_cancelled, each.runs, each.error) for each in ended] == [(True, [], None)]
    measurement = measurement_of(bench.prober, ended[0], {})
    assert measurement.outcome is Outcome.CANCELLED
    assert summary(measurement)["cancelled"] is True


async def test_a_source_that_breaks_ends_the_sweep_with_its_error(bench: PingBench) -> None:
    bench.script = silence
    swept = Swept(bench, count=1)

    async def source() -> AsyncIterator[str]:
        yield "192.0.2.1"
        raise OSError("the list cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        await swept.sweep.run(source())
    assert swept.told == {"192.0.2.1": "cancelled"}
    assert nothing_is_left(bench)


async def test_a_bug_costs_its_target_only(
    bench: PingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.names = {"bad.example": ["192.0.2.8"], "good.example": ["192.0.2.9"]}
    prepare = bench.prober.prepare

    async def broken(spec: PingSpec, address: str) -> PingRun:
        if address == "192.0.2.8":
            raise ZeroDivisionError
        return await prepare(spec, address)

    monkeypatch.setattr(bench.prober, "prepare", broken)
    swept = Swept(bench, count=1)
    await swept.over(["bad.example", "good.example"])
    assert swept.told == {"bad.example": "agent_error", "good.example": "ok"}


async def test_tcp_and_udp_are_swept_too(bench: PingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answered(run: PingRun, token: int) -> Completion:
        await bench.clock.sleep(NS_PER_MS)
        return timed_out(token, 1)._replace(kind=icmp.REPLY, rtt_ns=NS_PER_MS)

    monkeypatch.setattr(bench.prober._sockets["tcp"], "_try", answered)
    swept = Swept(bench, count=2, method="tcp", port=443)
    hosts = [f"192.0.2.{n}" for n in range(1, 100)]
    await swept.over(hosts)
    assert swept.received == dict.fromkeys(hosts, 2)
    assert len(swept.packets) == 198
    assert bench.engines == {}
    assert len(bench.prober._sockets["tcp"]._ledger) == 0


async def test_an_engine_that_is_closed_ends_the_sweep(bench: PingBench) -> None:
    bench.names = {"name.example": ["192.0.2.9"]}
    swept = Swept(bench, count=100)

    async def source() -> AsyncIterator[str]:
        yield "192.0.2.1"
        yield "name.example"

    async with asyncio.TaskGroup() as group:
        group.create_task(swept.sweep.run(source()))
        await bench.clock.advance(NS_PER_MS)
        await bench.prober.close()
    assert swept.told == {"192.0.2.1": "agent_error", "name.example": "agent_error"}


@pytest.mark.parametrize("window", [1, 8])
async def test_what_the_one_who_is_told_raises_ends_the_sweep(
    bench: PingBench, window: int
) -> None:
    def take(pinged: Pinged) -> None:
        raise ZeroDivisionError(pinged.target)

    sweep = Sweep(bench.prober, lambda target: PingSpec(host=target, count=1), take, window=window)

    async def source() -> AsyncIterator[str]:
        for n in range(1, 5):
            yield f"192.0.2.{n}"

    task = asyncio.get_running_loop().create_task(sweep.run(source()))
    await bench.finish([task])
    with pytest.raises(ZeroDivisionError, match=r"192\.0\.2\.1"):
        task.result()
    assert sweep.is_idle
    assert nothing_is_left(bench)


async def test_what_the_one_who_watches_raises_ends_the_sweep(bench: PingBench) -> None:
    def watch(pinged: Pinged, run: PingRun, packet: Completion) -> None:
        raise ZeroDivisionError

    swept = Swept(bench, count=100, interval_ms=1000)
    swept.sweep._on_packet = watch
    with pytest.raises(ExceptionGroup) as caught:
        await swept.over(["192.0.2.1"])
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
    assert swept.told == {"192.0.2.1": "cancelled"}


async def test_the_cause_of_a_broken_source_is_kept(bench: PingBench) -> None:
    swept = Swept(bench, count=1)

    async def source() -> AsyncIterator[str]:
        yield "192.0.2.1"
        raise ConfigError("the list cannot be read") from OSError(5, "Input/output error")

    with pytest.raises(ConfigError) as caught:
        await swept.sweep.run(source())
    assert isinstance(caught.value.__cause__, OSError)
