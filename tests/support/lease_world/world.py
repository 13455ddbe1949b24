"""One world from its seed to its end."""

import asyncio
import gc
import itertools
import logging
import tempfile
import uuid
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from unittest import mock

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.model import TaskKind
from netsonde.server.config import ServerConfig
from support.lease_world.agents import AgentHost, hook_spools
from support.lease_world.faults import Fault
from support.lease_world.oracle import Oracle, WrongError, must
from support.lease_world.server import DownError, ServerHost
from support.lease_world.virtual_time import HostClock, VirtualLoop, uncollected
from support.spools import InlineExecutor

LEASES_MIN = 200
FAULTS_MIN = 20
BURST = 20  # tasks queued at once
AGENTS = 3
KINDS = (TaskKind.TCP, TaskKind.PING)
SLOTS = 6
ATTEMPTS = 5
GRACE_MS = 500
TROUBLE_NS = 20 * NS_PER_S  # about as long as tasks are queued
RECOVERY_NS = 30 * NS_PER_S  # and two terms
LIMIT_NS = 900 * NS_PER_S  # after the last fault, for all that was queued
RAM = Path("/dev/shm")

# How often each happens: of messages and commits, of every one; of events, their share.
OF_EACH: dict[Fault, float] = {
    Fault.REQUEST_LOST: 0.02,
    Fault.RESPONSE_LOST: 0.03,
    Fault.REQUEST_DOUBLED: 0.03,
    Fault.RESPONSE_CUT: 0.01,
    Fault.RESPONSE_GARBLED: 0.01,
    Fault.PROXY_ERROR: 0.01,
    Fault.SLOW: 0.03,
    Fault.SERVER_CRASH_BEFORE_COMMIT: 0.004,
    Fault.SERVER_CRASH_AFTER_COMMIT: 0.004,
    Fault.SERVER_DISK_FULL: 0.01,
    Fault.AGENT_CRASH_AFTER_SPOOLING: 0.01,
    Fault.AGENT_CRASH_AFTER_ANSWER: 0.004,
    Fault.AGENT_TORN_WRITE: 0.01,
    Fault.AGENT_DISK_FULL: 0.03,
}
EVENTS: tuple[Fault, ...] = (
    Fault.PARTITION,
    Fault.SERVER_CRASH,
    Fault.SERVER_STALL,
    Fault.SERVER_CLOCK_STEP,
    Fault.AGENT_CRASH,
    Fault.AGENT_DRAIN,
    Fault.AGENT_SUSPEND,
    Fault.AGENT_CLOCK_STEP,
)
PROCESS_FAULTS = frozenset({Fault.AGENT_CRASH, Fault.AGENT_DRAIN})  # need one that runs


@dataclass(frozen=True, slots=True)
class Summary:
    """What a world was like."""

    seed: int
    tasks: int
    dead: int
    grants: int
    faults: Counter[Fault]
    seconds: float  # of the world's time


def simulate(seed: int) -> Summary:
    """Run the world of a seed to its end.

    Raises:
        WrongError: something happened that must not; the message has the seed.
    """
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    try:
        with (
            uncollected(),
            tempfile.TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as folder,
            mock.patch("netsonde.spool.queue.ThreadPoolExecutor", InlineExecutor),
            mock.patch("netsonde.agent.agent.quiet_collector", nullcontext),  # nobody is timed
            mock.patch("netsonde.agent.telemetry.COLLECT_NS", 86_400 * NS_PER_S),
            mock.patch("netsonde.agent.telemetry.rss_bytes", _nothing),  # of all agents together
            mock.patch("netsonde.agent.telemetry.open_files", _nothing),
        ):
            asyncio.set_event_loop(loop)
            return loop.run_until_complete(_World(seed, loop, Path(folder)).run())
    except WrongError as error:
        raise WrongError(f"seed {seed}: {error}") from error
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        logging.disable(logging.NOTSET)


def _nothing() -> int:
    return 0


