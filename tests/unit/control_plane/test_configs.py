"""Asking for a configuration, and hearing that there is another."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from netsonde.clock import ManualClock
from netsonde.control_plane import (
    ClaimGrant,
    ControlPlaneClient,
    ControlPlaneError,
    MemoryControlPlaneTransport,
    TransportError,
    TransportRequest,
    TransportResponse,
)
from netsonde.control_plane.calls import ConfigAnswer
from netsonde.control_plane.memory import LostResponse
from netsonde.model import HeartbeatRequest, RegisterRequest
from support.control_planes import V1
from support.driving import finish

PAGE = {"Content-Type": "text/html"}
REGISTERED = (
    b'{"agent_id":7,"auth_token":"t","lease_duration_ms":60000,"heartbeat_timeout_ms":45000}'
)


@dataclass
class Rig:
    """A client, and what the control plane answers to everything but registration."""

    answer: TransportResponse = field(default_factory=lambda: TransportResponse(404, V1))
    heard: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.transport = MemoryControlPlaneTransport(self._handle, self.clock)
        self.client = ControlPlaneClient(self.transport, self.clock, Random(1))
        self.client.on_config = self.heard.append

    async def _handle(self, request: TransportRequest) -> TransportResponse:
        if request.path.endswith("/register"):
            return TransportResponse(200, V1, REGISTERED)
        return self.answer

    async def registered(self) -> "Rig":
        await finish(self.clock, self.client.register(RegisterRequest(hostname="h")))
        return self

    async def config(self, etag: str | None = None) -> ConfigAnswer | None:
        return await finish(self.clock, self.client.config(etag))


async def test_it_is_fetched_with_its_tag() -> None:
    it = await Rig(TransportResponse(200, V1 | {"ETag": '"a"'}, b"{}")).registered()
    assert await it.config() == ConfigAnswer(b"{}", '"a"')
    request = it.transport.requests[-1]
    assert (request.method, request.path, request.body) == ("GET", "/v1/agents/config", b"")
    assert "If-None-Match" not in request.headers
    assert request.headers["X-Agent-Token"] == "t"


async def test_what_has_not_changed_is_not_sent_again() -> None:
    it = await Rig(TransportResponse(304, V1 | {"ETag": '"a"'})).registered()
    assert await it.config('W/"a"') == ConfigAnswer(None, '"a"')
    assert it.transport.requests[-1].headers["If-None-Match"] == 'W/"a"'
    assert it.client.is_legacy is False


@pytest.mark.parametrize("status", [404, 405])
async def test_none_is_no_failure(status: int) -> None:
    failures: list[Any] = []
    it = await Rig(TransportResponse(status, PAGE, b"<html>")).registered()

    async def reauthenticate(_: Any) -> None: ...

    it.client.connect(reauthenticate=reauthenticate, observe=lambda *ended: failures.append(ended))
    assert await it.config() is None
    assert failures == []
    assert it.client.is_legacy is False, "a proxy's page says nothing of who is behind it"


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>sign in"), (304, b"")])
async def test_what_a_cache_or_a_proxy_answers_makes_no_original_of_it(
    status: int, body: bytes
) -> None:
    """What waits for a slot would be reported as cancelled then, which costs an attempt."""
    it = await Rig(TransportResponse(status, PAGE, body)).registered()
    await it.config('"a"')
    assert it.client.is_legacy is False


async def test_refusals_and_losses_are_told() -> None:
    it = await Rig(TransportResponse(429, V1)).registered()
    with pytest.raises(ControlPlaneError, match="429"):
        await it.config()
    it = await Rig(TransportResponse(200, V1)).registered()
    it.transport.inject(LostResponse(), path_end="/config")
    with pytest.raises(TransportError):
        await it.config()


async def test_a_redirect_of_another_kind_is_refused() -> None:
    it = await Rig(TransportResponse(302, V1 | {"Location": "http://evil"})).registered()
    with pytest.raises(ControlPlaneError, match="redirects are not followed"):
        await it.config()


@pytest.mark.parametrize("revision", ["18", 18])
async def test_every_answer_that_names_one_is_heard(revision: str | int) -> None:
    it = await Rig().registered()
    named = f'"{revision}"' if isinstance(revision, str) else str(revision)
    body = f'{{"agent_id":7,"next_deadline_ms":1,"leases":[],"config_revision":{named}}}'
    it.answer = TransportResponse(200, V1, body.encode())
    await finish(it.clock, it.client.heartbeat(HeartbeatRequest(agent_id=0)))
    assert it.heard == [revision]
    await finish(it.clock, it.client.claim({"ping": 1}, claim_id="c"))
    assert it.heard == [revision] * 2


class Sink:
    """Takes nothing in particular."""

    async def take(self, grant: ClaimGrant) -> None: ...

    def revoke(self, lease_ids: Any) -> None: ...


async def test_a_streams_line_is_heard() -> None:
    lines = b'{"t":"config","revision":19}\n{"t":"end","reason":"wait"}\n'
    it = await Rig().registered()
    headers = V1 | {"Content-Type": "application/x-ndjson"}
    it.answer = TransportResponse(200, headers, lines)
    await finish(it.clock, it.client.claim_into(Sink(), {"ping": 1}, claim_id="c"))
    assert it.heard == ["19"]


async def test_streams_can_be_turned_off() -> None:
    it = await Rig().registered()
    it.client.allow_streams(claims=False, reports=False)
    it.answer = TransportResponse(200, V1, b'{"leases":[]}')
    await finish(it.clock, it.client.claim_into(Sink(), {"ping": 1}, claim_id="c"))
    assert it.transport.requests[-1].headers["Accept"] == "application/json"
