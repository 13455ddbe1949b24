"""Leases as a control plane grants them, and when a table asks for more time on them."""

from typing import Any

from netsonde.leases import FRACTION_MAX, FRACTION_MIN
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


def ask_ns(lease_id: int, deadline_ns: int, now_ns: int, seed: int) -> int:
    """Return when a table with this seed asks for an extension, in numbers of any size."""
    word = lease_id ^ seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> shift) * factor % 2**64
    word ^= word >> 31
    least, most = int(FRACTION_MIN * 2**32), int(FRACTION_MAX * 2**32)
    part = least + ((word >> 32) * (most - least) >> 32)
    return now_ns + ((deadline_ns - now_ns) * part >> 32)