class _World:
    def __init__(self, seed: int, loop: VirtualLoop, folder: Path) -> None:
        self._seed = seed
        self._loop = loop
        self._rng = Random(seed)
        self._faults: Counter[Fault] = Counter()
        self._is_troubled = False
        self._broken: list[BaseException] = []
        term_ms = self._rng.choice((2_000, 3_000, 5_000))
        self._term_ns = term_ms * NS_PER_MS
        self._oracle = Oracle(dict.fromkeys(KINDS, SLOTS), ATTEMPTS, GRACE_MS * NS_PER_MS)
        config = ServerConfig(
            terms_ms=dict.fromkeys(TaskKind, term_ms),
            grace_ms=GRACE_MS,
            max_attempts=ATTEMPTS,
            requeue_base_ms=100,
            requeue_cap_ms=2_000,
            heartbeat_interval_ms=2_000,
            max_lease_ms=60_000,
            quota_scale=1_000,
        )
        self._server = ServerHost(
            config, HostClock(loop), folder, self._oracle, self._rng, self._draw
        )
        self._agents = [
            AgentHost(
                f"probe{number}", loop, folder, self._server, self._oracle, self._rng, self._draw,
                dict.fromkeys(KINDS, SLOTS), self._duration_ns,
            )
            for number in range(AGENTS)
        ]  # fmt: skip

    async def run(self) -> Summary:
        self._loop.set_exception_handler(self._note_broken)
        undo = hook_spools(self._agents)
        try:
            self._server.start()
            for agent in self._agents:
                agent.start()
            keeper = self._loop.create_task(self._keep_running())
            self._is_troubled = True
            await asyncio.gather(self._queue(), self._make_trouble())
            self._is_troubled = False
            await self._recover()
            keeper.cancel()
            return self._summary()
        finally:
            undo()
            await self._end()

    # ── what is asked for ──

    def _duration_ns(self, name: str) -> int:
        """Return how long the measurement of a target takes: some outlast their first term."""
        digest = blake2b(f"{self._seed} {name}".encode(), digest_size=8).digest()
        drawn, tenth = divmod(int.from_bytes(digest), 10)
        longest_ns = 3 * self._term_ns if tenth == 0 else self._term_ns // 2
        return NS_PER_MS + drawn % (longest_ns - NS_PER_MS)

    async def _queue(self) -> None:
        """Queue tasks in bursts, until they make leases enough."""
        numbers = itertools.count()
        while self._oracle.leases_expected < LEASES_MIN:
            burst = [f"t{number}.example" for number in itertools.islice(numbers, BURST)]
            self._oracle.queued(burst)
            kind = self._rng.choice(KINDS)
            spec = {"port": 443} if kind is TaskKind.TCP else {}
            items = [{"kind": kind.value, "spec": {"host": name} | spec} for name in burst]
            await self._insist("/v1/tasks", items)
            await asyncio.sleep(self._rng.random() * 4)

    async def _insist(self, path: str, body: object) -> object:
        """Make an operator's call until it is answered."""
        key = str(uuid.UUID(int=self._rng.getrandbits(128)))
        while True:
            try:
                return await self._server.operate(path, body, key if body is not None else "")
            except DownError:
                await asyncio.sleep(0.2)

    # ── what goes wrong ──

    def _draw(self, fault: Fault) -> bool:
        """Whether a fault happens now."""
        happens = self._is_troubled and self._rng.random() < OF_EACH[fault]
        self._faults[fault] += happens
        return happens

    async def _make_trouble(self) -> None:
        end_ns = self._now_ns() + TROUBLE_NS
        while self._now_ns() < end_ns:
            await asyncio.sleep(self._rng.random() * 3)
            self._check_broken()
            fault, agent = self._rng.choice(EVENTS), self._rng.choice(self._agents)
            if self._has_victim(fault, agent):
                self._faults[fault] += 1
                self._cause(fault, agent)
        while self._faults.total() < FAULTS_MIN:  # noqa: ASYNC110 (of this loop)
            await asyncio.sleep(0.5)

    def _has_victim(self, fault: Fault, agent: AgentHost) -> bool:
        """Whether there is a process that a fault can happen to."""
        if fault is Fault.SERVER_CRASH:
            return self._server.plane is not None
        return agent.is_running or fault not in PROCESS_FAULTS

    def _cause(self, fault: Fault, agent: AgentHost) -> None:
        some_ns = self._rng.randrange(3 * self._term_ns)
        step_ns = self._rng.choice((-3_600, -1, 1, 86_400)) * NS_PER_S
        match fault:
            case Fault.PARTITION:
                agent.partition(some_ns)
            case Fault.SERVER_CRASH:
                self._server.crash()
            case Fault.SERVER_STALL:
                self._server.clock.suspend(some_ns)
            case Fault.SERVER_CLOCK_STEP:
                self._server.clock.step(step_ns)
            case Fault.AGENT_CRASH:
                agent.kill()
            case Fault.AGENT_DRAIN:
                agent.drain()
            case Fault.AGENT_SUSPEND:
                agent.clock.suspend(some_ns)
            case Fault.AGENT_CLOCK_STEP:
                agent.clock.step(step_ns)

    async def _keep_running(self) -> None:
        """Start again what has ended, as a supervisor does."""
        while True:
            await asyncio.sleep(0.1 + self._rng.random())
            if self._server.plane is None:
                self._server.start()
            for agent in self._agents:
                if not agent.clock.is_suspended:
                    agent.start()

    def _note_broken(self, _: object, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException) and not isinstance(error, DownError):
            self._broken.append(error)

    # ── how it ends ──

    async def _recover(self) -> None:
        """Wait until nothing is owed any more, and insist on what must then be so."""
        healed_ns = self._now_ns()
        owed = {
            task_id: task.lease_id
            for task_id, task in self._oracle.tasks.items()
            if task.until_ns > healed_ns and not task.results and not task.is_dead
        }
        recovered_ns = healed_ns + 2 * self._term_ns + RECOVERY_NS
        while (live := await self._live()) > 0 and self._now_ns() < healed_ns + LIMIT_NS:
            self._check_broken()
            if self._now_ns() > recovered_ns:
                for task_id, lease_id in owed.items():
                    task = self._oracle.tasks[task_id]
                    is_over = task.results or task.is_dead or task.lease_id != lease_id
                    must(bool(is_over), f"task {task_id} has not recovered")
            await asyncio.sleep(1)
        for _ in range(60):  # results that were fenced are still on their way
            if not any(agent.rows() for agent in self._agents):
                break
            await asyncio.sleep(1)
        gc.collect(0)  # a task that failed unheard says so when it goes
        self._check_broken()
        rows = {agent.name: agent.rows() for agent in self._agents}
        self._oracle.check_end(live, rows, self._server.stored())

    async def _live(self) -> int:
        answer = await self._insist("/v1/queues", None)
        assert isinstance(answer, dict)
        return sum(
            queue["ready"] + queue["delayed"] + queue["leased"] for queue in answer["queues"]
        )

    def _check_broken(self) -> None:
        must(not self._oracle.wrong, "; ".join(self._oracle.wrong[:3]))
        if self._broken:
            raise WrongError(f"something broke: {self._broken[0]!r}") from self._broken[0]

    def _summary(self) -> Summary:
        tasks = self._oracle.tasks.values()
        return Summary(
            seed=self._seed,
            tasks=len(tasks),
            dead=sum(task.is_dead for task in tasks),
            grants=self._oracle.grants,
            faults=self._faults,
            seconds=self._loop.time(),
        )

    async def _end(self) -> None:
        """End every process, so that the loop can be closed."""
        for agent in self._agents:
            agent.kill()
        self._server.crash()
        pending = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _now_ns(self) -> int:
        return round(self._loop.time() * NS_PER_S)
