"""Metrics on their way to the control plane: numbered, bounded, in nobody's way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from netsonde.agent.metrics_sender import ABSENT_NS, TRIES, MetricsSender
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import ControlPlaneError, TransportError
from netsonde.metrics import Durations, Family, MetricType, Reading
from netsonde.model import MetricRejection, MetricsEnvelope, MetricsResponse

INTERVAL_NS = 30 * NS_PER_S
COUNTED = Family("x_total", MetricType.COUNTER, "X.", ("kind",))
ROWS = Family("x_bytes", MetricType.GAUGE, "X.", unit="bytes")
TOOK = Family("x_seconds", MetricType.HISTOGRAM, "X.", unit="seconds")


class Plane:
    """Answers by script; then it takes everything."""

    def __init__(self, *script: Exception | MetricsResponse) -> None:
        self.is_legacy: bool | None = False
        self.envelopes: list[MetricsEnvelope] = []
        self._script = list(script)

    async def metrics(self, envelope: MetricsEnvelope) -> MetricsResponse:
        self.envelopes.append(envelope)
        answer = self._script.pop(0) if self._script else MetricsResponse(accepted=True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def seqs(self) -> list[int | None]:
        return [envelope.seq for envelope in self.envelopes]


def refusal(status: int, *, retryable: bool = False) -> ControlPlaneError:
    return ControlPlaneError("no", code="ERR_X", status=status, retryable=retryable)


@asynccontextmanager
async def sending(
    clock: ManualClock, plane: Plane, *readings: Reading, agent_id: int = 0
) -> AsyncIterator[MetricsSender]:
    sender = MetricsSender(clock, plane, lambda: readings, "i", INTERVAL_NS)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(sender.run(agent_id))
        await clock.settle()
        yield sender
        running.cancel()


async def test_an_envelope_has_every_reading(clock: ManualClock) -> None:
    plane = Plane()
    took = Durations((0.1,))
    took.observe(NS_PER_S)
    readings = (Reading(COUNTED, 3, ("dns",)), Reading(ROWS, 7), Reading(TOOK, took))
    async with sending(clock, plane, *readings):
        pass
    (envelope,) = plane.envelopes
    assert (envelope.instance_id, envelope.seq) == ("i", 1)
    assert envelope.start_time == envelope.timestamp
    (counter,), (gauge,), (histogram,) = envelope.counters, envelope.gauges, envelope.histograms
    assert (counter.name, counter.value, counter.labels) == ("x_total", 3, {"kind": "dns"})
    assert (gauge.name, gauge.value, gauge.unit) == ("x_bytes", 7, "bytes")
    assert (histogram.bounds, histogram.counts, histogram.sum) == ((0.1,), (0, 1), 1.0)


async def test_envelopes_are_numbered_and_an_interval_apart(clock: ManualClock) -> None:
    plane = Plane()
    async with sending(clock, plane):
        await clock.advance(3 * INTERVAL_NS)
    assert plane.seqs == [1, 2, 3, 4]
    assert len({envelope.start_time for envelope in plane.envelopes}) == 1


async def test_another_interval_holds_at_once(clock: ManualClock) -> None:
    plane = Plane()
    async with sending(clock, plane) as sender:
        sender.pace(3600 * NS_PER_S)
        await clock.advance(INTERVAL_NS)
        assert plane.seqs == [1]
        sender.pace(INTERVAL_NS * 2)
        await clock.advance(INTERVAL_NS)
        assert plane.seqs == [1, 2]
        sender.pace(INTERVAL_NS)
        await clock.advance(INTERVAL_NS)
        assert plane.seqs == [1, 2, 3]


async def test_a_fleet_is_spread_over_the_interval(clock: ManualClock) -> None:
    planes = [Plane() for _ in range(1, 9)]
    for agent_id, plane in enumerate(planes, 1):
        async with sending(clock, plane, agent_id=agent_id):
            await clock.advance(INTERVAL_NS // 2)
    assert 2 <= sum(len(plane.envelopes) for plane in planes) <= 6


async def test_one_without_an_answer_is_sent_again_as_it_was(clock: ManualClock) -> None:
    plane = Plane(TransportError("metrics", "lost"), refusal(503, retryable=True))
    async with sending(clock, plane) as sender:
        assert plane.seqs == [1, 1, 1]
        assert plane.envelopes[0] == plane.envelopes[2]
        await clock.advance(INTERVAL_NS)
    assert plane.seqs == [1, 1, 1, 2]
    assert (sender.counters["sent"], sender.counters["given_up"]) == (2, 0)


async def test_after_a_few_tries_the_next_one_takes_its_place(clock: ManualClock) -> None:
    plane = Plane(*[TransportError("metrics", "lost")] * (TRIES + 1))
    async with sending(clock, plane) as sender:
        assert plane.seqs == [1] * TRIES
        assert sender.counters["given_up"] == 1
        await clock.advance(INTERVAL_NS)
    assert plane.seqs == [1] * TRIES + [2, 2]


async def test_a_refused_one_is_not_sent_again(clock: ManualClock) -> None:
    plane = Plane(refusal(400))
    async with sending(clock, plane) as sender:
        assert (plane.seqs, sender.counters["refused"]) == ([1], 1)
        await clock.advance(INTERVAL_NS)
    assert plane.seqs == [1, 2]


async def test_a_control_plane_that_takes_no_metrics_is_left_alone(clock: ManualClock) -> None:
    plane = Plane(refusal(404))
    async with sending(clock, plane):
        await clock.advance(ABSENT_NS - INTERVAL_NS)
        assert plane.seqs == [1]
        await clock.advance(2 * INTERVAL_NS)
    assert len(plane.seqs) >= 2


@pytest.mark.parametrize("is_legacy", [True, None])
async def test_an_original_control_plane_is_sent_nothing(
    clock: ManualClock, is_legacy: bool | None
) -> None:
    plane = Plane()
    plane.is_legacy = is_legacy
    async with sending(clock, plane):
        await clock.advance(3 * INTERVAL_NS)
        assert plane.seqs == []
        plane.is_legacy = False
        await clock.advance(INTERVAL_NS)
    assert plane.seqs == [1]


async def test_what_was_not_taken_is_said_once(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    rejection = MetricRejection(path="$.gauges[0]", error="ERR_LIMIT", message="too many")
    answer = MetricsResponse(accepted=True, rejected=(rejection,), rejected_total=3)
    plane = Plane(answer, answer)
    async with sending(clock, plane) as sender:
        await clock.advance(INTERVAL_NS)
    assert sender.counters["rejected"] == 6
    (record,) = caplog.records
    assert record.action == "metrics_rejected"  # type: ignore[attr-defined]
    assert "too many" in record.getMessage()
