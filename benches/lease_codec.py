"""Claims as bytes, and how plain Python turns them into leases that it has checked.

The rival does what ours does with the fields that come: types and ranges of each, ids that tell
leases apart, specs that fit their kind, a deadline, a table and a heap; a bad lease costs itself.
"""

import heapq
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from netsonde.clock import NS_PER_MS

ID_MAX = 2**64 - 1
MARGIN_NS = 250 * NS_PER_MS
KINDS = ("dns", "http", "tcp", "ping", "trace")


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
