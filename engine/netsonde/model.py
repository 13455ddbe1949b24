"""The contract's types and the results: frozen values, no behaviour beyond their own consistency.

Types that travel keep the wire's units in their names (`lease_until_ms`); logic is nanoseconds and
`netsonde.wire` is the one place where one becomes the other. Receivers ignore unknown fields; an
absent optional field means its default.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, NewType

from msgspec import Meta, Struct

AgentId = NewType("AgentId", int)
LeaseId = NewType("LeaseId", int)
TaskId = NewType("TaskId", int)

ID_MAX = 2**64 - 1  # foreign ids are carried untouched; the ones we mint stay below 2^53
MINTED_ID_MAX = 2**53 - 1  # exact in every JSON reader


class TaskKind(StrEnum):
    """The five kinds of measurement."""

    DNS = "dns"
    HTTP = "http"
    TCP = "tcp"
    PING = "ping"
    TRACE = "trace"


class Leaf(Struct, frozen=True, omit_defaults=True, gc=False):
    """A value that comes by the thousand and refers to none that could refer back to it.

    So the collector need not know of it: half a million live leases cost its passes nothing.
    """


# ── specs: what to measure ───────────────────────────────────────────────────────────────────────

HOST_MAX = 253  # characters, RFC 1035 2.3.4
HostName = Annotated[str, Meta(min_length=1, max_length=HOST_MAX)]  # or an address
TimeoutMs = Annotated[int, Meta(ge=1, le=60_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Ttl = Annotated[int, Meta(ge=1, le=255)]
Family = Literal[4, 6, "any"]
PositiveMs = Annotated[float, Meta(gt=0, le=60_000)]


class DnsSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="dns"):
    """Ask one DNS server one question.

    `server` is an address with an optional port, absent: the system's resolver. `qtype` is a type
    name or number; absent: A and AAAA, as the original agent asked.
    """

    query: Annotated[str, Meta(min_length=1, max_length=255)]
    server: str | None = None
    qtype: str | int | None = None
    transport: Literal["udp", "tcp"] = "udp"
    timeout_ms: TimeoutMs = 2500
    retries: Annotated[int, Meta(ge=0, le=10)] = 1


class HttpSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="http"):
    """Make one HTTP request over a fresh connection and time its phases.

    `method` is of capital letters. Whoever writes a spec or makes the request insists on that: in
    every lease an expression would cost as much as all else in it.
    """

    url: Annotated[str, Meta(min_length=1, max_length=8192)]
    method: Annotated[str, Meta(min_length=1, max_length=20)] = "GET"
    headers: dict[str, str] = {}
    timeout_ms: TimeoutMs = 10_000
    family: Family = "any"
    redirects: Annotated[int, Meta(ge=0, le=20)] = 5
    verify: bool = True
    max_body: Annotated[int, Meta(ge=0, le=64 * 1024 * 1024)] = 1024 * 1024


class TcpSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="tcp"):
    """Open one TCP connection, racing the host's addresses (RFC 8305)."""

    host: HostName
    port: Port
    timeout_ms: TimeoutMs = 5000
    family: Family = "any"


class PingExpect(Leaf, frozen=True, kw_only=True):
    """What a ping must stay below to be `ok`."""

    loss_pct_max: Annotated[float, Meta(ge=0, le=100)] | None = None
    avg_ms_max: PositiveMs | None = None
    p95_ms_max: PositiveMs | None = None
    jitter_ms_max: PositiveMs | None = None


class PingSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="ping"):
    """Send echo requests to one host, or what `method` names.

    `interval_ms` absent: 1000 / rate_limit_per_sec. `size` is the ICMP payload in bytes. `df`
    forbids fragments. `source`, `interface` and `mark` (fwmark) choose the way out. `addresses`:
    the host's first one, or every one. `port` is for methods tcp and udp.
    """

    host: HostName
    count: Annotated[int, Meta(ge=1, le=100_000)] = 4
    interval_ms: Annotated[int, Meta(ge=0, le=60_000)] | None = None
    timeout_ms: TimeoutMs = 1000
    rate_limit_per_sec: Annotated[int, Meta(ge=1, le=100_000)] = 10
    size: Annotated[int, Meta(ge=16, le=65_507)] = 56
    ttl: Ttl = 64
    dscp: Annotated[int, Meta(ge=0, le=63)] = 0
    df: bool = False
    family: Family = "any"
    source: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    interface: Annotated[str, Meta(min_length=1, max_length=15)] | None = None
    mark: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    addresses: Literal["first", "all"] = "first"
    method: Literal["icmp", "tcp", "udp"] = "icmp"
    port: Port | None = None
    expect: PingExpect | None = None


class TraceSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="trace"):
    """Find the routers on the way to one host by stepping the TTL; all TTLs are in flight at once.

    A hop is asked again, up to `probes_per_hop` times, while it owes an answer; with `all_probes`
    it gets that many whether it answers or not, `interval_ms` apart. `gap_limit` ends the path
    after that many silent hops in a row. `port` is the destination's, for methods udp (33434) and
    tcp (80). `size` is the payload of methods icmp and udp in bytes. `multipath` finds every path
    that routers balance load over, with `confidence` in percent that none is missed. `pmtud` finds
    the path's MTU too. `source`, `interface` and `mark` (fwmark) choose the way out.
    """

    host: HostName
    max_hops: Ttl = 30
    first_hop: Ttl = 1
    probes_per_hop: Annotated[int, Meta(ge=1, le=100)] = 3
    timeout_ms: TimeoutMs = 1500
    gap_limit: Annotated[int, Meta(ge=1, le=255)] = 5
    family: Family = "any"
    method: Literal["icmp", "udp", "tcp"] = "icmp"
    port: Port | None = None
    size: Annotated[int, Meta(ge=18, le=65_507)] = 20
    dscp: Annotated[int, Meta(ge=0, le=63)] = 0
    all_probes: bool = False
    interval_ms: Annotated[int, Meta(ge=0, le=60_000)] = 100
    multipath: Literal["none", "mda"] = "none"
    confidence: Annotated[float, Meta(ge=50, le=99.9)] = 95
    pmtud: bool = False
    source: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    interface: Annotated[str, Meta(min_length=1, max_length=15)] | None = None
    mark: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None


TaskSpec = DnsSpec | HttpSpec | TcpSpec | PingSpec | TraceSpec

SPEC_TYPES: dict[TaskKind, type[TaskSpec]] = {
    TaskKind.DNS: DnsSpec,
    TaskKind.HTTP: HttpSpec,
    TaskKind.TCP: TcpSpec,
    TaskKind.PING: PingSpec,
    TaskKind.TRACE: TraceSpec,
}

# The field of each spec that a check's `targets` fill.
TARGET_FIELDS: dict[TaskKind, str] = {
    TaskKind.DNS: "query",
    TaskKind.HTTP: "url",
    TaskKind.TCP: "host",
    TaskKind.PING: "host",
    TaskKind.TRACE: "host",
}


# ── results: what was seen ───────────────────────────────────────────────────────────────────────


class Outcome(StrEnum):
    """How one task ended. A target that is down is a `target_error`: a successful measurement."""

    OK = "ok"
    TARGET_ERROR = "target_error"
    AGENT_ERROR = "agent_error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why a probe or a task failed (measurement methods, rule 4)."""

    TIMEOUT = "timeout"
    UNREACHABLE_NET = "unreachable_net"
    UNREACHABLE_HOST = "unreachable_host"
    UNREACHABLE_PORT = "unreachable_port"
    FILTERED = "filtered"
    TTL_EXCEEDED = "ttl_exceeded"
    REFUSED = "refused"
    RESET = "reset"
    NO_ROUTE = "no_route"
    RESOLVE_FAILED = "resolve_failed"
    TLS_FAILED = "tls_failed"
    PROTOCOL_ERROR = "protocol_error"
    MISMATCH = "mismatch"
    DENIED = "denied"
    TX_ERROR = "tx_error"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class FailureSource(StrEnum):
    """Whose failure it was."""

    TARGET = "target"
    PATH = "path"
    RESOLVER = "resolver"
    SELF = "self"
    POLICY = "policy"


class Failure(Struct, frozen=True, kw_only=True):
    """Why a result is not `ok`."""

    reason: str
    failure_source: str
    message: str


class Observation(Struct, frozen=True, omit_defaults=True):
    """One thing that was seen: a name of the vocabulary and a JSON value."""

    name: str
    value: Any
    unit: str | None = None


class Measurement(Struct, frozen=True, kw_only=True):
    """What one run of a prober produced. `started_at_ns` is the wall clock, the rest monotonic.

    `env` is how it was measured: version, clock, policy_version, source.
    """

    outcome: Outcome
    started_at_ns: int
    duration_ns: int
    observations: tuple[Observation, ...]
    error: Failure | None = None
    env: dict[str, Any] = {}


# ── register ─────────────────────────────────────────────────────────────────────────────────────


class RegisterRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Introduce an agent; all but `hostname` is unknown to an original control plane."""

    hostname: str | None = None
    agent_key: str | None = None
    enrolment_token: str | None = None
    version: str | None = None
    boot_id: str | None = None
    instance_id: str | None = None
    capacities: dict[str, int] = {}
    inventory: dict[str, Any] = {}


class RegisterResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The agent's identity and the server's terms; `agent_id` 0 is refused by the client."""

    agent_id: int
    lease_duration_ms: int
    heartbeat_timeout_ms: int
    auth_token: str
    server_time_ms: int | None = None
    heartbeat_interval_ms: int | None = None
    claim_wait_ms: int | None = None
    extend_fraction: float | None = None
    limits: dict[str, int] = {}
    config_revision: str | int | None = None
    token_expires_at: str | None = None


