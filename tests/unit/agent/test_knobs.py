"""Where a configuration's values take effect, and that taking them away undoes it."""

import logging
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netsonde.agent import Agent, AgentConfig
from netsonde.agent.knobs import Knobs, ceiling_of
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.errors import ConfigError, TargetDeniedError
from netsonde.model import DnsSpec, TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.dns import DnsProber
from netsonde.remote_config import CadenceValues, KindValues, RemoteConfig
from support.fleet import Fleet, make_agent, run_for, started
from support.probers import gated
from support.spools import inline_spools

PING, DNS = TaskKind.PING, TaskKind.DNS
DENIED = "198.51.100.7"


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    logger = logging.getLogger("netsonde")
    before = logger.level
    yield
    logger.setLevel(before)


class Rig:
    """A registered agent with a real prober of dns, whose knobs are turned by hand."""

    def __init__(self, agent: Agent, dns: DnsProber, clock: ManualClock) -> None:
        self.agent = agent
        self.dns = dns
        self.clock = clock

    @property
    def parts(self) -> Any:
        return self.agent._parts

    @cached_property
    def knobs(self) -> Knobs:
        """Knobs of the same parts as the agent's own."""
        parts = self.parts
        return Knobs(
            config=self.agent.config,
            capacities=self.agent._capacities,
            probers={DNS: self.dns},
            client=parts.client,
            session=parts.session,
            worker=parts.worker,
            dispatcher=parts.dispatcher,
            reporter=parts.reporter,
            sender=parts.sender,
        )

    def turn(self, **values: Any) -> None:
        self.knobs.prepare(RemoteConfig(**values))()


