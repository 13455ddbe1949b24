"""Claims and reports as streams: what their lines bring, and what goes up when.

A stream that breaks off is never resumed from where it broke: a claim is asked again under the same
id, and what was not acknowledged of a report is sent again.
"""

import asyncio
from collections import Counter
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
HELD_UP_NS = 5 * NS_PER_S  # lines of a claim that are on their way for longer were kept somewhere
REPORT_STREAM_NS = (wire.STREAM_MAX_MS - 10_000) * NS_PER_MS  # less what the last commit may take
STREAMS_AGAIN_NS = 600 * NS_PER_S  # after they were refused: a proxy is seldom exchanged
BROKEN_MAX = 3
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

    async def more(self, items: int, size_bytes: int) -> tuple[Sequence[int], Sequence[bytes]]:
        """Return the numbers, which grow, of the next items, and the items; none: nothing waits.

        Raises:
            StorageError: they cannot be read now.
        """
        ...

    async def settle(self, seqs: Sequence[int], statuses: Sequence[str]) -> None:
        """Take note of the statuses of items with these numbers.

        Raises:
            StorageError: there is nowhere to note this down any more.
        """
        ...


class Streams:
    """Whether one kind of stream may be tried: not for a while after it proved of no use.

    Nor while they are not allowed at all.
    """

    def __init__(self, clock: Clock, counters: Counter[str]) -> None:
        self._clock = clock
        self._counters = counters
        self.are_allowed = True
        self._until_ns = 0
        self._broken = 0

    @property
    def are_usable(self) -> bool:
        """Whether to stream now."""
        return self.are_allowed and self._clock.boottime_ns() >= self._until_ns

    def refused(self) -> None:
        """Note that something between here and there takes no streams."""
        self._counters["streams_refused"] += 1
        self._until_ns = self._clock.boottime_ns() + STREAMS_AGAIN_NS
        self._broken = 0

    def broke(self) -> None:
        """Note a stream that broke off; several in a row are no accident."""
        self._broken += 1
        if self._broken >= BROKEN_MAX:
            self.refused()

    def ended(self) -> None:
        """Note a stream that went well."""
        self._broken = 0


def is_streamed(stream: TransportStream) -> bool:
    """Whether an answer comes as lines; another is one document, from who knows no streams."""
    return wire.NDJSON in stream.headers.get("Content-Type", "").lower()


class ClaimStream:
    """One claim: hands its sink what the answer brings until it ends.

    `has_begun` tells that an answer came, `is_held_up` that its lines came long after they were
    written: something on the way keeps answers until they are complete. `hear_config` is told of
    configurations' revisions.
    """

    def __init__(
        self,
        sink: ClaimSink,
        clock: Clock,
        term_ms: Callable[[], int],
        hear_config: Callable[[str | int | None], None] = lambda _: None,
    ) -> None:
        self.has_begun = False
        self.is_held_up = False
        self._sink = sink
        self._clock = clock
        self._term_ms = term_ms
        self._hear_config = hear_config

    async def follow(
        self, stream: TransportStream, sent_ns: int, proven: Callable[[], None]
    ) -> None:
        """Hand on what comes.

        Raises:
            ControlPlaneError: the stream ended with an error.
            TransportError: it broke off, or ended without its end.
            DecodeError: it makes no sense.
        """
        self.has_begun = True
        if not is_streamed(stream):
            response = await stream.response(ANSWER_MAX_BYTES)
            answer = Answer(response, sent_ns, self._clock.boottime_ns())
            await self._sink.take(read_claim(answer, self._term_ms()))
            return
        lines = wire.Lines(lines_max=wire.LINES_MAX + CONTROL_LINES_MAX)
        head = TransportResponse(stream.status, stream.headers)
        async for chunk in stream.chunks:
            part = wire.read_claim_lines(lines.feed(chunk))
            if part.claimed.leases or part.claimed.rejected:
                await self._take(part.claimed, Answer(head, sent_ns, self._clock.boottime_ns()))
            if part.revoked:
                self._sink.revoke(part.revoked)
            self._hear_config(part.config_revision)
            if part.error is not None:
                raise part.error
            proven()
            if part.is_over:
                return
        raise TransportError(Verb.CLAIM, "the stream stopped before its end")

    async def _take(self, claimed: wire.Claimed, answer: Answer) -> None:
        for lease in claimed.leases[:1]:
            written_ns = answer.sent_ns + (lease.granted_after_ms or 0) * NS_PER_MS
            self.is_held_up = self.is_held_up or answer.received_ns - written_ns > HELD_UP_NS
        await self._sink.take(granted(claimed, answer, self._term_ms()))


class ReportStream:
    """One report: sends what its source has and hands the source what becomes of it.

    Not more than WINDOW_ITEMS are on their way at once. `is_held_up` tells that acknowledgements
    came only once the request was complete, `has_begun` that an answer came.
    """

    def __init__(self, source: ReportSource, clock: Clock) -> None:
        self.has_begun = False
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
        self._failure = None
        self._source.begin()
        until_ns = self._clock.boottime_ns() + REPORT_STREAM_NS
        left_bytes = wire.STREAM_MAX_BYTES - PART_BYTES - wire.ITEM_MAX_BYTES
        while self._sent < wire.LINES_MAX and self._clock.boottime_ns() < until_ns:
            if not await self._has_room():
                self.is_held_up = True
                return
            try:
                seqs, bodies = await self._source.more(
                    min(PART_ITEMS, wire.LINES_MAX - self._sent), PART_BYTES
                )
            except NetsondeError as error:  # in a task of the transport's: `follow` raises it
                self._failure = error
                return
            if not bodies:
                return
            self._sent += len(bodies)
            lines = b"".join(map(wire.report_line, seqs, bodies))
            yield lines
            left_bytes -= len(lines)
            if left_bytes < 0:
                return

    async def follow(self, stream: TransportStream, _: int, proven: Callable[[], None]) -> None:
        """Hand on acknowledgements until the answer ends.

        Raises:
            ControlPlaneError: the stream ended with an error.
            StorageError: the source failed.
            TransportError: it broke off, or ended without its end.
            DecodeError: it makes no sense.
        """
        self.has_begun = True
        lines = wire.Lines(lines_max=wire.LINES_MAX + CONTROL_LINES_MAX)
        async for chunk in stream.chunks:
            answers = wire.read_report_answers(lines.feed(chunk))
            if answers.acknowledgements:
                await self._source.settle(
                    [one.seq for one in answers.acknowledgements],
                    [one.status for one in answers.acknowledgements],
                )
                self._answered += len(answers.acknowledgements)
                self._moved.set()
                proven()
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
