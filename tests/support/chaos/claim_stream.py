"""Claims whose answers come as lines, on their way through the proxy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from support.chaos.bodies import LineCutter, read_claim_lines, read_request
from support.chaos.evidence import Grant, Told
from support.chaos.faults import Fault
from support.chaos.framing import LAST_CHUNK, Head, chunk
from support.chaos.lanes import Lane
from support.chaos.processes import now_ns
from support.chaos.streams import GROUP_FAULTS, LISTEN_S, Passage, Way
from support.chaos.upstream import Upstream, written


class ClaimPassage(Passage):
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
        self._asked = {"asked": seen.asked, "claim": seen.claim}

    async def run(self) -> bool:
        """Pass the claim on and its answer back; return whether the connection goes on."""
        try:
            return await self._pass()
        finally:
            self.give_back()
            if not self._notes:
                self._note(told="nothing", told_status=None, answered=None)

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
            self._note(told=told, grants=listed)
