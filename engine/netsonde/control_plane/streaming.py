"""Claims and reports as streams: what their lines bring, and what goes up when.

A stream that breaks off is never resumed from where it broke: a claim is asked again under the same
id, and what was not acknowledged of a report is sent again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from netsonde import wire
from netsonde.backoff import Verb
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane.exchange import ANSWER_MAX_BYTES, Answer
from netsonde.control_plane.grants import ClaimGrant, granted, read_claim
from netsonde.control_plane.transport import TransportResponse, TransportStream
from netsonde.errors import NetsondeError, TransportError

WINDOW_ITEMS = 2_000  # sent and not acknowledged: as many as a slow commit keeps from its answer
PART_ITEMS = 500  # of one chunk: one group of the server's commit
PART_BYTES = 1 << 20
# A proxy that keeps a request until it is complete lets no acknowledgement through: after this long
# without one the request is completed.
STALL_NS = 10 * NS_PER_S
REPORT_STREAM_NS = (wire.STREAM_MAX_MS - 10_000) * NS_PER_MS  # less what the last commit may take
CONTROL_LINES_MAX = wire.LINES_MAX  # beside the leases: pings, revocations


class ClaimSink(Protocol):
    """Where the parts of a claim's answer go."""

    async def take(self, grant: ClaimGrant) -> None:
        """Take granted leases."""
        ...

    def revoke(self, lease_ids: Sequence[int]) -> None:
        """End leases that the control plane takes back."""
        ...


class ReportSource(Protocol):
    """Where reported items come from, and where their statuses go."""

    def begin(self) -> None:
        """Go back to the first item that is not settled."""
        ...

    async def more(self, items: int, size_bytes: int) -> Sequence[tuple[int, bytes]]:
        """Return the next encoded items and their numbers, which grow; none: nothing waits.

        Raises:
            StorageError: they cannot be read now.
        """
        ...

    async def settle(self, answers: Sequence[tuple[int, str]]) -> None:
        """Take note of items' statuses.

        Raises:
            StorageError: this could not be noted down.
        """
        ...


def is_streamed(stream: TransportStream) -> bool:
    """Whether an answer comes as lines; another is one document, from who knows no streams."""
    return wire.NDJSON in stream.headers.get("Content-Type", "").lower()


async def follow_claim(
    stream: TransportStream, sent_ns: int, clock: Clock, term_ms: Callable[[], int], sink: ClaimSink
) -> None:
    """Hand on what a claim's answer brings until it ends.

    Raises:
        ControlPlaneError: the stream ended with an error.
        TransportError: it broke off, or ended without its end.
        DecodeError: it makes no sense.
    """
    if not is_streamed(stream):
        response = await stream.response(ANSWER_MAX_BYTES)
        await sink.take(read_claim(Answer(response, sent_ns, clock.boottime_ns()), term_ms()))
        return
    lines = wire.Lines(lines_max=wire.LINES_MAX + CONTROL_LINES_MAX)
    head = TransportResponse(stream.status, stream.headers)
    async for chunk in stream.chunks:
        part = wire.read_claim_lines(lines.feed(chunk))
        if part.claimed.leases or part.claimed.rejected:
            answer = Answer(head, sent_ns, clock.boottime_ns())
            await sink.take(granted(part.claimed, answer, term_ms()))
        if part.revoked:
            sink.revoke(part.revoked)
        if part.error is not None:
            raise part.error
        if part.is_over:
            return
    raise TransportError(Verb.CLAIM, "the stream stopped before its end")


class ReportStream:
    """One report: sends what its source has and hands the source what becomes of it.

    Not more than WINDOW_ITEMS are on their way at once. `is_held_up` tells that acknowledgements
    came only once the request was complete.
    """

    def __init__(self, source: ReportSource, clock: Clock) -> None:
        self.is_held_up = False
        self._source = source
        self._clock = clock
        self._sent = 0
        self._answered = 0
        self._moved = asyncio.Event()
        self._failure: NetsondeError | None = None

    async def lines(self) -> AsyncIterator[bytes]:
        """Give the request's body; it ends when nothing waits, or enough went by this way."""
        self._sent = self._answered = 0
        self._source.begin()
        until_ns = self._clock.boottime_ns() + REPORT_STREAM_NS
        while self._sent < wire.LINES_MAX and self._clock.boottime_ns() < until_ns:
            if not await self._has_room():
                self.is_held_up = True
                return
            try:
                items = await self._source.more(
                    min(PART_ITEMS, wire.LINES_MAX - self._sent), PART_BYTES
                )
            except NetsondeError as error:  # in a task of the transport's: `follow` raises it
                self._failure = error
                return
            if not items:
                return
            self._sent += len(items)
            yield b"".join([wire.report_line(seq, body) for seq, body in items])

    async def follow(self, stream: TransportStream) -> None:
        """Hand on acknowledgements until the answer ends.

        Raises:
            ControlPlaneError: the stream ended with an error.
            StorageError: the source failed.
            TransportError: it broke off, or ended without its end.
            DecodeError: it makes no sense.
        """
        lines = wire.Lines(lines_max=wire.LINES_MAX + CONTROL_LINES_MAX)
        async for chunk in stream.chunks:
            answers = wire.read_report_answers(lines.feed(chunk))
            if answers.acknowledgements:
                await self._source.settle(
                    [(one.seq, one.status) for one in answers.acknowledgements]
                )
                self._answered += len(answers.acknowledgements)
                self._moved.set()
            if answers.error is not None:
                raise answers.error
            if answers.is_over:
                if self._failure is not None:
                    raise self._failure
                return
        raise TransportError(Verb.REPORT, "the stream stopped before its end")

    async def _has_room(self) -> bool:
        """Wait for room in the window; False: nothing was acknowledged for too long."""
        while self._sent - self._answered > WINDOW_ITEMS - PART_ITEMS:
            self._moved.clear()
            if not await self._clock.wait(self._moved, STALL_NS):
                return False
        return True
