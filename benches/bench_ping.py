"""Budgets P1 to P4 and P6: the echo engine against its floor in C, fping, zmap and icmplib.

Every contestant is a program of its own on the host of `ping_network`, with CAP_NET_RAW alone.
`rate` counts echoes whose reply was matched, by the clock on the wall; `cpu` is the processor time
of the whole program, kernel included, for each of them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from typing import Any

from benches import ping_floor
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
from benches.ping_capture import RoundTripsNs, captured, errors_us
from benches.ping_network import (
    NEAR,
    SAMPLED,
    TARGET_COUNT,
    TARGETS,
    PingNetwork,
    ProgramError,
    module,
    ping_network,
    stop,
    targets,
)
from benches.ping_rivals import Fping, Icmplib, Zmap
from support.privileges import netns_refusal

PACKET, FUTURES, PACED = "netsonde packet", "netsonde futures", "netsonde paced"
LOADED, IDLE = "netsonde at 50k pps", "netsonde exact, idle"
FLOOR, FLOOR_PACED = "C", "C woken per packet"
FPING, ZMAP = "fping", "zmap"
FPING_LOADED, ICMPLIB_LOADED = "fping at 50k pps", "icmplib at 50k pps"

RATE_PPS, IDLE_PPS = 50_000, 1000
# The floor sends and receives as the default back end does. Larger batches are no faster.
FLOOR_OPTIONS = {"backend": "hdrincl", "receive": "socket", "batch": 16}
SAMPLED_TARGETS, SAMPLE_EVERY = 8, 64
SETTLE_S = 0.2  # until the background flows
BACKGROUND_S = 30  # longer than any rival takes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much each contestant does in a run."""

    targets: int
    scanned: IPv4Network
    paced: int  # probes
    idle: int  # probes
    rival_seconds: float  # that a rival pings the sampled targets


SMALL = Sizes(
    targets=2000, scanned=IPv4Network("10.64.0.0/21"), paced=5000, idle=200, rival_seconds=0.5
)
LARGE = Sizes(
    targets=TARGET_COUNT,
    scanned=IPv4Network("10.64.0.0/14"),  # so many that what zmap does once is 2 % of it
    paced=4 * RATE_PPS,
    idle=3 * IDLE_PPS,
    rival_seconds=3,
)


class Contestants:
    """What is run, on one network."""

    def __init__(self, network: PingNetwork, sizes: Sizes) -> None:
        self._network = network
        self._sizes = sizes

    def ours(self, mode: str, *, count: int, **options: object) -> dict[str, Any]:
        """Run a mode of ours and return what it says."""
        return self._network.run(self._command(mode, count=count, **options)).json()

    def sweep(self, backend: str) -> Mapping[str, float]:
        """Ping every target by batches."""
        return self.ours("sweep", count=self._sizes.targets, backend=backend)

    def futures(self) -> Mapping[str, float]:
        """Ping every target by a future each."""
        return self.ours("futures", count=self._sizes.targets)

    def paced(self) -> Mapping[str, float]:
        """Ping at a rate while a loop ticks."""
        return self.ours("paced", count=self._sizes.paced, rate=RATE_PPS)

    def loaded(self) -> Mapping[str, float]:
        """Ping at a rate; judge the round trips of some."""
        return self._judged(
            partial(
                self.ours,
                "round-trips",
                count=self._sizes.paced,
                rate=RATE_PPS,
                sampled=SAMPLED[1],
                sampled_targets=SAMPLED_TARGETS,
                sample_every=SAMPLE_EVERY,
            )
        )

    def idle(self) -> Mapping[str, float]:
        """Ping the sampled targets slowly and exactly."""
        return self._judged(
            partial(
                self.ours,
                "round-trips",
                count=self._sizes.idle,
                rate=IDLE_PPS,
                sampled=SAMPLED[1],
                sampled_targets=SAMPLED_TARGETS,
                sample_every=1,
                exact=True,
            )
        )

    def floor(self) -> Mapping[str, float]:
        """Ping every target from C."""
        return ping_floor.sweep(self._network, targets=self._sizes.targets, **FLOOR_OPTIONS)

    def floor_paced(self) -> Mapping[str, float]:
        """Ping at a rate from C, woken for every packet."""
        return ping_floor.pace(
            self._network,
            count=self._sizes.paced,
            targets=self._sizes.targets,
            rate=RATE_PPS,
            **FLOOR_OPTIONS | {"batch": 1},
        )

    def fping(self) -> Contestant:
        """Have fping ping every target."""
        return partial(Fping(self._network).sweep, targets(self._sizes.targets))

    def zmap(self) -> Contestant:
        """Have zmap scan them."""
        return partial(Zmap(self._network).sweep, self._sizes.scanned)

    def rival_loaded(self, rival: type[Fping | Icmplib]) -> Contestant:
        """Judge a rival's round trips under a load that the floor makes."""
        sampled = targets(SAMPLED_TARGETS, SAMPLED)
        round_trips = partial(rival(self._network).round_trips, sampled, self._sizes.rival_seconds)

        def run() -> Mapping[str, float]:
            with self._background():
                return self._judged(round_trips)

        return run

    @contextlib.contextmanager
    def _background(self) -> Iterator[None]:
        """Ping at a rate for the block."""
        command = ping_floor.echo_command(
            self._network,
            "paced",
            count=BACKGROUND_S * RATE_PPS,
            targets=self._sizes.targets,
            rate=RATE_PPS,
            quantum_us=1000,
        )
        process = self._network.start(command)
        try:
            time.sleep(SETTLE_S)
            yield
            if process.poll() is not None:
                raise ProgramError("the background ended before the rival")
        finally:
            stop(process)

    def _judged(self, round_trips: Callable[[], RoundTripsNs]) -> Mapping[str, float]:
        with captured(self._network) as capture:
            reported = round_trips()
        return errors_us(reported, capture.round_trips_ns)

    def _command(self, mode: str, **options: object) -> tuple[str, ...]:
        link = self._network.link
        given = {
            "first": TARGETS[1],
            "targets": self._sizes.targets,
            "source": NEAR,
            "ifindex": link.index,
            "gateway-link": link.gateway,
        } | options
        words: list[str] = []
        for name, value in given.items():
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
        return module("ping_ours", mode, *words)


