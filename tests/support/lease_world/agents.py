"""The agents of a world: their processes, the way to the control plane, and their disks."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from netsonde.agent import Agent, AgentConfig
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.control_plane import TransportRequest, TransportResponse, TransportStream
from netsonde.control_plane.transport import Headers
from netsonde.errors import SpoolFull, StorageError, TransportError
from netsonde.model import TaskKind
from netsonde.probe.base import Recorder
from netsonde.spool.file import SpoolFile
from support.lease_world.faults import Fault
from support.lease_world.oracle import Host, Oracle
from support.lease_world.server import DownError, Draw, ServerHost
from support.lease_world.virtual_time import HostClock, VirtualLoop

T = TypeVar("T")

URL = "http://192.0.2.10:8080"
LATENCY_MAX_NS = 40 * NS_PER_MS
SLOW_MAX_NS = 4 * NS_PER_S
STREAMS_SHARE = 0.75  # of the agents; a proxy keeps the others from streams
WAL = "spool.db-wal"
PAGE = b"<html><body>It works!</body></html>"


class AgentHost:
    """Runs one agent at a time on the same disk."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        folder: Path,
        server: ServerHost,
        oracle: Oracle,
        rng: Random,
        draw: Draw,
        capacities: Mapping[TaskKind, int],
        durations_ns: Callable[[str], int],
    ) -> None:
        self.name = name
        self.clock = HostClock(loop)
        self.agent: Agent | None = None
        self._reachable_ns = 0
        self._loop = loop
        self._folder = folder
        self.server = server
        self.oracle = oracle
        self.rng = rng
        self.draw = draw
        self._capacities = capacities
        self.durations_ns = durations_ns
        self.streams = rng.random() < STREAMS_SHARE
        self._lives = 0
        self._life: _Life | None = None

    @property
    def disk(self) -> Path:
        """The directory of the process that runs, or ran last."""
        return self._folder / f"{self.name}-{self._lives}"

    def start(self) -> None:
        """Start an agent over what its disk holds."""
        if self._life is not None:
            return
        life = self._life = _Life(self, Host(self.name, self._lives))
        settings = AgentConfig(
            control_plane=URL,
            state_dir=self.disk,
            hostname=self.name,
            capacities=self._capacities,
            claim_wait_s=2,
            target_starts_per_s=10_000,
        )
        probers = {kind: _Prober(kind, life) for kind in self._capacities}
        self.agent = Agent(
            settings,
            clock=self.clock,
            transport=_Link(life),
            probers=probers,
            rng=Random(self.rng.getrandbits(64)),
        )
        life.task = self._loop.create_task(self.agent.run())
        life.task.add_done_callback(self._ended)

    def kill(self, disk: Path | None = None) -> None:
        """End the agent as SIGKILL does; disk: what is left of it, else all that was written."""
        life = self._life
        if life is None:
            return
        life.is_over = True
        self._life = self.agent = None
        self.oracle.vanished(life.host)
        old = self.disk
        self._lives += 1
        shutil.copytree(disk or old, self.disk, dirs_exist_ok=True, copy_function=shutil.copy)
        if life.task is not None:
            life.task.cancel()

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._life is not None

    @property
    def is_partitioned(self) -> bool:
        """Whether nothing arrives, in either direction."""
        return self.clock.boottime_ns() < self._reachable_ns

    def partition(self, duration_ns: int) -> None:
        """Let nothing arrive for a while from now on."""
        self._reachable_ns = max(self._reachable_ns, self.clock.boottime_ns() + duration_ns)

    def drain(self) -> None:
        """Ask the agent to finish; it is started again when it has."""
        if self.agent is not None:
            self.agent.drain()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if self._life is not None and self._life.task is task:
            self._life = self.agent = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": f"{self.name} died", "exception": error})

    def rows(self) -> int:
        """Return how many results wait in the spool; who has not begun yet may have one."""
        parts = self.agent._parts if self.agent else None
        return parts.spool.rows if parts else 1

    # ── its disk ──

    def write(self, file: Any, group: Any, write: Callable[[Any, Any], None]) -> None:
        """Commit a group of the spool, with what can happen to it."""
        life, disk = self._life, file.path.parent
        if life is None or disk.name != f"{self.name}-{self._lives}":
            write(file, group)  # of a process that is dead: nobody will read it
            return
        if self.draw(Fault.AGENT_DISK_FULL):
            raise SpoolFull("no space left on device")
        wal = f"{disk}/{WAL}"
        before = _size(wal)
        write(file, group)
        if group.records and self.draw(Fault.AGENT_CRASH_AFTER_SPOOLING):
            self.kill()
            raise StorageError("killed after the commit")
        size = _size(wal)
        if size > before and self.draw(Fault.AGENT_TORN_WRITE):
            torn = self._folder / f"{self.name}-torn"
            shutil.rmtree(torn, ignore_errors=True)
            shutil.copytree(disk, torn, copy_function=shutil.copy)
            with (torn / WAL).open("r+b") as cut:  # some of what is new never reached the disk
                cut.truncate(self.rng.randrange(before, size))
            self.kill(torn)
            raise StorageError("killed in the commit")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a Path costs as much as all the rest)
    except FileNotFoundError:
        return 0


