"""Ping: echo requests to one host, by ICMP or what the spec names."""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from netsonde import netinfo, wire
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.errors import NetsondeError, ResolveError, RouteError, TargetDeniedError
from netsonde.model import Family, PingSpec, Reason, TaskKind
from netsonde.pacing import Pacer
from netsonde.probe.base import Recorder
from netsonde.probe.ping import observations, tcp, udp, verdicts
from netsonde.probe.ping.engines import OpenEngine, open_engine
from netsonde.probe.ping.lane import OpenMonitor
from netsonde.probe.ping.lanes import Lanes
from netsonde.probe.ping.run import Carrier, PingRun
from netsonde.probe.ping.sockets import SocketDriver, SocketOptions
from netsonde.probe.ping.ways import Wanted
from netsonde.probe.targets import TargetResolver

SOCKET_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A spec's runs, at least one, and what the summary is to say of addresses left out."""

    runs: list[PingRun]
    denied: tuple[str, ...] = ()
    unable: list[tuple[str, NetsondeError]] = field(default_factory=list)  # addresses, and why


class PingProber:
    """Pings any number of hosts at once over one engine per family.

    pacer holds methods tcp and udp to the rates that the engines have.
    """

    kind = TaskKind.PING

    def __init__(
        self,
        clock: Clock,
        resolver: TargetResolver,
        *,
        engine: OpenEngine = open_engine,
        monitor: OpenMonitor = netinfo.LinkMonitor,
        pacer: Pacer | None = None,
    ) -> None:
        self.resolver = resolver
        self.clock = clock
        self.lanes = Lanes(clock, engine, monitor)
        self._sockets = {
            "tcp": SocketDriver(clock, tcp.TcpAttempt(clock), tcp.ACCESS, pacer),
            "udp": SocketDriver(clock, udp.UdpAttempt(clock), udp.ACCESS, pacer),
        }

    async def run(self, spec: PingSpec, record: Recorder) -> None:
        """Send spec.count packets to the vetted address of spec.host, or to each.

        Raises:
            PrivilegeError, SendError: no socket; the summary is in record.
            ConfigError, RequestError, RouteError: no way out as asked for; likewise.
            ResolveError, TargetDeniedError: likewise.
        """
        record.env.setdefault("policy_version", self.resolver.policy.version)
        try:
            prepared = await self.prepare_all(spec)
        except (NetsondeError, asyncio.CancelledError) as error:
            summarise_nothing(spec, error, record)
            raise
        runs = prepared.runs
        try:
            await run_all(runs)
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            self.observe(spec, prepared, record, cancelled=cancelled)
            raise
        else:
            tallies = self.observe(spec, prepared, record, cancelled=False)
            self.judge(spec, runs, tallies, record)
        finally:
            for run in runs:
                run.carrier.forget(run)

    async def close(self) -> None:
        """Close the sockets; what is running fails. Idempotent."""
        self.lanes.close()

    async def prepare_all(self, spec: PingSpec) -> Prepared:
        """Make the runs of a spec; of several addresses those that can be.

        Raises:
            ResolveError, TargetDeniedError: there is no address to ping.
            ConfigError, PrivilegeError, RequestError, RouteError, SendError: nothing can leave as
                asked for.
        """
        wire.check_spec(spec)
        found = await self.resolver.resolve(spec.host, family_of(spec))
        if spec.addresses == "first":
            return Prepared([await self.prepare(spec, found.addresses[0])], found.denied)
        prepared = Prepared([], found.denied)
        for address in found.addresses:
            try:
                prepared.runs.append(await self.prepare(spec, address))
            except NetsondeError as error:
                prepared.unable.append((address, error))
            except BaseException:
                for run in prepared.runs:
                    run.carrier.forget(run)
                raise
        if not prepared.runs:
            raise prepared.unable[0][1]
        return prepared

    async def prepare(self, spec: PingSpec, address: str) -> PingRun:
        """Make the run of one vetted address; start it or forget it.

        Raises:
            ConfigError, PrivilegeError, RequestError, RouteError, SendError: it cannot leave as
                asked for.
        """
        family = 6 if ":" in address else 4
        wanted = Wanted(spec.source, spec.interface, spec.mark)
        if spec.method != "icmp":
            options = SocketOptions(family, spec.ttl, spec.dscp << 2, spec.df, wanted)
            options.check(SOCKET_KINDS[spec.method])
            run = new_run(spec, address, self._sockets[spec.method])
            run.prepare = options.apply
            return run
        if spec.df:
            await self.lanes.get(family).check_unfragmented(address, wanted, spec.size)
        lane, path = await self.lanes.way(family, address, wanted)
        run = new_run(spec, address, lane.driver, path)
        lane.driver.reserve(run)
        return run

    async def stop(self, runs: Iterable[PingRun]) -> None:
        """Send no more echo requests of these runs, and learn how many of each were sent."""
        runs = list(runs)
        for lane in self.lanes:
            await lane.driver.stop(run for run in runs if run.carrier is lane.driver)

    def observe(
        self, spec: PingSpec, prepared: Prepared, record: Recorder, *, cancelled: bool
    ) -> list[verdicts.Tally]:
        """Tell what runs saw: packets, then the summary; return how packets ended, for `judge`."""
        runs = [run for run in prepared.runs if run.ledger is not None]
        if not runs:  # cancelled before the first packet
            summarise_nothing(spec, asyncio.CancelledError(), record)
            return []
        for name, value in observations.packets(runs, columnar=record.columnar):
            record.observe(name, value)
        tallies = [verdicts.tally(run) for run in runs]
        whole = observations.summary(runs, tallies, cancelled=cancelled)
        if len(runs) + len(prepared.unable) > 1:
            whole["addresses"] = observations.per_address(runs, tallies, cancelled=cancelled)
            whole["addresses"] += [
                {"address": address, "error": str(error)} for address, error in prepared.unable
            ]
        if prepared.denied:
            whole["denied"] = list(prepared.denied)
        if spec.expect is not None and not cancelled:
            whole["unmet"] = verdicts.unmet(spec.expect, whole)
        record.observe("ping_summary", whole)
        if spec.method == "icmp":
            record.env["icmp_socket"] = whole["socket"]
        steps = [run.clock_steps for run in runs if run.clock_steps is not None]
        if steps:
            record.env["clock"] = record.env["clock"] | {"steps": max(steps)}
        return tallies

    def judge(
        self,
        spec: PingSpec,
        runs: Sequence[PingRun],
        tallies: Sequence[verdicts.Tally],
        record: Recorder,
    ) -> None:
        """Put the verdict into record, with what `observe` returned."""
        verdicts.judge(runs, tallies, record)
        unmet = record.observed("ping_summary").get("unmet")
        if unmet and record.is_ok:
            record.fail(*verdicts.mismatch(spec.host, unmet))


