"""Budgets T1 and T2: the traces of the echo engine against their floor in C and scamper.

T1 traces 4096 paths of 16 hops at once, over kernels in a row and over the simulator's routers,
which are as far away as it says. `rate` counts traces that ended, by the clock on the wall; `hops`
is the share of all hops whose address was found, and the true one. T2 traces one path at a time.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from benches import trace_floor
from benches.harness import (
    OURS,
    Bench,
    Budget,
    Contestant,
    MissingRivalError,
    Scale,
    UnableError,
    steadily,
)
from benches.ping_floor import floor_program
from benches.ping_network import module
from benches.trace_network import (
    ATTEMPTS,
    GAP_LIMIT,
    TARGET_COUNT,
    TIMEOUT_MS,
    Distance,
    TraceNetwork,
    router_network,
    simulated_network,
)
from benches.trace_rivals import Scamper, try_scamper
from support.privileges import netns_refusal
from support.router_chain import HOPS

FLOOR, SCAMPER, WIDE_SCAMPER = "C", "scamper", f"scamper -N {HOPS}"
RTT_MS = 30
FAR = Distance(rtt_ms=RTT_MS)
LOSSY = Distance(rtt_ms=RTT_MS, loss=0.05)

Measured = Callable[[TraceNetwork], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many traces a run has; times: it is the median of so many, where it is a short one."""

    at_once: int
    one_by_one: int
    one_by_one_by_scamper: int  # half a second each
    times: int


SIZES = {
    Scale.ONCE: Sizes(at_once=256, one_by_one=3, one_by_one_by_scamper=1, times=1),
    Scale.QUICK: Sizes(at_once=TARGET_COUNT, one_by_one=10, one_by_one_by_scamper=2, times=2),
    Scale.FULL: Sizes(at_once=TARGET_COUNT, one_by_one=30, one_by_one_by_scamper=5, times=3),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What contestants trace on.

    hops_at_once: of a path, that make scamper fastest: one, unless probes are lost. scampers: how
    many times its rate ours has to be.
    """

    name: str
    distance: Distance | None  # None: kernels in a row
    hops_at_once: int = 1
    scampers: float = 4

    def called(self, who: str) -> str:
        """Return the name of a contestant in this setting."""
        return who if who == OURS and self.distance is None else f"{who} {self.name}"

    def run(self, measured: Measured, kernels: TraceNetwork) -> Mapping[str, float]:
        """Measure on the kernels, or on a simulated network of its own."""
        if self.distance is None:
            return measured(kernels)
        with simulated_network(self.distance) as network:
            return measured(network)


AT_ONCE = (
    Setting(name="over kernels", distance=None),
    Setting(name="simulated", distance=Distance()),
    Setting(name="at 30 ms", distance=FAR),
    Setting(name="at 30 ms, 5 % loss", distance=LOSSY, hops_at_once=2, scampers=3),
)
ONE_BY_ONE = Setting(name="one by one", distance=FAR)


def ours(network: TraceNetwork, *, mode: str, count: int) -> Mapping[str, float]:
    """Run a mode of ours and return what it says."""
    options = {
        "first": network.paths.first,
        "count": count,
        "source": network.paths.source,
        "routers": ",".join(network.paths.routers),
        "attempts": ATTEMPTS,
        "timeout-ms": TIMEOUT_MS,
        "gap-limit": GAP_LIMIT,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    figures: dict[str, float] = network.run(module("trace_ours", mode, *words)).json()
    return figures


def at_once(setting: Setting, sizes: Sizes) -> Mapping[str, Measured]:
    """Return who traces all targets at once."""

    def steady(measured: Measured) -> Measured:
        return lambda network: steadily(partial(measured, network), sizes.times)()

    def rival(network: TraceNetwork) -> Mapping[str, float]:
        return Scamper(network, hops_at_once=setting.hops_at_once).trace_all(sizes.at_once)

    return {
        OURS: steady(partial(ours, mode="all", count=sizes.at_once)),
        FLOOR: steady(partial(trace_floor.trace_all, count=sizes.at_once)),
        SCAMPER: rival,
    }


def one_by_one(sizes: Sizes) -> Mapping[str, Measured]:
    """Return who traces one target after another."""

    def rival(network: TraceNetwork, hops_at_once: int) -> Mapping[str, float]:
        return Scamper(network, hops_at_once=hops_at_once).trace_each(sizes.one_by_one_by_scamper)

    return {
        OURS: partial(ours, mode="each", count=sizes.one_by_one),
        SCAMPER: partial(rival, hops_at_once=1),
        WIDE_SCAMPER: partial(rival, hops_at_once=HOPS),
    }


def contestants(
    kernels: TraceNetwork, sizes: Sizes
) -> Mapping[str, Contestant | MissingRivalError]:
    """Return everyone, or why one cannot run here."""
    missing = _missing(kernels)
    matches = [(setting, at_once(setting, sizes)) for setting in AT_ONCE]
    matches.append((ONE_BY_ONE, one_by_one(sizes)))
    return {
        setting.called(who): missing.get(who) or partial(setting.run, measured, kernels)
        for setting, everyone in matches
        for who, measured in everyone.items()
    }


def _missing(kernels: TraceNetwork) -> Mapping[str, MissingRivalError]:
    missing: dict[str, MissingRivalError] = {}
    tries: Mapping[str, Callable[[], object]] = {
        FLOOR: partial(floor_program, "trace"),
        SCAMPER: partial(try_scamper, kernels, hops_at_once=1),
        WIDE_SCAMPER: partial(try_scamper, kernels, hops_at_once=HOPS),
    }
    for who, attempt in tries.items():
        try:
            attempt()
        except MissingRivalError as error:
            missing[who] = error
    return missing


def bench(scale: Scale) -> Bench:
    """Build the kernels and the contestants; those of the simulator build it in each run."""
    if (refusal := netns_refusal()) is not None:
        raise UnableError(refusal)
    with contextlib.ExitStack() as stack:
        kernels = stack.enter_context(router_network())
        everyone = contestants(kernels, SIZES[scale])
        # Every run of scamper's comes to the rate that it does not exceed, and takes long.
        once = () if scale is Scale.FULL else [each.called(SCAMPER) for each in AT_ONCE]
        return Bench(everyone, budgets(), once=once, resources=stack.pop_all())


def budgets() -> list[Budget]:
    """T1 and T2 of docs/performance.md."""
    rows: list[Budget] = []
    for setting in AT_ONCE:
        mine, floor, rival = map(setting.called, (OURS, FLOOR, SCAMPER))
        rate = partial(Budget, id="T1", figure="rate", unit="traces/s", ours=mine)
        rows += [
            rate(rival=floor, at_least=0.9),
            rate(rival=rival, at_least=setting.scampers),
            Budget(id="T1", figure="hops", unit="%", ours=mine, at_least=99.9, noisy=False),
        ]
    mine, rival, wide = map(ONE_BY_ONE.called, (OURS, SCAMPER, WIDE_SCAMPER))
    duration = partial(Budget, id="T2", figure="duration", unit="ms", ours=mine)
    return [
        *rows,
        duration(at_most=1.3 * RTT_MS),
        duration(rival=rival, at_most=0.1),
        duration(rival=wide, at_most=0.8),
    ]
