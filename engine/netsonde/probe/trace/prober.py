"""Trace: the routers on the way to a host, by ICMP, UDP or TCP."""

import asyncio
import errno
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

from netsonde import wire
from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import (
    ErrorCode,
    NetsondeError,
    PrivilegeError,
    RequestError,
    ResolveError,
    RouteError,
    SendError,
)
from netsonde.model import FailureSource, Outcome, TaskKind, TraceSpec
from netsonde.probe.base import Recorder
from netsonde.probe.icmp_errors import NO_ROUTE_ERRNOS, explain_send
from netsonde.probe.ping.lane import Lane
from netsonde.probe.ping.lanes import Lanes
from netsonde.probe.ping.run import packed_address
from netsonde.probe.ping.ways import Wanted
from netsonde.probe.privilege import GRANT_HINT
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import observations, verdicts
from netsonde.probe.trace.answers import Answer, Stop, Traced
from netsonde.probe.trace.driver import PORTS, TraceDriver, TraceEngine, TraceRun
from netsonde.probe.trace.mda import MdaSearch
from netsonde.probe.trace.pmtud import PmtuSearch
from netsonde.probe.trace.searches import carry

HEADER_BYTES = {4: 20 + 8, 6: 40 + 8}  # in front of a payload, by ICMP and UDP

Watch = Callable[[TraceSpec, Answer], None]


