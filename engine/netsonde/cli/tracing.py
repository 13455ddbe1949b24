"""Tracing for a person: any number of targets, taken as they come, some at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from msgspec import structs

from netsonde import wire
from netsonde.cli.inputs import opened
from netsonde.cli.report import watched
from netsonde.cli.target_lists import all_hosts, count_hosts, spec_maker
from netsonde.cli.trace_names import ReverseNames
from netsonde.cli.trace_report import NAMES, TraceReport
from netsonde.cli.way_out import check_way_out, open_preferred
from netsonde.clock import Clock
from netsonde.errors import PrivilegeError, RequestError, ResolveError
from netsonde.model import HOST_MAX, Measurement, Observation, TaskKind, TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import INTERRUPTED, Prober, Recorder, failure_of
from netsonde.probe.ping.engines import EngineOptions
from netsonde.probe.ping.lanes import Lanes
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import TraceProber, observations

SpecOf = Callable[[str], TraceSpec]
Name = Callable[[Iterable[str]], Awaitable[Mapping[str, str]]]


@dataclass(frozen=True, slots=True)
class TracePlan:
    """What was asked for: `targets` one by one, those that stand in `lists`, and how to trace.

    parallel: traces at once. has_names: look the names of addresses up.
    """

    targets: Sequence[str]
    lists: Sequence[str]
    spec: Mapping[str, Any]
    engine: EngineOptions
    parallel: int
    has_names: bool


async def trace_for_person(clock: Clock, plan: TracePlan, report: TraceReport) -> None:
    """Trace under the policy for a person at the command line.

    Everything is checked before the first packet leaves: options, the targets given one by one,
    that lists can be opened, source and interface.

    Raises:
        RequestError, ConfigError: what was asked for makes no sense.
        PrivilegeError: this process may not trace.
    """
    spec_of = cast("SpecOf", spec_maker(TaskKind.TRACE, plan.spec))
    hosts = count_hosts(plan.targets, spec_of)
    report.total = None if plan.lists else hosts
    check_way_out(spec_of(wire.ANY_HOST))
    policy = TargetPolicy.person()
    prober = open_prober(clock, TargetResolver(policy), plan.engine, report)
    try:
        with opened(plan.lists) as lists:
            report.begin()
            async with (
                ReverseNames() as names,
                aclosing(all_hosts(plan.targets, lists)) as targets,
            ):
                name = names.of if plan.has_names else None
                tracer = Tracer(clock, prober, spec_of, report, name)
                await watched(tracer.run(targets, plan.parallel), report)
    finally:
        await prober.close()
    report.check()


def open_prober(
    clock: Clock, resolver: TargetResolver, options: EngineOptions, report: TraceReport
) -> Prober[TraceSpec]:
    """Make the prober that traces; report is told of every answer, where it wants to know."""
    lanes = Lanes(clock, lambda family: open_preferred(family, options, report.warn))
    return TraceProber(clock, resolver, lanes, watch=report.watcher)


class Tracer:
    """Traces targets as they come, each as soon as another one has ended.

    name: finds the names of addresses, where they are wanted.
    """

    def __init__(
        self,
        clock: Clock,
        prober: Prober[TraceSpec],
        spec_of: SpecOf,
        report: TraceReport,
        name: Name | None,
    ) -> None:
        self._clock = clock
        self._prober = prober
        self._spec_of = spec_of
        self._report = report
        self._name = name

    async def run(self, targets: AsyncIterator[str], parallel: int) -> None:
        """Trace every target, `parallel` at once; when cancelled, report what was seen so far."""
        slots = asyncio.Semaphore(parallel)
        async with asyncio.TaskGroup() as group:
            async for target in targets:
                await slots.acquire()
                task = group.create_task(self._trace(target))
                task.add_done_callback(lambda _: slots.release())

    async def _trace(self, target: str) -> None:
        record = Recorder(self._clock)
        try:
            spec = self._spec_of(target)
        except RequestError as error:
            self._refuse(target, error, record)
            return
        self._report.start(spec)
        try:
            await self._prober.run(spec, record)
        except asyncio.CancelledError:
            record.fail(*INTERRUPTED)
            self._report.add(spec, record.measurement())
            raise
        except PrivilegeError as error:
            self._report.drop(spec)
            self._report.give_up(error)
            return
        except Exception as error:  # a prober's bug must still give the target a result
            record.fail(*failure_of(error))
        await self._tell(spec, record.measurement())

    def _refuse(self, target: str, error: RequestError, record: Recorder) -> None:
        """Report a line of a list that is no host as one that cannot be resolved."""
        spec = structs.replace(self._spec_of(wire.ANY_HOST), host=target[:HOST_MAX])
        refusal = ResolveError(str(error))
        record.observe("trace_resolution", {"host": spec.host, "error": str(refusal)})
        record.observe("trace", observations.nothing(spec) | observations.cut_short(refusal))
        record.fail(*failure_of(refusal))
        self._report.start(spec)
        self._report.add(spec, record.measurement())

    async def _tell(self, spec: TraceSpec, measurement: Measurement) -> None:
        """Report a trace that has ended, with the names of what it met if they are wanted."""
        found: Mapping[str, str] = {}
        try:
            if self._name is not None:
                found = await self._name(addresses_in(measurement))
        finally:
            self._report.add(spec, with_names(measurement, found))


def addresses_in(measurement: Measurement) -> list[str]:
    """Return the addresses that a trace met, once each."""
    met: dict[str, None] = {}
    for observation in measurement.observations:
        if observation.name != TaskKind.TRACE:
            continue
        value = observation.value
        probes = [probe for hop in value["hops"] for probe in hop["probes"]]
        nodes = (value.get("multipath") or {}).get("nodes", [])
        met |= dict.fromkeys(each["address"] for each in [*probes, *nodes] if each.get("address"))
    return list(met)


def with_names(measurement: Measurement, names: Mapping[str, str]) -> Measurement:
    """Add the names of addresses to what was observed, if there are any."""
    if not names:
        return measurement
    observation = Observation(NAMES, {"names": dict(names)})
    return structs.replace(measurement, observations=(*measurement.observations, observation))
