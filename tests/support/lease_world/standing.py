"""Worlds of standing checks: what was measured, what arrived, and how late runs began.

    with world(seed) as it:        # the seed decides the store
        it.run(it.outage(hours=6))

The truth of a measurement is the prober's; the truth of a result is what the operator API lists.
"""

import asyncio
import json
import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from unittest import mock

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S, instant_ns
from netsonde.control_plane import TransportRequest
from netsonde.model import TaskKind
from netsonde.server.config import ServerConfig
from support.lease_world.agents import AgentHost, hook_spools
from support.lease_world.faults import Fault
from support.lease_world.oracle import Host, Oracle, Task
from support.lease_world.server import DownError, ServerHost
from support.lease_world.virtual_time import HostClock, VirtualLoop
from support.spools import InlineExecutor

T = TypeVar("T")

RAM = Path("/dev/shm")
SLOTS = 20
LONGEST_NS = 3 * NS_PER_S  # of a measurement
PAGE = 1000


@dataclass(slots=True)
class Run:
    """One measurement that came to its end."""

    host: Host
    target: str
    began_ns: int  # of the world


class TickOracle(Oracle):
    """Notes what the probers did; leases and results are looked at in the end."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(TaskKind, SLOTS), 1, 0)
        self.runs: list[Run] = []
        self.hosts: dict[int, str] = {}  # by agent id
        self.expired_leases = 0
        self.killed: set[Host] = set()
        self.most_at_once: Counter[tuple[Host, str]] = Counter()
        self._open: defaultdict[tuple[Host, str], list[int]] = defaultdict(list)

    def registered(self, agent_id: int, host: str) -> None:
        """An agent has an id."""
        self.hosts[agent_id] = host

    def enqueued(self, task_id: int, name: str) -> None:
        """A task was queued; every agent has one of the same name."""
        self.tasks[task_id] = Task(name)

    def granted(
        self, task_id: int, name: str, lease_id: int, agent_id: int, attempt: int, until_ns: int
    ) -> None:
        """A task was leased."""
        self.grants += 1
        self._must(attempt == 1, f"task {task_id}: attempt {attempt}")

    def extended(self, task_id: int, until_ns: int) -> None:
        """A lease was made longer."""

    def stored(self, task_id: int, lease_id: int, agent_id: int, *, is_final: bool) -> None:
        """A result was committed."""

    def expired(self, task_id: int, late_ns: int) -> None:
        """A lease was taken back."""
        self.expired_leases += 1

    def answered(self, lease_id: int, status: str) -> None:
        """The server answered for a reported item."""

    def began(self, host: Host, kind: TaskKind, name: str, now_ns: int) -> None:
        """A measurement began."""
        self._open[host, name].append(now_ns)
        at_once = len(self._open[host, name])
        self.most_at_once[host, name] = max(self.most_at_once[host, name], at_once)

    def ended(
        self, host: Host, kind: TaskKind, name: str, now_ns: int, awake_ns: int, *, is_whole: bool
    ) -> None:
        """A measurement ended."""
        began_ns = self._open[host, name].pop()
        if is_whole:
            self.runs.append(Run(host, name, began_ns))

    def vanished(self, host: Host) -> None:
        """A process was killed."""
        self.killed.add(host)


@dataclass(slots=True)
class StandingWorld:
    """A control plane, agents, and one check that all of them run."""

    seed: int
    loop: VirtualLoop
    folder: Path
    every_ms: int
    jitter_ms: int
    targets: int
    agents_count: int
    chances: dict[Fault, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    is_troubled: bool = False
    faults: Counter[Fault] = field(default_factory=Counter)
    broken: list[object] = field(default_factory=list)
    oracle: TickOracle = field(init=False)
    server: ServerHost = field(init=False)
    agents: list[AgentHost] = field(init=False)
    rng: Random = field(init=False)

    def __post_init__(self) -> None:
        """Make the hosts; nothing runs yet."""
        self.rng = Random(self.seed)
        self.oracle = TickOracle()
        config = ServerConfig(quota_scale=1_000, **self.settings)
        self.server = ServerHost(
            config, HostClock(self.loop), self.folder, self.oracle, self.rng, self._draw
        )
        self.agents = [
            AgentHost(
                f"probe{number}", self.loop, self.folder, self.server, self.oracle, self.rng,
                self._draw, {TaskKind.PING: SLOTS}, self._duration_ns,
            )
            for number in range(self.agents_count)
        ]  # fmt: skip

    def run(self, story: Awaitable[T]) -> T:
        """Run a story to its end; whatever broke meanwhile is raised."""

        async def whole() -> T:
            self.loop.set_exception_handler(self._note_broken)
            undo = hook_spools(self.agents)
            try:
                result = await story
                assert not self.broken, self.broken[:3]
                assert not self.oracle.wrong, self.oracle.wrong[:3]
                return result
            finally:
                undo()
                await self._end()

        return self.loop.run_until_complete(whole())

    def _note_broken(self, _: object, context: dict[str, object]) -> None:
        error = context.get("exception")
        if not isinstance(error, DownError):
            self.broken.append(error or context.get("message"))

    async def _end(self) -> None:
        for agent in self.agents:
            agent.kill()
        self.server.crash()
        pending = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _draw(self, fault: Fault) -> bool:
        chance = self.chances.get(fault, 0.0) if self.is_troubled else 0.0
        happens = chance > 0 and self.rng.random() < chance
        self.faults[fault] += happens
        return happens

    def _duration_ns(self, target: str) -> int:
        return Random(f"{self.seed} {target}").randrange(NS_PER_MS, LONGEST_NS)

    # ── what a story says ──

    @property
    def now_ns(self) -> int:
        """The world's instant."""
        return self.server.clock.boottime_ns()

    async def begin(self) -> dict[str, Any]:
        """Start everything and make the check; return it."""
        self.server.start()
        for agent in self.agents:
            agent.start()
        await asyncio.sleep(5)
        names = [f"t{number}.example" for number in range(self.targets)]
        made = await self.operate(
            "/v1/checks",
            {
                "kind": "ping",
                "targets": names,
                "every_ms": self.every_ms,
                "jitter_ms": self.jitter_ms,
                "select": {"labels": {}, "all": True},
            },
        )
        result: dict[str, Any] = made
        return result

    async def operate(self, path: str, body: Any = None) -> Any:
        """Make an operator's call until it is answered."""
        key = f"key-{self.rng.getrandbits(64)}" if body is not None else ""
        while True:
            try:
                return await self._operated(path, body, key)
            except DownError:
                await asyncio.sleep(0.2)

    async def _operated(self, path: str, body: Any, key: str) -> Any:
        request = TransportRequest(
            method="GET" if body is None else "POST",
            path=path,
            headers={"host": "localhost"} | ({"idempotency-key": key} if key else {}),
            body=b"" if body is None else wire.encode(body),
            timeout_s=10,
        )
        if body is not None:
            request.headers["content-type"] = "application/json"  # type: ignore[index]
        answer = await self.server._dispatch(request, is_agents=False)
        if answer.status not in (200, 201):
            raise DownError(answer.body)
        return json.loads(answer.body)

    async def results(self) -> list[dict[str, Any]]:
        """Return every result, in the order of commits."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await self.operate(f"/v1/results?limit={PAGE}{cursor}")
            found += page["results"]
            if len(page["results"]) < PAGE:
                return found
            cursor = f"&cursor={page['cursor']}"

    async def settle(self, limit_s: int = 600) -> None:
        """Let everything that was spooled arrive."""
        for _ in range(limit_s):
            if not any(agent.rows() for agent in self.agents):
                return
            await asyncio.sleep(1)
        raise AssertionError(f"spools did not empty: {[agent.rows() for agent in self.agents]}")

    def counted(self, name: str) -> int:
        """Add up a counter of all agents that run."""
        return sum(agent.agent.counters.get(name, 0) for agent in self.agents if agent.agent)


@contextmanager
def world(
    seed: int,
    *,
    every_ms: int = 20_000,
    jitter_ms: int = 5_000,
    targets: int = 4,
    agents: int = 3,
    chances: dict[Fault, float] | None = None,
    **settings: Any,
) -> Iterator[StandingWorld]:
    """Make a world of standing checks; seed 1 has its store in memory, seed 2 on SQLite."""
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    try:
        with (
            tempfile.TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as folder,
            mock.patch("netsonde.spool.queue.ThreadPoolExecutor", InlineExecutor),
            mock.patch("netsonde.agent.agent.quiet_collector", nullcontext),  # nobody is timed
            mock.patch("netsonde.agent.telemetry.TICK_NS", 60 * NS_PER_S),
            mock.patch("netsonde.agent.telemetry.COLLECT_NS", 600 * NS_PER_S),
        ):
            asyncio.set_event_loop(loop)
            yield StandingWorld(
                seed, loop, Path(folder), every_ms, jitter_ms, targets, agents, chances or {},
                settings,
            )  # fmt: skip
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        logging.disable(logging.NOTSET)


def lateness_ns(results: Sequence[dict[str, Any]]) -> list[int]:
    """Return how late each run began, in order of size."""
    return sorted(
        instant_ns(result["started_at"]) - instant_ns(result["scheduled_at"]) for result in results
    )


def percentile(ordered: Sequence[int], percent: int) -> int:
    """Return the value that so many percent do not exceed (nearest rank)."""
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


def by_task(
    results: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], T]
) -> dict[int, list[T]]:
    """Group results by their task."""
    found: defaultdict[int, list[T]] = defaultdict(list)
    for result in results:
        found[result["task_id"]].append(of(result))
    return found
