"""Whole agents and the real control plane: what happens when things go wrong in between."""

import asyncio
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from netsonde import wire
from netsonde.agent import Agent, AgentConfig
from netsonde.clock import NS_PER_S
from netsonde.control_plane.memory import Answered, Delayed, LostRequest, LostResponse
from netsonde.errors import StorageError
from netsonde.model import TaskKind
from netsonde.server import ServerConfig, serve
from support.fleet import Fleet, bodies, make_agent, run_for, started
from support.probers import GatedProber, gated
from support.processes import call
from support.spools import inline_spools

PING, DNS, TCP = TaskKind.PING, TaskKind.DNS, TaskKind.TCP


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" not in request.node.name:
        inline_spools(monkeypatch)


def targets(count: int, prefix: str = "t") -> list[str]:
    return [f"{prefix}{number}.test" for number in range(count)]


def open_all(probers: dict[TaskKind, GatedProber]) -> None:
    for prober in probers.values():
        prober.gate.set()


async def test_every_task_of_every_kind_gets_one_result(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    open_all(probers)
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent) as run:
        ids = []
        for kind in TaskKind:
            ids += await fleet.queue(kind, *targets(10))
        await run_for(fleet.clock, 5)

        results = await fleet.results()
        assert sorted(result["task_id"] for result in results) == sorted(ids)
        assert {result["outcome"] for result in results} == {"ok"}
        assert agent.counters["reporter.status_accepted"] == 50
        agent.drain()
        await run_for(fleet.clock, 1)
        assert run.ended