@pytest_asyncio.fixture
async def rig(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    inline_spools(monkeypatch)
    dns = DnsProber(clock, TargetPolicy(("public", DENIED + "/32"), deny=("203.0.113.0/24",)))
    probers: dict[TaskKind, Any] = {**gated(), DNS: dns}
    fleet = Fleet(clock, tmp_path)
    capacities = {**dict.fromkeys(TaskKind, 4), TaskKind.HTTP: 0}
    agent = make_agent(clock, tmp_path, fleet.transport(), probers, capacities=capacities)
    async with fleet.running(), started(agent):
        await run_for(clock, 1)
        yield Rig(agent, dns, clock)


async def test_concurrency_is_the_lanes(rig: Rig) -> None:
    rig.turn(kinds={PING: KindValues(concurrency=9), DNS: KindValues(concurrency=1)})
    assert rig.parts.worker.free() == {
        PING: 9, DNS: 1, TaskKind.TCP: 4, TaskKind.TRACE: 4,
    }  # fmt: skip
    rig.turn()
    assert rig.parts.worker.free()[PING] == 4


async def test_a_kind_can_be_stopped_and_begun_again(rig: Rig) -> None:
    rig.turn(kinds={PING: KindValues(concurrency=0)})
    assert not rig.parts.worker.measures(PING)
    assert rig.parts.worker.on_stopped == rig.parts.dispatcher.give_back
    assert PING not in rig.parts.worker.free()
    rig.turn(kinds={PING: KindValues(concurrency=3)})
    assert rig.parts.worker.free()[PING] == 3


async def test_a_kind_that_this_process_leaves_out_stays_out(rig: Rig) -> None:
    rig.turn(kinds={TaskKind.HTTP: KindValues(concurrency=9)})
    assert not rig.parts.worker.measures(TaskKind.HTTP)


async def test_denied_prefixes_are_added_to_the_hosts_own(rig: Rig) -> None:
    policy = rig.dns.policy
    version = policy.version
    policy.check(DENIED)
    rig.turn(deny=("198.51.100.0/24",))
    for address in (DENIED, "203.0.113.9"):
        with pytest.raises(TargetDeniedError, match="denied by the rule"):
            policy.check(address)
    assert policy.version != version
    rig.turn()
    policy.check(DENIED)
    with pytest.raises(TargetDeniedError):
        policy.check("203.0.113.9")
    assert policy.version == version


async def test_resolvers_are_asked_where_a_spec_names_none(rig: Rig) -> None:
    rig.turn(resolvers=("9.9.9.9", "[2620:fe::fe]:5353"))
    named = [str(server) for server in rig.dns._servers(DnsSpec(query="a.example"))]
    assert named == ["9.9.9.9:53", "[2620:fe::fe]:5353"]
    own = rig.dns._servers(DnsSpec(query="a.example", server="8.8.8.8"))
    assert [str(server) for server in own] == ["8.8.8.8:53"]
    rig.turn()
    assert rig.dns.resolvers == ()


async def test_a_resolver_must_be_allowed_by_policy_or_by_name(rig: Rig) -> None:
    with pytest.raises(ConfigError, match=r"resolvers: 10\.0\.0\.53"):
        rig.knobs.prepare(RemoteConfig(resolvers=("10.0.0.53",)))
    rig.knobs.vouched = ("10.0.0.53",)
    rig.turn(resolvers=("10.0.0.53",))
    assert [server.address for server in rig.dns.resolvers] == ["10.0.0.53"]


async def test_preparing_changes_nothing(rig: Rig) -> None:
    free, version = rig.parts.worker.free(), rig.dns.policy.version
    rig.knobs.prepare(
        RemoteConfig(
            kinds={PING: KindValues(concurrency=1)}, deny=("8.8.8.0/24",), log_level="debug"
        )
    )
    assert (rig.parts.worker.free(), rig.dns.policy.version) == (free, version)


async def test_cadence_is_that_of_the_calls(rig: Rig) -> None:
    parts = rig.parts
    cadence = CadenceValues(claim_ms=700, report_ms=50, heartbeat_ms=40_000, metrics_ms=45_000)
    rig.turn(cadence=cadence)
    assert parts.dispatcher.gap_ns() == 700 * NS_PER_MS
    assert parts.reporter.interval_ns == 50 * NS_PER_MS
    assert 36 * NS_PER_S <= parts.session.beat_interval_ns() <= 40 * NS_PER_S
    assert rig.parts.sender.interval_ns == 45 * NS_PER_S
    rig.turn()
    assert parts.dispatcher.gap_ns() == parts.client.cadence.claim_ms * NS_PER_MS
    assert parts.reporter.interval_ns == 200 * NS_PER_MS
    assert parts.session.beat_interval_ns() <= 15 * NS_PER_S
    assert rig.parts.sender.interval_ns == 30 * NS_PER_S


async def test_the_control_planes_quotas_are_kept_whatever_is_configured(rig: Rig) -> None:
    rig.turn(cadence=CadenceValues(claim_ms=1, heartbeat_ms=1000))
    least = rig.parts.client.cadence
    assert rig.parts.dispatcher.gap_ns() == least.claim_ms * NS_PER_MS
    assert rig.parts.session.beat_interval_ns() >= least.heartbeat_ms * NS_PER_MS


async def test_rates_and_timeouts_are_the_workers_bounds(rig: Rig) -> None:
    bounds = rig.parts.worker.bounds
    rig.turn(kinds={PING: KindValues(starts_per_s=3, timeout_ms=250)}, target_starts_per_s=2)
    assert set(bounds._kinds) == {PING}
    assert bounds._timeouts_ms == {PING: 250}
    rig.turn()
    assert (bounds._kinds, bounds._timeouts_ms) == ({}, {})


async def test_the_log_level_is_put_back(rig: Rig) -> None:
    logger = logging.getLogger("netsonde")
    before = logger.level
    rig.turn(log_level="error")
    assert logger.level == logging.ERROR
    rig.turn(log_level="debug")
    assert logger.level == logging.DEBUG
    rig.turn()
    assert logger.level == before


async def test_flags_turn_streams_off_and_unknown_ones_do_nothing(rig: Rig) -> None:
    client = rig.parts.client
    rig.turn(features={"claim_streams": False, "warp_drive": True})
    assert (client._claim_streams.are_usable, client._report_streams.are_usable) == (False, True)
    rig.turn(features={"report_streams": False})
    assert (client._claim_streams.are_usable, client._report_streams.are_usable) == (True, False)


# ── the ceiling ──


def settings(folder: Path, text: str | None = None) -> AgentConfig:
    path = None
    if text is not None:
        path = folder / "ceiling.toml"
        path.write_text(text)
    return AgentConfig(control_plane="http://192.0.2.1", ceiling_file=path, target_starts_per_s=7)


def test_without_a_file_the_settings_are_the_ceiling(tmp_path: Path) -> None:
    ceiling = ceiling_of(settings(tmp_path), {PING: 4})
    assert ceiling.kinds == {PING: KindValues(concurrency=4)}
    assert ceiling.target_starts_per_s == 7


def test_a_file_may_allow_more(tmp_path: Path) -> None:
    text = "[kinds.ping]\nconcurrency = 512\n[cadence_min]\nclaim_ms = 200\n"
    ceiling = ceiling_of(settings(tmp_path, text), {PING: 4, DNS: 5})
    assert ceiling.kinds[PING].concurrency == 512
    assert ceiling.kinds[DNS].concurrency == 5
    assert ceiling.cadence_min.claim_ms == 200


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "is not TOML"),
        ("kinds = 1", "ceiling.toml: Expected `object`"),
        ("[kinds.pong]\nconcurrency = 1", "pong"),
        ("concurrency = 4", "unknown field `concurrency`"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("[", r"\[")):
        ceiling_of(settings(tmp_path, text), {})


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    config = AgentConfig(control_plane="http://192.0.2.1", ceiling_file=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        ceiling_of(config, {})
