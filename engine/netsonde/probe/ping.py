"""Ping: ICMP echo to one host. Observations, summary and verdict; the packets are `probe.echo`'s.

A run of up to 256 packets is told packet by packet, as the original agent did; a longer one as
columns, the longest as a histogram. The summary always comes.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.errors import NetsondeError, ResolveError, TargetDeniedError
from netsonde.model import FailureSource, Outcome, PingSpec, Reason, TaskKind
from netsonde.probe.base import Recorder
from netsonde.probe.echo import EchoDriver, EchoRun, OpenEngine, attempts_of, open_engine
from netsonde.probe.icmp_errors import explain_icmp, explain_send, source_of
from netsonde.probe.targets import TargetResolver, endpoint
from netsonde.stats import Histogram, RttSummary, summarise

ATTEMPTS_MAX = 256  # observations of one item: half of what a report may carry
COLUMNS_MAX = 8_000  # packets whose columns stay well below an item's 256 KiB
ICMP_HEADER_BYTES = 8  # the original counts it in `bytes`

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


class Verdict(NamedTuple):
    """Why one attempt was not answered."""

    reason: Reason
    code: int | None
    message: str


class PingProber:
    """Pings any number of hosts at once over one socket per family."""

    kind = TaskKind.PING

    def __init__(
        self, clock: Clock, resolver: TargetResolver, *, engine: OpenEngine = open_engine
    ) -> None:
        self._clock = clock
        self._resolver = resolver
        self._open_engine = engine
        self._drivers: dict[int, EchoDriver] = {}

    async def run(self, spec: PingSpec, record: Recorder) -> None:
        """Send spec.count echo requests to the first vetted address of spec.host.

        Raises:
            PrivilegeError, SendError: no ICMP socket; the summary is in record.
            ResolveError, TargetDeniedError: likewise.
        """
        try:
            run, driver = await self._prepare(spec)
        except (NetsondeError, asyncio.CancelledError) as error:
            _summarise_nothing(spec, error, record)
            raise
        record.env["icmp_socket"] = driver.access
        try:
            await driver.run(run)
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            _observe(run, record, driver.access, cancelled=cancelled)
            raise
        _observe(run, record, driver.access, cancelled=False)
        _judge(run, record)

    async def close(self) -> None:
        """Close the sockets. Idempotent."""
        while self._drivers:
            self._drivers.popitem()[1].close()

    async def _prepare(self, spec: PingSpec) -> tuple[EchoRun, EchoDriver]:
        addresses = await self._resolver.addresses(spec.host, spec.family)
        interval_ns = NS_PER_S // spec.rate_limit_per_sec
        if spec.interval_ms is not None:
            interval_ns = spec.interval_ms * NS_PER_MS
        run = EchoRun(
            address=addresses[0],
            count=spec.count,
            interval_ns=interval_ns,
            timeout_ns=spec.timeout_ms * NS_PER_MS,
            size=spec.size,
            ttl=spec.ttl,
        )
        return run, self._driver(6 if ":" in run.address else 4)

    def _driver(self, family: int) -> EchoDriver:
        driver = self._drivers.get(family)
        if driver is None:
            driver = EchoDriver(self._clock, self._open_engine(family))
            self._drivers[family] = driver
        return driver


# ── observations ─────────────────────────────────────────────────────────────────────────────────


def _observe(run: EchoRun, record: Recorder, access: str, *, cancelled: bool) -> None:
    if run.count <= ATTEMPTS_MAX:
        for attempt in range(run.submitted):
            record.observe("ping_attempt", _attempt(run, attempt))
    elif run.count <= COLUMNS_MAX:
        record.observe("ping_attempts", _columns(run))
    rtts_ns = [run.rtts_ns[attempt] for attempt in attempts_of(run, icmp.REPLY)]
    reasons = Counter(
        _verdict(run, attempt).reason.value
        for attempt in range(run.submitted)
        if run.kinds[attempt] != icmp.REPLY
    )
    received = len(rtts_ns)
    lost = run.settled - received - run.tx_errors - run.rx_drops
    summary = EMPTY_SUMMARY | {
        "success": received > 0,
        "sent": run.sent,
        "received": received,
        "loss_pct": _loss_pct(run, received, lost, cancelled=cancelled),
        **_rtts(summarise(rtts_ns)),
        "reasons": dict(reasons),
        "cancelled": cancelled,
        "address": run.address,
        "socket": access,
        "lost": lost,
        "duplicates": run.duplicates,
        "late": len(run.late_ns),
        "tx_errors": run.tx_errors,
        "rx_drops": run.rx_drops,
        "rate_pps": _rate_pps(run),
        "tx_clock": "user",
        "rx_clock": _rx_clock(run),
        "histogram": Histogram(rtts_ns).value(),
    }
    record.observe("ping_summary", summary)


def _summarise_nothing(spec: PingSpec, error: BaseException, record: Recorder) -> None:
    """Add the summary of a run that could not begin; without a target everything is lost."""
    reason, loss_pct = Reason.TX_ERROR, None
    if isinstance(error, ResolveError):
        record.observe("ping_resolution", {"host": spec.host, "error": str(error)})
        reason, loss_pct = Reason.RESOLVE_FAILED, 100.0
    elif isinstance(error, TargetDeniedError):
        reason, loss_pct = Reason.DENIED, 100.0
    elif isinstance(error, asyncio.CancelledError):
        reason = Reason.CANCELLED
    summary = EMPTY_SUMMARY | {
        "loss_pct": loss_pct,
        "reasons": {reason.value: 1},
        "cancelled": reason is Reason.CANCELLED,
    }
    record.observe("ping_summary", summary)


def _attempt(run: EchoRun, attempt: int) -> dict[str, Any]:
    """Return the value of one `ping_attempt`; attempts count from 1 there."""
    value: dict[str, Any] = {
        "attempt": attempt + 1,
        "success": run.kinds[attempt] == icmp.REPLY,
        "protocol": "icmp",
        "address": endpoint(run.address, 0),
    }
    if value["success"]:
        value |= {
            "rtt_ms": run.rtts_ns[attempt] / NS_PER_MS,
            "bytes": run.sizes[attempt] + ICMP_HEADER_BYTES,
            "ttl": run.ttls[attempt],
        }
    else:
        reason, code, message = _verdict(run, attempt)
        value |= {"reason": reason.value, "code": code, "message": message}
    if attempt in run.late_ns:
        value["late_rtt_ms"] = run.late_ns[attempt] / NS_PER_MS
    if attempt in run.responders:
        value["responder"] = run.responder(attempt)
    if attempt in run.duplicated:
        value["duplicates"] = run.duplicated[attempt]
    return value


def _columns(run: EchoRun) -> dict[str, Any]:
    """Return the value of `ping_attempts`: an RTT or null each, the rest run by run."""
    replied = [kind == icmp.REPLY for kind in run.kinds[: run.submitted]]
    return {
        "count": run.submitted,
        "protocol": "icmp",
        "address": endpoint(run.address, 0),
        "rtt_us": [
            round(rtt_ns / 1000, 1) if ok else None
            for rtt_ns, ok in zip(run.rtts_ns, replied, strict=False)
        ],
        "reasons": _runs_of(
            None if ok else _verdict(run, attempt).reason.value
            for attempt, ok in enumerate(replied)
        ),
        "ttl": _runs_of(ttl if ok else None for ttl, ok in zip(run.ttls, replied, strict=False)),
    }


def _runs_of(values: Iterator[Any]) -> list[list[Any]]:
    """Return `[value, how many in a row]` pairs."""
    return [[value, sum(1 for _ in same)] for value, same in itertools.groupby(values)]


def _rtts(rtts: RttSummary | None) -> dict[str, float]:
    """Return the summary's round-trip times, in ms under the original's names."""
    if rtts is None:
        return {}
    return {name: round(getattr(rtts, of) / NS_PER_MS, 6) for name, of in RTT_FIELDS.items()}


def _loss_pct(run: EchoRun, received: int, lost: int, *, cancelled: bool) -> float | None:
    """Return the share of requests on the wire that stayed unanswered.

    Refused sends, replies our own queue dropped and requests cut off by a cancellation are in
    neither number. With nothing left to judge by it is unknown, unless there is no way to the
    target: then nothing reaches it.
    """
    if received + lost:
        return round(100 * lost / (received + lost), 4)
    if cancelled or run.rx_drops:
        return None
    reasons = {_verdict(run, attempt).reason for attempt in range(run.submitted)}
    return 100.0 if reasons == {Reason.NO_ROUTE} else None


def _rate_pps(run: EchoRun) -> float | None:
    first_ns, last_ns = run.first_sent_ns, run.last_sent_ns
    if run.sent < 2 or first_ns is None or last_ns is None or last_ns <= first_ns:
        return None
    return round((run.sent - 1) * NS_PER_S / (last_ns - first_ns), 3)


def _rx_clock(run: EchoRun) -> str | None:
    """Return the worst clock that timed a reply."""
    if icmp.REPLY not in run.kinds:
        return None
    return "user" if run.user_stamps else "kernel"


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def _verdict(run: EchoRun, attempt: int) -> Verdict:
    """Return why an attempt that was submitted has no reply."""
    kind = run.kinds[attempt]
    code = run.codes[attempt]
    if kind == icmp.ERROR:
        family = 6 if ":" in run.address else 4
        reason, text = explain_icmp(family, run.icmp_types[attempt], code)
        return Verdict(reason, code, f"{text}, says {run.responder(attempt)}")
    if kind == icmp.TX_ERROR:
        reason, text = explain_send(code)
        return Verdict(reason, code, text)
    if kind == icmp.RX_DROP:
        text = "our own receive queue overflowed and may have dropped the reply"
        return Verdict(Reason.TX_ERROR, None, text)
    if kind == 0:
        return Verdict(Reason.CANCELLED, None, "cancelled before a reply came")
    return Verdict(Reason.TIMEOUT, None, f"no reply within {run.timeout_ns // NS_PER_MS} ms")


def _judge(run: EchoRun, record: Recorder) -> None:
    """Reached once is ok; else the most frequent reason decides, the earliest among equals."""
    if icmp.REPLY in run.kinds:
        record.ok()
        return
    verdicts = [_verdict(run, attempt) for attempt in range(run.count)]
    reason, times = Counter(verdict.reason for verdict in verdicts).most_common(1)[0]
    message = next(verdict.message for verdict in verdicts if verdict.reason is reason)
    ours = reason is Reason.TX_ERROR
    record.fail(
        Outcome.AGENT_ERROR if ours else Outcome.TARGET_ERROR,
        reason,
        FailureSource.SELF if ours else source_of(reason),
        f"{run.address}: {message} ({times} of {run.count} packets)",
    )
