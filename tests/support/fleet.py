"""A real control plane and real agents in one process, under a manual clock, without sockets."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from netsonde import wire
from netsonde.agent import Agent, AgentConfig
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.control_plane import (
    MemoryControlPlaneTransport,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.control_plane.memory import Handler
from netsonde.control_plane.transport import Headers
from netsonde.model import TaskKind
from netsonde.probe.base import Prober
from netsonde.server.api import ApiRequest, ApiResponse
from netsonde.server.background import schedule_forever, sweep_forever
from support.stores import Caller, config, control_plane, open_store

URL = "http://192.0.2.10:8080"
STEP_MIN_NS = 100 * NS_PER_MS
STEPS_MAX = 60
TURNS = 60  # of the loop after each step: a call through client, transport and server takes 20


class Fleet:
    """A control plane on the store in memory, and what its operator does and sees."""

    def __init__(self, clock: ManualClock, folder: Path, **server: Any) -> None:
        self.clock = clock
        self._folder = folder
        self._plane = control_plane(open_store("memory", folder), clock, config(**server))
        self.operator = Caller(self._plane, clock)

    def transport(self) -> MemoryControlPlaneTransport:
        """Make a way to the control plane of one agent's own."""
        return MemoryControlPlaneTransport(self._handle, self.clock, streamer=self._stream)

    async def _handle(self, request: TransportRequest) -> TransportResponse:
        answer = await self._dispatch(request, None)
        return TransportResponse(answer.status, answer.headers, answer.body)

    async def _stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> TransportStream:
        answer = await self._dispatch(request, lines)
        chunks = answer.chunks or _piece(answer.body)
        return TransportStream(answer.status, Headers(answer.headers), chunks)

    async def _dispatch(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> ApiResponse:
        return await self.operator.agents.dispatch(
            ApiRequest(
                method=request.method,
                path=request.path,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=request.body,
                chunks=lines,
                received_ns=self._plane.time.now_ns(),
                remote="192.0.2.200",
            )
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the control plane do what it does by itself."""
        async with asyncio.TaskGroup() as group:
            work = [
                group.create_task(sweep_forever(self._plane)),
                group.create_task(schedule_forever(self._plane)),
            ]
            yield
            for task in work:
                task.cancel()

    async def queue(self, kind: TaskKind, *targets: str) -> list[int]:
        """Queue one task per target; return their ids."""
        items = [{"kind": kind.value, "spec": _spec(kind, target)} for target in targets]
        status, answer, _ = await self.operator.operator("POST", "/v1/tasks", items)
        assert status == 200, answer
        assert all("task_id" in one for one in answer["tasks"]), answer
        return [one["task_id"] for one in answer["tasks"]]

    async def results(self, final: str = "") -> list[dict[str, Any]]:
        """Return every final result, in the order of acceptance."""
        path = f"/v1/results?limit=1000{final}"
        status, answer, _ = await self.operator.operator("GET", path)
        assert status == 200, answer
        results: list[dict[str, Any]] = answer["results"]
        return results

    async def counters(self) -> dict[str, int]:
        """Return what the control plane counts."""
        _, answer, _ = await self.operator.operator("GET", "/v1/queues")
        counters: dict[str, int] = answer["counters"]
        return counters

    async def waiting(self) -> int:
        """Return how many tasks nobody works on."""
        _, answer, _ = await self.operator.operator("GET", "/v1/queues")
        return sum(queue["ready"] + queue["delayed"] for queue in answer["queues"])


async def _piece(body: bytes) -> AsyncGenerator[bytes]:
    yield body


def _spec(kind: TaskKind, target: str) -> dict[str, Any]:
    match kind:
        case TaskKind.DNS:
            return {"query": target}
        case TaskKind.HTTP:
            return {"url": f"http://{target}/"}
        case TaskKind.TCP:
            return {"host": target, "port": 443}
    return {"host": target}


def make_agent(
    clock: ManualClock,
    folder: Path,
    transport: MemoryControlPlaneTransport | Handler,
    probers: Mapping[TaskKind, Prober[Any]],
    **settings: Any,
) -> Agent:
    """Make an agent that speaks over the memory transport."""
    if not isinstance(transport, MemoryControlPlaneTransport):
        transport = MemoryControlPlaneTransport(transport, clock)
    wanted: dict[str, Any] = {
        "control_plane": URL,
        "state_dir": folder,
        "hostname": "probe-1",
        "capacities": dict.fromkeys(TaskKind, 4),
    }
    return Agent(
        AgentConfig(**(wanted | settings)),
        clock=clock,
        transport=transport,
        probers=probers,
        rng=Random(5),
    )


class Run:
    """One run of an agent; `ended` says whether it returned."""

    def __init__(self, agent: Agent, task: "asyncio.Task[None]") -> None:
        self.agent = agent
        self._task = task

    @property
    def ended(self) -> bool:
        """Whether `run` has returned."""
        return self._task.done()

    def kill(self) -> None:
        """End it as SIGKILL would, as far as one process can: nothing more is done."""
        self._task.cancel()


@asynccontextmanager
async def started(agent: Agent) -> AsyncIterator[Run]:
    """Run an agent for the duration of the block; at its end it is killed."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(agent.run())
        try:
            yield Run(agent, task)
        finally:
            task.cancel()


async def run_for(clock: ManualClock, seconds: float) -> None:
    """Let time pass in small steps, each with as many turns of the loop as any chain needs."""
    await clock.settle(TURNS)
    left_ns = round(seconds * NS_PER_S)
    longest_ns = max(STEP_MIN_NS, left_ns // STEPS_MAX)
    while left_ns > 0:
        step_ns = min(longest_ns, left_ns)
        await clock.advance(step_ns)
        await clock.settle(TURNS)
        left_ns -= step_ns


def bodies(transport: MemoryControlPlaneTransport, verb: str) -> list[dict[str, Any]]:
    """Return what was sent with a verb, in order, lost requests included; streams have no body."""
    return [
        wire.parse(request.body)
        for request in transport.requests
        if request.path.endswith(f"/{verb}") and request.body
    ]
