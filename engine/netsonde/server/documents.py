"""What the operator API shows: rows of the store as JSON values."""

from collections.abc import Mapping, Sequence
from typing import Any

from netsonde import wire
from netsonde.clock import NS_PER_MS, rfc3339
from netsonde.server.store import Store
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.checks import CheckRow
from netsonde.server.store.results import StoredResult
from netsonde.server.store.tasks import ANY_QUEUE, DeadLetter, QueueDepth


def agent(row: AgentRow, last_seen_ns: int, held: Mapping[str, int]) -> dict[str, Any]:
    """Write an agent."""
    return {
        "agent_id": row.agent_id,
        "hostname": row.hostname,
        "labels": wire.fragment(row.labels),
        "disabled": row.is_disabled,
        "legacy": row.is_legacy,
        **wire.parse(row.document),
        "registered_at": rfc3339(row.registered_ns),
        "last_seen_at": rfc3339(last_seen_ns),
        "in_flight": held,
    }


def in_flight(store: Store, agent_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Count what agents hold, by kind."""
    flights: dict[int, dict[str, int]] = {}
    for agent_id in agent_ids:
        counts: dict[str, int] = {}
        for held in store.held_by(agent_id):
            counts[held.kind.value] = counts.get(held.kind.value, 0) + 1
        flights[agent_id] = counts
    return flights


def check(row: CheckRow) -> dict[str, Any]:
    """Write a check: its definition, and how far it is."""
    return {
        "check_id": row.check_id,
        **wire.parse(row.document),
        "enabled": row.is_enabled,
        "tasks": row.tasks,
        "skipped": row.skipped,
        "missed": row.missed,
        "next_at": rfc3339(row.next_ns) if row.is_enabled and row.next_ns is not None else None,
        "created_at": rfc3339(row.created_ns),
    }


def result(row: StoredResult) -> bytes:
    """Write the result object of a stored result."""
    return wire.merge_result(
        row.body,
        {
            "lease_id": row.lease_id,
            "task_id": row.task_id,
            "check_id": row.check_id,
            "agent_id": row.agent_id,
            "kind": row.kind,
            "spec": wire.fragment(row.spec),
            "outcome": row.outcome,
            "tick": row.tick,
            "scheduled_at": None if row.scheduled_ns is None else rfc3339(row.scheduled_ns),
            "attempt": row.attempt,
        },
    )


def queue(depth: QueueDepth, labels: dict[int, bytes], now_ns: int) -> dict[str, Any]:
    """Write how full a queue is."""
    if depth.queue == ANY_QUEUE:
        name = "any"
    elif depth.queue < 0:
        name = f"agent:{-depth.queue}"
    else:
        name = f"labels:{labels.get(depth.queue, b'{}').decode()}"
    oldest_ns = depth.oldest_ns
    return {
        "queue": name,
        "kind": depth.kind,
        "ready": depth.ready,
        "delayed": depth.delayed,
        "leased": depth.leased,
        "oldest_ms": None if oldest_ns is None else (now_ns - oldest_ns) // NS_PER_MS,
    }


def totals(depths: Sequence[QueueDepth], now_ns: int) -> list[dict[str, Any]]:
    """Write how much waits and runs of every kind, in all queues together."""
    kinds = sorted({depth.kind for depth in depths})
    return [_total([one for one in depths if one.kind is kind], now_ns) for kind in kinds]


def _total(depths: Sequence[QueueDepth], now_ns: int) -> dict[str, Any]:
    oldest_ns = min((one.oldest_ns for one in depths if one.oldest_ns is not None), default=None)
    return {
        "kind": depths[0].kind,
        "queues": len(depths),
        "ready": sum(one.ready for one in depths),
        "delayed": sum(one.delayed for one in depths),
        "leased": sum(one.leased for one in depths),
        "oldest_ms": None if oldest_ns is None else (now_ns - oldest_ns) // NS_PER_MS,
    }


def dead_letter(row: DeadLetter) -> dict[str, Any]:
    """Write a task that was given up."""
    return {
        "task_id": row.task_id,
        "check_id": row.check_id,
        "kind": row.kind,
        "spec": wire.fragment(row.spec),
        "reason": row.reason,
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "agent_id": row.agent_id,
        "died_at": rfc3339(row.died_ns),
    }
