"""The control plane on real sockets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from netsonde.errors import ConfigError, StorageError
from netsonde.model import TaskKind
from netsonde.server import Server, ServerConfig, serve
from netsonde.server.beacon import NAME, beacon
from support.stores import TERMS_MS

TASK = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}}


def config(**changes: Any) -> ServerConfig:
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "operator_listen": "127.0.0.1:0",
        "terms_ms": TERMS_MS,
        "shutdown_timeout_s": 2.0,
    }
    return ServerConfig(**(fields | changes))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serve(config(database=tmp_path / "server.db")) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Client:
    """An agent over HTTP."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.url = url
        self.headers: dict[str, str] = {"Netsonde-Protocol": "1"}
        self.agent_id = 0

    async def register(self, **body: Any) -> None:
        answer = await self.post("register", {"hostname": "h", "agent_key": "k" * 32} | body)
        self.agent_id = answer["agent_id"]
        self.headers |= {
            "X-Agent-Id": str(self.agent_id),
            "X-Agent-Token": answer["auth_token"],
        }

    async def post(self, call: str, body: dict[str, Any]) -> Any:
        sent = {"agent_id": self.agent_id} | body if self.agent_id else body
        url = f"{self.url}/v1/agents/{call}"
        async with self.http.post(url, json=sent, headers=self.headers) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer

    async def report(self, lease_id: int) -> list[str]:
        item = {"lease_id": lease_id, "outcome": "ok", "observations": []}
        answer = await self.post("report", {"completed": [item], "cancelled": []})
        return [one["status"] for one in answer["results"]]


