"""What the operator API answers, as types: its document and its tests are made of them."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from netsonde.dsse import Envelope
from netsonde.errors import ErrorCode
from netsonde.metrics import MetricType
from netsonde.model import MINTED_ID_MAX, ErrorEnvelope, Observation, TaskKind, TaskSpec
from netsonde.remote_config import RemoteConfig
from netsonde.remote_config import Scope as ConfigScope
from netsonde.server.about import words
from netsonde.server.checks import CheckDefinition
from netsonde.server.measures import Aggregate
from netsonde.server.scopes import Scope

Id = Annotated[int, Meta(ge=1, le=MINTED_ID_MAX)]
Count = Annotated[int, Meta(ge=0)]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Cursor = str | None  # null: there is no more


class Health(Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["ok"]


class StorageFigures(Struct, frozen=True, kw_only=True):
    """How large the store is, in bytes; `refused` is how often new work was, for want of room."""

    database_bytes: Count
    used_bytes: Count
    free_bytes: Count | None
    max_database_bytes: Count | None
    reserve_bytes: Count
    refused: Count


class StorageShortage(StorageFigures, frozen=True, kw_only=True):
    """The figures, and what there is too little of."""

    shortage: str


class Readiness(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The process works; `degraded`: it takes results, and no new work for want of room."""

    status: Literal["ok", "degraded"]
    storage: StorageShortage | None = None


class Storage(StorageFigures, frozen=True, kw_only=True):
    """How full the store is, and what of it is kept; null is no bound."""

    status: Literal["ok", "degraded"]
    storage: StorageShortage | None = None
    retain_results_ms: Count | None
    retain_dead_letters_ms: Count | None
    first_result_id: Count
    oldest_result_at: Instant | None
    counters: dict[str, Count]


# ── checks and tasks ──


class Check(CheckDefinition, frozen=True, kw_only=True, omit_defaults=True):
    """A check: its definition, what is default left out, and how far it is.

    `tasks` were made so far; `skipped` ticks were left out, because the one before had not ended;
    of `missed` ones there is no result although there is one of a later tick.
    """

    check_id: Id
    enabled: bool
    tasks: Count
    skipped: Count
    missed: Count
    next_at: Instant | None
    created_at: Instant


class CheckPage(Struct, frozen=True, kw_only=True):
    """Some checks, the oldest first."""

    checks: tuple[Check, ...]
    cursor: Cursor


class CheckCancelled(Struct, frozen=True, kw_only=True):
    """How much was called off of what was queued or running."""

    check_id: Id
    cancelled: Count


class CheckRun(Struct, frozen=True, kw_only=True):
    """How many tasks a tick made, and how many it left out because theirs had not ended."""

    check_id: Id
    tasks: Count
    skipped: Count


class Violation(Struct, frozen=True, kw_only=True):
    """A field that is wrong, and what is allowed."""

    path: str
    message: str


class TaskAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item: a task, or why there is none."""

    task_id: Id | None = None
    error: ErrorCode | None = None
    message: str | None = None
    violations: tuple[Violation, ...] = ()


class TaskAnswers(Struct, frozen=True, kw_only=True):
    """What became of the items, in their order."""

    tasks: tuple[TaskAnswer, ...]


class TaskLine(TaskAnswer, frozen=True, kw_only=True, omit_defaults=True, tag="a", tag_field="t"):
    """What became of one line, counted from 1, of all streams under the same Idempotency-Key."""

    line: Annotated[int, Meta(ge=1)]


class UploadEndLine(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="end", tag_field="t"
):
    """The answer's last line: all lines up to `through` are answered."""

    reason: Literal["done", "lines", "time", "error"]
    through: Count | None = None
    error: ErrorEnvelope | None = None


# ── results ──


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


# ── agents ──


class OpenCommand(Struct, frozen=True, kw_only=True):
    """An order that the agent has not yet said it has carried out."""

    id: Id
    type: str
    ordered_at: Instant


class Agent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent: what it said of itself, what it holds, what is wanted of it.

    `version`, `capacities` and `inventory` are missing where they were too long to be kept.
    """

    agent_id: Id
    hostname: str
    labels: dict[str, str]
    disabled: bool
    revoked: bool
    legacy: bool
    registered_at: Instant
    last_seen_at: Instant
    in_flight: dict[str, Count]
    state: str | None
    heartbeat_at: Instant | None
    active_leases: Count | None
    health: dict[str, Any]
    drained: bool
    drained_at: Instant | None
    commands: tuple[OpenCommand, ...]
    version: str | None = None
    capacities: dict[str, int] = {}
    inventory: dict[str, Any] = {}


class AgentPage(Struct, frozen=True, kw_only=True):
    """Some agents, by their ids."""

    agents: tuple[Agent, ...]
    cursor: Cursor


class RevokedAgent(Agent, frozen=True, kw_only=True, omit_defaults=True):
    """An agent whose tokens have ended, and how many leases it had to give back."""

    returned_leases: Count


# ── queues and dead letters ──


class Queue(Struct, frozen=True, kw_only=True):
    """How full a queue is: `any`, `agent:<id>` or `labels:{…}`."""

    queue: str
    kind: TaskKind
    ready: Count
    delayed: Count
    leased: Count
    oldest_ms: int | None


class QueueTotal(Struct, frozen=True, kw_only=True):
    """How much waits and runs of a kind, in all queues together."""

    kind: TaskKind
    queues: Count
    ready: Count
    delayed: Count
    leased: Count
    oldest_ms: int | None


class Queues(Struct, frozen=True, kw_only=True):
    """What waits and what runs."""

    queues: tuple[Queue, ...]
    totals: tuple[QueueTotal, ...]
    dead_letters: Count
    counters: dict[str, Count]


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A task that used up its attempts."""

    task_id: Id
    check_id: Id | None
    kind: TaskKind
    spec: TaskSpec
    reason: str
    attempt: Count
    max_attempts: Count
    agent_id: Id | None
    died_at: Instant


