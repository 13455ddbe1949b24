"""The control plane of a world: one store that outlives its processes, and what they do to it."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

import orjson

from netsonde import wire
from netsonde.control_plane import TransportRequest, TransportResponse, TransportStream
from netsonde.control_plane.transport import Headers
from netsonde.errors import StorageError
from netsonde.metrics import Durations
from netsonde.server.api import ApiRequest, ApiResponse
from netsonde.server.background import schedule_forever, sweep_forever
from netsonde.server.config import ServerConfig
from netsonde.server.core import ControlPlane
from netsonde.server.handlers import AgentApi
from netsonde.server.leasing import Died
from netsonde.server.operator import OperatorApi
from netsonde.server.store import MemoryStore, SqliteStore, Store
from netsonde.server.store.results import ResultQuery
from support.lease_world.faults import Fault
from support.lease_world.oracle import Oracle
from support.lease_world.virtual_time import HostClock

T = TypeVar("T")
Draw = Callable[[Fault], bool]


class DownError(Exception):
    """There is no process, or it has just died."""


class ServerHost:
    """Runs one control plane at a time on the same store."""

    def __init__(
        self,
        config: ServerConfig,
        clock: HostClock,
        folder: Path,
        oracle: Oracle,
        rng: Random,
        draw: Draw,
    ) -> None:
        self.clock = clock
        self.plane: ControlPlane | None = None
        self._config = config
        self._folder = folder
        self._oracle = oracle
        self._rng = rng
        self._draw = draw
        self._memory = MemoryStore() if rng.random() < 0.5 else None
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order, so that a seed makes one world

    def start(self) -> None:
        """Start a process over what was committed."""
        store: Store = self._memory or SqliteStore.open(self._folder / "server.db")
        writer = _Writer(store, self)
        self.plane = ControlPlane(self._config, self.clock, writer, store, self._rng)
        now_ns = self.plane.time.now_ns()
        offset_ns = now_ns - self.clock.boottime_ns()
        self._oracle.hear(partial(self._oracle.started, now_ns, offset_ns))
        self._agents = AgentApi(self.plane)
        self._operators = OperatorApi(self.plane, None)
        for work in (sweep_forever(self.plane), schedule_forever(self.plane)):
            self._spawn(work)

    def crash(self) -> None:
        """End the process as SIGKILL does."""
        if self.plane is None:
            return
        writer = self.plane.writer
        assert isinstance(writer, _Writer)
        writer.is_dead = True
        if self._memory is None:
            writer.store.close()
        self.plane = None
        for task in tuple(self._tasks):
            task.cancel()
        self._tasks.clear()

    async def answer(self, request: TransportRequest) -> TransportResponse:
        """Answer an agent's request.

        Raises:
            DownError: there is no process, or it died meanwhile.
        """
        answer = await self._dispatch(request, is_agents=True)
        if request.path.endswith("/report") and answer.status == 200:
            for result in orjson.loads(answer.body)["results"]:
                self._oracle.answered(result["lease_id"], result["status"])
        return TransportResponse(answer.status, answer.headers, answer.body)

    async def stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> TransportStream:
        """Answer an agent's request piece by piece.

        Raises:
            DownError: there is no process, or it died meanwhile; the pieces raise it too.
        """
        plane, sent = self.plane, _Sent(lines) if lines is not None else None
        answer = await self._dispatch(request, is_agents=True, chunks=sent)
        return TransportStream(
            answer.status, Headers(answer.headers), self._pieces(plane, answer, sent)
        )

    async def _pieces(
        self, plane: ControlPlane | None, answer: ApiResponse, sent: "_Sent | None"
    ) -> AsyncGenerator[bytes]:
        if answer.chunks is None:
            yield answer.body
            return
        async with aclosing(answer.chunks):
            while True:
                piece = await self._of(plane, anext(answer.chunks, None))
                if piece is None:
                    return
                if sent is not None:
                    for seq, status in _statuses(piece):
                        self._oracle.answered(sent.lease_ids[seq], status)
                yield piece

    async def operate(self, path: str, body: Any, key: str = "") -> Any:
        """Make an operator's call; return the answer.

        Raises:
            DownError: there is no process, or it died or failed meanwhile.
        """
        headers = {"host": "localhost", "netsonde-protocol": "1", "idempotency-key": key}
        request = TransportRequest(
            method="GET" if body is None else "POST",
            path=path,
            headers={name: value for name, value in headers.items() if value},
            body=b"" if body is None else wire.encode(body),
            timeout_s=10,
        )
        answer = await self._dispatch(request, is_agents=False)
        if answer.status != 200:
            raise DownError(answer.body)
        return orjson.loads(answer.body)

    def stored(self) -> list[int]:
        """Return the lease id of every result there is."""
        assert self.plane is not None
        writer = self.plane.writer
        assert isinstance(writer, _Writer)
        return [
            row.lease_id for row in writer.store.results(ResultQuery(limit=10**6, final_only=False))
        ]

    async def _dispatch(
        self,
        request: TransportRequest,
        *,
        is_agents: bool,
        chunks: AsyncIterator[bytes] | None = None,
    ) -> ApiResponse:
        await self.clock.awake()  # a stalled process accepts, and says nothing
        plane = self.plane
        if plane is None:
            raise DownError("connection refused")
        path, _, query = request.path.partition("?")
        return await self._of(
            plane,
            (self._agents if is_agents else self._operators).dispatch(
                ApiRequest(
                    method=request.method,
                    path=path,
                    headers={name.lower(): value for name, value in request.headers.items()},
                    query=parse_qsl(query),
                    body=request.body,
                    chunks=chunks,
                    received_ns=plane.time.now_ns(),
                    remote="192.0.2.200",
                )
            ),
        )

    async def _of(self, plane: ControlPlane | None, work: Coroutine[Any, Any, T]) -> T:
        """Do a process's work, as long as it lives."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        handled = self._spawn(work, ended)
        try:
            await ended
        except asyncio.CancelledError:
            handled.cancel()  # who asked has hung up
            await asyncio.wait((handled,))
            raise
        await self.clock.awake()
        if self.plane is not plane or handled.cancelled():
            raise DownError("reset by peer")
        result: T = handled.result()
        return result

    def _spawn(self, work: Any, ended: "asyncio.Future[None] | None" = None) -> "asyncio.Task[Any]":
        """Begin a part of the process's work; ended: what to set when it ends."""

        def note(done: "asyncio.Task[Any]") -> None:
            self._tasks.pop(done, None)
            if ended is not None and not ended.done():
                ended.set_result(None)

        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(note)
        return task

    # ── what commits ──

    def written(self, store: Store, operation: Callable[[Store], T]) -> T:
        """Run an operation in a transaction, with what can happen to one."""
        if self._draw(Fault.SERVER_DISK_FULL):
            raise StorageError("the disk is full")
        plane = self.plane
        assert plane is not None
        seen = _Seen(store, self._oracle, self.clock, plane)
        store.begin()
        try:
            result = operation(cast("Store", seen))  # it passes on what it does not see
        except BaseException:
            store.rollback()
            raise
        # The store in memory takes nothing back: a real one ends with its process.
        is_memory = store is self._memory
        if seen.has_written and not is_memory and self._draw(Fault.SERVER_CRASH_BEFORE_COMMIT):
            return self.lose(store, result)
        store.commit()
        if seen.has_written:
            self._oracle.wrote(plane.time.now_ns())
        seen.tell()
        if seen.has_written and self._draw(Fault.SERVER_CRASH_AFTER_COMMIT):
            self.crash()
            raise DownError("crashed after the commit")
        return result

    def lose(self, store: Store, result: T) -> T:
        """Crash before the commit of what would have had this result.

        Raises:
            DownError: always.
        """
        store.rollback()
        self.crash()
        raise DownError("crashed before a commit")


