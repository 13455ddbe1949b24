"""Results on their way to the control plane: the call `report`."""

from enum import StrEnum
from typing import Any

from msgspec import Struct

from netsonde.model.results import Failure, Observation
from netsonde.model.values import Leaf


class LeaseReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One lease's result; an original agent sends the first two fields only."""

    lease_id: int
    observations: tuple[Observation, ...] = ()
    tick: int | None = None
    scheduled_at: str | None = None
    outcome: str | None = None
    started_at: str | None = None
    duration_ms: float | None = None
    error: Failure | None = None
    env: dict[str, Any] = {}


class ReportRequest(Struct, frozen=True, kw_only=True):
    """Results of finished and of cancelled leases."""

    agent_id: int
    completed: tuple[LeaseReport, ...]
    cancelled: tuple[LeaseReport, ...]


class ReportStatus(StrEnum):
    """What the server did with one reported result; all but `retry` are final."""

    ACCEPTED = "accepted"
    LATE_ACCEPTED = "late_accepted"
    DUPLICATE = "duplicate"
    FENCED = "fenced"
    UNKNOWN = "unknown"
    INVALID = "invalid"
    RETRY = "retry"


class ReportResult(Leaf, frozen=True, kw_only=True):
    """The status of one item of a report."""

    lease_id: int
    status: str
    error: str | None = None


class ReportResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many items count as taken, and each item's status when the server is ours."""

    acknowledged: int
    results: tuple[ReportResult, ...] = ()
