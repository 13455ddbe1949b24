"""The parts of the trace bench that measure: its floor keeps to its terms, and truth is told."""

import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from benches import trace_floor
from benches.harness import MissingRivalError
from benches.ping_floor import FLAGS, PROGRAMS, SOURCES, floor_program
from benches.trace_network import TraceNetwork, on_kernels
from benches.trace_paths import Paths
from benches.trace_rivals import Scamper, try_scamper
from support.privileges import netns_refusal
from support.router_chain import HOPS, router_chain

ATTEMPTS = 3
SILENT = 5  # the TTL of the router that says nothing
NOBODY = "10.99.0.0"  # beyond the last router, where everything is lost
RETRY_MS, TIMEOUT_MS = 40, 80


@pytest.fixture(scope="module")
def network() -> Iterator[TraceNetwork]:
    if (refusal := netns_refusal()) is not None:
        pytest.skip(refusal)
    try:
        floor_program("trace")
    except MissingRivalError as missing:
        pytest.skip(str(missing))
    with router_chain() as built:
        yield on_kernels(built)


@pytest.fixture(scope="module")
def bad_network(network: TraceNetwork) -> Iterator[TraceNetwork]:
    with router_chain() as built:
        built.nodes[SILENT].make_silent()
        built.route_all_to(f"{NOBODY}/24")
        built.target.refuse(f"{NOBODY}/24", "blackhole")
        yield on_kernels(built)


def traced(network: TraceNetwork, **options: object) -> dict[str, Any]:
    """What the floor says of impatient traces."""
    impatient: dict[str, object] = {"retry_ms": RETRY_MS, "timeout_ms": TIMEOUT_MS, **options}
    return network.run(trace_floor.trace_command(network, **impatient)).json()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_floor_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    sources = [SOURCES / source for source in PROGRAMS["trace"]]
    done = subprocess.run(
        [compiler, *FLAGS, "-Werror", *sources, "-o", tmp_path / "trace"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("window", "batch"), [(1, 1), (7, 64), (4096, 256)])
def test_the_floor_finds_every_hop_with_a_probe_each(
    network: TraceNetwork, window: int, batch: int
) -> None:
    said = traced(network, count=100, window=window, batch=batch)

    assert (said["traces"], said["hops"]) == (100, 100 * HOPS)
    assert (said["sent"], said["mismatched"], said["rx_dropped"]) == (100 * HOPS, 0, 0)


@pytest.mark.parametrize("burst", [1, 5, 11])
def test_the_floor_asks_further_until_the_target_replies(network: TraceNetwork, burst: int) -> None:
    said = traced(network, count=20, burst=burst)

    asked = -(-HOPS // burst) * burst
    assert said["hops"] == 20 * HOPS
    assert 20 * HOPS <= said["sent"] <= 20 * asked


def test_the_floor_asks_a_silent_hop_again_and_then_gives_it_up(bad_network: TraceNetwork) -> None:
    said = traced(bad_network, count=50)

    waited_s = ((ATTEMPTS - 1) * RETRY_MS + TIMEOUT_MS) / 1000
    assert (said["traces"], said["hops"]) == (50, 50 * (HOPS - 1))
    assert said["sent"] == 50 * (HOPS - 1 + ATTEMPTS)
    assert waited_s <= said["seconds"] <= waited_s + 0.5


def test_the_floor_asks_nobody_behind_the_target(bad_network: TraceNetwork) -> None:
    said = traced(bad_network, count=5, burst=30, batch=1, window=1)

    assert said["hops"] == 5 * (HOPS - 1)
    assert 5 * (HOPS - 1 + ATTEMPTS) <= said["sent"] < 5 * 30


def test_the_floor_ends_where_no_target_is(bad_network: TraceNetwork) -> None:
    said = traced(bad_network, count=5, first=NOBODY, burst=8, last_ttl=20)

    silent = 1 + 20 - (HOPS - 1)
    assert (said["traces"], said["hops"]) == (5, 0)  # whose end is not known
    assert said["sent"] == 5 * (20 - silent + silent * ATTEMPTS)


@pytest.mark.parametrize("hops_at_once", [1, HOPS])
def test_scamper_finds_every_hop(network: TraceNetwork, hops_at_once: int) -> None:
    try:
        try_scamper(network, hops_at_once=hops_at_once)
    except MissingRivalError as missing:
        pytest.skip(str(missing))
    rival = Scamper(network, hops_at_once=hops_at_once)

    assert rival.trace_all(20)["hops"] == 100
    assert 0 < rival.trace_each(2)["duration"] < 500


def test_a_hop_is_found_when_its_address_is_the_true_one() -> None:
    paths = Paths(
        source=IPv4Address("192.0.2.1"),
        first=IPv4Address("198.51.100.0"),
        routers=("192.0.2.2", "192.0.2.3"),
    )
    target = paths.targets(5)[4]

    assert target == "198.51.100.4"
    assert paths.found(target, {1: "192.0.2.2", 2: "192.0.2.3", 3: target, 4: target}) == 3
    assert paths.found(target, {1: "192.0.2.3", 2: "192.0.2.2", 3: "198.51.100.5"}) == 0
    assert paths.found(target, {3: target}) == 1
