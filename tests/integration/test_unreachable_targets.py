"""What routers and hosts refuse, seen by the tcp and dns probers through real kernels."""

from collections.abc import Iterator
from typing import Any

import pytest

from netsonde.clock import SystemClock
from netsonde.model import DnsSpec, Measurement, Outcome, TcpSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Prober, Recorder, measure
from netsonde.probe.dns import DnsProber
from netsonde.probe.targets import TargetResolver, endpoint
from netsonde.probe.tcp import TcpProber
from support.namespaces import Chain, chain, left_address, right_address

pytestmark = pytest.mark.netns

UNREACHABLE = {4: "198.51.100.1", 6: "fd99:1::1"}
PROHIBITED = {4: "198.51.101.1", 6: "fd99:2::1"}
CIRCLING = {4: "198.51.102.1", 6: "fd99:3::1"}
SWALLOWED = {4: "198.51.103.1", 6: "fd99:4::1"}
UNKNOWN = {4: "198.51.104.1", 6: "fd99:5::1"}


def prefix_of(address: str) -> str:
    return f"{address}/128" if ":" in address else f"{address}/32"


@pytest.fixture(scope="module")
def path() -> Iterator[Chain]:
    """Host, two routers, target: the second router refuses, swallows or sends back."""
    with chain(2) as built:
        router = built.nodes[2]
        for version in (4, 6):
            for addresses in (UNREACHABLE, PROHIBITED, CIRCLING, SWALLOWED):
                built.route_all_to(prefix_of(addresses[version]))
            router.refuse(prefix_of(UNREACHABLE[version]))
            router.refuse(prefix_of(PROHIBITED[version]), "prohibit")
            router.refuse(prefix_of(SWALLOWED[version]), "blackhole")
            router.route_to(prefix_of(CIRCLING[version]), left_address(1, version))
        yield built


async def run(path: Chain, prober: Prober[Any], spec: Any) -> Measurement:
    record = Recorder(SystemClock())
    with path.host.entered():  # sockets are opened on this thread
        await measure(prober, spec, record)
    return record.measurement()


async def tcp_to(path: Chain, address: str, port: int = 443) -> Measurement:
    prober = TcpProber(SystemClock(), TargetResolver(TargetPolicy.person()))
    return await run(path, prober, TcpSpec(host=address, port=port, timeout_ms=700))


async def dns_to(path: Chain, address: str) -> Measurement:
    prober = DnsProber(SystemClock(), TargetPolicy.person())
    spec = DnsSpec(
        query="example.net", qtype="A", server=endpoint(address, 53), timeout_ms=700, retries=0
    )
    return await run(path, prober, spec)


CASES = [
    (UNREACHABLE, 4, "unreachable_host", "target"),
    (UNREACHABLE, 6, "unreachable_net", "path"),
    (PROHIBITED, 4, "filtered", "path"),
    (PROHIBITED, 6, "filtered", "path"),
    (CIRCLING, 4, "ttl_exceeded", "path"),
    (CIRCLING, 6, "ttl_exceeded", "path"),
]


@pytest.mark.parametrize(("addresses", "version", "reason", "source"), CASES)
@pytest.mark.parametrize("ask", [tcp_to, dns_to])
async def test_an_icmp_error_names_the_reason_and_who_sent_it(
    path: Chain, ask: Any, addresses: dict[int, str], version: int, reason: str, source: str
) -> None:
    measurement = await ask(path, addresses[version])

    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (reason, source)
    assert measurement.duration_ns < 600_000_000  # told at once, not by a timeout
    if addresses is not CIRCLING:
        assert f"from {right_address(1, version)})" in measurement.error.message


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ask", [tcp_to, dns_to])
async def test_silence_is_a_timeout(path: Chain, ask: Any, version: int) -> None:
    measurement = await ask(path, SWALLOWED[version])

    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("timeout", "target")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ask", [tcp_to, dns_to])
async def test_no_route_on_this_host_is_our_own_failure(
    path: Chain, ask: Any, version: int
) -> None:
    measurement = await ask(path, UNKNOWN[version])

    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("no_route", "self")


@pytest.mark.parametrize("version", [4, 6])
async def test_a_closed_port_across_routers_is_refused(path: Chain, version: int) -> None:
    tcp = await tcp_to(path, path.target_address(version), 1)
    dns = await dns_to(path, path.target_address(version))

    for measurement in (tcp, dns):
        assert measurement.error is not None
        assert (measurement.error.reason, measurement.error.failure_source) == ("refused", "target")
