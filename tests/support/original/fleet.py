"""Original agents on our control plane, for hours of virtual time, with outages and restarts.

summary = run_fleet(hours=10, database=None)  # WrongError says what did not hold
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from netsonde.clock import NS_PER_S
from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.model import TaskKind
from netsonde.server.config import ServerConfig
from support.lease_world.virtual_time import HostClock, VirtualLoop
from support.original.agent import OriginalAgent, target
from support.original.link import Handler, Link
from support.original.messages import Lease
from support.original.our_server import OurServer
from support.original.pools import POOLS
from support.original.prober import Script, scripted
from support.original.running import WrongError, must, run_world, while_watched

BASE_URLS = (
    "http://192.0.2.10:8080/v1/agents/",
    "http://192.0.2.10:8080/v1/agents",  # its last segment gets lost
)
BURST_EVERY_S = 300
BURST = {"dns": 9, "tcp": 6, "ping": 5, "trace": 3, "http": 2}
LOOK_EVERY_S = 15
PATIENCE_S = 60  # three times what an empty claim is held for
SLACK_NS = 10 * NS_PER_S  # of the sweeper, which begins anew after a restart
SETTLE_S = 3 * 3600  # what never ends is cancelled after 600 s, and tried thirteen times
# Targets that do not answer, whose handlers fail, whose measurements never end.
DOWN, POISON, ENDLESS = "down", "poison", "endless"

Damage = Callable[[TransportRequest, TransportResponse], TransportResponse]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a fleet's hours were like; `dead` are the reasons of those without a result."""

    tasks: int
    outcomes: Counter[str]
    dead: Counter[str]
    grants: int
    cancelled: int
    silent: int
    requests: Counter[str]
    outages: int


