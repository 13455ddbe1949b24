"""What an agent does about each code of the contract, over the transport in memory."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from netsonde import wire
from netsonde.agent.config_applier import ConfigApplier
from netsonde.agent.config_keeper import ConfigKeeper
from netsonde.agent.kept_config import ConfigMemory
from netsonde.ceiling import Ceiling
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock, SystemClock
from netsonde.control_plane import (
    ClaimGrant,
    ControlPlaneClient,
    ControlPlaneError,
    MemoryControlPlaneTransport,
)
from netsonde.control_plane.following import Resumed
from netsonde.control_plane.memory import Answered
from netsonde.control_plane.operator import OperatorClient
from netsonde.control_plane.session import AgentRuntime
from netsonde.control_plane.transport import TransportRequest, TransportResponse
from netsonde.dsse import TrustedKeys
from netsonde.model import HeartbeatRequest, Outcome, RegisterRequest, TaskKind, TcpSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.targets import TargetResolver
from netsonde.probe.tcp import TcpProber
from netsonde.remote_config import Holder
from support.configs import KEY, document, envelope
from support.control_planes import V1, ScriptedControlPlane, lease
from support.driving import finish
from support.fleet import run_for
from support.refusals import Refused


class AgentSide:
    """An agent's session over the transport in memory, and a control plane that plays along."""

    def __init__(self, folder: Path, refused: Refused) -> None:
        self.clock = ManualClock()
        self.server = ScriptedControlPlane(self.clock)
        self.transport = MemoryControlPlaneTransport(self.server, self.clock, "http://one")
        self.client = ControlPlaneClient(self.transport, self.clock, Random(1))
        self.path = folder / "credentials.json"
        self.session = AgentRuntime(
            self.client,
            self.clock,
            self.path,
            describe=lambda: RegisterRequest(hostname="h", instance_id="i-1"),
            beat=lambda: HeartbeatRequest(agent_id=0, state="active"),
            on_lost=lambda _: None,
        )
        self.refused = refused

    async def started(self) -> "AgentSide":
        """Register."""
        await finish(self.clock, self.session.start())
        return self

    def refuse(self, verb: str, times: int = 1) -> None:
        """Let the next calls of a verb be answered with the refusal."""
        fault = Answered(self.refused.status, self.refused.body, self.refused.headers)
        self.transport.inject(fault, path_end=f"/{verb}", times=times)

    async def claim(self) -> ClaimGrant:
        """Claim one lease, in one answer."""
        work = self.client.claim({"ping": 1}, claim_id="c")
        return await finish(self.clock, work)


Reaction = Callable[[AgentSide], Awaitable[None]]


# ── what the agent does ──


async def tries_again(side: AgentSide) -> None:
    """The same request is made again, no sooner than the control plane wishes."""
    await side.started()
    side.server.leases = [lease(1)]
    side.refuse("claim", times=2)
    hint_ms = wire.decode_error(
        side.refused.status, side.refused.body, side.refused.headers.get("Retry-After")
    ).retry_after_ms
    began_ns = side.clock.boottime_ns()

    grant = await side.claim()

    assert [one.lease_id for one in grant.leases] == [1]
    assert side.client.counters["retries"] == 2
    took_ns = side.clock.boottime_ns() - began_ns
    assert 2 * (hint_ms or 0) * NS_PER_MS <= took_ns <= (2 * (hint_ms or 0) + 1000) * NS_PER_MS
    assert {body["claim_id"] for body in side.server.bodies["claim"]} == {"c"}


async def raises_at_once(side: AgentSide) -> None:
    """Nothing is asked again by itself, it is counted, and a loop of such calls is no storm."""
    await side.started()
    side.refuse("claim", times=20)
    began_ns = side.clock.boottime_ns()
    for _ in range(20):
        with pytest.raises(ControlPlaneError) as caught:
            await side.claim()
        assert (caught.value.status, caught.value.is_verdict) == (side.refused.status, True)
    assert side.client.counters["claim_requests"] == 20
    assert side.client.counters["claim_failed"] == 20
    assert side.client.counters["retries"] == 0
    assert side.clock.boottime_ns() - began_ns > 60 * NS_PER_S


async def drops_the_item(side: AgentSide) -> None:
    """A report is split until the item at fault is alone; that one only is given up."""
    await side.started()
    report = side.server.report

    async def choosy(body: Any) -> tuple[int, Any]:
        if any(item["lease_id"] == 3 for item in body["completed"]):
            return side.refused.status, json.loads(side.refused.body)
        return await report(body)

    side.server.report = choosy  # type: ignore[method-assign]
    items = [b'{"lease_id":%d,"outcome":"ok"}' % number for number in range(1, 6)]
    answer = await finish(side.clock, side.client.report(items, []))

    statuses = {result.lease_id: result.status for result in answer.results}
    assert statuses == {1: "accepted", 2: "accepted", 3: "invalid", 4: "accepted", 5: "accepted"}
    assert side.client.counters["report_splits"] > 0


