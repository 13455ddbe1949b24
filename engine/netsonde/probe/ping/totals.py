"""What any number of pinged targets amount to together, in constant memory."""

from collections import Counter
from enum import StrEnum

from netsonde.clock import NS_PER_MS
from netsonde.model import Outcome, Reason
from netsonde.probe.ping.briefs import Brief
from netsonde.probe.ping.run import rate_pps
from netsonde.stats import Histogram

PERCENTILE = 95


class Standing(StrEnum):
    """What became of a target; the values read well behind a number."""

    ALIVE = "alive"
    UNREACHABLE = "unreachable"
    UNRESOLVED = "not resolved"
    DENIED = "denied"
    REJECTED = "impossible as asked"
    UNMEASURED = "not measured"
    CANCELLED = "cancelled"


def standing(brief: Brief) -> Standing:
    """Return what became of a target; one that answers is alive, whatever else was expected."""
    if brief.answered:
        return Standing.ALIVE
    reason = None if brief.failure is None else brief.failure.reason
    match brief.outcome:
        case Outcome.CANCELLED:
            return Standing.CANCELLED
        case Outcome.AGENT_ERROR:
            return Standing.UNMEASURED
        case Outcome.REJECTED:
            ours = brief.failure is not None and brief.failure.failure_source == "self"
            return Standing.REJECTED if ours else Standing.DENIED
        case _ if reason == Reason.RESOLVE_FAILED:
            return Standing.UNRESOLVED
        case _:
            return Standing.UNREACHABLE


class Totals:
    """Adds targets up as they end. Round-trip times are those of all replies."""

    def __init__(self) -> None:
        self.targets = 0
        self.standings: Counter[Standing] = Counter()
        self.unmet = 0  # alive, and not as expected
        self.sent = 0
        self.received = 0
        self.lost = 0
        self.duplicates = 0
        self.late = 0
        self.tx_errors = 0
        self.rx_drops = 0
        self._histogram = Histogram()
        self._min_ns = 0
        self._max_ns = 0
        self._sum_ns = 0.0
        self._first_sent_ns = 0
        self._last_sent_ns = 0

    def add(self, brief: Brief) -> None:
        """Count a target."""
        counts = brief.counts
        self.targets += 1
        self.standings[standing(brief)] += 1
        self.sent += counts.sent
        self.lost += counts.lost
        self.duplicates += counts.duplicates
        self.late += counts.late
        self.tx_errors += counts.tx_errors
        self.rx_drops += counts.rx_drops
        if counts.first_sent_ns:
            earlier = self._first_sent_ns or counts.first_sent_ns
            self._first_sent_ns = min(earlier, counts.first_sent_ns)
            self._last_sent_ns = max(self._last_sent_ns, counts.last_sent_ns)
        if brief.rtts is None or brief.histogram is None:
            return
        self.unmet += brief.outcome is Outcome.TARGET_ERROR
        self._min_ns = min(self._min_ns, brief.rtts.min_ns) if self.received else brief.rtts.min_ns
        self._max_ns = max(self._max_ns, brief.rtts.max_ns)
        self._sum_ns += brief.rtts.avg_ns * counts.received
        self._histogram.merge(brief.histogram)
        self.received += counts.received

    @property
    def alive(self) -> int:
        """How many targets answered."""
        return self.standings[Standing.ALIVE]

    @property
    def loss_pct(self) -> float | None:
        """The share of packets on the wire that stayed unanswered; None: there were none."""
        judged = self.received + self.lost
        return round(100 * self.lost / judged, 4) if judged else None

    @property
    def rtts_ms(self) -> tuple[float, float, float, float] | None:
        """Least, mean, greatest and 95th percentile, the last one within 3.2 %."""
        if not self.received:
            return None
        p95_ns = min(self._histogram.percentile_ns(PERCENTILE), self._max_ns)
        numbers_ns = (self._min_ns, self._sum_ns / self.received, self._max_ns, p95_ns)
        least, mean, greatest, p95 = (number_ns / NS_PER_MS for number_ns in numbers_ns)
        return least, mean, greatest, p95

    @property
    def rate_pps(self) -> float | None:
        """The rate really sent, from the first packet to the last."""
        return rate_pps(self.sent, self._first_sent_ns, self._last_sent_ns)
