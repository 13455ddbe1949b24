"""What traces find out beside the path, in a simulated network: path MTU, causes of loss."""

import asyncio
from typing import Any

import pytest

from netsonde.clock import SystemClock
from netsonde.model import TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping.lanes import Lanes
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import TraceProber
from support.netsim import Scenario, simulated
from support.netsim.tracer import TARGET, routed, router_address

pytestmark = [pytest.mark.raw, pytest.mark.netns]

HOPS = ["a1", "b1", "c1", "d1"]


def traced(scenario: Scenario, **options: Any) -> dict[str, Any]:
    """Return the `trace` of the target in a network."""

    async def trace() -> dict[str, Any]:
        clock = SystemClock()
        prober = TraceProber(clock, TargetResolver(TargetPolicy.person()), Lanes(clock))
        record = Recorder(clock)
        try:
            await measure(prober, TraceSpec(timeout_ms=500, **options), record)
        finally:
            await prober.close()
        return record.observed("trace")

    with simulated(scenario) as network:
        found: dict[str, Any] = network.host.call(lambda: asyncio.run(trace()))
        return found


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("method", ["icmp", "udp"])
def test_the_hop_that_narrows_the_path_is_found(family: int, method: str) -> None:
    links = [{"between": ["b1", "c1"], "mtu": 1400}]
    value = traced(routed(HOPS, links=links), host=TARGET[family], method=method, pmtud=True)
    assert value["pmtu"] == {
        "mtu": 1400,
        "black_hole": False,
        "ttl": 2,
        "address": router_address(family, "b1"),
    }


def test_a_black_hole_is_found_though_nobody_says_so() -> None:
    links = [{"between": ["c1", "d1"], "mtu": 1380, "black_hole": True}]
    value = traced(routed(HOPS, links=links), host=TARGET[6], pmtud=True)
    pmtu = value["pmtu"]
    assert (pmtu["mtu"], pmtu["black_hole"], pmtu["ttl"]) == (1380, True, 3)


def test_an_old_router_that_names_no_mtu_is_asked_for_it() -> None:
    links = [{"between": ["a1", "b1"], "mtu": 1006, "reported_mtu": 0}]
    value = traced(routed(HOPS, links=links), host=TARGET[4], pmtud=True)
    assert (value["pmtu"]["mtu"], value["pmtu"]["ttl"]) == (1006, 1)


def test_a_path_that_narrows_nowhere_has_the_links_mtu() -> None:
    value = traced(routed(HOPS), host=TARGET[4], pmtud=True)
    assert value["pmtu"] == {"mtu": 1500, "black_hole": False}


def lossy(scenario: Scenario) -> dict[int, str]:
    """Return the class of loss of each hop that lost something, of 60 rounds."""
    value = traced(scenario, host=TARGET[4], all_probes=True, probes_per_hop=60, interval_ms=50)
    return {hop["ttl"]: hop["loss_class"] for hop in value["hops"] if "loss_class" in hop}


def test_a_limit_is_told_from_loss_on_the_path() -> None:
    limited = {"b1": {"rate_limit": {"per_second": 5, "burst": 3}}}
    assert lossy(routed(HOPS, limited)) == {2: "rate_limited"}
    links = [{"between": ["b1", "c1"], "loss": 0.3}]
    assert lossy(routed(HOPS, links=links)) == {3: "path", 4: "path", 5: "path"}


def test_a_silent_router_is_not_lossy() -> None:
    assert lossy(routed(HOPS, {"c1": {"silent": True}})) == {3: "silent"}
