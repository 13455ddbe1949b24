"""Every code of the contract, brought about for real: what the control plane answers with it.

A provocation calls a real control plane, without sockets but for one that is about time, and
returns the answer. Codes that only something in between answers with are what a proxy says.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netsonde import wire
from netsonde.errors import ErrorCode
from netsonde.server import ServerConfig, serve
from netsonde.server.retention import Retention
from netsonde.server.store.retention import StoreSize
from support.stores import TERMS_MS, Caller, callers

CHECK = {"kind": "tcp", "targets": ["192.0.2.1:80"]}
PAGE = b"<html><body>proxy</body></html>"


class Refused(NamedTuple):
    """An answer that is no success."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def envelope(self) -> dict[str, Any]:
        """What the body says."""
        read: dict[str, Any] = json.loads(self.body)
        return read


class Stage(NamedTuple):
    """A control plane to provoke, and how to make it fail."""

    caller: Caller
    folder: Path
    patch: pytest.MonkeyPatch


Provocation = Callable[[Stage], Awaitable[Refused]]


def _told(answer: tuple[int, Any, Mapping[str, str]]) -> Refused:
    status, body, headers = answer
    return Refused(status, wire.encode(body), headers)


async def validation(on: Stage) -> Refused:
    """Give a field a wrong type."""
    agent = await on.caller.register()
    return _told(await agent.call("/claim", {"capacities": {"tcp": "many"}}))


async def malformed(on: Stage) -> Refused:
    """Send half a body."""
    agent = await on.caller.register()
    return _told(await on.caller.agent("POST", "/claim", b'{"a', **agent.credentials()))


async def unauthorized(on: Stage) -> Refused:
    """Present a token that nobody was given."""
    agent = await on.caller.register()
    wrong = {"x_agent_id": str(agent.agent_id), "x_agent_token": "wrong"}
    return _told(await on.caller.agent("POST", "/claim", {}, **wrong))


async def token_expired(on: Stage) -> Refused:
    """Present a token that another one has followed."""
    old = await on.caller.register()
    await old.claim()
    await (await on.caller.register()).claim()
    await on.caller.clock.advance(3_600_000_000_000)
    return _told(await old.call("/claim", {"capacities": {}}))


async def enrolment_required(on: Stage) -> Refused:
    """Register without a token where one is needed."""
    for caller in callers("memory", on.folder, listen="0.0.0.0:0"):
        body = {"hostname": "h", "agent_key": "k" * 32}
        return _told(await caller.agent("POST", "/register", body))
    raise AssertionError("there was no control plane")


async def forbidden(on: Stage) -> Refused:
    """Go on as an agent that was disabled."""
    agent = await on.caller.register()
    await on.caller.operator("PATCH", f"/v1/agents/{agent.agent_id}", {"disabled": True})
    return _told(await agent.call("/claim", {"capacities": {}}))


async def not_found(on: Stage) -> Refused:
    """Call what is not there."""
    return _told(await on.caller.agent("POST", "/v9/agents/claim", {}))


async def method_not_allowed(on: Stage) -> Refused:
    """Fetch what is to be posted."""
    return _told(await on.caller.agent("GET", "/v1/agents/claim"))


async def not_acceptable(on: Stage) -> Refused:
    """Ask for a page."""
    agent = await on.caller.register()
    headers = agent.credentials() | {"accept": "text/html"}
    return _told(await on.caller.agent("POST", "/claim", {}, **headers))


async def timeout(on: Stage) -> Refused:
    """Let a body drip, over a socket."""
    on.patch.setattr("netsonde.server.app.SLOW_AFTER_NS", 100_000_000)
    on.patch.setattr("netsonde.server.app.CHUNK_TIMEOUT_S", 0.2)
    config = ServerConfig(listen="127.0.0.1:0", operator_listen="127.0.0.1:0", terms_ms=TERMS_MS)
    async with serve(config) as server:
        host, _, port = server.agent_url.rpartition("//")[2].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Refused(int(status.split()[1]), body, headers)


async def conflict(on: Stage) -> Refused:
    """Use an Idempotency-Key for something else."""
    await on.caller.operator("POST", "/v1/checks", CHECK, idempotency_key="k")
    other = CHECK | {"every_ms": 1000}
    return _told(await on.caller.operator("POST", "/v1/checks", other, idempotency_key="k"))


async def cursor_expired(on: Stage) -> Refused:
    """Go on after results that have gone."""
    agent = await on.caller.register()
    await on.caller.tasks(3)
    await agent.report(*(lease["lease_id"] for lease in await agent.claim(3)))
    _, page, _ = await on.caller.operator("GET", "/v1/results?limit=1")
    floor = Retention(on.caller.plane).floor()
    await on.caller.plane.writer.write(lambda store: store.drop_results(None, floor, 2))
    return _told(await on.caller.operator("GET", f"/v1/results?cursor={page['cursor']}"))


async def too_large(on: Stage) -> Refused:
    """Send a byte too many."""
    agent = await on.caller.register()
    body = b" " * (wire.BODY_MAX_BYTES + 1)
    return _told(await on.caller.agent("POST", "/claim", body, **agent.credentials()))


