"""Our control plane in virtual time, as a process that can be restarted over what it has stored."""

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from netsonde import wire
from netsonde.clock import Clock
from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.errors import StorageError, TransportError
from netsonde.server.api import Api, ApiRequest
from netsonde.server.background import schedule_forever, sweep_forever
from netsonde.server.config import ServerConfig
from netsonde.server.core import ControlPlane
from netsonde.server.handlers import AgentApi
from netsonde.server.operator import OperatorApi
from netsonde.server.store import InlineWriter, MemoryStore, SqliteStore, Store
from netsonde.server.store.writer import Operation

T = TypeVar("T")
PAGE = 1000


class OurServer:
    """One process at a time. The store in memory outlives it as a database does.

    What a process keeps beside its store is lost with it: who waits, quotas, agents it knew. While
    `is_disk_full` nothing can be written.
    """

    def __init__(self, config: ServerConfig, clock: Clock, rng: Random, database: Path | None):
        self.clock = clock
        self.is_disk_full = False
        self._config = config
        self._rng = rng
        self._database = database
        self._memory = MemoryStore() if database is None else None
        self._work: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start a process."""
        self.store: Store = self._memory or SqliteStore.open(self._database or Path())
        writer = _Writer(self.store, self)
        self.plane = ControlPlane(self._config, self.clock, writer, self.store, self._rng)
        self.started_ns = self.plane.time.now_ns()
        self._agents: Api = AgentApi(self.plane)
        self._operators: Api = OperatorApi(self.plane, None)
        loop = asyncio.get_running_loop()
        self._work = [
            loop.create_task(work)
            for work in (sweep_forever(self.plane), schedule_forever(self.plane))
        ]

    def lose_memory(self) -> None:
        """Begin an empty store in memory, as a process without a database does."""
        self._memory = MemoryStore()

    def stop(self) -> None:
        """End the process as SIGKILL does."""
        for task in self._work:
            task.cancel()
        if self._memory is None:
            self.store.close()

    def broken(self) -> BaseException | None:
        """Return what ended its own work, None while it goes on."""
        for task in self._work:
            if task.done() and not task.cancelled():
                return task.exception() or RuntimeError("it ended")
        return None

    async def __call__(self, request: TransportRequest) -> TransportResponse:
        """Answer an agent's request."""
        return await self._dispatch(self._agents, request)

    async def operate(self, path: str, body: Any = None, method: str = "") -> Any:
        """Make an operator's call; return the answer."""
        request = TransportRequest(
            method=method or ("GET" if body is None else "POST"),
            path=path,
            headers={"Host": "localhost"},
            body=b"" if body is None else wire.encode(body),
            timeout_s=10,
        )
        answer = await self._dispatch(self._operators, request)
        if answer.status != 200:
            raise TransportError(path, answer.body.decode())
        return json.loads(answer.body)

    async def listed(self, path: str, name: str) -> list[dict[str, Any]]:
        """Return every page of a listing."""
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            joint = "&" if "?" in path else "?"
            answer = await self.operate(f"{path}{joint}limit={PAGE}{cursor}")
            rows += answer[name]
            if len(answer[name]) < PAGE:
                return rows
            cursor = f"&cursor={answer['cursor']}"

    async def depth(self) -> dict[str, int]:
        """Return how many tasks are ready, delayed and leased, over all queues."""
        answer = await self.operate("/v1/queues")
        return {
            state: sum(queue[state] for queue in answer["queues"])
            for state in ("ready", "delayed", "leased")
        }

    async def _dispatch(self, api: Api, request: TransportRequest) -> TransportResponse:
        path, _, query = request.path.partition("?")
        answer = await api.dispatch(
            ApiRequest(
                method=request.method,
                path=path,
                headers={name.lower(): value for name, value in request.headers.items()},
                query=parse_qsl(query),
                body=request.body,
                received_ns=self.plane.time.now_ns(),
                remote="192.0.2.200",
            )
        )
        return TransportResponse(answer.status, answer.headers, answer.body)


class _Writer(InlineWriter):
    """Writes at once, while there is room."""

    def __init__(self, store: Store, server: OurServer) -> None:
        super().__init__(store)
        self._server = server

    async def write(self, operation: Operation[T], items: int = 1) -> T:
        if self._server.is_disk_full:
            raise StorageError("no space left on device")
        return await super().write(operation, items)
