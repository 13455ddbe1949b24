"""Agents that claim and report a thousand leases at a time, and people who ask meanwhile.

usage: python -m benches.server_load URL --leases N [--rate R --operators URL]

Four agents take all leases that there are, as fast as they are given. With --rate they take no more
than so many a second together; then every call of agents and operators is made beside them, and
timed. Prints one JSON object: leases a second, and with --rate milliseconds of each call.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import msgspec
import uvloop

AGENTS = 4
BATCH = 1000
EXTENDED = 100  # leases of one extension
BESIDE_S = 0.05  # between two rounds of calls beside the leases
HEADERS = {"Netsonde-Protocol": "1", "Content-Type": "application/json"}
ITEM = (
    b'{"lease_id":%d,"outcome":"ok","started_at":"2026-11-23T12:00:00.123456789Z",'
    b'"duration_ms":12.25,"observations":[{"name":"tcp_connected","value":'
    b'{"rtt_ms":12.25,"address":"192.0.2.1"}}],"env":{"version":"1.0.0"}}'
)


class Granted(msgspec.Struct):
    """What is read of a lease."""

    lease_id: int


class Claimed(msgspec.Struct):
    """What is read of a claim."""

    leases: list[Granted]


class Caller:
    """Makes calls, and keeps how long each took."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.took_ms: dict[str, list[float]] = defaultdict(list)
        self._session = session

    async def call(
        self, name: str, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> bytes:
        """Make one call.

        Raises:
            AssertionError: it was refused.
        """
        begun_ns = time.perf_counter_ns()
        async with self._session.request(method, url, data=body, headers=headers) as response:
            answer = await response.read()
        self.took_ms[name].append((time.perf_counter_ns() - begun_ns) / 1e6)
        if response.status not in (200, 201, 404) or (response.status == 404 and name != "config"):
            raise AssertionError(f"{name} was answered {response.status}: {answer[:200]!r}")
        return answer


class Agent:
    """One agent: an identity, and what it holds."""

    def __init__(self, caller: Caller, url: str, number: int) -> None:
        self._caller = caller
        self._url = url
        self._key = f"{number:032x}"
        self._headers: Mapping[str, str] = HEADERS
        self.agent_id = 0
        self.held: list[int] = []

    async def post(self, verb: str, body: bytes) -> bytes:
        """Make one of the agent API's calls."""
        url = f"{self._url}/v1/agents/{verb}"
        return await self._caller.call(verb, "POST", url, body, self._headers)

    async def register(self) -> None:
        """Get an id and a token."""
        wanted = {"agent_key": self._key, "hostname": f"probe-{self._key[-1]}"}
        answer = json.loads(await self.post("register", json.dumps(wanted).encode()))
        self.agent_id = answer["agent_id"]
        identity = {"X-Agent-Id": str(self.agent_id), "X-Agent-Token": answer["auth_token"]}
        self._headers = HEADERS | identity

    async def work(self) -> int:
        """Take a batch from claim to report; return how many leases it was."""
        claim = b'{"agent_id":%d,"capacities":{"tcp":%d},"wait_ms":0}' % (self.agent_id, BATCH)
        leases = msgspec.json.decode(await self.post("claim", claim), type=Claimed).leases
        self.held = [lease.lease_id for lease in leases]
        if leases:
            items = b",".join([ITEM % lease_id for lease_id in self.held])
            body = b'{"agent_id":%d,"completed":[%b],"cancelled":[]}' % (self.agent_id, items)
            answer = await self.post("report", body)
            if answer.count(b'"accepted"') != len(leases):
                raise AssertionError("a result was not taken")
        return len(leases)

    async def beside(self) -> None:
        """Make the other calls."""
        await self.post("heartbeat", b'{"agent_id":%d}' % self.agent_id)
        ids = json.dumps(self.held[:EXTENDED]).encode()
        extend = b'{"agent_id":%d,"lease_ids":%b,"extend_by_ms":20000}' % (self.agent_id, ids)
        await self.post("extend", extend)
        url = f"{self._url}/v1/agents/config"
        await self._caller.call("config", "GET", url, None, self._headers)


async def work_all(agent: Agent) -> int:
    """Work until there is nothing left; return how many leases it was."""
    total = 0
    while count := await agent.work():
        total += count
    return total


async def work_paced(agent: Agent, gap_s: float, until_s: float) -> int:
    """Work at a pace; return how many leases it was."""
    total, next_s = 0, time.monotonic()
    while time.monotonic() < until_s and (count := await agent.work()):
        total += count
        next_s += gap_s
        await asyncio.sleep(max(next_s - time.monotonic(), 0))
    return total


async def operate(caller: Caller, url: str) -> None:
    """Ask what people ask."""
    for name, path in (
        ("results", "/v1/results?limit=100&order=desc"),
        ("queues", "/v1/queues"),
        ("agents", "/v1/agents"),
        ("checks", "/v1/checks"),
    ):
        await caller.call(name, "GET", url + path, None, HEADERS)
    check = b'{"kind":"dns","targets":["example.net"],"every_ms":3600000,"enabled":false}'
    made = await caller.call("new check", "POST", f"{url}/v1/checks", check, HEADERS)
    where = f"{url}/v1/checks/{json.loads(made)['check_id']}"
    await caller.call("delete check", "DELETE", where, None, HEADERS)
    tasks = b'[{"kind":"dns","spec":{"query":"example.net"}}]'
    await caller.call("new task", "POST", f"{url}/v1/tasks", tasks, HEADERS)


async def again(work: Callable[[], Awaitable[None]], until_s: float) -> None:
    """Do something now and then."""
    while time.monotonic() < until_s:
        await work()
        await asyncio.sleep(BESIDE_S)


async def run(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """Take the leases and say how fast that was."""
    async with aiohttp.ClientSession() as session:
        caller = Caller(session)
        agents = [Agent(caller, chosen.url, number) for number in range(1, AGENTS + 1)]
        for agent in agents:
            await agent.register()
        caller.took_ms.clear()
        begun_s = time.monotonic()
        if chosen.rate is None:
            counts = [*await asyncio.gather(*map(work_all, agents))]
        else:
            until_s = begun_s + chosen.leases / chosen.rate
            gap_s = AGENTS * BATCH / chosen.rate
            beside = [again(agent.beside, until_s) for agent in agents]
            beside.append(again(lambda: operate(caller, chosen.operators), until_s))
            paced = [work_paced(agent, gap_s, until_s) for agent in agents]
            others = asyncio.gather(*beside)
            counts = [*await asyncio.gather(*paced)]
            await others
        rate = sum(counts) / (time.monotonic() - begun_s)
    if chosen.rate is None and sum(counts) != chosen.leases:
        raise AssertionError(f"{sum(counts)} leases were there, not {chosen.leases}")
    return {"rate": rate, "calls": {name: _quantiles(ms) for name, ms in caller.took_ms.items()}}


def _quantiles(took_ms: list[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile."""
    if len(took_ms) < 2:
        return took_ms[0], took_ms[0]
    return statistics.median(took_ms), statistics.quantiles(took_ms, n=20)[-1]


def main() -> None:
    """Print what a run measured."""
    parser = argparse.ArgumentParser(prog="server_load", description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--leases", type=int, required=True, help="as many as there are")
    parser.add_argument("--rate", type=float, help="leases a second")
    parser.add_argument("--operators", help="the operator API's address")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