def new_run(spec: PingSpec, address: str, carrier: Carrier, path: int = 0) -> PingRun:
    """Make the run of a spec to one address.

    Raises:
        ResolveError: the address has a zone that names no interface.
    """
    interval_ns = NS_PER_S // spec.rate_limit_per_sec
    if spec.interval_ms is not None:
        interval_ns = spec.interval_ms * NS_PER_MS
    return PingRun(
        carrier=carrier,
        address=address,
        count=spec.count,
        interval_ns=interval_ns,
        timeout_ns=spec.timeout_ms * NS_PER_MS,
        size=spec.size,
        ttl=spec.ttl,
        tos=spec.dscp << 2,
        df=spec.df,
        path=path,
        method=spec.method,
        port=spec.port or 0,
    )


def family_of(spec: PingSpec) -> Family:
    """Return the family that a spec's addresses must be of: its source's, where that decides."""
    if spec.family == "any" and spec.source is not None:
        return 4 if ip_address(spec.source).version == 4 else 6
    return spec.family


async def run_all(runs: Sequence[PingRun]) -> None:
    """Carry runs side by side to their ends.

    Raises:
        NetsondeError: one cannot be gone on with; the others were ended.
    """
    try:
        if len(runs) == 1:
            await runs[0].carrier.run(runs[0])
            return
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run.carrier.run(run))
    except ExceptionGroup as failures:
        error: Exception = failures
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


def summarise_nothing(spec: PingSpec, error: BaseException, record: Recorder) -> None:
    """Add the summary of a run that could not begin; without a target everything is lost."""
    reason, loss_pct = Reason.TX_ERROR, None
    if isinstance(error, ResolveError):
        record.observe("ping_resolution", {"host": spec.host, "error": str(error)})
        reason, loss_pct = Reason.RESOLVE_FAILED, 100.0
    elif isinstance(error, TargetDeniedError):
        reason, loss_pct = Reason.DENIED, 100.0
    elif isinstance(error, RouteError):
        reason, loss_pct = Reason.NO_ROUTE, 100.0
    elif isinstance(error, asyncio.CancelledError):
        reason = Reason.CANCELLED
    summary = observations.EMPTY_SUMMARY | {
        "loss_pct": loss_pct,
        "protocol": spec.method,
        "reasons": {reason.value: 1},
        "cancelled": reason is Reason.CANCELLED,
    }
    record.observe("ping_summary", summary)
