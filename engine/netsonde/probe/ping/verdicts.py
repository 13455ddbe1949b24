"""Why a packet was not answered, and what a run as a whole amounts to."""

from collections import Counter
from collections.abc import Iterator, Sequence
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


def fates(run: PingRun) -> Iterator[Fate | None]:
    """Yield how each submitted attempt ended, None for a reply in time."""
    submitted = run.counts.submitted
    ends = zip(run.kinds[:submitted], run.icmp_types, run.codes, strict=False)
    for kind, icmp_type, code in ends:
        yield None if kind == icmp.REPLY else Fate(kind, icmp_type, code)


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


def reasons(run: PingRun) -> dict[Reason, int]:
    """Return how many attempts failed for which reason, in the order they first occurred."""
    found: Counter[Reason] = Counter()
    for fate, times in Counter(fates(run)).items():
        if fate is not None:
            found[verdict(run, fate).reason] += times
    return dict(found)


def judge(runs: Sequence[PingRun], record: Recorder) -> None:
    """Put into record what runs amount to."""
    failure = failure_of_runs(runs)
    if failure is None:
        record.ok()
    else:
        record.fail(*failure)


def failure_of_runs(runs: Sequence[PingRun]) -> RunFailure | None:
    """Reached once is ok; else the most frequent reason decides, the earliest among equals."""
    if any(run.counts.received for run in runs):
        return None
    found: Counter[Reason] = Counter()
    for run in runs:
        found.update(reasons(run))
    reason, times = found.most_common(1)[0]
    ours = reason is Reason.TX_ERROR
    total = sum(run.counts.submitted for run in runs)
    target, message = next(_messages(runs, reason))
    return RunFailure(
        Outcome.AGENT_ERROR if ours else Outcome.TARGET_ERROR,
        reason,
        FailureSource.SELF if ours else source_of(reason),
        f"{target}: {message} ({times} of {total} packets)",
    )


def _messages(runs: Sequence[PingRun], reason: Reason) -> Iterator[tuple[str, str]]:
    """Yield who failed for this reason, and how that is said."""
    for run in runs:
        responders = {
            each.attempt: run.responder(each.responder)
            for each in run.exceptions
            if each.kind == icmp.ERROR
        }
        for attempt, fate in enumerate(fates(run)):
            if fate is None:
                continue
            said = verdict(run, fate, responders.get(attempt))
            if said.reason is reason:
                yield run.target, said.message


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
