"""The ping prober with real sockets on loopback and in namespaces, on the production loop."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from netsonde.clock import SystemClock
from netsonde.errors import NetsondeError
from netsonde.model import Measurement, Outcome, PingSpec, Reason
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.echo import EchoEngine, open_engine
from netsonde.probe.ping import PingProber
from netsonde.probe.privilege import capabilities, icmp_access
from netsonde.probe.targets import TargetResolver
from support import packets
from support.icmp_peer import TARGET, Family, Peer, quiet_host, reply_to, unreachable
from support.namespaces import Chain, Namespace, chain

pytestmark = pytest.mark.raw

CLOCK = SystemClock()


def prober_in(namespace: Namespace | None = None) -> PingProber:
    def enter(family: int) -> EchoEngine:
        return namespace.call(open_engine, family) if namespace else open_engine(family)

    return PingProber(CLOCK, TargetResolver(TargetPolicy.person()), engine=enter)


@pytest.fixture
async def prober() -> AsyncIterator[PingProber]:
    prober = prober_in()
    yield prober
    await prober.close()


async def ping(prober: PingProber, **spec: Any) -> Measurement:
    record = Recorder(CLOCK)
    await measure(prober, PingSpec(**spec), record)
    return record.measurement()


def summary(measurement: Measurement) -> dict[str, Any]:
    last = measurement.observations[-1]
    assert last.name == "ping_summary"
    value: dict[str, Any] = last.value
    return value


@pytest.mark.parametrize("host", ["127.0.0.1", "127.200.3.4", "::1"])
async def test_loopback_answers(prober: PingProber, host: str) -> None:
    measurement = await ping(prober, host=host, count=3, interval_ms=1)
    found = summary(measurement)
    assert measurement.outcome is Outcome.OK
    assert (found["sent"], found["received"], found["loss_pct"]) == (3, 3, 0.0)
    assert found["rx_clock"] == "kernel"
    assert 0 <= found["min_rtt_ms"] <= found["max_rtt_ms"] < 100
    assert [each.value["bytes"] for each in measurement.observations[:3]] == [64, 64, 64]


async def test_a_name_is_resolved_and_pinged(prober: PingProber) -> None:
    assert (await ping(prober, host="localhost", count=1)).outcome is Outcome.OK


async def test_five_thousand_targets_at_once_are_not_mixed_up(prober: PingProber) -> None:
    hosts = [f"127.{n >> 8}.{n & 255}.7" for n in range(5000)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ping(prober, host=host, count=2, interval_ms=50)) for host in hosts
        ]
    for host, task in zip(hosts, tasks, strict=True):
        measurement = task.result()
        found = summary(measurement)
        assert (found["address"], found["received"], found["duplicates"]) == (host, 2, 0)
        assert all("responder" not in each.value for each in measurement.observations)


async def test_a_stalled_loop_does_not_enter_the_rtt(prober: PingProber) -> None:
    loop = asyncio.get_running_loop()

    def stall() -> None:
        ends_ns = CLOCK.monotonic_ns() + 60_000_000
        while CLOCK.monotonic_ns() < ends_ns:
            pass

    async def stalls() -> None:
        for _ in range(5):
            loop.call_soon(stall)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        group.create_task(stalls())
        task = group.create_task(ping(prober, host="127.0.0.1", count=10, interval_ms=20))
    found = summary(task.result())
    assert found["received"] == 10
    assert found["p90_ms"] < 10  # a stall is 60


async def test_somebody_elses_replies_are_ignored(prober: PingProber) -> None:
    forger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    forger.setblocking(False)
    with forger:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(ping(prober, host="127.0.0.1", count=5, interval_ms=5))
            for number in range(50):
                payload = struct.pack("!II", 0, number) + os.urandom(48)
                header = struct.pack("!BBHHH", 0, 0, 0, number, number)
                total = packets.checksum(header + payload)
                forger.sendto(header[:2] + struct.pack("!H", total) + header[4:] + payload,
                              ("127.0.0.1", 0))  # fmt: skip
                await asyncio.sleep(0)
    found = summary(task.result())
    assert (found["received"], found["duplicates"], found["late"]) == (5, 0, 0)


async def test_cancelling_mid_run_keeps_the_prober_usable(prober: PingProber) -> None:
    record = Recorder(CLOCK)
    spec = PingSpec(host="127.0.0.1", count=1000, interval_ms=5)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(prober, spec, record))
        await ping(prober, host="127.0.0.1", count=3, interval_ms=5)
        task.cancel()
    found = summary(record.measurement())
    assert found["cancelled"] is True
    assert found["received"] >= 2
    assert (await ping(prober, host="127.0.0.1", count=1)).outcome is Outcome.OK


def test_this_host_says_what_it_can_do() -> None:
    found = capabilities()
    assert set(found) == {"raw_icmp", "datagram_icmp", "raw_trace", "ipv6", "kernel_timestamps"}
    assert found["raw_icmp"]
    assert found["kernel_timestamps"]
    assert icmp_access(4) == "raw"


# ── through routers ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def network() -> Iterator[Chain]:
    """Host, two routers, target; 10.98/16 and fd98::/16 are unreachable, 10.97/16 a black hole."""
    with chain(2) as net:
        for family, unreachable, hole in ((4, "10.98.0.0/16", "10.97.0.0/16"),
                                          (6, "fd98::/16", "fd97::/16")):  # fmt: skip
            for prefix, kind in ((unreachable, "unreachable"), (hole, "blackhole")):
                net.host.route_to(prefix, net.hops(family)[0])
                net.nodes[1].refuse(prefix, kind)
        yield net


@pytest.fixture
async def routed(network: Chain) -> AsyncIterator[PingProber]:
    prober = prober_in(network.host)
    yield prober
    await prober.close()


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
async def test_a_target_behind_routers(network: Chain, routed: PingProber, family: int) -> None:
    measurement = await ping(
        routed, host=network.target_address(family), count=3, interval_ms=1, timeout_ms=5000
    )
    assert measurement.outcome is Outcome.OK
    assert measurement.observations[0].value["ttl"] == 62


@pytest.mark.netns
@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("10.98.1.1", Reason.UNREACHABLE_HOST),
        ("fd98::1", Reason.UNREACHABLE_NET),
        ("10.97.1.1", Reason.TIMEOUT),
        ("fd97::1", Reason.TIMEOUT),
        ("203.0.113.1", Reason.NO_ROUTE),
        ("2001:db8::1", Reason.NO_ROUTE),
    ],
)
async def test_why_there_is_no_reply(routed: PingProber, host: str, reason: Reason) -> None:
    measurement = await ping(routed, host=host, count=3, interval_ms=5, timeout_ms=300)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == reason
    assert summary(measurement)["loss_pct"] == 100.0


@pytest.fixture
def host() -> Iterator[Namespace]:
    host = quiet_host()
    yield host
    host.close()


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
async def test_somebody_elses_icmp_errors_do_not_deafen_the_loop(
    host: Namespace, family: Family
) -> None:
    """An ICMP error makes the socket POLLERR, on which libuv stops watching a descriptor."""
    prober = prober_in(host)
    peer = host.call(Peer, family)
    foreign = packets.echo(family, "request", 1, 1, b"somebody else's ping" * 3)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(ping(prober, host=TARGET[family], count=1, timeout_ms=60_000))
        await peer.has_request()
        for _ in range(3):
            peer.send(unreachable(foreign, family))
            await asyncio.sleep(0.001)  # a turn of the loop's own poll
        peer.send(reply_to(peer.requests()[0], family))
    assert task.result().outcome is Outcome.OK
    peer.close()
    await prober.close()


@pytest.mark.netns
async def test_ttl_too_small(network: Chain, routed: PingProber) -> None:
    measurement = await ping(routed, host=network.target_address(4), count=1, ttl=2,
                             timeout_ms=5000)  # fmt: skip
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TTL_EXCEEDED
    assert measurement.observations[0].value["responder"] == network.hops(4)[1]


@pytest.mark.netns
async def test_closing_twice_and_reopening(network: Chain) -> None:
    prober = prober_in(network.host)
    assert (await ping(prober, host=network.target_address(4), count=1)).outcome is Outcome.OK
    await prober.close()
    await prober.close()
    assert (await ping(prober, host=network.target_address(4), count=1)).outcome is Outcome.OK
    await prober.close()


async def test_an_engine_that_will_not_open_is_our_error() -> None:
    def refuse(family: int) -> EchoEngine:
        raise NetsondeError("no sockets today")

    prober = PingProber(CLOCK, TargetResolver(TargetPolicy.person()), engine=refuse)
    measurement = await ping(prober, host="127.0.0.1")
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert summary(measurement)["sent"] == 0
