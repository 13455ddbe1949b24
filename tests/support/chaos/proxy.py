"""The proxy between agents and control plane: passes messages on, breaks some, writes down all.

Every agent has a port of its own, so that who asked is known without believing what it says.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

from support.chaos.bodies import read_answer, read_request
from support.chaos.claim_stream import ClaimPassage
from support.chaos.connections import OVER, AgentReader, read_away, until_left
from support.chaos.damage import damaged, forged, forged_answer, unstreamed
from support.chaos.evidence import Exchange, Told
from support.chaos.faults import Fault, Planned
from support.chaos.framing import HEAD_MAX_BYTES, FramingError, Head, parse_head
from support.chaos.journal import Journal
from support.chaos.lanes import Lane
from support.chaos.processes import now_ns
from support.chaos.report_stream import ReportPassage
from support.chaos.streams import NDJSON
from support.chaos.upstream import Upstream, dribbled, written

METRICS_AGAIN_EVERY = 2  # one envelope in so many comes twice, whatever the faults
COPY_TIMEOUT_S = 2.0  # a replayed claim may be held; nobody waits for it longer
LINE_MAX_BYTES = 4 << 20
TAKEN = frozenset({200, 202})  # metrics have the latter
CONFIGURED = frozenset({200, 304})  # there is a configuration, or no other than before
# What is still framed as if it were right.
FRAMED = frozenset({Fault.ANSWER_TRUNCATED, Fault.ANSWER_GARBAGE, Fault.ANSWER_PAGE})


class Proxy:
    """Ports for agents, and behind them one control plane."""

    def __init__(self, server_port: int, exchanges: Journal) -> None:
        self.passed = 0
        self._server_port = server_port
        self._exchanges = exchanges
        self._connections: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def serving(self, lane: Lane) -> AsyncIterator[int]:
        """Serve one agent's way; yields its port."""

        def connection() -> asyncio.StreamReaderProtocol:
            reader = AgentReader(limit=LINE_MAX_BYTES)

            async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._serve(lane, reader, writer)

            return asyncio.StreamReaderProtocol(reader, serve)

        server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            if self._connections:
                await asyncio.wait(self._connections)

    async def _serve(self, lane: Lane, reader: AgentReader, writer: asyncio.StreamWriter) -> None:
        upstream = Upstream(self._server_port)
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with suppress(*OVER):
            while True:
                data = await reader.readuntil(b"\r\n\r\n")
                begun_ns = now_ns()
                if len(data) > HEAD_MAX_BYTES:
                    raise FramingError("a head without an end")
                head = parse_head(data)
                if head.is_chunked and not lane.carries_streams:
                    await self._refuse(lane, head, begun_ns, writer)
                    await read_away(reader)
                    break
                goes_on = await self._pass(lane, upstream, (reader, writer), head, begun_ns)
                if not goes_on or head.is_last:
                    break
        upstream.close()
        writer.transport.abort()

    async def _pass(
        self,
        lane: Lane,
        upstream: Upstream,
        agent: tuple[AgentReader, asyncio.StreamWriter],
        head: Head,
        begun_ns: int,
    ) -> bool:
        """Pass a message on, as a stream or in one piece; return whether the connection goes on."""
        reader, writer = agent
        if head.is_chunked:
            report = ReportPassage(self, lane, upstream, writer, head)
            work = report.run(reader)
            return await (work if report.outlives_agent else until_left(reader, work))
        body = await reader.readexactly(head.body_bytes)
        if lane.carries_streams and head.verb == "claim" and head.has(b"accept", NDJSON):
            claim = ClaimPassage(self, lane, upstream, writer, head, body)
            work = claim.run()
            return await (work if claim.outlives_agent else until_left(reader, work))
        head = head.replaced(b"accept", b"application/json")
        return await _Exchange(self, lane, upstream, writer, (head, body), begun_ns).run(reader)

    async def _refuse(
        self, lane: Lane, head: Head, begun_ns: int, writer: asyncio.StreamWriter
    ) -> None:
        """Take no stream, as proxies do that keep what they pass until it is complete."""
        await lane.passable()
        self.note(
            Exchange(
                agent=lane.agent, verb=head.verb, begun=begun_ns, ended=now_ns(), told="damaged",
                told_status=415,
            )
        )  # fmt: skip
        answer, body = unstreamed()
        writer.write(answer.encode(len(body)) + body)
        await writer.drain()

    def note(self, exchange: Exchange) -> None:
        """Write down what passed."""
        self.passed += 1
        self._exchanges.write(exchange)

    async def replay(self, lane: Lane, head: Head, body: bytes) -> None:
        """Send a request once more, over a connection of its own; nobody gets the answer."""
        upstream, begun_ns, seen = Upstream(self._server_port), now_ns(), read_request("", b"")
        verb = head.verb
        status = answered_ns = None
        try:
            async with asyncio.timeout(COPY_TIMEOUT_S):
                await upstream.send(head, body)
                answer, answer_body = await upstream.receive()
                status, answered_ns = answer.status, now_ns()
                if status in TAKEN:
                    seen = read_request(verb, body)
                    read_answer(verb, lane.agent, answer_body, seen)
        except (OSError, EOFError, TimeoutError, FramingError):
            pass  # it was a copy: what the server made of it is seen in its database
        finally:
            upstream.close()
        self.note(
            Exchange(
                agent=lane.agent, verb=verb, begun=begun_ns, ended=now_ns(), answered=answered_ns,
                status=status, is_copy=True, claim=seen.claim, grants=seen.grants,
                extended=seen.extended, items=seen.items, results=seen.results,
                metered=seen.metered,
            )
        )  # fmt: skip


