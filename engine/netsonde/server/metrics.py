"""What a control plane counts of itself: the families, read from counters that exist anyway."""

from collections.abc import Iterator, Mapping, Sequence

from netsonde import __version__
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.metrics import Family, MetricType, Reading
from netsonde.model import TaskKind
from netsonde.server.core import ControlPlane
from netsonde.server.fleet import HEARTBEATS_MISSED
from netsonde.server.store import Store
from netsonde.server.store.tasks import QueueDepth

_COUNTER, _GAUGE, _HISTOGRAM = MetricType.COUNTER, MetricType.GAUGE, MetricType.HISTOGRAM

BUILD = Family("netsonde_server_build_info", _GAUGE, "1, with the version.", ("version",))
TASKS = Family(
    "netsonde_server_tasks",
    _GAUGE,
    "Tasks by kind and state: ready, delayed, leased.",
    ("kind", "state"),
)
OLDEST = Family(
    "netsonde_server_oldest_ready_seconds",
    _GAUGE,
    "How long the oldest ready task has waited, by kind.",
    ("kind",),
    "seconds",
)
ENDED = Family(
    "netsonde_server_task_events_total",
    _COUNTER,
    "What became of tasks and ticks that brought no result at their first try.",
    ("event",),
)
AGENTS = Family(
    "netsonde_server_agents",
    _GAUGE,
    "Agents: heard of within three heartbeats, silent, disabled.",
    ("state",),
)
REQUESTS = Family(
    "netsonde_server_requests_total",
    _COUNTER,
    "Requests answered, by listener, call and class of status.",
    ("listener", "call", "class"),
)
COMMITS = Family(
    "netsonde_server_commit_seconds",
    _HISTOGRAM,
    "How long a group of requests took, work and commit.",
    unit="seconds",
)
SAMPLES = Family(
    "netsonde_server_metric_samples_total",
    _COUNTER,
    "Samples of agents' metrics: stored, rejected.",
    ("outcome",),
)

FAMILIES = (BUILD, TASKS, OLDEST, ENDED, AGENTS, REQUESTS, COMMITS, SAMPLES)

EVENTS = ("cancelled", "stale", "overlap", "missed", "returned", "expired", "late", "dead")


async def read(plane: ControlPlane) -> list[Reading]:
    """Return every family's values now."""
    now_ns = plane.time.now_ns()

    def operation(store: Store) -> tuple[Mapping[str, int], Sequence[QueueDepth]]:
        return store.counters(), store.depths(now_ns)

    counters, depths = await plane.writer.look(operation)
    return [
        Reading(BUILD, 1, (__version__,)),
        *_queues(depths, now_ns),
        *(Reading(ENDED, counters.get(event, 0), (event,)) for event in EVENTS),
        *_agents(plane, now_ns),
        *_requests(plane),
        Reading(COMMITS, plane.writer.commits),
        Reading(SAMPLES, counters.get("metric_samples", 0), ("stored",)),
        Reading(SAMPLES, counters.get("metric_samples_rejected", 0), ("rejected",)),
    ]


def _queues(depths: Sequence[QueueDepth], now_ns: int) -> Iterator[Reading]:
    for kind in TaskKind:
        its = [depth for depth in depths if depth.kind is kind]
        for state in ("ready", "delayed", "leased"):
            total = sum(getattr(depth, state) for depth in its)
            yield Reading(TASKS, total, (kind.value, state))
        oldest_ns = min(
            (depth.oldest_ns for depth in its if depth.oldest_ns is not None), default=now_ns
        )
        yield Reading(OLDEST, max(now_ns - oldest_ns, 0) / NS_PER_S, (kind.value,))


def _agents(plane: ControlPlane, now_ns: int) -> Iterator[Reading]:
    counts = dict.fromkeys(("heard", "silent", "disabled"), 0)
    silent_ns = now_ns - HEARTBEATS_MISSED * plane.config.heartbeat_interval_ms * NS_PER_MS
    for row in plane.registry.all():
        is_heard = plane.registry.last_seen_ns(row) >= silent_ns
        counts["disabled" if row.is_disabled else "heard" if is_heard else "silent"] += 1
    for state, count in counts.items():
        yield Reading(AGENTS, count, (state,))


def _requests(plane: ControlPlane) -> Iterator[Reading]:
    for listener, requests in plane.requests.items():
        for (call, status_class), count in sorted(requests.items()):
            yield Reading(REQUESTS, count, (listener, call, status_class))
