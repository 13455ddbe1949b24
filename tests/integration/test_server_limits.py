"""What the control plane does with those who are slow, idle, or too many: over real sockets."""

import asyncio
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from netsonde.control_plane.http import HttpControlPlaneTransport
from netsonde.control_plane.transport import TransportRequest
from netsonde.errors import TransportError
from netsonde.listening.connections import Connections
from netsonde.server import Server, ServerConfig, serve
from netsonde.tls import ClientTls, ServerTls
from support.authority import Authority
from support.stores import TERMS_MS

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"


class Place:
    """A running control plane, how to reach it, and what it counts."""

    def __init__(self, server: Server, counted: list[Connections], authority: Authority | None):
        self._server = server
        self._counted = counted
        self.files = ClientTls(ca=authority.path) if authority else None
        self.url, self.connections = server.agent_url, counted[0]

    def turn_to_operators(self) -> None:
        """Mean the operators' listener from now on."""
        self.url, self.connections = self._server.operator_url, self._counted[1]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.rpartition("//")[2].rpartition(":")
        return host, int(port)

    async def connect(
        self, client: socket.socket | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection, its TLS handshake done."""
        client = client or socket.socket()
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self.address)
        context = self.files.context() if self.files else None
        name = self.address[0] if context else None
        return await asyncio.open_connection(sock=client, ssl=context, server_hostname=name)

    async def ends(self, reader: asyncio.StreamReader, timeout_s: float = 10.0) -> bytes:
        """Return everything that comes until the server closes; a reset is an end too."""
        got = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(timeout_s):
                while chunk := await reader.read(65_536):
                    got += chunk
        return got

    async def works(self) -> bool:
        """Whether somebody new gets an answer."""
        transport = HttpControlPlaneTransport(self.url, tls=self.files)
        request = TransportRequest(method="GET", path="/livez", timeout_s=5.0)
        try:
            return (await transport.call(request)).status == 200
        finally:
            await transport.close()


@pytest.fixture(params=["http", "https"])
def authority(request: pytest.FixtureRequest, tmp_path: Path) -> Authority | None:
    return Authority(tmp_path) if request.param == "https" else None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Connections]:
    made: list[Connections] = []

    class Counted(Connections):
        def __init__(self, limit: int) -> None:
            super().__init__(limit)
            made.append(self)

    monkeypatch.setattr("netsonde.server.app.Connections", Counted)
    return made


@asynccontextmanager
async def running(
    authority: Authority | None, counted: list[Connections], **changes: Any
) -> AsyncIterator[Place]:
    identity = authority.server() if authority else None
    tls = ServerTls(certificate=identity.certificate, key=identity.key) if identity else None
    config = ServerConfig(
        listen="127.0.0.1:0",
        operator_listen="127.0.0.1:0",
        terms_ms=TERMS_MS,
        shutdown_timeout_s=0.5,
        tls=tls,
        operator_tls=tls,
        **changes,
    )
    async with serve(config) as server:
        yield Place(server, counted, authority)


def envelope(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


# ── slow ──


async def test_a_request_head_must_end_in_time(
    authority: Authority | None, counted: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.listening.protocol.HEAD_TIMEOUT_S", 0.3)
    async with running(authority, counted) as place:
        reader, writer = await place.connect()
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        for number in range(3):
            await asyncio.sleep(0.05)
            writer.write(b"X-%d: y\r\n" % number)
        assert envelope(await place.ends(reader)) == (408, "ERR_TIMEOUT")
        writer.close()
        assert await place.works()


async def test_a_piece_of_a_head_that_came_with_the_connection_must_end_in_time(
    counted: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.listening.protocol.HEAD_TIMEOUT_S", 0.3)
    async with running(None, counted) as place:
        with socket.create_connection(place.address) as raw:
            raw.sendall(b"GET /livez HTTP/1.1\r\nX: ")  # before the loop accepts it
            raw.setblocking(False)
            async with asyncio.timeout(10):
                said = await asyncio.get_running_loop().sock_recv(raw, 4096)
        assert said.startswith(b"HTTP/1.1 408 ")


async def test_a_head_in_pieces_that_ends_in_time_is_answered(
    authority: Authority | None, counted: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.listening.protocol.HEAD_TIMEOUT_S", 2.0)
    async with running(authority, counted) as place:
        reader, writer = await place.connect()
        for _ in range(2):
            writer.write(LIVEZ[:20])
            await asyncio.sleep(0.1)  # so that the rest is a piece of its own
            writer.write(LIVEZ[20:])
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK")
        await asyncio.sleep(2.5)
        assert not reader.at_eof(), "a connection that rests is not one with half a head"
        writer.close()


async def test_a_body_must_come_at_1_kib_a_second(
    authority: Authority | None, counted: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.app.SLOW_AFTER_NS", 200_000_000)
    async with running(authority, counted) as place:
        reader, writer = await place.connect()
        writer.write(HEAD)
        for _ in range(8):
            await asyncio.sleep(0.05)
            writer.write(b" ")
        assert envelope(await place.ends(reader)) == (408, "ERR_TIMEOUT")
        writer.close()


async def test_a_stream_of_results_may_not_pause_for_long(
    authority: Authority | None, counted: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.app.LINES_IDLE_S", 0.3)
    async with running(authority, counted) as place:
        reader, writer = await place.connect()
        body = b'{"hostname":"h","agent_key":"' + b"k" * 32 + b'"}'
        head = b"POST /v1/agents/%s HTTP/1.1\r\nHost: x\r\nNetsonde-Protocol: 1\r\n"
        json_head = head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(json_head % (b"register", len(body)) + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].split()[0])
        registered = json.loads(await reader.readexactly(length))
        writer.write(
            head % b"report"
            + b"X-Agent-Id: %d\r\n" % registered["agent_id"]
            + b"X-Agent-Token: %s\r\n" % registered["auth_token"].encode()
            + b"Content-Type: application/x-ndjson\r\nAccept: application/x-ndjson\r\n"
            + b"Transfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n"
        )
        assert b"ERR_TIMEOUT" in await place.ends(reader)
        writer.close()


async def test_an_idle_connection_is_closed_fresh_or_used(
    authority: Authority | None, counted: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.app.KEEPALIVE_S", 0.3)
    async with running(authority, counted) as place:
        fresh, fresh_writer = await place.connect()
        used, used_writer = await place.connect()
        used_writer.write(LIVEZ)
        await used.readuntil(b"}")
        assert (await place.ends(fresh), await place.ends(used)) == (b"", b"")
        fresh_writer.close()
        used_writer.close()
        await _until(lambda: len(place.connections) == 0)


async def test_an_answer_must_be_taken(
    authority: Authority | None, counted: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.listening.protocol.ANSWER_TIMEOUT_S", 0.3)
    async with running(authority, counted) as place:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        _, writer = await place.connect(client)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                while len(place.connections):
                    writer.write(LIVEZ * 50)
                    await asyncio.sleep(0.001)
        writer.transport.abort()
        assert len(place.connections) == 0
        assert await place.works()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"y" * 20_000,
        b"GET /" + b"y" * 20_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % number for number in range(200)),
    ],
)
async def test_a_head_without_end_is_cut_at_its_limit(
    counted: list[Connections], head: bytes
) -> None:
    """Not at its end: there is none."""
    async with running(None, counted) as place:
        reader, writer = await place.connect()
        writer.write(head)
        status, _ = envelope(await place.ends(reader))
        writer.close()
    assert status == 400


# ── TLS handshakes ──


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_must_end_in_time(
    tmp_path: Path,
    counted: list[Connections],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
) -> None:
    monkeypatch.setattr("netsonde.listening.door.HANDSHAKE_TIMEOUT_S", 0.3)
    async with running(Authority(tmp_path), counted) as place:
        reader, writer = await asyncio.open_connection(*place.address)
        writer.write(sent)
        await _until(lambda: len(place.connections) == 1)
        assert await place.ends(reader) == b""
        writer.close()
        await _until(lambda: len(place.connections) == 0)
    assert "took longer than 0.3 s" in caplog.text


async def test_plain_http_on_a_tls_port_costs_nobody_else(
    tmp_path: Path, counted: list[Connections]
) -> None:
    async with running(Authority(tmp_path), counted) as place:
        for _ in range(20):
            _, writer = await asyncio.open_connection(*place.address)
            writer.write(LIVEZ)
            await asyncio.sleep(0)
            writer.close()
        transport = HttpControlPlaneTransport(place.url.replace("https", "http"))
        with pytest.raises(TransportError, match="closed the connection"):
            await transport.call(TransportRequest(method="GET", path="/livez", timeout_s=5.0))
        await transport.close()
        assert await place.works()
        await _until(lambda: len(place.connections) == 0)


# ── many ──


async def test_those_who_only_connect_displace_each_other_only(
    authority: Authority | None, counted: list[Connections]
) -> None:
    async with running(authority, counted, connections_max=16) as place:
        resting, resting_writer = await place.connect()
        resting_writer.write(LIVEZ)
        await resting.readuntil(b"}")
        idle = []
        for _ in range(60):
            idle.append(await asyncio.open_connection(*place.address))
            assert len(place.connections) <= 16
        await _until(lambda: len(place.connections) == 16)
        assert await place.works()
        resting_writer.write(LIVEZ)
        assert (await resting.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK")
        assert [await place.ends(reader) for reader, _ in idle[:40]] == [b""] * 40
        for _, writer in idle:
            writer.close()
        resting_writer.close()
        await _until(lambda: len(place.connections) == 0)


async def test_a_client_works_through_a_flood_of_half_open_connections(
    authority: Authority | None, counted: list[Connections]
) -> None:
    async with running(authority, counted, connections_max=32) as place:
        transport = HttpControlPlaneTransport(place.url, tls=place.files)
        request = TransportRequest(method="GET", path="/livez", timeout_s=5.0)
        assert (await transport.call(request)).status == 200
        flood = []
        for _ in range(10):
            for _ in range(30):
                client = socket.socket()
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, place.address)
                flood.append(client)
            assert (await transport.call(request)).status == 200
            assert await place.works()
            assert len(place.connections) <= 32
        for client in flood:
            client.close()
        await transport.close()
        await _until(lambda: len(place.connections) == 0)


async def test_those_who_dawdle_over_a_body_give_way(
    authority: Authority | None, counted: list[Connections]
) -> None:
    async with running(authority, counted, connections_max=4) as place:
        slow = [await place.connect() for _ in range(4)]
        for _, writer in slow:
            writer.write(HEAD + b"{")
        await _until(lambda: len(place.connections) == 4)
        assert await place.works()
        assert await place.ends(slow[0][0]) == b""
        reader, writer = slow[3]
        writer.write(b" " * 499)
        assert envelope(await reader.readuntil(b"}")) == (400, "ERR_MALFORMED_JSON")
        for _, writer in slow:
            writer.close()


async def test_those_at_work_stay_and_the_next_one_is_turned_away(
    authority: Authority | None, counted: list[Connections], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(authority, counted, connections_max=4) as place:
        place.turn_to_operators()
        working = [await place.connect() for _ in range(4)]
        for _, writer in working:
            writer.write(b"GET /v1/results?wait_ms=1500 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await _until(lambda: len(place.connections) == 4 and not place.connections._new)
        with pytest.raises(TransportError):
            await place.works()
        assert "4 connections are at work" in caplog.text
        for reader, writer in working:
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK")
            writer.close()
        assert await place.works()
        await _until(lambda: len(place.connections) == 0)


async def test_a_rush_of_connections_is_answered(
    authority: Authority | None, counted: list[Connections]
) -> None:
    async with running(authority, counted) as place, asyncio.TaskGroup() as group:
        answers = [group.create_task(place.works()) for _ in range(100)]
    assert all(answer.result() for answer in answers)


async def test_nothing_stays_open_after_the_end(
    authority: Authority | None, counted: list[Connections]
) -> None:
    left = []
    for _ in range(2):  # what the loop itself opens, it opens in the first round
        counted.clear()
        async with running(authority, counted) as place:
            clients = [socket.create_connection(place.address) for _ in range(5)]
            await _until(lambda: len(place.connections) == 5)
        for client in clients:
            client.close()
        await asyncio.sleep(0)
        assert len(place.connections) == 0
        left.append(open_files())
    assert left[0] == left[1]


async def test_without_descriptors_connections_wait(
    authority: Authority | None, counted: list[Connections], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(authority, counted) as place:
        context = place.files.context() if place.files else None
        client = socket.socket()
        client.setblocking(False)
        with no_descriptors() as again:
            await asyncio.get_running_loop().sock_connect(client, place.address)
            await _until(lambda: "connections cannot be accepted" in caplog.text)
            again()
            reader, writer = await asyncio.open_connection(
                sock=client, ssl=context, server_hostname=place.address[0] if context else None
            )
            writer.write(LIVEZ)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK")
            writer.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_descriptors() -> Iterator[Any]:
    """Take every descriptor this process may still have, until the given function is called."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as taken:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 16, before[1]))

        def again() -> None:
            taken.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

        with suppress(OSError):
            while True:
                taken.callback(os.close, os.dup(0))
        try:
            yield again
        finally:
            again()


async def _until(reached: Any) -> None:
    async with asyncio.timeout(10):
        while not reached():  # noqa: ASYNC110 (what is polled is counted, not signalled)
            await asyncio.sleep(0.01)
