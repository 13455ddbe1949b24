"""Results, in pages and as the lines of a feed."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from netsonde.model import ErrorEnvelope, Observation, TaskKind, TaskSpec
from netsonde.server.answers.values import Count, Id, Instant


class ResultError(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why the outcome is not ok, as the agent said it."""

    reason: str | None = None
    failure_source: str | None = None
    message: str | None = None


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A result as its agent reported it, and what the control plane knows of its task.

    docs/result.schema.json says what agents of this version report. Later ones may know other
    outcomes, reasons and observations: those are handed on as they came.
    """

    lease_id: Id
    task_id: Id
    agent_id: Id
    kind: TaskKind
    spec: TaskSpec
    outcome: str
    started_at: Instant
    duration_ms: Annotated[float, Meta(ge=0)]
    observations: tuple[Observation, ...]
    tick: Count | None = None
    check_id: Id | None = None
    scheduled_at: Instant | None = None
    attempt: Annotated[int, Meta(ge=1)] | None = None
    error: ResultError | None = None
    env: dict[str, Any] = {}


class ResultPage(Struct, frozen=True, kw_only=True):
    """Some results, in the order in which they were committed, and where to go on.

    With `more` there is more to look at by now, also after a page that is short or empty.
    """

    results: tuple[Result, ...]
    cursor: str
    more: bool


class ResultLine(Struct, frozen=True, kw_only=True, tag="r", tag_field="t"):
    """One result, and where to go on after it."""

    cursor: str
    result: Result


class CursorLine(Struct, frozen=True, kw_only=True, tag="ping", tag_field="t"):
    """Nothing came; everything before `cursor` has been looked at."""

    cursor: str


class ResultEndLine(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="end", tag_field="t"
):
    """The stream's last line."""

    reason: str
    cursor: str | None = None
    error: ErrorEnvelope | None = None
