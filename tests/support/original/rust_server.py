"""The original's Rust reference server: relative deadlines, quotas below real traffic, no sweeper.

Agents, tasks and leases are in its database and outlive `restart`; the buckets of its quotas do
not. A task stays leased until its result comes, if one ever does; observations are thrown away.
"""

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta, Struct

from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.control_plane.transport import Headers
from support.original.answers import JSON, TEXT, date
from support.original.messages import U64, U64_MAX, Kind

LEASE_MS = 60_000
HEARTBEAT_TIMEOUT_MS = 45_000
BODY_MAX_BYTES = 2 << 20
PREFIXES = ("", "/v1/agents")
# Requests per period in s, and how many may come at once.
QUOTAS: Mapping[str, tuple[int, int, int]] = {
    "register": (1, 600, 1),
    "heartbeat": (6, 60, 3),
    "claim": (12, 60, 6),
    "extend": (30, 60, 10),
    "report": (12, 60, 6),
    "metrics": (60, 60, 10),
    "config": (6, 3600, 2),
}


class _Register(Struct):
    hostname: str | None = None


class _Heartbeat(Struct):
    agent_id: U64


class _Claim(Struct):
    agent_id: U64
    capacities: dict[Kind, U64]


class _Extend(Struct):
    agent_id: U64
    lease_ids: list[U64]
    extend_by_ms: U64


class _Observation(Struct):
    name: str
    value: msgspec.Raw
    unit: str | None = None


class _LeaseReport(Struct):
    lease_id: U64
    observations: list[_Observation] = []


class _Report(Struct):
    agent_id: U64
    completed: list[_LeaseReport]
    cancelled: list[_LeaseReport]


class _Sample(Struct):
    name: str
    value: float
    unit: str | None = None


class _Metrics(Struct):
    agent_id: U64
    timestamp: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d")]
    counters: list[_Sample] = []
    gauges: list[_Sample] = []


_BODIES: Mapping[str, type[Struct]] = {
    "register": _Register,
    "heartbeat": _Heartbeat,
    "claim": _Claim,
    "extend": _Extend,
    "report": _Report,
    "metrics": _Metrics,
}


class _Refusal(Exception):
    def __init__(self, response: TransportResponse) -> None:
        super().__init__(response.status)
        self.response = response


@dataclass(slots=True)
class Agent:
    """A row of its agents."""

    hostname: str
    token: str
    is_revoked: bool = False


@dataclass(slots=True)
class Task:
    """A row of its tasks. Its status never leaves `leased`: nobody updates it."""

    task_id: int
    kind: str
    spec: dict[str, Any]
    status: str = "queued"


@dataclass(slots=True)
class Lease:
    """A row of its leases: `leased`, then `completed` or `cancelled`."""

    lease_id: int
    task_id: int
    agent_id: int
    until_ns: int
    status: str = "leased"
    reports: int = 0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_ns: int


@dataclass
class Limited:
    """A 429 that was sent: until when its caller was asked to wait, 0 if not at all."""

    key: str
    until_ns: int
    disobeyed: int = 0