async def media_type(on: Stage) -> Refused:
    """Send a form."""
    headers = {"content_type": "application/x-www-form-urlencoded"}
    return _told(await on.caller.agent("POST", "/register", b"hostname=h", **headers))


async def target_denied(on: Stage) -> Refused:
    """Want measured what no agent may measure."""
    check = {"kind": "ping", "targets": ["192.0.2.1", "224.0.0.1"]}
    return _told(await on.caller.operator("POST", "/v1/checks", check))


async def config_invalid(on: Stage) -> Refused:
    """Publish what nobody signed."""
    return _told(await on.caller.operator("POST", "/v1/configs", {"revision": 1}))


async def rate_limited(on: Stage) -> Refused:
    """Register again and again."""
    for _ in range(20):
        answer = await on.caller.agent("POST", "/register", {"agent_key": "k" * 32})
        if answer[0] != 200:
            return _told(answer)
    raise AssertionError("there is no limit")


async def backend(on: Stage) -> Refused:
    """Meet a defect."""
    agent = await on.caller.register()

    async def fail(*_: Any) -> None:
        raise RuntimeError("secret of the inside")

    on.patch.setattr(on.caller.plane.registry, "authenticate", fail)
    return _told(await agent.call("/claim", {"capacities": {}}))


async def bad_gateway(_: Stage) -> Refused:
    """Ask through a proxy that finds nobody."""
    return Refused(502, PAGE, {"Content-Type": "text/html"})


async def unavailable(on: Stage) -> Refused:
    """Be one agent too many."""
    on.patch.setattr("netsonde.server.registry.AGENTS_MAX", 0)
    return _told(await on.caller.agent("POST", "/register", {"agent_key": "k" * 32}))


async def gateway_timeout(_: Stage) -> Refused:
    """Ask through a proxy that does not wait."""
    return Refused(504, PAGE, {"Content-Type": "text/html"})


async def storage_full(on: Stage) -> Refused:
    """Ask for work while there is no room for its result."""
    agent = await on.caller.register()
    await on.caller.tasks(1)
    on.caller.plane.storage.measured(StoreSize(0, 0, 1 << 20))
    return _told(await agent.call("/claim", {"capacities": {"tcp": 1}}))


PROXYS = {ErrorCode.UPSTREAM: bad_gateway, ErrorCode.DEADLINE: gateway_timeout}
PROVOCATIONS: Mapping[ErrorCode, Provocation] = {
    ErrorCode.VALIDATION: validation,
    ErrorCode.MALFORMED_JSON: malformed,
    ErrorCode.UNAUTHORIZED: unauthorized,
    ErrorCode.TOKEN_EXPIRED: token_expired,
    ErrorCode.ENROLMENT_REQUIRED: enrolment_required,
    ErrorCode.FORBIDDEN: forbidden,
    ErrorCode.NOT_FOUND: not_found,
    ErrorCode.METHOD_NOT_ALLOWED: method_not_allowed,
    ErrorCode.NOT_ACCEPTABLE: not_acceptable,
    ErrorCode.TIMEOUT: timeout,
    ErrorCode.CONFLICT: conflict,
    ErrorCode.CURSOR_EXPIRED: cursor_expired,
    ErrorCode.TOO_LARGE: too_large,
    ErrorCode.MEDIA_TYPE: media_type,
    ErrorCode.TARGET_DENIED: target_denied,
    ErrorCode.CONFIG_INVALID: config_invalid,
    ErrorCode.RATE_LIMITED: rate_limited,
    ErrorCode.BACKEND: backend,
    ErrorCode.UNAVAILABLE: unavailable,
    ErrorCode.STORAGE_FULL: storage_full,
    **PROXYS,
}


# ── of one item ──


async def fenced(on: Stage) -> dict[str, Any]:
    """Report on another agent's lease; return the item's answer."""
    good = await on.caller.register(agent_key="a" * 32)
    bad = await on.caller.register(agent_key="b" * 32)
    await on.caller.tasks(1)
    (lease,) = await good.claim(1)
    return await _reported(bad, lease["lease_id"])


async def unknown(on: Stage) -> dict[str, Any]:
    """Report on a lease that nobody was given; return the item's answer."""
    return await _reported(await on.caller.register(), 12345)


async def _reported(agent: Any, lease_id: int) -> dict[str, Any]:
    item = {"lease_id": lease_id, "outcome": "ok", "observations": []}
    status, answer, _ = await agent.call("/report", {"completed": [item], "cancelled": []})
    assert (status, answer["acknowledged"]) == (200, 0)
    (result,) = answer["results"]
    return dict(result)


async def limit(on: Stage) -> dict[str, Any]:
    """Send a sample whose name is too long; return the whole answer."""
    agent = await on.caller.register()
    gauges = [{"name": "x" * 500, "value": 1}, {"name": "netsonde_ok", "value": 1}]
    begun = {"start_time": "2026-11-28T00:00:00Z", "timestamp": "2026-11-28T00:00:01Z"}
    body = {"instance_id": "i", "seq": 1, "gauges": gauges} | begun
    status, answer, _ = await agent.call("/metrics", body)
    assert (status, answer["stored"], answer["rejected_total"]) == (202, 1, 1)
    return dict(answer)
