"""What `netsonde ping` prints: a line, a row or an object per target, and what all amount to."""

import csv
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

from netsonde.cli.output import printable
from netsonde.cli.render import Headline, line_text, milliseconds, percent, ping_text, with_cause
from netsonde.cli.report import Report
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.model import Outcome, TaskKind
from netsonde.probe.ping.briefs import Brief
from netsonde.probe.ping.driver import EchoEngine
from netsonde.probe.ping.totals import Standing, Totals
from netsonde.stats import RttSummary

HEADINGS = (
    "target", "address", "outcome", "reason", "sent", "received", "loss_pct", "min_ms", "avg_ms",
    "max_ms", "p50_ms", "p95_ms", "p99_ms", "jitter_ms", "duplicates", "late", "tx_errors",
    "rx_drops",
)  # fmt: skip

_NO_RTTS = ("",) * 7


class Form(Enum):
    """How a target is written."""

    TEXT = "text"
    NAMES = "names"  # nothing but the target, for other programs to read
    CSV = "csv"
    JSON = "json"
    NOTHING = "nothing"


class Chosen(Enum):
    """Which targets are written."""

    ALL = "all"
    ALIVE = "alive"
    UNREACHABLE = "unreachable"


class PingReport(Report):
    """Writes targets as they end, counts them, and says at the end what they amount to."""

    def __init__(self, clock: Clock, form: Form, chosen: Chosen) -> None:
        super().__init__(clock, TaskKind.PING)
        self.engines: list[EchoEngine] = []  # that send, to ask how much
        self._form = form
        self._chosen = chosen
        self._totals = Totals()
        self._rows = csv.writer(self._outlet, lineterminator="\n")

    def begin(self) -> None:
        """Start the clock; what was asked for makes sense."""
        super().begin()
        if self._form is Form.CSV:
            self._rows.writerow(HEADINGS)

    def add(self, brief: Brief, encoded: Callable[[], bytes]) -> None:
        """Count a target and write it; encoded: its result as JSON."""
        if self._failure is not None:
            return
        self._totals.add(brief)
        if brief.failure is not None:
            self._judge(brief.target, brief.outcome, brief.failure)
        if not self._is_chosen(brief):
            return
        match self._form:
            case Form.TEXT:
                self._write(f"{line_text(_headline(brief))}\n")
            case Form.NAMES:
                self._outlet.write(f"{printable(brief.target)}\n")
            case Form.CSV:
                self._rows.writerow(_row(brief))
            case Form.JSON:
                self._outlet.take(encoded() + b"\n")

    def end(self) -> None:
        """Write what is left, and the summary where it is wanted.

        Raises:
            OSError: nobody reads any more.
        """
        self._progress.clear()
        if self._began_ns is None or self._failure is not None:
            return
        self._outlet.flush()
        self.check()
        if self._totals.targets == 1 and self._form is not Form.NOTHING:
            return
        text = "\n".join(summary_lines(self._totals, self._elapsed_ns()))
        if self._form in (Form.TEXT, Form.NOTHING):
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        elif self._progress.is_wanted:  # a person watches while the results go elsewhere
            with suppress(OSError):
                sys.stderr.write(f"{text}\n")

    def _is_chosen(self, brief: Brief) -> bool:
        match self._chosen:
            case Chosen.ALIVE:
                return brief.answered
            case Chosen.UNREACHABLE:
                return not (brief.answered or brief.outcome is Outcome.CANCELLED)
            case _:
                return True

    def _progress_text(self) -> str:
        totals, elapsed_ns = self._totals, self._elapsed_ns()
        done = self._done_text(totals.targets)
        sent = max(sum(map(_sent, self.engines)), totals.sent)
        pps = sent * NS_PER_S // max(elapsed_ns, 1)
        return (
            f"{done}, {pps} packets/s, {totals.alive} alive, loss {percent(totals.loss_pct)},"
            f" {elapsed_ns // NS_PER_S} s"
        )


def summary_lines(totals: Totals, elapsed_ns: int) -> list[str]:
    """Say what all targets amount to."""
    shown = [Standing.ALIVE, Standing.UNREACHABLE]
    shown += [each for each in Standing if totals.standings[each] and each not in shown]
    standings = [f"{totals.standings[each]} {each}" for each in shown]
    if totals.unmet:
        standings.insert(1, f"{totals.unmet} not as expected")
    lines = {
        "targets": f"{totals.targets}: {', '.join(standings)}",
        "packets": f"{totals.sent} sent, {totals.received} received,"
        f" loss {percent(totals.loss_pct)}, {totals.duplicates} duplicates, {totals.late} late",
        "this host": f"{totals.tx_errors} not sent (tx errors),"
        f" {totals.rx_drops} replies dropped (rx drops)",
    }
    if (rtts_ms := totals.rtts_ms) is not None:
        numbers = "/".join(milliseconds(each).removesuffix(" ms") for each in rtts_ms)
        lines["rtt"] = f"min/avg/max/p95 {numbers} ms"
    rate_pps = totals.rate_pps
    took = f"{elapsed_ns / NS_PER_S:.3f} s"
    lines["time"] = took if rate_pps is None else f"{took}, {rate_pps:.0f} packets/s"
    width = max(map(len, lines))
    return [f"{name:<{width}}  {text}" for name, text in lines.items()]


def _sent(engine: EchoEngine) -> int:
    """Return how many packets an engine has sent, 0 when another one has taken its place."""
    try:
        return engine.counters.get("sent", 0)
    except ValueError:
        return 0


def _headline(brief: Brief) -> Headline:
    text = ""
    if brief.counts.submitted:
        rtts = brief.rtts
        text = ping_text(
            {
                "sent": brief.counts.sent,
                "received": brief.counts.received,
                "loss_pct": brief.loss_pct,
                "min_rtt_ms": None if rtts is None else rtts.min_ns / NS_PER_MS,
                "avg_rtt_ms": None if rtts is None else rtts.avg_ns / NS_PER_MS,
                "max_rtt_ms": None if rtts is None else rtts.max_ns / NS_PER_MS,
            }
        )
    if brief.failure is not None:
        text = with_cause(text, brief.failure.reason, brief.failure.message)
    return Headline("ping", printable(brief.target), brief.outcome.value, text)


def _row(brief: Brief) -> tuple[object, ...]:
    counts, failure = brief.counts, brief.failure
    return (
        printable(brief.target),
        brief.address,
        brief.outcome.value,
        "" if failure is None else str(failure.reason),
        counts.sent,
        counts.received,
        "" if brief.loss_pct is None else brief.loss_pct,
        *(_NO_RTTS if brief.rtts is None else _rtts(brief.rtts)),
        counts.duplicates,
        counts.late,
        counts.tx_errors,
        counts.rx_drops,
    )


def _rtts(rtts: RttSummary) -> tuple[float, ...]:
    least, jitter = _ms(rtts.min_ns), _ms(rtts.jitter_ns)
    if rtts.min_ns == rtts.max_ns:  # as of a single packet, and a million rows
        return least, least, least, least, least, least, jitter
    numbers_ns = (rtts.avg_ns, rtts.max_ns, rtts.p50_ns, rtts.p95_ns, rtts.p99_ns)
    return (least, *map(_ms, numbers_ns), jitter)


def _ms(number_ns: float) -> float:
    return round(number_ns / NS_PER_MS, 6)