class _Exchange:
    """One request on its way, and its answer on the way back."""

    def __init__(
        self,
        proxy: Proxy,
        lane: Lane,
        upstream: Upstream,
        writer: asyncio.StreamWriter,
        request: tuple[Head, bytes],
        begun_ns: int,
    ) -> None:
        self._proxy = proxy
        self._lane = lane
        self._upstream = upstream
        self._writer = writer
        self._head, self._body = request
        self._begun_ns = begun_ns
        self._verb = self._head.verb
        self._seen = read_request(self._verb, self._body)
        self._fault = lane.take(self._verb)
        self._sent_ns: int | None = None
        self._answered_ns: int | None = None
        self._status: int | None = None
        self._is_noted = False

    async def run(self, reader: AgentReader) -> bool:
        """Pass the request on and the answer back; return whether the connection goes on."""
        try:
            if self._fault is not None and self._fault.fault is Fault.RESET_AFTER_REQUEST:
                await self._reset_after_request(self._fault)
                return False
            return await until_left(reader, self._pass())
        finally:
            self._note("nothing", None)

    async def _pass(self) -> bool:
        lane, planned = self._lane, self._fault
        fault = None if planned is None else planned.fault
        await lane.passable()
        await self._spring_before()
        if lane.forges == self._verb and (self._seen.items or self._seen.metered):
            return await self._forge()
        stormy = lane.storm()
        if stormy is not None:
            if planned is not None:
                lane.armed.appendleft(planned)  # this message is struck already
                self._fault = None
            return await self._tell(*stormy, told="damaged")
        if planned is not None and fault is Fault.REQUEST_CUT:
            await self._upstream.send(self._head, self._body, part=len(self._body) // 2)
            return self._broken(planned)
        await self._ask(planned if fault is Fault.REQUEST_SLOW else None)
        answer, body = await self._answer()
        await self._spring_after()
        await lane.passable()
        if planned is None or fault is Fault.REQUEST_SLOW:
            await self._repeat_metrics()
            return await self._tell(answer, body, told="whole")
        return await self._damage(planned, answer, body)

    async def _repeat_metrics(self) -> None:
        """Replay some envelopes without any fault: few messages are metrics."""
        metered = self._seen.metered
        if metered is not None and metered.seq % METRICS_AGAIN_EVERY == 0:
            await self._proxy.replay(self._lane, self._head, self._body)

    async def _forge(self) -> bool:
        """Say that the server took what it never saw: a planted bug."""
        head, body = forged_answer(self._seen)
        read_answer(self._verb, self._lane.agent, body, self._seen)
        self._sent_ns = self._answered_ns = now_ns()
        self._status = head.status
        return await self._tell(head, body, told="whole")

    async def _spring_before(self) -> None:
        """Hold the report that a trap waits for."""
        trap = self._lane.trap
        if trap is not None and not trap.is_after and self._seen.items:
            await trap.spring(self._seen.items)

    async def _spring_after(self) -> None:
        """Hold the answer that a trap waits for."""
        trap = self._lane.trap
        if trap is not None and trap.is_after and self._seen.results:
            self._note("nothing", None)
            await trap.spring(self._seen.items)

    async def _ask(self, slowly: Planned | None) -> None:
        if slowly is None:
            await self._upstream.send(self._head, self._body)
        else:
            await self._upstream.send(self._head, self._body, seconds=slowly.duration_ns / 1e9)
            self._lane.strike(slowly, self._begun_ns)
        self._sent_ns = now_ns()

    async def _answer(self) -> tuple[Head, bytes]:
        """Wait for the server's answer and read what it says."""
        answer, body = await self._upstream.receive()
        self._answered_ns, self._status = now_ns(), answer.status
        if self._verb == "config" and self._lane.imposed and self._status in CONFIGURED:
            return forged(200, "application/json", self._lane.imposed.pop(), Netsonde_Protocol=1)
        if self._status in TAKEN:
            body = read_answer(self._verb, self._lane.agent, body, self._seen)
        return answer, body

    async def _damage(self, planned: Planned, answer: Head, body: bytes) -> bool:
        """Pass an answer on as the fault wants it."""
        fault, lane = planned.fault, self._lane
        rng = Random(planned.salt)
        if fault is Fault.REQUEST_REPLAYED:
            for _ in range(rng.randint(1, 2)):
                await self._proxy.replay(lane, self._head, self._body)
            lane.strike(planned, self._begun_ns)
            return await self._tell(answer, body, told="whole")
        if fault in FRAMED:
            lane.strike(planned, self._begun_ns)
            return await self._tell(*damaged(fault, answer, body, rng), told="damaged")
        if fault is Fault.ANSWER_SLOW:
            self._note("whole", answer.status)
            seconds = planned.duration_ns / 1e9
            await dribbled(self._writer, answer.encode(len(body)), body, seconds)
            lane.strike(planned, self._begun_ns)
            return True
        if fault is Fault.ANSWER_CUT:
            self._note("damaged", answer.status)
            await written(self._writer, answer.encode(len(body)) + body[: len(body) // 2])
        return self._broken(planned)

    def _broken(self, planned: Planned) -> bool:
        """The connection does not outlive this fault."""
        self._lane.strike(planned, self._begun_ns)
        self._note("nothing", None)
        return False

    async def _reset_after_request(self, planned: Planned) -> None:
        """Pass a request on, reset the agent's connection, and see what the server answers."""
        await self._lane.passable()
        await self._ask(None)
        self._writer.transport.abort()
        self._lane.strike(planned, self._begun_ns)
        with suppress(TimeoutError):
            async with asyncio.timeout(COPY_TIMEOUT_S):
                await self._answer()

    async def _tell(self, answer: Head, body: bytes, *, told: Told) -> bool:
        """Write an answer to the agent; whether its connection goes on."""
        self._note(told, answer.status)
        await written(self._writer, answer.encode(len(body)) + body)
        return not answer.is_last

    def _note(self, told: Told, told_status: int | None) -> None:
        if self._is_noted:
            return
        self._is_noted = True
        seen = self._seen
        if self._verb == "heartbeat" and self._status == 200 and told == "whole":
            self._lane.served_ns = now_ns()
            self._lane.applied = 0 if seen.config is None else seen.config.applied or 0
        if seen.results:
            self._lane.hear(lease_id for lease_id, _ in seen.results)
        self._proxy.note(
            Exchange(
                agent=self._lane.agent, verb=self._verb, begun=self._begun_ns, ended=now_ns(),
                sent=self._sent_ns, answered=self._answered_ns, status=self._status, told=told,
                told_status=told_status, fault=None if self._fault is None else self._fault.fault,
                asked=seen.asked, claim=seen.claim, grants=seen.grants, extended=seen.extended,
                items=seen.items, results=seen.results, metered=seen.metered, config=seen.config,
            )
        )  # fmt: skip
