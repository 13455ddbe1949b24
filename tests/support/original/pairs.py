"""One original agent with much to do: on the original's servers, and on ours."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from netsonde.server.config import ServerConfig
from support.lease_world.virtual_time import HostClock, VirtualLoop
from support.original.agent import OriginalAgent
from support.original.link import Link
from support.original.our_server import OurServer
from support.original.prober import Script, scripted
from support.original.running import run_world

URL = "http://192.0.2.10/v1/agents/"
TASKS = 200
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Pair:
    """How far the agent came, and what it stood still with in the end."""

    completed: int
    stuck: str | None
    commands: int  # that wait for its extender
    statuses: dict[int, int]

    def matches(self, pattern: str) -> bool:
        """Whether it stands still in this way."""
        return re.search(pattern, self.stuck or "") is not None


def run_pair(made: Callable[[HostClock, Random], Any], hours: float) -> Pair:
    """Let an original agent work off 200 tasks on a server of its own."""

    async def run(loop: VirtualLoop) -> Pair:
        rng = Random(1)
        server = made(HostClock(loop), rng)
        for number in range(TASKS):
            server.enqueue("tcp", {"host": f"up-{number}.example", "port": 443})
        handlers = scripted(lambda _: Script(duration_s=1.0))
        agent = OriginalAgent(URL, Link(server, rng).call, handlers)
        loop.create_task(agent.run())
        await asyncio.sleep(hours * 3600)
        return Pair(
            completed=agent.counters["completed"],
            stuck=agent.wedged(PATIENCE_S),
            commands=agent.extender.commands.qsize(),
            statuses=dict(agent.client.statuses),
        )

    return run_world(run)


def seconds_with_us(duration_s: float) -> float:
    """Return how long an original agent takes for 200 tasks of our server, two of them at once."""

    async def run(loop: VirtualLoop) -> float:
        rng = Random(1)
        server = OurServer(ServerConfig(), HostClock(loop), rng, None)
        server.start()
        item = {"kind": "tcp", "spec": {"host": "up.example", "port": 443}}
        await server.operate("/v1/tasks", [item] * TASKS)
        agent = OriginalAgent(URL, Link(server, rng).call, scripted(lambda _: Script(duration_s)))
        began_s = loop.time()
        loop.create_task(agent.run())
        while agent.counters["completed"] < TASKS:  # noqa: ASYNC110 (of this loop)
            await asyncio.sleep(0.1)
        return loop.time() - began_s

    return run_world(run)


def after_a_restart_without_a_database() -> tuple[str | None, str | None]:
    """Return what an original agent stands still with after that, and what a new one does."""

    async def run(loop: VirtualLoop) -> tuple[str | None, str | None]:
        rng = Random(1)
        server = OurServer(ServerConfig(), HostClock(loop), rng, None)
        stuck: list[str | None] = []
        server.start()
        for _ in range(2):
            agent = OriginalAgent(URL, Link(server, rng).call, scripted(lambda _: Script(1.0)))
            running = loop.create_task(agent.run())
            await asyncio.sleep(PATIENCE_S)
            if not stuck:
                server.stop()
                server.lose_memory()
                server.start()
                await asyncio.sleep(2 * PATIENCE_S)
            stuck.append(agent.wedged(PATIENCE_S))
            running.cancel()
        return stuck[0], stuck[1]

    return run_world(run)
