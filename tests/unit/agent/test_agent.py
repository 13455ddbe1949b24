"""The agent against original control planes and odd ones: quotas, deadlines, identity, rights."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netsonde.agent.agent import Agent
from netsonde.agent.config import AgentConfig
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.control_plane import (
    MemoryControlPlaneTransport,
    TransportRequest,
    TransportResponse,
)
from netsonde.errors import StorageError
from netsonde.model import TaskKind
from support.control_planes import (
    V1,
    GoControlPlane,
    RustControlPlane,
    ScriptedControlPlane,
    lease,
)
from support.fleet import bodies, make_agent, run_for, started
from support.probers import GatedProber, gated
from support.spools import inline_spools

PING = TaskKind.PING
ORIGINALS = [RustControlPlane, GoControlPlane]
Plane = Callable[[ManualClock], ScriptedControlPlane]


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    inline_spools(monkeypatch)


def reported(transport: MemoryControlPlaneTransport) -> list[int]:
    return [
        item["lease_id"]
        for body in bodies(transport, "report")
        for item in (*body["completed"], *body["cancelled"])
    ]


@pytest.mark.parametrize("original", ORIGINALS)
async def test_work_of_an_original_control_plane_is_done(
    clock: ManualClock, tmp_path: Path, original: Plane
) -> None:
    plane = original(clock)
    plane.leases = [lease(number) for number in range(1, 5)]
    probers = gated()
    probers[PING].gate.set()
    transport = MemoryControlPlaneTransport(plane, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 60)

    assert sorted(reported(transport)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("made", "is_columnar"),
    [(RustControlPlane, False), (GoControlPlane, False), (ScriptedControlPlane, True)],
)
async def test_columns_are_for_control_planes_that_know_them(
    clock: ManualClock, tmp_path: Path, made: Plane, is_columnar: bool
) -> None:
    plane = made(clock)
    plane.leases = [lease(1)]
    probers = gated()
    probers[PING].gate.set()
    transport = MemoryControlPlaneTransport(plane, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 30)

    assert [record.columnar for record in probers[PING].records] == [is_columnar]


@pytest.mark.parametrize("original", ORIGINALS)
async def test_the_originals_quotas_are_kept(
    clock: ManualClock, tmp_path: Path, original: Plane
) -> None:
    """The original agent made twice the calls its own server allowed."""
    plane = original(clock)
    probers = gated()
    transport = MemoryControlPlaneTransport(plane, clock)
    times_ns: dict[str, list[int]] = {}

    async def counting(request: Any) -> Any:
        verb = request.path.rpartition("/")[2]
        times_ns.setdefault(verb, []).append(clock.boottime_ns())
        return await plane(request)

    transport = MemoryControlPlaneTransport(counting, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        next_id = 1
        for _ in range(300):
            plane.leases.append(lease(next_id))
            next_id += 1
            for spec in list(probers[PING].running)[:1]:
                assert spec is not None
                probers[PING].gate.set()
            await run_for(clock, 1)
            probers[PING].gate.clear()

    for verb, per_minute in {"heartbeat": 6, "claim": 12, "extend": 30, "report": 12}.items():
        called = times_ns.get(verb, [])
        fullest = max(
            (sum(at <= other < at + 60 * NS_PER_S for other in called) for at in called), default=0
        )
        assert fullest <= per_minute, verb
    assert len(times_ns["claim"]) > 20
    assert len(times_ns["report"]) > 20


@pytest.mark.parametrize("original", ORIGINALS)
async def test_a_lease_of_an_original_control_plane_ends_when_it_ends(
    clock: ManualClock, tmp_path: Path, original: Plane
) -> None:
    """With the Go server's epoch deadlines the original's leases were 55 years long."""
    plane = original(clock)
    plane.leases = [lease(1, lease_until_ms=30_000)]
    plane.answers["extend"] = [(500, b"no")] * 100
    probers = gated()
    transport = MemoryControlPlaneTransport(plane, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 25)
        assert len(probers[PING].running) == 1
        await run_for(clock, 20)

        assert probers[PING].running == []
        assert [item["lease_id"] for item in bodies(transport, "report")[-1]["cancelled"]] == [1]


@pytest.mark.parametrize("original", ORIGINALS)
async def test_leases_of_an_original_control_plane_are_kept_alive(
    clock: ManualClock, tmp_path: Path, original: Plane
) -> None:
    plane = original(clock)
    plane.leases = [lease(1, lease_until_ms=30_000)]
    probers = gated()
    transport = MemoryControlPlaneTransport(plane, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 300)
        assert len(probers[PING].running) == 1
        probers[PING].gate.set()
        await run_for(clock, 10)

    assert [item["lease_id"] for item in bodies(transport, "report")[-1]["completed"]] == [1]


async def test_a_poison_lease_costs_itself(clock: ManualClock, tmp_path: Path) -> None:
    """In the original one unknown kind lost the batch, and every batch after it."""
    plane = ScriptedControlPlane(clock)
    plane.leases = [
        lease(1),
        lease(2, kind="smtp", spec={"kind": "smtp"}),
        lease(3, spec={"kind": "ping"}),
        lease(4, kind="dns"),
        lease(5),
    ]
    probers = gated()
    probers[PING].gate.set()
    transport = MemoryControlPlaneTransport(plane, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 5)

    assert sorted(reported(transport)) == [1, 5]
    assert sorted(bodies(transport, "release")[0]["lease_ids"]) == [2, 3, 4]


HUGE = 10**400


async def test_no_answer_however_wrong_ends_the_agent(clock: ManualClock, tmp_path: Path) -> None:
    plane = ScriptedControlPlane(clock)
    plane.tokens = {"t"}
    names = ("lease_duration_ms", "heartbeat_timeout_ms", "claim_wait_ms", "heartbeat_interval_ms")
    registered = {"agent_id": 7, "auth_token": "t"} | dict.fromkeys(names, 2**64 - 1)
    unreadable = b'{"lease_id":8,"task_id":1,"kind":"ping","spec":{"kind":"ping","host":"\xff"}}'
    good = lease(1, max_lease_ms=-HUGE, granted_after_ms=HUGE)
    endless = lease(2, lease_until_ms=HUGE, max_lease_ms=HUGE)
    id_too_large = unreadable.replace(b":8", b":%d" % 10**25)
    raw = b",".join([json.dumps(good).encode(), json.dumps(endless).encode()])
    granted = b'{"leases":[' + raw + b"," + unreadable + b"," + id_too_large + b"]}"
    outcomes = [{"lease_id": number, "new_deadline_ms": -HUGE} for number in (1, 2, HUGE)]
    answers: dict[str, bytes] = {
        "register": json.dumps(registered).encode(),
        "heartbeat": json.dumps(
            {"next_deadline_ms": -HUGE, "heartbeat_interval_ms": HUGE, "unknown_leases": [HUGE]}
        ).encode(),
        "claim": granted,
        "extend": json.dumps({"outcomes": outcomes, "revoked": [-HUGE]}).encode(),
    }

    async def wrong(request: TransportRequest) -> TransportResponse:
        verb = request.path.rpartition("/")[2]
        found = answers.get(verb)
        return await plane(request) if found is None else TransportResponse(200, V1, found)

    transport = MemoryControlPlaneTransport(wrong, clock)
    async with started(make_agent(clock, tmp_path, transport, gated())) as run:
        await run_for(clock, 60)
        answers["claim"] = b'{"leases":[]}'
        await run_for(clock, 60)

        assert not run.ended
    assert {8} <= {one for body in bodies(transport, "release") for one in body["lease_ids"]}


async def test_more_leases_than_slots_wait_their_turn(clock: ManualClock, tmp_path: Path) -> None:
    plane = ScriptedControlPlane(clock)
    plane.leases = [lease(number) for number in range(1, 21)]
    probers = gated()
    transport = MemoryControlPlaneTransport(plane, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 5)
        assert len(probers[PING].running) == 4
        probers[PING].gate.set()
        await run_for(clock, 5)

    assert sorted(reported(transport)) == list(range(1, 21))


async def test_a_given_identity_is_used_without_registering(
    clock: ManualClock, tmp_path: Path
) -> None:
    plane = ScriptedControlPlane(clock)
    plane.tokens = {"given"}
    plane.leases = [lease(1)]
    probers = gated()
    probers[PING].gate.set()
    transport = MemoryControlPlaneTransport(plane, clock)
    agent = make_agent(clock, tmp_path, transport, probers, agent_id=7, auth_token="given")
    async with started(agent):
        await run_for(clock, 10)
        assert plane.registrations == 0
        assert reported(transport) == [1]
        plane.forget_tokens()
        await run_for(clock, 60)

    assert plane.registrations == 1


async def test_the_heartbeats_word_ends_a_measurement(clock: ManualClock, tmp_path: Path) -> None:
    plane = ScriptedControlPlane(clock)
    plane.leases = [lease(1), lease(2)]
    plane.answers["heartbeat"] = [
        (200, {"agent_id": 7, "next_deadline_ms": 45_000}),
        (200, {"agent_id": 7, "next_deadline_ms": 45_000, "revoked_leases": [1, 99]}),
    ]
    probers = gated()
    transport = MemoryControlPlaneTransport(plane, clock)
    async with started(make_agent(clock, tmp_path, transport, probers)):
        await run_for(clock, 17)

        assert len(probers[PING].running) == 1
        assert [item["lease_id"] for item in bodies(transport, "report")[-1]["cancelled"]] == [1]


async def test_an_unusable_state_directory_is_a_sentence(
    clock: ManualClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    plane = ScriptedControlPlane(clock)
    agent = make_agent(clock, tmp_path / "file", plane, gated())

    with pytest.raises(StorageError, match="cannot make the spool"):
        await agent.run()


async def test_unreadable_credentials_are_a_sentence(clock: ManualClock, tmp_path: Path) -> None:
    (tmp_path / "credentials.json").mkdir()
    agent = make_agent(clock, tmp_path, ScriptedControlPlane(clock), gated())

    with pytest.raises(StorageError, match=r"credentials"):
        await agent.run()


@pytest.mark.parametrize(
    ("able", "left"),
    [
        ({"raw_icmp": False, "raw_trace": False}, {"dns", "http", "tcp"}),
        ({"datagram_icmp": True, "raw_trace": False}, {"dns", "http", "tcp", "ping", "trace"}),
        ({"raw_icmp": True, "raw_trace": True}, {"dns", "http", "tcp", "ping", "trace"}),
    ],
)
async def test_what_this_process_may_not_measure_is_not_claimed(
    clock: ManualClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    able: dict[str, bool],
    left: set[str],
) -> None:
    monkeypatch.setattr("netsonde.agent.agent.capabilities", lambda: able)
    monkeypatch.setattr("netsonde.agent.agent.local_addresses", lambda: frozenset({"192.0.2.9"}))
    plane = ScriptedControlPlane(clock)
    transport = MemoryControlPlaneTransport(plane, clock)
    config = AgentConfig(control_plane="http://192.0.2.10", state_dir=tmp_path, labels={"a": "b"})
    agent = Agent(config, clock=clock, transport=transport)
    async with started(agent):
        async with asyncio.timeout(10):  # the addresses are listed on another thread
            while not bodies(transport, "claim"):
                await clock.settle()
        agent.drain()
        await run_for(clock, 1)

    assert set(bodies(transport, "claim")[0]["capacities"]) == left
    (registered,) = bodies(transport, "register")
    assert registered["inventory"]["capabilities"] == able
    assert registered["inventory"]["addresses"] == ["192.0.2.9"]
    assert registered["inventory"]["labels"] == {"a": "b"}
    assert ("claims none of it" in caplog.text) is (len(left) < 5)


def test_counters_are_empty_before_there_is_a_session(tmp_path: Path) -> None:
    agent = make_agent(ManualClock(), tmp_path, ScriptedControlPlane(ManualClock()), gated())

    assert agent.counters == {}
    assert isinstance(agent._given_probers, dict)
    assert all(isinstance(one, GatedProber) for one in agent._given_probers.values())