@dataclass
class RustServer:
    """Answers requests over any transport. `config` is what is served at `/config`, if anything.

    While `is_database_down` every authentication fails with 500. `limited` tells every 429 and how
    often it was not obeyed.
    """

    clock: Clock
    rng: Random = field(default_factory=lambda: Random(1))
    quotas: Mapping[str, tuple[int, int, int]] = field(default_factory=lambda: QUOTAS)
    config: dict[str, Any] | None = None
    is_database_down: bool = False
    agents: dict[int, Agent] = field(default_factory=dict)
    tasks: dict[int, Task] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    limited: list[Limited] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    _queued: dict[str, dict[int, Task]] = field(default_factory=dict)
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _ids: Counter[str] = field(default_factory=Counter)

    # ── what its operator does ──

    def enqueue(self, kind: str, spec: Mapping[str, Any]) -> int:
        """Queue a task; return its id."""
        task = Task(self._next("task"), kind, {"kind": kind, **spec})
        self.tasks[task.task_id] = task
        self._queued.setdefault(kind, {})[task.task_id] = task
        return task.task_id

    def restart(self, *, is_wiped: bool = False) -> None:
        """Forget what is in memory only; is_wiped: the database too."""
        self._buckets.clear()
        if is_wiped:
            for table in (self.agents, self.tasks, self.leases, self._queued):
                table.clear()
            self._ids.clear()

    def open_leases(self) -> set[int]:
        """Return the leases that have no result."""
        return {lease.lease_id for lease in self.leases.values() if lease.status == "leased"}

    # ── requests ──

    async def __call__(self, request: TransportRequest) -> TransportResponse:
        """Answer one request."""
        try:
            return self._dated(self._answer(request))
        except _Refusal as refusal:
            return self._dated(refusal.response)

    def _answer(self, request: TransportRequest) -> TransportResponse:
        prefix, _, verb = request.path.partition("?")[0].rpartition("/")
        if prefix not in PREFIXES or verb not in QUOTAS:
            return TransportResponse(404, {}, b"")
        method = "GET" if verb == "config" else "POST"
        if request.method != method:
            return TransportResponse(405, {"Allow": method}, b"")
        self.requests[verb] += 1
        headers = Headers(request.headers)
        if verb == "register":
            body = _body(verb, headers, request.body)
            self._spend(verb, f"register:{body.hostname or 'unknown'}")
            if self.is_database_down:
                _refuse(500, "ERR_BACKEND", "database operation failed", retryable=True)
            return self._register(body)
        agent_id = self._authenticate(headers)
        self._spend(verb, f"{verb}:{agent_id}")
        if verb == "config":
            return self._config(headers)
        body = _body(verb, headers, request.body)
        if verb == "metrics":
            accepted = {"accepted": True, "id": str(uuid.UUID(int=self.rng.getrandbits(128)))}
            return _json(accepted, 202)
        if body.agent_id != agent_id:
            _refuse(403, "ERR_FORBIDDEN", "agent identifier mismatch")
        answer: TransportResponse = getattr(self, f"_{verb}")(body)
        return answer

    def _authenticate(self, headers: Headers) -> int:
        for name in ("X-Agent-Id", "X-Agent-Token"):
            if name not in headers:
                _refuse(401, "ERR_UNAUTHORIZED", f"missing {name} header")
        text = headers["X-Agent-Id"]
        if not text.isascii() or not text.isdecimal() or int(text) > U64_MAX:
            _refuse(400, "ERR_VALIDATION", "X-Agent-Id must be a valid integer")
        if self.is_database_down:
            _refuse(500, "ERR_BACKEND", "authentication backend failure", retryable=True)
        agent = self.agents.get(int(text))
        if agent is None:
            _refuse(401, "ERR_UNAUTHORIZED", "agent credentials are unknown")
        if agent.token != headers["X-Agent-Token"]:
            _refuse(401, "ERR_UNAUTHORIZED", "invalid credentials")
        if agent.is_revoked:
            _refuse(403, "ERR_FORBIDDEN", "agent has been revoked")
        return int(text)

    def _spend(self, verb: str, key: str) -> None:
        """Take a token of a bucket, or refuse; the wait is cut to whole seconds."""
        capacity, period_s, burst = self.quotas[verb]
        now_ns = self.clock.boottime_ns()
        for earlier in self.limited:
            if earlier.key == key and now_ns < earlier.until_ns:
                earlier.disobeyed += 1
        bucket = self._buckets.setdefault(key, _Bucket(burst, now_ns))
        refilled = capacity / period_s * (now_ns - bucket.filled_ns) / NS_PER_S
        bucket.tokens = min(bucket.tokens + refilled, burst)
        bucket.filled_ns = now_ns
        if bucket.tokens + 1e-9 >= 1:
            bucket.tokens = max(bucket.tokens - 1, 0)
            return
        after_s = int((1 - bucket.tokens) * period_s / capacity)
        self.limited.append(Limited(key, now_ns + after_s * NS_PER_S))
        refusal = _problem("ERR_RATE_LIMITED", f"rate limit exceeded for {verb}", retryable=True)
        raise _Refusal(_json(refusal, 429, {"Retry-After": str(after_s)}))

    # ── the calls ──

    def _register(self, body: Any) -> TransportResponse:
        hostname = body.hostname or "control-plane"  # its own name
        known = [key for key, agent in self.agents.items() if agent.hostname == hostname]
        agent_id = known[0] if known else self._next("agent")
        token = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        self.agents[agent_id] = Agent(hostname, token)  # the old token is dead at once
        return _json(
            {
                "agent_id": agent_id,
                "lease_duration_ms": LEASE_MS,
                "heartbeat_timeout_ms": HEARTBEAT_TIMEOUT_MS,
                "auth_token": token,
            }
        )

    def _heartbeat(self, body: Any) -> TransportResponse:
        return _json({"agent_id": body.agent_id, "next_deadline_ms": HEARTBEAT_TIMEOUT_MS})

    def _claim(self, body: Any) -> TransportResponse:
        """Lease the oldest tasks of each kind; the kinds come in no order."""
        wanted = list(body.capacities.items())
        self.rng.shuffle(wanted)
        leases = []
        for kind, capacity in wanted:
            queued = self._queued.setdefault(kind, {})
            for task in list(queued.values())[:capacity]:
                del queued[task.task_id]
                task.status = "leased"
                lease = Lease(
                    self._next("lease"), task.task_id, body.agent_id, self._in_ns(LEASE_MS)
                )
                self.leases[lease.lease_id] = lease
                leases.append(
                    {
                        "lease_id": lease.lease_id,
                        "task_id": task.task_id,
                        "kind": kind,
                        "lease_until_ms": LEASE_MS,
                        "spec": task.spec,
                    }
                )
        return _json({"leases": leases})

    def _extend(self, body: Any) -> TransportResponse:
        """Set deadlines, sooner ones too, and say by how much was asked."""
        outcomes, revoked = [], []
        for lease_id in body.lease_ids:
            lease = self._lease(lease_id, body.agent_id)
            if lease is None or lease.status != "leased":
                revoked.append(lease_id)
                continue
            lease.until_ns = self._in_ns(body.extend_by_ms)
            outcomes.append({"lease_id": lease_id, "new_deadline_ms": body.extend_by_ms})
        return _json({"outcomes": outcomes, "revoked": revoked})

    def _report(self, body: Any) -> TransportResponse:
        """Note how leases ended; one that has ended already counts again."""
        acknowledged = 0
        for items, status in ((body.completed, "completed"), (body.cancelled, "cancelled")):
            for item in items:
                lease = self._lease(item.lease_id, body.agent_id)
                if lease is not None:
                    lease.status = status
                    lease.reports += 1
                    acknowledged += 1
        return _json({"acknowledged": acknowledged})

    def _config(self, headers: Headers) -> TransportResponse:
        if self.config is None:
            _refuse(404, "ERR_NOT_FOUND", "configuration bundle not found", retryable=True)
        revision = self.config["revision"]
        if headers.get("If-None-Match", "").strip('"') == revision:
            return TransportResponse(304, {}, b"")
        return _json(self.config, 200, {"ETag": revision})

    # ── rows ──

    def _lease(self, lease_id: int, agent_id: int) -> Lease | None:
        lease = self.leases.get(lease_id)
        return lease if lease is not None and lease.agent_id == agent_id else None

    def _next(self, name: str) -> int:
        self._ids[name] += 1
        return self._ids[name]

    def _in_ns(self, after_ms: int) -> int:
        return self.clock.realtime_ns() + after_ms * NS_PER_MS

    def _dated(self, response: TransportResponse) -> TransportResponse:
        headers = {**response.headers, "date": date(self.clock)}
        return TransportResponse(response.status, headers, response.body)


