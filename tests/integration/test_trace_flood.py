"""Traces of a host that more foreign ICMP rains on than it is sent in answer.

The host has CAP_NET_RAW alone and the receive buffer that most kernels allow.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from netsonde._native import icmp
from netsonde.model import Measurement, TraceSpec
from netsonde.probe.trace import TraceProber
from support.flood import METHODS, Flood
from support.namespaces import Chain, Namespace
from support.privileges import CAP_NET_RAW, with_capabilities
from support.router_chain import HOPS, router_chain, target_address, true_hops
from support.threads import await_pump_threads, cpu_ns
from support.tracing import hops, probers_over, seen, trace_with

pytestmark = [pytest.mark.raw, pytest.mark.netns]

FAMILIES = pytest.mark.parametrize("version", [4, 6])
TRACES = 64  # by each method
SILENT = 5  # the TTL of the router that says nothing, so that every trace asks again
TIMEOUT_MS = 1500
BUFFER_BYTES = 212_992  # net.core.rmem_max of a host that nobody has tuned
RATE_PPS, WANTED_PPS = 75_000, 50_000
TRIES = 5  # the flood is not alone on this machine
CPU_US = 5  # of the engine, for a packet
QUIET_AFTER_S, QUIET_S, QUIET_TIMES = 0.4, 0.1, 6
QUIET_SHARE = 0.05
FORGER = 4095  # no trace's target


@pytest.fixture(scope="module")
def path() -> Iterator[Chain]:
    with router_chain() as built:
        built.nodes[SILENT].make_silent()
        yield built


@pytest.fixture
def flood(path: Chain, version: int) -> Flood:
    return Flood(path, version, RATE_PPS, target_address(version, FORGER))


def open_engine(host: Namespace, family: int) -> icmp.EchoEngine:
    """Open an engine as an agent without other privileges has it."""

    def opened() -> icmp.EchoEngine:
        backend: icmp._Backend = "header" if family == 4 else "raw"
        engine = icmp.EchoEngine(
            4 if family == 4 else 6, backend=backend, receive_buffer_bytes=BUFFER_BYTES
        )
        engine.start()
        return engine

    return host.call(with_capabilities, 1 << CAP_NET_RAW, opened)


def specs(version: int) -> list[TraceSpec]:
    return [
        TraceSpec(host=target_address(version, number), method=method, timeout_ms=TIMEOUT_MS)
        for number in range(TRACES)
        for method in METHODS
    ]


def expected(path: Chain, spec: TraceSpec, version: int, number: int) -> list[str | None]:
    truth: list[str | None] = [*true_hops(path, version, number)]
    truth[SILENT - 1] = None
    if (version, spec.method) == (6, "udp"):
        truth[-1] = path.target_address(6)  # an error has no anycast address (RFC 4443 2.2)
    return truth


def assert_true(path: Chain, version: int, measurements: list[Measurement]) -> None:
    """Insist that every trace has found its path, and believed nobody else."""
    asked = enumerate(zip(specs(version), measurements, strict=True))
    for place, (spec, measurement) in asked:
        truth = expected(path, spec, version, place // len(METHODS))
        value = seen(measurement)
        assert hops(measurement) == truth, value
        assert value["stop_reason"] == "completed"
        assert not value["nat_detected"]
        for hop, address in zip(value["hops"], truth, strict=True):
            answers = [probe for probe in hop["probes"] if "address" in probe]
            assert {probe["address"] for probe in answers} <= {address}
            assert not any(probe["duplicate"] for probe in answers)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What has come in and what it has cost, up to an instant or between two."""

    wall_ns: int
    messages: int  # by the host's own count
    pump_ns: int
    counters: Counter[str]

    @classmethod
    def now(cls, host: Namespace, version: int, engine: icmp.EchoEngine) -> Self:
        (pump,) = await_pump_threads(1)
        return cls(
            wall_ns=time.monotonic_ns(),
            messages=host.call(received_messages, version),
            pump_ns=cpu_ns(pump),
            counters=Counter(engine.counters),
        )

    def since(self, before: Self) -> "Account":
        return Account(
            wall_ns=self.wall_ns - before.wall_ns,
            messages=self.messages - before.messages,
            pump_ns=self.pump_ns - before.pump_ns,
            counters=self.counters - before.counters,
        )

    @property
    def packets(self) -> int:
        """How many the engine's socket was given."""
        return self.counters["packets"] + self.counters["rx_drops"]

    @property
    def rate_pps(self) -> float:
        return min(self.messages, self.packets) / self.wall_ns * 1e9


def received_messages(version: int) -> int:
    """Return how many ICMP messages this thread's namespace has received."""
    net = Path("/proc/thread-self/net")
    if version == 6:
        lines = (net / "snmp6").read_text().splitlines()
        return int(dict(line.split() for line in lines)["Icmp6InMsgs"])
    lines = (net / "snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(dict(zip(names, values, strict=True))["InMsgs"])


async def quiet_share() -> float:
    """Return the share of its time that the loop works while it waits for the engine.

    The least of several: whatever foreign packets make it do, they make it do always.
    """
    shares = []
    await asyncio.sleep(QUIET_AFTER_S)
    for _ in range(QUIET_TIMES):
        wall_ns, own_ns = time.monotonic_ns(), time.thread_time_ns()
        await asyncio.sleep(QUIET_S)
        shares.append((time.thread_time_ns() - own_ns) / (time.monotonic_ns() - wall_ns))
    return min(shares)


async def trace_all(
    path: Chain, version: int, prober: TraceProber
) -> tuple[list[Measurement], float]:
    """Trace all targets by every method at once; return also the loop's share of idle time."""
    with path.host.entered():
        async with asyncio.TaskGroup() as group:
            traces = group.create_task(trace_with(prober, *specs(version)))
            share = await quiet_share()
    return traces.result(), share


async def trace_in_flood(
    path: Chain, version: int, prober: TraceProber, engine: icmp.EchoEngine
) -> float:
    """Trace all targets while it pours; return the packets a second that the engine was given."""
    before = Account.now(path.host, version, engine)
    measurements, share = await trace_all(path, version, prober)
    spent = Account.now(path.host, version, engine).since(before)
    assert_true(path, version, measurements)
    assert share <= QUIET_SHARE
    assert spent.pump_ns <= spent.packets * CPU_US * 1000
    refused = [spent.counters[why] for why in ("forged", "foreign", "malformed")]
    assert min(refused) > spent.packets / 20
    return spent.rate_pps


@FAMILIES
async def test_a_flood_of_foreign_and_forged_messages_changes_nothing(
    path: Chain, version: int, flood: Flood
) -> None:
    rates_pps: list[float] = []
    with probers_over(partial(open_engine, path.host)) as (prober, pings), flood.rising():
        engine = pings.lanes.get(version).engine
        assert isinstance(engine, icmp.EchoEngine)
        while len(rates_pps) < TRIES and max(rates_pps, default=0) < WANTED_PPS:
            rates_pps.append(await trace_in_flood(path, version, prober, engine))
    assert max(rates_pps) >= WANTED_PPS, rates_pps


@FAMILIES
async def test_answers_to_many_traces_fit_the_receive_buffer(path: Chain, version: int) -> None:
    with probers_over(partial(open_engine, path.host)) as (prober, pings):
        measurements, _ = await trace_all(path, version, prober)
        engine = pings.lanes.get(version).engine
        assert isinstance(engine, icmp.EchoEngine)
        counters = engine.counters
    assert_true(path, version, measurements)
    assert counters["packets"] == TRACES * len(METHODS) * (HOPS - 1)
    assert counters["rx_drops"] == counters["malformed"] == 0
