"""What a target's packets amount to, without the packets: enough for a line of text or a row."""

from typing import NamedTuple

from netsonde.errors import ResolveError, RouteError, TargetDeniedError
from netsonde.model import Outcome
from netsonde.probe.base import INTERRUPTED, RunFailure, failure_of
from netsonde.probe.ping import observations, verdicts
from netsonde.probe.ping.run import Counts, PingRun
from netsonde.probe.ping.sweep import Pinged
from netsonde.stats import Histogram, RttSummary

NO_PACKETS = Counts(*(0 for _ in Counts._fields))


class Brief(NamedTuple):
    """A target in short. `address`: of several, separated by blanks; none before it is resolved."""

    target: str
    address: str
    failure: RunFailure | None  # None: it is ok
    counts: Counts
    loss_pct: float | None
    rtts: RttSummary | None
    histogram: Histogram | None

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        return Outcome.OK if self.failure is None else self.failure.outcome

    @property
    def answered(self) -> bool:
        """Whether a reply came in time, whatever else was expected."""
        return self.counts.received > 0


def brief_of(pinged: Pinged) -> Brief:
    """Sum a target up as its result does; call it in `on_end`."""
    runs = [run for run in pinged.runs if run.ledger is not None]
    address = " ".join([run.address for run in pinged.runs])
    error = pinged.error
    if error is not None:
        is_lost = isinstance(error, (ResolveError, RouteError, TargetDeniedError))
        lost = 100.0 if is_lost else None
        return Brief(pinged.target, address, failure_of(error), NO_PACKETS, lost, None, None)
    if not runs:
        return Brief(pinged.target, address, INTERRUPTED, NO_PACKETS, None, None, None)
    counts, rtts, histogram = _numbers(runs)
    tallies: list[verdicts.Tally] = []
    if not counts.received:
        tallies = [verdicts.tally(run) for run in runs]
    why = () if counts.received else verdicts.reasons(runs, tallies)
    loss_pct = observations.loss_pct(counts, why, cancelled=pinged.is_cancelled)
    failure = _failure(pinged, tallies, counts, loss_pct, rtts)
    return Brief(pinged.target, address, failure, counts, loss_pct, rtts, histogram)


def _numbers(runs: list[PingRun]) -> tuple[Counts, RttSummary | None, Histogram | None]:
    if len(runs) == 1:
        counts = runs[0].counts
        if not counts.received:
            return counts, None, None
        return counts, runs[0].rtts, Histogram.of(runs[0].histogram)
    histogram = Histogram()
    for run in runs:
        histogram.merge(Histogram.of(run.histogram))
    return (
        Counts.total(run.counts for run in runs),
        observations.rtts_of(runs, histogram),
        histogram,
    )


def _failure(
    pinged: Pinged,
    tallies: list[verdicts.Tally],
    counts: Counts,
    loss_pct: float | None,
    rtts: RttSummary | None,
) -> RunFailure | None:
    if pinged.is_cancelled:
        return INTERRUPTED
    if not counts.received:
        return verdicts.failure_of_runs(pinged.runs, tallies)
    expect = pinged.spec.expect
    if expect is None:
        return None
    summary = {"loss_pct": loss_pct, **observations.rtt_fields(rtts)}
    unmet = verdicts.unmet(expect, summary)
    return verdicts.mismatch(pinged.spec.host, unmet) if unmet else None