async def reloads_then_registers(side: AgentSide) -> None:
    """A token that somebody stored meanwhile is used; else the agent registers."""
    await side.started()
    kept = side.path.read_text()
    side.server.tokens.add("stored")
    side.path.write_text(kept.replace("token-1", "stored"))
    side.refuse("claim")
    await side.claim()
    assert (side.server.registrations, side.client.identity and side.client.identity.token) == (
        1,
        "stored",
    )
    side.refuse("claim")
    await side.claim()
    assert side.server.registrations == 2


async def needs_an_operator(side: AgentSide) -> None:
    """It asks for ever, every five minutes."""
    side.refuse("register", times=3)
    began_ns = side.clock.boottime_ns()
    await side.started()
    assert side.clock.boottime_ns() - began_ns == 900 * NS_PER_S


async def stops_claiming(side: AgentSide) -> None:
    """It asks at the cap, and heartbeats go on."""
    await side.started()
    side.refuse("claim", times=2)
    began_ns = side.clock.boottime_ns()
    for _ in range(2):
        with pytest.raises(ControlPlaneError):
            await side.claim()
    await finish(side.clock, side.session.heartbeat())
    assert side.session.last_heartbeat is not None
    await side.claim()
    assert side.clock.boottime_ns() - began_ns == 60 * NS_PER_S


class Sink:
    """Keeps what a claim brings."""

    def __init__(self) -> None:
        self.lease_ids: list[int] = []

    async def take(self, grant: ClaimGrant) -> None:
        self.lease_ids += [one.lease_id for one in grant.leases]

    def revoke(self, lease_ids: Sequence[int]) -> None:
        raise AssertionError(lease_ids)


async def asks_for_single_answers(side: AgentSide) -> None:
    """What is refused as a stream is had without; for ten minutes it is not tried again."""
    await side.started()
    sink = Sink()
    side.server.leases = [lease(1)]
    side.refuse("claim")
    await finish(side.clock, side.client.claim_into(sink, {"ping": 1}, claim_id="c"))
    assert sink.lease_ids == [1]
    accepts = [
        request.headers["Accept"]
        for request in side.transport.requests
        if request.path.endswith("/claim")
    ]
    assert [wire.NDJSON in accept for accept in accepts] == [True, False]
    side.server.leases = [lease(2)]
    await finish(side.clock, side.client.claim_into(sink, {"ping": 1}, claim_id="d"))
    assert wire.NDJSON not in side.transport.requests[-1].headers["Accept"]


async def tries_other_prefixes(side: AgentSide) -> None:
    """Where register is not, it may be under another prefix."""
    side.server.prefixes = ("/v1",)
    side.refuse("register")
    await side.started()
    assert side.client.prefix == "/v1"


async def begins_anew(side: AgentSide) -> None:
    """Who follows results begins without the cursor, and is told so."""
    end = b'{"t":"end","reason":"wait","cursor":"next"}\n'

    async def serve(request: TransportRequest) -> TransportResponse:
        if "cursor=" in request.path:
            return TransportResponse(side.refused.status, side.refused.headers, side.refused.body)
        line = b'{"t":"r","cursor":"c1","result":{"lease_id":5}}\n'
        return TransportResponse(200, V1 | {"Content-Type": wire.NDJSON}, line + end)

    transport = MemoryControlPlaneTransport(serve, side.clock)
    client = OperatorClient("http://x", transport=transport)
    seen: list[Any] = []

    async def follow() -> None:
        async for item in client.follow({"cursor": "gone"}, clock=side.clock, rng=Random(1)):
            seen.append(item)
            if isinstance(item, Mapping):
                return

    await finish(side.clock, follow())
    assert seen[-1] == {"lease_id": 5}
    assert [one.is_anew for one in seen if isinstance(one, Resumed)] == [True]


async def rejects_the_target(side: AgentSide) -> None:
    """A lease whose target this agent may not measure has outcome `rejected`, and no packet."""
    record = Recorder(SystemClock())
    prober = TcpProber(SystemClock(), TargetResolver(TargetPolicy()))
    await measure(prober, TcpSpec(host="224.0.0.1", port=80), record)
    measurement = record.measurement()
    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("denied", "policy")


async def keeps_the_last_good_one(side: AgentSide) -> None:
    """The configuration in force stays, and is still acknowledged."""
    await side.started()
    applied: list[Any] = []
    keys, folder = TrustedKeys([KEY.public]), side.path.parent
    memory = ConfigMemory(folder / "config.json", "one boot")
    applier = ConfigApplier(side.clock, memory, keys, Ceiling())
    applier.prepare = lambda values: lambda: applied.append(values)
    applier.holder = lambda: Holder(7, "h", {})
    keeper = ConfigKeeper(side.clock, side.client, applier, Random(3))
    keeper.start()
    good = document(envelope(3, {"kinds": {"ping": {"concurrency": 5}}}))
    side.transport.inject(Answered(200, json.dumps(good).encode(), V1), path_end="/config")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(keeper.run())
        await run_for(side.clock, 10)
        assert [values.kinds[TaskKind.PING].concurrency for values in applied] == [5]
        side.refuse("config", times=100)
        await run_for(side.clock, 3600)
        running.cancel()
    assert len([one for one in side.transport.requests if one.path.endswith("/config")]) > 3
    status = keeper.status()
    assert status is not None
    assert (status.applied, status.status, len(applied)) == (3, "ack", 1)
