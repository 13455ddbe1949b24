"""What an agent counts of itself: the families, read from counters that its parts have anyway."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from netsonde import __version__
from netsonde.agent.dispatcher import Dispatcher
from netsonde.agent.lease_extender import LeaseExtender
from netsonde.agent.reporter import Reporter
from netsonde.agent.standing import StandingLeases
from netsonde.agent.telemetry import Telemetry, open_files, rss_bytes
from netsonde.agent.worker import Worker
from netsonde.backoff import Verb
from netsonde.clock import NS_PER_S
from netsonde.control_plane import ControlPlaneClient
from netsonde.leases import Grant, LeaseTable
from netsonde.metrics import OTHER, Family, MetricType, Reading
from netsonde.model import Outcome, ReportStatus, TaskKind
from netsonde.spool import Spool

_COUNTER, _GAUGE, _HISTOGRAM = MetricType.COUNTER, MetricType.GAUGE, MetricType.HISTOGRAM
_VERBS = tuple(verb.value for verb in Verb)
_CLASSES = ("3xx", "4xx", "5xx")

BUILD = Family("netsonde_agent_build_info", _GAUGE, "1, with the version.", ("version",))
RESULTS = Family(
    "netsonde_agent_results_total",
    _COUNTER,
    "Results kept in the spool, by outcome.",
    ("outcome",),
)
MEASURED = Family(
    "netsonde_agent_measurement_seconds",
    _HISTOGRAM,
    "How long measurements took that took any time, by kind.",
    ("kind",),
    "seconds",
)
RUNNING = Family("netsonde_agent_running", _GAUGE, "Slots that are taken, by kind.", ("kind",))
LIMIT = Family(
    "netsonde_agent_slots",
    _GAUGE,
    "Slots that there are at this load, by kind; all is all kinds together.",
    ("kind",),
)
HELD = Family("netsonde_agent_results_held", _GAUGE, "Results that wait for the spool's disk.")
SHRUNK = Family(
    "netsonde_agent_congestion_total",
    _COUNTER,
    "How often slots were cut: of all kinds, of a kind, of one target.",
    ("limit",),
)
LEASES = Family("netsonde_agent_leases", _GAUGE, "Leases that are held.")
GRANTED = Family(
    "netsonde_agent_leases_total",
    _COUNTER,
    "Leases that came, by what became of them.",
    ("outcome",),
)
UNSTARTED = Family(
    "netsonde_agent_leases_unstarted_total", _COUNTER, "Leases that ended before they began."
)
EXTENDED = Family("netsonde_agent_leases_extended_total", _COUNTER, "Extensions that were given.")
TICKS = Family(
    "netsonde_agent_ticks_total",
    _COUNTER,
    "Ticks of standing leases: begun, skipped, missed.",
    ("outcome",),
)
REPORTED = Family(
    "netsonde_agent_reported_total",
    _COUNTER,
    "Results answered by the control plane, by status.",
    ("status",),
)
SPOOL_ROWS = Family("netsonde_agent_spool_results", _GAUGE, "Results that wait in the spool.")
SPOOL_BYTES = Family("netsonde_agent_spool_bytes", _GAUGE, "Bytes of the spool.", unit="bytes")
SPOOL_AGE = Family(
    "netsonde_agent_spool_oldest_seconds",
    _GAUGE,
    "How long the oldest result has waited in the spool.",
    unit="seconds",
)
SPOOL_FULL = Family("netsonde_agent_spool_full", _GAUGE, "1 while the spool is full.")
SPOOL_REFUSALS = Family(
    "netsonde_agent_spool_refusals_total", _COUNTER, "How often the spool would not take results."
)
REQUESTS = Family(
    "netsonde_agent_requests_total", _COUNTER, "Requests to the control plane, by call.", ("call",)
)
FAILED = Family(
    "netsonde_agent_requests_failed_total",
    _COUNTER,
    "Calls that were given up, by call.",
    ("call",),
)
REFUSED = Family(
    "netsonde_agent_responses_refused_total",
    _COUNTER,
    "Answers that were no success, by class of status.",
    ("class",),
)
BROKEN = Family(
    "netsonde_agent_transport_errors_total",
    _COUNTER,
    "Requests without a usable answer: transport_errors, garbled_answers, streams_broken.",
    ("error",),
)
RETRIES = Family("netsonde_agent_retries_total", _COUNTER, "Requests that were made again.")
ANSWERED = Family(
    "netsonde_agent_request_seconds",
    _HISTOGRAM,
    "How long the control plane took to answer, held claims and streams aside, by call.",
    ("call",),
    "seconds",
)
LAG = Family(
    "netsonde_agent_loop_lag_seconds", _HISTOGRAM, "How late the event loop was.", unit="seconds"
)
MEMORY = Family(
    "netsonde_agent_resident_memory_bytes", _GAUGE, "Memory that is resident.", unit="bytes"
)
FILES = Family("netsonde_agent_open_fds", _GAUGE, "Open descriptors.")

FAMILIES = (
    BUILD, RESULTS, MEASURED, RUNNING, LIMIT, HELD, SHRUNK, LEASES, GRANTED, UNSTARTED, EXTENDED,
    TICKS, REPORTED, SPOOL_ROWS, SPOOL_BYTES, SPOOL_AGE, SPOOL_FULL, SPOOL_REFUSALS, REQUESTS,
    FAILED, REFUSED, BROKEN, RETRIES, ANSWERED, LAG, MEMORY, FILES,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentMetrics:
    """Reads an agent's parts."""

    client: ControlPlaneClient
    leases: LeaseTable
    spool: Spool
    telemetry: Telemetry
    worker: Worker
    standing: StandingLeases
    dispatcher: Dispatcher
    reporter: Reporter
    extender: LeaseExtender

    def read(self) -> list[Reading]:
        """Return every family's values now."""
        return [*self._work(), *self._lease_life(), *self._spooled(), *self._talk(), *self._host()]

    def _work(self) -> Iterator[Reading]:
        worker, congestion = self.worker, self.worker.congestion
        yield from _by_prefix(RESULTS, worker.counters, "outcome_", Outcome)
        for kind, took in worker.durations.items():
            yield Reading(MEASURED, took, (kind.value,))
        running = worker.running()
        for kind in TaskKind:
            if worker.measures(kind):
                yield Reading(RUNNING, running.get(kind, 0), (kind.value,))
                yield Reading(LIMIT, congestion.limit(kind), (kind.value,))
        yield Reading(LIMIT, congestion.limit_of_all, ("all",))
        yield Reading(HELD, worker.held)
        for limit, count in congestion.shrunk.items():
            yield Reading(SHRUNK, count, (str(limit),))

    def _lease_life(self) -> Iterator[Reading]:
        taken = self.dispatcher.counters
        yield Reading(LEASES, len(self.leases))
        yield from _by_prefix(GRANTED, taken, "lease_", (*Grant, "rejected", "repeated"))
        yield Reading(UNSTARTED, self.worker.counters["unstarted"])
        yield Reading(EXTENDED, self.extender.counters["extended"])
        for outcome in ("begun", "skipped", "missed"):
            yield Reading(TICKS, self.standing.counters[outcome], (outcome,))

    def _spooled(self) -> Iterator[Reading]:
        yield from _by_prefix(REPORTED, self.reporter.counters, "status_", ReportStatus)
        yield Reading(SPOOL_ROWS, self.spool.rows)
        yield Reading(SPOOL_BYTES, self.spool.size_bytes)
        yield Reading(SPOOL_AGE, self.telemetry.oldest_ns() / NS_PER_S)
        yield Reading(SPOOL_FULL, int(self.spool.is_full))
        yield Reading(SPOOL_REFUSALS, self.worker.counters["spool_refusals"])

    def _talk(self) -> Iterator[Reading]:
        counters = self.client.counters
        for verb in _VERBS:
            yield Reading(REQUESTS, counters[f"{verb}_requests"], (verb,))
            yield Reading(FAILED, counters[f"{verb}_failed"], (verb,))
        for name in _CLASSES:
            total = sum(
                count for key, count in counters.items() if key.startswith(f"status_{name[0]}")
            )
            yield Reading(REFUSED, total, (name,))
        for error in ("transport_errors", "garbled_answers", "streams_broken"):
            yield Reading(BROKEN, counters[error], (error,))
        yield Reading(RETRIES, counters["retries"])
        for call, took in self.client.durations.items():
            yield Reading(ANSWERED, took, (call.value,))

    def _host(self) -> Iterator[Reading]:
        yield Reading(BUILD, 1, (__version__,))
        yield Reading(LAG, self.telemetry.lags)
        yield Reading(MEMORY, rss_bytes())
        yield Reading(FILES, open_files())


def _by_prefix(
    family: Family, counters: Mapping[str, int], prefix: str, known: Iterable[str]
) -> Sequence[Reading]:
    """Return counters whose names begin so, by the rest of the name; unknown ones together."""
    names = [str(name) for name in known]
    values = {name: counters.get(f"{prefix}{name}", 0) for name in names}
    total = sum(count for key, count in counters.items() if key.startswith(prefix))
    if other := total - sum(values.values()):
        values[OTHER] = other  # a newer control plane's words are not ours to bound
    return [Reading(family, count, (name,)) for name, count in values.items()]
