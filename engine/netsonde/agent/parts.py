"""The parts of an agent that work together once it is registered: made, and told of each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from random import Random

from netsonde.agent.bounds import target_pacer
from netsonde.agent.config import AgentConfig
from netsonde.agent.config_applier import ConfigApplier
from netsonde.agent.config_keeper import ConfigKeeper
from netsonde.agent.dispatcher import Dispatcher
from netsonde.agent.kept_config import ConfigMemory
from netsonde.agent.knobs import Knobs
from netsonde.agent.lease_extender import LeaseExtender
from netsonde.agent.metrics import AgentMetrics
from netsonde.agent.metrics_sender import MetricsSender
from netsonde.agent.orders import Orders
from netsonde.agent.probers import Probers
from netsonde.agent.reporter import Reporter
from netsonde.agent.standby import Standby
from netsonde.agent.standing import StandingLeases
from netsonde.agent.telemetry import Telemetry, boot_id
from netsonde.agent.worker import Worker
from netsonde.ceiling import Ceiling
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane import ControlPlaneClient
from netsonde.control_plane.session import AgentRuntime
from netsonde.dsse import PublicKey, TrustedKeys
from netsonde.leases import Ended, LeaseState, LeaseTable
from netsonde.model import CommandType, Reason, TaskKind
from netsonde.remote_config import Holder
from netsonde.spool import Spool

CONFIG_NAME = "config.json"  # the signed configuration in force


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What the parts are made of: how the agent is set up, and what there is before them."""

    config: AgentConfig
    clock: Clock
    rng: Random
    instance_id: str
    capacities: Mapping[TaskKind, int]
    ceiling: Ceiling
    client: ControlPlaneClient
    leases: LeaseTable
    spool: Spool
    probers: Probers
    session: AgentRuntime
    telemetry: Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that works together."""

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


def make_parts(basis: Basis) -> Parts:
    """Make the parts and join them; a configuration that was in force is again.

    Raises:
        StorageError: what is remembered of configurations cannot be read.
    """
    config, clock, client = basis.config, basis.clock, basis.client
    leases, spool, telemetry = basis.leases, basis.spool, basis.telemetry
    pacer = target_pacer(config.target_starts_per_s)
    worker = Worker(clock, leases, spool, basis.probers, basis.capacities, pacer)
    wait_ms = None if config.claim_wait_s is None else round(config.claim_wait_s * 1000)
    dispatcher = Dispatcher(clock, leases, spool, client, worker, wait_ms)
    reporter = Reporter(clock, spool, leases, client, config.report_interval_ms * NS_PER_MS)
    standing = StandingLeases(clock, leases, worker, client.server_now_ns)
    extender = _extender(basis, worker, standing)
    standby = Standby(client, leases, worker, standing, dispatcher)
    metrics = AgentMetrics(
        client=client, leases=leases, spool=spool, telemetry=telemetry, worker=worker,
        standing=standing, dispatcher=dispatcher, reporter=reporter, extender=extender,
    )  # fmt: skip
    metrics_ns = round(config.metrics_interval_s * NS_PER_S)
    sender = MetricsSender(clock, client, metrics.read, basis.instance_id, metrics_ns)
    knobs = Knobs(
        config=config, capacities=basis.capacities, probers=basis.probers, client=client,
        session=basis.session, worker=worker, dispatcher=dispatcher, reporter=reporter,
        sender=sender, vouched=basis.ceiling.resolvers or (),
    )  # fmt: skip
    keeper = _keeper(basis, knobs)
    parts = Parts(
        client=client, leases=leases, spool=spool, session=basis.session, telemetry=telemetry,
        worker=worker, standing=standing, dispatcher=dispatcher, reporter=reporter,
        extender=extender, keeper=keeper, standby=standby,
        orders=_orders(standby, keeper), metrics=metrics, sender=sender,
    )  # fmt: skip
    parts.connect()
    keeper.start()
    return parts


def _extender(basis: Basis, worker: Worker, standing: StandingLeases) -> LeaseExtender:
    """Make what watches the deadlines, and ends what is worked on past them."""
    client = basis.client

    def on_ended(ended: Ended, reason: Reason) -> None:
        if ended.lease is not None and ended.lease.repeat is not None:
            standing.end(ended.lease_id, reason)
        elif ended.state is not LeaseState.FINISHED:
            worker.cancel(ended.lease_id, reason)

    def gap_ns() -> int:
        return client.cadence.extend_ms * NS_PER_MS

    return LeaseExtender(
        basis.clock, basis.leases, client, on_ended, gap_ns, lambda: client.term_ms
    )


def _keeper(basis: Basis, knobs: Knobs) -> ConfigKeeper:
    """Make what takes signed configurations and turns the knobs."""
    path = basis.config.state_dir / CONFIG_NAME
    keys = TrustedKeys(map(PublicKey, basis.config.trusted_keys))
    memory = ConfigMemory(path, boot_id())
    applier = ConfigApplier(basis.clock, memory, keys, basis.ceiling)
    applier.prepare = knobs.prepare
    applier.holder = partial(_holder, basis.config, basis.client)
    return ConfigKeeper(basis.clock, basis.client, applier, basis.rng)


def _holder(config: AgentConfig, client: ControlPlaneClient) -> Holder:
    agent_id = client.identity.agent_id if client.identity else 0
    return Holder(agent_id, config.hostname, config.labels)


def _orders(standby: Standby, keeper: ConfigKeeper) -> Orders:
    return Orders(
        {
            CommandType.DRAIN: standby.drain,
            CommandType.RESUME: standby.resume,
            CommandType.REFRESH_CONFIG: keeper.refresh,
        }
    )
