"""Answers what metrics were: the latest of every series, and one name's values over time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from netsonde.clock import NS_PER_MS, NS_PER_S, rfc3339
from netsonde.metrics import MetricType
from netsonde.server.api import refuse
from netsonde.server.cells import Body, Latest
from netsonde.server.rollups import LEVELS
from netsonde.server.store import Store
from netsonde.server.store.metrics import Level, MetricBlock, MetricSeries
from netsonde.wire.metrics import SeriesIdentity, series_identity

SERIES_MAX = 1_000  # of one answer
LOOKED_MAX = 5_000  # series for one page of what they said last
POINTS_MAX = 100_000  # of one answer
STEPS_MAX = 2_000
BLOCKS_MAX = 20_000  # looked at for one answer


class Aggregate(StrEnum):
    """What becomes of the samples of one step."""

    LAST = "last"
    AVG = "avg"
    MAX = "max"
    RATE = "rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One name's values from one instant to before another, a point per step."""

    name: str
    aggregate: Aggregate
    from_ns: int
    to_ns: int
    step_ns: int
    agent_id: int | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One series of an answer; `steps` has a pair of numbers each, of which a value is made."""

    series: MetricSeries
    identity: SeriesIdentity
    steps: dict[int, tuple[float, float]]


def ask(store: Store, question: Question, now_ns: int) -> dict[str, Any]:
    """Answer a question.

    Raises:
        RequestError: ERR_VALIDATION, the series have no such value, or are too many.
    """
    found = store.metric_series(question.name, question.agent_id, 0, SERIES_MAX + 1)
    steps = -(-(question.to_ns - question.from_ns) // question.step_ns)
    if len(found) > SERIES_MAX or len(found) * steps > POINTS_MAX:
        refuse(
            "agent",
            f"there are {len(found)} series or more, at most {SERIES_MAX} with {POINTS_MAX} points"
            " are answered: name one agent, or take a longer step",
        )
    wanted = [_Wanted(series, series_identity(series.key), {}) for series in found]
    _check_types(question, wanted)
    _fill(store, question, wanted, now_ns)
    return {
        "name": question.name,
        "agg": question.aggregate,
        "from": rfc3339(question.from_ns),
        "to": rfc3339(question.to_ns),
        "step_ms": question.step_ns // NS_PER_MS,
        "series": [_line(one, question) for one in wanted if one.steps],
    }


def _check_types(question: Question, wanted: Sequence[_Wanted]) -> None:
    types = {one.identity.type for one in wanted}
    if question.aggregate is Aggregate.RATE and MetricType.GAUGE in types:
        refuse("agg", f"{question.name} is a gauge and has no rate: ask for last, avg or max")
    if question.aggregate is Aggregate.MAX and MetricType.HISTOGRAM in types:
        refuse("agg", f"{question.name} is a histogram: ask for last, avg or rate")


def _fill(store: Store, question: Question, wanted: Sequence[_Wanted], now_ns: int) -> None:
    """Read the blocks that cover the question and put each series' cells into its steps."""
    by_agent: dict[int, list[_Wanted]] = {}
    for one in wanted:
        by_agent.setdefault(one.series.agent_id, []).append(one)
    left = BLOCKS_MAX
    for level, from_ns, to_ns in _spans(store, question, now_ns):
        for agent_id, its in by_agent.items():
            blocks = store.metric_blocks(level, agent_id, from_ns, to_ns, left + 1)
            left -= len(blocks)
            if left < 0:
                refuse("from", "the answer is in too many blocks: name one agent, or ask for less")
            _read(blocks, its, question)


def _spans(store: Store, question: Question, now_ns: int) -> Iterator[tuple[Level, int, int]]:
    """Return which level answers for which part: the finest that is kept, and fits the step.

    What the chosen one has not summed up yet is taken from those below it.
    """
    level = Level.RAW
    for coarser in (Level.MINUTE, Level.HOUR):
        is_gone = question.from_ns < now_ns - LEVELS[Level(coarser - 1)].kept_ns
        if is_gone:
            level = coarser
    from_ns = question.from_ns
    while level is not Level.RAW:
        until_ns = min(store.roll_progress(level).window_ns, question.to_ns)
        if until_ns > from_ns:
            yield level, from_ns, until_ns
            from_ns = until_ns
        level = Level(level - 1)
    if question.to_ns > from_ns:
        yield Level.RAW, from_ns, question.to_ns


