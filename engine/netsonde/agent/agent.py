"""The agent: registers, owns the tasks of its parts, and winds them down in order."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import islice
from random import Random
from typing import Any

from netsonde import __version__
from netsonde.agent.config import AgentConfig
from netsonde.agent.enrolment import EnrolmentToken
from netsonde.agent.knobs import ceiling_of
from netsonde.agent.parts import Basis, Parts, make_parts
from netsonde.agent.probers import Probers, missing_kinds, opened_probers
from netsonde.agent.scrape import metrics_page
from netsonde.agent.standby import Standby, Unstarted
from netsonde.agent.telemetry import Telemetry, boot_id, inventory
from netsonde.clock import NS_PER_S, Clock, SystemClock
from netsonde.collector import quiet_collector
from netsonde.control_plane import (
    ControlPlaneClient,
    ControlPlaneTransport,
    HttpControlPlaneTransport,
)
from netsonde.control_plane.session import AgentRuntime
from netsonde.errors import NetsondeError
from netsonde.leases import LeaseTable
from netsonde.model import (
    HeartbeatRequest,
    Reason,
    RegisterRequest,
    RegisterResponse,
)
from netsonde.netinfo import local_addresses
from netsonde.probe.privilege import GRANT_HINT, capabilities
from netsonde.spool import Spool, SpoolLimits

SPOOL_NAME = "spool.db"
CREDENTIALS_NAME = "credentials.json"
IDS_PER_HEARTBEAT_MAX = 1000  # by the contract
CATCH_UP_TIMEOUT_NS = 10 * NS_PER_S  # for old results, before new work: else it is done twice
CANCEL_TIMEOUT_NS = 2 * NS_PER_S  # for cancelled measurements to hand in what they saw
RELEASE_TIMEOUT_NS = 5 * NS_PER_S  # unstarted leases end by themselves if this is not enough
FLUSH_TIMEOUT_NS = 5 * NS_PER_S  # results that are not taken by then wait in the spool

_log = logging.getLogger("netsonde.agent")


class Agent:
    """Measures what a control plane asks for until `drain` is called.

    `transport` and `probers` replace HTTP and the network, as tests do; with `probers` given no
    target policy is made: they are the last gate.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        clock: Clock | None = None,
        transport: ControlPlaneTransport | None = None,
        probers: Probers | None = None,
        rng: Random | None = None,
    ) -> None:
        self.config = config
        self.instance_id = str(uuid.uuid4())
        self._clock = clock or SystemClock()
        self._transport = transport or HttpControlPlaneTransport(
            config.control_plane, tls=config.tls()
        )
        self._given_probers = probers
        self._rng = rng or Random()  # noqa: S311 (jitter)
        self._drain_asked = asyncio.Event()
        self._addresses: frozenset[str] = frozenset()
        self._capabilities = {} if probers is not None else capabilities()
        self._capacities = dict(config.capacities)
        self._enrolment_token = EnrolmentToken(config)
        self._parts: Parts | None = None
        self._beaten = 0  # leases named in heartbeats since the first one was

    def drain(self) -> None:
        """Ask the agent to finish: claim no more, end what runs, report, return. Idempotent."""
        if not self._drain_asked.is_set():
            _log.info("draining", extra={"action": "draining"})
        self._drain_asked.set()

    @property
    def counters(self) -> dict[str, int]:
        """What happened since the start, by name; empty before there is a session."""
        return self._parts.counters() if self._parts else {}

    async def run(self) -> None:
        """Register, work until `drain` is called, wind down.

        Raises:
            ConfigError: a setting turned out wrong.
            StorageError: the state directory is unusable or in use by another agent.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._transport.close)
            spool = await self._open_spool()
            stack.push_async_callback(spool.close)
            await self._look_around()
            ceiling = ceiling_of(self.config, self._capacities)
            client = ControlPlaneClient(self._transport, self._clock, self._rng)
            leases = LeaseTable(self._rng)
            telemetry = Telemetry(self._clock, spool)
            session = self._session(client, leases, telemetry)
            if not await self._unless_drained(session.start()):
                return
            probers = await stack.enter_async_context(self._probers())
            basis = Basis(
                config=self.config, clock=self._clock, rng=self._rng, instance_id=self.instance_id,
                capacities=self._capacities, ceiling=ceiling, client=client, leases=leases,
                spool=spool, probers=probers, session=session, telemetry=telemetry,
            )  # fmt: skip
            parts = self._parts = make_parts(basis)
            await stack.enter_async_context(
                metrics_page(self.config.metrics_endpoint, parts.metrics.read)
            )
            with quiet_collector():
                await self._serve(parts)

    # ── building ──

    async def _open_spool(self) -> Spool:
        limits = SpoolLimits(rows=self.config.spool_rows, size_bytes=self.config.spool_bytes)
        spool = await Spool.open(self.config.state_dir / SPOOL_NAME, limits, self._clock)
        if spool.rows:
            _log.info(
                "%d results of an earlier run wait in the spool and are reported first",
                spool.rows,
                extra={"action": "spool_recovered", "rows": spool.rows},
            )
        return spool

    async def _look_around(self) -> None:
        """Learn this host's addresses and leave out the kinds it may not measure."""
        if self._given_probers is not None:
            return
        try:
            self._addresses = await asyncio.to_thread(local_addresses)
        except NetsondeError as error:
            _log.warning("%s; they are not protected", error, extra={"action": "no_addresses"})
        for kind in sorted(missing_kinds(self.config, self._capabilities)):
            if self._capacities[kind]:
                self._capacities[kind] = 0
                _log.warning(
                    "this process may not measure %s and claims none of it: %s",
                    kind.value,
                    GRANT_HINT,
                    extra={"action": "kind_left_out", "kind": kind.value},
                )

    def _session(
        self, client: ControlPlaneClient, leases: LeaseTable, telemetry: Telemetry
    ) -> AgentRuntime:
        if self.config.agent_id is not None and self.config.auth_token is not None:
            known = RegisterResponse(
                agent_id=self.config.agent_id,
                lease_duration_ms=0,
                heartbeat_timeout_ms=0,
                auth_token=self.config.auth_token,
            )
            client.adopt(known, is_legacy=None)
        return AgentRuntime(
            client,
            self._clock,
            self.config.state_dir / CREDENTIALS_NAME,
            self._describe,
            partial(self._beat, leases, telemetry),
            self._lost,
        )

    @asynccontextmanager
    async def _probers(self) -> AsyncIterator[Probers]:
        if self._given_probers is not None:
            yield self._given_probers
            return
        async with opened_probers(self.config, self._clock, self._addresses) as probers:
            yield probers

    # ── running ──

    async def _unless_drained(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do work to its end; give it up when the agent is drained. Return whether it ended.

        Raises:
            NetsondeError: what work raised.
        """
        failures: list[NetsondeError] = []

        async def guarded() -> None:
            try:
                await work
            except NetsondeError as error:
                failures.append(error)

        async with asyncio.TaskGroup() as group:
            working = group.create_task(guarded())
            draining = group.create_task(self._drain_asked.wait())
            await asyncio.wait((working, draining), return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            draining.cancel()
        if failures:
            raise failures[0]
        return not working.cancelled()

    async def _serve(self, parts: Parts) -> None:
        async with asyncio.TaskGroup() as group:
            steady = [
                group.create_task(run())
                for run in (
                    parts.session.run,
                    parts.worker.run,
                    parts.standing.run,
                    parts.extender.run,
                    parts.reporter.run,
                    parts.telemetry.run,
                    parts.keeper.run,
                    parts.orders.run,
                    partial(self._tell, parts),
                )
            ]
            dispatching = group.create_task(self._dispatch(parts))
            await self._drain_asked.wait()
            await self._wind_down(parts)
            for task in (dispatching, *steady):
                task.cancel()

    async def _tell(self, parts: Parts) -> None:
        """Send metrics, where that is wanted."""
        if self.config.metrics_interval_s and parts.client.identity is not None:
            await parts.sender.run(parts.client.identity.agent_id)

    async def _dispatch(self, parts: Parts) -> None:
        """Claim work, once the results of an earlier run were reported.

        Registering gave that run's leases back; granted anew, they would fence its results.
        """
        if parts.spool.rows:
            await self._clock.wait(parts.reporter.caught_up, CATCH_UP_TIMEOUT_NS)
        while True:
            await parts.standby.may_work.wait()
            await parts.dispatcher.run()

    async def _wind_down(self, parts: Parts) -> None:
        """Give back what has not begun, let the rest end, hand in the results."""
        unstarted = parts.standby.close()
        released = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            releasing = group.create_task(self._release(parts.standby, unstarted, released))
            drain_ns = round(self.config.drain_timeout_s * NS_PER_S)
            if not await self._clock.wait(parts.worker.idle, drain_ns):
                parts.worker.cancel_all(Reason.CANCELLED)
                await self._clock.wait(parts.worker.idle, CANCEL_TIMEOUT_NS)
            parts.reporter.hurry()
            await self._clock.wait(parts.reporter.flushed, FLUSH_TIMEOUT_NS)
            await self._clock.wait(released, RELEASE_TIMEOUT_NS)
            releasing.cancel()
        self._say_goodbye(parts)

    @staticmethod
    async def _release(standby: Standby, unstarted: Unstarted, released: asyncio.Event) -> None:
        try:
            await standby.give_back(unstarted)
        finally:
            released.set()

    def _say_goodbye(self, parts: Parts) -> None:
        if parts.worker.held:
            _log.error(
                "%d results are lost: the spool would not take them",
                parts.worker.held,
                extra={"action": "results_lost", "results": parts.worker.held},
            )
        _log.info(
            "drained; %d results wait in the spool for the next start",
            parts.spool.rows,
            extra={"action": "drained", "rows": parts.spool.rows},
        )

    # ── what the session asks for ──

    def _describe(self) -> RegisterRequest:
        return RegisterRequest(
            hostname=self.config.hostname,
            enrolment_token=self._enrolment_token.read(),
            version=__version__,
            boot_id=boot_id(),
            instance_id=self.instance_id,
            capacities={kind.value: slots for kind, slots in self._capacities.items()},
            inventory=inventory(self.config.labels, self._addresses, self._capabilities),
        )

    def _beat(self, leases: LeaseTable, telemetry: Telemetry) -> HeartbeatRequest:
        return HeartbeatRequest(
            agent_id=0,
            instance_id=self.instance_id,
            state="draining" if self._is_draining else "active",
            active_leases={
                "count": len(leases),
                "ids": self._told(leases),
            },
            health=telemetry.health(),
            config=self._parts.keeper.status() if self._parts else None,
            done_commands=self._parts.orders.done if self._parts else (),
        )

    @property
    def _is_draining(self) -> bool:
        stands_by = self._parts is not None and self._parts.standby.is_on
        return stands_by or self._drain_asked.is_set()

    def _told(self, leases: LeaseTable) -> list[int]:
        """Choose the leases a heartbeat names: all of them take their turn."""
        if self._beaten >= len(leases):
            self._beaten = 0
        ids = list(islice(leases, self._beaten, self._beaten + IDS_PER_HEARTBEAT_MAX))
        self._beaten += len(ids)
        return ids

    def _lost(self, lease_ids: Sequence[int]) -> None:
        if self._parts is not None:
            self._parts.extender.revoke(lease_ids)
