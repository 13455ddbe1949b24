"""What a ping's result says: packets as columns or one by one, and the summary that always comes.

A peer that knows columns gets `ping_attempts`, an original one a `ping_attempt` for each packet.
"""

import errno
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from netsonde import wire
from netsonde._native import icmp
from netsonde.clock import NS_PER_MS
from netsonde.model import Reason
from netsonde.probe.ping.run import Completion, Counts, PingRun, rate_pps
from netsonde.probe.ping.verdicts import Fate, Tally, fates, reasons, verdict
from netsonde.stats import Histogram, RttSummary, combine, summarise

ATTEMPTS_MAX = 256  # observations of one item: half of what a report may carry
# Their columns, 42 bytes each at the worst, with the exceptions stay below an item's 256 KiB.
COLUMNS_MAX = 5_000
EXCEPTIONS_MAX = 256  # told one by one beside the columns
HEADER_BYTES = 8  # of ICMP, which the original counts in `bytes`, and of UDP

RTT_FIELDS = {
    "min_rtt_ms": "min_ns",
    "max_rtt_ms": "max_ns",
    "avg_rtt_ms": "avg_ns",
    "stddev_rtt_ms": "stddev_ns",
    "p50_ms": "p50_ns",
    "p90_ms": "p90_ns",
    "p95_ms": "p95_ns",
    "p99_ms": "p99_ns",
    "jitter_ms": "jitter_ns",
}

# Every summary has all of these: the original's fields first, in its order.
EMPTY_SUMMARY: dict[str, Any] = {
    "success": False,
    "sent": 0,
    "received": 0,
    "loss_pct": None,
    **dict.fromkeys(list(RTT_FIELDS)[:4]),
    "protocol": "icmp",
    "reasons": {},
    "cancelled": False,
    **dict.fromkeys(list(RTT_FIELDS)[4:]),
    "address": None,
    "socket": None,
    "backend": None,
    "lost": 0,
    "duplicates": 0,
    "late": 0,
    "tx_errors": 0,
    "rx_drops": 0,
    "rate_pps": None,
    "tx_clock": None,
    "rx_clock": None,
    "histogram": Histogram().value(),
}
PER_ADDRESS = ("address", "sent", "received", "loss_pct", "avg_rtt_ms", "socket", "backend")


# ── packets ──────────────────────────────────────────────────────────────────────────────────────


