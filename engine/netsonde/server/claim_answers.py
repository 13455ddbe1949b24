"""How claimed leases are written: in one answer, or as the lines of a stream."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from netsonde import wire
from netsonde.clock import NS_PER_MS, rfc3339
from netsonde.model import ClaimRequest
from netsonde.server.claims import Claimed, ClaimEvent, Configured, Ended, Ping, Revoked
from netsonde.server.core import ControlPlane
from netsonde.server.store.tasks import GrantedTask


class ClaimAnswers:
    """Writes what was claimed; times count from `received_ns`, the receipt of the request."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def lines(
        self, events: AsyncGenerator[ClaimEvent], received_ns: int
    ) -> AsyncGenerator[bytes]:
        """Write what comes of a claim as it comes."""
        async with aclosing(events):
            async for event in events:
                match event:
                    case Claimed():
                        yield wire.claim_lines(self._leases(event, received_ns))
                    case Revoked():
                        yield wire.revoke_line(event.lease_ids)
                    case Configured():
                        yield wire.config_line(event.revision)
                    case Ping():
                        yield wire.ping_line()
                    case Ended():
                        yield wire.end_line(event.reason)

    def body(self, request: ClaimRequest, claimed: Claimed, received_ns: int) -> dict[str, Any]:
        """Write what was claimed as one answer."""
        answer: dict[str, Any] = {
            "leases": self._leases(claimed, received_ns),
            "held_ms": _held_ms(claimed, received_ns),
            "server_time_ms": claimed.now_ns // NS_PER_MS,
        }
        if request.claim_id is not None:
            answer["claim_id"] = request.claim_id
        return answer

    def _leases(self, claimed: Claimed, received_ns: int) -> list[Mapping[str, Any]]:
        held_ms = _held_ms(claimed, received_ns)
        max_lease_ms = self._plane.policy.max_lease_ns // NS_PER_MS
        offline_ms = self._plane.config.offline_ms
        return [
            _lease(task, claimed.now_ns, held_ms, max_lease_ms, offline_ms)
            for task in claimed.tasks
        ]


def _lease(
    task: GrantedTask, now_ns: int, granted_after_ms: int, max_lease_ms: int, offline_ms: int
) -> Mapping[str, Any]:
    """Write a lease; its durations count from now_ns, `granted_after_ms` after the request."""
    lease: dict[str, Any] = {
        "lease_id": task.lease_id,
        "task_id": task.task_id,
        "kind": task.kind,
        "lease_until_ms": (task.until_ns - now_ns) // NS_PER_MS,
        "spec": wire.fragment(task.spec),
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "granted_after_ms": granted_after_ms,
        "max_lease_ms": max_lease_ms,
    }
    if task.check_id is not None:
        lease["check_id"] = task.check_id
    if task.priority:
        lease["priority"] = task.priority
    if task.scheduled_ns is not None:
        lease["scheduled_at"] = rfc3339(task.scheduled_ns)
    if task.repeat is not None:
        del lease["max_lease_ms"]  # it has none
        lease["repeat"] = wire.fragment(task.repeat.encode())
        lease["offline_ms"] = offline_ms
        lease["next_tick"] = task.next_tick
    return lease


def _held_ms(claimed: Claimed, received_ns: int) -> int:
    return max(claimed.now_ns - received_ns, 0) // NS_PER_MS
