"""The agent: builds the parts, joins them, owns their tasks, and winds them down in order."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from random import Random
from typing import Any

from netsonde import __version__
from netsonde.agent.bounds import target_pacer
from netsonde.agent.config import AgentConfig
from netsonde.agent.config_keeper import ConfigKeeper
from netsonde.agent.dispatcher import Dispatcher
from netsonde.agent.enrolment import EnrolmentToken
from netsonde.agent.knobs import Knobs, ceiling_of
from netsonde.agent.lease_extender import LeaseExtender
from netsonde.agent.metrics import AgentMetrics
from netsonde.agent.metrics_sender import MetricsSender
from netsonde.agent.orders import Orders
from netsonde.agent.probers import Probers, missing_kinds, opened_probers
from netsonde.agent.reporter import Reporter
from netsonde.agent.scrape import metrics_page
from netsonde.agent.standby import Standby, Unstarted
from netsonde.agent.standing import StandingLeases
from netsonde.agent.telemetry import Telemetry, boot_id, inventory, quiet_collector
from netsonde.agent.worker import Worker
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock
from netsonde.control_plane import (
    ControlPlaneClient,
    ControlPlaneTransport,
    HttpControlPlaneTransport,
)
from netsonde.control_plane.session import AgentRuntime
from netsonde.dsse import PublicKey, TrustedKeys
from netsonde.errors import NetsondeError
from netsonde.leases import Ended, LeaseState, LeaseTable
from netsonde.model import (
    CommandType,
    HeartbeatRequest,
    Reason,
    RegisterRequest,
    RegisterResponse,
)
from netsonde.netinfo import local_addresses
from netsonde.probe.privilege import GRANT_HINT, capabilities
from netsonde.remote_config import Ceiling, Holder
from netsonde.spool import Spool, SpoolLimits

SPOOL_NAME = "spool.db"
CREDENTIALS_NAME = "credentials.json"
CONFIG_NAME = "config.json"  # the signed configuration in force
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
        self._ceiling = Ceiling()
        self._parts: _Parts | None = None
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
            self._ceiling = ceiling_of(self.config, self._capacities)
            client = ControlPlaneClient(self._transport, self._clock, self._rng)
            leases = LeaseTable(self._rng)
            telemetry = Telemetry(self._clock, spool)
            session = self._session(client, leases, telemetry)
            if not await self._unless_drained(session.start()):
                return
            probers = await stack.enter_async_context(self._probers())
            parts = self._parts = self._join(client, leases, spool, probers, session, telemetry)
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

    def _join(
        self,
        client: ControlPlaneClient,
        leases: LeaseTable,
        spool: Spool,
        probers: Probers,
        session: AgentRuntime,
        telemetry: Telemetry,
    ) -> "_Parts":
        config, clock = self.config, self._clock
        pacer = target_pacer(config.target_starts_per_s)
        worker = Worker(clock, leases, spool, probers, self._capacities, pacer)
        wait_ms = None if config.claim_wait_s is None else round(config.claim_wait_s * 1000)
        dispatcher = Dispatcher(clock, leases, spool, client, worker, wait_ms)
        interval_ns = config.report_interval_ms * NS_PER_MS
        reporter = Reporter(clock, spool, leases, client, interval_ns)
        standing = StandingLeases(clock, leases, worker, client.server_now_ns)

        def on_ended(ended: Ended, reason: Reason) -> None:
            if ended.lease.repeat is not None:
                standing.end(ended.lease.lease_id, reason)
            elif ended.state is not LeaseState.FINISHED:
                worker.cancel(ended.lease.lease_id, reason)

        def extend_gap_ns() -> int:
            return client.cadence.extend_ms * NS_PER_MS

        extender = LeaseExtender(
            clock, leases, client, on_ended, extend_gap_ns, lambda: client.term_ms
        )
        standby = Standby(client, leases, worker, standing, dispatcher)
        metrics = AgentMetrics(
            client=client, leases=leases, spool=spool, telemetry=telemetry, worker=worker,
            standing=standing, dispatcher=dispatcher, reporter=reporter, extender=extender,
        )  # fmt: skip
        metrics_ns = round(config.metrics_interval_s * NS_PER_S)
        sender = MetricsSender(clock, client, metrics.read, self.instance_id, metrics_ns)
        knobs = Knobs(
            config=config,
            capacities=self._capacities,
            probers=probers,
            client=client,
            session=session,
            worker=worker,
            dispatcher=dispatcher,
            reporter=reporter,
            sender=sender,
            vouched=self._ceiling.resolvers or (),
        )
        keeper = self._config_keeper(client, knobs)
        orders = Orders(
            {
                CommandType.DRAIN: standby.drain,
                CommandType.RESUME: standby.resume,
                CommandType.REFRESH_CONFIG: keeper.refresh,
            }
        )
        parts = _Parts(
            client, leases, spool, session, telemetry, worker, standing, dispatcher, reporter,
            extender, keeper, knobs, standby, orders, metrics, sender,
        )  # fmt: skip
        parts.connect()
        keeper.start()
        return parts

    def _config_keeper(self, client: ControlPlaneClient, knobs: Knobs) -> ConfigKeeper:
        """Make what takes signed configurations and turns the knobs."""
        path = self.config.state_dir / CONFIG_NAME
        keys = TrustedKeys(map(PublicKey, self.config.trusted_keys))
        keeper = ConfigKeeper(self._clock, client, path, keys, self._ceiling, self._rng)
        keeper.prepare = knobs.prepare
        keeper.holder = partial(self._holder, client)
        return keeper

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

    async def _serve(self, parts: "_Parts") -> None:
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

    async def _tell(self, parts: "_Parts") -> None:
        """Send metrics, where that is wanted."""
        if self.config.metrics_interval_s and parts.client.identity is not None:
            await parts.sender.run(parts.client.identity.agent_id)

    async def _dispatch(self, parts: "_Parts") -> None:
        """Claim work, once the results of an earlier run were reported.

        Registering gave that run's leases back; granted anew, they would fence its results.
        """
        if parts.spool.rows:
            await self._clock.wait(parts.reporter.caught_up, CATCH_UP_TIMEOUT_NS)
        while True:
            await parts.standby.may_work.wait()
            await parts.dispatcher.run()

    async def _wind_down(self, parts: "_Parts") -> None:
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

    def _say_goodbye(self, parts: "_Parts") -> None:
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

    def _holder(self, client: ControlPlaneClient) -> Holder:
        agent_id = client.identity.agent_id if client.identity else 0
        return Holder(agent_id, self.config.hostname, self.config.labels)

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


@dataclass(frozen=True, slots=True)
class _Parts:
    """Everything that works together once the agent is registered."""

    client: ControlPlaneClient
    leases: LeaseTable
    spool: Spool
    session: AgentRuntime
    telemetry: Telemetry
    worker: Worker
    standing: StandingLeases
    dispatcher: Dispatcher
    reporter: Reporter
    extender: LeaseExtender
    keeper: ConfigKeeper
    knobs: Knobs
    standby: Standby
    orders: Orders
    metrics: AgentMetrics
    sender: MetricsSender

    def connect(self) -> None:
        """Let the parts tell each other what happens."""
        client, dispatcher, reporter = self.client, self.dispatcher, self.reporter
        worker = self.worker
        self.telemetry.on_lag = worker.lagged
        worker.on_free = dispatcher.wake
        worker.on_kept = reporter.wake
        worker.on_ran = self.standing.ran
        worker.on_stopped = dispatcher.give_back
        worker.is_columnar = lambda: client.is_legacy is False
        self.orders.on_done = self.session.hurry
        self.session.on_commands = self.orders.take
        dispatcher.on_granted = self.extender.wake
        dispatcher.on_revoked = self.extender.revoke
        dispatcher.on_standing = self.standing.take
        dispatcher.gap_ns = lambda: client.cadence.claim_ms * NS_PER_MS
        dispatcher.is_alone = lambda: client.is_legacy is not False
        reporter.on_room = dispatcher.wake
        client.on_config = self.keeper.announce
        self.keeper.on_verdict = self.session.hurry
        reporter.gap_ns = lambda: client.cadence.report_ms * NS_PER_MS

    def counters(self) -> dict[str, int]:
        """Return every part's counters under its name."""
        sources: dict[str, Mapping[str, int]] = {
            "control_plane": self.client.counters,
            "worker": self.worker.counters,
            "congestion": self.worker.congestion.shrunk,
            "standing": self.standing.counters,
            "dispatcher": self.dispatcher.counters,
            "reporter": self.reporter.counters,
            "extender": self.extender.counters,
            "config": self.keeper.counters,
            "orders": self.orders.counters,
            "metrics": self.sender.counters,
        }
        return {
            f"{part}.{name}": count
            for part, counters in sources.items()
            for name, count in counters.items()
        }
