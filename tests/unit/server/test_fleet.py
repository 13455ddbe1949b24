"""Running a fleet: heartbeats, commands, drain, resume and revoke, through dispatch."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.fleet import DOCUMENT_MAX_BYTES, DONE_COMMANDS_MAX, RETIRED_MAX
from netsonde.server.store import MemoryStore
from support.stores import (
    STORES,
    Caller,
    RegisteredAgent,
    callers,
    control_plane,
    open_store,
    settled,
)

HEALTH = {"loop_lag_ms_p99": 1.5, "rss_bytes": 9, "fds": 4, "spool": {"rows": 2}}
PINNED = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}}


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


async def beat(agent: RegisteredAgent, seq: int, state: str = "active", **more: Any) -> Any:
    """Send a heartbeat; return the commands it is answered with."""
    body = {"instance_id": "one", "seq": seq, "state": state} | more
    status, answer, _ = await agent.call("/heartbeat", body)
    assert status == 200, answer
    return answer.get("commands", [])


async def shown(caller: Caller, agent: RegisteredAgent) -> Any:
    status, answer, _ = await caller.operator("GET", f"/v1/agents/{agent.agent_id}")
    assert status == 200, answer
    return answer


async def order(caller: Caller, agent: RegisteredAgent, verb: str) -> Any:
    path = f"/v1/agents/{agent.agent_id}/{verb}"
    status, answer, _ = await caller.operator("POST", path)
    assert status == 200, answer
    return answer


# ── heartbeats ──


async def test_the_last_heartbeat_is_shown(caller: Caller) -> None:
    agent = await caller.register(instance_id="one")
    fresh = await shown(caller, agent)
    assert (fresh["state"], fresh["heartbeat_at"], fresh["health"]) == (None, None, {})
    await caller.clock.advance(NS_PER_S)
    leases = {"count": 1200, "ids": [1, 2]}
    assert await beat(agent, 1, "draining", active_leases=leases, health=HEALTH) == []
    now = await shown(caller, agent)
    assert (now["state"], now["active_leases"], now["health"]) == ("draining", 1200, HEALTH)
    assert now["heartbeat_at"] > fresh["registered_at"]
    assert (now["drained"], now["revoked"], now["commands"]) == (False, False, [])
    _, listed, _ = await caller.operator("GET", "/v1/agents")
    assert listed["agents"] == [now]


async def test_what_was_said_survives_a_restart(tmp_path: Path) -> None:
    clock, store = ManualClock(), open_store("sqlite", tmp_path)
    caller = Caller(control_plane(store, clock), clock)
    agent = await caller.register(instance_id="one")
    await beat(agent, 7, health=HEALTH)
    await order(caller, agent, "drain")
    await caller.plane.housekeep()
    assert store.heartbeats() == [], "not worth a commit yet"
    await clock.advance(10 * NS_PER_S)
    await caller.plane.housekeep()
    store.close()

    store = open_store("sqlite", tmp_path)
    again = Caller(control_plane(store, clock), clock)
    same = RegisteredAgent(again, agent.agent_id, agent.token, {})
    now = await shown(again, same)
    assert (now["health"], now["state"], now["drained"]) == (HEALTH, "active", True)
    assert [one["type"] for one in await beat(same, 7)] == ["drain"], "a repeated one is answered"
    await again.tasks(1)
    assert await same.claim() == []
    store.close()


class Commits:
    """A writer's commits, of which those after the first so many fail."""

    def __init__(self, caller: Caller, passes: int) -> None:
        self.sizes: list[int] = []
        self.passes = passes
        self._write = caller.plane.writer.write

    async def write(self, operation: Any, items: int = 1) -> Any:
        if len(self.sizes) >= self.passes:
            raise RequestError(ErrorCode.STORAGE_FULL, "no room")
        self.sizes.append(items)
        return await self._write(operation, items)


