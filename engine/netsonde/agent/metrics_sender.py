"""Tells the control plane what this agent counts of itself, on a cadence, in nobody's way.

An envelope that got no answer is sent again under its number, a few times; then the next one, whose
counters contain it, takes its place. Nothing is kept and no other call's retries are used.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from netsonde.clock import NS_PER_S, Clock, rfc3339
from netsonde.errors import ControlPlaneError, TransportError
from netsonde.metrics import Durations, MetricType, Reading
from netsonde.model import MetricHistogram, MetricSample, MetricsEnvelope, MetricsResponse

TRIES = 3  # of one envelope
ABSENT_STATUSES = frozenset({404, 405})
ABSENT_NS = 600 * NS_PER_S  # how long a control plane is left alone that takes no metrics
WHOLE = 2**64
SPREAD = 0x9E3779B97F4A7C15  # WHOLE over the golden ratio: ids in a row come far apart

_log = logging.getLogger("netsonde.agent")


class MetricsClient(Protocol):
    """What a sender needs of a control plane."""

    @property
    def is_legacy(self) -> bool | None:
        """Whether it is an original one; None before its first answer."""
        ...

    async def metrics(self, envelope: MetricsEnvelope) -> MetricsResponse:
        """Tell what this agent counts.

        Raises:
            ControlPlaneError: the control plane refused.
            TransportError: there was no usable answer.
        """
        ...


class MetricsSender:
    """Sends what `read` returns every `interval_ns`; `agent_id` spreads a fleet over that time.

    Original control planes are sent nothing: they keep none of it.
    """

    def __init__(
        self,
        clock: Clock,
        client: MetricsClient,
        read: Callable[[], Sequence[Reading]],
        instance_id: str,
        interval_ns: int,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._client = client
        self._read = read
        self._instance_id = instance_id
        self._start_time = rfc3339(clock.realtime_ns())
        self.interval_ns = interval_ns
        self._changed = asyncio.Event()
        self._seq = 0
        self._resume_ns = 0

    def pace(self, interval_ns: int) -> None:
        """Send so often from now on."""
        self.interval_ns = interval_ns
        self._changed.set()

    async def run(self, agent_id: int = 0) -> None:
        """Send until cancelled."""
        await self._pass(self._clock.boottime_ns(), agent_id * SPREAD % WHOLE)
        while True:
            begun_ns = self._clock.boottime_ns()
            if self._client.is_legacy is False and begun_ns >= self._resume_ns:
                await self._send()
            ended_ns = self._clock.boottime_ns()
            is_late = ended_ns - begun_ns >= self.interval_ns
            await self._pass(ended_ns if is_late else begun_ns, WHOLE)

    async def _pass(self, since_ns: int, share: int) -> None:
        """Wait until a share of the interval has passed, which may change meanwhile."""
        while True:
            self._changed.clear()
            left_ns = since_ns + self.interval_ns * share // WHOLE - self._clock.boottime_ns()
            if left_ns <= 0:
                return
            await self._clock.wait(self._changed, left_ns)

    async def _send(self) -> None:
        self._seq += 1
        envelope = self._envelope()
        for _ in range(TRIES):
            try:
                answer = await self._client.metrics(envelope)
            except ControlPlaneError as error:
                if not error.retryable:
                    self._refused(error)
                    return
            except TransportError:
                self.counters["unanswered"] += 1
            else:
                self._taken(answer)
                return
        self.counters["given_up"] += 1

    def _envelope(self) -> MetricsEnvelope:
        samples: dict[MetricType, list[MetricSample]] = {type_: [] for type_ in MetricType}
        histograms = []
        for reading in self._read():
            if isinstance(reading.value, Durations):
                histograms.append(_histogram(reading, reading.value))
            else:
                samples[reading.family.type].append(
                    MetricSample(
                        name=reading.family.name,
                        value=reading.value,
                        unit=reading.family.unit,
                        labels=_labels(reading),
                    )
                )
        return MetricsEnvelope(
            agent_id=0,
            timestamp=rfc3339(self._clock.realtime_ns()),
            instance_id=self._instance_id,
            seq=self._seq,
            start_time=self._start_time,
            counters=tuple(samples[MetricType.COUNTER]),
            gauges=tuple(samples[MetricType.GAUGE]),
            histograms=tuple(histograms),
        )

    def _taken(self, answer: MetricsResponse) -> None:
        self.counters["sent"] += 1
        if answer.rejected and not self.counters["rejected"]:
            first = answer.rejected[0]
            _log.warning(
                "the control plane did not take %d metrics, such as %s: %s %s",
                answer.rejected_total,
                first.path,
                first.error,
                first.message,
                extra={"action": "metrics_rejected", "rejected": answer.rejected_total},
            )
        self.counters["rejected"] += answer.rejected_total

    def _refused(self, error: ControlPlaneError) -> None:
        self.counters["refused"] += 1
        if error.status in ABSENT_STATUSES:
            self._resume_ns = self._clock.boottime_ns() + ABSENT_NS


def _labels(reading: Reading) -> dict[str, str]:
    return dict(zip(reading.family.labels, reading.labels, strict=True))


def _histogram(reading: Reading, took: Durations) -> MetricHistogram:
    return MetricHistogram(
        name=reading.family.name,
        bounds=took.bounds_s,
        counts=tuple(took.counts),
        sum=took.sum_ns / NS_PER_S,
        count=took.count,
        unit=reading.family.unit,
        labels=_labels(reading),
    )
