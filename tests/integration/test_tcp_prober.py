"""TCP checks against real sockets of this host's loopback."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from netsonde.clock import SystemClock
from netsonde.model import Measurement, Outcome, TcpSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.targets import TargetResolver
from netsonde.probe.tcp import TcpProber


async def run(
    spec: TcpSpec, policy: TargetPolicy | None = None, names: dict[str, list[str]] | None = None
) -> Measurement:
    async def look_up(name: str, family: int) -> list[tuple[Any, ...]]:
        return [(0, (address, 0)) for address in (names or {})[name]]

    policy = policy or TargetPolicy.person()
    resolver = TargetResolver(policy, look_up=look_up if names is not None else None)
    clock = SystemClock()
    record = Recorder(clock)
    prober = TcpProber(clock, resolver)
    await measure(prober, spec, record)
    await prober.close()
    return record.measurement()


def named(measurement: Measurement, name: str) -> list[dict[str, Any]]:
    return [each.value for each in measurement.observations if each.name == name]


@pytest.fixture(params=["127.0.0.1", "::1"])
async def listener(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, int]]:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, request.param, 0)
    async with server:
        yield request.param, server.sockets[0].getsockname()[1]


def closed_port(address: str) -> int:
    """A port that was free a moment ago and that no ephemeral socket will get."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


async def test_an_open_port_connects_with_both_clocks(listener: tuple[str, int]) -> None:
    address, port = listener

    measurement = await run(TcpSpec(host=address, port=port))

    (attempt,) = named(measurement, "tcp_attempt")
    (summary,) = named(measurement, "tcp_summary")
    assert measurement.outcome is Outcome.OK
    assert summary["success"] is True
    assert 0 < attempt["rtt_ms"] < 1000
    assert 0 < attempt["syn_rtt_ms"] < 1000
    assert attempt["retransmits"] == 0
    assert measurement.env["source"] == address


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_closed_port_is_refused(address: str) -> None:
    measurement = await run(TcpSpec(host=address, port=closed_port(address)))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("refused", "target")
    (attempt,) = named(measurement, "tcp_attempt")
    assert attempt["errno"] == errno.ECONNREFUSED
    assert attempt["rtt_ms"] >= 0


async def test_a_refusal_is_followed_by_the_next_address_at_once(
    listener: tuple[str, int],
) -> None:
    address, port = listener
    other = "127.0.0.2"  # the listener is bound to one address only

    measurement = await run(
        TcpSpec(host="two.example", port=port), names={"two.example": [other, address]}
    )

    first, second = named(measurement, "tcp_attempt")
    assert first["reason"] == "refused"
    assert second["success"] is True
    assert measurement.duration_ns < 200_000_000  # well below the stagger


async def test_a_full_backlog_is_a_timeout() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        port = sock.getsockname()[1]
        fillers = [socket.socket() for _ in range(8)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            measurement = await run(TcpSpec(host="127.0.0.1", port=port, timeout_ms=50))
        finally:
            for filler in fillers:
                filler.close()

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == "timeout"
    assert named(measurement, "tcp_attempt")[0]["reason"] == "timeout"
    assert named(measurement, "tcp_summary")[0]["success"] is False


async def test_a_port_that_connects_to_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port("127.0.0.1")
    connect_ex = socket.socket.connect_ex

    def from_the_same_port(sock: socket.socket, address: Any) -> int:
        sock.bind(address)
        return connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", from_the_same_port)

    measurement = await run(TcpSpec(host="127.0.0.1", port=port))

    assert measurement.error is not None
    assert measurement.error.reason == "refused"


async def test_a_connection_that_is_gone_at_once_is_reset(
    listener: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset_meanwhile(_: socket.socket) -> Any:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(socket.socket, "getpeername", reset_meanwhile)
    address, port = listener

    measurement = await run(TcpSpec(host=address, port=port))

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("reset", "target")
    assert named(measurement, "tcp_attempt")[0]["reason"] == "reset"


async def test_an_agents_policy_guards_the_connector(listener: tuple[str, int]) -> None:
    address, port = listener

    measurement = await run(
        TcpSpec(host="rebound.example", port=port),
        TargetPolicy(),
        {"rebound.example": [address]},
    )

    assert measurement.outcome is Outcome.REJECTED
    assert named(measurement, "tcp_attempt") == []
    assert named(measurement, "tcp_summary")[0]["reason"] == "denied"


async def test_an_unknown_zone_is_a_sentence() -> None:
    measurement = await run(TcpSpec(host="fe80::1%nowhere0", port=1))

    assert measurement.error is not None
    assert "no interface named 'nowhere0'" in measurement.error.message
