"""A backup of a running control plane that takes results, and what is restored of it."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp

from integration.test_server import TASK, Client, config
from netsonde.server import Server, serve
from support.commands import json_lines, netsonde

BATCH = 50


async def test_a_backup_under_load_has_every_result_acknowledged_before_it(tmp_path: Path) -> None:
    state, target, elsewhere = tmp_path / "state", tmp_path / "copy.db", tmp_path / "elsewhere"
    state.mkdir()
    elsewhere.mkdir()
    acknowledged: list[int] = []
    async with (
        aiohttp.ClientSession() as http,
        serve(config(database=state / "server.db", quota_scale=1_000)) as running,
    ):
        agent = Client(http, running.agent_url)
        await agent.register()
        for _ in range(20):
            await measure(http, running, agent, acknowledged)
        async with asyncio.TaskGroup() as group:
            load = group.create_task(measure_forever(http, running, agent, acknowledged))
            before = len(acknowledged)
            done = await asyncio.to_thread(
                netsonde, "server", "backup", str(target), "--state-dir", str(state), "--json"
            )
            assert len(acknowledged) > before, "there was no load"
            load.cancel()
        refused = await asyncio.to_thread(
            netsonde, "server", "restore", str(target), "--state-dir", str(state)
        )
        assert (refused.returncode, "in use" in refused.stderr) == (3, True)
    assert done.returncode == 0, done.stderr
    (answer,) = json_lines(done.stdout)
    assert before <= answer["last_result_id"] <= len(acknowledged) + BATCH
    restored = netsonde("server", "restore", str(target), "--state-dir", str(elsewhere))
    assert restored.returncode == 0, restored.stderr
    async with (
        aiohttp.ClientSession() as http,
        serve(config(database=elsewhere / "server.db")) as running,
    ):
        found = await results(http, running)
        assert found[:before] == acknowledged[:before]
        assert len(found) == len(set(found)) == answer["last_result_id"]
        agent.http, agent.url = http, running.agent_url
        assert await agent.report(acknowledged[0]) == ["duplicate"]
        fresh: list[int] = []
        await measure(http, running, agent, fresh)
        assert min(fresh) > max(acknowledged), "lease ids never go back"


async def measure(
    http: aiohttp.ClientSession, running: Server, agent: Client, acknowledged: list[int]
) -> None:
    async with http.post(f"{running.operator_url}/v1/tasks", json=[TASK] * BATCH) as response:
        assert response.status == 200
    leases = (await agent.post("claim", {"capacities": {"tcp": BATCH}}))["leases"]
    items = [
        {"lease_id": lease["lease_id"], "outcome": "ok", "observations": []} for lease in leases
    ]
    answer = await agent.post("report", {"completed": items, "cancelled": []})
    acknowledged += [one["lease_id"] for one in answer["results"] if one["status"] == "accepted"]


async def measure_forever(
    http: aiohttp.ClientSession, running: Server, agent: Client, acknowledged: list[int]
) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await measure(http, running, agent, acknowledged)


async def results(http: aiohttp.ClientSession, running: Server) -> list[int]:
    found: list[int] = []
    cursor = ""
    while True:
        url = f"{running.operator_url}/v1/results?limit=1000{cursor}"
        async with http.get(url) as response:
            page = await response.json()
        if not page["results"]:
            return found
        found += [one["lease_id"] for one in page["results"]]
        cursor = f"&cursor={page['cursor']}"
