import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.model import FailureSource, Measurement, Outcome, Reason, TcpSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.connect import Attempt, explain
from netsonde.probe.targets import TargetResolver
from netsonde.probe.tcp import TcpProber

V4, V4B, V6, V6B = "8.8.8.8", "8.8.4.4", "2606:4700::1", "2606:4700::2"
SPEC = TcpSpec(host="example.net", port=443, timeout_ms=5000)


class Network:
    """Addresses that connect, refuse or stay silent after a while of the manual clock."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.behaviour: dict[str, tuple[int, int | None]] = {}
        self.begun: list[tuple[int, str]] = []
        self._pairs: list[socket.socket] = []
        self.names: list[str] = []

    def add(self, address: str, after_ms: int, code: int | None = 0) -> None:
        """After after_ms the connect ends with errno code; None: it never ends."""
        self.names.append(address)
        self.behaviour[address] = (after_ms, code)

    async def dial(self, attempt: Attempt) -> None:
        attempt.started_ns = self._clock.monotonic_ns()
        self.begun.append((attempt.started_ns // NS_PER_MS, attempt.address))
        after_ms, code = self.behaviour[attempt.address]
        if code is None:
            await asyncio.Event().wait()
        await self._clock.sleep(after_ms * NS_PER_MS)
        attempt.ended_ns = self._clock.monotonic_ns()
        if code:
            attempt.failure = explain(code, local=False)
            return
        attempt.sock, other = socket.socketpair()
        attempt.local = "192.0.2.7"
        self._pairs += [attempt.sock, other]

    async def look_up(self, name: str, family: int) -> list[tuple[Any, ...]]:
        kinds = {4: socket.AF_INET, 6: socket.AF_INET6}
        found = [(kinds[6 if ":" in each else 4], (each, 0)) for each in self.names]
        return [entry for entry in found if family in (0, entry[0])]

    def close(self) -> None:
        for sock in self._pairs:
            sock.close()

    @property
    def open_sockets(self) -> int:
        return sum(sock.fileno() >= 0 for sock in self._pairs[::2])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start_ns=0)


@pytest.fixture
async def network(clock: ManualClock) -> AsyncIterator[Network]:
    network = Network(clock)
    yield network
    network.close()


async def run(
    network: Network, clock: ManualClock, spec: TcpSpec = SPEC, *, ms: int = 10_000
) -> Measurement:
    resolver = TargetResolver(TargetPolicy(), look_up=network.look_up)
    prober = TcpProber(clock, resolver, dial=network.dial)
    record = Recorder(clock)
    async with asyncio.TaskGroup() as group:
        group.create_task(measure(prober, spec, record))
        await clock.advance(ms * NS_PER_MS)
    await prober.close()
    return record.measurement()


def named(measurement: Measurement, name: str) -> list[dict[str, Any]]:
    return [each.value for each in measurement.observations if each.name == name]


async def test_a_connect_is_an_attempt_and_a_summary(network: Network, clock: ManualClock) -> None:
    network.add(V4, 30)

    measurement = await run(network, clock)

    (attempt,) = named(measurement, "tcp_attempt")
    (summary,) = named(measurement, "tcp_summary")
    assert attempt == {
        "attempt": 1,
        "success": True,
        "address": "8.8.8.8:443",
        "rtt_ms": 30.0,
        "rtt_clock": "user",
        "syn_rtt_ms": None,
        "retransmits": 0,
        "error": None,
        "errno": None,
        "cancelled": False,
    }
    assert measurement.outcome is Outcome.OK
    assert (summary["success"], summary["address"], summary["rtt_ms"]) == (
        True,
        "8.8.8.8:443",
        30.0,
    )
    assert measurement.env["source"] == "192.0.2.7"
    assert measurement.env["policy_version"] == TargetPolicy().version
    assert network.open_sockets == 0


async def test_families_alternate_and_start_250_ms_apart(
    network: Network, clock: ManualClock
) -> None:
    for address in (V6, V6B, V4, V4B):
        network.add(address, 0, None)

    resolver = TargetResolver(TargetPolicy(), look_up=network.look_up)
    prober, record = TcpProber(clock, resolver, dial=network.dial), Recorder(clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(prober, SPEC, record))
        await clock.advance(2000 * NS_PER_MS)
        task.cancel()

    assert network.begun == [(0, V6), (250, V4), (500, V6B), (750, V4B)]


async def test_a_failure_starts_the_next_attempt_at_once(
    network: Network, clock: ManualClock
) -> None:
    network.add(V6, 10, errno.ECONNREFUSED)
    network.add(V4, 20)

    measurement = await run(network, clock)

    assert network.begun == [(0, V6), (10, V4)]
    assert measurement.outcome is Outcome.OK
    first, second = named(measurement, "tcp_attempt")
    assert (first["reason"], first["errno"], first["rtt_ms"]) == (
        "refused",
        errno.ECONNREFUSED,
        10.0,
    )
    assert second["success"] is True


async def test_a_slow_attempt_is_overtaken_and_named_superseded(
    network: Network, clock: ManualClock
) -> None:
    network.add(V6, 0, None)
    network.add(V4, 20)

    measurement = await run(network, clock)

    slow, fast = named(measurement, "tcp_attempt")
    assert network.begun == [(0, V6), (250, V4)]
    assert (slow["success"], slow["reason"], slow["cancelled"], slow["rtt_ms"]) == (
        False,
        "superseded",
        False,
        None,
    )
    assert (fast["success"], fast["rtt_ms"]) == (True, 20.0)
    assert measurement.outcome is Outcome.OK


async def test_an_early_attempt_may_still_win(network: Network, clock: ManualClock) -> None:
    network.add(V6, 300)
    network.add(V4, 500)

    measurement = await run(network, clock)

    (summary,) = named(measurement, "tcp_summary")
    assert summary["address"] == f"[{V6}]:443"
    assert summary["attempts"] == 2


async def test_a_closed_port_is_a_result(network: Network, clock: ManualClock) -> None:
    network.add(V4, 5, errno.ECONNREFUSED)

    measurement = await run(network, clock)

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == "refused"
    assert measurement.error.failure_source == "target"
    assert measurement.error.message == "8.8.8.8:443: Connection refused"
    (summary,) = named(measurement, "tcp_summary")
    assert (summary["success"], summary["errno"], summary["rtt_ms"]) == (
        False,
        errno.ECONNREFUSED,
        5.0,
    )


async def test_the_targets_own_word_decides_over_the_paths(
    network: Network, clock: ManualClock
) -> None:
    network.add(V6, 1, errno.ENETUNREACH)
    network.add(V4, 1, errno.ECONNREFUSED)
    network.add(V6B, 1, errno.EHOSTUNREACH)

    measurement = await run(network, clock)

    assert measurement.error is not None
    assert measurement.error.reason == Reason.REFUSED
    assert [each["reason"] for each in named(measurement, "tcp_attempt")] == [
        "unreachable_net",
        "refused",
        "unreachable_host",
    ]


async def test_the_family_narrows_the_race(network: Network, clock: ManualClock) -> None:
    network.add(V6, 1)
    network.add(V4, 1)

    measurement = await run(network, clock, TcpSpec(host="example.net", port=1, family=4))

    assert [each["address"] for each in named(measurement, "tcp_attempt")] == ["8.8.8.8:1"]


async def test_a_denied_address_is_not_dialled(network: Network, clock: ManualClock) -> None:
    network.add("10.0.0.1", 1)
    network.add(V4, 1)

    measurement = await run(network, clock)

    (summary,) = named(measurement, "tcp_summary")
    assert [address for _, address in network.begun] == [V4]
    assert summary["denied"][0].startswith("10.0.0.1 is private")


async def test_a_denied_target_is_rejected_with_a_summary(
    network: Network, clock: ManualClock
) -> None:
    network.add("10.0.0.1", 1)

    measurement = await run(network, clock)

    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("denied", "policy")
    (summary,) = named(measurement, "tcp_summary")
    assert (summary["success"], summary["reason"]) == (False, "denied")
    assert network.begun == []


async def test_a_name_that_does_not_resolve_is_told_twice(clock: ManualClock) -> None:
    async def nothing(name: str, family: int) -> list[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "x")

    network = Network(clock)
    network.look_up = nothing  # type: ignore[method-assign]
    measurement = await run(network, clock)

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (
        "resolve_failed",
        "resolver",
    )
    (resolution,) = named(measurement, "tcp_resolution")
    assert resolution == {
        "host": "example.net",
        "port": 443,
        "error": "example.net: the name does not exist",
    }
    assert named(measurement, "tcp_summary")[0]["reason"] == "resolve_failed"


async def test_cancellation_leaves_attempts_and_a_summary(
    network: Network, clock: ManualClock
) -> None:
    network.add(V6, 0, None)
    network.add(V4, 0, None)
    resolver = TargetResolver(TargetPolicy(), look_up=network.look_up)
    prober, record = TcpProber(clock, resolver, dial=network.dial), Recorder(clock)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(measure(prober, SPEC, record))
        await clock.advance(100 * NS_PER_MS)
        task.cancel()

    assert task.cancelled()
    measurement = record.measurement()
    (attempt,) = named(measurement, "tcp_attempt")
    (summary,) = named(measurement, "tcp_summary")
    assert (attempt["cancelled"], attempt["reason"]) == (True, "cancelled")
    assert (summary["success"], summary["cancelled"], summary["reason"]) == (
        False,
        True,
        "cancelled",
    )


async def test_a_race_that_overruns_is_a_timeout(network: Network, clock: ManualClock) -> None:
    network.add(V4, 0, None)
    resolver = TargetResolver(TargetPolicy(), look_up=network.look_up)
    prober, record = TcpProber(clock, resolver, dial=network.dial), Recorder(clock)

    await measure(prober, TcpSpec(host="example.net", port=443, timeout_ms=1), record)

    measurement = record.measurement()
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("timeout", "target")
    (attempt,) = named(measurement, "tcp_attempt")
    assert (attempt["reason"], attempt["cancelled"], attempt["error"]) == (
        "timeout",
        False,
        "no answer in time",
    )
    assert named(measurement, "tcp_summary")[0]["reason"] == "timeout"


async def test_our_own_fault_is_an_agent_error(clock: ManualClock) -> None:
    network = Network(clock)
    network.names.append(V6)

    async def no_route(attempt: Attempt) -> None:
        attempt.started_ns = attempt.ended_ns = clock.monotonic_ns()
        attempt.failure = explain(errno.ENETUNREACH, local=True)

    network.dial = no_route  # type: ignore[method-assign]
    measurement = await run(network, clock)

    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (
        "no_route",
        FailureSource.SELF,
    )
