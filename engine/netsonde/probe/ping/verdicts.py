"""Why a packet was not answered, and what a run as a whole amounts to."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS
from netsonde.model import FailureSource, Outcome, PingExpect, Reason
from netsonde.probe.base import Recorder, RunFailure
from netsonde.probe.icmp_errors import explain_icmp, explain_send, source_of
from netsonde.probe.ping.run import PingRun

EXPECTATIONS = {  # field of PingExpect: field of the summary
    "loss_pct_max": "loss_pct",
    "avg_ms_max": "avg_rtt_ms",
    "p95_ms_max": "p95_ms",
    "jitter_ms_max": "jitter_ms",
}


class Verdict(NamedTuple):
    """Why one attempt was not answered."""

    reason: Reason
    code: int | None
    message: str


class Fate(NamedTuple):
    """How an attempt without a reply ended: all that its verdict depends on."""

    kind: int
    icmp_type: int
    code: int


Tally = dict[Fate, int]  # how often attempts without a reply ended how, the first one first


def ends(run: PingRun) -> Iterator[tuple[int, int, int]]:
    """Yield how each submitted attempt ended, replies included, with the fields of a `Fate`."""
    whole = zip(run.kinds, run.icmp_types, run.codes, strict=True)
    return itertools.islice(whole, run.counts.submitted)


def fates(run: PingRun) -> Iterator[Fate | None]:
    """Yield how each submitted attempt ended, None for a reply in time."""
    return (None if end[0] == icmp.REPLY else Fate(*end) for end in ends(run))


def tally(run: PingRun) -> Tally:
    """Count how attempts without a reply ended; once per run, for it may have many packets."""
    if run.counts.received == run.counts.submitted:
        return {}
    found = Counter(ends(run))
    return {Fate(*end): times for end, times in found.items() if end[0] != icmp.REPLY}


def verdict(run: PingRun, fate: Fate, responder: str | None = None) -> Verdict:
    """Return why an attempt that ended so has no reply; responder: who sent the ICMP error."""
    if fate.kind == icmp.ERROR:
        reason, text = explain_icmp(run.family, fate.icmp_type, fate.code)
        return Verdict(reason, fate.code, f"{text}, says {responder}" if responder else text)
    if fate.kind == icmp.TX_ERROR:
        reason, text = explain_send(fate.code)
        return Verdict(reason, fate.code, text)
    if fate.kind == icmp.RX_DROP:
        text = "our own receive queue overflowed and may have dropped the reply"
        return Verdict(Reason.TX_ERROR, None, text)
    if fate.kind == 0:
        return Verdict(Reason.CANCELLED, None, "cancelled before a reply came")
    return Verdict(Reason.TIMEOUT, None, f"no reply within {run.timeout_ns // NS_PER_MS} ms")


def reasons(runs: Iterable[PingRun], tallies: Iterable[Tally]) -> dict[Reason, int]:
    """Return how many attempts failed for which reason, in the order they first occurred."""
    found: Counter[Reason] = Counter()
    for run, counted in zip(runs, tallies, strict=True):
        for fate, times in counted.items():
            found[verdict(run, fate).reason] += times
    return dict(found)


def judge(runs: Sequence[PingRun], tallies: Sequence[Tally], record: Recorder) -> None:
    """Put into record what runs amount to."""
    failure = failure_of_runs(runs, tallies)
    if failure is None:
        record.ok()
    else:
        record.fail(*failure)


def failure_of_runs(runs: Sequence[PingRun], tallies: Sequence[Tally]) -> RunFailure | None:
    """Reached once is ok; else the most frequent reason decides, the earliest among equals."""
    if any(run.counts.received for run in runs):
        return None
    reason, times = Counter(reasons(runs, tallies)).most_common(1)[0]
    ours = reason is Reason.TX_ERROR
    total = sum(run.counts.submitted for run in runs)
    target, message = next(_messages(runs, tallies, reason))
    return RunFailure(
        Outcome.AGENT_ERROR if ours else Outcome.TARGET_ERROR,
        reason,
        FailureSource.SELF if ours else source_of(reason),
        f"{target}: {message} ({times} of {total} packets)",
    )


def _messages(
    runs: Sequence[PingRun], tallies: Sequence[Tally], reason: Reason
) -> Iterator[tuple[str, str]]:
    """Yield who failed for this reason, and how that is said of the first packet."""
    for run, counted in zip(runs, tallies, strict=True):
        fitting = {fate for fate in counted if verdict(run, fate).reason is reason}
        for attempt, end in enumerate(ends(run) if fitting else ()):
            if end in fitting:
                fate = Fate(*end)
                yield run.target, verdict(run, fate, _responder(run, attempt)).message
                break


def _responder(run: PingRun, attempt: int) -> str | None:
    """Return who sent the ICMP error that an attempt ended with."""
    errors = (each for each in run.exceptions if each.kind == icmp.ERROR)
    return next((run.responder(each.responder) for each in errors if each.attempt == attempt), None)


def unmet(expect: PingExpect, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the expectations that a summary does not meet, with what was seen.

    Without replies there is no round-trip time, and so none that is met.
    """
    found = []
    for name, of in EXPECTATIONS.items():
        limit, seen = getattr(expect, name), summary[of]
        if limit is not None and (seen is None or seen > limit):
            found.append({"name": name, "limit": limit, "seen": seen})
    return found


def mismatch(host: str, unmet: Sequence[dict[str, Any]]) -> RunFailure:
    """Return the verdict on a host that answers, and not as expected."""
    first = unmet[0]
    return RunFailure(
        Outcome.TARGET_ERROR,
        Reason.MISMATCH,
        FailureSource.TARGET,
        f"{host}: expected {first['name']} {first['limit']:g}, saw {first['seen']}",
    )