@dataclass
class _Host:
    """A machine on which one process of the original agent runs at a time."""

    name: str
    link: Link
    base_url: str
    script: Callable[[Lease], Script]
    well_since_s: float = 0.0
    lives: list[OriginalAgent] = field(default_factory=list)
    _task: "asyncio.Task[None] | None" = None

    @property
    def agent(self) -> OriginalAgent | None:
        return None if self._task is None else self.lives[-1]

    def start(self) -> None:
        agent = OriginalAgent(self.base_url, self.link.call, scripted(self.script), self.name)
        self.lives.append(agent)
        self._task = asyncio.get_running_loop().create_task(agent.run())

    async def kill(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def check(self, now_s: float, *, is_served: bool) -> None:
        """Insist that the process goes on, when nothing has kept it from that for a while."""
        if self._task is None or self.link.is_cut or not is_served:
            self.well_since_s = now_s
            return
        if self._task.done():
            raise WrongError(f"{self.name} has ended: {self._task.exception()!r}")
        if now_s - self.well_since_s > PATIENCE_S:
            stuck = self.lives[-1].wedged(PATIENCE_S)
            must(stuck is None, f"{self.name} is wedged: {stuck}")


def run_fleet(
    hours: float, database: Path | None = None, damage: Damage | None = None, seed: int = 1
) -> Summary:
    """Run the fleet; damage changes what our server answers.

    Raises:
        WrongError: an agent is wedged, a lease stranded, a task lost, a queue without bound.
    """
    return run_world(lambda loop: _Fleet(loop, database, damage, seed).run(hours))


class _Fleet:
    def __init__(
        self, loop: VirtualLoop, database: Path | None, damage: Damage | None, seed: int
    ) -> None:
        self._loop = loop
        self._rng = Random(seed)
        config = ServerConfig()  # what an operator gets who sets nothing
        self._server = OurServer(config, HostClock(loop), self._rng, database)
        self._requests: Counter[str] = Counter()
        self._queued: dict[int, str] = {}
        self._outages = 0
        self._serving = asyncio.Event()
        self._serving.set()
        carry = _damaged(self._counted, damage)
        self._hosts = [
            _Host(f"probe-{number}", Link(carry, self._rng), base_url, self._script)
            for number, base_url in enumerate(BASE_URLS)
        ]

    async def run(self, hours: float) -> Summary:
        """Run until everything that was queued has ended."""
        self._server.start()
        for host in self._hosts:
            host.start()
        try:
            await while_watched(self._live(hours), self._look_forever())
            return await self._summary()
        finally:
            for host in self._hosts:
                await host.kill()
            self._server.stop()

    async def _live(self, hours: float) -> None:
        await asyncio.gather(self._queue(hours), self._make_trouble(hours))
        await self._settle()

    async def _counted(self, request: TransportRequest) -> TransportResponse:
        self._requests[request.path.rpartition("/")[2]] += 1
        return await self._server(request)

    # ── what is asked for ──

    async def _queue(self, hours: float) -> None:
        for burst in range(int(hours * 3600 / BURST_EVERY_S)):
            items = [
                _task(kind, self._name(kind, burst, number))
                for kind, count in BURST.items()
                for number in range(count)
            ]
            await self._serving.wait()
            answer = await self._server.operate("/v1/tasks", items)
            for item, made in zip(items, answer["tasks"], strict=True):
                self._queued[made["task_id"]] = f"{item['kind']} {_target(item)}"
            await asyncio.sleep(BURST_EVERY_S)

    def _name(self, kind: str, burst: int, number: int) -> str:
        what = DOWN if self._rng.random() < 0.2 else "up"
        if number == 0 and kind == "tcp" and burst % 10 == 0:
            what = POISON
        if number == 0 and kind == "ping" and burst == 0:
            what = ENDLESS
        return f"{what}-{kind}-{burst}-{number}.example"

    def _script(self, lease: Lease) -> Script:
        """Return what a measurement is like; some outlast their lease's first term."""
        name = target(lease)
        duration_s = self._rng.uniform(0.02, 3)
        if self._rng.random() < 0.05:
            duration_s = self._rng.uniform(20, 120)
        if name.startswith(ENDLESS):
            duration_s = 86_400
        is_broken = name.startswith(POISON) or self._rng.random() < 0.02
        return Script(duration_s, is_up=not name.startswith(DOWN), is_broken=is_broken)

    # ── what goes wrong ──

    async def _make_trouble(self, hours: float) -> None:
        """Let one thing after another happen, each of them once an hour."""
        events: list[Callable[[], Awaitable[None]]] = [
            lambda: self._cut(self._hosts[:1], 240),
            lambda: self._cut(self._hosts, 180),
            lambda: self._stop_server(30),
            self._kill_agent,
            self._break_connections,
            lambda: self._stop_server(300),
            self._fill_disk,
        ]
        end_s = self._loop.time() + hours * 3600
        while self._loop.time() + 1800 < end_s:
            for event in events:
                await asyncio.sleep(self._rng.uniform(300, 450))
                self._outages += 1
                await event()

    async def _cut(self, hosts: list[_Host], duration_s: float) -> None:
        for host in hosts:
            host.link.cut()
        await asyncio.sleep(duration_s)
        for host in hosts:
            host.link.heal()

    async def _stop_server(self, duration_s: float) -> None:
        self._serving.clear()
        for host in self._hosts:
            host.link.is_down = True
        await self._break_connections()
        self._server.stop()
        await asyncio.sleep(duration_s)
        self._server.start()
        self._serving.set()
        for host in self._hosts:
            host.link.is_down = False

    async def _fill_disk(self) -> None:
        """Let the server write nothing for two minutes: it answers 500 to nearly everything."""
        self._serving.clear()
        self._server.is_disk_full = True
        await asyncio.sleep(120)
        self._server.is_disk_full = False
        self._serving.set()

    async def _break_connections(self) -> None:
        for host in self._hosts:
            host.link.reset()
        await asyncio.sleep(0.1)

    async def _kill_agent(self) -> None:
        host = self._rng.choice(self._hosts)
        await host.kill()
        await asyncio.sleep(20)
        host.start()

    # ── what must hold ──

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for host in self._hosts:
                host.check(self._loop.time(), is_served=self._serving.is_set())
            if self._serving.is_set():
                self._check_server()

    def _check_server(self) -> None:
        """Insist that nothing is stranded and everything has a bound."""
        broken = self._server.broken()
        must(broken is None, f"the server's own work ended: {broken!r}")
        plane = self._server.plane
        waiting = len(plane.waiters._waiting)
        must(waiting <= len(self._hosts), f"{waiting} claims are held for {len(self._hosts)}")
        must(len(plane.waiters._later) <= len(self._queued), "more wake-ups than tasks")
        now_ns = plane.time.now_ns()
        for agent in plane.registry.all():
            held = self._server.store.held_by(agent.agent_id)
            per_kind = Counter(task.kind.value for task in held)
            for kind, count in per_kind.items():
                must(count <= 2 * POOLS[kind], f"agent {agent.agent_id} holds {count} {kind}")
            for task in held:
                due_ns = plane.policy.due_ns(task.kind, task.until_ns)
                late_ns = now_ns - max(due_ns, self._server.started_ns)
                must(late_ns < SLACK_NS, f"lease {task.lease_id} is stranded: {late_ns} ns")

    async def _settle(self) -> None:
        """Wait until nothing is owed any more."""
        end_s = self._loop.time() + SETTLE_S
        while sum((depth := await self._server.depth()).values()):
            must(self._loop.time() < end_s, f"still {depth} after {SETTLE_S} s")
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(2 * PATIENCE_S)  # and everybody must be well when nothing is to do

    def _check_rest(self) -> None:
        """Insist that nothing is kept for what has ended."""
        plane = self._server.plane
        for agent in plane.registry.all():
            must(not self._server.store.held_by(agent.agent_id), "a lease outlived its task")
        must(not plane.waiters._later and not plane.waiters._known, "a wake-up is left")
        must(len(plane.registry.all()) == len(self._hosts), "a host became two agents")
        for host in self._hosts:
            process = host.lives[-1]
            must(not process.extender.tracked, f"{host.name} tracks what has ended")
            must(not any(process.windows.running.values()), f"{host.name} works on")

    async def _summary(self) -> Summary:
        self._check_rest()
        results = await self._server.listed("/v1/results", "results")
        letters = await self._server.listed("/v1/dead-letters", "dead_letters")
        final = Counter(result["task_id"] for result in results)
        dead = {letter["task_id"]: letter["reason"] for letter in letters}
        must(set(final) | set(dead) == set(self._queued), "a task has vanished, or come up")
        must(max(final.values()) == 1, f"a task has two results: {final.most_common(1)}")
        for result in results:
            self._check_result(result, dead.get(result["task_id"]))
        for task_id, reason in dead.items():
            must(bool(reason), f"task {task_id} was given up without a reason")
        for task_id, name in self._queued.items():
            must(task_id in dead or ENDLESS not in name, f"{name} has ended")
        lives = [agent for host in self._hosts for agent in host.lives]
        return Summary(
            tasks=len(self._queued),
            outcomes=Counter(result["outcome"] for result in results),
            dead=Counter(
                reason.partition(",")[0] for task_id, reason in dead.items() if task_id not in final
            ),
            grants=sum(agent.counters["leases"] for agent in lives),
            cancelled=sum(agent.counters["cancelled"] for agent in lives),
            silent=sum(agent.counters["silent"] for agent in lives),
            requests=self._requests,
            outages=self._outages,
        )

    def _check_result(self, result: dict[str, Any], dead: str | None) -> None:
        """Insist that a result says what was seen, or why its task was given up."""
        name = self._queued[result["task_id"]]
        kind, _, where = name.partition(" ")
        if kind == "http":
            expected = "agent_error"  # a stub has measured nothing
        elif where.startswith(ENDLESS):
            expected = "cancelled"  # at the end of its longest lease, every time
        else:
            expected = "target_error" if where.startswith(DOWN) else "ok"
        must(result["outcome"] == expected, f"{name} ended {result['outcome']}")
        is_given_up = expected in ("agent_error", "cancelled")
        must((dead is not None) == is_given_up, f"{name}: {expected}, {dead}")


def _task(kind: str, name: str) -> dict[str, Any]:
    match TaskKind(kind):
        case TaskKind.DNS:
            spec: dict[str, Any] = {"query": name}
        case TaskKind.HTTP:
            spec = {"url": f"http://{name}/"}
        case TaskKind.TCP:
            spec = {"host": name, "port": 443}
        case _:
            spec = {"host": name}
    return {"kind": kind, "spec": spec}


def _target(item: dict[str, Any]) -> str:
    spec: dict[str, Any] = item["spec"]
    return str(next(iter(spec.values()))).removeprefix("http://").rstrip("/")


def _damaged(handler: Handler, damage: Damage | None) -> Handler:
    async def carry(request: TransportRequest) -> TransportResponse:
        response = await handler(request)
        return response if damage is None else damage(request, response)

    return carry
