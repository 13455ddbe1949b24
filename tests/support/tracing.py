"""Traces by the real prober from a namespace, and what they found."""

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from netsonde.clock import SystemClock
from netsonde.model import Measurement, TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping import EngineOptions, PingProber
from netsonde.probe.ping.engines import Backend, OpenEngine, open_engine
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import TraceProber
from support.namespaces import Namespace

CLOCK = SystemClock()


@contextlib.contextmanager
def probers(
    node: Namespace, backend: Backend | None = None
) -> Iterator[tuple[TraceProber, PingProber]]:
    """A trace and a ping prober over the same engines."""
    options = EngineOptions() if backend is None else EngineOptions(backends=(backend,))
    with probers_over(partial(node.call, partial(open_engine, options=options))) as both:
        yield both


@contextlib.contextmanager
def probers_over(engine: OpenEngine) -> Iterator[tuple[TraceProber, PingProber]]:
    """The same over engines that are opened so."""
    resolver = TargetResolver(TargetPolicy.person())
    pings = PingProber(CLOCK, resolver, engine=engine)
    traces = TraceProber(CLOCK, resolver, pings.lanes)
    try:
        yield traces, pings
    finally:
        pings.lanes.close()


async def trace(
    node: Namespace, *specs: TraceSpec, backend: Backend | None = None
) -> list[Measurement]:
    """Trace all specs at once with one prober."""
    with probers(node, backend) as (prober, _), node.entered():
        return await trace_with(prober, *specs)


async def trace_with(prober: TraceProber, *specs: TraceSpec) -> list[Measurement]:
    """Trace all specs at once."""
    records = [Recorder(CLOCK) for _ in specs]
    async with asyncio.TaskGroup() as group:
        for spec, record in zip(specs, records, strict=True):
            group.create_task(measure(prober, spec, record))
    return [record.measurement() for record in records]


def seen(measurement: Measurement) -> dict[str, Any]:
    value: dict[str, Any] = measurement.observations[-1].value
    return value


def hops(measurement: Measurement) -> list[str | None]:
    return [hop.get("address") for hop in seen(measurement)["hops"]]
