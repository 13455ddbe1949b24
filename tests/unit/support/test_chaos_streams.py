"""Streams through the chaos proxy: server and client are both of this test, on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS
from support.chaos.evidence import Exchange
from support.chaos.faults import Fault, Planned
from support.chaos.framing import LAST_CHUNK, Head, chunk, parse_head, read_chunks
from support.chaos.journal import Journal, read
from support.chaos.lanes import Lane, Trap
from support.chaos.proxy import Proxy

PATIENCE_S = 20
NDJSON = [(b"Content-Type", b"application/x-ndjson")]
CLAIM = b'{"capacities":{"http":5},"claim_id":"c1"}'
END = b'{"t":"end","reason":"held"}\n'


def lease_line(lease_id: int) -> bytes:
    lease = {
        "lease_id": lease_id, "task_id": lease_id + 100, "lease_until_ms": 3000,
        "granted_after_ms": 0, "attempt": 1, "max_attempts": 5,
        "spec": {"url": f"http://127.0.0.1/t/{lease_id}"},
    }  # fmt: skip
    return json.dumps({"t": "lease", "lease": lease}).encode() + b"\n"


def item_line(seq: int) -> bytes:
    return b'{"t":"r","seq":%d,"lease_id":%d,"outcome":"ok"}\n' % (seq, seq + 1000)


class Bench:
    """A server that grants four leases in two groups and takes every item; a client before it."""

    def __init__(self, path: Path) -> None:
        self.lane = Lane(1, is_streaming=True)
        self.struck: list[Fault] = []
        self.lane.on_struck = lambda planned, *_: self.struck.append(planned.fault)
        self.path = path
        self.port = 0
        self.taken: list[int] = []  # lease ids of items that reached the server, in either form
        self.serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            while True:
                head = parse_head(await reader.readuntil(b"\r\n\r\n"))
                if head.is_chunked:
                    await self._take(reader, writer)
                    continue
                body = await reader.readexactly(head.body_bytes)
                if head.verb == "report":  # a copy, in one piece
                    self.taken += [one["lease_id"] for one in json.loads(body)["completed"]]
                    answer = b'{"acknowledged":0,"results":[]}'
                    writer.write(Head(b"HTTP/1.1 200 OK", []).encode(len(answer)) + answer)
                elif b"ndjson" in (head.get(b"accept") or b""):
                    writer.write(Head(b"HTTP/1.1 200 OK", NDJSON).encode(None))
                    for first in (1, 3):
                        await writer.drain()
                        writer.write(chunk(lease_line(first) + lease_line(first + 1)))
                        await asyncio.sleep(0.01)  # so that the groups are two
                    writer.write(chunk(END) + LAST_CHUNK)
                else:
                    writer.write(Head(b"HTTP/1.1 200 OK", []).encode(13) + b'{"leases":[]}')
        except (EOFError, OSError):
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Head(b"HTTP/1.1 200 OK", NDJSON).encode(None))
        tail = b""
        async for data in read_chunks(reader):
            *lines, tail = (tail + data).split(b"\n")
            items = [json.loads(line) for line in lines]
            self.taken += [one["lease_id"] for one in items]
            if items:
                said = [b'{"t":"a","seq":%d,"status":"accepted"}\n' % one["seq"] for one in items]
                writer.write(chunk(b"".join(said)))
        writer.write(chunk(b'{"t":"end","through":9}\n') + LAST_CHUNK)

    def arm(self, fault: Fault) -> None:
        self.lane.armed.append(Planned(0, fault, 1, 20 * NS_PER_MS, 1))

    def seen(self) -> list[Exchange]:
        return list(read(self.path, Exchange))

    def told(self, verb: str) -> dict[str, list[int]]:
        """Return the leases that were granted, or answered for, by what the agent was told."""
        found: dict[str, list[int]] = {}
        for one in self.seen():
            leases = [each.lease_id for each in one.grants] + [each for each, _ in one.results]
            if one.verb == verb and leases:
                found[one.told] = found.get(one.told, []) + leases
        return found


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "exchanges.jsonl")
    journal = Journal(made.path)
    async with (
        asyncio.timeout(PATIENCE_S),
        await asyncio.start_server(made.serve, "127.0.0.1", 0) as server,
        Proxy(server.sockets[0].getsockname()[1], journal).serving(made.lane) as made.port,
    ):
        yield made
    if made.serving:
        await asyncio.wait(made.serving)
    journal.close()


class Client:
    """An agent's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def claim(self) -> list[dict[str, Any]]:
        fields = [(b"Accept", b"application/x-ndjson, application/json")]
        head = Head(b"POST /v1/agents/claim HTTP/1.1", fields)
        self.writer.write(head.encode(len(CLAIM)) + CLAIM)
        return await self.lines()

    async def report(self, *groups: int) -> list[dict[str, Any]]:
        fields = [*NDJSON, (b"X-Agent-Id", b"7")]
        self.writer.write(Head(b"POST /v1/agents/report HTTP/1.1", fields).encode(None))
        seq = 1
        for count in groups:
            lines = b"".join(item_line(one) for one in range(seq, seq + count))
            self.writer.write(chunk(lines))
            seq += count
            await asyncio.sleep(0.01)
        self.writer.write(LAST_CHUNK)
        return await self.lines()

    async def lines(self) -> list[dict[str, Any]]:
        """Read an answer; what a cut leaves of a line is none."""
        head = parse_head(await self.reader.readuntil(b"\r\n\r\n"))
        assert head.is_chunked
        text = b"".join([data async for data in read_chunks(self.reader)])
        return [json.loads(line) for line in text.split(b"\n")[:-1]]


