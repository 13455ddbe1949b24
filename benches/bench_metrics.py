"""Metrics of a fleet: how long a question takes while a hundred agents send theirs.

A control plane on SQLite holds an hour of 100 agents with 500 series each, an envelope a minute.
Then operators ask, one question after another, while envelopes come as a fleet sends them that does
so every thirty seconds, which is the agent's default. Everything goes through the whole API but the
sockets. The budget is the 95th percentile of each kind of question; what an envelope takes is shown
beside it.
"""

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from benches.harness import OURS, Bench, Budget, Scale
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.server.api import ApiRequest
from netsonde.server.config import ServerConfig
from netsonde.server.core import ControlPlane
from netsonde.server.handlers import AgentApi
from netsonde.server.operator import OperatorApi
from netsonde.server.store import SqliteStore, ThreadWriter

AGENTS = {Scale.ONCE: 4, Scale.QUICK: 100, Scale.FULL: 100}
MINUTES = {Scale.ONCE: 3, Scale.QUICK: 60, Scale.FULL: 60}
ASKED = {Scale.ONCE: 2, Scale.QUICK: 20, Scale.FULL: 60}  # questions of each kind
SERIES = 500
KINDS = ("dns", "http", "ping", "tcp", "trace")
QUESTIONS = {
    "one agent, rate": "query?name=c3_total&agg=rate&agent={agent}&step=1m",
    "fleet, rate": "query?name=c3_total&agg=rate&step=1m",
    "latest of one agent": "latest?agent={agent}&limit=1000",
}
ROOT = Path(__file__).resolve().parent.parent
P95_MS_MAX = 250
INTERVAL_S = 30


class Plane:
    """A control plane on a real disk under a manual clock, so that an hour passes at once."""

    def __init__(self, folder: Path, agents: int) -> None:
        self.clock = ManualClock()
        store = SqliteStore.open(folder / "server.db")
        self.writer = ThreadWriter(store, store.reader, self.clock)
        config = ServerConfig(quota_scale=1000)
        self.plane = ControlPlane(config, self.clock, self.writer, store, random.Random(1))
        self._agents = AgentApi(self.plane)
        self._operators = OperatorApi(self.plane)
        self._tokens: dict[int, str] = {}
        self._seq = 0
        self._count = agents

    async def enrol(self) -> None:
        """Register the fleet."""
        for number in range(self._count):
            body = {"hostname": f"probe-{number}", "agent_key": f"{number:032x}"}
            answer = await self._call("/register", {}, body)
            self._tokens[answer["agent_id"]] = answer["auth_token"]

    async def minute(self, each: Callable[[], Awaitable[object]] | None = None) -> list[float]:
        """Let every agent send an envelope, a minute pass; return the durations in ms."""
        self._seq += 1
        took = []
        for agent_id, token in self._tokens.items():
            headers = {"x-agent-id": str(agent_id), "x-agent-token": token}
            body = {"agent_id": agent_id, **envelope(self._seq)}
            begun = time.perf_counter()
            await self._call("/metrics", headers, body)
            took.append((time.perf_counter() - begun) * 1000)
            if each is not None:
                await each()
        for _ in range(6):
            await self.clock.advance(10 * NS_PER_S)
            await self.plane.roll_up()
        return took

    async def ask(self, question: str) -> float:
        """Ask one question; return how long it took, in ms."""
        path, _, query = question.format(agent=f"probe-{self._count // 2}").partition("?")
        begun = time.perf_counter()
        answer = await self._operators.dispatch(
            ApiRequest(
                method="GET",
                path=f"/v1/metrics/{path}",
                headers={"host": "127.0.0.1"},
                query=[(one.partition("=")[0], one.partition("=")[2]) for one in query.split("&")],
            )
        )
        took_ms = (time.perf_counter() - begun) * 1000
        if answer.status != 200 or b'"type":"counter"' not in answer.body:
            raise AssertionError(answer.body[:200])
        return took_ms

    async def _call(self, path: str, headers: Mapping[str, str], body: object) -> Any:
        answer = await self._agents.dispatch(
            ApiRequest(
                method="POST",
                path=path,
                headers={"netsonde-protocol": "1", **headers},
                body=json.dumps(body).encode(),
                received_ns=self.plane.time.now_ns(),
            )
        )
        if answer.status >= 300:
            raise AssertionError(answer.body[:200])
        return json.loads(answer.body)


def envelope(minute: int) -> dict[str, Any]:
    """Half counters, half gauges, each name with a label of five values."""
    names = range(SERIES // 2 // len(KINDS))
    labels = [{"kind": kind} for kind in KINDS]
    return {
        "timestamp": "t",
        "instance_id": "i",
        "seq": minute,
        "start_time": "s",
        "counters": [
            {"name": f"c{name}_total", "value": minute * (name + 1), "labels": label}
            for name in names
            for label in labels
        ],
        "gauges": [
            {"name": f"g{name}", "value": minute * 0.1 + name, "labels": label}
            for name in names
            for label in labels
        ],
    }


async def _measured(folder: Path, scale: Scale) -> Mapping[str, float]:
    made = Plane(folder, AGENTS[scale])
    try:
        await made.enrol()
        filled = [took for _ in range(MINUTES[scale]) for took in await made.minute()]
        asked: dict[str, list[float]] = {name: [] for name in QUESTIONS}

        async def ask_all() -> None:
            while min(map(len, asked.values())) < ASKED[scale]:
                for name, question in QUESTIONS.items():
                    asked[name].append(await made.ask(question))

        pause_s = INTERVAL_S / AGENTS[scale] if scale is not Scale.ONCE else 0

        async def ingest() -> None:
            while True:
                await made.minute(lambda: asyncio.sleep(pause_s))

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(ingest())
            await ask_all()
            sending.cancel()
    finally:
        await made.writer.close()
    figures = {f"p95, {name}": p95(took) for name, took in asked.items()}
    return figures | {"an envelope": statistics.median(filled)}


def p95(took_ms: list[float]) -> float:
    """Return what one in twenty exceeds."""
    return sorted(took_ms)[max(-(-95 * len(took_ms) // 100) - 1, 0)]


def contestant(scale: Scale) -> Mapping[str, float]:
    """Fill a database and ask, in a folder on a real disk."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        return asyncio.run(_measured(Path(folder), scale))


def bench(scale: Scale) -> Bench:
    """Make the contestant."""
    return Bench({OURS: lambda: contestant(scale)}, budgets(), runs=1)


def budgets() -> list[Budget]:
    """M1: a question is answered in a quarter of a second; the envelope's row is for comparison."""
    questions = [
        Budget(id="M1", figure=f"p95, {name}", unit="ms", at_most=P95_MS_MAX) for name in QUESTIONS
    ]
    return [*questions, Budget(id="M1", figure="an envelope", unit="ms")]