def packets(runs: Sequence[PingRun], *, columnar: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the observations of runs' packets, name and value, within what an item may carry."""
    count = sum(run.count for run in runs)
    if not columnar and count <= ATTEMPTS_MAX:
        for run in runs:
            yield from (("ping_attempt", value) for value in attempts(run))
        return
    exceptions_max = max(EXCEPTIONS_MAX // len(runs), 1)
    for run in runs:
        told = columns(run, whole=count <= COLUMNS_MAX, exceptions_max=exceptions_max)
        if told is not None:
            yield "ping_attempts", told


def columns(run: PingRun, *, whole: bool, exceptions_max: int) -> dict[str, Any] | None:
    """Return the value of `ping_attempts`: a round-trip time or null each, the rest run by run.

    Without `whole` only what was out of the ordinary; None: nothing was.
    """
    submitted = run.counts.submitted
    value: dict[str, Any] = {
        "count": submitted,
        "protocol": run.method,
        "address": run.endpoint,
    }
    if whole:
        value |= {
            "rtt_us": wire.fragment(run.rtt_us_json),
            "reasons": _reasons(run),
            "ttl": _in_rows(_of_replies(run, run.ttls)),
            "bytes": _in_rows(_sizes(run)),
        }
        if run.method != "icmp":
            value["answers"] = _in_rows(answers(run))
    if found := [_exception(run, each) for each in run.exceptions[:exceptions_max]]:
        value["exceptions"] = found
    return value if whole or found else None


def attempts(run: PingRun) -> list[dict[str, Any]]:
    """Return the values of a `ping_attempt` per packet; attempts count from 1 there."""
    late, responders, duplicates = _told_apart(run.exceptions)
    replies = zip(run.rtts_ns, _sizes(run), run.ttls, answers(run), strict=False)
    found = []
    for attempt, (fate, reply) in enumerate(zip(fates(run), replies, strict=False)):
        value: dict[str, Any] = {
            "attempt": attempt + 1,
            "success": fate is None,
            "protocol": run.method,
            "address": run.endpoint,
        }
        who = run.responder(responders[attempt]) if attempt in responders else None
        value |= _reply(*reply) if fate is None else _failure(run, fate, who)
        if attempt in late:
            value["late_rtt_ms"] = late[attempt] / NS_PER_MS
        if who is not None and responders[attempt] != run.destination:
            value["responder"] = who
        if attempt in duplicates:
            value["duplicates"] = duplicates[attempt]
        found.append(value)
    return found


def answers(run: PingRun) -> Iterator[str | None]:
    """Yield what kind of answer each attempt got, None for none; that of ICMP goes without saying.

    By tcp a connection, or a reset; by udp a datagram, or word that the port is closed.
    """
    kinds = run.kinds[: run.counts.submitted]
    for kind, icmp_type, code in zip(kinds, run.icmp_types, run.codes, strict=False):
        if kind != icmp.REPLY or run.method == "icmp":
            yield None
        elif run.method == "tcp":
            yield {0: "connected", errno.ECONNRESET: "reset"}.get(code, "refused")
        else:
            yield "unreachable_port" if icmp_type else "datagram"


def _told_apart(
    exceptions: Iterable[Completion],
) -> tuple[dict[int, int], dict[int, bytes], dict[int, int]]:
    """Return late round-trip times, who answered otherwise, numbers of duplicates."""
    late: dict[int, int] = {}
    responders: dict[int, bytes] = {}
    duplicates: dict[int, int] = {}
    for each in exceptions:
        if each.kind == icmp.LATE:
            late[each.attempt] = each.rtt_ns
        elif each.kind == icmp.DUPLICATE:
            duplicates[each.attempt] = duplicates.get(each.attempt, 0) + 1
        else:
            responders[each.attempt] = each.responder
    return late, responders, duplicates


def _reply(rtt_ns: int, size: int | None, ttl: int, answer: str | None) -> dict[str, Any]:
    value: dict[str, Any] = {"rtt_ms": rtt_ns / NS_PER_MS, "bytes": size, "ttl": ttl or None}
    return value if answer is None else value | {"answer": answer}


def _failure(run: PingRun, fate: Fate, responder: str | None) -> dict[str, Any]:
    reason, code, message = verdict(run, fate, responder)
    return {"reason": reason.value, "code": code, "message": message}


def _exception(run: PingRun, each: Completion) -> dict[str, Any]:
    """Return one line of what was out of the ordinary; attempts count from 1."""
    value: dict[str, Any] = {"attempt": each.attempt + 1}
    if each.kind == icmp.LATE:
        value["late_rtt_ms"] = each.rtt_ns / NS_PER_MS
    elif each.kind == icmp.DUPLICATE:
        value["duplicate_rtt_ms"] = each.rtt_ns / NS_PER_MS
    elif each.kind == icmp.ERROR:
        value |= {"icmp_type": each.icmp_type, "icmp_code": each.code}
    who = run.responder(each.responder)
    if who is not None and each.responder != run.destination:
        value["responder"] = who
    return value


def _reasons(run: PingRun) -> list[list[Any]]:
    """Return the attempts' reasons, null for a reply, as `[reason, how many in a row]`."""
    return [
        [None if fate is None else verdict(run, fate).reason.value, times]
        for fate, times in _in_rows(fates(run))
    ]


def _of_replies(run: PingRun, values: Iterable[int]) -> Iterator[int | None]:
    """Yield the value of each reply, None where there is none or nothing is known."""
    kinds = run.kinds[: run.counts.submitted]
    for kind, value in zip(kinds, values, strict=False):
        yield (value or None) if kind == icmp.REPLY else None


def _sizes(run: PingRun) -> Iterator[int | None]:
    """Yield the bytes of each reply with its header; None for no reply, or one without payload."""
    if run.method != "udp":
        return (size and size + HEADER_BYTES for size in _of_replies(run, run.sizes))
    pairs = zip(answers(run), run.sizes, strict=False)
    return (size + HEADER_BYTES if answer == "datagram" else None for answer, size in pairs)


def _in_rows(values: Iterable[Any]) -> list[list[Any]]:
    """Return `[value, how many in a row]` pairs."""
    return [[value, sum(1 for _ in same)] for value, same in itertools.groupby(values)]


# ── the summary ──────────────────────────────────────────────────────────────────────────────────


def summary(
    runs: Sequence[PingRun], tallies: Sequence[Tally], *, cancelled: bool
) -> dict[str, Any]:
    """Return the value of `ping_summary`: of one run, or of several addresses' as one."""
    counts = Counts.total(run.counts for run in runs)
    why = reasons(runs, tallies)
    histogram = Histogram()
    for run in runs:
        histogram.merge(Histogram.of(run.histogram))
    rate = rate_pps(counts.sent, counts.first_sent_ns, counts.last_sent_ns)
    return EMPTY_SUMMARY | {
        "success": counts.received > 0,
        "sent": counts.sent,
        "received": counts.received,
        "loss_pct": loss_pct(counts, why, cancelled=cancelled),
        **rtt_fields(rtts_of(runs, histogram)),
        "protocol": runs[0].method,
        "reasons": {reason.value: times for reason, times in why.items()},
        "cancelled": cancelled,
        "address": _common(run.address for run in runs),
        "socket": _common(run.carrier.access for run in runs),
        "backend": _common(run.carrier.backend for run in runs),
        "lost": counts.lost,
        "duplicates": counts.duplicates,
        "late": counts.late,
        "tx_errors": counts.tx_errors,
        "rx_drops": counts.rx_drops,
        "rate_pps": None if rate is None else round(rate, 3),
        "tx_clock": _clock(counts.received, counts.user_tx),
        "rx_clock": _clock(counts.received, counts.user_rx),
        "histogram": histogram.value(),
        **_answered(runs),
    }


def per_address(
    runs: Sequence[PingRun], tallies: Sequence[Tally], *, cancelled: bool
) -> list[dict[str, Any]]:
    """Return what the summary says of each address, in short."""
    pairs = zip(runs, tallies, strict=True)
    each = (summary([run], [tally], cancelled=cancelled) for run, tally in pairs)
    return [{name: value[name] for name in PER_ADDRESS} for value in each]


def rtts_of(runs: Sequence[PingRun], histogram: Histogram) -> RttSummary | None:
    """Summarise round-trip times; the jitter of several addresses is that of the worst.

    histogram: of all; many packets of several addresses have their percentiles from it.
    """
    each = [rtts for run in runs if (rtts := run.rtts) is not None]
    if len(each) < 2:
        return each[0] if each else None
    if histogram.count > COLUMNS_MAX:
        return combine(each, histogram)
    whole = summarise([rtt_ns for run in runs for rtt_ns in _replied(run)])
    return whole and replace(whole, jitter_ns=max(rtts.jitter_ns for rtts in each))


def _replied(run: PingRun) -> Iterator[int]:
    pairs = zip(run.kinds, run.rtts_ns, strict=True)
    return (rtt_ns for kind, rtt_ns in pairs if kind == icmp.REPLY)


def _common(values: Iterable[str | None]) -> str | None:
    """Return what all have in common."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _answered(runs: Sequence[PingRun]) -> dict[str, Any]:
    """Return how often which kind of answer came, where there are several."""
    if runs[0].method == "icmp":
        return {}
    kinds = Counter(answer for run in runs for answer in answers(run) if answer is not None)
    return {"port": runs[0].port, "answers": dict(kinds)}


def rtt_fields(rtts: RttSummary | None) -> dict[str, float]:
    """Return the summary's round-trip times, in ms under the original's names."""
    if rtts is None:
        return {}
    return {name: round(getattr(rtts, of) / NS_PER_MS, 6) for name, of in RTT_FIELDS.items()}


def loss_pct(counts: Counts, why: Iterable[Reason], *, cancelled: bool) -> float | None:
    """Return the share of requests on the wire that stayed unanswered.

    Refused sends, replies our own queue dropped and requests cut off by a cancellation are in
    neither number. With nothing left to judge by it is unknown, unless there is no way to the
    target: then nothing reaches it.
    """
    if counts.received + counts.lost:
        return round(100 * counts.lost / (counts.received + counts.lost), 4)
    if cancelled or counts.rx_drops:
        return None
    return 100.0 if set(why) == {Reason.NO_ROUTE} else None


def _clock(received: int, by_user: int) -> str | None:
    """Return the worst clock that timed a reply."""
    if not received:
        return None
    return "user" if by_user else "kernel"
