"""Handlers for the original agent that see what a script says, in the original's own words."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from support.original.agent import Handler, HandlerError, target
from support.original.messages import Lease, LeaseReport
from support.original.pools import Assignment

ADDRESS = "192.0.2.80"


@dataclass(frozen=True, slots=True)
class Script:
    """How long a measurement takes, whether it sees its target, whether its handler fails."""

    duration_s: float
    is_up: bool = True
    is_broken: bool = False


def scripted(script: Callable[[Lease], Script]) -> dict[str, Handler]:
    """Make a handler of every kind that has one; HTTP has a stub only."""

    async def handle(assignment: Assignment) -> tuple[LeaseReport, bool]:
        lease = assignment.lease
        plan = script(lease)
        try:
            async with asyncio.timeout(plan.duration_s):
                await assignment.cancelled.wait()
        except TimeoutError:
            if plan.is_broken:
                raise HandlerError from None
            return LeaseReport(lease.lease_id, observations(lease, plan)), False
        return LeaseReport(lease.lease_id, cancelled(lease)), True

    return dict.fromkeys(("dns", "tcp", "ping", "trace"), handle)


def observations(lease: Lease, plan: Script) -> Sequence[Mapping[str, Any]]:
    """Return what a measurement to its end has seen."""
    host, rtt_ms = target(lease), round(plan.duration_s * 1000, 3)
    match lease.kind:
        case "dns":
            asked = {"query": host, "server": "192.0.2.53:53"}
            if not plan.is_up:
                return [_seen("dns_error", asked | {"error": "timed out"})]
            return [_seen("dns_a_record", asked | {"address": ADDRESS, "ttl": 300})]
        case "tcp":
            tried = {"success": plan.is_up, "address": f"{ADDRESS}:443", "rtt_ms": rtt_ms}
            errno = None if plan.is_up else 111
            return [
                _seen("tcp_attempt", {"attempt": 1, **tried, "error": None, "errno": errno}),
                _seen("tcp_summary", {**tried, "errno": errno}),
            ]
        case "ping":
            received = int(plan.is_up)
            ended = {"sent": 1, "received": received, "loss_pct": 100.0 * (1 - received)}
            return [
                _seen("ping_attempt", _ping(plan, rtt_ms)),
                _seen("ping_summary", {"success": plan.is_up, **ended, "protocol": "icmp"}),
            ]
    return [_seen("trace", _trace(host, rtt_ms, plan))]


def cancelled(lease: Lease) -> Sequence[Mapping[str, Any]]:
    """Return what a cancelled measurement tells; DNS tells nothing."""
    if lease.kind == "tcp":
        ended = {"success": False, "cancelled": True, "reason": "cancelled"}
        return [_seen("tcp_summary", ended)]
    return []


def _ping(plan: Script, rtt_ms: float) -> dict[str, Any]:
    sent = {"attempt": 1, "success": plan.is_up, "protocol": "icmp", "address": ADDRESS}
    if plan.is_up:
        return sent | {"rtt_ms": rtt_ms, "bytes": 64, "ttl": 57}
    return sent | {"reason": "timeout", "code": None, "message": "no reply"}


def _trace(host: str, rtt_ms: float, plan: Script) -> dict[str, Any]:
    hop = {"ttl": 1, "address": ADDRESS, "rtt_ms": rtt_ms, "protocol": "udp", "success": True}
    return {
        "host": host,
        "status": "ok" if plan.is_up else "permission_denied",
        "paris_flow": 1,
        "total_duration_ms": rtt_ms,
        "hops": [hop | {"reached_destination": plan.is_up}],
        "nat_detected": False,
        "loop_detected": False,
        "permission_denied": not plan.is_up,
        "protocols": ["udp"],
    }


def _seen(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "value": dict(value)}
