"""Stores and control planes for tests: the same test runs on memory and on SQLite."""

import asyncio
import json
import random
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.model import TaskKind
from netsonde.server.api import Api, ApiRequest
from netsonde.server.config import ServerConfig
from netsonde.server.core import ControlPlane
from netsonde.server.store import InlineWriter, MemoryStore, SqliteStore, Store
from netsonde.server.store.tasks import NewTask
from support.api_document import CheckedAgentApi, CheckedOperatorApi

T = TypeVar("T")

STORES = ("memory", "sqlite")
TCP_SPEC = b'{"kind":"tcp","host":"192.0.2.1","port":80}'
PING_SPEC = b'{"kind":"ping","host":"192.0.2.1"}'
TERMS_MS = dict.fromkeys(TaskKind, 20000)


def open_store(name: str, directory: Path) -> Store:
    """Open a store; opening the same directory again finds what was committed."""
    return MemoryStore() if name == "memory" else SqliteStore.open(directory / "server.db")


def new_task(**changes: Any) -> NewTask:
    fields: dict[str, Any] = {
        "kind": TaskKind.TCP,
        "spec": TCP_SPEC,
        "run_ns": 0,
        "max_attempts": 3,
    }
    return NewTask(**(fields | changes))


def config(**changes: Any) -> ServerConfig:
    """Settings of a control plane whose timing tests can follow: term 20 s, grace 2 s."""
    return ServerConfig(**({"terms_ms": TERMS_MS} | changes))


def control_plane(
    store: Store, clock: ManualClock, settings: ServerConfig | None = None, seed: int = 1
) -> ControlPlane:
    """Make a control plane over a store, running every operation at once."""
    return ControlPlane(
        settings or config(), clock, InlineWriter(store), store, random.Random(seed)
    )


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise AssertionError("the coroutine waits for something")


@dataclass
class Caller:
    """Calls an API as an HTTP client would, without sockets."""

    plane: ControlPlane
    clock: ManualClock
    headers: dict[str, str] = field(default_factory=lambda: {"netsonde-protocol": "1"})
    operator_token: str | None = None

    def __post_init__(self) -> None:
        self.agents: Api = CheckedAgentApi(self.plane)
        self.operators: Api = CheckedOperatorApi(self.plane, self.operator_token)

    async def agent(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        return await self._call(self.agents, method, path, body, headers)

    async def operator(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        return await self._call(self.operators, method, path, body, {"host": "localhost"} | headers)

    async def _call(
        self, api: Api, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> tuple[int, Any, Mapping[str, str]]:
        bare, _, query = path.partition("?")
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await api.dispatch(
            ApiRequest(
                method=method,
                path=bare,
                query=[(one.partition("=")[0], one.partition("=")[2]) for one in query.split("&")]
                if query
                else [],
                headers={name: value for name, value in sent.items() if value},
                body=body if isinstance(body, bytes) else b"" if body is None else _json(body),
                received_ns=self.plane.time.now_ns(),
                remote="192.0.2.200",
            )
        )
        body_read = json.loads(answer.body) if answer.body else None
        return answer.status, body_read, answer.headers

    async def register(self, **body: Any) -> "RegisteredAgent":
        """Register and return an agent that can call."""
        sent = {"hostname": "probe-1", "agent_key": "k1" * 16} | body
        status, answer, _ = await self.agent("POST", "/register", sent)
        assert status == 200, answer
        return RegisteredAgent(self, answer["agent_id"], answer["auth_token"], answer)

    async def tasks(self, count: int = 1, **fields: Any) -> list[int]:
        """Queue one-off tasks as an operator."""
        item = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}} | fields
        status, answer, _ = await self.operator("POST", "/v1/tasks", [item] * count)
        assert status == 200, answer
        return [one["task_id"] for one in answer["tasks"]]


@dataclass
class RegisteredAgent:
    """An agent's side of the calls."""

    caller: Caller
    agent_id: int
    token: str
    answer: Mapping[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    async def call(
        self, path: str, body: Mapping[str, Any], **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        sent = {"agent_id": self.agent_id} | dict(body)
        return await self.caller.agent("POST", path, sent, **(self.credentials() | headers))

    def credentials(self) -> dict[str, str]:
        own = {"x_agent_id": str(self.agent_id), "x_agent_token": self.token}
        return own | self.headers

    async def claim(self, count: int = 10, **body: Any) -> list[dict[str, Any]]:
        sent = {"capacities": {"tcp": count}} | body
        status, answer, _ = await self.call("/claim", sent)
        assert status == 200, answer
        leases: list[dict[str, Any]] = answer["leases"]
        return leases

    async def report(self, *lease_ids: int, outcome: str = "ok") -> list[str]:
        items = [result_item(lease_id, outcome) for lease_id in lease_ids]
        status, answer, _ = await self.call("/report", {"completed": items, "cancelled": []})
        assert status == 200, answer
        return [one["status"] for one in answer["results"]]


def result_item(lease_id: int, outcome: str = "ok") -> dict[str, Any]:
    return {
        "lease_id": lease_id,
        "outcome": outcome,
        "started_at": "2026-11-23T12:00:00.000000000Z",
        "duration_ms": 1.5,
        "observations": [{"name": "tcp_summary", "value": {"success": outcome == "ok"}}],
    }


def callers(name: str, directory: Path, **changes: Any) -> Iterator[Caller]:
    """Yield a caller of a fresh control plane, for use in a fixture."""
    clock = ManualClock()
    store = open_store(name, directory)
    try:
        yield Caller(control_plane(store, clock, config(**changes)), clock)
    finally:
        store.close()


def written_in(directory: Path) -> bytes:
    """Return all that the files of a directory hold."""
    return b"".join(path.read_bytes() for path in directory.iterdir())


async def settled(clock: ManualClock, task: "asyncio.Task[T]", step_ms: int, steps: int) -> T:
    """Advance the clock until task is done."""
    for _ in range(steps):
        if task.done():
            break
        await clock.advance(step_ms * NS_PER_MS)
    assert task.done(), "still waiting"
    return task.result()


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()