@asynccontextmanager
async def connected(bench: Bench) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def test_streams_pass_on_a_connection_that_is_kept(bench: Bench) -> None:
    async with connected(bench) as client:
        for _ in range(3):
            answer = await client.claim()
            assert [one["t"] for one in answer] == ["lease"] * 4 + ["end"]
            assert answer[0]["lease"]["spec"]["url"] == "http://127.0.0.1/t/1/a1/l1"
            verdicts = await client.report(2, 1)
            assert [one["t"] for one in verdicts] == ["a", "a", "a", "end"]
    assert bench.taken == [1001, 1002, 1003] * 3
    assert bench.told("claim") == {"whole": [1, 2, 3, 4] * 3}
    assert bench.told("report") == {"whole": [1001, 1002, 1003] * 3}
    assert bench.lane.answered == {1001, 1002, 1003}
    assert all(one.is_stream for one in bench.seen())
    first = bench.seen()[0]
    assert (first.asked, first.claim) == (5, "c1")
    assert [grant.lease_id for grant in first.grants] == [1, 2]


@pytest.mark.parametrize("fault", [Fault.REQUEST_SLOW, Fault.ANSWER_SLOW, Fault.REQUEST_REPLAYED])
async def test_what_only_delays_or_repeats_is_answered_whole(bench: Bench, fault: Fault) -> None:
    async with connected(bench) as client:
        bench.arm(fault)
        assert len(await client.claim()) == 5
        bench.arm(fault)
        assert len(await client.report(3)) == 4
    assert bench.struck == [fault, fault]
    assert set(bench.taken) == {1001, 1002, 1003}
    assert (len(bench.taken) > 3) == (fault is Fault.REQUEST_REPLAYED)
    assert [one.verb for one in bench.seen() if one.is_copy] == (
        ["claim", "report"] if fault is Fault.REQUEST_REPLAYED else []
    )


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault.REQUEST_CUT, {}),
        (Fault.ANSWER_LOST, {"damaged": [1, 2]}),
        (Fault.ANSWER_CUT, {"whole": [1], "damaged": [2]}),
        (Fault.ANSWER_TRUNCATED, {"whole": [1], "damaged": [2]}),
        (Fault.ANSWER_GARBAGE, {"damaged": [1, 2]}),
        (Fault.ANSWER_PAGE, {}),
        (Fault.RESET_AFTER_REQUEST, {"nothing": [1, 2, 3, 4]}),
    ],
)
async def test_a_struck_claim_tells_what_came_before_the_cut(
    bench: Bench, fault: Fault, told: dict[str, list[int]]
) -> None:
    bench.arm(fault)
    async with connected(bench) as client:
        answer: list[dict[str, Any]] = []
        with suppress(EOFError, OSError, ValueError, AssertionError):  # what is told is in the log
            answer = await client.claim()
        assert {"t": "end", "reason": "held"} not in answer
    async with connected(bench) as client:
        assert len(await client.claim()) == 5
    whole = {"whole": [*told.get("whole", []), 1, 2, 3, 4]}
    assert bench.told("claim") == told | whole
    assert bench.struck == [fault]