def bench(scale: Scale) -> Bench:
    """Build the network and the contestants."""
    if (refusal := netns_refusal()) is not None:
        raise UnableError(refusal)
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(ping_network())
        made = Contestants(network, SMALL if scale is Scale.ONCE else LARGE)
        contestants = {
            OURS: steadily(partial(made.sweep, "header")),
            PACKET: steadily(partial(made.sweep, "packet")),
            FUTURES: steadily(made.futures),
            PACED: made.paced,
            LOADED: made.loaded,
            IDLE: made.idle,
            FLOOR: _able(lambda: steadily(made.floor)),
            FLOOR_PACED: made.floor_paced,
            FPING: _able(lambda: steadily(made.fping())),
            ZMAP: _able(made.zmap),
            FPING_LOADED: _able(lambda: made.rival_loaded(Fping)),
            ICMPLIB_LOADED: _able(lambda: made.rival_loaded(Icmplib)),
        }
        return Bench(contestants, budgets(), resources=stack.pop_all())


def _able(make: Callable[[], Contestant]) -> Contestant | MissingRivalError:
    try:
        return make()
    except MissingRivalError as missing:
        return missing


def budgets() -> list[Budget]:
    """P1 to P4 and P6 of docs/performance.md."""
    rate = partial(Budget, figure="rate", unit="probes/s")
    cpu = partial(Budget, figure="cpu", unit="µs/probe")
    p50 = partial(Budget, id="P6", figure="error p50", unit="µs")
    p99 = partial(Budget, id="P6", figure="error p99", unit="µs")
    return [
        rate(id="P1", rival=FLOOR, at_least=0.93),
        rate(id="P1", ours=FUTURES, rival=FLOOR, at_least=0.88),
        rate(id="P2", rival=FPING, at_least=1.5),
        cpu(id="P2", rival=FPING, at_most=0.66),
        rate(id="P2", ours=PACKET, rival=FPING, at_least=1.8),
        cpu(id="P2", ours=PACKET, rival=FPING, at_most=0.55),
        rate(id="P3", ours=PACKET, rival=ZMAP, at_least=1.05),
        cpu(id="P3", ours=PACKET, rival=ZMAP, at_most=0.65),
        cpu(id="P4", ours=PACED, rival=FLOOR_PACED, at_most=0.65),
        Budget(id="P4", figure="tick late p99", unit="µs", ours=PACED, at_most=500),
        p50(ours=LOADED, at_most=5),
        p99(ours=LOADED, at_most=25),
        p99(ours=IDLE, at_most=5),
        p50(ours=LOADED, rival=FPING_LOADED, quotient="rival/ours", at_least=1),
        p50(ours=LOADED, rival=ICMPLIB_LOADED, quotient="rival/ours", at_least=1),
    ]
