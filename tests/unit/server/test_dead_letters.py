"""Dead letters through dispatch: found, tried again, given up for good."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S
from netsonde.server.operator.dead_letters import BULK_MAX
from support.stores import STORES, Caller, RegisteredAgent, callers, settled


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


async def died(
    caller: Caller,
    agent: RegisteredAgent,
    count: int = 1,
    outcome: str = "agent_error",
    **task: Any,
) -> list[dict[str, Any]]:
    """Let tasks die in the agent's hands, by a report or unreported; return their leases."""
    await caller.tasks(count, max_attempts=1, **task)
    kind = task.get("kind", "tcp")
    leases = await agent.claim(capacities={kind: count})
    assert len(leases) == count
    if outcome:
        await agent.report(*(lease["lease_id"] for lease in leases), outcome=outcome)
    else:
        await caller.clock.advance(30 * NS_PER_S)
        await caller.plane.sweep(may_expire=True)
    return leases


async def letters(caller: Caller, query: str = "") -> list[int]:
    status, answer, _ = await caller.operator("GET", f"/v1/dead-letters{query}")
    assert status == 200, answer
    return [one["task_id"] for one in answer["dead_letters"]]


async def results(caller: Caller, query: str = "") -> list[tuple[int, str]]:
    _, answer, _ = await caller.operator("GET", f"/v1/results{query}")
    return [(one["task_id"], one["outcome"]) for one in answer["results"]]


async def test_a_dead_letter_is_shown(caller: Caller) -> None:
    agent = await caller.register()
    (lease,) = await died(caller, agent)
    path = f"/v1/dead-letters/{lease['task_id']}"
    status, letter, _ = await caller.operator("GET", path)
    assert status == 200
    assert (letter["kind"], letter["attempt"], letter["max_attempts"]) == ("tcp", 1, 1)
    _, listed, _ = await caller.operator("GET", "/v1/dead-letters")
    assert listed["dead_letters"] == [letter]
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert queues["dead_letters"] == 1


async def test_a_requeued_task_gets_fresh_attempts(caller: Caller) -> None:
    agent = await caller.register()
    (lease,) = await died(caller, agent)
    task_id = lease["task_id"]
    assert await results(caller) == [(task_id, "agent_error")]
    path = f"/v1/dead-letters/{task_id}/requeue"
    status, answer, _ = await caller.operator("POST", path)
    assert (status, answer) == (200, {"task_id": task_id, "requeued": 1})
    assert await letters(caller) == []
    assert await results(caller) == [], "that result was one of an attempt that is tried again"
    assert await agent.report(lease["lease_id"]) == ["duplicate"]
    (again,) = await agent.claim()
    assert (again["task_id"], again["attempt"], again["spec"]) == (task_id, 1, lease["spec"])
    assert await agent.report(again["lease_id"]) == ["accepted"]
    assert await results(caller) == [(task_id, "ok")]
    assert await results(caller, "?final=any") == [(task_id, "agent_error"), (task_id, "ok")]
    status, answer, _ = await caller.operator("POST", path)
    assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")
    assert "its result came after all" in answer["message"]


async def test_a_late_result_that_came_first_wins(caller: Caller) -> None:
    agent = await caller.register()
    (lease,) = await died(caller, agent, outcome="")
    assert await agent.report(lease["lease_id"]) == ["late_accepted"]
    path = f"/v1/dead-letters/{lease['task_id']}/requeue"
    assert (await caller.operator("POST", path))[0] == 404
    assert await agent.claim() == []


async def test_a_late_result_after_a_requeue_spares_the_work(caller: Caller) -> None:
    agent = await caller.register()
    (lease,) = await died(caller, agent, outcome="")
    task_id = lease["task_id"]
    assert (await caller.operator("POST", f"/v1/dead-letters/{task_id}/requeue"))[0] == 200
    assert await agent.report(lease["lease_id"]) == ["late_accepted"]
    assert await results(caller) == [(task_id, "ok")]
    assert await agent.claim() == [], "nobody has to do it again"
    assert await agent.report(lease["lease_id"]) == ["duplicate"]


