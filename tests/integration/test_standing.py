"""Whole agents with standing leases and the real control plane, under a manual clock."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from netsonde.model import TaskKind
from support.fleet import Fleet, bodies, make_agent, run_for, started
from support.probers import GatedProber
from support.spools import inline_spools

PING = TaskKind.PING
EVERY_S = 10


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    inline_spools(monkeypatch)


async def create(fleet: Fleet, *targets: str, **fields: Any) -> str:
    """Make a check that every agent runs; return its path."""
    wanted = {"kind": "ping", "targets": targets or ("t.test",), "every_ms": EVERY_S * 1000}
    select = {"labels": {}, "all": True}
    body = wanted | {"select": select} | fields
    status, made, _ = await fleet.operator.operator("POST", "/v1/checks", body)
    assert status == 201, made
    return f"/v1/checks/{made['check_id']}"


async def ticks(fleet: Fleet) -> list[int]:
    return [result["tick"] for result in await fleet.results()]


async def test_a_check_is_claimed_once_and_measured_for_ever(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    probers[PING].gate.set()
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        await run_for(fleet.clock, 2)
        path = await create(fleet, "a.test", "b.test")
        await run_for(fleet.clock, 10 * EVERY_S + 2)
        per_target = Counter(result["spec"]["host"] for result in await fleet.results())
        assert per_target == {"a.test": 11, "b.test": 11}
        assert agent.counters["dispatcher.lease_granted"] == 2
        assert agent.counters["standing.begun"] == 22
        extended = [body["lease_ids"] for body in bodies(transport, "extend")]
        assert extended == [], "not in the first half of an hour"
        await run_for(fleet.clock, 1800)
        assert sum(map(len, (body["lease_ids"] for body in bodies(transport, "extend")))) == 2
        _, check, _ = await fleet.operator.operator("GET", path)
        assert check["missed"] == 0


async def test_a_drain_ends_the_run_in_hand_and_the_next_start_goes_on(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running():
        async with started(agent) as run:
            await create(fleet)
            await run_for(fleet.clock, 3)
            assert probers[PING].started == 1
            agent.drain()
            await run_for(fleet.clock, 1)
            assert await fleet.waiting() == 1, "its lease was given back while its run goes on"
            probers[PING].gate.set()
            await run_for(fleet.clock, 1)
            assert run.ended
        assert await ticks(fleet) == [0]
        again = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
        async with started(again):
            await run_for(fleet.clock, 3)
            assert await ticks(fleet) == [0], "the tick whose period goes on has its result"
            await run_for(fleet.clock, EVERY_S)
        assert await ticks(fleet) == [0, 1]
        assert probers[PING].started == 2
        assert (await fleet.counters()).get("dead", 0) == 0


async def test_a_killed_agent_reports_what_it_spooled_and_runs_no_tick_twice(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    probers[PING].gate.set()
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running():
        async with started(agent):
            await create(fleet)
            await run_for(fleet.clock, 3)
            transport.is_partitioned = True
            await run_for(fleet.clock, 2 * EVERY_S)
            assert await ticks(fleet) == [0]
        again = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
        async with started(again):
            await run_for(fleet.clock, 3)
            assert await ticks(fleet) == [0, 1, 2]
            assert probers[PING].started == 3
            await run_for(fleet.clock, EVERY_S)
        assert await ticks(fleet) == [0, 1, 2, 3]
        assert {result["attempt"] for result in await fleet.results()} == {1}


async def test_a_change_ends_the_old_schedule_and_begins_the_new(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    probers[PING].gate.set()
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent):
        path = await create(fleet)
        await run_for(fleet.clock, EVERY_S + 1)
        change = {"spec": {"count": 2}, "every_ms": 5_000}
        await fleet.operator.operator("PATCH", path, change)
        await run_for(fleet.clock, 60)
        counts = Counter(result["spec"].get("count", 4) for result in await fleet.results())
        assert counts[4] == 2, "what it began after the change is not wanted"
        assert counts[2] >= 60 // 5
        await fleet.operator.operator("DELETE", path)
        await run_for(fleet.clock, 20)
        before = probers[PING].started
        await run_for(fleet.clock, 60)
        assert probers[PING].started == before
        assert agent.counters["standing.ended"] == 2


async def test_an_agent_that_is_disabled_stops_at_its_next_extension(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    probers[PING].gate.set()
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent):
        await create(fleet)
        await run_for(fleet.clock, 5)
        (agent_id,) = {result["agent_id"] for result in await fleet.results()}
        await fleet.operator.operator("PATCH", f"/v1/agents/{agent_id}", {"disabled": True})
        await run_for(fleet.clock, 0.45 * 3600 + 60)
        before = probers[PING].started
        await run_for(fleet.clock, 600)
        assert probers[PING].started == before


async def test_a_slow_target_skips_its_own_ticks_only(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent):
        path = await create(fleet)
        await run_for(fleet.clock, 3.5 * EVERY_S)
        probers[PING].gate.set()
        await run_for(fleet.clock, EVERY_S)
        assert await ticks(fleet) == [0, 4]
        _, check, _ = await fleet.operator.operator("GET", path)
        assert check["missed"] == agent.counters["standing.skipped"] == 3
