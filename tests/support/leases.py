"""Leases as a control plane grants them."""

from typing import Any

from netsonde.model import SPEC_TYPES, TARGET_FIELDS, Lease, TaskKind

TERM_MS = 45_000
_REQUIRED: dict[TaskKind, dict[str, Any]] = {TaskKind.TCP: {"port": 443}}


def make_lease(
    lease_id: int, kind: TaskKind = TaskKind.PING, target: str | None = None, **changes: Any
) -> Lease:
    """Make one lease; each has a target of its own unless one is given."""
    named = target or f"target-{lease_id}.test"
    wanted: dict[str, Any] = {TARGET_FIELDS[kind]: named, **_REQUIRED.get(kind, {})}
    fields: dict[str, Any] = {
        "task_id": lease_id + 1000,
        "kind": kind,
        "lease_until_ms": TERM_MS,
        "spec": SPEC_TYPES[kind](**wanted),
    }
    return Lease(lease_id=lease_id, **(fields | changes))