async def test_a_late_result_after_the_next_grant_is_fenced(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(agent_key="k2" * 16)
    (lease,) = await died(caller, agent, outcome="")
    await caller.operator("POST", f"/v1/dead-letters/{lease['task_id']}/requeue")
    (again,) = await other.claim()
    assert await agent.report(lease["lease_id"]) == ["fenced"]
    assert await other.report(again["lease_id"]) == ["accepted"]


async def test_a_requeued_task_dies_again_after_its_attempts(caller: Caller) -> None:
    agent = await caller.register()
    (lease,) = await died(caller, agent, outcome="")
    await caller.operator("POST", f"/v1/dead-letters/{lease['task_id']}/requeue")
    await agent.claim()
    await caller.clock.advance(30 * NS_PER_S)
    await caller.plane.sweep(may_expire=True)
    assert await letters(caller) == [lease["task_id"]]


async def test_a_requeue_wakes_who_waits(memory: Caller) -> None:
    agent = await memory.register()
    (lease,) = await died(memory, agent)
    async with asyncio.TaskGroup() as group:
        held = group.create_task(agent.claim(wait_ms=50_000))
        await memory.clock.settle()
        await memory.operator("POST", f"/v1/dead-letters/{lease['task_id']}/requeue")
        assert len(await settled(memory.clock, held, 10, 5)) == 1


async def test_one_that_is_deleted_is_given_up_for_good(caller: Caller) -> None:
    agent = await caller.register()
    (lease,) = await died(caller, agent, outcome="")
    path = f"/v1/dead-letters/{lease['task_id']}"
    status, answer, _ = await caller.operator("DELETE", path)
    assert (status, answer) == (200, {"task_id": lease["task_id"], "deleted": 1})
    assert (await caller.operator("DELETE", path))[0] == 404
    assert await agent.report(lease["lease_id"]) == ["fenced"]
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert queues["counters"]["discarded"] == 1


async def test_many_are_chosen_by_what_they_are(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(agent_key="k2" * 16, hostname="probe-2")
    tcp = [lease["task_id"] for lease in await died(caller, agent, 3)]
    dns = [
        lease["task_id"]
        for lease in await died(caller, other, 2, kind="dns", spec={"query": "example.net"})
    ]
    assert await letters(caller, "?kind=dns") == dns[::-1]
    assert await letters(caller, "?agent=probe-2&limit=1") == dns[:0:-1]
    assert await letters(caller, f"?agent={agent.agent_id}&kind=dns") == []

    status, answer, _ = await caller.operator(
        "POST", "/v1/dead-letters/requeue", {"kind": "tcp", "limit": 2}
    )
    assert (status, answer) == (200, {"requeued": 2, "more": True})
    assert await letters(caller) == [*dns[::-1], tcp[0]]
    _, answer, _ = await caller.operator("POST", "/v1/dead-letters/delete", {"agent": "probe-2"})
    assert answer == {"deleted": 2, "more": False}
    _, answer, _ = await caller.operator("POST", "/v1/dead-letters/requeue", {"all": True})
    assert answer == {"requeued": 1, "more": False}
    _, answer, _ = await caller.operator("POST", "/v1/dead-letters/delete", {"all": True})
    assert answer == {"deleted": 0, "more": False}
    assert len(await agent.claim()) == 3
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert (queues["counters"]["requeued"], queues["counters"]["discarded"]) == (3, 2)


async def test_a_time_of_death_chooses_too(caller: Caller) -> None:
    agent = await caller.register()
    (first,) = await died(caller, agent)
    await caller.clock.advance(60 * NS_PER_S)
    (second,) = await died(caller, agent)
    _, listed, _ = await caller.operator("GET", "/v1/dead-letters")
    at = listed["dead_letters"][0]["died_at"]
    assert await letters(caller, f"?from={at}") == [second["task_id"]]
    assert await letters(caller, f"?to={at}") == [first["task_id"]]
    _, answer, _ = await caller.operator("POST", "/v1/dead-letters/delete", {"died_to": at})
    assert answer == {"deleted": 1, "more": False}
    assert await letters(caller) == [second["task_id"]]


@pytest.mark.parametrize("call", ["requeue", "delete"])
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$."),
        ({"all": True, "kind": "tcp"}, "$."),
        ({"limit": 5}, "$."),
        ({"all": True, "limit": 0}, "$.limit"),
        ({"all": True, "limit": BULK_MAX + 1}, "$.limit"),
        ({"kind": "quic"}, "$.kind"),
        ({"check_id": 0}, "$.check_id"),
        ({"check_id": 2**60}, "$.check_id"),
        ({"agent": 10**30}, "$.agent"),
        ({"agent": "9" * 5000}, "$.agent"),
        ({"agent": "nobody"}, "$.agent"),
        ({"died_from": "yesterday"}, "$.died_from"),
        ({"colour": "red"}, "$.colour"),
    ],
)
async def test_bad_selections_name_the_field(
    memory: Caller, call: str, body: dict[str, Any], path: str
) -> None:
    status, answer, _ = await memory.operator("POST", f"/v1/dead-letters/{call}", body)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"][0]["path"] == path


@pytest.mark.parametrize(
    "query", ["kind=quic", "agent=nobody", "check_id=0", "from=x", "limit=0", "cursor=x", "a=b"]
)
async def test_bad_queries_are_refused(memory: Caller, query: str) -> None:
    status, answer, _ = await memory.operator("GET", f"/v1/dead-letters?{query}")
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


@pytest.mark.parametrize("name", ["9", "x", str(10**15), str(2**80)])
async def test_unknown_letters_are_404(memory: Caller, name: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/requeue")):
        status, answer, _ = await memory.operator(method, f"/v1/dead-letters/{name}{path}")
        assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")


async def test_queues_tell_totals_per_kind(caller: Caller) -> None:
    agent = await caller.register()
    await caller.operator(
        "POST", "/v1/tasks", [{"kind": "tcp", "spec": {"host": "h", "port": 1}, "agent": 1}]
    )
    await caller.clock.advance(2 * NS_PER_S)
    await caller.tasks(2)
    await agent.claim(1)
    await caller.tasks(1, kind="dns", spec={"query": "example.net"})
    await caller.clock.advance(3 * NS_PER_S)
    _, answer, _ = await caller.operator("GET", "/v1/queues")
    assert answer["totals"] == [
        {"kind": "dns", "queues": 1, "ready": 1, "delayed": 0, "leased": 0, "oldest_ms": 3000},
        {"kind": "tcp", "queues": 2, "ready": 2, "delayed": 0, "leased": 1, "oldest_ms": 3000},
    ]
    assert answer["dead_letters"] == 0
