"""Leases: the calls `claim`, `extend` and `release`."""

from typing import Annotated

from msgspec import Meta, Struct

from netsonde.model.specs import TaskKind, TaskSpec
from netsonde.model.values import Leaf

PeriodMs = Annotated[int, Meta(ge=1, le=2**40)]  # 35 years


class Repeat(Leaf, frozen=True, kw_only=True):
    """How a standing lease's task repeats; `netsonde.ticks` says when.

    `ticks` absent: without an end. A tick that could not begin within `stale_after_ms`, or before
    the next one was due, is missed.
    """

    every_ms: PeriodMs
    jitter_ms: Annotated[int, Meta(ge=0, le=2**40)] = 0
    ticks: Annotated[int, Meta(ge=1)] | None = None
    stale_after_ms: PeriodMs | None = None


class Lease(Leaf, frozen=True, kw_only=True):
    """An exclusive, time-bounded grant of one task to one agent.

    `lease_until_ms` is relative: it counts from the grant, `granted_after_ms` after the server
    received the request. `attempt` counts from 1. With `repeat` it is a standing lease:
    `scheduled_at` is then the instant of tick 0 without its jitter, `next_tick` the first that no
    result is known of, and the work goes on for `offline_ms` past the lease's end.
    """

    lease_id: Annotated[int, Meta(ge=0)]
    task_id: Annotated[int, Meta(ge=0)]
    kind: TaskKind
    lease_until_ms: Annotated[int, Meta(ge=1)]
    spec: TaskSpec
    attempt: int = 1
    max_attempts: int = 1
    granted_after_ms: int | None = None
    max_lease_ms: int | None = None
    check_id: int | None = None
    priority: int = 0
    scheduled_at: str | None = None
    repeat: Repeat | None = None
    offline_ms: Annotated[int, Meta(ge=0, le=2**40)] = 0
    next_tick: Annotated[int, Meta(ge=0)] = 0


class ClaimRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for work: free slots per kind. `claim_id` makes the request repeatable."""

    agent_id: int
    capacities: dict[str, int]
    claim_id: str | None = None
    max_leases: int | None = None
    wait_ms: int | None = None


class ClaimResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was granted."""

    leases: tuple[Lease, ...]
    claim_id: str | None = None
    held_ms: int | None = None
    server_time_ms: int | None = None
    config_revision: str | int | None = None


class ExtendRequest(Struct, frozen=True, kw_only=True):
    """Ask for more time on leases that are still being worked on."""

    agent_id: int
    lease_ids: tuple[int, ...]
    extend_by_ms: int


class ExtendOutcome(Struct, frozen=True, kw_only=True):
    """The remaining time of one extended lease, from the receipt of the request."""

    lease_id: int
    new_deadline_ms: int


class ExtendResult(Struct, frozen=True, kw_only=True):
    """What became of one lease id: extended, fenced, unknown, capped or cancelled."""

    lease_id: int
    status: str


class ExtendResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The extended leases, and those to stop working on."""

    outcomes: tuple[ExtendOutcome, ...]
    revoked: tuple[int, ...] = ()
    results: tuple[ExtendResult, ...] = ()


class ReleaseRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Give leases back unworked; no attempt is consumed.

    `claim_ids` gives back what is held of these claims, but for `keep_lease_ids`.
    """

    agent_id: int
    lease_ids: tuple[int, ...] = ()
    claim_ids: tuple[str, ...] = ()
    keep_lease_ids: tuple[int, ...] = ()


class ReleaseResponse(Struct, frozen=True, kw_only=True):
    """How many leases went back to the queue."""

    released: int
