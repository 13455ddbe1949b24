"""Our agent against the original's servers, for hours of virtual time, with outages and restarts.

    summary = run_agent(RustServer, hours=6)  # WrongError says what did not hold

A control plane that never takes a lease back loses the work whose claim's answer got lost: what it
has thrown away so is counted exactly, and nothing else may be missing.
"""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from netsonde.agent import Agent, AgentConfig
from netsonde.clock import NS_PER_S
from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.model import FailureSource, Outcome, Reason, TaskKind
from netsonde.probe.base import Recorder
from support.lease_world.virtual_time import HostClock, VirtualLoop
from support.original.go_server import GoServer
from support.original.link import Link
from support.original.running import must, run_world, while_watched
from support.original.rust_server import RustServer

CAPACITIES = {
    TaskKind.DNS: 4,
    TaskKind.HTTP: 2,
    TaskKind.TCP: 2,
    TaskKind.PING: 2,
    TaskKind.TRACE: 0,  # what it does not measure it must hand back
}
# As both originals' producers write specs: options as null, the type before the name.
SPECS: dict[str, Callable[[str], dict[str, Any]]] = {
    "dns": lambda name: {"query": f"A {name}", "server": None},
    "http": lambda name: {"url": f"http://{name}/", "method": None},
    "tcp": lambda name: {"host": name, "port": 443},
    "ping": lambda name: {"host": name, "count": 2, "interval_ms": None},
    "trace": lambda name: {"host": name, "max_hops": 30},
    "whois": lambda name: {"name": name},  # a kind that is newer than this agent
}
BURST_EVERY_S = 300
BURST = {"dns": 4, "http": 2, "tcp": 2, "ping": 2}
PATIENCE_S = 120  # heartbeats 15 s apart at most, and the longest backoff
SETTLE_S = 3600
DRAIN_S = 60
RAM = Path("/dev/shm")

OriginalServer = RustServer | GoServer
Made = Callable[[HostClock, Random], OriginalServer]


@dataclass(frozen=True, slots=True)
class Summary:
    """What the hours were like; `foreign` are tasks of kinds that the agent does not measure."""

    tasks: int
    foreign: int
    measured: int
    cancelled: int
    never_arrived: int
    answers_lost: Counter[str]
    limited: int
    registrations: int
    requests: Counter[str]
    outages: int


class _Prober:
    """Measures by waiting; some measurements outlast their first term."""

    def __init__(self, kind: TaskKind, clock: HostClock, rng: Random, done: Counter[str]) -> None:
        self.kind = kind
        self._clock = clock
        self._rng = rng
        self._done = done

    async def run(self, spec: Any, record: Recorder) -> None:
        slow = self._rng.random() < 0.05
        duration_s = self._rng.uniform(60, 150) if slow else self._rng.uniform(0.02, 3)
        await self._clock.sleep(round(duration_s * NS_PER_S))
        self._done[self.kind.value] += 1
        if self._rng.random() < 0.2:
            record.fail(Outcome.TARGET_ERROR, Reason.TIMEOUT, FailureSource.TARGET, "no reply")
        else:
            record.ok()

    async def close(self) -> None:
        """Nothing is open."""


def run_agent(
    made: Made, hours: float, seed: int = 1, *, lost_first: Collection[str] = ()
) -> Summary:
    """Run our agent against a server that is made so; the first answers to some calls get lost.

    Raises:
        WrongError: the agent stands still, a task is lost, a quota was not obeyed.
    """
    with tempfile.TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as folder:
        return run_world(lambda loop: _World(loop, made, Path(folder), seed, lost_first).run(hours))


