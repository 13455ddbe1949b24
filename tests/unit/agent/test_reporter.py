"""The reporter: nothing leaves the spool unanswered, and no result holds up the others."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import compress, pairwise

import pytest

from netsonde import wire
from netsonde.agent.reporter import RETRY_MIN_NS, SETTLE_NS, Reporter
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.control_plane import (
    ControlPlaneError,
    ReportResponse,
    ReportSource,
    TransportError,
)
from netsonde.errors import SpoolFull
from netsonde.leases import LeaseTable
from netsonde.model import ReportResult, ReportStatus
from netsonde.spool import Spool
from support.leases import make_lease
from support.spools import SpoolFaults

INTERVAL_NS = 200 * NS_PER_MS


class Reports:
    """A control plane that only takes reports; `status` decides by lease id."""

    def __init__(self, clock: ManualClock) -> None:
        self.batches: list[tuple[list[int], list[int]]] = []
        self.streamed: list[list[int]] = []
        self.is_streaming = False
        self.times_ns: list[int] = []
        self.failure: Exception | None = None
        self.status: Callable[[int], str] = lambda _: "accepted"
        self._clock = clock

    async def report_from(self, source: ReportSource) -> bool:
        if not self.is_streaming:
            return False
        source.begin()
        while True:
            seqs, bodies = await source.more(2, 1 << 20)
            if not bodies:
                return True
            self.streamed.append([wire.item_lease_id(body) for body in bodies])
            if (failure := self.failure) is not None:
                await self._clock.sleep(NS_PER_S)
                raise failure
            statuses = [self.status(wire.item_lease_id(body)) for body in bodies]
            await source.settle([*compress(seqs, statuses)], [*filter(None, statuses)])

    async def report(
        self, completed: Sequence[bytes], cancelled: Sequence[bytes]
    ) -> ReportResponse:
        self.times_ns.append(self._clock.boottime_ns())
        if (failure := self.failure) is not None:
            await self._clock.sleep(NS_PER_S)  # as the client's own backoff
            raise failure
        done = [wire.item_lease_id(body) for body in completed]
        ended = [wire.item_lease_id(body) for body in cancelled]
        self.batches.append((done, ended))
        results = tuple(
            ReportResult(lease_id=lease_id, status=self.status(lease_id))
            for lease_id in (*done, *ended)
        )
        return ReportResponse(acknowledged=len(results), results=results)

    @property
    def sent(self) -> list[int]:
        return [lease_id for done, ended in self.batches for lease_id in (*done, *ended)]


class Bench:
    def __init__(self, clock: ManualClock, leases: LeaseTable, spool: Spool) -> None:
        self.clock, self.leases, self.spool = clock, leases, spool
        self.client = Reports(clock)
        self.reporter = Reporter(clock, spool, leases, self.client, INTERVAL_NS)
        self.room = 0
        self.reporter.on_room = self._note

    def _note(self) -> None:
        self.room += 1

    async def put(self, *lease_ids: int, cancelled: bool = False, size: int = 10) -> None:
        bodies = {
            lease_id: wire.encode({"lease_id": lease_id, "pad": "x" * size})
            for lease_id in lease_ids
        }
        await asyncio.gather(
            *(self.spool.append(each, body, cancelled=cancelled) for each, body in bodies.items())
        )
        self.reporter.wake()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.reporter.run())
            await self.clock.settle(50)
            yield
            task.cancel()


@pytest.fixture
def bench(clock: ManualClock, leases: LeaseTable, spool: Spool) -> Bench:
    return Bench(clock, leases, spool)


async def test_an_old_spool_is_reported_before_anything_is_waited_for(bench: Bench) -> None:
    await bench.put(1, 2, 3)
    async with bench.running():
        assert bench.client.batches == [([1, 2, 3], [])]
        assert bench.spool.rows == 0
        assert bench.reporter.flushed.is_set()
        assert bench.room >= 1


async def test_a_disk_that_refuses_an_acknowledgement_is_tried_until_it_takes_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.put(1, 2)
    faults = SpoolFaults(bench.spool, monkeypatch)
    faults.error = SpoolFull("no space is left on the disk")
    async with bench.running():
        await bench.clock.advance(10 * NS_PER_S)
        assert bench.client.sent == [1, 2]
        assert bench.spool.is_full
        assert caplog.text.count("no space is left") == 1

        faults.error = None
        await bench.clock.advance(2 * NS_PER_S)
        await bench.clock.settle()

        assert not bench.spool.is_full
        assert bench.spool.size_bytes == 0
        assert bench.reporter.flushed.is_set()
    assert bench.client.sent == [1, 2]


async def test_new_results_gather_for_the_interval(bench: Bench) -> None:
    async with bench.running():
        await bench.put(1)
        await bench.clock.advance(INTERVAL_NS - 1)
        await bench.put(2, cancelled=True)
        assert bench.client.batches == []
        assert not bench.reporter.flushed.is_set()
        await bench.clock.advance(1)
        await bench.clock.settle()

        assert bench.client.batches == [([1], [2])]


@pytest.mark.parametrize("interval_s", [10, 60])
async def test_a_result_does_not_gather_past_the_end_of_its_lease(
    bench: Bench, interval_s: int
) -> None:
    """What is measured is not extended; too late, it is fenced and the task measured again."""
    bench.reporter.interval_ns = interval_s * NS_PER_S
    now_ns = bench.clock.boottime_ns()
    bench.leases.grant(make_lease(1), now_ns + 3600 * NS_PER_S, now_ns)
    async with bench.running():
        await bench.put(1)
        await bench.clock.advance(NS_PER_S)
        bench.leases.grant(make_lease(2), now_ns + 20 * NS_PER_S, now_ns)
        await bench.put(2)
        await bench.clock.advance(8 * NS_PER_S)
        assert bench.client.sent == []
        await bench.clock.advance(10 * NS_PER_S)
        await bench.clock.settle()
        assert bench.client.sent == [1, 2]
        assert bench.client.times_ns[0] <= now_ns + 18 * NS_PER_S


async def test_a_lease_that_is_about_to_end_costs_no_report_for_every_result(bench: Bench) -> None:
    now_ns = bench.clock.boottime_ns()
    bench.leases.grant(make_lease(1), now_ns + NS_PER_S, now_ns)
    async with bench.running():
        await bench.put(2)
        await bench.clock.advance(INTERVAL_NS - 1)
        assert bench.client.sent == []
        await bench.put(3)
        await bench.clock.advance(1)
        await bench.clock.settle()
        assert bench.client.batches == [([2, 3], [])]


async def test_acknowledged_leases_leave_the_table(bench: Bench) -> None:
    now_ns = bench.clock.boottime_ns()
    for lease_id in (1, 2):
        bench.leases.grant(make_lease(lease_id), now_ns + 60 * NS_PER_S, now_ns)
    bench.client.status = lambda lease_id: "accepted" if lease_id == 1 else "retry"
    await bench.put(1, 2)
    async with bench.running():
        assert list(bench.leases) == [2]


@pytest.mark.parametrize("status", sorted(set(ReportStatus) - {ReportStatus.RETRY}))
async def test_final_answers_remove_a_result(bench: Bench, status: str) -> None:
    bench.client.status = lambda _: status
    await bench.put(1)
    async with bench.running():
        assert bench.spool.rows == 0
        assert bench.reporter.counters[f"status_{status}"] == 1


@pytest.mark.parametrize("status", ["retry", "a_status_of_next_year"])
async def test_other_answers_keep_a_result_and_send_it_again(bench: Bench, status: str) -> None:
    bench.client.status = lambda _: status
    await bench.put(1)
    async with bench.running():
        await bench.clock.advance(RETRY_MIN_NS - NS_PER_S)
        assert (bench.spool.rows, bench.client.sent) == (1, [1])
        bench.client.status = lambda _: "accepted"
        await bench.clock.advance(2 * NS_PER_S)
        assert (bench.spool.rows, bench.client.sent) == (0, [1, 1])


async def test_results_to_be_retried_do_not_hold_up_new_ones(bench: Bench) -> None:
    bench.client.status = lambda lease_id: "retry" if lease_id <= 600 else "accepted"
    await bench.put(*range(1, 601))
    async with bench.running():
        for lease_id in range(1001, 1011):
            await bench.put(lease_id)
            await bench.clock.advance(2 * INTERVAL_NS)
            assert lease_id in bench.client.sent
        assert bench.spool.rows == 600
        sent = len(bench.client.batches)
        await bench.clock.advance(60 * NS_PER_S)
        # 5, 10, 20 … s apart: two requests each for 600 items.
        assert len(bench.client.batches) - sent <= 10


@pytest.mark.parametrize(
    "failure",
    [
        TransportError("report", "connection refused"),
        ControlPlaneError("busy", code="ERR_UNAVAILABLE", status=503, retryable=True),
        ControlPlaneError("no", code="ERR_FORBIDDEN", status=403, retryable=False),
    ],
)
async def test_an_outage_keeps_everything_in_order(bench: Bench, failure: Exception) -> None:
    bench.client.failure = failure
    async with bench.running():
        for lease_id in range(1, 21):
            await bench.put(lease_id)
            await bench.clock.advance(5 * NS_PER_S)
        assert (bench.spool.rows, bench.client.sent) == (20, [])
        bench.client.failure = None
        await bench.clock.advance(5 * NS_PER_S)

    assert bench.client.sent == list(range(1, 21))
    assert bench.reporter.counters["failed"] > 10


async def test_batches_keep_the_contracts_limits(bench: Bench) -> None:
    await bench.put(*range(1, 1202))
    await bench.put(*range(2001, 2031), size=250_000)
    async with bench.running():
        await bench.clock.settle(400)

    sizes = [len(done) for done, _ in bench.client.batches]
    assert max(sizes) == wire.REPORT_ITEMS_MAX
    assert bench.client.sent == [*range(1, 1202), *range(2001, 2031)]
    large = [done for done, _ in bench.client.batches if done[-1] > 2000]
    assert all(len(done) * 250_000 < wire.REPORT_MAX_BYTES for done in large[1:])


async def test_reports_keep_the_distance_the_control_plane_wants(bench: Bench) -> None:
    """The original sent a report per lease, against a quota of twelve a minute."""
    bench.reporter.gap_ns = lambda: 5 * NS_PER_S
    async with bench.running():
        for lease_id in range(1, 301):
            await bench.put(lease_id)
            await bench.clock.advance(200 * NS_PER_MS)
        await bench.clock.advance(6 * NS_PER_S)

    gaps = [later - earlier for earlier, later in pairwise(bench.client.times_ns)]
    assert min(gaps) >= 5 * NS_PER_S
    assert sorted(bench.client.sent) == list(range(1, 301))


async def test_in_a_hurry_nothing_gathers(bench: Bench) -> None:
    async with bench.running():
        bench.reporter.hurry()
        await bench.put(1)
        await bench.clock.settle()
        assert bench.client.sent == [1]


async def test_a_disk_that_fails_costs_a_duplicate_and_no_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.put(1, 2)
    faults = SpoolFaults(bench.spool, monkeypatch)
    faults.error = SpoolFull("no space is left")
    async with bench.running():
        await bench.clock.advance(5 * NS_PER_S)
        assert bench.client.sent == [1, 2]
        assert "no space is left" in caplog.text
        faults.error = None
        await bench.put(3)
        await bench.clock.advance(NS_PER_S)

        assert bench.client.sent == [1, 2, 3]
        assert bench.spool.rows == 0


async def test_what_is_streamed_leaves_as_it_is_acknowledged(bench: Bench) -> None:
    bench.client.is_streaming = True
    for lease_id in (1, 2, 3):
        bench.leases.grant(make_lease(lease_id), 10**18, 0)
    await bench.put(1, 2, 3)
    async with bench.running():
        assert bench.client.streamed == [[1, 2], [3]]
        assert bench.spool.rows == 0
        assert len(bench.leases) == 0
        assert bench.room > 0
    assert bench.client.batches == []


async def test_an_item_that_is_answered_for_twice_counts_once(bench: Bench) -> None:
    await bench.put(1, 2)
    bench.reporter.begin()
    seqs, _ = await bench.reporter.more(10, 1 << 20)
    first, second = seqs

    await bench.reporter.settle([first, first, 99], ["accepted", "duplicate", "accepted"])
    await bench.reporter.settle([second], ["accepted"])

    assert bench.reporter.counters == {"status_accepted": 2}
    assert bench.spool.rows == 0


async def test_what_was_acknowledged_is_on_the_disk_a_second_later(bench: Bench) -> None:
    await bench.put(1)
    async with bench.running():
        assert bench.client.sent == [1]
        assert bench.spool.size_bytes > 0
        await bench.clock.advance(SETTLE_NS)
        assert bench.spool.size_bytes == 0


async def test_what_was_acknowledged_before_an_outage_does_not_wait_for_its_end(
    bench: Bench,
) -> None:
    await bench.put(1)
    async with bench.running():
        bench.client.failure = TransportError("report", "gone")
        await bench.put(2)
        await bench.clock.advance(10 * NS_PER_S)
        assert (bench.spool.rows, len(bench.spool._groups)) == (1, 1)


async def test_a_stream_takes_along_what_comes_meanwhile(bench: Bench) -> None:
    bench.client.is_streaming = True
    await bench.put(1, 2)
    bench.client.status = lambda lease_id: "accepted"
    async with bench.running():
        await bench.put(3)
        await bench.clock.advance(INTERVAL_NS)
        assert bench.client.streamed == [[1, 2], [3]]


async def test_a_stream_that_breaks_off_begins_with_what_was_not_settled(bench: Bench) -> None:
    bench.client.is_streaming = True
    bench.client.failure = TransportError("report", "broke off")
    await bench.put(1, 2, 3)
    async with bench.running():
        assert bench.client.streamed == [[1, 2]]
        bench.client.failure = None
        await bench.clock.advance(2 * NS_PER_S)
        assert bench.client.streamed[1:] == [[1, 2], [3]]
        assert bench.spool.rows == 0


async def test_what_a_stream_says_nothing_about_is_sent_again_later(bench: Bench) -> None:
    bench.client.is_streaming = True
    bench.client.status = lambda lease_id: "" if lease_id == 1 else "accepted"
    await bench.put(1, 2)
    async with bench.running():
        assert bench.spool.rows == 1
        assert bench.client.streamed == [[1, 2]]
        bench.client.status = lambda _: "accepted"
        await bench.clock.advance(RETRY_MIN_NS + NS_PER_S)
        assert bench.client.streamed[1:] == [[1]]
        assert bench.spool.rows == 0


async def test_a_retried_item_does_not_hold_up_a_stream(bench: Bench) -> None:
    bench.client.is_streaming = True
    bench.client.status = lambda lease_id: "retry" if lease_id == 1 else "accepted"
    await bench.put(1, 2, 3)
    async with bench.running():
        assert bench.client.streamed == [[1, 2], [3]]
        assert bench.spool.rows == 1
        await bench.put(4)
        await bench.clock.advance(INTERVAL_NS)
        assert bench.client.streamed[2:] == [[4]]


async def test_where_streams_are_refused_the_same_items_go_in_batches(bench: Bench) -> None:
    """The client learns it from the answer to a stream, of which some items had gone."""

    class Refusing(Reports):
        async def report_from(self, source: ReportSource) -> bool:
            source.begin()
            await source.more(1, 1 << 20)
            return False

    bench.reporter._client = client = Refusing(bench.clock)
    await bench.put(1, 2)
    async with bench.running():
        assert client.sent == [1, 2]
        assert bench.spool.rows == 0


async def test_the_acknowledgement_of_a_tick_does_not_end_its_lease(bench: Bench) -> None:
    now_ns = bench.clock.boottime_ns()
    for lease_id in (1, 2):
        bench.leases.grant(make_lease(lease_id), now_ns + 3600 * NS_PER_S, now_ns)
    bench.leases.stand(make_lease(2))
    async with bench.running():
        await bench.put(1, 2, 2)
        await bench.clock.advance(NS_PER_S)
    assert list(bench.leases) == [2]
    assert bench.spool.rows == 0
