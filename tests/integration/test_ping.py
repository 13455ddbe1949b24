"""The ping prober with real sockets on loopback and in namespaces, on the production loop.

Engines have a thread of their own, or the event loop turns them; packets leave by every back end.
"""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
import uvloop

from netsonde.clock import NS_PER_MS, SystemClock
from netsonde.errors import NetsondeError
from netsonde.model import Measurement, Outcome, PingExpect, PingSpec, Reason, TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe import make_probers
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping import EngineOptions, PingProber, ping_many
from netsonde.probe.ping.driver import EchoEngine
from netsonde.probe.ping.engines import Backend, budgets, open_engine
from netsonde.probe.ping.ways import ANY
from netsonde.probe.privilege import capabilities, icmp_access
from netsonde.probe.targets import TargetResolver
from support import packets
from support.icmp_peer import TARGET, Family, Peer, quiet_host, reply_to, unreachable
from support.icmp_wire import (
    BACKENDS,
    THERE,
    EchoNetwork,
    beyond,
    echo_network,
    gaps_ns,
    link_bytes,
)
from support.namespaces import Chain, Namespace, chain, left_address
from support.ping_bench import summary, values

pytestmark = pytest.mark.raw

CLOCK = SystemClock()
T = TypeVar("T")


def prober_in(namespace: Namespace | None = None, *, threaded: bool | None = None) -> PingProber:
    options = EngineOptions(threaded=threaded)

    def enter(family: int) -> EchoEngine:
        if namespace is None:
            return open_engine(family, options)
        return namespace.call(open_engine, family, options)

    return PingProber(CLOCK, TargetResolver(TargetPolicy.person()), engine=enter)


@pytest_asyncio.fixture(params=[True, False], ids=["thread", "loop"])
async def prober(request: pytest.FixtureRequest) -> AsyncIterator[PingProber]:
    prober = prober_in(threaded=request.param)
    yield prober
    await prober.close()


async def ping(prober: PingProber, *, columnar: bool = False, **spec: Any) -> Measurement:
    record = Recorder(CLOCK, columnar=columnar)
    await measure(prober, PingSpec(**spec), record)
    return record.measurement()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def open_files() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.200.3.4", "::1"])
async def test_loopback_answers(prober: PingProber, host: str) -> None:
    measurement = await ping(prober, host=host, count=3, interval_ms=1)
    found = summary(measurement)
    assert measurement.outcome is Outcome.OK
    assert (found["sent"], found["received"], found["loss_pct"]) == (3, 3, 0.0)
    assert (found["rx_clock"], found["tx_clock"]) == ("kernel", "user")
    assert found["backend"] == ("raw" if ":" in host else "header")
    assert 0 <= found["min_rtt_ms"] <= found["max_rtt_ms"] < 100
    assert [each.value["bytes"] for each in measurement.observations[:3]] == [64, 64, 64]
    assert measurement.env["clock"]["steps"] == 0


async def test_columns(prober: PingProber) -> None:
    measurement = await ping(prober, host="127.0.0.1", count=1000, interval_ms=0, columnar=True)
    (columns,) = values(measurement, "ping_attempts")
    assert len(columns["rtt_us"]) == 1000
    assert all(rtt_us >= 0 for rtt_us in columns["rtt_us"])
    assert columns["bytes"] == [[64, 1000]]


async def test_a_name_is_resolved_and_pinged(prober: PingProber) -> None:
    assert (await ping(prober, host="localhost", count=1)).outcome is Outcome.OK
    measurement = await ping(prober, host="localhost", count=2, addresses="all")
    assert measurement.outcome is Outcome.OK
    assert summary(measurement)["received"] >= 2


async def test_five_thousand_targets_at_once_are_not_mixed_up(prober: PingProber) -> None:
    hosts = [f"127.{n >> 8}.{n & 255}.7" for n in range(5000)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ping(prober, host=host, count=2, interval_ms=50, timeout_ms=30_000))
            for host in hosts
        ]
    for host, task in zip(hosts, tasks, strict=True):
        measurement = task.result()
        found = summary(measurement)
        assert (found["address"], found["received"], found["duplicates"]) == (host, 2, 0)
        assert all("responder" not in each.value for each in measurement.observations)
    assert len(prober.lanes.get(4).driver._ledger) == 0


