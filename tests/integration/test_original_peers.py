"""Original peers over HTTP: the original agent on our server, our agent on the original's servers.

Hours of it, in virtual time and without sockets, are in tests/sim/test_original_peers.py.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import aiohttp
import pytest

from netsonde.agent import Agent, AgentConfig
from netsonde.clock import NS_PER_MS, SystemClock
from netsonde.model import TaskKind
from netsonde.server import ServerConfig, serve
from support.original import GoServer, OriginalAgent, RustServer
from support.original.prober import Script, scripted
from support.original.sockets import carrying, serving
from support.probers import TimedProber

LIMIT_S = 20
TASKS = [
    {"kind": "dns", "spec": {"query": "up.example"}},
    {"kind": "tcp", "spec": {"host": "up.example", "port": 443}},
    {"kind": "ping", "spec": {"host": "up.example"}},
    {"kind": "trace", "spec": {"host": "up.example"}},
]
CAPACITIES = {TaskKind.TCP: 2, TaskKind.PING: 2}


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that the other side does."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110 (it happens behind sockets)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("base", ["/v1/agents/", "/v1/agents", "/", "/api/v1/"])
async def test_an_original_agent_works_on_our_server(tmp_path: Path, base: str) -> None:
    config = ServerConfig(
        listen="127.0.0.1:0",
        operator_listen="127.0.0.1:0",
        database=tmp_path / "server.db",
        legacy_hold_ms=500,
    )
    handlers = scripted(lambda _: Script(duration_s=0.05))
    async with (
        serve(config) as server,
        carrying(server.agent_url) as carry,
        asyncio.TaskGroup() as group,
        aiohttp.ClientSession() as http,
    ):
        async with http.post(f"{server.operator_url}/v1/tasks", json=TASKS) as response:
            assert response.status == 200
        agent = OriginalAgent(f"{server.agent_url}{base}", carry, handlers)
        running = group.create_task(agent.run())
        await until(lambda: agent.counters["completed"] == len(TASKS))
        async with http.get(f"{server.operator_url}/v1/results") as response:
            results = (await response.json())["results"]
        assert sorted(result["kind"] for result in results) == ["dns", "ping", "tcp", "trace"]
        assert {result["outcome"] for result in results} == {"ok"}
        await until(lambda: not agent.extender.tracked)
        assert set(agent.client.statuses) == {200}
        running.cancel()


def our_agent(url: str, folder: Path, probers: dict[TaskKind, TimedProber]) -> Agent:
    return Agent(
        AgentConfig(
            control_plane=url,
            state_dir=folder,
            hostname="probe-1",
            capacities=dict.fromkeys(TaskKind, 0) | CAPACITIES,
        ),
        probers=probers,
        rng=Random(1),
    )


async def work_off(server: RustServer | GoServer, folder: Path, ended: Callable[[], bool]) -> None:
    """Let our agent work on a server until all has ended, then drain it."""
    clock = SystemClock()
    probers = {kind: TimedProber(kind, clock, 50 * NS_PER_MS) for kind in CAPACITIES}
    async with serving(server) as url, asyncio.TaskGroup() as group:
        agent = our_agent(url, folder, probers)
        running = group.create_task(agent.run())
        await until(ended)
        agent.drain()
        await running


async def test_our_agent_works_on_the_rust_server(tmp_path: Path) -> None:
    server = RustServer(SystemClock())
    tasks = [server.enqueue("tcp", {"host": f"{name}.example", "port": 443}) for name in "ab"]
    tasks.append(server.enqueue("ping", {"host": "c.example", "count": None}))
    await work_off(server, tmp_path, lambda: bool(server.leases) and not server.open_leases())

    assert sorted(lease.task_id for lease in server.leases.values()) == tasks
    assert {lease.status for lease in server.leases.values()} == {"completed"}
    assert [lease.reports for lease in server.leases.values()] == [1, 1, 1]
    assert server.limited == []


async def test_our_agent_works_on_the_go_server(tmp_path: Path) -> None:
    server = GoServer(SystemClock())
    tasks = {server.enqueue("tcp", {"host": f"{name}.example", "port": 443}) for name in "abc"}
    tasks.add(server.enqueue("whois", {"name": "d.example"}))  # a kind that nobody knows
    await work_off(server, tmp_path, lambda: len(server.results) == len(tasks))

    assert {result.task_id for result in server.results} == tasks
    assert sorted(result.status for result in server.results) == ["cancelled", "ok", "ok", "ok"]
    assert server.leases == {}
    assert set(server.statuses) <= {200, 204}