def _body(verb: str, headers: Headers, body: bytes) -> Any:
    """Read a request's body; what is wrong with it is said in plain text."""
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        _refuse_text(415, "Expected request with `Content-Type: application/json`")
    if len(body) > BODY_MAX_BYTES:
        _refuse_text(413, "Failed to buffer the request body: length limit exceeded")
    try:
        return msgspec.json.decode(body, type=_BODIES[verb])
    except msgspec.ValidationError as error:
        _refuse_text(422, f"Failed to deserialize the JSON body into the target type: {error}")
    except msgspec.DecodeError as error:
        _refuse_text(400, f"Failed to parse the request body as JSON: {error}")


def _problem(code: str, message: str, *, retryable: bool) -> dict[str, Any]:
    return {"error": code, "message": message, "retryable": retryable}


def _refuse(status: int, code: str, message: str, *, retryable: bool = False) -> NoReturn:
    raise _Refusal(_json(_problem(code, message, retryable=retryable), status))


def _refuse_text(status: int, message: str) -> NoReturn:
    raise _Refusal(TransportResponse(status, {"Content-Type": TEXT}, message.encode()))


def _json(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> TransportResponse:
    body = msgspec.json.encode(value)
    return TransportResponse(status, {"Content-Type": JSON, **(headers or {})}, body)
