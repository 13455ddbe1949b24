"""The original's Go server: absolute deadlines, JSON sent as text, long claims, endless retries.

Everything is in its database and its stream and outlives `restart`, which only breaks the claims
that are held. `retry_forever` is its own loop, which takes expired leases back.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, NoReturn

from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.control_plane.transport import Headers
from support.original.answers import TEXT, date
from support.original.messages import U64_MAX

PREFIX = "/v1/agents/"
LEASE_NS = 90 * NS_PER_S
CLAIM_BLOCK_NS = 20 * NS_PER_S  # also what it calls the heartbeat's timeout
HANDLER_NS = 25 * NS_PER_S
RETRY_EVERY_NS = 3 * NS_PER_S
RETRY_BACKOFF_NS = 5 * NS_PER_S
MAX_PARALLEL = 4
ID_MAX = U64_MAX


class _Refusal(Exception):
    def __init__(self, response: TransportResponse) -> None:
        super().__init__(response.status)
        self.response = response


@dataclass(slots=True)
class Agent:
    """A row of its agents; a name may have many."""

    agent_id: int
    name: str
    token: str
    max_parallel: int = MAX_PARALLEL
    seen_ns: int = 0


@dataclass(slots=True)
class Message:
    """An entry of the stream of tasks; `locked_until_ns` is the lock of whoever leased it."""

    message_id: int
    task_id: int
    kind: str
    spec: dict[str, Any]
    locked_until_ns: int = 0


@dataclass(slots=True)
class Lease:
    """A row of its leases; the row goes when a result comes."""

    lease_id: int
    agent_id: int
    message: Message
    until_ns: int


@dataclass(frozen=True, slots=True)
class Result:
    """A row of its results; `ok` for whatever was completed."""

    task_id: int
    lease_id: int
    status: str
    observations: list[Any]


@dataclass
class GoServer:
    """Answers requests over any transport."""

    clock: Clock
    rng: Random = field(default_factory=lambda: Random(1))
    agents: dict[int, Agent] = field(default_factory=dict)
    stream: dict[int, Message] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    requeued: Counter[int] = field(default_factory=Counter)
    _ids: Counter[str] = field(default_factory=Counter)
    _added: asyncio.Event = field(default_factory=asyncio.Event)

    # ── what its operator does, and what it does by itself ──

    def enqueue(self, kind: str, spec: Mapping[str, Any]) -> int:
        """Add a task to the stream; return its id, the first 64 bits of a random UUID."""
        task_id = self.rng.getrandbits(64)
        self._add(task_id, kind, {"kind": kind, **spec})
        return task_id

    def restart(self, *, is_wiped: bool = False) -> None:
        """Begin anew over the database; is_wiped: over an empty one."""
        if is_wiped:
            for table in (self.agents, self.stream, self.leases):
                table.clear()

    async def retry_forever(self) -> None:
        """Put the tasks of expired leases back into the stream, one every five seconds."""
        while True:
            await self.clock.sleep(RETRY_EVERY_NS)
            now_ns = self.clock.realtime_ns()
            for lease in [one for one in self.leases.values() if one.until_ns < now_ns]:
                await self._retry(lease)

    async def _retry(self, lease: Lease) -> None:
        now_ns = self.clock.realtime_ns()
        if lease.lease_id not in self.leases or lease.until_ns > now_ns:
            return
        await self.clock.sleep(RETRY_BACKOFF_NS)
        message = lease.message
        self._add(message.task_id, message.kind, message.spec)  # as if it were its first time
        self.requeued[message.task_id] += 1
        if lease.until_ns < self.clock.realtime_ns():
            self.leases.pop(lease.lease_id, None)
        self.stream.pop(message.message_id, None)

    def _add(self, task_id: int, kind: str, spec: dict[str, Any]) -> None:
        message = Message(self._next("message"), task_id, kind, spec)
        self.stream[message.message_id] = message
        self._added.set()
        self._added = asyncio.Event()

    # ── requests ──

    async def __call__(self, request: TransportRequest) -> TransportResponse:
        """Answer one request, within 25 s."""
        answering = asyncio.get_running_loop().create_task(self._guarded(request))
        done = asyncio.Event()
        answering.add_done_callback(lambda _: done.set())
        try:
            is_in_time = await self.clock.wait(done, HANDLER_NS)
        finally:
            answering.cancel()  # nothing that it has done so far is taken back
        response = answering.result() if is_in_time else _text(503, '{"error":"timeout"}')
        self.statuses[response.status] += 1
        headers = {**response.headers, "Date": date(self.clock)}
        return TransportResponse(response.status, headers, response.body)

    async def _guarded(self, request: TransportRequest) -> TransportResponse:
        try:
            return await self._answer(request)
        except _Refusal as refusal:
            return refusal.response

    async def _answer(self, request: TransportRequest) -> TransportResponse:
        path = request.path.partition("?")[0]
        verb = path.removeprefix(PREFIX)
        if request.method == "GET" and path.startswith(PREFIX) and "/" not in verb:
            _refuse(400, "bad agent id")  # /config is an agent's name to it
        if verb == path or verb not in ("register", "heartbeat", "claim", "extend", "report"):
            _refuse(404, "404 page not found")
        if request.method != "POST":
            return TransportResponse(405, {"Allow": "POST"}, b"")
        self.requests[verb] += 1
        if verb == "register":
            return self._register(_body(request.body))
        agent = self._authenticate(Headers(request.headers))
        body = self._own_body(agent, request.body, is_lenient=verb == "heartbeat")
        if verb == "claim":
            return await self._claim(agent, body)
        answer: TransportResponse = getattr(self, f"_{verb}")(agent, body)
        return answer

    def _authenticate(self, headers: Headers) -> Agent:
        text = headers.get("X-Agent-Id", "").strip()
        token = headers.get("X-Agent-Token", "").strip()
        if not text or not token:
            _refuse(401, "missing agent auth")
        if not text.isascii() or not text.isdecimal() or int(text) > ID_MAX:
            _refuse(401, "bad agent id")
        agent = self.agents.get(int(text))
        if agent is None:
            _refuse(401, "agent not found")
        if agent.token != token:
            _refuse(401, "invalid token")
        return agent

    def _own_body(self, agent: Agent, raw: bytes, *, is_lenient: bool) -> dict[str, Any]:
        try:
            body = _body(raw)
        except _Refusal:
            if not is_lenient:
                raise
            body = {}
        if body.get("agent_id", 0) not in (0, agent.agent_id):
            _refuse(401, "agent mismatch")
        return body

    # ── the calls ──

    def _register(self, body: dict[str, Any]) -> TransportResponse:
        """Make a new agent, whoever asks."""
        name = (body.get("hostname") or "").strip()
        name = name or f"agent-{self.rng.getrandbits(32):08x}"
        token = f"{self.rng.getrandbits(256):064x}"
        limit = body.get("max_parallel") or MAX_PARALLEL
        agent = Agent(self._next("agent"), name, token, limit, self.clock.realtime_ns())
        self.agents[agent.agent_id] = agent
        return _json(
            {
                "agent_id": agent.agent_id,
                "auth_token": token,
                "lease_duration_ms": LEASE_NS // NS_PER_MS,
                "heartbeat_timeout_ms": CLAIM_BLOCK_NS // NS_PER_MS,
            }
        )

    def _heartbeat(self, agent: Agent, _: dict[str, Any]) -> TransportResponse:
        agent.seen_ns = self.clock.realtime_ns()
        deadline_ms = (agent.seen_ns + CLAIM_BLOCK_NS) // NS_PER_MS
        return _json({"agent_id": agent.agent_id, "next_deadline_ms": deadline_ms})

    async def _claim(self, agent: Agent, body: dict[str, Any]) -> TransportResponse:
        """Lease whatever there is, of any kind, up to the sum of the capacities; 0 is no bound.

        Whoever asked for more than there is waits 20 s for new messages, again after each one.
        """
        now_ns = self.clock.realtime_ns()
        active = sum(
            lease.agent_id == agent.agent_id and lease.until_ns > now_ns
            for lease in self.leases.values()
        )
        room = agent.max_parallel - active
        asked = sum(max(count, 0) for count in (body.get("capacities") or {}).values())
        wanted = room if asked == 0 else min(asked, room)
        if wanted <= 0:
            return TransportResponse(204, {}, b"")
        granted: list[Lease] = []
        self._lease_from(agent, list(self.stream.values()), wanted, granted)
        while len(granted) < wanted:
            last_id = self._ids["message"]
            if not await self.clock.wait(self._added, CLAIM_BLOCK_NS):
                break
            new = [each for each in self.stream.values() if each.message_id > last_id]
            self._lease_from(agent, new, wanted, granted)
        if not granted:
            return TransportResponse(204, {}, b"")
        return _json({"leases": [_granted(lease) for lease in granted]})

    def _lease_from(
        self, agent: Agent, messages: list[Message], wanted: int, granted: list[Lease]
    ) -> None:
        now_ns = self.clock.realtime_ns()
        for message in messages:
            if len(granted) >= wanted:
                return
            if message.locked_until_ns > now_ns:
                continue
            message.locked_until_ns = now_ns + LEASE_NS
            lease = Lease(self._next("lease"), agent.agent_id, message, now_ns + LEASE_NS)
            self.leases[lease.lease_id] = lease
            granted.append(lease)

    def _extend(self, agent: Agent, body: dict[str, Any]) -> TransportResponse:
        """Add to what is left; a lease that is not there is not mentioned."""
        if not body.get("lease_ids"):
            _refuse(400, "no leases to extend")
        if not body.get("extend_by_ms"):
            _refuse(400, "invalid extend")
        outcomes = []
        for lease_id in body["lease_ids"]:
            lease = self._lease(lease_id, agent)
            if lease is not None:
                left_from_ns = max(lease.until_ns, self.clock.realtime_ns())
                lease.until_ns = left_from_ns + body["extend_by_ms"] * NS_PER_MS
                lease.message.locked_until_ns = lease.until_ns
                outcomes.append(
                    {"lease_id": lease_id, "new_deadline_ms": lease.until_ns // NS_PER_MS}
                )
        return _json({"outcomes": outcomes})

    def _report(self, agent: Agent, body: dict[str, Any]) -> TransportResponse:
        """Store results and end their leases and tasks, cancelled ones too."""
        completed, cancelled = body.get("completed") or [], body.get("cancelled") or []
        if not completed and not cancelled:
            _refuse(400, "empty report")
        acknowledged = 0
        for items, status in ((completed, "ok"), (cancelled, "cancelled")):
            for item in items:
                lease = self._lease(item["lease_id"], agent)
                if lease is None:
                    continue
                self.results.append(
                    Result(
                        lease.message.task_id,
                        lease.lease_id,
                        status,
                        item.get("observations") or [],
                    )
                )
                del self.leases[lease.lease_id]
                lease.message.locked_until_ns = 0
                self.stream.pop(lease.message.message_id, None)
                acknowledged += 1
        return _json({"acknowledged": acknowledged})

    # ── rows ──

    def _lease(self, lease_id: int, agent: Agent) -> Lease | None:
        lease = self.leases.get(lease_id)
        return lease if lease is not None and lease.agent_id == agent.agent_id else None

    def _next(self, name: str) -> int:
        self._ids[name] += 1
        return self._ids[name]


def _granted(lease: Lease) -> dict[str, Any]:
    return {
        "lease_id": lease.lease_id,
        "task_id": lease.message.task_id,
        "kind": lease.message.kind,
        "lease_until_ms": lease.until_ns // NS_PER_MS,
        "spec": lease.message.spec,
    }


def _body(raw: bytes) -> dict[str, Any]:
    """Read a request's body. Go would refuse some types that nobody sends."""
    try:
        body = json.loads(raw)
    except ValueError:
        _refuse(400, "bad json")
    if not isinstance(body, dict):
        _refuse(400, "bad json")
    return body


def _refuse(status: int, message: str) -> NoReturn:
    headers = {"Content-Type": TEXT, "X-Content-Type-Options": "nosniff"}
    raise _Refusal(TransportResponse(status, headers, f"{message}\n".encode()))


def _text(status: int, body: str) -> TransportResponse:
    return TransportResponse(status, {"Content-Type": TEXT}, body.encode())


def _json(value: Any) -> TransportResponse:
    """Send JSON as Go does when nobody says what it is: as text, ended by a newline."""
    return _text(200, json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n")