@pytest.mark.parametrize("threaded", [True, False])
async def test_ping_many_tells_every_packet(threaded: bool) -> None:
    hosts = [f"127.{n >> 8}.{n & 255}.7" for n in range(1, 2000)]
    seen = [
        (reply.target, reply.attempt, reply.kind)
        async for reply in ping_many(
            hosts, count=2, interval_ms=1, timeout_ms=30_000,
            engine=EngineOptions(threaded=threaded),
        )
    ]  # fmt: skip
    assert sorted(seen) == sorted((host, n, "reply") for host in hosts for n in range(2))


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


async def test_cancelling_mid_run_keeps_count_and_the_prober_usable(prober: PingProber) -> None:
    record = Recorder(CLOCK, columnar=False)
    spec = PingSpec(host="127.0.0.1", count=1000, interval_ms=5)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(prober, spec, record))
        await ping(prober, host="127.0.0.1", count=3, interval_ms=5)
        task.cancel()
    found = summary(record.measurement())
    assert found["cancelled"] is True
    assert 2 <= found["received"] <= found["sent"] < 1000
    assert (await ping(prober, host="127.0.0.1", count=1)).outcome is Outcome.OK


async def test_hundreds_are_cancelled_at_once_and_know_what_they_sent(prober: PingProber) -> None:
    records = [Recorder(CLOCK) for _ in range(400)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                measure(
                    prober,
                    PingSpec(host=f"127.1.{n >> 8}.{n & 255}", count=10_000, interval_ms=1),
                    record,
                )
            )
            for n, record in enumerate(records, 1)
        ]
        await ping(prober, host="127.0.0.1", count=2, interval_ms=100)
        for task in tasks:
            task.cancel()
    for record in records:
        found = summary(record.measurement())
        assert found["cancelled"] is True
        assert 0 < found["received"] <= found["sent"] < 10_000
    assert len(prober.lanes.get(4).driver._ledger) == 0


def test_this_host_says_what_it_can_do() -> None:
    found = capabilities()
    assert set(found) == {"raw_icmp", "datagram_icmp", "raw_trace", "ipv6", "kernel_timestamps"}
    assert found["raw_icmp"]
    assert found["kernel_timestamps"]
    assert icmp_access(4) == "raw"


async def test_an_engine_that_will_not_open_is_our_error() -> None:
    def refuse(family: int) -> EchoEngine:
        raise NetsondeError("no sockets today")

    prober = PingProber(CLOCK, TargetResolver(TargetPolicy.person()), engine=refuse)
    measurement = await ping(prober, host="127.0.0.1")
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert summary(measurement)["sent"] == 0


# ── through routers ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def network() -> Iterator[Chain]:
    """Host, two routers, target; 10.98/16 and fd98::/16 are unreachable, 10.97/16 a black hole."""
    with chain(2) as net:
        for family, unreachable_, hole in ((4, "10.98.0.0/16", "10.97.0.0/16"),
                                           (6, "fd98::/16", "fd97::/16")):  # fmt: skip
            for prefix, kind in ((unreachable_, "unreachable"), (hole, "blackhole")):
                net.host.route_to(prefix, net.hops(family)[0])
                net.nodes[1].refuse(prefix, kind)
        net.host.allow_icmp_datagrams()
        yield net


Body = Callable[[PingProber], Awaitable[T]]


def within(namespace: Namespace, body: Body[T], *backends: Backend, threaded: bool = False) -> T:
    """Run a loop in a namespace, so that questions about routes are asked there too."""

    async def main() -> T:
        options = EngineOptions(threaded=threaded, backends=backends or ("header", "raw"))
        prober = PingProber(
            CLOCK,
            TargetResolver(TargetPolicy.person()),
            engine=partial(open_engine, options=options),
        )
        try:
            async with asyncio.timeout(60):
                return await body(prober)
        finally:
            await prober.close()

    return namespace.call(uvloop.run, main())


@pytest.mark.netns
@pytest.mark.parametrize("threaded", [True, False], ids=["thread", "loop"])
@pytest.mark.parametrize(("family", "backend"), BACKENDS)
def test_a_target_behind_routers_by_every_back_end(
    network: Chain, family: Family, backend: Backend, threaded: bool
) -> None:
    async def body(prober: PingProber) -> Measurement:
        return await ping(prober, host=network.target_address(family), count=3, interval_ms=1,
                          timeout_ms=5000)  # fmt: skip

    measurement = within(network.host, body, backend, threaded=threaded)
    found = summary(measurement)
    assert measurement.outcome is Outcome.OK
    assert measurement.observations[0].value["ttl"] == 62
    assert found["backend"] == backend
    assert found["socket"] == ("datagram" if backend == "datagram" else "raw")


