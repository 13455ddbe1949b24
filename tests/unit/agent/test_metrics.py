"""What an agent counts, from its parts to the control plane's answer, under a manual clock."""

from pathlib import Path

import pytest

from netsonde.agent.metrics import FAMILIES
from netsonde.clock import ManualClock
from netsonde.exposition import exposition
from netsonde.metrics import Durations, MetricType
from netsonde.model import TaskKind
from support.fleet import Fleet, bodies, make_agent, run_for, started
from support.probers import gated
from support.spools import inline_spools


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    inline_spools(monkeypatch)


async def test_what_an_agent_did_can_be_asked_of_the_control_plane(
    clock: ManualClock, tmp_path: Path
) -> None:
    fleet = Fleet(clock, tmp_path)
    probers = gated()
    probers[TaskKind.PING].gate.set()
    await fleet.queue(TaskKind.PING, "192.0.2.1", "192.0.2.2")
    transport = fleet.transport()
    async with fleet.running(), started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 95)

    async def ask(path: str) -> list[float]:
        status, answer, _ = await fleet.operator.operator("GET", f"/v1/metrics/{path}")
        assert status == 200, answer
        return [
            one["value"] if "value" in one else one["points"][-1][1]
            for one in answer.get("metrics") or answer["series"]
            if "outcome" not in one["labels"] or one["labels"]["outcome"] == "ok"
        ]

    assert await ask("latest?name=netsonde_agent_results_total") == [2]
    assert await ask("query?name=netsonde_agent_results_total&agg=last") == [2]
    assert await ask("latest?name=netsonde_agent_spool_results") == [0]
    sent = bodies(transport, "metrics")
    assert [body["seq"] for body in sent] == [*range(1, len(sent) + 1)]
    assert len(sent) >= 3


async def test_readings_are_of_the_families_and_have_their_labels(
    clock: ManualClock, tmp_path: Path
) -> None:
    fleet = Fleet(clock, tmp_path)
    probers = gated()
    probers[TaskKind.PING].gate.set()
    await fleet.queue(TaskKind.PING, "192.0.2.77")
    agent = make_agent(clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent):
        await run_for(clock, 40)
        assert agent._parts is not None
        agent._parts.reporter.counters["status_of_the_future"] += 2
        readings = agent._parts.metrics.read()
        page = exposition(agent._parts.metrics.read).decode()

    assert {reading.family.name for reading in readings} == {family.name for family in FAMILIES}
    for reading in readings:
        assert len(reading.labels) == len(reading.family.labels)
        is_histogram = reading.family.type is MetricType.HISTOGRAM
        assert isinstance(reading.value, Durations) is is_histogram
    keys = [(reading.family.name, reading.labels) for reading in readings]
    assert len(set(keys)) == len(keys)
    assert 'netsonde_agent_results_total{outcome="ok"} 1.0' in page
    assert 'netsonde_agent_measurement_seconds_count{kind="ping"} 1.0' in page
    assert 'netsonde_agent_reported_total{status="other"} 2.0' in page, "no word is made a label"
    assert "192.0.2" not in page


async def test_metrics_are_never_sent_where_nobody_wants_them(
    clock: ManualClock, tmp_path: Path
) -> None:
    fleet = Fleet(clock, tmp_path)
    transport = fleet.transport()
    agent = make_agent(clock, tmp_path, transport, gated(), metrics_interval_s=0)
    async with fleet.running(), started(agent):
        await run_for(clock, 95)

    assert bodies(transport, "metrics") == []
