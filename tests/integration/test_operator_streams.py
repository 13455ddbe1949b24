"""Results followed and tasks uploaded on real sockets, cut at random places."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator

from netsonde import wire
from netsonde.clock import SystemClock
from netsonde.control_plane.following import Outage, Resumed
from netsonde.control_plane.operator import OperatorClient
from netsonde.server import Server, ServerConfig, serve
from netsonde.server.feed import PAGE_BYTES
from support.cutting import CuttingRelay
from support.feeds import task_line
from support.stores import TERMS_MS

PATIENCE_S = 20.0
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "result.schema.json").read_text())
TASK = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}}


class Impatient(Random):
    """Draws the shortest delay there is."""

    def randint(self, a: int, b: int) -> int:
        return a


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    settings = ServerConfig(
        listen="127.0.0.1:0",
        operator_listen="127.0.0.1:0",
        terms_ms=TERMS_MS,
        shutdown_timeout_s=2.0,
        database=tmp_path / "server.db",
        quota_scale=100,
    )
    async with serve(settings) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Agent:
    """Measures what the operator queues for it, at once."""

    def __init__(self, server: Server, http: aiohttp.ClientSession, name: str) -> None:
        self._server = server
        self._http = http
        self._name = name
        self._headers = {"Netsonde-Protocol": "1"}
        self._agent_id = 0

    async def register(self) -> None:
        body = {"hostname": self._name, "agent_key": self._name * 16}
        answer = await self._post("register", body)
        self._agent_id = answer["agent_id"]
        self._headers |= {
            "X-Agent-Id": str(self._agent_id),
            "X-Agent-Token": answer["auth_token"],
        }

    async def measure(self, count: int, pad: int = 100) -> list[int]:
        """Measure so many new tasks; return the leases whose results were accepted."""
        tasks = [TASK | {"agent": self._agent_id}] * count
        async with self._http.post(f"{self._server.operator_url}/v1/tasks", json=tasks) as response:
            assert response.status == 200
        claim = {"agent_id": self._agent_id, "capacities": {"tcp": count}}
        leases = (await self._post("claim", claim))["leases"]
        items = [_item(lease["lease_id"], pad) for lease in leases]
        answer = await self._post("report", {"agent_id": self._agent_id, "completed": items})
        return [one["lease_id"] for one in answer["results"] if one["status"] == "accepted"]

    async def _post(self, call: str, body: Any) -> Any:
        url = f"{self._server.agent_url}/v1/agents/{call}"
        async with self._http.post(url, json=body, headers=self._headers) as response:
            assert response.status == 200, await response.text()
            return await response.json()


def _item(lease_id: int, pad: int) -> dict[str, Any]:
    return {
        "lease_id": lease_id,
        "outcome": "ok",
        "started_at": "2026-11-28T12:00:00.000000000Z",
        "duration_ms": 1.5,
        "observations": [{"name": "anything_new", "value": {"pad": "x" * pad}}],
        "env": {"version": "0.1.0"},
    }


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_hundred_cuts_lose_and_repeat_nothing(
    server: Server, http: aiohttp.ClientSession, seed: int
) -> None:
    """Three agents report at once while whoever follows them is cut off again and again."""
    rng = Random(seed)
    accepted: set[int] = set()
    agents = [Agent(server, http, name) for name in ("aa", "bb", "cc")]
    for agent in agents:
        await agent.register()
    relay = CuttingRelay(port_of(server.operator_url), rng, cuts=100, most=12_000)
    done = asyncio.Event()

    async def report(agent: Agent, seed: int) -> None:
        sizes = Random(seed)
        while relay.left > 0:
            accepted.update(await agent.measure(sizes.randint(1, 12), sizes.randint(1, 900)))

    async def produce() -> None:
        async with asyncio.TaskGroup() as group:
            for at, agent in enumerate(agents):
                group.create_task(report(agent, at))
        accepted.update(await agents[0].measure(3))
        done.set()

    results: list[dict[str, Any]] = []
    outages, resumptions = 0, 0
    async with asyncio.timeout(PATIENCE_S), relay.serving() as url, asyncio.TaskGroup() as group:
        group.create_task(produce())
        async with OperatorClient(url) as client:
            follow = client.follow({}, clock=SystemClock(), rng=Impatient())
            async with aclosing(follow) as items:
                async for item in items:
                    outages += isinstance(item, Outage)
                    resumptions += isinstance(item, Resumed)
                    if isinstance(item, dict):
                        results.append(item)
                    if done.is_set() and len(results) >= len(accepted):
                        break
    ids = [result["lease_id"] for result in results]
    assert len(ids) == len(set(ids)), "none came twice"
    assert set(ids) == accepted, "none is missing, and none came that was not accepted"
    assert relay.left == 0
    assert outages >= resumptions > 10
    async with http.get(f"{server.operator_url}/v1/results?limit=1000") as response:
        page = await response.json()
    assert [one["lease_id"] for one in page["results"]] == ids[:1000], "in the order of commits"
    validator = Draft202012Validator(SCHEMA)
    assert all(validator.is_valid(result) for result in results[:50])


async def test_many_readers_see_the_same(server: Server, http: aiohttp.ClientSession) -> None:
    agent = Agent(server, http, "aa")
    await agent.register()
    accepted: list[int] = []

    async def read() -> list[int]:
        seen: list[int] = []
        async with OperatorClient(server.operator_url) as client:
            follow = client.follow({}, clock=SystemClock(), rng=Impatient())
            async with aclosing(follow) as items:
                async for item in items:
                    assert isinstance(item, dict)
                    seen.append(item["lease_id"])
                    if len(seen) == 200:
                        break
        return seen

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        readers = [group.create_task(read()) for _ in range(20)]
        for _ in range(20):
            accepted += await agent.measure(10)
    assert all(reader.result() == accepted for reader in readers)


async def test_a_reader_that_stands_still_costs_little_and_holds_up_nobody(
    server: Server, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(server, http, "aa")
    await agent.register()
    ids = [one for _ in range(27) for one in await agent.measure(6, pad=150_000)]
    looks = 0
    read = server.plane.writer.read

    async def counted(operation: Any) -> Any:
        nonlocal looks
        looks += 1
        return await read(operation)

    monkeypatch.setattr(server.plane.writer, "look", counted)
    loop = asyncio.get_running_loop()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", port_of(server.operator_url)))
        head = b"GET /v1/results/stream?wait_ms=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await loop.sock_sendall(raw, head)
        await loop.sock_recv(raw, 100)
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(20):
                assert len(await agent.measure(10)) == 10, "nobody waits for who does not read"
    stood = looks
    assert stood * PAGE_BYTES < 12 << 20, "what it was not read stayed where it is"
    assert len(ids) * 150_000 > 20 << 20


async def test_who_reads_slowly_gets_it_all(server: Server, http: aiohttp.ClientSession) -> None:
    agent = Agent(server, http, "aa")
    await agent.register()
    ids = [one for _ in range(4) for one in await agent.measure(10, pad=50_000)]
    url = f"{server.operator_url}/v1/results/stream?wait_ms=0"
    body = b""
    async with http.get(url) as response:
        while chunk := await response.content.read(30_000):
            body += chunk
            await asyncio.sleep(0)
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["result"]["lease_id"] for line in lines if line["t"] == "r"] == ids
    assert lines[-1]["t"] == "end"


async def test_a_shutdown_ends_streams_at_once(server: Server, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{server.operator_url}/v1/results/stream") as response:
        assert json.loads(await response.content.readline())["t"] == "ping"
        server.plane.close()
        async with asyncio.timeout(PATIENCE_S):
            end = json.loads(await response.content.readline())
    assert (end["t"], end["reason"]) == ("end", "shutdown")


# ── uploads ──


async def queued(server: Server, http: aiohttp.ClientSession) -> int:
    async with http.get(f"{server.operator_url}/v1/queues") as response:
        answer = await response.json()
    return sum(queue["ready"] for queue in answer["queues"])


@pytest.mark.parametrize("seed", [1, 2])
async def test_an_upload_cut_anywhere_makes_each_task_once(
    server: Server, http: aiohttp.ClientSession, seed: int
) -> None:
    rng = Random(seed)
    relay = CuttingRelay(port_of(server.operator_url), rng, cuts=0, most=200_000)
    lines = [task_line(priority=at % 100).rstrip() for at in range(4_000)]
    answers: list[wire.LineAnswer] = []
    async with asyncio.timeout(PATIENCE_S), relay.serving() as url, OperatorClient(url) as client:
        uploader = client.uploader("k", clock=SystemClock(), rng=Impatient())
        for start in range(0, len(lines), 1_000):
            relay.left = 10  # some of them before anything was answered
            async with aclosing(uploader.answers(start + 1, lines[start : start + 1_000])) as part:
                answers += [answer async for answer in part]
    assert [answer.line for answer in answers] == list(range(1, 4_001))
    assert len({answer.task_id for answer in answers}) == 4_000
    assert await queued(server, http) == 4_000


async def raw_upload(server: Server, pieces: Sequence[bytes], head: str, until: bytes) -> bytes:
    """Send a request as it stands, read until something is said, and hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server.operator_url))
    start = f"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: {wire.NDJSON}\r\n"
    writer.write((start + head + "\r\n").encode() + b"".join(pieces))
    answer = b""
    async with asyncio.timeout(PATIENCE_S):
        while until not in answer and (got := await reader.read(65_536)):
            answer += got
    writer.close()
    return answer


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = "Transfer-Encoding: chunked\r\n"