@pytest.mark.netns
@pytest.mark.parametrize("threaded", [True, False], ids=["thread", "loop"])
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
def test_why_there_is_no_reply(network: Chain, host: str, reason: Reason, threaded: bool) -> None:
    # Two packets only: of its refusals a router tells but 5 at once.
    body = partial(ping, host=host, count=2, interval_ms=5, timeout_ms=300)
    measurement = within(network.host, body, threaded=threaded)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == reason
    assert summary(measurement)["loss_pct"] == 100.0


@pytest.mark.netns
@pytest.mark.parametrize("backend", ["packet", "datagram"])
@pytest.mark.parametrize(
    ("host", "reason"), [("fd98::1", Reason.UNREACHABLE_NET), ("203.0.113.1", Reason.NO_ROUTE)]
)
def test_every_back_end_says_why(
    network: Chain, host: str, reason: Reason, backend: Backend
) -> None:
    measurement = within(network.host, partial(ping, host=host, count=1), backend)
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == reason
    assert summary(measurement)["loss_pct"] == 100.0


@pytest.mark.netns
@pytest.mark.parametrize("backends", [("header", "raw"), ("packet",)])
def test_source_interface_and_df_are_heeded(network: Chain, backends: tuple[Backend, ...]) -> None:
    target = network.target_address(4)

    async def body(prober: PingProber) -> list[Measurement]:
        return [
            await ping(prober, host=target, count=1, timeout_ms=5000, **options)
            for options in (
                {"source": "10.77.0.1", "interface": "right", "df": True, "size": 1472},
                {"df": True, "size": 1473},
                {"size": 1473} if backends != ("packet",) else {"size": 1472},
                {"source": "10.77.0.2"},
                {"interface": "wrong"},
            )
        ]

    fits, too_large, in_pieces, not_ours, not_there = within(network.host, body, *backends)
    assert fits.outcome is Outcome.OK
    assert values(fits, "ping_attempt")[0]["bytes"] == 1480
    assert in_pieces.outcome is Outcome.OK
    for refused, says in (
        (too_large, "size may be 1472 at the most"),
        (not_ours, "source 10.77.0.2 is not an address of this host"),
        (not_there, "no interface 'wrong'"),
    ):
        assert refused.outcome is Outcome.REJECTED
        assert refused.error is not None
        assert says in refused.error.message


@pytest.mark.netns
def test_df_needs_a_back_end_that_can_say_it(network: Chain) -> None:
    measurement = within(
        network.host, partial(ping, host=network.target_address(4), df=True), "datagram"
    )
    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert "df needs the back end header or packet" in measurement.error.message


@pytest.mark.netns
def test_frames_do_not_reach_this_host(network: Chain) -> None:
    measurement = within(network.host, partial(ping, host="10.77.0.1"), "packet")
    assert measurement.error is not None
    assert measurement.error.reason == Reason.NO_ROUTE
    assert "is this host itself" in measurement.error.message


@pytest.fixture
def host() -> Iterator[Namespace]:
    host = quiet_host()
    yield host
    host.close()


@pytest.mark.netns
@pytest.mark.parametrize("threaded", [True, False], ids=["thread", "loop"])
@pytest.mark.parametrize("family", [4, 6])
async def test_somebody_elses_icmp_errors_do_not_deafen_the_loop(
    host: Namespace, family: Family, threaded: bool
) -> None:
    """An ICMP error makes the socket POLLERR, on which libuv stops watching a descriptor."""
    prober = prober_in(host, threaded=threaded)
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
async def test_ttl_too_small(network: Chain) -> None:
    prober = prober_in(network.host)
    measurement = await ping(prober, host=network.target_address(4), count=1, ttl=2,
                             timeout_ms=5000)  # fmt: skip
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TTL_EXCEEDED
    assert measurement.observations[0].value["responder"] == network.hops(4)[1]
    await prober.close()


@pytest.mark.netns
async def test_closing_twice_and_reopening(network: Chain) -> None:
    prober = prober_in(network.host)
    assert (await ping(prober, host=network.target_address(4), count=1)).outcome is Outcome.OK
    await prober.close()
    await prober.close()
    assert (await ping(prober, host=network.target_address(4), count=1)).outcome is Outcome.OK
    await prober.close()


# ── frames, and who hears of changes ─────────────────────────────────────────────────────────────


