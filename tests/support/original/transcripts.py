"""What two peers say to each other, written down: every request and response of a short scene.

The bytes are those of the peers. Only what no two runs share is replaced: tokens, random ids, this
host's own facts and our version.
"""

import asyncio
import json
import re
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from netsonde.agent import Agent, AgentConfig
from netsonde.clock import NS_PER_S
from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.model import TaskKind
from netsonde.probe.base import Recorder
from netsonde.server.config import ServerConfig
from support.lease_world.virtual_time import HostClock, VirtualLoop
from support.original.agent import OriginalAgent, target
from support.original.go_server import GoServer
from support.original.link import Handler, WithoutStreams
from support.original.messages import Lease
from support.original.our_agent import SPECS
from support.original.our_server import OurServer
from support.original.prober import Script, scripted
from support.original.running import run_world
from support.original.rust_server import RustServer

URL = "http://192.0.2.10:8080"
CALLS = ("register", "heartbeat", "claim", "extend", "report")
VARYING_HEADERS = frozenset({"x-agent-token", "x-request-id"})
VARYING_TEXTS = (
    "auth_token",
    "agent_key",
    "boot_id",
    "claim_id",
    "instance_id",
    "request_id",
    "version",
)
VARYING_OBJECTS = ("inventory", "health")
VERSION = re.compile(r"^netsonde/.*")


@dataclass(slots=True)
class _Exchange:
    at_s: float
    request: TransportRequest
    response: TransportResponse | None = None


class Transcript(WithoutStreams):
    """A way between two peers that writes down what passes; it takes no time."""

    def __init__(self, handler: Handler, base_url: str = URL) -> None:
        self.base_url = base_url
        self._handler = handler
        self._exchanges: list[_Exchange] = []
        self._began_s = asyncio.get_running_loop().time()

    async def call(self, request: TransportRequest) -> TransportResponse:
        """Carry one request and its answer."""
        passed_s = asyncio.get_running_loop().time() - self._began_s
        exchange = _Exchange(passed_s, request)
        self._exchanges.append(exchange)
        exchange.response = await self._handler(request)
        return exchange.response

    async def close(self) -> None:
        """Nothing is open."""

    def text(self) -> str:
        """Return it all; what is asked within the same 10 ms is put in order by the call."""
        return "\n".join(_written(one) for one in sorted(self._exchanges, key=_place))


def _place(exchange: _Exchange) -> tuple[float, int]:
    return round(exchange.at_s, 2), CALLS.index(exchange.request.path.rpartition("/")[2])


def _written(exchange: _Exchange) -> str:
    request, response = exchange.request, exchange.response
    asked = _message(f"{request.method} {request.path}", request.headers, request.body)
    answered = "(no answer before the end)\n"
    if response is not None:
        answered = _message(str(response.status), response.headers, response.body)
    return f"## {exchange.at_s:.1f} s\n>> {asked}<< {answered}"


def _message(first: str, headers: Mapping[str, str], body: bytes) -> str:
    named = sorted((name.lower(), value) for name, value in headers.items())
    lines = [first, *(f"{name}: {_header(name, value)}" for name, value in named)]
    if body:
        lines += ["", normalised(body.decode()).rstrip("\n")]
        if body.endswith(b"\n"):
            lines[-1] += "\\n"
    return "\n".join(lines) + "\n"


def _header(name: str, value: str) -> str:
    return f"<{name}>" if name in VARYING_HEADERS else VERSION.sub("netsonde/<version>", value)


def normalised(body: str) -> str:
    """Replace what no two runs share."""
    for name in VARYING_TEXTS:
        body = re.sub(rf'"{name}":"[^"]*"', f'"{name}":"<{name}>"', body)
    for name in VARYING_OBJECTS:
        before, found, after = body.partition(f'"{name}":')
        if found:
            _, end = json.JSONDecoder().raw_decode(after)
            body = f'{before}{found}"<{name}>"{after[end:]}'
    return body


# ── the scenes ──


def original_agent_with_us() -> str:
    """Return what an original agent and our control plane say in a good minute."""
    return run_world(_original_agent_with_us)


async def _original_agent_with_us(loop: VirtualLoop) -> str:
    server = OurServer(ServerConfig(), HostClock(loop), Random(1), None)
    server.start()
    transcript = Transcript(server)
    agent = OriginalAgent(f"{URL}/v1/agents/", transcript.call, scripted(_script))
    running = loop.create_task(agent.run())
    await asyncio.sleep(2)
    await server.operate("/v1/tasks", _OUR_TASKS)
    await asyncio.sleep(60)
    await _disable(server, disabled=True)
    await asyncio.sleep(6)
    await _disable(server, disabled=False)
    await asyncio.sleep(6.5)
    text = transcript.text()
    running.cancel()
    server.stop()
    return text


