"""The networks of the trace benches, in front of hosts where programs have CAP_NET_RAW alone.

Either 16 kernels in a row, whose work for a probe runs inside the system call that sends it, so
that each contestant pays for its answers; or the simulator, whose hops are as far away and lose as
much as a bench wants, on a processor of its own if there is one.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from benches.ping_network import Link, PingNetwork
from benches.trace_paths import Paths
from support.namespaces import Chain, Namespace, left_address
from support.netsim import simulated
from support.netsim.topologies import chain_destination, chain_router, trace_chain
from support.router_chain import HOPS, link_addresses, router_chain, target_address, true_hops

TARGET_COUNT = 4096
TIMEOUT_MS = 1000  # the shortest that every contestant can be told
ATTEMPTS = 3
GAP_LIMIT = 5


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far away a simulated hop is, every one of them, and what share of the probes is lost."""

    rtt_ms: float = 0
    loss: float = 0


class TraceNetwork(PingNetwork):
    """A host to trace from, and the truth about its paths."""

    def __init__(self, host: Namespace, link: Link, paths: Paths) -> None:
        super().__init__(host, link)
        self.paths = paths


def on_kernels(built: Chain) -> TraceNetwork:
    """Return the network of kernels that are there."""
    near, far = link_addresses(built, 0)
    paths = Paths(
        source=IPv4Address(left_address(0, 4)),
        first=IPv4Address(target_address(4, 0)),
        routers=tuple(true_hops(built, 4)[:-1]),
    )
    link = Link(interface="right", index=built.host.index("right"), source=near, gateway=far)
    return TraceNetwork(built.host, link, paths)


@contextlib.contextmanager
def router_network() -> Iterator[TraceNetwork]:
    """Build the kernels for the block, on one thread."""
    with router_chain() as built:
        yield on_kernels(built)


@contextlib.contextmanager
def simulated_network(distance: Distance) -> Iterator[TraceNetwork]:
    """Play routers and targets for the block; TruthHoleError if the simulator lost anything."""
    scenario = trace_chain(rtt_ms=distance.rtt_ms, loss=distance.loss, destinations=TARGET_COUNT)
    with simulated(scenario) as network:
        paths = Paths(
            source=IPv4Address(network.address(4)),
            first=IPv4Address(chain_destination(4, 0)),
            routers=tuple(chain_router(4, ttl) for ttl in range(1, HOPS)),
        )
        link = Link(
            interface=network.interface,
            index=network.interface_index,
            source=network.host_mac,
            gateway=network.simulator_mac,
        )
        yield TraceNetwork(network.host, link, paths)
        network.stop()