@pytest.fixture
def two() -> Iterator[EchoNetwork]:
    with echo_network() as net:
        yield net


@pytest.mark.netns
@pytest.mark.parametrize("family", [4, 6])
def test_a_neighbour_that_changes_its_address_is_found_again(
    two: EchoNetwork, family: Family
) -> None:
    """Frames go where the neighbour is now, because the monitor says that it has moved."""
    index, true = two.here.index("h0"), link_bytes(two.there, "t0")
    wrong = ":".join(["02", *["00"] * 4, "99"])
    right = ":".join(f"{byte:02x}" for byte in true)

    def move(link_address: str) -> None:
        two.here.route.neigh(
            "replace", dst=THERE[family], lladdr=link_address, ifindex=index, state="permanent"
        )

    prober = PingProber(
        CLOCK,
        TargetResolver(TargetPolicy.person()),
        engine=partial(open_engine, options=EngineOptions(backends=("packet",))),
    )

    async def measured() -> Measurement:
        return await ping(prober, host=beyond(family, 1), count=1, timeout_ms=500)

    async def after_a_change() -> Measurement:
        ways = prober.lanes.get(family).ways
        await until(lambda: ways.known(beyond(family, 1), ANY) is None)
        return await measured()

    # Piece by piece: pyroute2 runs a loop of its own to change the neighbour.
    with two.here.entered(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        before = runner.run(measured())
        move(wrong)
        away = runner.run(after_a_change())
        move(right)
        back = runner.run(after_a_change())
        runner.run(prober.close())
    assert [each.outcome for each in (before, back)] == [Outcome.OK] * 2
    assert away.error is not None
    assert away.error.reason == Reason.TIMEOUT


@pytest.mark.netns
def test_neighbours_on_the_link_have_a_link_address_each(two: EchoNetwork) -> None:
    two.there.answer_for("10.0.0.64/26")

    async def body(prober: PingProber) -> list[Measurement]:
        return [
            await ping(prober, host=host, count=1, timeout_ms=2000)
            for host in (THERE[4], "10.0.0.65", "10.0.0.200")
        ]

    first, second, nobody = within(two.here, body, "packet")
    assert [first.outcome, second.outcome] == [Outcome.OK] * 2
    assert nobody.error is not None
    assert "nobody answers for it" in nobody.error.message


# ── rates ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.netns
@pytest.mark.parametrize(
    ("options", "gap_ms"),
    [
        (EngineOptions(budgets=budgets(200, 100)), 10),
        (EngineOptions(prefix_pps=100), 10),
        (EngineOptions(budgets=budgets(500), target_pps=50), 20),
    ],
    ids=["agent and kind", "prefix", "target"],
)
def test_gaps_on_the_wire_obey_the_settings(
    two: EchoNetwork, options: EngineOptions, gap_ms: float
) -> None:
    wire = two.wire(4)

    async def main() -> Measurement:
        prober = make_probers(CLOCK, TargetPolicy.person(), options)[TaskKind.PING]
        record = Recorder(CLOCK)
        await measure(prober, PingSpec(host=THERE[4], count=12, interval_ms=0), record)
        await prober.close()
        return record.measurement()

    found = summary(two.here.call(uvloop.run, main()))
    assert found["received"] == 12
    gaps = gaps_ns(wire.packets(12))
    assert min(gaps) > (gap_ms - 3) * NS_PER_MS  # a late packet may shorten the next gap by 2 ms
    assert found["rate_pps"] <= 1000 / gap_ms * 1.1


@pytest.mark.netns
def test_both_families_share_the_agents_rate(two: EchoNetwork) -> None:
    async def main() -> float:
        options = EngineOptions(budgets=budgets(100))
        prober = make_probers(CLOCK, TargetPolicy.person(), options)[TaskKind.PING]
        began_ns = CLOCK.monotonic_ns()
        async with asyncio.TaskGroup() as group:
            for address in (THERE[4], THERE[6]):
                spec = PingSpec(host=address, count=15, interval_ms=0)
                group.create_task(measure(prober, spec, Recorder(CLOCK)))
        took_ms = (CLOCK.monotonic_ns() - began_ns) / NS_PER_MS
        await prober.close()
        return took_ms

    assert two.here.call(uvloop.run, main()) >= 280  # 30 packets, 10 ms apart


# ── methods tcp and udp ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_connection_is_an_answer_with_the_kernels_time(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        prober = prober_in()
        measurement = await ping(
            prober, host=address, method="tcp", port=listener.getsockname()[1], count=5,
            interval_ms=1, timeout_ms=5000,
        )  # fmt: skip
    found = summary(measurement)
    assert measurement.outcome is Outcome.OK
    assert (found["received"], found["answers"]) == (5, {"connected": 5})
    assert (found["tx_clock"], found["rx_clock"]) == ("kernel", "kernel")
    assert 0 < found["min_rtt_ms"] < 100
    assert [*prober.lanes] == []  # nothing of ICMP


@pytest.mark.parametrize("method", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_closed_port_is_alive(address: str, method: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_STREAM) as tcp,
        socket.socket(family, socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind((address, 0))
        udp.bind((address, 0))
        port = (tcp if method == "tcp" else udp).getsockname()[1]
        if method == "udp":
            udp.close()
        prober = prober_in()
        measurement = await ping(
            prober, host=address, method=method, port=port, count=3, interval_ms=1,
            timeout_ms=5000, expect=PingExpect(loss_pct_max=0),
        )  # fmt: skip
    found = summary(measurement)
    assert measurement.outcome is Outcome.OK
    answer, clock = ("refused", "user") if method == "tcp" else ("unreachable_port", "kernel")
    assert found["answers"] == {answer: 3}
    assert found["rx_clock"] == clock
    assert values(measurement, "ping_attempt")[0]["answer"] == answer


async def test_a_datagram_back_is_an_answer() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        echo.setblocking(False)

        def answer() -> None:
            data, sender = echo.recvfrom(65_535)
            echo.sendto(data[:20], sender)

        loop.add_reader(echo, answer)
        measurement = await ping(
            prober_in(), host="127.0.0.1", method="udp", port=echo.getsockname()[1], count=4,
            interval_ms=1, size=100, timeout_ms=5000,
        )  # fmt: skip
        loop.remove_reader(echo)
    found = summary(measurement)
    assert (found["received"], found["answers"]) == (4, {"datagram": 4})
    assert (found["rx_clock"], found["socket"]) == ("kernel", "datagram")
    assert values(measurement, "ping_attempt")[0]["bytes"] == 28


@pytest.mark.netns
@pytest.mark.parametrize("method", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_what_routers_say_is_no_answer(network: Chain, family: Family, method: str) -> None:
    unreachable_ = {4: "10.98.1.1", 6: "fd98::1"}[family]
    hole = {4: "10.97.1.1", 6: "fd97::1"}[family]
    nowhere = {4: "203.0.113.1", 6: "2001:db8::1"}[family]
    target, source = network.target_address(family), left_address(0, family)

    async def body(prober: PingProber) -> list[Measurement]:
        options: dict[str, Any] = {"method": method, "port": 9, "count": 1}
        return [
            await ping(prober, host=unreachable_, timeout_ms=5000, **options),
            await ping(prober, host=hole, timeout_ms=100, **options),
            await ping(prober, host=nowhere, timeout_ms=5000, **options),
            await ping(prober, host=target, timeout_ms=5000, ttl=2, **options),
            await ping(
                prober,
                host=target,
                timeout_ms=5000,
                source=source,
                interface="right",
                mark=7,
                **options,
            ),
        ]

    refused, silent, homeless, expired, alive = within(network.host, body)
    reasons = [each.error and each.error.reason for each in (refused, silent, homeless, expired)]
    assert reasons == [
        Reason.UNREACHABLE_HOST if family == 4 else Reason.UNREACHABLE_NET,
        Reason.TIMEOUT,
        Reason.NO_ROUTE,
        Reason.TTL_EXCEEDED,
    ]
    assert values(expired, "ping_attempt")[0]["responder"] == network.hops(family)[1]
    assert summary(homeless)["sent"] == 0
    assert alive.outcome is Outcome.OK
    assert all(each.outcome is Outcome.TARGET_ERROR for each in (refused, silent, homeless))


async def test_cancelled_attempts_leave_no_socket_open() -> None:
    before = open_files()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        prober, record = prober_in(), Recorder(CLOCK)
        spec = PingSpec(host="127.0.0.1", method="udp", port=silent.getsockname()[1], count=500,
                        interval_ms=1, timeout_ms=60_000)  # fmt: skip
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            task = group.create_task(measure(prober, spec, record))
            await until(lambda: open_files() >= before + 20)
            task.cancel()
    found = summary(record.measurement())
    assert found["cancelled"] is True
    assert 15 <= found["sent"] < 500
    assert found["loss_pct"] is None
    assert open_files() <= before