async def raw(url: str, request: bytes, *, pieces: Iterable[tuple[float, bytes]] = ()) -> bytes:
    """Send bytes, then more after pauses; return everything that comes back."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        for pause_s, piece in pieces:
            await asyncio.sleep(pause_s)
            writer.write(piece)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


def envelope(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), answer
    assert b"server: netsonde\r\n" in head.lower(), answer
    decoded = json.loads(body)
    assert {"error", "message", "retryable", "request_id"} <= set(decoded)
    return int(head.split()[1]), decoded


async def test_a_task_from_operator_to_result(server: Server, http: aiohttp.ClientSession) -> None:
    agent = Client(http, server.agent_url)
    await agent.register()
    claim = {"capacities": {"tcp": 1}, "claim_id": "c", "wait_ms": 10_000}
    async with asyncio.TaskGroup() as group:
        held = group.create_task(agent.post("claim", claim))
        await asyncio.sleep(0.1)
        assert not held.done()
        async with http.post(f"{server.operator_url}/v1/tasks", json=[TASK]) as response:
            assert response.status == 200
    (lease,) = held.result()["leases"]
    async with asyncio.TaskGroup() as group:
        url = f"{server.operator_url}/v1/results?wait_ms=10000"
        follow = group.create_task(_json(http, url))
        await asyncio.sleep(0.05)
        assert await agent.report(lease["lease_id"]) == ["accepted"]
    assert [one["lease_id"] for one in follow.result()["results"]] == [lease["lease_id"]]


async def _json(http: aiohttp.ClientSession, url: str) -> Any:
    async with http.get(url) as response:
        return await response.json()


async def test_short_terms_expire_and_come_back(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    short = config(
        database=tmp_path / "server.db",
        terms_ms=dict.fromkeys(TaskKind, 200),
        grace_ms=50,
        requeue_base_ms=1,
        requeue_cap_ms=10,
    )
    async with serve(short) as server:
        agent = Client(http, server.agent_url)
        await agent.register()
        async with http.post(f"{server.operator_url}/v1/tasks", json=[TASK]) as response:
            assert response.status == 200
        claim = {"capacities": {"tcp": 1}, "wait_ms": 10_000}
        (first,) = (await agent.post("claim", claim | {"claim_id": "a"}))["leases"]
        assert first["lease_until_ms"] == 200
        answer = await agent.post("claim", claim | {"claim_id": "b"})
        (again,) = answer["leases"]
        assert (again["task_id"], again["attempt"]) == (first["task_id"], 2)
        assert 200 <= answer["held_ms"] < 3_000


async def test_a_restart_keeps_what_was_acknowledged(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    settings = config(database=tmp_path / "server.db")
    async with serve(settings) as server:
        agent = Client(http, server.agent_url)
        await agent.register()
        async with http.post(f"{server.operator_url}/v1/tasks", json=[TASK, TASK]) as response:
            assert response.status == 200
        claimed = await agent.post("claim", {"capacities": {"tcp": 2}, "claim_id": "c"})
        first, second = (lease["lease_id"] for lease in claimed["leases"])
        assert await agent.report(first) == ["accepted"]
    async with serve(settings) as server:
        agent.url = server.agent_url
        assert await agent.report(first) == ["duplicate"]
        assert await agent.report(second) == ["accepted"]
        answer = await _json(http, f"{server.operator_url}/v1/results")
        assert [one["lease_id"] for one in answer["results"]] == [first, second]


async def test_shutdown_answers_who_is_held(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    async with asyncio.TaskGroup() as group:
        async with serve(config(database=tmp_path / "server.db")) as server:
            agent = Client(http, server.agent_url)
            await agent.register()
            claim = {"capacities": {"tcp": 1}, "claim_id": "c", "wait_ms": 50_000}
            held = group.create_task(agent.post("claim", claim))
            await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            assert (await held)["leases"] == []


async def test_the_callers_own_failure_is_not_wrapped() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with serve(config()):
            raise LookupError("mine")


async def test_a_client_that_hangs_up_frees_its_place(
    server: Server, http: aiohttp.ClientSession
) -> None:
    agent = Client(http, server.agent_url)
    await agent.register()
    claim = {"capacities": {"tcp": 1}, "claim_id": "gone", "wait_ms": 50_000}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await agent.post("claim", claim)
    await asyncio.sleep(0.1)
    async with http.post(f"{server.operator_url}/v1/tasks", json=[TASK]) as response:
        assert response.status == 200
    answer = await agent.post("claim", claim | {"claim_id": "here", "wait_ms": 2_000})
    assert len(answer["leases"]) == 1, "the task was not given to who had gone"


# ── what is no request ──


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /claim HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /claim HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /claim HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"X%d: 1\r\n" % n for n in range(200))
        + b"\r\n",
        b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_the_envelope(server: Server, request_bytes: bytes) -> None:
    status, answer = envelope(await raw(server.agent_url, request_bytes))
    assert 400 <= status < 500
    assert answer["retryable"] is False
    assert "Traceback" not in answer["message"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /%ff HTTP/1.1", 404),
        (b"POST /claim HTTP/1.1\r\nContent-Type: \xff\xfe", 415),
        (b"POST /claim HTTP/1.1\r\nX-Agent-Id: \xff\r\nX-Agent-Token: \xfe", 400),
        (b"GET /livez?" + b"&".join([b"a=1"] * 50) + b" HTTP/1.1", 400),
        (b"CONNECT x:1 HTTP/1.1", 404),
        (b"OPTIONS * HTTP/1.1", 404),
    ],
)
async def test_odd_requests_are_answered_like_any_other(
    server: Server, line: bytes, status: int
) -> None:
    tail = b"\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert envelope(await raw(server.agent_url, line + tail))[0] == status


async def test_a_declared_size_is_refused_before_it_is_sent(server: Server) -> None:
    head = b"POST /claim HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
    status, answer = envelope(await raw(server.agent_url, head))
    assert (status, answer["error"]) == (413, "ERR_TOO_LARGE")


async def test_a_chunked_body_is_cut_at_the_limit(
    server: Server, http: aiohttp.ClientSession
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65_536

    url = f"{server.agent_url}/claim"
    async with http.post(url, data=endless(), headers={"Content-Type": "application/json"}) as got:
        assert got.status == 413
        assert (await got.json())["error"] == "ERR_TOO_LARGE"


async def test_a_bomb_is_not_unpacked(server: Server, http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    async with http.post(f"{server.agent_url}/register", data=b"x\x9c", headers=headers) as got:
        assert got.status == 415


async def test_a_slow_body_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.app.SLOW_AFTER_NS", 200_000_000)
    monkeypatch.setattr("netsonde.server.app.CHUNK_TIMEOUT_S", 0.3)
    head = b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"
    dripping = [(0.1, b"{")] * 5
    status, answer = envelope(await raw(server.agent_url, head, pieces=dripping))
    assert (status, answer["error"], answer["retryable"]) == (408, "ERR_TIMEOUT", True)
    status, answer = envelope(await raw(server.agent_url, head))
    assert (status, answer["error"]) == (408, "ERR_TIMEOUT")


async def test_expect_continue(server: Server) -> None:
    body = b'{"hostname":"h"}'
    head = (
        b"POST /register HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    answer = await raw(server.agent_url, head, pieces=[(0.1, body)])
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await raw(server.agent_url, one + one + last)
    assert answer.count(b'{"status":"ok"}') == 2
    assert b"ERR_NOT_FOUND" in answer


# ── what keeps it from starting ──


async def test_a_taken_port_names_address_and_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for setting in ("listen", "operator_listen"):
            with pytest.raises(ConfigError) as caught:
                async with serve(config(**{setting: address})):
                    pytest.fail("it listens on a taken port")
            assert address in str(caught.value)
            assert f"another address for {setting}" in str(caught.value)


@pytest.mark.parametrize("host", ["..", "a" * 300])
async def test_what_is_no_host_is_refused_in_a_sentence(host: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on .*; choose another"):
        async with serve(config(listen=f"{host}:0", enrolment_token="x" * 16)):
            pytest.fail("it listens on what is no host")


async def test_two_servers_do_not_share_a_database(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="in use by another netsonde server"):
        async with serve(config(database=tmp_path / "server.db")):
            pytest.fail("two servers own one database")


async def test_a_server_that_did_not_start_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with pytest.raises(ConfigError):
        async with serve(config(database=path, listen="203.0.113.1:1", enrolment_token="x" * 16)):
            pytest.fail("it listens on an address this host does not have")
    async with serve(config(database=path)):
        pass


async def test_ipv6_urls_are_written_with_brackets() -> None:
    try:
        async with serve(config(listen="[::1]:0")) as server:
            assert server.agent_url.startswith("http://[::1]:")
    except ConfigError:
        pytest.skip("this host has no IPv6 loopback")


# ── the beacon ──


async def test_the_beacon_answers_over_udp_and_tcp() -> None:
    async with beacon() as running:
        query = dns.message.make_query(NAME, "A")
        for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
            answer = await ask(query, running.address, port=running.port, timeout=5)
            assert answer.answer[0][0].to_text() == "127.0.0.1"
        missing = dns.message.make_query("gone.netsonde.test", "A")
        answer = await dns.asyncquery.udp(missing, "127.0.0.1", port=running.port, timeout=5)
        assert answer.rcode() == dns.rcode.NXDOMAIN
        assert running.endpoint == f"127.0.0.1:{running.port}"


async def test_the_server_knows_how_full_its_disk_is(
    server: Server, http: aiohttp.ClientSession
) -> None:
    async with asyncio.timeout(10):
        while True:
            async with http.get(f"{server.operator_url}/v1/storage") as response:
                answer = await response.json()
            if answer["free_bytes"] is not None:
                break
            await asyncio.sleep(0.01)
    assert answer["database_bytes"] >= answer["used_bytes"] > 0
    assert (answer["status"], answer["first_result_id"]) == ("ok", 1)


async def test_the_beacon_survives_garbage() -> None:
    async with beacon() as running:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for scrap in (b"", b"\x00", b"\xff" * 500):
                sender.sendto(scrap, ("127.0.0.1", running.port))
        assert await raw(f"http://127.0.0.1:{running.port}", b"\x00\x02ab") == b""
        query = dns.message.make_query(NAME, "TXT")
        answer = await dns.asyncquery.udp(query, "127.0.0.1", port=running.port, timeout=5)
        assert answer.rcode() == dns.rcode.NOERROR


async def test_the_beacon_names_a_port_it_cannot_have() -> None:
    async with beacon() as running:
        with pytest.raises(ConfigError, match=f"127.0.0.1:{running.port}"):
            async with beacon(port=running.port):
                pytest.fail("two beacons share a port")
