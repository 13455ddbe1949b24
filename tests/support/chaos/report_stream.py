"""Reports that come as lines, and whose answers do, on their way through the proxy."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from support.chaos.bodies import LineCutter, read_report_lines, read_verdict_lines, report_of
from support.chaos.connections import AgentReader, read_away
from support.chaos.evidence import Told
from support.chaos.faults import Fault
from support.chaos.framing import LAST_CHUNK, Head, chunk, read_chunks
from support.chaos.lanes import Lane
from support.chaos.processes import now_ns
from support.chaos.streams import GROUP_FAULTS, LISTEN_S, BrokenError, Passage, Way
from support.chaos.upstream import Upstream, written


class ReportPassage(Passage):
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