async def test_an_outage_delays_results_and_loses_none(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        ids = await fleet.queue(PING, *targets(4))
        await run_for(fleet.clock, 1)
        transport.is_partitioned = True
        open_all(probers)
        await run_for(fleet.clock, 10)
        assert await fleet.results() == []
        assert probers[PING].started == 4

        transport.is_partitioned = False
        await run_for(fleet.clock, 60)
        results = await fleet.results()

    assert sorted(result["task_id"] for result in results) == sorted(ids)
    assert probers[PING].started == 4


async def test_a_long_outage_ends_measurements_at_their_deadlines(
    fleet: Fleet, tmp_path: Path
) -> None:
    """The original never let a lease expire on the Go server, whose deadlines it misread."""
    probers = gated()
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        await fleet.queue(PING, "slow.test")
        await run_for(fleet.clock, 1)
        transport.is_partitioned = True
        await run_for(fleet.clock, 17)
        assert len(probers[PING].running) == 1
        await run_for(fleet.clock, 4)  # the term is 20 s
        assert probers[PING].running == []

        transport.is_partitioned = False
        open_all(probers)
        await run_for(fleet.clock, 120)
        every = await fleet.results("&final=any")

    # The server gave the task out again; the attempt that was cut short is known, with what it saw.
    assert [result["outcome"] for result in await fleet.results()] == ["ok"]
    assert "ok" in {result["outcome"] for result in every}
    assert agent.counters["worker.outcome_cancelled"] == 1


async def test_a_restarted_agent_reports_its_spool_first(fleet: Fleet, tmp_path: Path) -> None:
    """The original kept results in memory, and lost them with the process."""
    probers = gated()
    open_all(probers)
    transport = fleet.transport()
    async with fleet.running():
        ids = await fleet.queue(PING, *targets(40))
        transport.inject(LostRequest(), path_end="/report", times=10_000)
        async with started(make_agent(fleet.clock, tmp_path, transport, probers)) as first:
            await run_for(fleet.clock, 3)
            assert await fleet.results() == []
            assert probers[PING].started == 40
            first.kill()

        later = fleet.transport()
        async with started(make_agent(fleet.clock, tmp_path, later, gated())):
            await run_for(fleet.clock, 2)
            results = await fleet.results()
            assert sorted(result["task_id"] for result in results) == sorted(ids)
            order = [request.path.rpartition("/")[2] for request in later.requests]
            assert order.index("report") < order.index("claim"), "old results come first"
            (registered, *_) = bodies(later, "register")
            assert registered["agent_key"] == bodies(transport, "register")[0]["agent_key"]
            assert registered["instance_id"] != bodies(transport, "register")[0]["instance_id"]
            await run_for(fleet.clock, 120)

    assert Counter(result["task_id"] for result in await fleet.results()) == Counter(ids)


@pytest.mark.parametrize("verb", ["register", "claim", "extend", "report", "heartbeat"])
@pytest.mark.parametrize(
    "fault",
    [
        LostRequest(),
        LostResponse(),
        Answered(503, b"<html>busy</html>"),
        Answered(200, b"not json"),
        Delayed(3 * NS_PER_S, 3 * NS_PER_S),
    ],
    ids=lambda fault: type(fault).__name__ + str(getattr(fault, "status", "")),
)
async def test_no_fault_of_any_call_loses_or_doubles_a_result(
    fleet: Fleet, tmp_path: Path, verb: str, fault: Delayed
) -> None:
    probers = gated()
    transport = fleet.transport()
    transport.inject(fault, path_end=f"/{verb}", times=6)
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        ids = await fleet.queue(PING, *targets(10))
        await run_for(fleet.clock, 60)
        open_all(probers)
        await run_for(fleet.clock, 240)

    results = await fleet.results()
    assert Counter(result["task_id"] for result in results) == Counter(ids)
    assert {result["outcome"] for result in results} == {"ok"}


async def test_a_claim_whose_answer_was_lost_strands_no_lease(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    open_all(probers)
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        await fleet.queue(PING, *targets(4))
        transport.inject(LostResponse(), path_end="/claim", times=3)
        await run_for(fleet.clock, 4)  # far less than the term of 20 s

        assert len(await fleet.results()) == 4
        claims = bodies(transport, "claim")
        assert len({claim["claim_id"] for claim in claims[:4]}) == 1
    assert (await fleet.counters()).get("expired", 0) == 0


async def test_a_cancelled_check_ends_its_measurement(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    check = {"name": "c", "kind": "ping", "targets": ["slow.test"]}
    async with fleet.running(), started(agent):
        _, made, _ = await fleet.operator.operator("POST", "/v1/checks", check)
        await run_for(fleet.clock, 1)
        assert len(probers[PING].running) == 1
        await fleet.operator.operator("POST", f"/v1/checks/{made['check_id']}/cancel")
        await run_for(fleet.clock, 16)  # until the next extension or heartbeat

        assert probers[PING].running == []
        assert agent.counters["worker.outcome_cancelled"] == 1


async def test_draining_finishes_gives_back_and_reports(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    transport = fleet.transport()
    agent = make_agent(
        fleet.clock, tmp_path, transport, probers, target_starts_per_s=0.001, drain_timeout_s=40
    )
    async with fleet.running(), started(agent) as run:
        # 10 of one target may begin; the other leases wait for their turn, unstarted.
        ids = await fleet.queue(PING, *["same.test"] * 4)
        await fleet.queue(DNS, *["same.test"] * 4)
        await fleet.queue(TCP, *["same.test"] * 4)
        await run_for(fleet.clock, 1)
        assert sum(prober.started for prober in probers.values()) == 10
        assert await fleet.waiting() == 0

        agent.drain()
        agent.drain()
        await run_for(fleet.clock, 1)
        assert await fleet.waiting() == 2
        claims = len(bodies(transport, "claim"))
        await run_for(fleet.clock, 16)
        assert not run.ended
        (given_back,) = (set(body["lease_ids"]) for body in bodies(transport, "release"))
        beats = [one for one in bodies(transport, "heartbeat") if one["state"] == "draining"]
        assert beats
        assert not any(given_back & set(beat["active_leases"]["ids"]) for beat in beats)
        assert len(given_back) == 2
        extended = {one for body in bodies(transport, "extend") for one in body["lease_ids"]}
        assert len(extended) == 10
        assert not given_back & extended

        open_all(probers)
        await run_for(fleet.clock, 1)
        assert run.ended
        assert len(bodies(transport, "claim")) == claims
        results = await fleet.results()
        assert set(ids) <= {result["task_id"] for result in results}
        assert {result["outcome"] for result in results} == {"ok"}
        assert len(results) == 10
    assert (await fleet.counters())["returned"] == 2


async def test_draining_gives_up_on_what_does_not_end(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers, drain_timeout_s=2)
    async with fleet.running(), started(agent) as run:
        await fleet.queue(PING, *targets(3))
        await run_for(fleet.clock, 1)
        agent.drain()
        await run_for(fleet.clock, 1.5)
        assert not run.ended
        await run_for(fleet.clock, 1.5)
        assert run.ended
        every = await fleet.results("&final=any")

    assert agent.counters["worker.outcome_cancelled"] == 3
    assert {result["outcome"] for result in every} <= {"cancelled"}


async def test_draining_in_an_outage_keeps_the_results_and_returns(
    fleet: Fleet, tmp_path: Path
) -> None:
    """The original's shutdown could hang for ever on a report it retried."""
    probers = gated()
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running():
        async with started(agent) as run:
            ids = await fleet.queue(PING, *targets(4))
            await run_for(fleet.clock, 1)
            transport.is_partitioned = True
            open_all(probers)
            agent.drain()
            await run_for(fleet.clock, 11)
            assert run.ended
        assert await fleet.results() == []
        async with started(make_agent(fleet.clock, tmp_path, fleet.transport(), gated())):
            await run_for(fleet.clock, 2)

    assert Counter(one["task_id"] for one in await fleet.results()) == Counter(ids)


async def test_an_agent_that_waits_for_its_control_plane_can_be_drained(
    fleet: Fleet, tmp_path: Path
) -> None:
    transport = fleet.transport()
    transport.is_partitioned = True
    agent = make_agent(fleet.clock, tmp_path, transport, gated())
    async with started(agent) as run:
        await run_for(fleet.clock, 600)
        assert not run.ended
        assert 3 <= len(bodies(transport, "register")) < 60
        agent.drain()
        await run_for(fleet.clock, 0.1)
        assert run.ended


async def test_a_kind_that_is_full_holds_up_no_other(fleet: Fleet, tmp_path: Path) -> None:
    """In the original one full queue stopped the dispatcher for every kind."""
    probers = gated()
    probers[DNS].gate.set()
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent):
        await fleet.queue(PING, *targets(100))
        await run_for(fleet.clock, 1)
        assert len(probers[PING].running) == 4
        for number in range(10):
            await fleet.queue(DNS, *targets(10, f"d{number}-"))
            await run_for(fleet.clock, 1)
        assert len(await fleet.results()) == 100
        assert len(probers[PING].running) == 4
    assert await fleet.waiting() == 96


async def test_freed_slots_are_claimed_for_at_once_also_while_reports_fail(
    fleet: Fleet, tmp_path: Path
) -> None:
    probers = gated()
    transport = fleet.transport()
    transport.inject(Answered(503, b""), path_end="/report", times=10_000)
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        await fleet.queue(PING, *targets(20))
        await run_for(fleet.clock, 1)
        assert probers[PING].started == 4  # and the other kinds' claim is held
        open_all(probers)
        await run_for(fleet.clock, 1)

        assert probers[PING].started == 20
        assert await fleet.results() == []


async def test_hundreds_of_leases_do_not_wedge_the_agent(fleet: Fleet, tmp_path: Path) -> None:
    """The original deadlocked after about 64 leases: its extender's channel was full."""
    probers = gated()
    transport = fleet.transport()
    capacities = dict.fromkeys(TaskKind, 400)
    agent = make_agent(fleet.clock, tmp_path, transport, probers, capacities=capacities)
    transport.inject(Answered(500, b"{}"), path_end="/extend", times=3)
    async with fleet.running(), started(agent):
        await fleet.queue(PING, *targets(400))
        await run_for(fleet.clock, 90)  # through several extensions
        assert len(probers[PING].running) == 400
        open_all(probers)
        await run_for(fleet.clock, 3)

    results = await fleet.results()
    assert len(results) == 400
    assert {result["attempt"] for result in results} == {1}


async def test_a_prober_that_raises_is_reported(fleet: Fleet, tmp_path: Path) -> None:
    """In the original a handler that failed or panicked left its lease unreported."""
    probers = gated()
    open_all(probers)
    probers[TCP].raises.extend([RuntimeError("a bug")] * 3)
    agent = make_agent(fleet.clock, tmp_path, fleet.transport(), probers)
    async with fleet.running(), started(agent):
        await fleet.queue(TCP, "a.test")
        await run_for(fleet.clock, 60)
        every = await fleet.results("&final=any")

    assert {result["outcome"] for result in every} == {"agent_error"}
    assert agent.counters["worker.outcome_agent_error"] == 3


async def test_a_full_spool_stops_claims_and_loses_nothing(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    open_all(probers)
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers, spool_rows=6)
    async with fleet.running(), started(agent):
        transport.inject(Answered(507, b""), path_end="/report", times=100_000)
        ids = await fleet.queue(PING, *targets(30))
        await run_for(fleet.clock, 15)
        assert probers[PING].started < 20
        assert await fleet.results() == []
        waiting = await fleet.waiting()
        assert waiting > 10

        transport._script.clear()
        await run_for(fleet.clock, 120)

    assert Counter(one["task_id"] for one in await fleet.results()) == Counter(ids)


async def test_a_forgotten_token_is_replaced(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    open_all(probers)
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    unauthorized = wire.encode({"error": "ERR_UNAUTHORIZED", "message": "", "retryable": False})
    async with fleet.running(), started(agent):
        await run_for(fleet.clock, 1)
        transport.inject(Answered(401, unauthorized), path_end="/claim")
        await fleet.queue(PING, *targets(4))
        await run_for(fleet.clock, 60)

    assert len(await fleet.results()) == 4
    assert len(bodies(transport, "register")) == 2


async def test_two_agents_share_the_work_and_never_a_state_directory(
    fleet: Fleet, tmp_path: Path
) -> None:
    first, second = gated(), gated()
    open_all(first)
    open_all(second)
    capacities = dict.fromkeys(TaskKind, 2)
    async with (
        fleet.running(),
        started(
            make_agent(fleet.clock, tmp_path / "a", fleet.transport(), first, capacities=capacities)
        ),
        started(
            make_agent(
                fleet.clock, tmp_path / "b", fleet.transport(), second, capacities=capacities
            )
        ),
    ):
        await run_for(fleet.clock, 1)
        ids = await fleet.queue(PING, *targets(40))
        await run_for(fleet.clock, 20)
        results = await fleet.results()
        assert Counter(one["task_id"] for one in results) == Counter(ids)
        assert {one["agent_id"] for one in results} == {1, 2}

        third = make_agent(fleet.clock, tmp_path / "a", fleet.transport(), gated())
        with pytest.raises(StorageError, match="is in use by another process"):
            await third.run()


async def test_heartbeats_say_how_the_agent_feels(fleet: Fleet, tmp_path: Path) -> None:
    probers = gated()
    transport = fleet.transport()
    agent = make_agent(fleet.clock, tmp_path, transport, probers)
    async with fleet.running(), started(agent):
        await fleet.queue(PING, *targets(2))
        await run_for(fleet.clock, 40)
        beats = bodies(transport, "heartbeat")

    assert 3 <= len(beats) <= 4
    last = beats[-1]
    assert last["instance_id"] == agent.instance_id
    assert (last["state"], last["active_leases"]["count"]) == ("active", 2)
    assert len(last["active_leases"]["ids"]) == 2
    assert last["health"]["rss_bytes"] > 1 << 20
    assert last["health"]["fds"] > 3
    assert last["health"]["spool"] == {"rows": 0, "bytes": 0, "oldest_ms": 0, "full": False}
    assert [beat["seq"] for beat in beats] == list(range(1, len(beats) + 1))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


async def test_a_real_agent_measures_over_real_sockets(tmp_path: Path) -> None:
    config = ServerConfig(listen="127.0.0.1:0", operator_listen="127.0.0.1:0")
    async with serve(config) as server, asyncio.TaskGroup() as group:
        host, _, port = server.agent_url.removeprefix("http://").partition(":")
        agent = Agent(
            AgentConfig(
                control_plane=server.agent_url,
                state_dir=tmp_path,
                targets=("127.0.0.0/8",),
                capacities={TaskKind.PING: 0, TaskKind.TRACE: 0},
            )
        )
        running = group.create_task(agent.run())
        task = {"kind": "tcp", "spec": {"host": host, "port": int(port)}}
        denied = {"kind": "tcp", "spec": {"host": "10.1.2.3", "port": 80}}
        await asyncio.to_thread(call, f"{server.operator_url}/v1/tasks", [task, denied] * 5)
        results: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while len(results) < 10:
                url = f"{server.operator_url}/v1/results?limit=100&wait_ms=1000"
                results = (await asyncio.to_thread(call, url))["results"]
        agent.drain()
        async with asyncio.timeout(10):
            await running

    outcomes = Counter(result["outcome"] for result in results)
    assert outcomes == {"ok": 5, "rejected": 5}
    assert (tmp_path / "spool.db").exists()
    assert {result["env"]["policy_version"] for result in results} != {None}