class DeadLetterPage(Struct, frozen=True, kw_only=True):
    """Some dead letters, the youngest task first."""

    dead_letters: tuple[DeadLetter, ...]
    cursor: Cursor


class OneRequeued(Struct, frozen=True, kw_only=True):
    """A dead letter that is a task again."""

    task_id: Id
    requeued: Literal[1]


class OneDeleted(Struct, frozen=True, kw_only=True):
    """A dead letter that was given up for good."""

    task_id: Id
    deleted: Literal[1]


class ManyRequeued(Struct, frozen=True, kw_only=True):
    """How many dead letters are tasks again; `more`: others are left."""

    requeued: Count
    more: bool


class ManyDeleted(Struct, frozen=True, kw_only=True):
    """How many dead letters were given up for good; `more`: others are left."""

    deleted: Count
    more: bool


# ── configurations ──


class ConfigSummary(Struct, frozen=True, kw_only=True):
    """A signed configuration, without its values."""

    revision: Id
    digest: str
    scope: ConfigScope
    issued_at: Instant
    expires_at: Instant
    keyids: tuple[str, ...]
    published_at: Instant


class ConfigPage(Struct, frozen=True, kw_only=True):
    """Some configurations, the latest first."""

    configs: tuple[ConfigSummary, ...]
    cursor: Cursor


class Config(ConfigSummary, frozen=True, kw_only=True):
    """A signed configuration: its values, which nobody verified here, and the envelope."""

    config: RemoteConfig
    envelope: Envelope


class ConfigState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent made of a configuration: `ack`, `nack`, `pending` or `superseded`."""

    agent_id: Id
    hostname: str
    status: str
    reported_at: Instant | None = None
    applied: int | None = None
    reason: str | None = None
    error: str | None = None
    stale: bool = False
    clamped: tuple[dict[str, str], ...] = ()


class ConfigStates(Struct, frozen=True, kw_only=True):
    """Where a configuration came to."""

    revision: Id
    counts: dict[str, Count]
    agents: tuple[ConfigState, ...]
    cursor: Cursor


# ── metrics ──


class Series(Struct, frozen=True, kw_only=True):
    """What a series of an agent's metrics is."""

    agent_id: Id
    name: str
    type: MetricType
    unit: str | None
    labels: dict[str, str]


class LatestSeries(Series, frozen=True, kw_only=True, omit_defaults=True):
    """What a series said last: a value, or the numbers of a histogram."""

    at: Instant
    value: float | None = None
    count: Count | None = None
    sum: float | None = None
    bounds: tuple[float, ...] | None = None
    counts: tuple[Count, ...] | None = None


class LatestPage(Struct, frozen=True, kw_only=True):
    """What series of agents that run now said last."""

    metrics: tuple[LatestSeries, ...]
    cursor: Cursor


class SeriesPoints(Series, frozen=True, kw_only=True):
    """A series over time: Unix milliseconds and a number, a step without samples left out."""

    points: tuple[tuple[int, float], ...]


class MetricAnswer(Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """One name's values over time."""

    name: str
    agg: Aggregate
    from_: Instant
    to: Instant
    step_ms: Count
    series: tuple[SeriesPoints, ...]


# ── tokens, the audit log ──


class Token(Struct, frozen=True, kw_only=True):
    """An operator's token, without itself."""

    token_id: Id
    name: str
    scopes: tuple[Annotated[str, words([*Scope])], ...]
    created_at: Instant
    expires_at: Instant | None
    last_used_at: Instant | None


class TokenPage(Struct, frozen=True, kw_only=True):
    """Some operators' tokens."""

    tokens: tuple[Token, ...]
    cursor: Cursor


class MadeToken(Token, frozen=True, kw_only=True):
    """A token, shown this once: null where an Idempotency-Key was answered again."""

    token: str | None


class EnrolmentToken(Struct, frozen=True, kw_only=True):
    """A token that agents enrol with, without itself."""

    token_id: Id
    name: str | None
    uses: Count
    used: Count
    labels: dict[str, str]
    created_at: Instant
    expires_at: Instant


class EnrolmentTokenPage(Struct, frozen=True, kw_only=True):
    """Some enrolment tokens."""

    enrolment_tokens: tuple[EnrolmentToken, ...]
    cursor: Cursor


class MadeEnrolmentToken(EnrolmentToken, frozen=True, kw_only=True):
    """An enrolment token, shown this once: null where an Idempotency-Key was answered again."""

    token: str | None


class TokenDeleted(Struct, frozen=True, kw_only=True):
    """A token that is no more."""

    token_id: Id


class AuditedCall(Struct, frozen=True, kw_only=True):
    """A call that changed something, or was not allowed to."""

    audit_id: Id
    at: Instant
    token_id: Id | None
    token: str
    remote: str
    call: str
    object: str | None
    status: int
    error: str | None
    request_id: str


class AuditPage(Struct, frozen=True, kw_only=True):
    """Some audited calls, the youngest first unless told."""

    calls: tuple[AuditedCall, ...]
    cursor: Cursor