class _World:
    def __init__(
        self,
        loop: VirtualLoop,
        made: Made,
        folder: Path,
        seed: int,
        lost_first: Collection[str],
    ) -> None:
        self._loop = loop
        self._rng = Random(seed)
        self._clock = HostClock(loop)
        self._clock.step(self._rng.choice((-86_400, 86_400)) * NS_PER_S)  # nobody may go by it
        self._server = made(HostClock(loop), self._rng)
        self._link = Link(self._answer, self._rng)
        self._link.on_lost = self._note_lost
        self._folder = folder
        self._done: Counter[str] = Counter()
        self._queued: dict[int, str] = {}
        self._lost: set[int] = set()
        self._heard_s: dict[str, float] = {}
        self._well_since_s = 0.0
        self._to_lose = set(lost_first)
        self._losses: Counter[str] = Counter()
        self._outages = self._tasks = self._registrations = 0
        self._never_arrived = self._cancelled = self._foreign = 0
        self._task: asyncio.Task[None] | None = None
        self._agent: Agent | None = None

    async def run(self, hours: float) -> Summary:
        """Run until everything that was queued has ended."""
        if isinstance(self._server, GoServer):
            self._retrying = self._loop.create_task(self._server.retry_forever())
        self._start()
        await while_watched(self._live(hours), self._look_forever())
        await self._drain()
        self._check_end()
        return Summary(
            tasks=self._tasks,
            foreign=self._foreign,
            measured=sum(self._done.values()),
            cancelled=self._cancelled,
            never_arrived=self._never_arrived,
            answers_lost=self._losses,
            limited=len(self._server.limited) if isinstance(self._server, RustServer) else 0,
            registrations=self._registrations,
            requests=self._server.requests,
            outages=self._outages,
        )

    async def _live(self, hours: float) -> None:
        await asyncio.gather(self._queue(hours), self._make_trouble(hours))
        await self._settle()
        await asyncio.sleep(PATIENCE_S)

    async def _settle(self) -> None:
        """Wait until nothing is owed any more."""
        end_s = self._loop.time() + SETTLE_S
        while owed := self._owed():
            must(self._loop.time() < end_s, f"still owed after {SETTLE_S} s: {sorted(owed)[:5]}")
            await asyncio.sleep(15)

    async def _answer(self, request: TransportRequest) -> TransportResponse:
        response = await self._server(request)
        verb = request.path.rpartition("/")[2]
        if 200 <= response.status < 300:
            self._heard_s[verb] = self._loop.time()
            self._registrations += verb == "register"
        is_done = response.status == 200 and (verb != "claim" or b"lease_id" in response.body)
        if verb in self._to_lose and is_done:
            self._to_lose.discard(verb)
            self._link.reset()  # also what carries this answer
        return response

    def _note_lost(self, request: TransportRequest, response: TransportResponse) -> None:
        self._losses[request.path.rpartition("/")[2]] += 1
        if request.path.endswith("/claim") and response.status == 200:
            leases = json.loads(response.body)["leases"]
            self._lost |= {lease["lease_id"] for lease in leases}
            self._never_arrived += len(leases)

    # ── the agent ──

    def _start(self) -> None:
        settings = AgentConfig(
            control_plane=self._link.base_url,
            state_dir=self._folder,
            hostname="probe-1",
            capacities=CAPACITIES,
            drain_timeout_s=DRAIN_S,
        )
        probers = {
            kind: _Prober(kind, self._clock, self._rng, self._done)
            for kind in TaskKind
            if CAPACITIES[kind]
        }
        self._agent = Agent(
            settings,
            clock=self._clock,
            transport=Link(self._link.call, self._rng, self._link.base_url),
            probers=probers,
            rng=Random(self._rng.getrandbits(64)),
        )
        self._task = self._loop.create_task(self._agent.run())

    async def _drain(self) -> None:
        """Let the agent finish, as SIGTERM does."""
        agent, task, self._task = self._agent, self._task, None
        if agent is not None and task is not None:
            agent.drain()
            await task

    async def _kill(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # ── what is asked for, and what goes wrong ──

    async def _queue(self, hours: float) -> None:
        for burst in range(int(hours * 3600 / BURST_EVERY_S)):
            for kind, count in BURST.items():
                for number in range(count):
                    self._enqueue(kind, f"{kind}-{burst}-{number}.example")
            if isinstance(self._server, GoServer) and burst % 6 == 0:
                for kind in ("trace", "whois"):  # it hands out what nobody asked for
                    self._enqueue(kind, f"{kind}-{burst}.example")
            await asyncio.sleep(BURST_EVERY_S)

    def _enqueue(self, kind: str, name: str) -> None:
        self._queued[self._server.enqueue(kind, SPECS[kind](name))] = kind
        self._tasks += 1
        self._foreign += kind not in BURST

    async def _make_trouble(self, hours: float) -> None:
        """Let one thing after another happen, each of them once an hour."""
        events: list[Callable[[], Awaitable[None]]] = [
            lambda: self._cut(240),
            lambda: self._stop_server(30),
            self._restart_agent,
            lambda: self._stop_server(300),
            self._lose_answers,
            self._break_database,
        ]
        end_s = self._loop.time() + hours * 3600
        while self._loop.time() + 1200 < end_s:
            for event in events:
                await asyncio.sleep(self._rng.uniform(400, 500))
                self._outages += 1
                await event()
        await self._wipe()

    async def _cut(self, duration_s: float) -> None:
        self._link.cut()
        await asyncio.sleep(duration_s)
        self._link.heal()

    async def _stop_server(self, duration_s: float) -> None:
        self._link.is_down = True
        await self._break_connections()
        self._server.restart()
        await asyncio.sleep(duration_s)
        self._link.is_down = False

    async def _break_connections(self) -> None:
        self._link.reset()
        await asyncio.sleep(0.1)

    async def _lose_answers(self) -> None:
        """Lose the next answer of every kind that says that something was done."""
        self._to_lose = {"claim", "extend", "report", "heartbeat"}

    async def _break_database(self) -> None:
        if isinstance(self._server, RustServer):
            self._server.is_database_down = True
            await asyncio.sleep(180)
            self._server.is_database_down = False

    async def _restart_agent(self) -> None:
        """Kill it where leases are taken back; where they are not, let it finish first."""
        if isinstance(self._server, GoServer):
            await self._kill()
        else:
            await self._drain()
        await asyncio.sleep(20)
        self._start()

    async def _wipe(self) -> None:
        """Empty the server's database once nothing is owed: then nobody knows the agent."""
        await self._settle()
        self._check_end()
        self._queued.clear()
        self._lost.clear()
        self._server.restart(is_wiped=True)
        await asyncio.sleep(1)
        for kind in BURST:
            self._enqueue(kind, f"{kind}-anew.example")

    # ── what must hold ──

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(15)
            now_s = self._loop.time()
            is_sick = isinstance(self._server, RustServer) and self._server.is_database_down
            is_new = "heartbeat" not in self._heard_s  # that it begins at all is seen at the end
            if self._task is None or self._link.is_cut or self._link.is_down or is_sick or is_new:
                self._well_since_s = now_s
                continue
            if self._task.done():
                self._task.result()
                must(False, "the agent has ended")
            if now_s - self._well_since_s > PATIENCE_S:
                for verb in ("heartbeat", "claim"):
                    silent_s = now_s - self._heard_s.get(verb, 0)
                    must(silent_s < PATIENCE_S, f"no {verb} for {silent_s:.0f} s")

    def _owed(self) -> set[int]:
        """Return what the server still waits for and may yet get."""
        server = self._server
        if isinstance(server, GoServer):
            ended = {result.task_id for result in server.results}
            return set(self._queued) - ended
        queued = {task.task_id for task in server.tasks.values() if task.status == "queued"}
        return queued | (server.open_leases() - self._lost)

    def _check_end(self) -> None:
        must(not self._owed(), "something is owed")
        server = self._server
        if isinstance(server, GoServer):
            ours = [result for result in server.results if result.task_id in self._queued]
            self._cancelled += sum(result.status == "cancelled" for result in ours)
            times = Counter(result.task_id for result in ours)
            for task_id, count in times.items():
                must(count <= 1 + server.requeued[task_id], f"task {task_id}: {count} results")
            return
        self._cancelled += sum(lease.status == "cancelled" for lease in server.leases.values())
        leased = Counter(lease.task_id for lease in server.leases.values())
        must(set(leased) == set(self._queued), "a task was never leased, or is not ours")
        for lease in server.leases.values():
            is_lost = lease.lease_id in self._lost
            must(is_lost == (lease.status == "leased"), f"lease {lease.lease_id} {lease.status}")
        for limited in server.limited:
            must(not limited.disobeyed, f"{limited.key} was not to call, and did")
