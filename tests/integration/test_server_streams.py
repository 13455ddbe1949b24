"""Claims and reports as streams, between the real client and the real server."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from netsonde import wire
from netsonde.clock import SystemClock
from netsonde.control_plane import ClaimGrant, ControlPlaneClient, HttpControlPlaneTransport
from netsonde.model import RegisterRequest
from netsonde.server import Server, ServerConfig, serve
from support.stores import TERMS_MS

PATIENCE_S = 10.0
TASK = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    settings = ServerConfig(
        listen="127.0.0.1:0",
        operator_listen="127.0.0.1:0",
        terms_ms=TERMS_MS,
        shutdown_timeout_s=2.0,
        database=tmp_path / "server.db",
    )
    async with serve(settings) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[ControlPlaneClient]:
    transport = HttpControlPlaneTransport(server.agent_url)
    client = ControlPlaneClient(transport, SystemClock(), Random(1))
    await client.register(RegisterRequest(hostname="h", agent_key="k" * 32))
    yield client
    await client.close()


async def queue(server: Server, count: int = 1) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{server.operator_url}/v1/tasks", json=[TASK] * count) as response,
    ):
        assert response.status == 200


class Sink:
    """Keeps what comes, and tells how much."""

    def __init__(self) -> None:
        self.lease_ids: list[int] = []
        self._moved = asyncio.Event()

    async def take(self, grant: ClaimGrant) -> None:
        self.lease_ids += [lease.lease_id for lease in grant.leases]
        self._moved.set()

    def revoke(self, lease_ids: Sequence[int]) -> None:
        raise AssertionError("nothing was cancelled")

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.lease_ids) < count:
                self._moved.clear()
                await self._moved.wait()


class Source:
    """Has items of some leases, and keeps their statuses."""

    def __init__(self, lease_ids: Sequence[int], pad: int = 0) -> None:
        self.statuses: dict[int, str] = {}
        self._lease_ids = list(lease_ids)
        self._pad = "x" * pad
        self._sent = 0

    def begin(self) -> None:
        self._sent = 0

    async def more(self, items: int, size_bytes: int) -> tuple[Sequence[int], Sequence[bytes]]:
        part = self._lease_ids[self._sent : self._sent + min(items, 100)]
        first, self._sent = self._sent, self._sent + len(part)
        observations = [{"name": "pad", "value": self._pad}]
        bodies = [
            wire.encode({"lease_id": one, "outcome": "ok", "observations": observations})
            for one in part
        ]
        return range(first, self._sent), bodies

    async def settle(self, seqs: Sequence[int], statuses: Sequence[str]) -> None:
        self.statuses |= zip(seqs, statuses, strict=True)


async def test_leases_come_over_one_connection_as_work_does(
    server: Server, client: ControlPlaneClient
) -> None:
    sink = Sink()
    async with asyncio.TaskGroup() as group:
        group.create_task(client.claim_into(sink, {"tcp": 5}, claim_id="c1"))
        await queue(server, 2)
        await sink.reach(2)
        await queue(server, 4)
        await sink.reach(5)
    assert len(set(sink.lease_ids)) == 5
    assert client.counters["claim_requests"] == 1


async def test_thousands_of_results_go_by_one_request(
    server: Server, client: ControlPlaneClient
) -> None:
    sink = Sink()
    await queue(server, 2_500)
    await client.claim_into(sink, {"tcp": 2_500}, claim_id="c1")
    source = Source(sink.lease_ids, pad=2_000)
    assert await client.report_from(source)
    assert list(source.statuses.values()) == ["accepted"] * 2_500
    assert client.counters["report_requests"] == 1
    again = Source(sink.lease_ids[:10])
    assert await client.report_from(again)
    assert list(again.statuses.values()) == ["duplicate"] * 10


async def waiting(server: Server, claims: int) -> None:
    """Wait until so many claims wait for work."""
    async with asyncio.timeout(PATIENCE_S):
        while len(server.plane.waiters._waiting) != claims:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0)


async def test_who_leaves_a_stream_is_granted_nothing_more(
    server: Server, client: ControlPlaneClient
) -> None:
    gone, here = Sink(), Sink()
    async with asyncio.TaskGroup() as group:
        held = group.create_task(client.claim_into(gone, {"tcp": 5}, claim_id="c1"))
        await queue(server)
        await gone.reach(1)
        held.cancel()
    await waiting(server, 0)  # the server has heard of it
    await queue(server)
    async with asyncio.TaskGroup() as group:
        held = group.create_task(client.claim_into(here, {"tcp": 5}, claim_id="c2"))
        await here.reach(1)
        held.cancel()
    assert len(gone.lease_ids) == 1


async def test_a_broken_claim_brings_the_same_leases_again(
    server: Server, client: ControlPlaneClient
) -> None:
    first, again = Sink(), Sink()
    await queue(server, 3)
    async with asyncio.TaskGroup() as group:
        held = group.create_task(client.claim_into(first, {"tcp": 5}, claim_id="c1"))
        await first.reach(3)
        held.cancel()
    await client.claim_into(again, {"tcp": 3}, claim_id="c1")
    assert again.lease_ids == first.lease_ids


async def test_a_shutdown_ends_streams_at_once(server: Server, client: ControlPlaneClient) -> None:
    async with asyncio.TaskGroup() as group:
        held = group.create_task(client.claim_into(Sink(), {"tcp": 5}, claim_id="c1"))
        await waiting(server, 1)
        server.plane.close()
        async with asyncio.timeout(PATIENCE_S):
            await held


async def raw_report(
    server: Server, client: ControlPlaneClient, *pieces: bytes, until: bytes = b'"t":"end"'
) -> list[Any]:
    """Send pieces as a chunked report, read until something is said, and hang up."""
    assert client.identity is not None
    host, port = server.agent_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        "POST /v1/agents/report HTTP/1.1\r\nHost: x\r\nNetsonde-Protocol: 1\r\n"
        f"X-Agent-Id: {client.identity.agent_id}\r\nX-Agent-Token: {client.identity.token}\r\n"
        f"Content-Type: {wire.NDJSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(head.encode() + b"".join(pieces))
    answer = b""
    async with asyncio.timeout(PATIENCE_S):
        while until not in answer and (got := await reader.read(65536)):
            answer += got
    writer.close()
    return [json.loads(line) for line in answer.splitlines() if line.startswith(b"{")]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_a_report_that_is_cut_off_keeps_what_was_whole(
    server: Server, client: ControlPlaneClient, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    await queue(server, 2)
    await client.claim_into(sink, {"tcp": 2}, claim_id="c1")
    lines = [
        wire.report_line(seq, b'{"lease_id":%d,"outcome":"ok"}' % one)
        for seq, one in enumerate(sink.lease_ids)
    ]
    with caplog.at_level(logging.ERROR):
        pieces = chunk(lines[0]), chunk(lines[1][:-9])
        answers = await raw_report(server, client, *pieces, until=b'"t":"a"')
        assert [one["status"] for one in answers] == ["accepted"]
    source = Source(sink.lease_ids)
    assert await client.report_from(source)
    assert list(source.statuses.values()) == ["duplicate", "accepted"]
    assert caplog.records == []


async def test_a_broken_chunk_is_answered_and_ends_it(
    server: Server, client: ControlPlaneClient, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    await queue(server)
    await client.claim_into(sink, {"tcp": 1}, claim_id="c1")
    line = wire.report_line(1, b'{"lease_id":%d,"outcome":"ok"}' % sink.lease_ids[0])
    with caplog.at_level(logging.ERROR):
        await raw_report(server, client, chunk(line), b"ZZ\r\n", until=b"never")
    source = Source(sink.lease_ids)
    assert await client.report_from(source)
    assert next(iter(source.statuses.values())) in ("accepted", "duplicate")
    assert caplog.records == []


async def test_a_line_that_is_refused_closes_the_connection(
    server: Server, client: ControlPlaneClient
) -> None:
    answers = await raw_report(server, client, chunk(b"<html>\n"), b"0\r\n\r\n")
    assert [(one["t"], one["error"]["error"]) for one in answers] == [("end", "ERR_MALFORMED_JSON")]
