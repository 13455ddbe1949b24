"""Budget P5: a million probes in flight, with targets 10 s away played by the network simulator."""

from collections.abc import Mapping
from functools import partial

from benches.harness import OURS, Bench, Budget, Scale, UnableError
from benches.ping_in_flight import RATE_PPS
from benches.ping_network import Link, PingNetwork, module
from support.netsim import make_scenario, simulated
from support.privileges import netns_refusal

FIXED_BYTES = 40_000_000
SECONDS = {Scale.ONCE: 1, Scale.QUICK: 15, Scale.FULL: 60}
# 10.25 s at this rate put a million in flight, and the slab of 2^20 holds them.
SCENARIO = {
    "seed": 1,
    # A second's worth of packets, for when the simulator has to wait for a processor.
    "limits": {"hosts": 1 << 17, "in_flight": 1 << 22, "ring_frames": 1 << 17},
    "hosts": [{"prefixes": ["10.64.0.0/16"], "behaviour": "far"}],
    "behaviour": {"far": {"delay": {"distribution": "constant", "ms": 10_250}}},
}


def bench(scale: Scale) -> Bench:
    """Build the contestant."""
    if (refusal := netns_refusal()) is not None:
        raise UnableError(refusal)
    figure = partial(Budget, id="P5", noisy=False)
    budgets = [
        figure(figure="lost", unit="probes", at_most=0),
        figure(figure="misattributed", unit="probes", at_most=0),
    ]
    if scale is not Scale.ONCE:
        budgets += [
            figure(figure="in flight", unit="probes", at_least=1_000_000, noisy=True),
            figure(figure="rate", unit="probes/s", at_least=RATE_PPS * 0.98, noisy=True),
            figure(figure="bytes", unit="B/probe", at_most=64),
        ]
    return Bench({OURS: partial(_simulate, SECONDS[scale])}, budgets, runs=1)


def _simulate(seconds: int) -> Mapping[str, float]:
    """Play the targets, and run the program on their network."""
    with simulated(make_scenario(SCENARIO)) as network:
        link = Link(
            interface=network.interface,
            index=network.interface_index,
            source=network.host_mac,
            gateway=network.simulator_mac,
        )
        words = (
            "--seconds", seconds, "--source", network.address(4),
            "--ifindex", link.index, "--gateway-link", link.gateway,
        )  # fmt: skip
        command = module("ping_in_flight", *map(str, words))
        outcome = PingNetwork(network.host, link).run(command)
        network.stop()  # raises if the simulator itself lost anything
    figures: dict[str, float] = outcome.json()
    # Of the whole program, interpreter included, less a fixed amount.
    return figures | {"bytes": (outcome.peak_bytes - FIXED_BYTES) / figures["in flight"]}