class TraceProber:
    """Traces any number of hosts at once, over the engines that pings use.

    A run probes `first_hop` to `max_hops`, a window of TTLs at a time, and asks a silent hop up to
    `probes_per_hop` times. It gives one `trace`, whatever happened, and is `ok` when the
    destination answered. watch is called with every answer as it comes.
    """

    kind = TaskKind.TRACE

    def __init__(
        self, clock: Clock, resolver: TargetResolver, lanes: Lanes, *, watch: Watch | None = None
    ) -> None:
        self._clock = clock
        self._resolver = resolver
        self._lanes = lanes
        self._watch = watch
        self._drivers: WeakKeyDictionary[Lane, TraceDriver] = WeakKeyDictionary()

    async def run(self, spec: TraceSpec, record: Recorder) -> None:
        """Trace the first vetted address of spec's host that there is a route to.

        Raises:
            PrivilegeError, SendError: it could not be traced here; the `trace` is in record.
            ConfigError, RequestError, RouteError: no way out as asked for; likewise.
            ResolveError, TargetDeniedError: likewise.
        """
        started_ns = self._clock.monotonic_ns()
        record.env.setdefault("policy_version", self._resolver.policy.version)
        result = observations.nothing(spec)
        try:
            wire.check_spec(spec)
            addresses = await self._resolver.addresses(spec.host, spec.family)
            await self._trace_first(spec, addresses, result, record)
        except (NetsondeError, asyncio.CancelledError) as error:
            result |= observations.cut_short(error)
            if isinstance(error, ResolveError):
                record.observe("trace_resolution", {"host": spec.host, "error": str(error)})
            raise
        finally:
            elapsed_ns = self._clock.monotonic_ns() - started_ns
            record.observe("trace", result | {"total_duration_ms": elapsed_ns / NS_PER_MS})

    async def close(self) -> None:
        """Close the engines. Idempotent."""
        self._lanes.close()

    async def _trace_first(
        self, spec: TraceSpec, addresses: tuple[str, ...], result: dict[str, Any], record: Recorder
    ) -> None:
        """Trace to the first address that can be sent to, or say why there is none."""
        code = errno.EHOSTUNREACH
        for address in addresses:
            result["address"] = address
            try:
                driver, run = await self._prepare(spec, address)
                traced = await self._carry(driver, run, spec, result)
            except (RouteError, SendError) as error:  # no route, or this host has no such family
                code = getattr(error, "errno", None) or code
                continue
            if traced.stop is Stop.TX_ERROR and traced.errno in NO_ROUTE_ERRNOS:
                code = traced.errno
                continue
            record.env["source"] = result["source"]
            await self._look_closer(driver, run, spec, traced, result)
            result |= verdicts.judge(spec, traced, address, record)
            return
        reason, text = explain_send(code)
        result |= {"status": "error", "stop_reason": str(Stop.NO_ROUTE)}
        record.fail(Outcome.AGENT_ERROR, reason, FailureSource.SELF, f"{spec.host}: {text}")

    async def _carry(
        self, driver: TraceDriver, run: TraceRun, spec: TraceSpec, result: dict[str, Any]
    ) -> Traced:
        """Carry one trace; whatever ends it, what was seen is in result."""
        try:
            return await driver.run(run)
        finally:
            if run.traced is not None:
                result |= observations.seen(spec, run.traced)

    async def _look_closer(
        self,
        driver: TraceDriver,
        run: TraceRun,
        spec: TraceSpec,
        traced: Traced,
        result: dict[str, Any],
    ) -> None:
        """Find what else was asked for, beside or beyond the path; result holds what was seen."""
        if spec.multipath == "mda":
            mda = MdaSearch(
                method=spec.method,
                first_ttl=spec.first_hop,
                end_ttl=traced.end_ttl or traced.first_ttl + len(traced.attempts) - 1,
                # Nothing lies beyond a refusal, even where only some of its messages come.
                last_ttl=traced.end_ttl if traced.stop is Stop.UNREACHABLE else spec.max_hops,
                gap_limit=spec.gap_limit,
                confidence=spec.confidence,
            )
            try:
                await carry(driver, mda, lambda probe: run.probe(probe.ttl, flow=probe.flow))
            finally:
                result["multipath"] = observations.multipath(spec, mda.graph())
        if spec.pmtud and traced.stop is Stop.COMPLETED:
            await self._find_pmtu(driver, run, spec, traced, result)

    async def _find_pmtu(
        self,
        driver: TraceDriver,
        run: TraceRun,
        spec: TraceSpec,
        traced: Traced,
        result: dict[str, Any],
    ) -> None:
        address = result["address"]
        family = 6 if ":" in address else 4
        lane = self._lanes.get(family)
        search = PmtuSearch(
            method=spec.method,
            version=family,
            first_mtu=await lane.ways.mtu(address, _wanted(spec)),
            end_ttl=traced.end_ttl,
            answering={hop.ttl for hop in traced.hops if hop.answer},
        )
        headers = HEADER_BYTES[family]
        await carry(driver, search, lambda probe: run.probe(probe.ttl, size=probe.size - headers))
        if search.result is not None:
            result["pmtu"] = observations.pmtu(search.result)

    async def _prepare(self, spec: TraceSpec, address: str) -> tuple[TraceDriver, TraceRun]:
        """Find the engine and the way, and make the run of one vetted address.

        Raises:
            PrivilegeError: this process may not trace by this method.
            ConfigError, NetsondeError, RouteError, SendError: there is no way.
        """
        family = 6 if ":" in address else 4
        lane, path = await self._lanes.way(family, address, _wanted(spec))
        driver = self._driver(lane)
        if spec.pmtud and driver.backend == "datagram":
            raise RequestError(
                ErrorCode.VALIDATION,
                "pmtud needs raw sockets: ICMP datagram sockets cannot forbid fragments here",
            )
        try:
            driver.open(spec.method)
        except PermissionError as error:
            raise PrivilegeError(
                f"trace by {spec.method}: {error.strerror}\n{GRANT_HINT}"
            ) from error
        except ValueError as error:
            raise PrivilegeError(
                f"trace by {spec.method} needs raw sockets, and this process has the back end"
                f" {driver.backend}.\n{GRANT_HINT}"
            ) from error
        except OSError as error:
            raise SendError(f"open sockets for traces by {spec.method}", error.errno or 0,
                            error.strerror or str(error)) from error  # fmt: skip
        return driver, self._new_run(spec, address, path)

    def _driver(self, lane: Lane) -> TraceDriver:
        driver = self._drivers.get(lane)
        if driver is None:
            engine = cast("TraceEngine", lane.engine)  # every native one is
            driver = self._drivers[lane] = TraceDriver(self._clock, engine, lane.driver)
        return driver

    def _new_run(self, spec: TraceSpec, address: str, path: int) -> TraceRun:
        destination, scope = packed_address(address)
        watch = self._watch
        return TraceRun(
            destination,
            scope,
            method=spec.method,
            port=spec.port or PORTS[spec.method],
            first_ttl=spec.first_hop,
            last_ttl=spec.max_hops,
            attempts=spec.probes_per_hop,
            gap_limit=spec.gap_limit,
            timeout_ns=spec.timeout_ms * NS_PER_MS,
            interval_ns=spec.interval_ms * NS_PER_MS,
            size=spec.size,
            tos=spec.dscp << 2,
            all_probes=spec.all_probes,
            path=path,
            on_answer=None if watch is None else lambda answer: watch(spec, answer),
        )


def _wanted(spec: TraceSpec) -> Wanted:
    return Wanted(spec.source, spec.interface, spec.mark)
