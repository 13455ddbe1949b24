"""What a hostile peer sends to a control plane of its own process, over sockets.

Each attack is refused with its code, costs a bounded amount of memory (the kernel's own count of
the process), and meanwhile an agent works.
"""

import asyncio
import gzip
import http.client
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netsonde.server.unread import STRANGERS_MAX_BYTES
from support.commands import running

MIB = 1 << 20
SLACK_BYTES = 64 * MIB  # of a process that answers a few hundred connections
PATIENCE_S = 60.0
FILE_TOKEN = "correct horse battery"
BOMB = gzip.compress(b"\0" * (200 * MIB))
JSON_HEAD = "Content-Type: application/json\r\n"


class Place(NamedTuple):
    """A control plane in another process, and an agent that it knows."""

    pid: int
    agents: tuple[str, int]
    operators: tuple[str, int]
    credentials: str

    def memory(self, field: str) -> int:
        """Return what the kernel says that the process has, or had at most."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) * 1024

    async def working(self) -> int:
        """Be an agent that claims, until cancelled."""
        done = 0
        while True:
            body = b'{"agent_id":1,"capacities":{"tcp":1},"wait_ms":0}'
            head = f"{JSON_HEAD}Netsonde-Protocol: 1\r\n{self.credentials}"
            async with asyncio.timeout(PATIENCE_S):
                status, answer = await sent(self.agents, "POST /claim", head, body)
            assert (status, answer.get("leases")) == (200, []), answer
            done += 1
            await asyncio.sleep(0.15)  # 400 a minute, of 600

    def forget_peak(self) -> None:
        """Let the kernel count what the process had at most from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @asynccontextmanager
    async def bounded(self, most_bytes: int) -> AsyncIterator[None]:
        """Let an agent work through the block, which may cost so much memory."""
        before = self.memory("VmRSS")
        self.forget_peak()
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self.working())
            yield
            work.cancel()
        grown = self.memory("VmHWM") - before
        assert grown < most_bytes, f"{grown / MIB:.0f} MiB"
        status, _ = await sent(self.agents, "GET /livez")
        assert status == 200


def address(line: str) -> tuple[str, int]:
    host, _, port = line.rpartition("//")[2].split()[0].rpartition(":")
    return host, int(port)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    token = tmp_path_factory.mktemp("hostile") / "operator"
    token.write_text(FILE_TOKEN)
    listen = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--memory")
    with running("server", "run", *listen, "--operator-token-file", str(token)) as process:
        agents = address(process.line("stderr", "agents reach this"))
        operators = address(process.line("stderr", "operators reach it at "))
        connection = http.client.HTTPConnection(*agents, timeout=PATIENCE_S)
        identity = json.dumps({"agent_key": "a" * 32, "hostname": "good"})
        connection.request("POST", "/register", identity, {"Netsonde-Protocol": "1"})
        agent = json.load(connection.getresponse())
        connection.close()
        assert agent["agent_id"] == 1
        credentials = f"X-Agent-Id: 1\r\nX-Agent-Token: {agent['auth_token']}\r\n"
        yield Place(process.process.pid, agents, operators, credentials)


def request(call: str, head: str = "", body: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    framing = f"Content-Length: {size}\r\n" if size else ""
    return f"{call} HTTP/1.1\r\nHost: x\r\n{framing}{head}\r\n".encode() + body


async def sent(
    where: tuple[str, int], call: str, head: str = "", body: bytes = b""
) -> tuple[int, dict[str, Any]]:
    """Make one request; return its answer's status and body."""
    return answered(await raw(where, request(call, f"Connection: close\r\n{head}", body)))


async def raw(where: tuple[str, int], *parts: bytes, pause_s: float = 0) -> bytes:
    """Send bytes on a connection of their own; return all that comes until its end."""
    reader, writer = await asyncio.open_connection(*where)

    async def send() -> None:
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)

    got = b""
    sending = asyncio.get_running_loop().create_task(send())
    try:
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while chunk := await reader.read(65_536):
                    got += chunk
    finally:
        sending.cancel()
        writer.transport.abort()
    return got


def answered(got: bytes) -> tuple[int, dict[str, Any]]:
    """Return status and body; 0 for a connection that ended without an answer."""
    if not got:
        return 0, {}
    head, _, body = got.partition(b"\r\n\r\n")
    with suppress(json.JSONDecodeError):
        return int(head.split()[1]), json.loads(body)
    return int(head.split()[1]), {"lines": body.decode()}


async def flood(
    where: tuple[str, int], count: int, *parts: bytes, pause_s: float = 0
) -> list[tuple[int, str]]:
    """Send the same on many connections at once; return status and code of each answer."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(raw(where, *parts, pause_s=pause_s)) for _ in range(count)]
    answers = [answered(task.result()) for task in tasks]
    return [(status, answer.get("error", answer.get("lines", ""))) for status, answer in answers]


def refusals(answers: list[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return what the answers were; whoever still sends may find its connection reset."""
    assert any(status for status, _ in answers), "nobody was answered"
    return {answer for answer in answers if answer[0]}


