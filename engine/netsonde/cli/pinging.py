"""Pinging for a person: any number of targets, taken as they come, in constant memory."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

from netsonde import wire
from netsonde.cli.inputs import opened
from netsonde.cli.ping_report import PingReport
from netsonde.cli.report import watched
from netsonde.cli.target_lists import all_hosts, count_hosts, hosts_in, spec_maker
from netsonde.cli.way_out import check_way_out, open_preferred
from netsonde.clock import Clock
from netsonde.errors import ConfigError, NetsondeError, PrivilegeError, RequestError
from netsonde.model import PingSpec, TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.ping import EngineOptions, PingProber
from netsonde.probe.ping.briefs import brief_of
from netsonde.probe.ping.driver import EchoEngine
from netsonde.probe.ping.sockets import pacer_of
from netsonde.probe.ping.sweep import Pinged, Sweep, capacity_for, measurement_of, window_for
from netsonde.probe.ping.ways import Wanted
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
    spec_of = cast("SpecOf", spec_maker(TaskKind.PING, plan.spec))
    hosts = count_hosts(plan.targets, spec_of)
    report.total = None if plan.lists else hosts
    any_spec = spec_of(wire.ANY_HOST)
    check_way_out(any_spec)
    engine = replace(plan.engine, capacity=capacity_for(any_spec))
    prober = PingProber(
        clock,
        TargetResolver(TargetPolicy.person()),
        engine=lambda family: _open(family, engine, report),
        pacer=pacer_of(engine),
    )
    try:
        with opened(plan.lists) as lists:
            await _check_size(prober, plan, spec_of)
            report.begin()
            async with aclosing(all_hosts(plan.targets, lists)) as targets:
                await watched(
                    _sweep(prober, targets, spec_of, report, window_for(any_spec)), report
                )
    finally:
        await prober.close()
    report.check()


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


async def _check_size(prober: PingProber, plan: PingPlan, spec_of: SpecOf) -> None:
    """See whether a packet that may not be cut fits the way to the first target.

    Raises:
        RequestError, ConfigError: it cannot leave as asked for.
        PrivilegeError: nothing can.
    """
    first = next((host for target in plan.targets[:1] for host in hosts_in(target)), None)
    if first is None or not (spec := spec_of(first)).df or spec.method != "icmp":
        return
    try:
        for address in literal(spec.host, spec.family):
            prober.resolver.policy.check(address)
            lane = prober.lanes.get(6 if ":" in address else 4)
            wanted = Wanted(spec.source, spec.interface, spec.mark)
            await lane.check_unfragmented(address, wanted, spec.size)
    except (RequestError, ConfigError, PrivilegeError):
        raise
    except NetsondeError:
        return  # of this target, and its result


def _open(family: int, options: EngineOptions, report: PingReport) -> EchoEngine:
    engine = open_preferred(family, options, report.warn)
    report.engines.append(engine)
    return engine
