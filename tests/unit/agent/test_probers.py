"""An agent's probers: what its settings make of them."""

from pathlib import Path
from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.agent.config import AgentConfig
from netsonde.agent.probers import missing_kinds, opened_probers, ping_options
from netsonde.clock import ManualClock
from netsonde.model import PingSpec, TaskKind
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping import engines
from support.echo import MemoryEchoEngine


def config(**settings: Any) -> AgentConfig:
    return AgentConfig(control_plane="http://192.0.2.10", state_dir=Path("/nowhere"), **settings)


def test_rates_are_those_of_agent_kind_prefix_and_target() -> None:
    options = ping_options(
        config(
            packets_per_s=1000,
            ping_packets_per_s=500,
            prefix_packets_per_s=50,
            target_packets_per_s=5,
            ping_backends=("packet", "raw"),
        )
    )
    assert [budget.rate_pps for budget in options.budgets] == [1000, 500]
    assert (options.prefix_pps, options.target_pps) == (50, 5)
    assert options.backends == ("packet", "raw")


def test_by_default_nothing_is_limited() -> None:
    options = ping_options(config())
    assert (options.budgets, options.prefix_pps, options.target_pps) == ((), 0, 0)
    assert options.backends == engines.DEFAULT_BACKENDS


@pytest.mark.parametrize(
    ("able", "backends", "missing"),
    [
        ({"raw_icmp", "raw_trace"}, ("header", "raw"), set()),
        ({"raw_icmp", "raw_trace"}, ("datagram",), {TaskKind.PING, TaskKind.TRACE}),
        ({"datagram_icmp"}, ("header", "raw", "datagram"), set()),
        ({"datagram_icmp"}, ("packet",), {TaskKind.PING, TaskKind.TRACE}),
        (set(), ("header", "raw", "datagram"), {TaskKind.PING, TaskKind.TRACE}),
    ],
)
def test_what_may_not_be_measured_depends_on_what_is_allowed_and_chosen(
    able: set[str], backends: tuple[str, ...], missing: set[TaskKind]
) -> None:
    found = missing_kinds(config(ping_backends=backends), dict.fromkeys(able, True))
    assert set(found) == missing


async def test_both_families_engines_share_the_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    opened: list[dict[str, Any]] = []

    def open_native(family: int, **options: Any) -> MemoryEchoEngine:
        opened.append(options)
        return MemoryEchoEngine(clock, family, lambda _: (), backend="raw")

    monkeypatch.setattr(icmp, "EchoEngine", open_native)
    monkeypatch.setattr(engines, "processors", lambda: 1)
    settings = config(packets_per_s=100, ping_packets_per_s=50, target_packets_per_s=5)
    async with opened_probers(settings, clock, frozenset({"203.0.113.9"})) as probers:
        ping = probers[TaskKind.PING]
        for host in ("8.8.8.8", "2606:4700::1"):
            prepared = await ping.prepare_all(PingSpec(host=host))  # type: ignore[attr-defined]
            assert [run.address for run in prepared.runs] == [host]
        record = Recorder(clock)
        await measure(ping, PingSpec(host="203.0.113.9"), record)  # this host's own
    first, second = opened
    assert first["budgets"] == second["budgets"]
    assert all(a is b for a, b in zip(first["budgets"], second["budgets"], strict=True))
    assert (first["prefix_pps"], first["target_pps"]) == (0, 5)
    assert record.measurement().outcome == "rejected"


async def test_all_kinds_have_one_policy_so_that_it_can_change_for_all_at_once() -> None:
    async with opened_probers(config(), ManualClock(), frozenset()) as probers:
        made: dict[TaskKind, Any] = dict(probers)
        policy = made[TaskKind.DNS].policy
        assert made[TaskKind.PING].resolver.policy is policy
        for kind in (TaskKind.HTTP, TaskKind.TCP, TaskKind.TRACE):
            assert made[kind]._resolver.policy is policy
