"""Where a signed configuration's values take effect in an agent."""

import logging
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from netsonde.agent.config import AgentConfig
from netsonde.agent.dispatcher import Dispatcher
from netsonde.agent.metrics_sender import MetricsSender
from netsonde.agent.probers import Probers
from netsonde.agent.reporter import Reporter
from netsonde.agent.worker import Worker
from netsonde.ceiling import Ceiling, read_ceiling
from netsonde.clock import NS_PER_MS
from netsonde.control_plane import ControlPlaneClient
from netsonde.control_plane.session import AgentRuntime
from netsonde.errors import ConfigError, TargetDeniedError
from netsonde.model import TaskKind
from netsonde.probe.dns import DnsProber
from netsonde.probe.dns.question import BadQuestion, Server, parse_server
from netsonde.remote_config import KindValues, RemoteConfig
from netsonde.settings_file import FILE_MAX_BYTES

CLAIM_STREAMS, REPORT_STREAMS = "claim_streams", "report_streams"  # the flags that we know

Commit = Callable[[], None]

_logger = logging.getLogger("netsonde")


@dataclass(kw_only=True)
class Knobs:
    """Puts values into force. What a configuration leaves out is as the agent's settings have it.

    `capacities` are those that this process can have: a kind with none stays without. `vouched` are
    resolvers that this host's operator allows by name, so that the target policy need not.
    """

    config: AgentConfig
    capacities: Mapping[TaskKind, int]
    probers: Probers
    client: ControlPlaneClient
    session: AgentRuntime
    worker: Worker
    dispatcher: Dispatcher
    reporter: Reporter
    sender: MetricsSender
    vouched: Collection[str] = ()
    log_level: int = field(default_factory=lambda: _logger.level)

    def prepare(self, values: RemoteConfig) -> Commit:
        """Check values against this host; return what puts them into force.

        Raises:
            ConfigError: naming what cannot be.
        """
        commits: list[Commit] = [
            *self._for_worker(values),
            *self._for_probers(values),
            partial(self._set_cadence, values),
            partial(self._set_flags, values),
            partial(self._set_log_level, values),
        ]

        def commit() -> None:
            for each in commits:
                each()

        return commit

    def _for_worker(self, values: RemoteConfig) -> list[Commit]:
        kinds = {kind: values.kinds.get(kind, KindValues()) for kind in TaskKind}
        capacities = dict(self.capacities)
        for kind, wanted in kinds.items():
            if wanted.concurrency is not None and capacities.get(kind):
                capacities[kind] = wanted.concurrency
        target_per_s = values.target_starts_per_s or self.config.target_starts_per_s
        kinds_per_s = {kind: one.starts_per_s for kind, one in kinds.items() if one.starts_per_s}
        timeouts_ms = {kind: one.timeout_ms for kind, one in kinds.items() if one.timeout_ms}
        bounds = self.worker.bounds
        return [
            partial(bounds.pace, target_per_s, kinds_per_s),
            partial(bounds.bound_timeouts, timeouts_ms),
            partial(self.worker.resize, capacities),
        ]

    def _for_probers(self, values: RemoteConfig) -> list[Commit]:
        dns = self.probers.get(TaskKind.DNS)
        if not isinstance(dns, DnsProber):
            return []
        prober = dns
        deny = prober.policy.prepare_deny(values.deny)
        resolvers = tuple(self._resolver(prober, text) for text in values.resolvers)

        def set_resolvers() -> None:
            prober.resolvers = resolvers

        return [deny, set_resolvers]

    def _resolver(self, prober: DnsProber, text: str) -> Server:
        try:
            server = parse_server(text)
            if text not in self.vouched:
                prober.policy.check(server.address)
        except (BadQuestion, TargetDeniedError) as error:
            raise ConfigError(f"resolvers: {error}") from error
        return server

    def _set_cadence(self, values: RemoteConfig) -> None:
        cadence, client = values.cadence, self.client
        claim_ms = cadence.claim_ms or 0
        report_ms = cadence.report_ms or self.config.report_interval_ms
        self.dispatcher.gap_ns = lambda: max(client.cadence.claim_ms, claim_ms) * NS_PER_MS
        self.reporter.interval_ns = report_ms * NS_PER_MS
        self.session.beat_ms = cadence.heartbeat_ms
        metrics_ms = cadence.metrics_ms or round(self.config.metrics_interval_s * 1000)
        self.sender.pace(metrics_ms * NS_PER_MS)

    def _set_flags(self, values: RemoteConfig) -> None:
        self.client.allow_streams(
            claims=values.features.get(CLAIM_STREAMS, True),
            reports=values.features.get(REPORT_STREAMS, True),
        )

    def _set_log_level(self, values: RemoteConfig) -> None:
        level = values.log_level
        _logger.setLevel(self.log_level if level is None else level.upper())


def ceiling_of(config: AgentConfig, capacities: Mapping[TaskKind, int]) -> Ceiling:
    """Return the most that a configuration may ask: the ceiling file's, then the settings' own.

    Raises:
        ConfigError: the ceiling file cannot be read, or has something wrong in it.
    """
    own = Ceiling(
        kinds={kind: KindValues(concurrency=slots) for kind, slots in capacities.items()},
        target_starts_per_s=config.target_starts_per_s,
    )
    path = config.ceiling_file
    return own if path is None else _ceiling(path).over(own)


def _ceiling(path: Path) -> Ceiling:
    try:
        with path.open("rb") as file:
            body = file.read(FILE_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"ceiling_file {path} cannot be read: {error.strerror}") from error
    try:
        return read_ceiling(tomllib.loads(body.decode()))
    except UnicodeDecodeError as error:
        raise ConfigError(f"ceiling_file {path} is not UTF-8 text: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"ceiling_file {path} is not TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"ceiling_file {path}: {error}") from error
