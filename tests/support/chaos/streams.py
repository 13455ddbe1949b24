"""Streams on their way through the proxy: lines are passed on in the groups in which they came.

A group is written down before it is passed on. A fault strikes a group that matters, one that
grants leases or answers for results; its lines up to a cut count as told.
"""

import asyncio
from random import Random
from typing import Any, Protocol

from support.chaos.damage import damaged
from support.chaos.evidence import Exchange, Told
from support.chaos.faults import Fault, Planned
from support.chaos.framing import LAST_CHUNK, Head, chunk
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


class Passage:
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
        self._asked: dict[str, Any] = {}  # what every record of a claim says

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
        seen = {
            "begun": self._begun_ns, "status": 200, "answered": now_ns(), **self._asked, **seen,
        }  # fmt: skip
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