class _Sent:
    """The lines of a report on their way in, and the leases that they are about."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self.lease_ids: dict[int, int] = {}
        self._lines = lines

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._lines)
        for line in chunk.splitlines():
            item = orjson.loads(line)
            self.lease_ids[item["seq"]] = item["lease_id"]
        return chunk


def _statuses(piece: bytes) -> list[tuple[int, str]]:
    answers = [orjson.loads(line) for line in piece.splitlines()]
    return [(one["seq"], one["status"]) for one in answers if one["t"] == "a"]


class _Writer:
    """Runs every operation at once, while its process lives."""

    def __init__(self, store: Store, host: ServerHost) -> None:
        self.store = store
        self.commits = Durations()
        self.is_dead = False
        self.on_full: Callable[[], None] = lambda: None
        self._host = host

    async def write(self, operation: Callable[[Store], T], items: int = 1) -> T:
        self._check()
        await self._host.clock.awake()
        self._check()
        return self._host.written(self.store, operation)

    async def read(self, operation: Callable[[Store], T]) -> T:
        self._check()
        return operation(self.store)

    async def look(self, operation: Callable[[Store], T]) -> T:
        return await self.read(operation)

    async def close(self) -> None:
        self.store.close()

    def _check(self) -> None:
        if self.is_dead:
            raise DownError("this process is dead")


class _Seen:
    """A store whose grants, extensions, ends and results are told to the oracle at the commit."""

    def __init__(self, store: Store, oracle: Oracle, clock: HostClock, plane: ControlPlane) -> None:
        self._store = store
        self._oracle = oracle
        self._offset_ns = plane.time.now_ns() - clock.boottime_ns()
        self._told: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @property
    def has_written(self) -> bool:
        return bool(self._told)

    def tell(self) -> None:
        for told in self._told:
            self._oracle.hear(told)

    def take(self, queue: int, kind: Any, limit: int, grant: Any) -> Any:
        granted = self._store.take(queue, kind, limit, grant)
        for task in granted:
            self._will(
                self._oracle.granted, task.task_id, orjson.loads(task.spec)["host"], task.lease_id,
                grant.agent_id, task.attempt, task.until_ns - self._offset_ns,
            )  # fmt: skip
        return granted

    def extend(self, leases: Sequence[Any]) -> None:
        self._store.extend(leases)
        for lease in leases:
            self._will(self._oracle.extended, lease.task_id, lease.until_ns - self._offset_ns)

    def due(self, now_ns: int, limit: int) -> Any:
        held = self._store.due(now_ns, limit)
        for task in held:
            self._will(self._oracle.expired, task.task_id, now_ns - task.until_ns)
        return held

    def apply(self, changes: Sequence[Any], now_ns: int) -> None:
        self._store.apply(changes, now_ns)
        for change in changes:
            if isinstance(change, Died):
                self._will(self._oracle.died, change.task_id)

    def add_results(self, results: Sequence[Any]) -> None:
        self._store.add_results(results)
        for result in results:
            self._will(
                self._oracle.stored, result.task_id, result.lease_id, result.agent_id,
                is_final=result.is_final,
            )  # fmt: skip

    def unbury(self, task_ids: Collection[int]) -> None:
        self._store.unbury(task_ids)
        for task_id in task_ids:
            self._will(self._oracle.raised, task_id)

    def save_agent(self, agent: Any) -> None:
        self._store.save_agent(agent)
        self._will(self._oracle.registered, agent.agent_id, agent.hostname)

    def add_tasks(self, tasks: Sequence[Any]) -> range:
        ids = self._store.add_tasks(tasks)
        for task_id, task in zip(ids, tasks, strict=True):
            self._will(self._oracle.enqueued, task_id, orjson.loads(task.spec)["host"])
        return ids

    def _will(self, told: Callable[..., None], *what: Any, **named: Any) -> None:
        self._told.append(partial(told, *what, **named))
