"""Pinging for a person: any number of targets, taken as they come, in constant memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, cast

from netsonde import netinfo, wire
from netsonde.cli.loop import until
from netsonde.cli.ping_report import PingReport
from netsonde.cli.target_lists import TargetList, opened, targets_in
from netsonde.clock import Clock
from netsonde.errors import ConfigError, NetsondeError, PrivilegeError, RequestError, RouteError
from netsonde.model import PingSpec, TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.ping import EngineOptions, PingProber
from netsonde.probe.ping.briefs import brief_of
from netsonde.probe.ping.driver import EchoEngine
from netsonde.probe.ping.engines import able, open_engine
from netsonde.probe.ping.sockets import pacer_of
from netsonde.probe.ping.sweep import Pinged, Sweep, measurement_of, window_for
from netsonde.probe.ping.ways import Wanted
from netsonde.probe.prefixes import host_count, hosts_of, is_prefix, prefix_of
from netsonde.probe.targets import TargetResolver, literal

SpecOf = Callable[[str], PingSpec]


@dataclass(frozen=True, slots=True)
class PingPlan:
    """What was asked for: `targets` one by one, those that stand in `lists`, and how to ping."""

    targets: Sequence[str]
    lists: Sequence[str]
    spec: Mapping[str, Any]
    engine: EngineOptions


async def ping_for_person(clock: Clock, plan: PingPlan, report: PingReport) -> None:
    """Ping under the policy for a person at the command line.

    Everything is checked before the first packet leaves: options, the targets given one by one,
    that lists can be opened, source and interface.

    Raises:
        RequestError, ConfigError: what was asked for makes no sense.
        PrivilegeError: this process may not ping.
    """
    spec_of = _spec_maker(plan.spec)
    report.total = _count(plan, spec_of)
    any_spec = spec_of(wire.ANY_HOST)
    _check_way_out(any_spec)
    prober = PingProber(
        clock,
        TargetResolver(TargetPolicy.person()),
        engine=lambda family: _open(family, plan.engine, report),
        pacer=pacer_of(plan.engine),
    )
    try:
        with opened(plan.lists) as lists:
            await _check_size(prober, plan, spec_of)
            report.begin()
            async with aclosing(_targets(plan.targets, lists)) as targets:
                await _watched(
                    _sweep(prober, targets, spec_of, report, window_for(any_spec)), report
                )
    finally:
        await prober.close()
    report.check()


async def _watched(work: Any, report: PingReport) -> None:
    """Do the work with a progress line beside it, until it ends or nobody wants it any more."""
    async with asyncio.TaskGroup() as group:
        drawing = group.create_task(report.draw_progress())
        try:
            await until(report.ended, work)
        finally:
            drawing.cancel()


async def _sweep(
    prober: PingProber,
    targets: AsyncIterator[str],
    spec_of: SpecOf,
    report: PingReport,
    window: int,
) -> None:
    env = {"policy_version": prober.resolver.policy.version}

    def take(pinged: Pinged) -> None:
        def encoded() -> bytes:
            measurement = measurement_of(prober, pinged, dict(env))
            return wire.encode_result(TaskKind.PING, pinged.spec, measurement)

        if isinstance(pinged.error, PrivilegeError):
            report.give_up(pinged.error)
            return
        if isinstance(pinged.error, ConfigError):  # the way out was there, and has gone since
            pinged.error = NetsondeError(str(pinged.error))
        brief = brief_of(pinged)
        if brief.counts.sent or not pinged.is_cancelled:  # else there is nothing to tell
            report.add(brief, encoded)

    await Sweep(prober, spec_of, take, window=window).run(targets)


async def _targets(
    targets: Sequence[str], lists: Sequence[TargetList]
) -> AsyncGenerator[str, None]:
    """Yield every target, prefixes as their hosts."""
    for target in targets:
        for host in _expanded(target):
            yield host
    for each in lists:
        async with aclosing(targets_in(each)) as lines:
            async for line in lines:
                for host in _expanded(line):
                    yield host


def _expanded(target: str) -> Iterator[str]:
    """Return a target's hosts; of one that is wrong itself, for its result to say so."""
    if is_prefix(target):
        with suppress(RequestError):
            return hosts_of(prefix_of(target))
    return iter((target,))


def _spec_maker(options: Mapping[str, Any]) -> SpecOf:
    """Check the options; return what makes the spec of a host, or raises RequestError for none.

    Raises:
        RequestError: an option is wrong.
    """
    make = wire.host_specs(TaskKind.PING, options)

    def spec_of(host: str) -> PingSpec:
        if is_prefix(host):
            prefix_of(host)  # says what is wrong with it
        return cast("PingSpec", make(host))

    return spec_of


def _count(plan: PingPlan, spec_of: SpecOf) -> int | None:
    """Check the targets given one by one; return how many there are, None where lists follow.

    Raises:
        RequestError: one is neither a host nor a prefix.
    """
    total = 0
    for target in plan.targets:
        if is_prefix(target):
            total += host_count(prefix_of(target))
        else:
            spec_of(target)
            total += 1
    return None if plan.lists else total


def _check_way_out(spec: PingSpec) -> None:
    """See whether this host has the interface and the source, whatever the destination.

    Raises:
        ConfigError: it has not.
    """
    try:
        if spec.interface is not None:
            netinfo.interface_index(spec.interface)
        if spec.source is not None:
            with suppress(RouteError):  # a virtual router's (VRF) own address
                netinfo.route_to(spec.source, source=spec.source)
    except ConfigError as error:
        raise ConfigError(str(error)) from None  # a wrong name, whatever the kernel said of it


async def _check_size(prober: PingProber, plan: PingPlan, spec_of: SpecOf) -> None:
    """See whether a packet that may not be cut fits the way to the first target.

    Raises:
        RequestError, ConfigError: it cannot leave as asked for.
        PrivilegeError: nothing can.
    """
    first = next((host for target in plan.targets[:1] for host in _expanded(target)), None)
    if first is None or not (spec := spec_of(first)).df or spec.method != "icmp":
        return
    try:
        for address in literal(spec.host, spec.family):
            prober.resolver.policy.check(address)
            lane = prober.lane(6 if ":" in address else 4)
            wanted = Wanted(spec.source, spec.interface, spec.mark)
            await lane.check_unfragmented(address, wanted, spec.size)
    except (RequestError, ConfigError, PrivilegeError):
        raise
    except NetsondeError:
        return  # of this target, and its result


def _open(family: int, options: EngineOptions, report: PingReport) -> EchoEngine:
    """Open an engine; say so when it is not by the back end that is preferred."""
    engine = open_engine(family, options)
    report.engines.append(engine)
    preferred: list[str] = list(able(family, options.backends))
    refused = preferred[: preferred.index(engine.backend)]
    if refused:
        report.warn(f"{', '.join(refused)}: not permitted here; using {engine.backend} instead")
    return engine
