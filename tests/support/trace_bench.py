"""A trace prober on a manual clock over the engine's twin, and what its results say."""

import asyncio
from typing import Any

from netsonde._native import icmp
from netsonde.model import FailureSource, Measurement, Reason, TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.trace import TraceProber
from netsonde.probe.trace.answers import Answer
from support.ping_bench import PingBench, values
from support.trace_endings import Ending, answer, echo
from support.trace_twin import TraceRequest, TraceTwin

TARGET, TARGET6 = "198.51.100.7", "2001:db8::7"
ROUTER, ROUTER6 = "192.0.2.1", "2001:db8::1"


def path(request: TraceRequest) -> Ending:
    """A router, and the destination behind it."""
    router, target = (
        (ROUTER, TARGET) if request.destination[4:] == bytes(12) else (ROUTER6, TARGET6)
    )
    ttls = range(request.first_ttl, min(max(request.first_ttl, 2), request.last_ttl) + 1)
    answers = [answer(1, router) if ttl == 1 else echo(ttl, target) for ttl in ttls]
    stop = icmp.STOPPED_COMPLETED if ttls[-1] >= 2 else icmp.STOPPED_MAX_HOPS
    return Ending(answers=answers, stop=stop, end_ttl=ttls[-1] if ttls[-1] >= 2 else 0)


class TraceBench(PingBench):
    """A tracer, its engines' twins, and what was watched."""

    def __init__(self, policy: TargetPolicy | None = None) -> None:
        super().__init__(policy)
        self.backend = "raw"
        self.plans: dict[int, Any] = {4: path, 6: path}
        self.twins: dict[int, TraceTwin] = {}
        self.engine_error: Exception | None = None
        self.open_error: Exception | None = None
        self.watched: list[tuple[TraceSpec, Answer]] = []
        self.tracer = self.new_tracer()

    def new_tracer(self, **fields: Any) -> TraceProber:
        return TraceProber(self.clock, self.prober.resolver, self.prober.lanes, **fields)

    def open(self, family: int) -> TraceTwin:
        if self.engine_error is not None:
            raise self.engine_error
        twin = self.twins[family] = TraceTwin(self.clock, family, backend=self.backend)
        twin.plan = self.plans[family]
        twin.open_error = self.open_error
        self.opened.append(twin)
        return twin

    @property
    def traces(self) -> list[TraceRequest]:
        """What the IPv4 engine was asked for."""
        return self.twins[4].traces

    async def trace(self, host: str = TARGET, **fields: Any) -> tuple[Measurement, dict[str, Any]]:
        record = Recorder(self.clock)
        task = self.start(record, host, **fields)
        await self.finish([task])
        return record.measurement(), seen(record)

    def start(self, record: Recorder, host: str = TARGET, **fields: Any) -> "asyncio.Task[None]":
        spec = TraceSpec(host=host, **fields)
        return asyncio.get_running_loop().create_task(measure(self.tracer, spec, record))


def seen(record: Recorder) -> dict[str, Any]:
    (value,) = values(record.measurement(), "trace")
    return value


def addresses(value: dict[str, Any]) -> list[str | None]:
    return [hop.get("address") for hop in value["hops"]]


def error_of(measurement: Measurement) -> tuple[Reason | str, FailureSource | str, str]:
    assert measurement.error is not None
    return (measurement.error.reason, measurement.error.failure_source, measurement.error.message)
