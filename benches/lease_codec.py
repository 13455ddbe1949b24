"""Claims as bytes, and how plain Python turns them into leases that it has checked; and reports.

The rival does what ours does with the fields that come: types and ranges of each, ids that tell
leases apart, specs that fit their kind, a deadline, a table and a heap; a bad lease costs itself.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from netsonde.clock import NS_PER_MS, NS_PER_S

ID_MAX = 2**64 - 1
MARGIN_NS = 250 * NS_PER_MS
KINDS = ("dns", "http", "tcp", "ping", "trace")


ENV = {"version": "1.0.0", "clock": {"synchronised": True, "maximum_error_ms": 1.5}}
BEGUN_NS = 1_767_323_045_123_456_789


def spec(number: int) -> Mapping[str, Any]:
    """Return the spec of a task, kind after kind."""
    kind = KINDS[number % len(KINDS)]
    host = f"host-{number}.example.net"
    rest: dict[str, Mapping[str, Any]] = {
        "dns": {"query": host, "qtype": "AAAA", "timeout_ms": 2500},
        "http": {"url": f"https://{host}/health", "method": "GET", "timeout_ms": 5000},
        "tcp": {"host": host, "port": 443, "timeout_ms": 3000},
        "ping": {"host": host, "count": 10, "interval_ms": 100, "timeout_ms": 1000},
        "trace": {"host": host, "max_hops": 30},
    }
    return {"kind": kind, **rest[kind]}


def claim_body(first_id: int, count: int, *, is_bad: bool = False) -> bytes:
    """Return a claim's answer with so many leases; is_bad: one in the middle has no port."""
    leases = [
        {
            "lease_id": lease_id,
            "task_id": lease_id + 1_000_000,
            "kind": KINDS[lease_id % len(KINDS)],
            "lease_until_ms": 45_000,
            "spec": spec(lease_id),
            "attempt": 1,
            "max_attempts": 3,
            "granted_after_ms": 0,
            "max_lease_ms": 600_000,
        }
        for lease_id in range(first_id, first_id + count)
    ]
    if is_bad:
        bad = leases[count // 2]
        bad |= {"kind": "tcp", "spec": {"kind": "tcp", "host": "host.example.net"}}
    return orjson.dumps({"leases": leases, "claim_id": "c", "held_ms": 0, "server_time_ms": 1})


class PlainTable:
    """Leases in dicts, and their deadlines in a heapq."""

    def __init__(self) -> None:
        self.leases: dict[int, Mapping[str, Any]] = {}
        self.heap: list[tuple[int, int]] = []

    def take(self, body: bytes, sent_ns: int) -> int:
        """Take the leases of a claim's answer; return how many were good."""
        good = 0
        for lease in orjson.loads(body)["leases"]:
            try:
                check_lease(lease)
            except (KeyError, TypeError, ValueError):
                continue
            lease_id = lease["lease_id"]
            if lease_id not in self.leases:
                self.leases[lease_id] = lease
                ends_ns = sent_ns + lease["lease_until_ms"] * NS_PER_MS - MARGIN_NS
                heapq.heappush(self.heap, (ends_ns, lease_id))
                good += 1
        return good


def check_lease(lease: Mapping[str, Any]) -> None:
    """Insist that a lease is one.

    Raises:
        KeyError, TypeError, ValueError: it is not.
    """
    integer(lease["lease_id"], 0, ID_MAX)
    integer(lease["task_id"], 0, ID_MAX)
    integer(lease["lease_until_ms"], 1, 2**62)
    integer(lease.get("attempt", 1), 0, 2**62)
    integer(lease.get("max_attempts", 1), 0, 2**62)
    integer(lease.get("granted_after_ms", 0), 0, 2**62)
    integer(lease.get("max_lease_ms", 0), 0, 2**62)
    kind, asked = lease["kind"], lease["spec"]
    if asked["kind"] != kind:
        raise ValueError(kind)
    CHECKS[kind](asked)


def integer(value: object, low: int, high: int) -> None:
    """Insist on an integer in a range."""
    if type(value) is not int:
        raise TypeError(value)
    if not low <= value <= high:
        raise ValueError(value)


def text(value: object, longest: int) -> None:
    """Insist on a string that is not empty."""
    if type(value) is not str:
        raise TypeError(value)
    if not 0 < len(value) <= longest:
        raise ValueError(value)


def check_dns(asked: Mapping[str, Any]) -> None:
    text(asked["query"], 255)
    text(asked.get("qtype", "A"), 20)
    integer(asked.get("timeout_ms", 1), 1, 60_000)


def check_http(asked: Mapping[str, Any]) -> None:
    text(asked["url"], 8192)
    text(asked.get("method", "GET"), 20)
    integer(asked.get("timeout_ms", 1), 1, 60_000)


def check_tcp(asked: Mapping[str, Any]) -> None:
    text(asked["host"], 255)
    integer(asked["port"], 1, 65_535)
    integer(asked.get("timeout_ms", 1), 1, 60_000)


def check_ping(asked: Mapping[str, Any]) -> None:
    text(asked["host"], 255)
    integer(asked.get("count", 1), 1, 100_000)
    integer(asked.get("interval_ms", 0), 0, 60_000)
    integer(asked.get("timeout_ms", 1), 1, 60_000)


def check_trace(asked: Mapping[str, Any]) -> None:
    text(asked["host"], 255)
    integer(asked.get("max_hops", 30), 1, 255)


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "dns": check_dns,
    "http": check_http,
    "tcp": check_tcp,
    "ping": check_ping,
    "trace": check_trace,
}


# ── reports ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Seen:
    """What a batch of measurements saw, a list for each field."""

    lease_ids: list[int]
    started_at_ns: list[int]
    durations_ns: list[int]
    rtts_ms: list[float]


def seen(first_id: int, count: int) -> Seen:
    """Return what so many leases saw."""
    return Seen(
        [*range(first_id, first_id + count)],
        [BEGUN_NS + 1_000_003 * number for number in range(count)],
        [12_250_000 + 1001 * number for number in range(count)],
        [0.25 + number / 8 for number in range(count)],
    )


def observations(rtt_ms: float) -> list[dict[str, Any]]:
    """Return what one of them observed."""
    return [{"name": "tcp_connected", "value": {"rtt_ms": rtt_ms, "address": "192.0.2.1"}}]


def plain_report(agent_id: int, batch: Seen, observed: list[orjson.Fragment]) -> bytes:
    """Build a report as a dict for each item; its instants are datetimes, which orjson writes."""
    completed = [
        {
            "lease_id": lease_id,
            "outcome": "ok",
            "started_at": datetime.fromtimestamp(started_at_ns / NS_PER_S, UTC),
            "duration_ms": duration_ns / NS_PER_MS,
            "observations": fragment,
            "env": ENV,
        }
        for lease_id, started_at_ns, duration_ns, fragment in zip(
            batch.lease_ids, batch.started_at_ns, batch.durations_ns, observed, strict=True
        )
    ]
    report = {"agent_id": agent_id, "completed": completed, "cancelled": []}
    return orjson.dumps(report, option=orjson.OPT_UTC_Z)