async def test_what_was_not_written_is_written_later_and_little_at_a_time(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = caller.plane
    monkeypatch.setattr("netsonde.server.fleet.FLUSH_ROWS", 2)
    monkeypatch.setattr("netsonde.server.registry.FLUSH_ROWS", 2)
    for place in range(5):
        await beat(await caller.register(agent_key=f"{place}" * 32, instance_id="one"), 5)
    at_ns = plane.time.now_ns()
    failing = Commits(caller, 1)
    monkeypatch.setattr(plane.writer, "write", failing.write)
    for flush in (plane.fleet.flush, plane.registry.flush_seen):
        failing.sizes.clear()
        with pytest.raises(RequestError):
            await flush(at_once=True)
        assert failing.sizes == [2]
    failing.sizes.clear()
    failing.passes = 99
    await plane.fleet.flush(at_once=True)
    await plane.registry.flush_seen(at_once=True)
    assert failing.sizes == [2, 1, 2, 1], "those that were written are not written again"
    await plane.fleet.flush(at_once=True)
    await plane.registry.flush_seen(at_once=True)
    assert len(failing.sizes) == 4
    rows = await plane.writer.read(lambda store: store.heartbeats())
    assert [row.heard_ns for row in rows] == [at_ns] * 5
    agents = await plane.writer.read(lambda store: store.agents(0, 9))
    assert [row.last_seen_ns for row in agents] == [at_ns] * 5


async def test_a_late_heartbeat_of_an_earlier_instance_is_harmless(caller: Caller) -> None:
    old = await caller.register(instance_id="one")
    await beat(old, 5)
    new = await caller.register(instance_id="two")
    assert (await shown(caller, new))["state"] is None, "nothing is known of it yet"
    await order(caller, new, "drain")
    (command,) = await beat(new, 1, instance_id="two", health={"fds": 1})
    late = await beat(old, 99, "draining", health={"fds": 9}, done_commands=[command["id"]])
    assert late == [], "it is told nothing"
    now = await shown(caller, new)
    assert (now["state"], now["health"]) == ("active", {"fds": 1})
    assert [one["id"] for one in now["commands"]] == [command["id"]], "it settles nothing"


async def test_a_restart_forgets_no_registration(tmp_path: Path) -> None:
    clock, store = ManualClock(), open_store("sqlite", tmp_path)
    caller = Caller(control_plane(store, clock), clock)
    old = await caller.register(instance_id="one")
    await beat(old, 5)
    await caller.plane.fleet.flush(at_once=True)
    await caller.register(instance_id="two")
    store.close()  # before it was written down

    store = open_store("sqlite", tmp_path)
    again = Caller(control_plane(store, clock), clock)
    late = RegisteredAgent(again, old.agent_id, old.token, {})
    await beat(late, 99, "draining")
    assert (await shown(again, late))["state"] is None
    store.close()


async def test_a_heartbeat_that_was_overtaken_says_nothing_new(caller: Caller) -> None:
    agent = await caller.register(instance_id="one")
    await beat(agent, 3, "active", health={"fds": 3})
    await beat(agent, 2, "draining", health={"fds": 2})
    now = await shown(caller, agent)
    assert (now["state"], now["health"]) == ("active", {"fds": 3})


async def test_an_agent_with_a_given_identity_never_registers(memory: Caller) -> None:
    """Its next process is known by its heartbeats only."""
    agent = await memory.register(instance_id="one")
    for number in range(2 * RETIRED_MAX):
        await memory.clock.advance(2 * NS_PER_S)
        await beat(agent, 1, instance_id=f"run-{number}", health={"fds": number})
        assert (await shown(memory, agent))["health"] == {"fds": number}
    await beat(agent, 9, instance_id="run-13", health={"fds": 99})
    assert (await shown(memory, agent))["health"] == {"fds": 2 * RETIRED_MAX - 1}


@pytest.mark.parametrize("health", [{"x": "y" * 5000}, {"x": 10**30}])
async def test_health_that_cannot_be_kept_is_left_out(
    memory: Caller, health: dict[str, Any]
) -> None:
    agent = await memory.register(instance_id="one")
    await beat(agent, 1, active_leases={"count": -1, "ids": [4]}, health=health)
    now = await shown(memory, agent)
    assert (now["state"], now["active_leases"], now["health"]) == ("active", 1, {})


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"seq": -1}, "$.seq"),
        ({"seq": 2**60}, "$.seq"),
        ({"done_commands": [0]}, "$.done_commands"),
        ({"done_commands": [2**60]}, "$.done_commands"),
        ({"done_commands": [1] * (DONE_COMMANDS_MAX + 1)}, "$.done_commands"),
        ({"done_commands": ["x"]}, "$.done_commands[0]"),
    ],
)
async def test_bad_heartbeats_name_the_field(
    memory: Caller, body: dict[str, Any], path: str
) -> None:
    agent = await memory.register(instance_id="one")
    status, answer, _ = await agent.call("/heartbeat", {"instance_id": "one"} | body)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"][0]["path"] == path


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)