async def test_a_connection_that_breaks_in_a_line_loses_that_line(
    server: Server, http: aiohttp.ClientSession
) -> None:
    head = CHUNKED + "Idempotency-Key: k\r\n"
    pieces = [chunk(task_line() * 2), chunk(task_line()[:-1])]
    first = await raw_upload(server, pieces, head, until=b'"line":2')
    pieces = [chunk(task_line() * 3), b"0\r\n\r\n"]
    answer = await raw_upload(server, pieces, head, until=b'"t":"end"')
    assert b'"line":3' not in first
    assert answer.count(b'"task_id"') == 3
    assert await queued(server, http) == 3


@pytest.mark.parametrize(
    ("pieces", "head", "said"),
    [
        ([], f"Content-Length: {wire.STREAM_MAX_BYTES + 1}\r\n", b"ERR_TOO_LARGE"),
        ([], "Content-Encoding: gzip\r\nContent-Length: 0\r\n", b"ERR_MEDIA_TYPE"),
        ([chunk(b"x" * 300_000), b"0\r\n\r\n"], CHUNKED, b"ERR_TOO_LARGE"),
        ([chunk(b"<html>\n"), b"0\r\n\r\n"], CHUNKED, b"ERR_MALFORMED_JSON"),
        ([b"ZZ\r\n"], CHUNKED, b"ERR_VALIDATION"),
        ([], CHUNKED + f"Idempotency-Key: {'k' * 256}\r\n", b"ERR_VALIDATION"),
    ],
)
async def test_bad_uploads_are_answered(
    server: Server,
    http: aiohttp.ClientSession,
    pieces: Sequence[bytes],
    head: str,
    said: bytes,
) -> None:
    assert said in await raw_upload(server, pieces, head, until=said)
    assert await queued(server, http) == 0


async def test_too_many_lines_end_where_they_are(
    server: Server, http: aiohttp.ClientSession
) -> None:
    url, body = f"{server.operator_url}/v1/tasks", task_line() * (wire.LINES_MAX + 5)
    headers = {"Content-Type": wire.NDJSON}
    async with http.post(url, data=body, headers=headers) as response:
        lines = [json.loads(line) for line in (await response.read()).splitlines()]
    assert lines[-1] == {"t": "end", "reason": "lines", "through": wire.LINES_MAX}
    assert await queued(server, http) == wire.LINES_MAX
