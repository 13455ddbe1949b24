"""A ping prober on a manual clock over the engine's twin, and what its results say."""

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

from netsonde import wire
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.model import Measurement, PingSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.lookup import Entry
from netsonde.probe.ping import PingProber
from netsonde.probe.ping.lane import Lane
from netsonde.probe.targets import TargetResolver
from support.echo import Event, MemoryEchoEngine, Request, Script, answers


class PingBench:
    """A prober, the engines it opened, and `names` that resolve."""

    def __init__(self, policy: TargetPolicy | None = None) -> None:
        self.clock = ManualClock()
        self.script: Script = answers
        self.backend = "header"
        self.names: dict[str, list[str]] = {}
        self.engines: dict[int, MemoryEchoEngine] = {}  # by family, the last one
        self.opened: list[MemoryEchoEngine] = []
        self.paths_max = 4095
        resolver = TargetResolver(policy or TargetPolicy.person(), look_up=self._look_up)
        self.prober = PingProber(self.clock, resolver, engine=self.open)

    def open(self, family: int) -> MemoryEchoEngine:
        backend = "raw" if family == 6 and self.backend == "header" else self.backend
        engine = MemoryEchoEngine(self.clock, family, self._answer, backend=backend)
        engine.paths_max = self.paths_max
        self.engines[family] = engine
        self.opened.append(engine)
        return engine

    def lane(self, family: int = 4) -> Lane:
        """Return an engine's lane; what is not known of the engine yet can be set then."""
        return self.prober.lanes.get(family)

    @property
    def requests(self) -> list[Request]:
        """The IPv4 packets that were sent."""
        return self.engines[4].requests

    async def ping(self, *, columnar: bool = False, **spec: Any) -> Measurement:
        (measurement,) = await self.ping_all([PingSpec(**spec)], columnar=columnar)
        return measurement

    async def ping_all(
        self, specs: Sequence[PingSpec], *, columnar: bool = False, within_ns: int = 600 * NS_PER_S
    ) -> list[Measurement]:
        records = [Recorder(self.clock, columnar=columnar) for _ in specs]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(measure(self.prober, spec, record))
                for spec, record in zip(specs, records, strict=True)
            ]
            await self.finish(tasks, within_ns)
        return [record.measurement() for record in records]

    async def finish(
        self, tasks: Sequence["asyncio.Task[Any]"], within_ns: int = 600 * NS_PER_S
    ) -> None:
        """Move the clock from one thing that is due to the next, until tasks are done."""
        ends_ns = self.clock.monotonic_ns() + within_ns
        await self.clock.settle()
        idle = 0
        while not all(task.done() for task in tasks):
            wake_ns = self.clock.next_wake_ns
            if wake_ns is None:  # a turn of the loop was not enough for all that is due
                idle += 1
                assert idle < 50, "nobody waits and somebody is not done"
                await self.clock.settle()
                continue
            assert wake_ns <= ends_ns, "took too long"
            idle = 0
            await self.clock.advance(wake_ns - self.clock.monotonic_ns())

    def _answer(self, request: Request) -> Sequence[Event]:
        return self.script(request)

    async def _look_up(self, name: str, family: int) -> Sequence[Entry]:
        found = [each for each in self.names[name] if family in (socket.AF_UNSPEC, _family(each))]
        return [(0, 0, 0, "", _socket_address(address)) for address in found]


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _socket_address(address: str) -> tuple[Any, ...]:
    return (address, 0, 0, 0) if ":" in address else (address, 0)


def values(measurement: Measurement, name: str) -> list[dict[str, Any]]:
    """Return the values of the observations of a name, as a peer reads them."""
    found: list[dict[str, Any]] = wire.parse(
        wire.encode([each.value for each in measurement.observations if each.name == name])
    )
    return found


def summary(measurement: Measurement) -> dict[str, Any]:
    """Return the one summary, which is the last observation and made of plain values."""
    assert measurement.observations[-1].name == "ping_summary"
    (value,) = (each.value for each in measurement.observations if each.name == "ping_summary")
    json.dumps(value)
    plain: dict[str, Any] = value
    return plain


def addresses(measurement: Measurement) -> list[dict[str, Any]]:
    """Return what the summary says of each address."""
    found: list[dict[str, Any]] = summary(measurement)["addresses"]
    return found
