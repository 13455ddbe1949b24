"""The chaos proxy between a client and a server that are both of this test, on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS
from support.chaos.evidence import Exchange
from support.chaos.faults import Fault, Planned
from support.chaos.framing import Head, parse_head
from support.chaos.journal import Journal, read
from support.chaos.lanes import Lane, Trap
from support.chaos.proxy import METRICS_AGAIN_EVERY, Proxy

REPORT = b'{"completed":[{"lease_id":5}],"cancelled":[]}'
ANSWER = b'{"acknowledged":1,"results":[{"lease_id":5,"status":"accepted"}]}'
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Bench:
    """A server that answers every report alike, and a client of the proxy before it."""

    def __init__(self, path: Path) -> None:
        self.lane = Lane(0)
        self.struck: list[Fault] = []
        self.lane.on_struck = lambda planned, *_: self.struck.append(planned.fault)
        self.bodies: list[bytes] = []
        self.answer = b"HTTP/1.1 200 OK", ANSWER
        self.heads: list[Head] = []
        self.path = path
        self.port = 0
        self.serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            while True:
                head = parse_head(await reader.readuntil(b"\r\n\r\n"))
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(head.body_bytes))
                start, answer = self.answer
                writer.write(Head(start, []).encode(len(answer)) + answer)
        except (EOFError, OSError):
            writer.transport.abort()

    async def connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(
        self, streams: Streams, call: bytes = b"POST /v1/agents/report", body: bytes = REPORT
    ) -> tuple[int, bytes]:
        reader, writer = streams
        writer.write(Head(call + b" HTTP/1.1", []).encode(len(body)) + body)
        head = parse_head(await reader.readuntil(b"\r\n\r\n"))
        return head.status, await reader.readexactly(head.body_bytes)

    def arm(self, fault: Fault) -> None:
        self.lane.armed.append(Planned(0, fault, 0, 2 * NS_PER_MS, 1))

    def seen(self) -> list[Exchange]:
        return list(read(self.path, Exchange))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "exchanges.jsonl")
    journal = Journal(made.path)
    async with (
        await asyncio.start_server(made.serve, "127.0.0.1", 0) as server,
        Proxy(server.sockets[0].getsockname()[1], journal).serving(made.lane) as made.port,
    ):
        yield made
    if made.serving:
        await asyncio.wait(made.serving)
    journal.close()


@asynccontextmanager
async def connected(bench: Bench) -> AsyncIterator[Streams]:
    streams = await bench.connect()
    try:
        yield streams
    finally:
        streams[1].transport.abort()


async def test_messages_pass_on_a_connection_that_is_kept(bench: Bench) -> None:
    async with connected(bench) as streams:
        for _ in range(50):
            assert await bench.ask(streams) == (200, ANSWER)
    assert bench.bodies == [REPORT] * 50
    assert [one.told for one in bench.seen()] == ["whole"] * 50
    assert bench.seen()[0].results == [(5, "accepted")]
    assert bench.lane.answered == {5}


@pytest.mark.parametrize("fault", [Fault.REQUEST_SLOW, Fault.ANSWER_SLOW, Fault.REQUEST_REPLAYED])
async def test_what_only_delays_or_repeats_is_answered_whole(bench: Bench, fault: Fault) -> None:
    bench.arm(fault)
    async with connected(bench) as streams:
        assert await bench.ask(streams) == (200, ANSWER)
    assert bench.struck == [fault]
    assert set(bench.bodies) == {REPORT}
    copies = [one for one in bench.seen() if one.is_copy]
    assert len(copies) == len(bench.bodies) - 1
    assert (len(copies) > 0) == (fault is Fault.REQUEST_REPLAYED)


@pytest.mark.parametrize("fault", [Fault.ANSWER_GARBAGE, Fault.ANSWER_PAGE, Fault.ANSWER_TRUNCATED])
async def test_a_damaged_answer_is_another_than_the_servers(bench: Bench, fault: Fault) -> None:
    bench.arm(fault)
    async with connected(bench) as streams:
        status, body = await bench.ask(streams)
        assert (status, body) != (200, ANSWER)
        assert await bench.ask(streams) == (200, ANSWER)
    assert bench.struck == [fault]
    assert [one.told for one in bench.seen()] == ["damaged", "whole"]
    assert bench.seen()[0].results == [(5, "accepted")]


@pytest.mark.parametrize(
    ("fault", "reaches"),
    [
        (Fault.REQUEST_CUT, False),
        (Fault.RESET_AFTER_REQUEST, True),
        (Fault.ANSWER_LOST, True),
        (Fault.ANSWER_CUT, True),
    ],
)
async def test_a_cut_ends_the_connection_before_the_answer_is_whole(
    bench: Bench, fault: Fault, reaches: bool
) -> None:
    bench.arm(fault)
    async with connected(bench) as streams:
        with pytest.raises((EOFError, OSError)):
            await bench.ask(streams)
    async with connected(bench) as streams:
        assert await bench.ask(streams) == (200, ANSWER)
    assert bench.struck == [fault]
    assert len(bench.bodies) == 1 + reaches
    assert bench.seen()[0].told in ("nothing", "damaged")


async def test_a_way_without_streams_asks_for_documents(bench: Bench) -> None:
    head = Head(b"POST /v1/agents/heartbeat HTTP/1.1", [(b"Accept", b"application/x-ndjson")])
    async with connected(bench) as (reader, writer):
        writer.write(head.encode(2) + b"{}")
        assert parse_head(await reader.readuntil(b"\r\n\r\n")).status == 200
    assert bench.heads[0].get(b"accept") == b"application/json"


async def test_an_answer_that_makes_no_sense_ends_the_connection(bench: Bench) -> None:
    head = Head(b"POST /v1/agents/claim HTTP/1.1", [])
    async with connected(bench) as (reader, writer):
        writer.write(head.encode(2) + b"{}")
        with pytest.raises((EOFError, ConnectionError)):  # this server's answer is no claim's
            await reader.readuntil(b"\r\n\r\n")


async def test_a_way_without_streams_refuses_a_report_that_is_one(bench: Bench) -> None:
    async with connected(bench) as (reader, writer):
        head = b"POST /v1/agents/report HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"5\r\n{}{}\n\r\n")
        answer = parse_head(await reader.readuntil(b"\r\n\r\n"))
        assert (answer.status, answer.is_last) == (415, True)
        assert len(await reader.readexactly(answer.body_bytes)) == answer.body_bytes
        writer.write_eof()
        assert await reader.read() == b""
    assert bench.bodies == []
    assert [(one.told, one.told_status, one.results) for one in bench.seen()] == [
        ("damaged", 415, [])
    ]


async def test_a_storm_answers_for_the_server(bench: Bench) -> None:
    bench.lane.set_weather(Planned(0, Fault.STORM_429, 0, 0, 1))
    async with connected(bench) as streams:
        assert (await bench.ask(streams))[0] == 429
        bench.lane.clear()
        assert await bench.ask(streams) == (200, ANSWER)
    assert len(bench.bodies) == 1
    assert [one.status for one in bench.seen()] == [None, 200]


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_trap_holds_a_report_until_its_agent_is_gone(bench: Bench, is_after: bool) -> None:
    bench.lane.trap = trap = Trap(is_after=is_after)
    async with connected(bench) as streams, asyncio.TaskGroup() as group:
        asking = group.create_task(bench.ask(streams))
        assert await trap.caught == [5]
        assert not asking.done()
        assert len(bench.bodies) == is_after
        asking.cancel()
    bench.lane.trap = None
    async with connected(bench) as streams:
        assert await bench.ask(streams) == (200, ANSWER)


async def test_a_forged_acknowledgement_never_reaches_the_server(bench: Bench) -> None:
    bench.lane.forges = "report"
    async with connected(bench) as streams:
        status, body = await bench.ask(streams)
    assert (status, bench.bodies) == (200, [])
    assert b'"accepted"' in body
    assert bench.seen()[0].results == [(5, "accepted")]


METRICS = (
    b'{"agent_id":7,"timestamp":"t","instance_id":"i","seq":2,"start_time":"s","counters":'
    b'[{"name":"netsonde_agent_results_total","labels":{"outcome":"ok"},"value":5}]}'
)
TAKEN = b'{"accepted":true,"id":"7/i/2","stored":1}'


async def test_metrics_and_what_was_made_of_them_are_written_down(bench: Bench) -> None:
    bench.answer = b"HTTP/1.1 202 Accepted", TAKEN
    bench.arm(Fault.REQUEST_REPLAYED)
    async with connected(bench) as streams:
        assert await bench.ask(streams, b"POST /v1/agents/metrics", METRICS) == (202, TAKEN)
    seen = bench.seen()
    assert [one.is_copy for one in seen] == [True] * (len(seen) - 1) + [False]
    assert len(bench.bodies) == len(seen) > 1
    for one in seen:
        assert one.metered is not None
        assert (one.status, one.metered.seq, one.metered.stored) == (202, 2, 1)


async def test_some_envelopes_of_metrics_come_twice_without_a_fault(bench: Bench) -> None:
    bench.answer = b"HTTP/1.1 202 Accepted", TAKEN
    async with connected(bench) as streams:
        for seq in range(1, 2 * METRICS_AGAIN_EVERY + 1):
            body = METRICS.replace(b'"seq":2', b'"seq":%d' % seq)
            assert await bench.ask(streams, b"POST /v1/agents/metrics", body) == (202, TAKEN)
    copied = [one.metered and one.metered.seq for one in bench.seen() if one.is_copy]
    assert copied == [METRICS_AGAIN_EVERY, 2 * METRICS_AGAIN_EVERY]


async def test_forged_metrics_never_reach_the_server(bench: Bench) -> None:
    bench.lane.forges = "metrics"
    async with connected(bench) as streams:
        status, _ = await bench.ask(streams, b"POST /v1/agents/metrics", METRICS)
        assert (status, bench.bodies) == (202, [])
        assert await bench.ask(streams) == (200, ANSWER)
    first = bench.seen()[0].metered
    assert first is not None
    assert first.stored == 1


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK", b"HTTP/1.1 304 Not Modified"])
async def test_a_configuration_is_replaced_once_by_what_is_imposed(
    bench: Bench, start: bytes
) -> None:
    bench.answer = start, b""
    bench.lane.imposed.append(b'{"payload":"x"}')
    async with connected(bench) as streams:
        assert await bench.ask(streams, b"GET /v1/agents/config", b"") == (200, b'{"payload":"x"}')
        status, body = await bench.ask(streams, b"GET /v1/agents/config", b"")
    assert (b"%d" % status in start, body) == (True, b"")


async def test_nothing_is_imposed_where_no_configuration_is_published(bench: Bench) -> None:
    bench.answer = b"HTTP/1.1 404 Not Found", b""
    bench.lane.imposed.append(b"{}")
    async with connected(bench) as streams:
        assert await bench.ask(streams, b"GET /v1/agents/config", b"") == (404, b"")


async def test_a_lane_knows_what_its_agent_has_in_force(bench: Bench) -> None:
    bench.answer = b"HTTP/1.1 200 OK", b"{}"
    async with connected(bench) as streams:
        beat = b'{"agent_id":7,"config":{"applied":4}}'
        await bench.ask(streams, b"POST /v1/agents/heartbeat", beat)
        assert bench.lane.applied == 4
        await bench.ask(streams, b"POST /v1/agents/heartbeat", b'{"agent_id":7}')
        assert bench.lane.applied == 0


async def test_a_server_that_is_gone_is_a_broken_connection(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "exchanges.jsonl")
    journal = Journal(bench.path)
    async with await asyncio.start_server(bench.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
    async with Proxy(port, journal).serving(bench.lane) as bench.port, connected(bench) as streams:
        with pytest.raises((EOFError, OSError)):
            await bench.ask(streams)
    journal.close()
    assert [one.told for one in bench.seen()] == ["nothing"]