@pytest.mark.parametrize(
    ("fault", "reached", "told"),
    [
        (Fault.REQUEST_CUT, [1001, 1002], None),  # two whole lines
        (Fault.RESET_AFTER_REQUEST, [1001, 1002, 1003, 1004], "nothing"),
        (Fault.ANSWER_LOST, [1001, 1002, 1003, 1004], "damaged"),
        (Fault.ANSWER_CUT, [1001, 1002, 1003, 1004], "damaged"),
        (Fault.ANSWER_TRUNCATED, [1001, 1002, 1003, 1004], "damaged"),
        (Fault.ANSWER_GARBAGE, [1001, 1002, 1003, 1004], "damaged"),
        (Fault.ANSWER_PAGE, None, None),  # before or behind them
    ],
)
async def test_a_struck_report_is_written_down_as_the_server_took_it(
    bench: Bench, fault: Fault, reached: list[int] | None, told: str | None
) -> None:
    bench.arm(fault)
    async with connected(bench) as client:
        answer: list[dict[str, Any]] = []
        with suppress(EOFError, OSError, ValueError, AssertionError):
            answer = await client.report(4)
        assert {"t": "end", "through": 9} not in answer
    async with connected(bench) as client:
        assert len(await client.report(4)) == 5
    everything = [1001, 1002, 1003, 1004]
    if reached is not None:
        assert bench.taken == reached + everything
    if told is not None:
        assert bench.told("report") == {told: everything, "whole": everything}
    assert bench.struck == [fault]
    assert {one.fault for one in bench.seen() if one.told != "whole"} == {fault}


async def test_an_agent_that_leaves_a_claim_ends_it(bench: Bench) -> None:
    async with connected(bench) as client:
        head = Head(b"POST /v1/agents/claim HTTP/1.1", [(b"Accept", b"application/x-ndjson")])
        client.writer.write(head.encode(len(CLAIM)) + CLAIM)
        await client.reader.readuntil(b'"t":"lease"')
    async with connected(bench) as client:
        assert len(await client.claim()) == 5


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_trap_holds_a_streamed_report_until_its_agent_is_gone(
    bench: Bench, is_after: bool
) -> None:
    bench.lane.trap = trap = Trap(is_after=is_after)
    async with asyncio.TaskGroup() as group, connected(bench) as client:
        asking = group.create_task(client.report(2))
        assert await trap.caught == [1001, 1002]
        asking.cancel()
    assert bench.taken == ([1001, 1002] if is_after else [])
    bench.lane.trap = None
    async with connected(bench) as client:
        assert len(await client.report(2)) == 3


async def test_a_storm_meets_streams_too(bench: Bench) -> None:
    bench.lane.set_weather(Planned(0, Fault.STORM_429, 1, 0, 1))
    async with connected(bench) as client:
        head = Head(b"POST /v1/agents/claim HTTP/1.1", [(b"Accept", b"application/x-ndjson")])
        client.writer.write(head.encode(len(CLAIM)) + CLAIM)
        answer = parse_head(await client.reader.readuntil(b"\r\n\r\n"))
        assert answer.status == 429
        await client.reader.readexactly(answer.body_bytes)
        bench.lane.clear()
        assert len(await client.claim()) == 5


async def test_a_way_that_forges_takes_no_streams(bench: Bench) -> None:
    bench.lane.forges = "report"
    async with connected(bench) as client:
        client.writer.write(Head(b"POST /v1/agents/report HTTP/1.1", NDJSON).encode(None))
        answer = parse_head(await client.reader.readuntil(b"\r\n\r\n"))
    assert answer.status == 415
