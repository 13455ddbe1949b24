"""Budget F1: what a day of ordinary ping costs, against blackbox_exporter.

In each period netsonde measures 100 targets with 20 packets each and encodes every result as the
agent reports it, while the exporter, scraped evenly, sends each target its one packet. Both run
side by side, so that a period is the same for both.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from benches.harness import OURS, Bench, Budget, Contestant, MissingRivalError, Scale, UnableError
from benches.ping_network import (
    TARGETS,
    PingNetwork,
    ProgramError,
    cpu_seconds,
    module,
    ping_network,
    resident_bytes,
    stop,
    targets,
)
from benches.ping_rivals import BlackboxExporter
from support.privileges import netns_refusal

EXPORTER = "blackbox_exporter"
TARGET_COUNT, PACKETS = 100, 20
PERIOD_S = {Scale.ONCE: 2, Scale.QUICK: 40, Scale.FULL: 60}
PERIODS = {Scale.ONCE: 1, Scale.QUICK: 2, Scale.FULL: 10}
MIB = 1 << 20


class Running(Protocol):
    """A program that stays."""

    @property
    def cpu_seconds(self) -> float:
        """The processor time it has used."""
        ...

    @property
    def resident_bytes(self) -> int:
        """Its resident set at its peak."""
        ...


class Pinger:
    """netsonde, pinging all targets each time it is asked to."""

    def __init__(self, network: PingNetwork) -> None:
        words = ("--first", TARGETS[1], "--targets", TARGET_COUNT, "--count", PACKETS)
        command = module("ping_ours", "footprint", *map(str, words))
        self._process = network.start(command, stdin=subprocess.PIPE)
        if self._read() != "ready\n":
            stop(self._process)
            raise ProgramError("netsonde did not start")

    def begin(self, seconds: float) -> None:
        """Have it ping all targets within a period."""
        if self._process.stdin is None:
            raise ProgramError("netsonde is not to be spoken to")
        print(seconds, file=self._process.stdin, flush=True)

    def end(self) -> Mapping[str, float]:
        """Wait for the period's end; return how many packets were answered, and what results hold.

        Raises:
            ProgramError: some packet was not answered.
        """
        said: dict[str, float] = json.loads(self._read())
        if said["answered"] != TARGET_COUNT * PACKETS:
            raise ProgramError(f"of {TARGET_COUNT * PACKETS} packets were answered {said}")
        return said

    @property
    def cpu_seconds(self) -> float:
        """The processor time it has used."""
        return cpu_seconds(self._process.pid)

    @property
    def resident_bytes(self) -> int:
        """Its resident set at its peak."""
        return resident_bytes(self._process.pid)["VmHWM"]

    def close(self) -> None:
        """End it."""
        stop(self._process)

    def _read(self) -> str:
        return "" if self._process.stdout is None else self._process.stdout.readline()


class SideBySide:
    """Periods in which both work; each one's figures are handed out once, whoever asks first."""

    def __init__(self, pinger: Pinger, exporter: BlackboxExporter | None, seconds: float) -> None:
        self._pinger = pinger
        self._exporter = exporter
        self._seconds = seconds
        self._figures: dict[str, Mapping[str, float]] = {}

    def take(self, name: str) -> Mapping[str, float]:
        """Return a contestant's figures of the period that is over, or of one more."""
        if name not in self._figures:
            self._figures = self._live()
        return self._figures.pop(name)

    def _live(self) -> dict[str, Mapping[str, float]]:
        running: dict[str, Running] = {OURS: self._pinger}
        if self._exporter is not None:
            running[EXPORTER] = self._exporter
        before = {name: program.cpu_seconds for name, program in running.items()}
        self._pinger.begin(self._seconds)
        self._scrape()
        said = self._pinger.end()
        return {
            name: {
                "cpu": program.cpu_seconds - before[name],
                "memory": program.resident_bytes / MIB,
                "result": said["bytes"] if name == OURS else 0,
            }
            for name, program in running.items()
        }

    def _scrape(self) -> None:
        """Have the exporter probe every target, evenly over the period."""
        begun = time.monotonic()
        for number, target in enumerate(targets(TARGET_COUNT)):
            if self._exporter is not None and not self._exporter.probe(target):
                raise ProgramError(f"blackbox_exporter had no reply from {target}")
            due = begun + (number + 1) * self._seconds / TARGET_COUNT
            time.sleep(max(0, due - time.monotonic()))


def bench(scale: Scale) -> Bench:
    """Build the network and start both."""
    if (refusal := netns_refusal()) is not None:
        raise UnableError(refusal)
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(ping_network())
        exporter: BlackboxExporter | None = None
        missing: MissingRivalError | None = None
        try:
            exporter = BlackboxExporter(network)
            stack.callback(exporter.close)
        except MissingRivalError as error:
            missing = error
        pinger = Pinger(network)
        stack.callback(pinger.close)
        both = SideBySide(pinger, exporter, PERIOD_S[scale])
        contestants: dict[str, Contestant | MissingRivalError] = {
            OURS: partial(both.take, OURS),
            EXPORTER: missing or partial(both.take, EXPORTER),
        }
        return Bench(contestants, budgets(), runs=PERIODS[scale], resources=stack.pop_all())


def budgets() -> list[Budget]:
    """F1 of docs/performance.md."""
    return [
        Budget(id="F1", figure="cpu", unit="s/period", rival=EXPORTER, at_most=0.5),
        Budget(id="F1", figure="memory", unit="MiB", at_most=70, noisy=False),
        Budget(id="F1", figure="result", unit="B"),  # stated, not bounded
    ]
