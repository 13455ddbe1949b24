"""Streams on their way through the proxy: lines are passed on in the groups in which they came.

A group is written down before it is passed on. A fault strikes a group that matters, one that
grants leases or answers for results; its lines up to a cut count as told.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from random import Random
from typing import Any, Protocol

from support.chaos.bodies import (
    LineCutter,
    read_claim_lines,
    read_report_lines,
    read_request,
    read_verdict_lines,
    report_of,
)
from support.chaos.connections import AgentReader, read_away
from support.chaos.damage import damaged
from support.chaos.evidence import Exchange, Grant, Told
from support.chaos.faults import Fault, Planned
from support.chaos.framing import LAST_CHUNK, Head, chunk, read_chunks
from support.chaos.lanes import Lane
from support.chaos.processes import now_ns
from support.chaos.upstream import Upstream, dribbled_chunks, written

NDJSON = b"application/x-ndjson"
LISTEN_S = 2.0  # to what a server says to an agent that was cut off
GROUP_FAULTS = frozenset(
    {
        Fault.ANSWER_LOST,
        Fault.ANSWER_CUT,
        Fault.ANSWER_TRUNCATED,
        Fault.ANSWER_GARBAGE,
        Fault.ANSWER_SLOW,
    }
)


class Way(Protocol):
    """What a stream needs of the proxy."""

    def note(self, exchange: Exchange) -> None:
        """Write down what passed."""
        ...

    async def replay(self, lane: Lane, head: Head, body: bytes) -> None:
        """Send a request once more; nobody gets the answer."""
        ...


class BrokenError(OSError):
    """A fault ended the connection."""


class _Passage:
    """One streamed request on its way, and its answer on the way back."""

    def __init__(
        self, way: Way, lane: Lane, upstream: Upstream, writer: asyncio.StreamWriter, head: Head
    ) -> None:
        self._way = way
        self._lane = lane
        self._upstream = upstream
        self._writer = writer
        self._head = head
        self._begun_ns = now_ns()
        self._sent_ns: int | None = None
        self._planned = lane.take(head.verb)
        self._struck: str | None = None
        self._notes = 0

    @property
    def _fault(self) -> Fault | None:
        """The fault that is still to strike this stream."""
        return None if self._planned is None else self._planned.fault

    def _strike(self) -> Planned:
        """Let the planned fault strike, once."""
        planned, self._planned = self._planned, None
        assert planned is not None
        self._struck = planned.fault
        self._lane.strike(planned, now_ns())
        return planned

    def give_back(self) -> None:
        """Leave a fault that found nothing to strike to the next message."""
        if self._planned is not None:
            self._lane.armed.appendleft(self._planned)
            self._planned = None

    def _note(self, *, told: Told, told_status: int | None = 200, **seen: Any) -> None:
        self._notes += 1
        seen = {"begun": self._begun_ns, "status": 200, "answered": now_ns(), **seen}
        self._way.note(
            Exchange(
                agent=self._lane.agent, verb=self._head.verb, ended=now_ns(), sent=self._sent_ns,
                told=told, told_status=told_status, fault=self._struck, is_stream=True, **seen,
            )
        )  # fmt: skip

    @property
    def outlives_agent(self) -> bool:
        """Whether it goes on when the agent's connection has ended."""
        return self._fault is Fault.RESET_AFTER_REQUEST

    async def _stormy(self) -> bool:
        """Answer for the server during a storm; return whether there is one."""
        await self._lane.passable()
        answer = self._lane.storm()
        if answer is None:
            return False
        self.give_back()
        await self._refuse(*answer)
        return True

    async def _refuse(self, head: Head, body: bytes) -> None:
        """Answer in one piece what no server said."""
        self._note(told="damaged", told_status=head.status, status=None, answered=None)
        await written(self._writer, head.encode(len(body)) + body)

    async def _unstreamed(self, answer: Head) -> None:
        """Pass on an answer in one piece: the server took no stream."""
        body = await self._upstream.body(answer)
        self._note(told="whole", told_status=answer.status, status=answer.status)
        await written(self._writer, answer.encode(len(body)) + body)

    async def _page(self) -> None:
        """Put a page in the place of the answer."""
        planned = self._strike()
        answer, body = damaged(Fault.ANSWER_PAGE, self._head, b"", Random(planned.salt))
        await self._refuse(answer, body)

    async def _damage(self, data: bytes) -> int:
        """Do to a group what the fault wants; return how many bytes of it were told.

        Less than all of it is the end of the connection.
        """
        planned = self._strike()
        if planned.fault is Fault.ANSWER_SLOW:
            await dribbled_chunks(self._writer, data, planned.duration_ns / 1e9)
            return len(data)
        half = data[: len(data) // 2]
        if planned.fault is Fault.ANSWER_GARBAGE:
            half = b""
            garbage = Random(planned.salt).randbytes(max(1, len(data))).replace(b"\n", b"?")
            await written(self._writer, chunk(garbage + b"\n") + LAST_CHUNK)
        elif planned.fault is Fault.ANSWER_LOST:
            half = b""
        elif half:
            end = LAST_CHUNK if planned.fault is Fault.ANSWER_TRUNCATED else b""
            await written(self._writer, chunk(half) + end)
        return len(half)


class ClaimPassage(_Passage):
    """A claim, whose answer comes as lines."""

    def __init__(
        self,
        way: Way,
        lane: Lane,
        upstream: Upstream,
        writer: asyncio.StreamWriter,
        head: Head,
        body: bytes,
    ) -> None:
        super().__init__(way, lane, upstream, writer, head)
        self._body = body
        seen = read_request("claim", body)
        self._asked: dict[str, Any] = {"asked": seen.asked, "claim": seen.claim}

    async def run(self) -> bool:
        """Pass the claim on and its answer back; return whether the connection goes on."""
        try:
            return await self._pass()
        finally:
            self.give_back()
            if not self._notes:
                self._note(told="nothing", told_status=None, answered=None, **self._asked)

    async def _pass(self) -> bool:
        if await self._stormy():
            return True
        if not await self._ask():
            return False
        answer = await self._upstream.head()
        if not answer.is_chunked:
            await self._unstreamed(answer)
            return not answer.is_last
        if self._fault is Fault.ANSWER_PAGE:
            await self._page()
            return False
        if self._fault is Fault.REQUEST_REPLAYED:
            self._strike()
            head = self._head.replaced(b"accept", b"application/json")
            await self._way.replay(self._lane, head, self._body)
        await written(self._writer, answer.encode(None))
        async for lines, grants in self._groups():
            if not await self._tell(lines, grants):
                return False
        await written(self._writer, LAST_CHUNK)
        return not answer.is_last

    async def _ask(self) -> bool:
        """Pass the claim on; return whether anybody waits for its answer."""
        if self._fault is Fault.REQUEST_CUT:
            await self._upstream.send(self._head, self._body, part=len(self._body) // 2)
            self._strike()
            return False
        is_slow = self._fault is Fault.REQUEST_SLOW
        seconds = self._strike().duration_ns / 1e9 if is_slow else 0.0
        await self._upstream.send(self._head, self._body, seconds=seconds)
        self._sent_ns = now_ns()
        if self._fault is Fault.RESET_AFTER_REQUEST:
            self._strike()
            self._writer.transport.abort()
            await self._listen()
            return False
        return True

    async def _groups(self) -> AsyncIterator[tuple[list[bytes], list[list[Grant]]]]:
        """Read lines as they come, each with what it grants."""
        cutter = LineCutter()
        async for data in self._upstream.chunks():
            if lines := cutter.feed(data):
                yield read_claim_lines(lines, self._lane.agent)

    async def _listen(self) -> None:
        """Hear what the server grants an agent that is gone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_S):
                await self._upstream.head()
                async for _, grants in self._groups():
                    self._granted(grants, told="nothing")

    async def _tell(self, lines: list[bytes], grants: list[list[Grant]]) -> bool:
        """Pass a group on; return whether the stream goes on."""
        await self._lane.passable()
        data = b"".join(line + b"\n" for line in lines)
        if not any(grants) or self._fault not in GROUP_FAULTS:
            self._granted(grants, told="whole")
            await written(self._writer, chunk(data))
            return True
        self._struck = self._fault
        told = self._count(lines) if self._fault is not Fault.ANSWER_SLOW else len(lines)
        # What is lost is written down first, lest the rig ends between the two.
        self._granted(grants[:told], told="whole")
        self._granted(grants[told:], told="damaged")
        return await self._damage(data) == len(data)

    def _count(self, lines: list[bytes]) -> int:
        """Return how many lines a cut in the middle leaves whole; a loss and garbage leave none."""
        if self._fault in (Fault.ANSWER_LOST, Fault.ANSWER_GARBAGE):
            return 0
        left = sum(len(line) + 1 for line in lines) // 2
        whole = 0
        for line in lines:
            left -= len(line) + 1
            if left < 0:
                break
            whole += 1
        return whole

    def _granted(self, grants: list[list[Grant]], *, told: Told) -> None:
        listed = [grant for each in grants for grant in each]
        if listed:
            self._note(told=told, grants=listed, **self._asked)


class ReportPassage(_Passage):
    """A report that comes as lines, and whose answer does."""

    def __init__(
        self, way: Way, lane: Lane, upstream: Upstream, writer: asyncio.StreamWriter, head: Head
    ) -> None:
        super().__init__(way, lane, upstream, writer, head)
        self._items: dict[int, tuple[int, int]] = {}  # by number: the lease, and when it came
        self._is_complete = False

    async def run(self, reader: AgentReader) -> bool:
        """Pass the report on and its answer back; return whether the connection goes on."""
        try:
            return await self._pass(reader)
        finally:
            self.give_back()
            if self._items or not self._notes:
                left = [lease_id for lease_id, _ in self._items.values()]
                self._note(told="nothing", told_status=None, answered=None, items=left)

    async def _pass(self, reader: AgentReader) -> bool:
        if await self._stormy():
            await read_away(reader)
            return False
        await self._upstream.begin(self._head)
        async with asyncio.TaskGroup() as group:
            rising = group.create_task(_ends_well(self._rise(reader)))
            falling = group.create_task(_ends_well(self._fall()))
            await asyncio.wait((rising, falling), return_when=asyncio.FIRST_COMPLETED)
            if rising.done() and rising.result():
                await asyncio.wait((falling,))
            rising.cancel()
            falling.cancel()
        return self._is_complete and not falling.cancelled() and falling.result()

    # ── towards the server ──

    async def _rise(self, reader: AgentReader) -> bool:
        cutter = LineCutter()
        async for data in read_chunks(reader):
            lines = cutter.feed(data)
            came_ns = now_ns()
            items = read_report_lines(lines)
            self._items |= {seq: (lease_id, came_ns) for seq, lease_id in items.items()}
            await self._lane.passable()
            trap = self._lane.trap
            if trap is not None and not trap.is_after and items:
                await trap.spring([*items.values()])
            await self._pass_on(data, lines)
        await self._upstream.write(LAST_CHUNK)
        self._is_complete = True
        return True

    async def _pass_on(self, data: bytes, lines: list[bytes]) -> None:
        if self._fault is Fault.REQUEST_CUT:
            self._strike()
            if len(data) > 1:
                await self._upstream.write(chunk(data[: len(data) // 2]))
            raise BrokenError
        if self._planned is not None and self._fault is Fault.REQUEST_SLOW:
            await self._upstream.write(data, seconds=self._strike().duration_ns / 1e9)
        else:
            await self._upstream.write(chunk(data))
        self._sent_ns = now_ns()
        if self._fault is Fault.REQUEST_REPLAYED and lines:
            self._strike()
            agent_id = int(self._head.get(b"x-agent-id") or b"0")
            head = self._head.replaced(b"content-type", b"application/json")
            await self._way.replay(self._lane, head, report_of(agent_id, lines))
        elif self._fault is Fault.RESET_AFTER_REQUEST and lines:
            self._strike()
            self._writer.transport.abort()
            await asyncio.sleep(LISTEN_S)  # meanwhile the answer is written down
            raise BrokenError

    # ── and back ──

    async def _fall(self) -> bool:
        answer = await self._upstream.head()
        if not answer.is_chunked:
            await self._unstreamed(answer)
            raise BrokenError
        if self._fault is Fault.ANSWER_PAGE:
            await self._page()
            raise BrokenError
        if not self._writer.transport.is_closing():
            await written(self._writer, answer.encode(None))
        cutter = LineCutter()
        async for data in self._upstream.chunks():
            if lines := cutter.feed(data):
                await self._tell(lines)
        if not self._writer.transport.is_closing():
            await written(self._writer, LAST_CHUNK)
        return not answer.is_last

    async def _tell(self, lines: list[bytes]) -> None:
        await self._lane.passable()
        verdicts = read_verdict_lines(lines)
        trap = self._lane.trap
        if trap is not None and trap.is_after and verdicts:
            leases = self._settled(verdicts, told="nothing")
            await trap.spring(leases)
        data = b"".join(line + b"\n" for line in lines)
        if self._writer.transport.is_closing():
            self._settled(verdicts, told="nothing")
        elif verdicts and self._fault in GROUP_FAULTS:
            self._struck = self._fault
            is_slow = self._fault is Fault.ANSWER_SLOW
            self._settled(verdicts, told="whole" if is_slow else "damaged")
            if await self._damage(data) < len(data):
                raise BrokenError
        else:
            self._settled(verdicts, told="whole")
            await written(self._writer, chunk(data))

    def _settled(self, verdicts: list[tuple[int, str]], *, told: Told) -> list[int]:
        """Write down what became of items; return their leases."""
        known = [(*self._items.pop(seq), status) for seq, status in verdicts if seq in self._items]
        if not known:
            return []
        leases = [lease_id for lease_id, _, _ in known]
        self._lane.hear(leases)
        self._note(
            told=told,
            begun=min(came_ns for _, came_ns, _ in known),
            items=leases,
            results=[(lease_id, status) for lease_id, _, status in known],
        )
        return leases


async def _ends_well(work: Coroutine[Any, Any, bool]) -> bool:
    """Do work; return what it says, False when a connection broke or made no sense."""
    try:
        return await work
    except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError):
        return False
