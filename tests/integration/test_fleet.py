"""An operator runs a fleet: whole agents and the control plane, in memory and over loopback."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from netsonde.agent import Agent, AgentConfig
from netsonde.control_plane.memory import LostResponse
from netsonde.model import TaskKind
from netsonde.server import Server, ServerConfig, serve
from support.commands import netsonde
from support.fleet import Fleet, bodies, make_agent, run_for, started
from support.probers import GatedProber, gated
from support.spools import inline_spools

PING, TCP = TaskKind.PING, TaskKind.TCP
BEAT_S = 16  # longer than between two heartbeats


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" not in request.node.name:
        inline_spools(monkeypatch)


async def order(fleet: Fleet, verb: str, agent_id: int = 1) -> None:
    status, answer, _ = await fleet.operator.operator("POST", f"/v1/agents/{agent_id}/{verb}")
    assert status == 200, answer


async def shown(fleet: Fleet, agent_id: int = 1) -> dict[str, Any]:
    _, answer, _ = await fleet.operator.operator("GET", f"/v1/agents/{agent_id}")
    agent: dict[str, Any] = answer
    return agent


async def test_a_drained_agent_finishes_what_runs_and_stands_by(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers, target_starts_per_s=0.001)
    async with fleet.running(), started(agent) as run:
        # Ten of one target may begin at once and four have a slot; the others wait.
        await fleet.queue(PING, *["t.test"] * 4)
        await run_for(fleet.clock, 1)
        assert len(probers[PING].running) == 4
        await order(fleet, "drain")
        await fleet.queue(PING, "u.test", "v.test")
        await run_for(fleet.clock, BEAT_S)
        now = await shown(fleet)
        assert (now["state"], now["drained"], now["commands"]) == ("draining", True, [])
        assert (now["active_leases"], now["in_flight"]) == (4, {"ping": 4})
        probers[PING].gate.set()
        await run_for(fleet.clock, BEAT_S)
        now = await shown(fleet)
        assert (now["active_leases"], now["health"]["spool"]["rows"]) == (0, 0)
        assert len(await fleet.results()) == 4
        assert await fleet.waiting() == 2
        await run_for(fleet.clock, 300)
        assert not run.ended
        assert (await shown(fleet))["state"] == "draining"

        await order(fleet, "resume")
        await run_for(fleet.clock, BEAT_S + 2)
        assert len(await fleet.results()) == 6
        now = await shown(fleet)
        assert (now["state"], now["drained"], now["commands"]) == ("active", False, [])
        assert agent.counters["orders.drain"] == agent.counters["orders.resume"] == 1


async def test_what_has_not_begun_goes_back_at_once(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers, target_starts_per_s=0.1)
    async with fleet.running(), started(agent):
        await fleet.queue(PING, *["t.test"] * 4)
        probers[PING].gate.set()
        for _ in range(3):
            await run_for(fleet.clock, 1)
            await fleet.queue(PING, *["t.test"] * 4)
        await run_for(fleet.clock, 1)
        held = (await shown(fleet))["in_flight"]["ping"]
        begun = probers[PING].started
        assert held == 4
        assert begun == 10, "the burst; the next waits for its turn at the target"
        await order(fleet, "drain")
        await run_for(fleet.clock, BEAT_S)
        assert (await shown(fleet))["in_flight"] == {}
        assert len(await fleet.results()) == probers[PING].started
        assert sum(len(body.get("lease_ids", ())) for body in bodies(transport, "release")) > 0
        assert (await fleet.counters()).get("expired", 0) == 0


async def test_standing_leases_come_back_with_the_resume(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    probers[PING].gate.set()
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent):
        check = {"kind": "ping", "targets": ["t.test"], "every_ms": 10_000}
        everywhere = {"select": {"labels": {}, "all": True}}
        await fleet.operator.operator("POST", "/v1/checks", check | everywhere)
        await run_for(fleet.clock, 25)
        assert (await shown(fleet))["in_flight"] == {"ping": 1}
        await order(fleet, "drain")
        await run_for(fleet.clock, BEAT_S)
        before = probers[PING].started
        await run_for(fleet.clock, 60)
        assert probers[PING].started == before
        assert (await shown(fleet))["in_flight"] == {}
        await order(fleet, "resume")
        await run_for(fleet.clock, BEAT_S + 30)
        assert probers[PING].started >= before + 3


async def test_a_process_that_begins_drained_claims_nothing(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    probers[PING].gate.set()
    async with fleet.running():
        async with started(make_agent(fleet.clock, tmp_path, fleet.transport(), probers)):
            await run_for(fleet.clock, 1)
            await order(fleet, "drain")
            await run_for(fleet.clock, BEAT_S)
        async with started(make_agent(fleet.clock, tmp_path, fleet.transport(), probers)):
            await fleet.queue(PING, "t.test")
            await run_for(fleet.clock, BEAT_S)
            assert (await shown(fleet))["state"] == "draining"
            assert probers[PING].started == 0
            await order(fleet, "resume")
            await run_for(fleet.clock, BEAT_S)
            assert len(await fleet.results()) == 1


async def test_lost_answers_repeat_no_order(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        await run_for(fleet.clock, 1)
        await order(fleet, "drain")
        transport.inject(LostResponse(), path_end="/heartbeat", times=3)
        await run_for(fleet.clock, 3 * BEAT_S)
        assert agent.counters["orders.drain"] == 1
        now = await shown(fleet)
        assert (now["state"], now["commands"]) == ("draining", [])


async def test_a_drained_agent_ends_when_it_is_told_to(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent) as run:
        await fleet.queue(PING, "t.test")
        await run_for(fleet.clock, 1)
        await order(fleet, "drain")
        await run_for(fleet.clock, BEAT_S)
        agent.drain()
        await order(fleet, "resume")
        await fleet.queue(PING, "u.test")
        await run_for(fleet.clock, BEAT_S)
        assert agent.counters["orders.resume"] == 1
        assert not run.ended, "what runs has its time"
        probers[PING].gate.set()
        await run_for(fleet.clock, BEAT_S)
        assert run.ended
        assert probers[PING].started == 1, "a resume does not hold up the end"


async def test_a_revoked_agent_stops_keeps_its_spool_and_comes_back(
    fleet: Fleet, tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent) as run:
        check = {"kind": "ping", "targets": ["t.test"], "every_ms": 600_000}
        everywhere = {"select": {"labels": {}, "all": True}}
        await fleet.operator.operator("POST", "/v1/checks", check | everywhere)
        await run_for(fleet.clock, 2)
        assert len(probers[PING].running) == 1
        await order(fleet, "revoke")
        probers[PING].gate.set()
        await run_for(fleet.clock, 60)
        assert await fleet.results() == []
        assert not run.ended
        await fleet.operator.operator("PATCH", "/v1/agents/1", {"disabled": False})
        await run_for(fleet.clock, 400)
        first, second = await fleet.results()
        assert (first["tick"], second["tick"]) == (0, 0)
        assert first["task_id"] < second["task_id"], "what it measured before is not lost"
        await fleet.queue(TCP, "u.test")
        probers[TCP].gate.set()
        await run_for(fleet.clock, 60)
        assert len(await fleet.results()) == 3


# ── over loopback, by the command line ──


@asynccontextmanager
async def real(folder: Path, probers: dict[TaskKind, GatedProber]) -> AsyncIterator[Server]:
    """Run a control plane on a database and an agent, over loopback."""
    settings = ServerConfig(
        listen="127.0.0.1:0",
        operator_listen="127.0.0.1:0",
        database=folder / "server.db",
        heartbeat_interval_ms=200,
        max_attempts=1,
        shutdown_timeout_s=2.0,
    )
    async with serve(settings) as server, asyncio.TaskGroup() as group:
        agent = Agent(
            AgentConfig(
                control_plane=server.agent_url,
                state_dir=folder / "agent",
                hostname="probe-1",
                capacities=dict.fromkeys(TaskKind, 4),
            ),
            probers=probers,
        )
        running = group.create_task(agent.run())
        try:
            yield server
        finally:
            agent.drain()
            await running


async def command(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"NETSONDE_OPERATOR_URL": server.operator_url, "NO_COLOR": "1"}
    return await asyncio.to_thread(netsonde, *words, env=environment)


async def values(server: Server, *words: str) -> list[dict[str, Any]]:
    done = await command(server, *words, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def until(is_true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await is_true():  # each look is a process, which takes its time
            pass


async def test_a_real_fleet_is_run_from_the_command_line(
    tmp_path: Path, probers: dict[TaskKind, GatedProber]
) -> None:
    async with real(tmp_path, probers) as server:

        async def is_there() -> bool:
            return [one["state"] for one in await values(server, "agents")] == ["active"]

        async def is_drained() -> bool:
            (agent,) = await values(server, "agents", "show", "probe-1")
            return agent["state"] == "draining" and not agent["commands"]

        async def is_active() -> bool:
            (agent,) = await values(server, "agents", "show", "1")
            return agent["state"] == "active" and not agent["commands"]

        await until(is_there)
        done = await command(server, "agents", "drain", "probe-1")
        assert (done.returncode, done.stderr) == (0, "")
        assert "agent 1 (probe-1)" in done.stdout
        await until(is_drained)
        probers[TCP].gate.set()
        made = await command(server, "check", "add", "tcp", "127.0.0.1:9")
        assert made.returncode == 0, made.stderr
        (queues,) = await values(server, "queues")
        assert [(one["kind"], one["ready"]) for one in queues["totals"]] == [("tcp", 1)]
        assert (await command(server, "agents", "resume", "1")).returncode == 0
        await until(is_active)

        async def has_result() -> bool:
            return len(await values(server, "results")) == 1

        await until(has_result)

        probers[TaskKind.DNS].gate.set()
        await _bury(server, tmp_path)
        (letter,) = await values(server, "dead-letters", "list")
        refused = await command(server, "dead-letters", "requeue", "--all")
        assert refused.returncode == 2
        assert "--yes" in refused.stderr
        (answer,) = await values(server, "dead-letters", "requeue", "--all", "--yes")
        assert answer == {"requeued": 1, "more": False}
        assert await values(server, "dead-letters", "list") == []

        async def is_done() -> bool:
            found = await values(server, "results")
            return {one["outcome"] for one in found if one["task_id"] == letter["task_id"]} == {
                "ok"
            }

        await until(is_done)
        await _revoke(server)
        await until(is_active)


async def _revoke(server: Server) -> None:
    """Shut the first agent out and let it in again."""
    refused = await command(server, "agents", "revoke", "probe-1")
    assert refused.returncode == 2
    done = await command(server, "agents", "revoke", "probe-1", "--yes")
    assert done.returncode == 0, done.stderr
    (agent,) = await values(server, "agents", "show", "probe-1")
    assert (agent["revoked"], agent["disabled"]) == (True, True)
    assert (await command(server, "agents", "drain", "nobody")).returncode == 2
    (agent,) = await values(server, "agents", "enable", "probe-1")
    assert (agent["revoked"], agent["disabled"]) == (False, False)


async def _bury(server: Server, folder: Path) -> None:
    """Let a task die: its only attempt cannot be measured."""
    broken = gated()
    broken[TaskKind.DNS].gate.set()
    broken[TaskKind.DNS].raises.extend([RuntimeError("broken")])
    agent = Agent(
        AgentConfig(
            control_plane=server.agent_url,
            state_dir=folder / "other",
            hostname="probe-2",
            capacities=dict.fromkeys(TaskKind, 0) | {TaskKind.DNS: 1},
        ),
        probers={TaskKind.DNS: broken[TaskKind.DNS]},
    )
    assert (await command(server, "agents", "drain", "probe-1")).returncode == 0
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run())
        assert (await command(server, "check", "add", "dns", "example.net")).returncode == 0

        async def is_dead() -> bool:
            return len(await values(server, "dead-letters", "list")) == 1

        await until(is_dead)
        agent.drain()
        await running
    assert (await command(server, "agents", "resume", "probe-1")).returncode == 0
