"""What a control plane may send by mistake: each has its outcome, its counter, and stalls nothing.

A real agent over the transport in memory, once with claims in one answer and once as streams; after
each mistake a good lease is worked on and reported.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from netsonde import wire
from netsonde.clock import ManualClock
from netsonde.control_plane import (
    MemoryControlPlaneTransport,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.control_plane.transport import Headers
from netsonde.model import TaskKind
from support.control_planes import V1, ScriptedControlPlane, lease
from support.fleet import bodies, make_agent, run_for, started
from support.probers import GatedProber, gated
from support.spools import inline_spools

PAGE = b"<html><body>It works!</body></html>"
GOOD = 500
Lines = tuple[bytes, ...]


@dataclass(frozen=True)
class Mistake:
    """What comes instead of a proper answer; `counter` says that it was noticed."""

    name: str
    leases: tuple[dict[str, Any] | bytes, ...] = ()
    counter: str = ""
    times: int = 1
    reported: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    raw: bytes | None = None  # in place of leases
    has_end: bool = True


def late(lease_id: int) -> dict[str, Any]:
    """Return a lease whose deadline is less than the margin away."""
    return lease(lease_id, lease_until_ms=100)


MISTAKES = [
    Mistake("a deadline that has passed on arrival", (late(1), lease(2)), "dispatcher.lease_late",
            reported=(2,)),
    Mistake("one lease id twice", (lease(1), lease(1), lease(2)), "dispatcher.lease_repeated",
            reported=(1, 2)),
    Mistake("an id above 2^63", (lease(2**64 - 1, task_id=2**63), lease(2)),
            "reporter.status_accepted", 3, reported=(2, 2**64 - 1)),
    Mistake("an id above 2^64", (b'{"lease_id":%d}' % 2**64, lease(2)),
            "dispatcher.lease_rejected", reported=(2,)),
    Mistake("an unknown kind", (lease(1, kind="smtp", spec={"kind": "smtp"}), lease(2)),
            "dispatcher.lease_rejected", reported=(2,), released=(1,)),
    Mistake("a spec that is not valid",
            (lease(1, spec={"kind": "ping", "count": "many"}), lease(2)),
            "dispatcher.lease_rejected", reported=(2,), released=(1,)),
    Mistake("a spec of another kind", (lease(1, kind="dns"), lease(2)),
            "dispatcher.lease_rejected", reported=(2,), released=(1,)),
    Mistake("a page with status 200", counter="control_plane.garbled_answers", raw=PAGE),
    Mistake("nothing that is JSON", counter="control_plane.garbled_answers", raw=b"\xff{\x00\n"),
]  # fmt: skip


@dataclass
class Plane(ScriptedControlPlane):
    """Makes one mistake, then grants a good lease."""

    mistake: Mistake = field(default_factory=lambda: Mistake(""))
    claims: int = 0

    async def claim(self, body: Any) -> tuple[int, Any]:
        self.claims += 1
        if self.claims > 1:
            return await super().claim(body)
        self.leases = [lease(GOOD)]
        if self.mistake.raw is not None:
            return 200, self.mistake.raw
        return 200, b'{"leases":[' + b",".join(map(_encoded, self.mistake.leases)) + b"]}"

    async def stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> TransportStream:
        """Answer claims as a stream; reports are taken in batches."""
        if lines is not None:
            return _stream(TransportResponse(415, V1, b"{}"))
        response = await self(request)
        if response.status != 200 or (self.claims == 1 and self.mistake.raw is not None):
            return _stream(response, "text/html")
        granted = wire.parse(response.body)["leases"] if self.claims > 1 else None
        encoded = map(_encoded, self.mistake.leases if granted is None else granted)
        body = b"".join(b'{"t":"lease","lease":' + each + b"}\n" for each in encoded)
        end = wire.end_line("wait") if self.claims > 1 or self.mistake.has_end else b""
        return _stream(TransportResponse(200, V1, body + end))


def _encoded(one: dict[str, Any] | bytes) -> bytes:
    return one if isinstance(one, bytes) else wire.encode(one)


def _stream(response: TransportResponse, content_type: str = wire.NDJSON) -> TransportStream:
    async def chunks() -> AsyncIterator[bytes]:
        yield response.body

    headers = {**response.headers, "Content-Type": content_type}
    return TransportStream(response.status, Headers(headers), chunks())


def named(folder: Path, content: bytes) -> str:
    """Return the name of the one spool file with this content."""
    [found] = [path.name for path in folder.glob("spool.db*") if path.read_bytes() == content]
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    inline_spools(monkeypatch)
    return ManualClock()


def open_gates() -> dict[TaskKind, GatedProber]:
    probers = gated()
    for prober in probers.values():
        prober.gate.set()
    return probers


def seen(transport: MemoryControlPlaneTransport, verb: str, ids: Callable[[Any], Any]) -> list[int]:
    return sorted(lease_id for body in bodies(transport, verb) for lease_id in ids(body))


@pytest.mark.parametrize("streams", [False, True], ids=["one answer", "stream"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
async def test_a_mistake_is_counted_and_stalls_nothing(
    mistake: Mistake, streams: bool, clock: ManualClock, tmp_path: Path
) -> None:
    plane = Plane(clock, mistake=mistake)
    streamer = plane.stream if streams else None
    transport = MemoryControlPlaneTransport(plane, clock, streamer=streamer)
    agent = make_agent(clock, tmp_path, transport, open_gates())
    async with started(agent):
        await run_for(clock, 40)
        counters = agent.counters

    assert counters.get(mistake.counter) == mistake.times, counters
    reported = seen(
        transport, "report", lambda body: [item["lease_id"] for item in body["completed"]]
    )
    assert reported == sorted((*mistake.reported, GOOD))
    assert tuple(seen(transport, "release", lambda body: body["lease_ids"])) == mistake.released


async def test_an_end_that_never_comes_is_counted_and_stalls_nothing(
    clock: ManualClock, tmp_path: Path
) -> None:
    plane = Plane(clock, mistake=Mistake("", (lease(1),), has_end=False))
    transport = MemoryControlPlaneTransport(plane, clock, streamer=plane.stream)
    agent = make_agent(clock, tmp_path, transport, open_gates())
    async with started(agent):
        await run_for(clock, 40)
        counters = agent.counters

    assert counters["control_plane.streams_broken"] == 1
    first, second = (body["claim_id"] for body in bodies(transport, "claim")[:2])
    assert first == second, "what may have been granted beside it is asked for again"
    reported = seen(
        transport, "report", lambda body: [item["lease_id"] for item in body["completed"]]
    )
    assert reported == [1, GOOD]


@pytest.mark.parametrize("content", [PAGE * 200, b"", b"SQLite format 3\x00" + b"\x00" * 4096])
async def test_a_foreign_or_damaged_spool_is_moved_aside_and_the_agent_starts(
    content: bytes, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool.db").write_bytes(content)
    plane = Plane(clock, mistake=Mistake("", (lease(1),)))
    transport = MemoryControlPlaneTransport(plane, clock)
    agent = make_agent(clock, tmp_path, transport, open_gates())
    async with started(agent):
        await run_for(clock, 10)

    reported = seen(
        transport, "report", lambda body: [item["lease_id"] for item in body["completed"]]
    )
    assert 1 in reported
    if content:
        kept = named(tmp_path, content)
        assert kept != "spool.db"
        assert kept in caplog.text
