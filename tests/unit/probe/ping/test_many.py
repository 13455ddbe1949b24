"""ping_many: every packet of every target, as it ends."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS
from netsonde.errors import PrivilegeError, RequestError
from netsonde.model import Reason
from netsonde.policy import TargetPolicy
from netsonde.probe.ping import PingReply, many, ping_many
from netsonde.probe.ping.engines import EngineOptions
from support.echo import Event, MemoryEchoEngine, Script, answers, silence
from support.ping_bench import PingBench


class Network:
    """Lets ping_many open the bench's engines, on the bench's clock."""

    def __init__(self, bench: PingBench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.options: EngineOptions | None = None
        monkeypatch.setattr(many, "SystemClock", lambda: bench.clock)
        monkeypatch.setattr(many, "open_engine", self._open)

    def _open(self, family: int, options: EngineOptions) -> MemoryEchoEngine:
        self.options = options
        return self.bench.open(family)

    async def collect(self, targets: Any, **options: Any) -> list[PingReply]:
        async def work() -> list[PingReply]:
            return [reply async for reply in ping_many(targets, **options)]

        async with asyncio.TaskGroup() as group:
            task = group.create_task(work())
            await self.bench.finish([task])
        return task.result()


@pytest.fixture
def network(bench: PingBench, monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(bench, monkeypatch)


async def test_one_packet_to_each_unless_asked_for_more(network: Network) -> None:
    replies = await network.collect(["192.0.2.1", "2001:db8::1"])
    assert sorted(replies) == [
        PingReply(host, host, 0, "reply", NS_PER_MS, responder=host, ttl=64)
        for host in ("192.0.2.1", "2001:db8::1")
    ]
    assert len(await network.collect(["192.0.2.1"], count=3, interval_ms=1)) == 3


def events(*fates: list[Event]) -> Script:
    return lambda request: fates[request.attempt]


async def test_every_kind_of_end_is_told(network: Network, bench: PingBench) -> None:
    bench.script = events(
        [],
        [Event(kind=icmp.ERROR, icmp_type=3, code=1, responder="192.0.2.254", ttl=60)],
        [Event(kind=icmp.TX_ERROR, errno=101)],
        [Event(kind=icmp.RX_DROP)],
        [Event(after_ns=150 * NS_PER_MS)],
        [Event(), Event(kind=icmp.DUPLICATE, after_ns=2 * NS_PER_MS, ttl=0)],
    )
    replies = await network.collect(["192.0.2.1"], count=6, interval_ms=100, timeout_ms=100)
    told = {(each.attempt, each.kind): each for each in replies}
    assert {key: each.reason for key, each in told.items()} == {
        (0, "timeout"): Reason.TIMEOUT,
        (1, "error"): Reason.UNREACHABLE_HOST,
        (2, "tx_error"): Reason.NO_ROUTE,
        (3, "rx_drop"): Reason.TX_ERROR,
        (4, "timeout"): Reason.TIMEOUT,
        (5, "reply"): None,
    } | {key: None for key in told if key[1] in ("late", "duplicate")}
    assert told[1, "error"].responder == "192.0.2.254"
    assert told[1, "error"].ttl == 60
    assert told[0, "timeout"].responder is None
    assert told[0, "timeout"].rtt_ns is None


async def test_late_and_duplicate_replies_have_a_round_trip_and_no_reason(
    network: Network, bench: PingBench
) -> None:
    bench.script = events(
        [Event(after_ns=150 * NS_PER_MS)],
        [Event(), Event(kind=icmp.DUPLICATE, after_ns=2 * NS_PER_MS)],
        [],
    )
    replies = await network.collect(["192.0.2.1"], count=3, interval_ms=100, timeout_ms=100)
    told = {each.kind: (each.attempt, each.rtt_ns, each.reason) for each in replies}
    assert told["late"] == (0, 150 * NS_PER_MS, None)
    assert told["duplicate"] == (1, 2 * NS_PER_MS, None)


async def test_who_cannot_be_pinged_is_refused_once(network: Network) -> None:
    replies = await network.collect(["a b", "224.0.0.1", "192.0.2.1"])
    refused = {each.target: each.reason for each in replies if each.kind == "refused"}
    assert refused == {"a b": Reason.RESOLVE_FAILED, "224.0.0.1": Reason.DENIED}
    assert len(replies) == 3


async def test_the_policy_is_the_callers(network: Network) -> None:
    (reply,) = await network.collect(["10.0.0.1"], policy=TargetPolicy())
    assert (reply.kind, reply.reason) == ("refused", Reason.DENIED)


async def test_a_wrong_option_is_refused_before_anything(network: Network) -> None:
    with pytest.raises(RequestError, match="count must be"):
        await anext(ping_many(["192.0.2.1"], count=0))
    with pytest.raises(RequestError, match="port must be"):
        await anext(ping_many(["192.0.2.1"], method="tcp"))


async def test_without_privilege_there_is_no_result_at_all(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(family: int, options: EngineOptions) -> MemoryEchoEngine:
        raise PrivilegeError("this process may not send ICMP")

    monkeypatch.setattr(many, "open_engine", refuse)
    with pytest.raises(PrivilegeError):
        await anext(ping_many(["192.0.2.1"]))


async def test_engines_are_opened_as_asked_for(network: Network) -> None:
    options = EngineOptions(backends=("datagram",), threaded=False)
    await network.collect(["192.0.2.1"], engine=options)
    assert network.options == options


async def asynchronous(targets: Iterator[str]) -> AsyncIterator[str]:
    for target in targets:
        await asyncio.sleep(0)
        yield target


@pytest.mark.parametrize("wrap", [iter, asynchronous])
async def test_targets_of_any_number_are_taken_as_there_is_room(
    network: Network, wrap: Callable[[Iterator[str]], Any]
) -> None:
    hosts = [f"10.0.{n >> 8}.{n & 255}" for n in range(2000)]
    replies = await network.collect(wrap(iter(hosts)))
    assert {each.target for each in replies} == set(hosts)


async def test_who_takes_nothing_is_not_flooded(
    network: Network, bench: PingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "REPLIES_MAX", 10)
    taken = 0

    def hosts() -> Iterator[str]:
        nonlocal taken
        for n in range(1, 1000):
            taken += 1
            yield f"10.0.{n >> 8}.{n & 255}"

    bench.script = lambda _: [Event(kind=icmp.TX_ERROR, errno=105)]  # ends at once
    async with aclosing(ping_many(asynchronous(hosts()))) as replies:
        await anext(replies)
        await bench.clock.settle(500)
        assert taken < 50
        left = [reply async for reply in replies]
    assert len(left) == 998


async def test_leaving_early_ends_what_runs(network: Network, bench: PingBench) -> None:
    bench.script = lambda request: answers(request) if request.attempt < 3 else silence(request)
    async with aclosing(ping_many(["192.0.2.1"], count=100, interval_ms=1)) as replies:

        async def three() -> None:
            for _ in range(3):
                await anext(replies)

        async with asyncio.TaskGroup() as group:
            await bench.finish([group.create_task(three())])
    sent = len(bench.requests)
    await bench.clock.advance(1000 * NS_PER_MS)
    assert len(bench.requests) == sent < 100
    assert bench.engines[4].closed


async def test_a_source_that_breaks_breaks_it(network: Network) -> None:
    def hosts() -> Iterator[str]:
        yield "192.0.2.1"
        raise OSError("the list cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        _ = [reply async for reply in ping_many(hosts())]