def _read(blocks: Sequence[MetricBlock], its: Sequence[_Wanted], question: Question) -> None:
    """Put what blocks of one agent say of its series into their steps."""
    reads = [_columns(one.identity, question.aggregate) for one in its]
    layout: bytes | None = None
    hits: list[tuple[dict[int, tuple[float, float]], int, int | None]] = []
    for block in blocks:
        body = Body(block.body)
        step = (block.at_ns - question.from_ns) // question.step_ns
        if body.layout != layout:  # they seldom change
            layout = body.layout
            hits = [*_hits(body, its, reads)]
        numbers = body.numbers
        for steps, x_at, y_at in hits:
            x, y = numbers[x_at], 1.0 if y_at is None else numbers[y_at]
            before = steps.get(step)
            if before is None or question.aggregate is Aggregate.LAST:
                steps[step] = x, y
            elif question.aggregate is Aggregate.MAX:
                steps[step] = max(before[0], x), y
            else:
                steps[step] = before[0] + x, before[1] + y


Column = tuple[int, str]  # which of a series' numbers, and a cell's field


def _columns(identity: SeriesIdentity, aggregate: Aggregate) -> tuple[Column, Column]:
    """Return which two numbers a value is made of: the second divides, or is not looked at.

    A histogram's first number is its count, its second the sum.
    """
    match aggregate:
        case Aggregate.LAST:
            return (0, "last"), (0, "last")
        case Aggregate.MAX:
            return (0, "peak"), (0, "peak")
        case Aggregate.RATE:
            return (0, "increase"), (0, "elapsed_s")
    if identity.type is MetricType.HISTOGRAM:
        return (1, "increase"), (0, "increase")
    return (0, "total"), (0, "samples")


def _hits(
    body: Body, its: Sequence[_Wanted], reads: Sequence[tuple[Column, Column]]
) -> Iterator[tuple[dict[int, tuple[float, float]], int, int | None]]:
    """Return where in a body the two numbers are, of every series that is in it."""
    for one, ((x_number, x_field), (y_number, y_field)) in zip(its, reads, strict=True):
        x_place = body.place(one.series.series_id + x_number)
        y_place = body.place(one.series.series_id + y_number)
        x_start, y_start = body.start(x_field), body.start(y_field)
        if x_place is not None and y_place is not None and x_start is not None:
            yield one.steps, x_start + x_place, None if y_start is None else y_start + y_place


def _line(one: _Wanted, question: Question) -> dict[str, Any]:
    first_ms, step_ms = question.from_ns // NS_PER_MS, question.step_ns // NS_PER_MS
    if question.aggregate in (Aggregate.AVG, Aggregate.RATE):
        values = {step: x / y for step, (x, y) in one.steps.items() if y > 0}
    else:
        values = {step: x for step, (x, _) in one.steps.items()}
    points = [
        (first_ms + step * step_ms, value) for step, value in values.items() if isfinite(value)
    ]
    return {**_named(one.series, one.identity), "points": points}


def latest(
    store: Store, name: str | None, agent_id: int | None, after: int, limit: int
) -> tuple[list[dict[str, Any]], int | None]:
    """Return what series of runs that send now said last, and where to go on.

    That may be after none at all, where so many series in a row are of runs that are over.
    """
    known: dict[int, Latest] = {}
    lines: list[dict[str, Any]] = []
    for _ in range(-(-LOOKED_MAX // limit)):  # a page of series of runs that are over is none
        page = store.metric_series(name, agent_id, after, limit)
        for series in page:
            if series.agent_id not in known:
                source = store.metric_source(series.agent_id)
                known[series.agent_id] = Latest(b"" if source is None else source.latest)
            line = _latest(series, known[series.agent_id])
            if line is not None:
                lines.append(line)
        if len(page) < limit:
            return lines, None
        after = page[-1].series_id
        if lines:
            break
    return lines, after


def _latest(series: MetricSeries, last: Latest) -> dict[str, Any] | None:
    identity = series_identity(series.key)
    numbers = [last.get(series.series_id + place) for place in range(identity.width)]
    if numbers[0] is None:
        return None
    line = {**_named(series, identity), "at": rfc3339(numbers[0][1])}
    values = [number[0] for number in numbers if number is not None]
    if identity.type is not MetricType.HISTOGRAM:
        return line | {"value": values[0]}
    return line | {
        "count": round(values[0]),
        "sum": values[1],
        "bounds": identity.bounds,
        "counts": [round(value) for value in values[2:]],
    }


def _named(series: MetricSeries, identity: SeriesIdentity) -> Mapping[str, Any]:
    return {
        "agent_id": series.agent_id,
        "name": identity.name,
        "type": identity.type,
        "unit": identity.unit,
        "labels": identity.labels,
    }


def step_ns(text: str) -> int | None:
    """Read a step such as 30s, 5m, 1h or 1d; None when it is none."""
    number, unit = text[:-1], text[-1:]
    if unit.isdecimal():
        number, unit = text, "s"
    if unit not in _UNITS or not number.isascii() or not number.isdecimal() or len(number) > 7:
        return None
    return int(number) * _UNITS[unit] * NS_PER_S


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