@given(
    health=st.dictionaries(st.text(max_size=9), JSON_VALUES),
    count=JSON_VALUES,
    state=st.none() | st.text(),
)
async def test_whatever_an_agent_says_it_is_shown(
    health: dict[str, Any], count: Any, state: str | None
) -> None:
    clock = ManualClock()
    store = MemoryStore()
    caller = Caller(control_plane(store, clock), clock)
    agent = await caller.register(instance_id="one")
    body = {"instance_id": "one", "seq": 1, "state": state, "health": health}
    body["active_leases"] = {"count": count, "ids": [1]}
    status, _, _ = await agent.call("/heartbeat", body)
    assert status in (200, 400), "text that is no UTF-8 is refused"
    now = await shown(caller, agent)
    if status == 200:
        assert now["state"] == (None if state is None else state[:32])
        assert now["health"] in (health, {})
        assert type(now["active_leases"]) is int
    await caller.plane.fleet.flush(at_once=True)
    assert len(store.heartbeats()[0].document) <= DOCUMENT_MAX_BYTES


# ── drain, resume ──


async def test_a_command_is_repeated_until_it_is_named(caller: Caller) -> None:
    agent = await caller.register(instance_id="one")
    drained = await order(caller, agent, "drain")
    assert (drained["drained"], drained["state"]) == (True, None)
    (command,) = await beat(agent, 1)
    assert command["type"] == "drain"
    assert await beat(agent, 2) == [command]
    assert await beat(agent, 3, "draining", done_commands=[command["id"], 4]) == []
    now = await shown(caller, agent)
    assert (now["drained"], now["state"], now["commands"]) == (True, "draining", [])
    assert await beat(agent, 4, "draining", done_commands=[command["id"]]) == []


async def test_the_last_order_counts(caller: Caller) -> None:
    agent = await caller.register(instance_id="one")
    await order(caller, agent, "drain")
    resumed = await order(caller, agent, "resume")
    assert (resumed["drained"], resumed["drained_at"]) == (False, None)
    assert [one["type"] for one in await beat(agent, 1)] == ["resume"]
    await order(caller, agent, "drain")
    await order(caller, agent, "drain")
    assert [one["type"] for one in await beat(agent, 2)] == ["drain"]


async def test_a_process_that_begins_drained_is_told_again(caller: Caller) -> None:
    agent = await caller.register(instance_id="one")
    await order(caller, agent, "drain")
    (first,) = await beat(agent, 1)
    await beat(agent, 2, "draining", done_commands=[first["id"]])
    again = await caller.register(instance_id="two")
    (second,) = await beat(again, 1, instance_id="two")
    assert second["type"] == "drain"
    assert second["id"] != first["id"]
    done = await beat(again, 2, "draining", instance_id="two", done_commands=[second["id"]])
    assert done == []


