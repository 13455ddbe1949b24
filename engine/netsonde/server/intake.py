"""Takes agents' metrics: each envelope once, each series within its agent's limit.

A counter's rate is what it grew by between two samples of one run. The first sample of a run, and
one that is below the one before, are where counting begins anew: nothing is known of what came in
between, so that no rate is negative and none is a leap.
"""

from netsonde import wire
from netsonde.clock import NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.metrics import MetricType
from netsonde.model import MetricRejection, MetricsResponse
from netsonde.server.cells import ID_MAX, Cell, Latest, encode_samples, sampled
from netsonde.server.core import ControlPlane
from netsonde.server.store import Store
from netsonde.server.store.metrics import Level, MetricBlock, MetricSource
from netsonde.wire.metrics import (
    METRIC_REJECTIONS_MAX,
    MetricsBatch,
    MetricValue,
    series_identity,
)

NUMBERS_PER_AGENT_MAX = 4_000  # a histogram has one per bound, and three
ANSWERS_KEPT = 16  # envelopes of a run that are answered as they were
RUNS_KEPT = 8  # of an agent that are known to be over


class Intake:
    """Takes envelopes of metrics."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def take(self, batch: MetricsBatch) -> bytes:
        """Keep what an envelope says; return the answer, the same each time it is sent."""
        return await self._plane.writer.write(lambda store: self._take(store, batch))

    def _take(self, store: Store, batch: MetricsBatch) -> bytes:
        run = wire.encode([batch.instance_id, batch.start_time]).decode()
        source = store.metric_source(batch.agent_id) or MetricSource(
            agent_id=batch.agent_id, run=run, seq=-1, answers=b"{}", earlier=b"[]", latest=b""
        )
        earlier: list[str] = wire.parse(source.earlier)
        answers: dict[str, str] = wire.parse(source.answers)
        if run in earlier:
            return _answer(batch, 0, (), superseded=True)
        if run != source.run:
            earlier = [source.run, *earlier][:RUNS_KEPT]
            answers = {}
            source = MetricSource(
                agent_id=batch.agent_id, run=run, seq=-1, answers=b"{}", earlier=b"", latest=b""
            )
        if (known := answers.get(str(batch.seq))) is not None:
            return known.encode()
        if batch.seq <= source.seq:
            return _answer(batch, 0, (), superseded=True)
        answer, latest = self._keep(store, batch, source.latest)
        answers[str(batch.seq)] = answer.decode()
        store.save_metric_source(
            MetricSource(
                agent_id=batch.agent_id,
                run=run,
                seq=batch.seq,
                answers=wire.encode(dict([*answers.items()][-ANSWERS_KEPT:])),
                earlier=wire.encode(earlier),
                latest=latest,
            )
        )
        return answer

    async def take_original(self, batch: MetricsBatch, sent_at: str) -> None:
        """Keep what an original agent says, which names its envelopes by their time only."""

        def operation(store: Store) -> None:
            known = store.metric_source(batch.agent_id)
            answers = wire.encode({"sent_at": sent_at})
            if known is not None and known.run == "" and known.answers == answers:
                return
            latest = known.latest if known is not None and known.run == "" else b""
            _, latest = self._keep(store, batch, latest)
            store.save_metric_source(
                MetricSource(
                    agent_id=batch.agent_id,
                    run="",
                    seq=-1,
                    answers=answers,
                    earlier=b"[]",
                    latest=latest,
                )
            )

        await self._plane.writer.write(operation)

    def _keep(self, store: Store, batch: MetricsBatch, before: bytes) -> tuple[bytes, bytes]:
        """Keep the samples; return the answer, and what the series said last."""
        now_ns = self._plane.time.now_ns()
        ids, rejected = _series(store, batch, now_ns)
        latest = Latest(before)
        cells: dict[int, Cell] = {}
        stored = 0
        for sample in batch.values:
            first = ids.get(sample.key)
            if first is not None:
                stored += 1
                is_counted = not sample.key.startswith(_GAUGE)
                for series_id, value in enumerate(sample.values, first):
                    cells[series_id] = _cell(latest, series_id, value, now_ns, is_counted)
                    latest.put(series_id, value, now_ns)
        if cells:
            store.add_metric_block(
                Level.RAW, MetricBlock(batch.agent_id, now_ns, encode_samples(cells))
            )
        store.count("metric_samples", stored)
        store.count("metric_samples_rejected", len(batch.rejected) + len(rejected))
        return _answer(batch, stored, (*batch.rejected, *rejected)), latest.encode()


_GAUGE = wire.encode([MetricType.GAUGE]).decode()[:-1]  # how the key of a gauge begins


def _cell(latest: Latest, series_id: int, value: float, now_ns: int, is_counted: bool) -> Cell:
    before = latest.get(series_id) if is_counted else None
    if before is None or value < before[0] or now_ns <= before[1]:
        return sampled(value)
    return sampled(value, value - before[0], (now_ns - before[1]) / NS_PER_S)


def _series(
    store: Store, batch: MetricsBatch, now_ns: int
) -> tuple[dict[str, int], list[MetricRejection]]:
    """Return the ids of the envelope's series, new ones included, and what the limit leaves out."""
    ids = store.metric_keys(batch.agent_id)
    new = [sample for sample in batch.values if sample.key not in ids]
    if not new:
        return ids, []
    used = sum(series_identity(key).width for key in ids)
    widths: dict[str, tuple[str, int]] = {}
    rejected = []
    for sample in new:
        used += len(sample.values)
        if used > NUMBERS_PER_AGENT_MAX:
            used -= len(sample.values)
            rejected.append(_over_limit(sample))
        else:
            widths[sample.key] = series_identity(sample.key).name, len(sample.values)
    if widths:
        added = store.add_metric_series(batch.agent_id, widths, now_ns)
        if max(added.values()) > ID_MAX - NUMBERS_PER_AGENT_MAX:
            raise RequestError(ErrorCode.STORAGE_FULL, "no number is left for another series")
        ids |= added
    return ids, rejected


def _over_limit(sample: MetricValue) -> MetricRejection:
    return MetricRejection(
        path=sample.path,
        error=ErrorCode.LIMIT,
        message=f"an agent has at most {NUMBERS_PER_AGENT_MAX} numbers in all its series",
    )


def _answer(
    batch: MetricsBatch,
    stored: int,
    rejected: tuple[MetricRejection, ...],
    *,
    superseded: bool = False,
) -> bytes:
    return wire.encode(
        MetricsResponse(
            accepted=True,
            id=f"{batch.agent_id}/{batch.instance_id}/{batch.seq}",
            stored=stored,
            rejected=rejected[:METRIC_REJECTIONS_MAX],
            rejected_total=len(rejected),
            superseded=superseded,
        )
    )
