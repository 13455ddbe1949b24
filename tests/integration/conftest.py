"""Fleets, hosts, families, peers and simulated networks that tests share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from netsonde.clock import ManualClock
from netsonde.model import TaskKind
from support.fleet import Fleet
from support.icmp_peer import Family, Peer, quiet_host
from support.icmp_wire import EchoNetwork, echo_network
from support.namespaces import Namespace
from support.netsim import Scenario, simulated
from support.netsim.tracer import Play, Tracer
from support.probers import GatedProber, gated


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fleet(clock: ManualClock, tmp_path: Path) -> Fleet:
    """A control plane and agents in memory, under the clock."""
    return Fleet(clock, tmp_path)


@pytest.fixture
def probers() -> dict[TaskKind, GatedProber]:
    """Probers that measure for as long as a test likes."""
    return gated()


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def quiet() -> Iterator[Namespace]:
    """A host on its own that answers nothing."""
    host = quiet_host()
    yield host
    host.close()


@pytest.fixture
def answering() -> Iterator[Namespace]:
    """A host on its own that answers itself."""
    host = Namespace("answering host")
    yield host
    host.close()


@pytest.fixture
def peer(quiet: Namespace, family: Family) -> Iterator[Peer]:
    """Who answers on the quiet host."""
    peer = quiet.call(Peer, family)
    yield peer
    peer.close()


@pytest.fixture
def network() -> Iterator[EchoNetwork]:
    """Two hosts on one wire."""
    with echo_network() as network:
        yield network


@pytest.fixture
def play(family: Family) -> Iterator[Play]:
    """Start simulated networks, each with a tracer on it."""
    with contextlib.ExitStack() as stack:

        def start(scenario: Scenario) -> Tracer:
            network = stack.enter_context(simulated(scenario))
            return stack.enter_context(contextlib.closing(Tracer(network, family)))

        yield start