class _Life:
    """One process."""

    def __init__(self, owner: AgentHost, host: Host) -> None:
        self.owner = owner
        self.host = host
        self.is_over = False
        self.task: asyncio.Task[None] | None = None


class _Prober:
    """Measures a target by waiting, and tells the oracle."""

    def __init__(self, kind: TaskKind, life: _Life) -> None:
        self.kind = kind
        self._life = life

    async def run(self, spec: Any, record: Recorder) -> None:
        owner, life = self._life.owner, self._life
        oracle, clock = owner.oracle, owner.clock
        is_whole = False
        oracle.began(life.host, self.kind, spec.host, clock.boottime_ns())
        try:
            await clock.sleep(owner.durations_ns(spec.host))
            is_whole = True
            record.ok()
        finally:
            if not life.is_over:
                oracle.ended(
                    life.host, self.kind, spec.host, clock.boottime_ns(), clock.awake_ns,
                    is_whole=is_whole,
                )  # fmt: skip

    async def close(self) -> None:
        """Nothing is open."""


class _Link:
    """The way to the control plane of one process, with what can happen on it."""

    base_url = URL

    def __init__(self, life: _Life) -> None:
        self._life = life

    async def call(self, request: TransportRequest) -> TransportResponse:
        """Send request and return the complete answer.

        Raises:
            TransportError: no complete answer came.
        """
        owner = self._life.owner
        try:
            async with asyncio.timeout(request.timeout_s):
                answer = await self._carry(request)
        except TimeoutError:
            raise TransportError(request.operation, "no complete answer in time") from None
        await owner.clock.awake()
        self._live()
        if owner.draw(Fault.AGENT_CRASH_AFTER_ANSWER):
            owner.kill()
            self._live()
        return answer

    @asynccontextmanager
    async def stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None = None
    ) -> AsyncIterator[TransportStream]:
        """Send request and bring the answer piece by piece.

        Raises:
            TransportError: no answer came.
        """
        answer = await self._in_time(request, self._carry_stream(request, lines))
        async with aclosing(self._pieces(request, answer)) as pieces:
            yield TransportStream(answer.status, answer.headers, pieces)

    async def _in_time(self, request: TransportRequest, work: Coroutine[Any, Any, T]) -> T:
        limit_s = min(request.timeout_s, request.idle_timeout_s or request.timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                result = await work
        except TimeoutError:
            raise TransportError(request.operation, "no complete answer in time") from None
        await self._life.owner.clock.awake()
        self._live()
        return result

    async def _carry_stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> TransportStream:
        owner, draw = self._life.owner, self._life.owner.draw
        self._live()
        await self._latency()
        if self._is_lost(Fault.REQUEST_LOST):
            raise TransportError(request.operation, "reset by peer")
        if not owner.streams:
            return _page(415)
        if draw(Fault.PROXY_ERROR):
            return _page(503)
        try:
            answer = await owner.server.stream(request, lines and self._rising(lines))
        except DownError as error:
            raise TransportError(request.operation, str(error)) from None
        if draw(Fault.RESPONSE_GARBLED):
            return _page(200)
        return answer

    async def _rising(self, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Let a request's body arrive with the latency of its way, as long as it does."""
        async for chunk in lines:
            await self._latency()
            if self._is_lost(Fault.REQUEST_LOST):
                raise ConnectionResetError
            yield chunk

    async def _pieces(
        self, request: TransportRequest, answer: TransportStream
    ) -> AsyncGenerator[bytes]:
        owner = self._life.owner
        try:
            while True:
                piece = await self._in_time(request, self._piece(request, answer))
                if piece is None:
                    return
                is_cut = owner.draw(Fault.RESPONSE_CUT)
                yield piece[: owner.rng.randrange(len(piece))] if is_cut and piece else piece
                if is_cut:
                    return
                if owner.draw(Fault.AGENT_CRASH_AFTER_ANSWER):
                    owner.kill()
                    self._live()
        finally:
            if isinstance(answer.chunks, AsyncGenerator):
                await answer.chunks.aclose()

    async def _piece(self, request: TransportRequest, answer: TransportStream) -> bytes | None:
        try:
            piece = await anext(answer.chunks, None)
        except DownError as error:
            raise TransportError(request.operation, str(error)) from None
        await self._latency()
        if self._is_lost(Fault.RESPONSE_LOST):
            raise TransportError(request.operation, "the answer broke off")
        return piece

    async def close(self) -> None:
        """Nothing is open."""

    def _live(self) -> None:
        """A dead process learns nothing any more, and sends nothing."""
        if self._life.is_over:
            raise asyncio.CancelledError

    async def _carry(self, request: TransportRequest) -> TransportResponse:
        owner, draw = self._life.owner, self._life.owner.draw
        self._live()
        await self._latency()
        if self._is_lost(Fault.REQUEST_LOST):
            raise TransportError(request.operation, "reset by peer")
        if draw(Fault.PROXY_ERROR):
            return TransportResponse(503, {"Retry-After": "1"}, PAGE)
        try:
            if draw(Fault.REQUEST_DOUBLED):
                await owner.server.answer(request)
                await self._latency()
            answer = await owner.server.answer(request)
        except DownError as error:
            raise TransportError(request.operation, str(error)) from None
        await self._latency()
        if self._is_lost(Fault.RESPONSE_LOST):
            raise TransportError(request.operation, "the server closed the connection")
        if draw(Fault.RESPONSE_GARBLED):
            return TransportResponse(200, {"Content-Type": "text/html"}, PAGE)
        if answer.body and draw(Fault.RESPONSE_CUT):
            cut = owner.rng.randrange(len(answer.body))
            return TransportResponse(answer.status, answer.headers, answer.body[:cut])
        return answer

    def _is_lost(self, fault: Fault) -> bool:
        return self._life.owner.is_partitioned or self._life.owner.draw(fault)

    async def _latency(self) -> None:
        owner = self._life.owner
        delay_ns = owner.rng.randrange(LATENCY_MAX_NS)
        if owner.draw(Fault.SLOW):
            delay_ns = owner.rng.randrange(SLOW_MAX_NS)
        await asyncio.sleep(delay_ns / NS_PER_S)


def _page(status: int) -> TransportStream:
    """Make a proxy's own answer."""

    async def chunks() -> AsyncIterator[bytes]:
        yield PAGE

    headers = {"Content-Type": "text/html", "Retry-After": "1"}
    return TransportStream(status, Headers(headers), chunks())


def hook_spools(hosts: list[AgentHost]) -> Callable[[], None]:
    """Let every spool of these hosts write by way of them; return what undoes it."""
    plain = SpoolFile.write
    by_name = {host.name: host for host in hosts}

    def write(file: Any, group: Any) -> None:
        host = by_name.get(file.path.parent.name.rpartition("-")[0])
        if host is None:
            plain(file, group)
        else:
            host.write(file, group, plain)

    SpoolFile.write = write  # type: ignore[method-assign, assignment]

    def undo() -> None:
        SpoolFile.write = plain  # type: ignore[method-assign]

    return undo
