"""Who gets the tasks of a check, and when: selection, ticks, overlap, staleness."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.server.background import schedule_forever, sweep_forever
from netsonde.server.checks import run_tick
from netsonde.server.store.checks import CheckRow
from support.stores import STORES, Caller, RegisteredAgent, callers, open_store

TCP = {"kind": "tcp", "targets": ["192.0.2.1:80"]}


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


async def fleet(caller: Caller, count: int = 3) -> list[RegisteredAgent]:
    """Agents a, b, c…: all at site ams, the last one at fra."""
    return [
        await caller.register(
            hostname=chr(ord("a") + number),
            agent_key=f"{number}" * 32,
            inventory={"labels": {"site": "fra" if number == count - 1 else "ams"}},
        )
        for number in range(count)
    ]


async def create(caller: Caller, **fields: Any) -> dict[str, Any]:
    status, made, _ = await caller.operator("POST", "/v1/checks", TCP | fields)
    assert status == 201, made
    result: dict[str, Any] = made
    return result


async def granted(agents: list[RegisteredAgent], claim_id: str = "c") -> list[int]:
    """How many leases each agent gets, in the order given."""
    return [len(await agent.claim(9, claim_id=claim_id)) for agent in agents]


async def test_any_is_one_task_for_whoever_asks_first(caller: Caller) -> None:
    agents = await fleet(caller)
    assert (await create(caller, select={"any": True}))["tasks"] == 1
    assert await granted(agents) == [1, 0, 0]


async def test_labels_are_one_task_for_a_matching_agent(caller: Caller) -> None:
    agents = await fleet(caller)
    assert (await create(caller, select={"labels": {"site": "fra"}}))["tasks"] == 1
    assert await granted(agents) == [0, 0, 1]


async def test_labels_all_pins_a_task_to_every_matching_agent(caller: Caller) -> None:
    agents = await fleet(caller)
    made = await create(caller, select={"labels": {"site": "ams"}, "all": True})
    assert made["tasks"] == 2
    assert await granted(agents) == [1, 1, 0]


async def test_no_labels_and_all_is_every_agent(caller: Caller) -> None:
    agents = await fleet(caller)
    await create(caller, select={"labels": {}, "all": True})
    assert await granted(agents) == [1, 1, 1]


async def test_named_agents_by_id_or_hostname(caller: Caller) -> None:
    agents = await fleet(caller)
    await create(caller, select={"agents": ["a", agents[2].agent_id]})
    assert await granted(agents) == [1, 0, 1]


async def test_a_count_takes_turns(caller: Caller) -> None:
    agents = await fleet(caller)
    made = await create(caller, select={"agents": ["a", "b", "c"], "count": 2})
    seen = [await granted(agents, "c0")]
    for turn in (1, 2):
        for agent in agents:
            await agent.call("/release", {"claim_ids": [f"c{turn - 1}"]})
        await caller.operator("POST", f"/v1/checks/{made['check_id']}/cancel")
        await caller.operator("POST", f"/v1/checks/{made['check_id']}/run-now")
        seen.append(await granted(agents, f"c{turn}"))
    assert seen == [[1, 1, 0], [1, 0, 1], [0, 1, 1]]


async def test_a_retry_stays_on_its_agent(caller: Caller) -> None:
    agents = await fleet(caller)
    await create(caller, select={"agents": ["b"]})
    (lease,) = await agents[1].claim(1)
    await agents[1].report(lease["lease_id"], outcome="agent_error")
    await caller.clock.advance(60 * NS_PER_S)
    assert await granted(agents, "again") == [0, 1, 0]


async def test_disabled_agents_are_passed_over(caller: Caller) -> None:
    agents = await fleet(caller)
    await caller.operator("PATCH", f"/v1/agents/{agents[0].agent_id}", {"disabled": True})
    made = await create(caller, select={"labels": {"site": "ams"}, "all": True})
    assert made["tasks"] == 1


async def test_repeated_targets_are_one_task(caller: Caller) -> None:
    assert (await create(caller, targets=["192.0.2.1:80", "192.0.2.1:80"]))["tasks"] == 1


class Background:
    """The control plane's own loops, on the test's clock."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def __aenter__(self) -> "Background":
        self._group = await asyncio.TaskGroup().__aenter__()
        plane = self._caller.plane
        self._tasks = [
            self._group.create_task(schedule_forever(plane)),
            self._group.create_task(sweep_forever(plane)),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)


async def test_a_repeated_check_ticks_on_its_own_grid(caller: Caller) -> None:
    agent = await caller.register()
    scheduled: list[str] = []
    async with Background(caller):
        made = await create(caller, every_ms=10_000)
        for number in range(3):
            for lease in await agent.claim(9, claim_id=f"c{number}"):
                scheduled.append(lease["scheduled_at"])
                await agent.report(lease["lease_id"])
            await caller.clock.advance(10 * NS_PER_S)
    start = made["created_at"]
    assert [one[17:19] for one in scheduled] == ["20", "30", "40"], start


async def test_jitter_spreads_but_keeps_the_grid(caller: Caller) -> None:
    agent = await caller.register()
    seconds: list[float] = []
    async with Background(caller):
        await create(caller, every_ms=10_000, jitter_ms=5_000)
        for number in range(60):
            await caller.clock.advance(NS_PER_S)
            for lease in await agent.claim(9, claim_id=f"c{number}"):
                minute, second = lease["scheduled_at"][14:].removesuffix("Z").split(":")
                seconds.append((int(minute) * 60 + float(second) - 20) % 3600 % 10)
                await agent.report(lease["lease_id"])
    assert len(seconds) >= 6
    assert all(0 <= second <= 5 for second in seconds)
    assert len(set(seconds)) > 3


