"""Claims and reports as streams: what comes, what goes up, and what is done without them."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.control_plane import (
    ClaimGrant,
    ControlPlaneClient,
    ControlPlaneError,
    MemoryControlPlaneTransport,
    TransportError,
    TransportRequest,
    TransportStream,
)
from netsonde.control_plane.memory import Answered, BrokenOff, LostRequest
from netsonde.control_plane.streaming import (
    BROKEN_MAX,
    HELD_UP_NS,
    STALL_NS,
    STREAMS_AGAIN_NS,
    WINDOW_ITEMS,
)
from netsonde.control_plane.transport import Headers
from netsonde.errors import StorageError
from netsonde.model import RegisterRequest
from support.control_planes import ScriptedControlPlane, lease
from support.driving import finish

MARGIN_NS = 450 * NS_PER_MS  # 1 % of 45 s
V1 = {"Netsonde-Protocol": "1", "Content-Type": wire.NDJSON}
Serve = Callable[[TransportRequest, AsyncIterator[bytes] | None], AsyncIterator[bytes]]


@dataclass
class Sink:
    """Keeps what a claim brings."""

    grants: list[ClaimGrant] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)

    async def take(self, grant: ClaimGrant) -> None:
        self.grants.append(grant)

    def revoke(self, lease_ids: Sequence[int]) -> None:
        self.revoked += lease_ids

    @property
    def deadlines_ns(self) -> dict[int, int]:
        return {
            one.lease_id: end_ns
            for grant in self.grants
            for one, end_ns in zip(grant.leases, grant.deadlines_ns, strict=True)
        }


class Source:
    """Has numbered items, and keeps their statuses."""

    def __init__(self, *batches: int) -> None:
        self.statuses: dict[int, str] = {}
        self.begun = 0
        self.failure: StorageError | None = None
        self._batches = deque(batches)
        self._next = 1

    def begin(self) -> None:
        self.begun += 1

    async def more(self, items: int, size_bytes: int) -> tuple[Sequence[int], Sequence[bytes]]:
        if self.failure is not None:
            raise self.failure
        if not self._batches:
            return (), ()
        count = min(self._batches[0], items)
        self._batches[0] -= count
        if not self._batches[0]:
            self._batches.popleft()
        first, self._next = self._next, self._next + count
        seqs = range(first, self._next)
        return seqs, [b'{"lease_id":%d,"outcome":"ok"}' % seq for seq in seqs]

    async def settle(self, seqs: Sequence[int], statuses: Sequence[str]) -> None:
        self.statuses |= zip(seqs, statuses, strict=True)


class Rig:
    """A client that is registered with a control plane whose streams the test scripts."""

    def __init__(self, serve: Serve) -> None:
        self.clock = ManualClock()
        self.server = ScriptedControlPlane(self.clock)
        self.headers = dict(V1)
        self.sent: list[Any] = []

        async def streamer(
            request: TransportRequest, lines: AsyncIterator[bytes] | None
        ) -> TransportStream:
            chunks = serve(request, self._noted(lines) if lines is not None else None)
            return TransportStream(200, Headers(self.headers), chunks)

        self.transport = MemoryControlPlaneTransport(self.server, self.clock, streamer=streamer)
        self.client = ControlPlaneClient(self.transport, self.clock, Random(1))

    async def registered(self) -> "Rig":
        await finish(self.clock, self.client.register(RegisterRequest(hostname="h")))
        return self

    async def claim(self, sink: Sink) -> None:
        work = self.client.claim_into(sink, {"ping": 4, "dns": 0}, claim_id="c1")
        await finish(self.clock, work)

    async def report(self, source: Source) -> bool:
        return await finish(self.clock, self.client.report_from(source))

    async def _noted(self, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in lines:
            self.sent += [json.loads(line) for line in chunk.splitlines()]
            yield chunk


def saying(*chunks: bytes) -> Serve:
    async def serve(_: TransportRequest, __: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return serve


def leases(*ids: int, **changes: object) -> bytes:
    return wire.claim_lines([lease(lease_id, **changes) for lease_id in ids])


# ── claims ──


async def test_a_claim_is_asked_for_as_a_stream() -> None:
    it = await Rig(saying(wire.end_line("wait"))).registered()
    await it.claim(Sink())
    request = it.transport.requests[-1]
    assert request.headers["Accept"] == "application/x-ndjson, application/json"
    assert json.loads(request.body) == {
        "agent_id": 7,
        "capacities": {"ping": 4},
        "claim_id": "c1",
        "wait_ms": 20_000,
    }
    assert request.is_held


async def test_every_grant_has_its_own_deadline() -> None:
    it = Rig(saying())

    async def serve(_: TransportRequest, __: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
        yield leases(1)
        await it.clock.sleep(3 * NS_PER_S)
        yield leases(2, granted_after_ms=3_000)
        yield leases(3, granted_after_ms=60_000) + wire.end_line("credits")  # it cannot be so late

    it.__init__(serve)  # type: ignore[misc]
    await it.registered()
    start_ns, sink = it.clock.boottime_ns(), Sink()
    await it.claim(sink)
    term_ns = 45 * NS_PER_S - MARGIN_NS
    ends_ns = {key: end_ns - start_ns for key, end_ns in sink.deadlines_ns.items()}
    assert ends_ns == {
        1: term_ns,
        2: 3 * NS_PER_S + term_ns,
        3: 3 * NS_PER_S + term_ns,
    }


async def test_rejected_leases_and_revocations_are_handed_on() -> None:
    it = await Rig(
        saying(leases(1) + leases(2, kind="sonar"), wire.revoke_line([5]) + wire.end_line("wait"))
    ).registered()
    sink = Sink()
    await it.claim(sink)
    assert list(sink.deadlines_ns) == [1]
    assert [one.lease_id for one in sink.grants[0].rejected] == [2]
    assert sink.revoked == [5]


async def test_a_stream_without_its_end_is_an_error_and_keeps_what_came() -> None:
    it = await Rig(saying(leases(1))).registered()
    sink = Sink()
    with pytest.raises(TransportError, match="before its end"):
        await it.claim(sink)
    assert list(sink.deadlines_ns) == [1]


async def test_an_error_at_the_end_is_the_control_planes() -> None:
    envelope = b'{"error":"ERR_STORAGE_FULL","message":"full","retryable":true}'
    it = await Rig(saying(leases(1) + wire.error_line(envelope))).registered()
    with pytest.raises(ControlPlaneError) as caught:
        await it.claim(Sink())
    assert (caught.value.code, caught.value.retryable) == ("ERR_STORAGE_FULL", True)


@pytest.mark.parametrize("chunk", [b"<html>\n", b"x" * (wire.LINE_MAX_BYTES + 1)])
async def test_garbage_is_no_answer(chunk: bytes) -> None:
    it = await Rig(saying(chunk)).registered()
    with pytest.raises(TransportError, match="makes no sense"):
        await it.claim(Sink())


async def test_a_stream_that_falls_silent_is_given_up() -> None:
    async def serve(_: TransportRequest, __: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
        yield leases(1)
        await asyncio.Event().wait()

    it = await Rig(serve).registered()
    with pytest.raises(TransportError, match="within 2"):
        await it.claim(Sink())


async def test_an_answer_in_one_document_is_taken_too() -> None:
    body = wire.encode({"leases": [lease(1), lease(2)], "claim_id": "c1"})
    it = await Rig(saying(body)).registered()
    it.headers["Content-Type"] = "application/json"
    sink = Sink()
    await it.claim(sink)
    assert list(sink.deadlines_ns) == [1, 2]


@pytest.mark.parametrize("status", [404, 405, 406, 415])
async def test_who_takes_no_streams_is_asked_in_one_piece_for_a_while(status: int) -> None:
    it = await Rig(saying(leases(9) + wire.end_line("wait"))).registered()
    it.server.leases = [lease(1)]
    it.transport.inject(Answered(status, b"{}"), path_end="/claim")
    sink = Sink()
    await it.claim(sink)
    assert list(sink.deadlines_ns) == [1]
    assert it.server.bodies["claim"][0]["max_leases"] == 4
    await it.claim(Sink())
    assert it.server.calls("claim") == 2, "no stream is tried"
    await it.clock.advance(STREAMS_AGAIN_NS)
    later = Sink()
    await it.claim(later)
    assert list(later.deadlines_ns) == [9]
    assert it.client.counters["streams_refused"] == 1


async def test_an_unknown_or_original_control_plane_is_not_asked_for_streams() -> None:
    it = Rig(saying(leases(9) + wire.end_line("wait")))
    it.server.headers = {}
    await it.registered()
    sink = Sink()
    await it.claim(sink)
    assert sink.deadlines_ns == {}
    assert it.server.calls("claim") == 1


async def test_with_nothing_free_nothing_is_asked() -> None:
    it = await Rig(saying()).registered()
    await finish(it.clock, it.client.claim_into(Sink(), {"ping": 0}, claim_id="c1"))
    assert [each.path for each in it.transport.requests] == ["/v1/agents/register"]


async def test_lines_that_were_kept_on_the_way_end_the_streams() -> None:
    """Leases that a proxy keeps until the answer is complete would be dead on arrival."""
    it = Rig(saying())

    async def kept(_: TransportRequest, __: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
        await it.clock.sleep(HELD_UP_NS + NS_PER_S)
        yield leases(1, granted_after_ms=0) + wire.end_line("wait")

    it.__init__(kept)  # type: ignore[misc]
    await it.registered()
    sink = Sink()
    await it.claim(sink)
    assert list(sink.deadlines_ns) == [1]
    await it.claim(Sink())
    assert it.server.calls("claim") == 1, "one answer at a time from now on"


async def test_streams_that_break_again_and_again_are_given_up_for_a_while() -> None:
    it = await Rig(saying(leases(1))).registered()
    for _ in range(BROKEN_MAX):
        assert it.server.calls("claim") == 0
        with pytest.raises(TransportError):
            await it.claim(Sink())
    await it.claim(Sink())
    assert it.server.calls("claim") == 1


async def test_a_stream_that_brought_something_was_no_failure() -> None:
    it = await Rig(saying(leases(1))).registered()
    it.transport.inject(LostRequest(), path_end="/report", times=20)
    for _ in range(8):
        with pytest.raises(TransportError):
            await it.report(Source(1))
    before_ns = it.clock.boottime_ns()
    with pytest.raises(TransportError, match="before its end"):
        await it.claim(Sink())
    with pytest.raises(TransportError, match="before its end"):
        await it.claim(Sink())
    assert it.clock.boottime_ns() - before_ns <= 200 * NS_PER_MS


async def test_an_error_without_a_word_is_an_error() -> None:
    it = await Rig(saying(b'{"t":"end","reason":"error"}\n')).registered()
    with pytest.raises(ControlPlaneError, match="ERR_BACKEND"):
        await it.claim(Sink())


# ── reports ──


async def acknowledging(
    _: TransportRequest, lines: AsyncIterator[bytes] | None
) -> AsyncIterator[bytes]:
    assert lines is not None
    through = 0
    async for chunk in lines:
        seqs = [json.loads(line)["seq"] for line in chunk.splitlines()]
        through = seqs[-1]
        yield b"".join(b'{"t":"a","seq":%d,"status":"accepted"}\n' % seq for seq in seqs)
    yield wire.through_line(through)


async def test_items_go_up_and_their_statuses_come_down() -> None:
    it = await Rig(acknowledging).registered()
    source = Source(2, 1)
    assert await it.report(source)
    assert source.statuses == dict.fromkeys((1, 2, 3), "accepted")
    assert it.sent[0] == {"t": "r", "seq": 1, "lease_id": 1, "outcome": "ok"}
    assert source.begun == 1
    request = it.transport.requests[-1]
    assert request.headers["Content-Type"] == wire.NDJSON
    assert request.headers["X-Agent-Id"] == "7"


async def test_a_stream_carries_a_bounded_number_of_items() -> None:
    it = await Rig(acknowledging).registered()
    source = Source(2 * wire.LINES_MAX)
    assert await it.report(source)
    assert len(source.statuses) == wire.LINES_MAX
    assert await it.report(source)
    assert len(source.statuses) == 2 * wire.LINES_MAX


async def test_not_more_than_the_window_is_on_its_way() -> None:
    it = Rig(saying())
    most = 0

    async def slow(_: TransportRequest, lines: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
        nonlocal most
        assert lines is not None
        waiting: list[int] = []
        async for chunk in lines:
            waiting += [json.loads(line)["seq"] for line in chunk.splitlines()]
            most = max(most, len(waiting))
            if len(waiting) == WINDOW_ITEMS:
                await it.clock.sleep(NS_PER_S)
                yield b"".join(b'{"t":"a","seq":%d,"status":"accepted"}\n' % n for n in waiting)
                waiting.clear()
        yield b"".join(b'{"t":"a","seq":%d,"status":"accepted"}\n' % n for n in waiting)
        yield wire.through_line(0)

    it.__init__(slow)  # type: ignore[misc]
    await it.registered()
    source = Source(wire.LINES_MAX)
    assert await it.report(source)
    assert most == WINDOW_ITEMS
    assert len(source.statuses) == wire.LINES_MAX


async def test_acknowledgements_that_come_only_at_the_end_end_the_streams() -> None:
    """A proxy that keeps requests until they are complete would stop a window for ever."""

    async def buffered(
        _: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> AsyncIterator[bytes]:
        assert lines is not None
        whole = b"".join([chunk async for chunk in lines])
        seqs = [json.loads(line)["seq"] for line in whole.splitlines()]
        yield b"".join(b'{"t":"a","seq":%d,"status":"accepted"}\n' % seq for seq in seqs)
        yield wire.through_line(seqs[-1])

    it = await Rig(buffered).registered()
    source = Source(wire.LINES_MAX)
    before_ns = it.clock.boottime_ns()
    assert await it.report(source)
    assert len(source.statuses) == WINDOW_ITEMS
    assert it.clock.boottime_ns() - before_ns >= STALL_NS
    assert not await it.report(source), "batches from now on"
    await it.clock.advance(STREAMS_AGAIN_NS)
    assert await it.report(Source(1))


@pytest.mark.parametrize("fault", [LostRequest(), BrokenOff(45), Answered(503, b"busy")])
async def test_a_report_that_breaks_off_is_an_error(fault: Any) -> None:
    it = await Rig(acknowledging).registered()
    it.transport.inject(fault, path_end="/report")
    with pytest.raises((TransportError, ControlPlaneError)):
        await it.report(Source(2))
    assert await it.report(Source(2))


async def test_a_report_without_its_end_is_an_error() -> None:
    it = await Rig(saying(b'{"t":"a","seq":1,"status":"accepted"}\n')).registered()
    source = Source(2)
    with pytest.raises(TransportError, match="before its end"):
        await it.report(source)
    assert source.statuses == {1: "accepted"}


async def test_a_source_that_fails_says_so_after_what_was_acknowledged() -> None:
    it = await Rig(acknowledging).registered()
    source = Source(1)
    source.failure = StorageError("the disk is gone")
    with pytest.raises(StorageError, match="the disk is gone"):
        await it.report(source)


async def test_a_refused_token_begins_the_report_again() -> None:
    it = await Rig(acknowledging).registered()
    renewed = 0

    async def reauthenticate(_: object) -> None:
        nonlocal renewed
        renewed += 1

    it.client.connect(reauthenticate=reauthenticate, observe=lambda *_: None)
    it.transport.inject(Answered(401, b"{}"), path_end="/report")
    source = Source(2)
    assert await it.report(source)
    assert renewed == 1
    assert source.statuses == dict.fromkeys((1, 2), "accepted")


async def test_a_line_that_is_refused_is_looked_for_in_batches() -> None:
    """One that ends every stream would keep all the others from ever being reported."""
    envelope = b'{"error":"ERR_MALFORMED_JSON","message":"a line","retryable":false}'
    it = await Rig(saying(wire.error_line(envelope))).registered()
    assert not await it.report(Source(2))


async def test_reports_and_claims_are_refused_apart() -> None:
    it = await Rig(acknowledging).registered()
    it.transport.inject(Answered(415, b"{}"), path_end="/claim")
    await it.claim(Sink())
    assert await it.report(Source(1))


@pytest.mark.parametrize("status", [400, 404, 411, 413, 415, 422])
async def test_who_takes_no_report_streams_gets_batches(status: int) -> None:
    it = await Rig(acknowledging).registered()
    it.transport.inject(Answered(status, b"{}"), path_end="/report")
    assert not await it.report(Source(1))
    assert not await it.report(Source(1))
    await it.clock.advance(STREAMS_AGAIN_NS)
    assert await it.report(Source(1))