# ── heartbeat ────────────────────────────────────────────────────────────────────────────────────


ShortText = Annotated[str, Meta(max_length=64)]


class ConfigStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent has made of the last signed configuration it was given.

    `applied` is the revision in force, `revision` the one that `status` (ack or nack) is about; a
    nack has its `reason` and what it says to people. `stale`: the one in force has expired.
    `clamped` names values above this host's ceiling, and what became of them.
    """

    applied: Annotated[int, Meta(ge=0, le=MINTED_ID_MAX)] | None = None
    status: Annotated[str, Meta(max_length=16)] | None = None
    revision: Annotated[int, Meta(ge=0, le=MINTED_ID_MAX)] | None = None
    reason: ShortText | None = None
    error: Annotated[str, Meta(max_length=1024)] | None = None
    stale: bool = False
    clamped: Annotated[
        tuple[
            Annotated[dict[ShortText, Annotated[str, Meta(max_length=256)]], Meta(max_length=8)],
            ...,
        ],
        Meta(max_length=64),
    ] = ()


class CommandType(StrEnum):
    """What a control plane may order an agent to do; agents ignore what they do not know."""

    DRAIN = "drain"
    RESUME = "resume"
    REFRESH_CONFIG = "refresh_config"


class AgentCommand(Struct, frozen=True, kw_only=True):
    """One order; it comes with every heartbeat's answer until the agent names it as done."""

    id: int
    type: str


class HeartbeatRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say that the agent lives, what it holds and how it feels.

    `done_commands` are ids of commands that it has carried out.
    """

    agent_id: int
    instance_id: str | None = None
    seq: int | None = None
    state: str | None = None
    active_leases: dict[str, Any] = {}
    health: dict[str, Any] = {}
    config: ConfigStatus | None = None
    done_commands: tuple[int, ...] = ()


class HeartbeatResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When the next heartbeat is due, what to do, and leases held that should not be."""

    agent_id: int | None = None
    next_deadline_ms: int = 0
    heartbeat_interval_ms: int | None = None
    server_time_ms: int | None = None
    config_revision: str | int | None = None
    revoked_leases: tuple[int, ...] = ()
    unknown_leases: tuple[int, ...] = ()
    commands: tuple[AgentCommand, ...] = ()


# ── claim ────────────────────────────────────────────────────────────────────────────────────────


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


# ── extend, release ──────────────────────────────────────────────────────────────────────────────


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


# ── report ───────────────────────────────────────────────────────────────────────────────────────


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


# ── metrics, configuration, errors ───────────────────────────────────────────────────────────────


class MetricSample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One counter's or gauge's value."""

    name: str
    value: float
    unit: str | None = None
    labels: dict[str, str] = {}


class MetricHistogram(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often values fell below each of `bounds`, which ascend, and above the last; not summed.

    `counts` has one number more than `bounds`; like `sum` and `count` they are cumulative.
    """

    name: str
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    count: int
    unit: str | None = None
    labels: dict[str, str] = {}


class MetricsEnvelope(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent's counters (cumulative), gauges and histograms at one instant.

    `instance_id` and `seq` name it, so that it can be sent again; counters count from `start_time`.
    An original agent names none of them.
    """

    agent_id: int
    timestamp: str
    counters: tuple[MetricSample, ...] = ()
    gauges: tuple[MetricSample, ...] = ()
    histograms: tuple[MetricHistogram, ...] = ()
    instance_id: str | None = None
    seq: int | None = None
    start_time: str | None = None


class MetricRejection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sample that was not taken, by its place in the envelope, and why."""

    path: str
    error: str
    message: str = ""


class MetricsResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an envelope; `rejected` names the first of `rejected_total`."""

    accepted: bool
    id: str = ""
    stored: int | None = None
    rejected: tuple[MetricRejection, ...] = ()
    rejected_total: int = 0
    superseded: bool = False


class AgentConfigEnvelope(Struct, frozen=True, kw_only=True):
    """A configuration revision as an original control plane serves it; nobody verified it."""

    revision: str
    issued_at: str
    expires_at: str
    config: dict[str, Any]
    signature: str


class ErrorEnvelope(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every answer that is not a success."""

    error: str
    message: str
    retryable: bool | None = None
    details: dict[str, Any] | None = None
    request_id: str | None = None
    retry_after_ms: int | None = None