async def test_a_tick_that_overlaps_is_skipped_and_counted(caller: Caller) -> None:
    agent = await caller.register()
    async with Background(caller):
        made = await create(caller, every_ms=5_000)
        await agent.claim(1)
        for _ in range(3):
            await caller.clock.advance(5 * NS_PER_S)
    _, now, _ = await caller.operator("GET", f"/v1/checks/{made['check_id']}")
    assert (now["tasks"], now["skipped"]) == (1, 3)
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert queues["counters"]["overlap"] == 3


async def test_what_nobody_ran_in_time_is_dropped_and_counted(caller: Caller) -> None:
    async with Background(caller):
        await create(caller, every_ms=60_000, stale_after_ms=2_000)
        await caller.clock.advance(10 * NS_PER_S)
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert (queues["queues"], queues["counters"]) == ([], {"stale": 1})


async def test_missed_ticks_are_not_made_up(caller: Caller) -> None:
    made = await create(caller, every_ms=10_000, stale_after_ms=1_000)
    await caller.clock.advance(1_000 * NS_PER_S)
    async with Background(caller):
        await caller.clock.settle()
    _, now, _ = await caller.operator("GET", f"/v1/checks/{made['check_id']}")
    assert now["tasks"] + now["skipped"] == 2


async def test_while_nobody_works_there_is_always_the_latest_tick_to_do(caller: Caller) -> None:
    async with Background(caller):
        made = await create(caller, every_ms=10_000)
        for _ in range(5):
            await caller.clock.advance(10 * NS_PER_S)
        _, now, _ = await caller.operator("GET", f"/v1/checks/{made['check_id']}")
        agent = await caller.register()
        (lease,) = await agent.claim(9)
    assert (now["tasks"], now["skipped"]) == (6, 0)
    assert lease["scheduled_at"][17:19] == "10"  # the sixth: 50 s after the first at :20


def test_lateness_within_the_jitter_costs_no_tick(tmp_path: Path) -> None:
    store = open_store("memory", tmp_path)
    definition = {**TCP, "every_ms": 10_000, "jitter_ms": 9_999}
    for check_id in range(1, 50):
        row = CheckRow(
            check_id=check_id,
            document=json.dumps(definition).encode(),
            is_enabled=True,
            next_ns=9_999 * NS_PER_MS,
            created_ns=0,
        )
        tick = run_tick(store, row, [], 10_001 * NS_PER_MS, default_attempts=3)
        assert tick.check.next_ns is not None
        assert 10_001 * NS_PER_MS < tick.check.next_ns < 20_000 * NS_PER_MS


async def test_a_check_nobody_understands_stops_no_other(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    broken = await create(caller)
    store = caller.plane.writer
    row = await store.read(lambda store: store.check(broken["check_id"]))
    assert row is not None
    bad = replace(row, document=b'{"kind":"tcp","targets":["no port"]}', next_ns=1)
    await store.write(lambda store: store.save_check(bad))
    async with Background(caller):
        made = await create(caller, every_ms=10_000)
        await caller.clock.advance(30 * NS_PER_S)
    _, now, _ = await caller.operator("GET", f"/v1/checks/{made['check_id']}")
    assert now["tasks"] == 4
    assert caplog.text.count("does not run") == 1


async def test_a_check_that_runs_once_waits_for_its_agent(caller: Caller) -> None:
    async with Background(caller):
        made = await create(caller, select={"agents": ["late-comer"]})
        assert made["tasks"] == 0
        await caller.clock.advance(5 * NS_PER_S)
        agent = await caller.register(hostname="late-comer")
        await caller.clock.advance(2 * NS_PER_S)
        assert len(await agent.claim(5)) == 1
        await caller.clock.advance(5 * NS_PER_S)
    _, now, _ = await caller.operator("GET", f"/v1/checks/{made['check_id']}")
    assert (now["tasks"], now["next_at"]) == (1, None)


async def test_a_new_label_queue_wakes_who_already_waits(caller: Caller) -> None:
    agent = await caller.register(inventory={"labels": {"site": "ams"}})
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(agent.claim(1, claim_id="c", wait_ms=30_000))
        await caller.clock.advance(NS_PER_S)
        await create(caller, select={"labels": {"site": "ams"}})
        await caller.clock.advance(NS_PER_MS)
        assert claim.done()
    assert len(claim.result()) == 1


async def test_expired_leases_come_back_by_themselves(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    async with Background(caller):
        (first,) = await agent.claim(1, claim_id="a")
        async with asyncio.TaskGroup() as group:
            claim = group.create_task(agent.claim(1, claim_id="b", wait_ms=50_000))
            for _ in range(40):
                await caller.clock.advance(NS_PER_S)
            assert claim.done()
    (again,) = claim.result()
    assert (again["task_id"], again["attempt"]) == (first["task_id"], 2)
    assert 22_000 <= again["granted_after_ms"] <= 26_000


async def test_a_restarted_server_expires_nothing_for_one_grace(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    (lease,) = await agent.claim(1)
    await caller.clock.advance(3600 * NS_PER_S)
    async with Background(caller):
        await caller.clock.advance(1_900 * NS_PER_MS)
        _, answer, _ = await agent.call(
            "/extend", {"lease_ids": [lease["lease_id"]], "extend_by_ms": 20_000}
        )
        assert answer["results"][0]["status"] == "capped", "600 s are over, but it is still held"
        assert await agent.report(lease["lease_id"]) == ["late_accepted"]
