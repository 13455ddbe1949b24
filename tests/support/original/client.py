"""The original agent's client: five calls, each made until it succeeds, for ever.

It backs off from 100 ms to 5 s, doubling, without jitter; what it counts is shared by everybody who
makes the same call. It has no timeout, and looks neither at `Retry-After` nor at what an error
says: a 401 is to it what a lost packet is. It registers once.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.errors import TransportError
from support.original.messages import (
    Acknowledged,
    Beat,
    Claim,
    Extended,
    LeaseReport,
    Registration,
    UnreadableError,
    decode,
    encode,
    reports,
)

T = TypeVar("T")
Carry = Callable[[TransportRequest], Awaitable[TransportResponse]]

USER_AGENT = "codecrafters-agent/0.1.0"
BACKOFF_BASE_S = 0.1
BACKOFF_MAX_S = 5.0


class NotRegisteredError(Exception):
    """An answer was for another agent, or for agent 0."""


@dataclass(slots=True)
class Call:
    """How one of the five calls is doing, on the loop's clock."""

    attempts: int = 0
    succeeded_s: float | None = None
    failing_since_s: float | None = None
    why: str = ""


@dataclass
class OriginalClient:
    """Makes calls over `carry`. `calls` tells how each is doing."""

    base_url: str
    carry: Carry
    agent_id: int | None = None
    token: str | None = None
    calls: dict[str, Call] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)

    async def register(self, hostname: str | None) -> Registration:
        """Register; the identity is kept for ever.

        Raises:
            NotRegisteredError: the control plane gave id 0.
        """
        answer = await self._insist("register", Registration, {"hostname": hostname})
        if answer.agent_id == 0:
            raise NotRegisteredError("agent 0")
        self.agent_id, self.token = answer.agent_id, answer.auth_token
        return answer

    async def heartbeat(self) -> Beat:
        """Say that the agent lives.

        Raises:
            NotRegisteredError: the answer was for somebody else.
        """
        beat = await self._insist("heartbeat", Beat, {"agent_id": self.agent_id})
        if beat.agent_id != self.agent_id:
            raise NotRegisteredError(f"agent {beat.agent_id}")
        return beat

    async def claim(self, capacities: Mapping[str, int]) -> Claim:
        """Ask for work."""
        body = {"agent_id": self.agent_id, "capacities": dict(capacities)}
        return await self._insist("claim", Claim, body)

    async def extend(self, lease_ids: Sequence[int], extend_by_ms: int) -> list[Extended]:
        """Ask for more time."""
        body = {
            "agent_id": self.agent_id,
            "lease_ids": list(lease_ids),
            "extend_by_ms": extend_by_ms,
        }
        return await self._insist("extend", list[Extended], body)

    async def report(
        self, completed: Sequence[LeaseReport], cancelled: Sequence[LeaseReport]
    ) -> Acknowledged:
        """Hand in results."""
        body = {
            "agent_id": self.agent_id,
            "completed": reports(completed),
            "cancelled": reports(cancelled),
        }
        return await self._insist("report", Acknowledged, body)

    async def _insist(self, verb: str, wanted: type[T], body: Mapping[str, Any]) -> T:
        call = self.calls.setdefault(verb, Call())
        now = asyncio.get_running_loop().time
        while True:
            try:
                answer = await self._once(verb, wanted, encode(body))
            except (TransportError, UnreadableError) as error:
                delay_s = min(BACKOFF_BASE_S * 2.0 ** min(call.attempts, 30), BACKOFF_MAX_S)
                call.attempts += 1
                call.why = str(error)
                if call.failing_since_s is None:
                    call.failing_since_s = now()
                await asyncio.sleep(delay_s)
            else:
                call.attempts = 0
                call.failing_since_s = None
                call.succeeded_s = now()
                return answer

    async def _once(self, verb: str, wanted: type[T], body: bytes) -> T:
        response = await self.carry(
            TransportRequest(
                method="POST",
                path=endpoint(self.base_url, verb),
                headers=self._headers(),
                body=body,
                timeout_s=math.inf,
            )
        )
        self.statuses[response.status] += 1
        if not 200 <= response.status < 300:
            raise UnreadableError(f"unexpected status code: {response.status}")
        return decode(wanted, response.body)

    def _headers(self) -> dict[str, str]:
        own = {"Accept": "*/*", "Content-Type": "application/json", "User-Agent": USER_AGENT}
        if self.token is not None:
            own |= {"X-Agent-Id": str(self.agent_id), "X-Agent-Token": self.token}
        return own


def endpoint(base_url: str, verb: str) -> str:
    """Return the path of a call: joined to the base address, whose last segment is thereby lost."""
    return urlsplit(urljoin(base_url, verb)).path
