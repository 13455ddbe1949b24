"""Scripted control planes for the memory transport: ours in shape, and both original ones.

They answer in the shapes their originals answer in, quirks included, and keep just enough state for
that; nothing here decides like a real server.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane.transport import Headers, TransportRequest, TransportResponse
from netsonde.wire import NDJSON, encode, parse

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}
V1 = JSON | {"Netsonde-Protocol": "1"}

Answer = tuple[int, Any]


def lease(lease_id: int, **changes: Any) -> dict[str, Any]:
    base = {
        "lease_id": lease_id,
        "task_id": lease_id + 1000,
        "kind": "ping",
        "lease_until_ms": 45_000,
        "spec": {"kind": "ping", "host": "192.0.2.1"},
    }
    return base | changes


@dataclass
class ScriptedControlPlane:
    """Routes verbs to methods, counts them and checks tokens.

    `answers` override a verb: each call of it takes the next one, a status and a body.
    """

    clock: Clock
    prefixes: tuple[str, ...] = ("/v1/agents",)
    headers: Mapping[str, str] = field(default_factory=lambda: V1)
    leases: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    bodies: dict[str, list[Any]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    registrations: int = 0

    async def __call__(self, request: TransportRequest) -> TransportResponse:
        prefix, _, verb = request.path.rpartition("/")
        if prefix not in self.prefixes:
            return self._answer((404, b"404 page not found"))
        if Headers(request.headers).get("Content-Type") == NDJSON:
            return self._answer(self.streamless())
        self.bodies.setdefault(verb, []).append(parse(request.body))
        scripted = self.answers.get(verb)
        if scripted:
            return self._answer(scripted.pop(0))
        if verb != "register":
            headers = Headers(request.headers)
            if headers.get("X-Agent-Token") not in self.tokens:
                return self._answer(self.refusal())
        method: Callable[[Any], Awaitable[Answer]] | None = getattr(self, verb, None)
        if method is None:
            return self._answer((404, b"404 page not found"))
        return self._answer(await method(self.bodies[verb][-1]))

    def calls(self, verb: str) -> int:
        return len(self.bodies.get(verb, ()))

    def forget_tokens(self) -> None:
        self.tokens.clear()

    def refusal(self) -> Answer:
        return 401, {"error": "ERR_UNAUTHORIZED", "message": "wrong token", "retryable": False}

    def streamless(self) -> Answer:
        return 415, {"error": "ERR_MEDIA_TYPE", "message": "no streams", "retryable": False}

    async def register(self, _: Any) -> Answer:
        self.registrations += 1
        token = f"token-{self.registrations}"
        self.tokens = {token}
        return 200, {
            "agent_id": 7,
            "lease_duration_ms": 60_000,
            "heartbeat_timeout_ms": 45_000,
            "auth_token": token,
        }

    async def heartbeat(self, _: Any) -> Answer:
        return 200, {"agent_id": 7, "next_deadline_ms": 45_000}

    async def claim(self, body: Any) -> Answer:
        granted, self.leases = self.leases, []
        return 200, {"leases": granted, "claim_id": body.get("claim_id"), "held_ms": 0}

    async def extend(self, body: Any) -> Answer:
        outcomes = [
            {"lease_id": lease_id, "new_deadline_ms": body["extend_by_ms"]}
            for lease_id in body["lease_ids"]
        ]
        return 200, {"outcomes": outcomes, "revoked": []}

    async def release(self, body: Any) -> Answer:
        return 200, {"released": len(body.get("lease_ids", ()))}

    async def report(self, body: Any) -> Answer:
        items = body["completed"] + body["cancelled"]
        results = [{"lease_id": item["lease_id"], "status": "accepted"} for item in items]
        return 200, {"acknowledged": len(items), "results": results}

    def _answer(self, answer: Answer) -> TransportResponse:
        status, body = answer
        headers = dict(self.headers)
        if isinstance(body, bytes):
            headers |= TEXT
        else:
            body = encode(body)
        return TransportResponse(status, headers, body)


@dataclass
class RustControlPlane(ScriptedControlPlane):
    """The original Rust server: relative deadlines, nulls in specs, objects, no release."""

    prefixes: tuple[str, ...] = ("", "/v1/agents")
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)

    async def claim(self, body: Any) -> Answer:
        granted, self.leases = self.leases, []
        for item in granted:
            if item["kind"] == "ping":
                nulls = dict.fromkeys(("count", "interval_ms", "timeout_ms", "rate_limit_per_sec"))
                item["spec"] = nulls | item["spec"]
        return 200, {"leases": granted}

    async def report(self, body: Any) -> Answer:
        return 200, {"acknowledged": len(body["completed"]) + len(body["cancelled"])}

    release = None  # type: ignore[assignment]


@dataclass
class GoControlPlane(ScriptedControlPlane):
    """The original Go server: epoch deadlines, JSON as text, 204 for no work, errors as text."""

    headers: Mapping[str, str] = field(default_factory=lambda: TEXT)

    def epoch_ms(self, from_now_ms: int) -> int:
        return self.clock.realtime_ns() // NS_PER_MS + from_now_ms

    def refusal(self) -> Answer:
        return 401, b"unauthorized\n"

    async def register(self, body: Any) -> Answer:
        _, answer = await super().register(body)
        return 200, answer | {"lease_duration_ms": 90_000, "heartbeat_timeout_ms": 20_000}

    async def heartbeat(self, _: Any) -> Answer:
        return 200, {"agent_id": 7, "next_deadline_ms": self.epoch_ms(20_000)}

    async def claim(self, _: Any) -> Answer:
        if not self.leases:
            return 204, b""
        granted, self.leases = self.leases, []
        for item in granted:
            item["lease_until_ms"] = self.epoch_ms(item["lease_until_ms"])
        return 200, {"leases": granted}

    async def extend(self, body: Any) -> Answer:
        if not body["lease_ids"]:
            return 400, b"lease_ids required\n"
        outcomes = [
            {"lease_id": lease_id, "new_deadline_ms": self.epoch_ms(body["extend_by_ms"])}
            for lease_id in body["lease_ids"]
        ]
        return 200, {"outcomes": outcomes}

    async def report(self, body: Any) -> Answer:
        if not body["completed"] and not body["cancelled"]:
            return 400, b"empty report\n"
        return 200, {"acknowledged": len(body["completed"])}

    release = None  # type: ignore[assignment]

    def _answer(self, answer: Answer) -> TransportResponse:
        response = super()._answer(answer)
        date = formatdate(self.clock.realtime_ns() // NS_PER_S, usegmt=True)
        return TransportResponse(response.status, {**response.headers, "Date": date}, response.body)