_OUR_TASKS: tuple[dict[str, Any], ...] = (
    {"kind": "dns", "spec": {"query": "up.example", "server": "192.0.2.53"}},
    {"kind": "dns", "spec": {"query": "down.example", "qtype": "MX"}},
    {"kind": "http", "spec": {"url": "http://stub.example/"}},
    {"kind": "tcp", "spec": {"host": "up.example", "port": 443}},
    {"kind": "tcp", "spec": {"host": "down.example", "port": 443}},
    {"kind": "ping", "spec": {"host": "up.example", "count": 1}},
    {"kind": "ping", "spec": {"host": "broken.example"}},  # its handler fails: nobody is told
    {"kind": "trace", "spec": {"host": "slow.example"}},  # whose lease is extended meanwhile
)


def _script(lease: Lease) -> Script:
    name = target(lease)
    is_slow = name.startswith("slow")
    is_broken = name.startswith("broken")
    return Script(7.5 if is_slow else 0.5, not name.startswith("down"), is_broken)


async def _disable(server: OurServer, *, disabled: bool) -> None:
    await server.operate("/v1/agents/1", {"disabled": disabled}, method="PATCH")


def us_with_rust_server() -> str:
    """Return what our agent and the Rust server say, its database failing for a while."""

    async def trouble(server: RustServer) -> None:
        await asyncio.sleep(60)
        server.is_database_down = True
        await asyncio.sleep(8)
        server.is_database_down = False

    return run_world(lambda loop: _our_agent_with(loop, RustServer, trouble))


def us_with_go_server() -> str:
    """Return what our agent and the Go server say, its database being lost meanwhile."""

    async def trouble(server: GoServer) -> None:
        await asyncio.sleep(68)
        server.restart(is_wiped=True)

    return run_world(lambda loop: _our_agent_with(loop, GoServer, trouble))


async def _our_agent_with(
    loop: VirtualLoop,
    made: Callable[[HostClock], Any],
    trouble: Callable[[Any], Coroutine[Any, Any, None]],
) -> str:
    server = made(HostClock(loop))
    for kind in ("dns", "http", "tcp", "ping"):
        server.enqueue(kind, SPECS[kind](f"{kind}.example"))
    transcript = Transcript(server)
    with tempfile.TemporaryDirectory() as folder:
        agent = _our_agent(HostClock(loop), transcript, Path(folder))
        running = loop.create_task(agent.run())
        troubling = loop.create_task(trouble(server))
        await asyncio.sleep(30)
        kinds = ("trace", "whois") if made is GoServer else ("dns",)
        for kind in kinds:
            server.enqueue(kind, SPECS[kind](f"{kind}.example"))
        await asyncio.sleep(58.5)
        agent.drain()
        await running
        await troubling
    return transcript.text()


def _our_agent(clock: HostClock, transcript: Transcript, folder: Path) -> Agent:
    capacities = {TaskKind.DNS: 1, TaskKind.HTTP: 1, TaskKind.TCP: 1, TaskKind.PING: 1}
    settings = AgentConfig(
        control_plane=URL,
        state_dir=folder,
        hostname="probe-1",
        capacities=capacities | {TaskKind.TRACE: 0},
    )
    probers = {kind: _Prober(kind, clock) for kind in capacities}
    return Agent(settings, clock=clock, transport=transcript, probers=probers, rng=Random(5))


class _Prober:
    """Takes half a second; a ping so long that its lease must be extended."""

    def __init__(self, kind: TaskKind, clock: HostClock) -> None:
        self.kind = kind
        self._clock = clock

    async def run(self, spec: Any, record: Recorder) -> None:
        duration_s = 80 if self.kind is TaskKind.PING else 0.5
        await self._clock.sleep(round(duration_s * NS_PER_S))
        record.observe(f"{self.kind.value}_summary", {"success": True})
        record.ok()

    async def close(self) -> None:
        """Nothing is open."""


SCENES: Mapping[str, Callable[[], str]] = {
    "original-agent_our-server": original_agent_with_us,
    "our-agent_rust-server": us_with_rust_server,
    "our-agent_go-server": us_with_go_server,
}