async def test_a_drained_agent_is_granted_nothing(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    (held,) = await agent.claim(1)
    await order(caller, agent, "drain")
    assert await agent.claim() == []
    assert await agent.report(held["lease_id"]) == ["accepted"], "what runs is finished"
    _, extended, _ = await agent.call("/extend", {"lease_ids": [], "extend_by_ms": 1})
    assert extended == {"outcomes": []}
    other = await caller.register(agent_key="k2" * 16)
    assert len(await other.claim()) == 1
    await order(caller, agent, "resume")
    await caller.tasks(1)
    assert len(await agent.claim()) == 1


async def test_a_claim_asks_the_store_itself(caller: Caller) -> None:
    """What this process knows comes after the commit; a claim may come in between."""
    agent = await caller.register()
    await caller.tasks(1)
    await caller.plane.writer.write(lambda store: store.drain_agent(agent.agent_id, 1))
    assert agent.agent_id not in caller.plane.fleet.drained
    assert await agent.claim() == []


async def test_a_lost_claim_is_resumed_although_its_agent_is_drained(caller: Caller) -> None:
    """Else its leases would be nobody's until they expire."""
    agent = await caller.register()
    await caller.tasks(2)
    granted = await agent.claim(1, claim_id="c")
    await order(caller, agent, "drain")
    resumed = await agent.claim(1, claim_id="c")
    assert [one["lease_id"] for one in resumed] == [one["lease_id"] for one in granted]


async def test_a_held_claim_ends_with_a_drain_and_swallows_no_work(memory: Caller) -> None:
    agent = await memory.register()
    other = await memory.register(agent_key="k2" * 16)
    async with asyncio.TaskGroup() as group:
        held = group.create_task(agent.claim(5, claim_id="a", wait_ms=50_000))
        await memory.clock.settle()
        await order(memory, agent, "drain")
        assert await settled(memory.clock, held, 10, 5) == []
        barred = group.create_task(agent.claim(5, claim_id="b", wait_ms=20_000))
        free = group.create_task(other.claim(5, wait_ms=20_000))
        await memory.clock.settle()
        await memory.tasks(1)
        assert len(await settled(memory.clock, free, 10, 5)) == 1, "it was not the longest waiting"
        await memory.tasks(1)
        await memory.clock.settle()
        assert not barred.done()
        await order(memory, agent, "resume")
        assert len(await settled(memory.clock, barred, 10, 5)) == 1


async def test_an_original_agent_is_held_back_without_a_word(memory: Caller) -> None:
    original = Caller(memory.plane, memory.clock, headers={})
    agent = await original.register(agent_key=None)
    await memory.tasks(1)
    assert (await order(memory, agent, "drain"))["commands"] == []
    async with asyncio.TaskGroup() as group:
        held = group.create_task(agent.claim(1))
        assert await settled(memory.clock, held, 1000, 25) == []
    status, answer, _ = await agent.call("/heartbeat", {})
    assert status == 200
    assert "commands" not in answer
    await order(memory, agent, "resume")
    assert len(await agent.claim(1)) == 1


@pytest.mark.parametrize("verb", ["drain", "resume", "revoke"])
@pytest.mark.parametrize("name", ["9", "0", "x", str(10**15), str(2**80)])
async def test_unknown_agents_are_404(memory: Caller, verb: str, name: str) -> None:
    status, answer, _ = await memory.operator("POST", f"/v1/agents/{name}/{verb}")
    assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")


async def test_an_order_under_a_key_is_given_once(caller: Caller) -> None:
    agent = await caller.register(instance_id="one")
    path = f"/v1/agents/{agent.agent_id}/drain"
    _, first, _ = await caller.operator("POST", path, idempotency_key="k")
    await order(caller, agent, "resume")
    _, again, _ = await caller.operator("POST", path, idempotency_key="k")
    assert again == first
    assert (await shown(caller, agent))["drained"] is False


# ── revoke ──


async def test_a_revoked_agent_is_shut_out_and_its_work_is_others(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(agent_key="k2" * 16)
    await caller.tasks(2)
    first, second = await agent.claim()
    revoked = await order(caller, agent, "revoke")
    assert (revoked["revoked"], revoked["disabled"], revoked["returned_leases"]) == (True, True, 2)
    assert revoked["in_flight"] == {}
    for path, body in (
        ("/claim", {"capacities": {"tcp": 1}}),
        ("/heartbeat", {}),
        ("/extend", {"lease_ids": [first["lease_id"]], "extend_by_ms": 1}),
        ("/report", {"completed": [], "cancelled": []}),
    ):
        status, answer, _ = await agent.call(path, body)
        assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")
    status, answer, _ = await caller.agent(
        "POST", "/register", {"hostname": "probe-1", "agent_key": "k1" * 16}
    )
    assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")
    regranted = await other.claim()
    assert [one["task_id"] for one in regranted] == [first["task_id"], second["task_id"]]
    assert {one["attempt"] for one in regranted} == {1}, "no attempt was consumed"


async def test_an_enabled_agent_has_to_register_again(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    (lease,) = await agent.claim()
    await order(caller, agent, "revoke")
    path = f"/v1/agents/{agent.agent_id}"
    _, enabled, _ = await caller.operator("PATCH", path, {"disabled": False})
    assert (enabled["revoked"], enabled["disabled"]) == (False, False)
    status, answer, _ = await agent.call("/heartbeat", {})
    assert (status, answer["error"]) == (401, "ERR_TOKEN_EXPIRED")
    again = await caller.register()
    assert again.agent_id == agent.agent_id
    assert await again.report(lease["lease_id"]) == ["fenced"]
    assert len(await again.claim()) == 1


async def test_disabling_alone_revokes_nothing(caller: Caller) -> None:
    agent = await caller.register()
    path = f"/v1/agents/{agent.agent_id}"
    _, disabled, _ = await caller.operator("PATCH", path, {"disabled": True})
    assert (disabled["revoked"], disabled["disabled"]) == (False, True)
    await caller.operator("PATCH", path, {"disabled": False})
    assert (await agent.call("/heartbeat", {}))[0] == 200


async def test_revoking_wakes_who_waits_for_the_work(memory: Caller) -> None:
    agent = await memory.register()
    other = await memory.register(agent_key="k2" * 16)
    await memory.tasks(1)
    await agent.claim()
    async with asyncio.TaskGroup() as group:
        held = group.create_task(other.claim(wait_ms=50_000))
        await memory.clock.settle()
        await order(memory, agent, "revoke")
        assert len(await settled(memory.clock, held, 10, 5)) == 1


async def test_pinned_work_waits_for_its_agent(caller: Caller) -> None:
    agent = await caller.register()
    await caller.operator("POST", "/v1/tasks", [PINNED | {"agent": agent.agent_id}])
    (lease,) = await agent.claim()
    await order(caller, agent, "revoke")
    await caller.operator("PATCH", f"/v1/agents/{agent.agent_id}", {"disabled": False})
    again = await caller.register()
    (granted,) = await again.claim()
    assert granted["task_id"] == lease["task_id"]