# ── bodies ──


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip"])
async def test_zip_bombs_are_not_unpacked(place: Place, coding: str) -> None:
    head = f"{JSON_HEAD}Content-Encoding: {coding}\r\nConnection: close\r\n"
    async with place.bounded(SLACK_BYTES):
        for call in ("POST /register", "POST /report"):
            bomb = request(call, head + place.credentials, BOMB)
            assert refusals(await flood(place.agents, 40, bomb)) == {(415, "ERR_MEDIA_TYPE")}
        owner = f"Authorization: Bearer {FILE_TOKEN}\r\n"
        bomb = request("POST /v1/tasks", head + owner, BOMB)
        assert refusals(await flood(place.operators, 40, bomb)) == {(415, "ERR_MEDIA_TYPE")}


async def test_what_is_too_large_is_cut(place: Place) -> None:
    declared = request("POST /register", JSON_HEAD, length=10 << 30)
    head = request("POST /register", f"{JSON_HEAD}Transfer-Encoding: chunked\r\n")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    async with place.bounded(SLACK_BYTES):
        for parts in ((declared,), (head, *[chunk] * 64)):
            got = await flood(place.agents, 30, *parts)
            assert refusals(got) == {(413, "ERR_TOO_LARGE")}


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
async def test_deep_json_costs_its_length(place: Place, bracket: bytes) -> None:
    deep = bracket * (1_000_000 // len(bracket))
    async with place.bounded(2 * SLACK_BYTES):
        body = request("POST /register", f"{JSON_HEAD}Connection: close\r\n", deep)
        got = await flood(place.agents, 30, body)
        assert refusals(got) == {(400, "ERR_MALFORMED_JSON")}


async def test_a_line_without_end_is_cut(place: Place) -> None:
    lines = "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n"
    head = request("POST /report", f"Netsonde-Protocol: 1\r\n{lines}{place.credentials}")
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    async with place.bounded(SLACK_BYTES):
        for status, text in await flood(place.agents, 20, head, *[chunk] * 64):
            assert status in (0, 200)
            assert status == 0 or "ERR_TOO_LARGE" in text


async def test_slow_bodies_are_not_waited_for(place: Place) -> None:
    begin = request("POST /register", JSON_HEAD, length=500)
    async with place.bounded(SLACK_BYTES):
        got = await flood(place.agents, 200, begin, *[b" "] * 40, pause_s=0.4)
    assert set(got) == {(408, "ERR_TIMEOUT")}


async def test_bodies_that_are_never_ended_are_held_up_to_a_limit(place: Place) -> None:
    size, waves, each = MIB - 1, 16, 40
    begin = request("POST /register", JSON_HEAD, b" " * size, length=MIB)
    async with place.bounded(STRANGERS_MAX_BYTES + 3 * SLACK_BYTES), asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(waves):  # all at once, most would still be in the system's buffers
            tasks.append(group.create_task(flood(place.agents, each, begin)))
            await asyncio.sleep(0.2)
    got = [answer for task in tasks for answer in task.result()]
    assert set(got) <= {(0, ""), (408, "ERR_TIMEOUT"), (503, "ERR_UNAVAILABLE")}
    assert len([status for status, _ in got if status != 408]) >= waves * each // 2, "gave way"


# ── heads, paths, doors ──


async def test_header_floods_are_cut(place: Place) -> None:
    many = "".join(f"X-{number}: {'y' * 100}\r\n" for number in range(9_000))
    large = "X: " + "y" * MIB + "\r\n"
    endless = b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20
    async with place.bounded(SLACK_BYTES):
        for head in (many, large):
            got = await flood(place.agents, 60, request("GET /livez", head))
            assert refusals(got) == {(400, "ERR_VALIDATION")}
        got = await flood(place.agents, 60, endless, *[b"X: y\r\n" * 20] * 20, pause_s=0.1)
        assert refusals(got) == {(400, "ERR_VALIDATION")}


async def test_an_operators_call_is_not_at_the_agents_door(place: Place) -> None:
    owner = f"Authorization: Bearer {FILE_TOKEN}\r\n"
    async with place.bounded(SLACK_BYTES):
        for path in ("/v1/checks", "/v1/tokens", "/v1/agents/1", "/v1/configs", "/metrics"):
            for method in ("GET", "DELETE"):
                status, answer = await sent(place.agents, f"{method} {path}", owner)
                expected = {(404, "ERR_NOT_FOUND"), (405, "ERR_METHOD_NOT_ALLOWED")}
                assert (status, answer["error"]) in expected, path
            assert (await sent(place.operators, f"GET {path}"))[0] == 401
        for call in ("GET /../v1/tokens", "GET //v1/tokens", "GET /%761/tokens"):
            for where in (place.agents, place.operators):
                assert (await sent(where, call, owner))[0] == 404


async def test_a_wrong_token_and_anothers_lease_are_refused(place: Place) -> None:
    head = f"{JSON_HEAD}Netsonde-Protocol: 1\r\n"
    body = b'{"agent_id":1,"completed":[{"lease_id":7,"outcome":"ok"}],"cancelled":[]}'
    async with place.bounded(SLACK_BYTES):
        wrong = request("POST /report", f"{head}X-Agent-Id: 1\r\nX-Agent-Token: no\r\n", body)
        got = await flood(place.agents, 100, wrong)
        assert refusals(got) == {(401, "ERR_UNAUTHORIZED")}
        status, answer = await sent(place.agents, "POST /report", head + place.credentials, body)
        assert (status, answer["results"][0]["status"]) == (200, "unknown")
