"""Standing tasks: who gets them, what their leases are like, and what becomes of reported ticks."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S, instant_ns, rfc3339
from netsonde.model import Repeat
from netsonde.server.background import schedule_forever, sweep_forever
from netsonde.ticks import Grid
from support.stores import STORES, Caller, RegisteredAgent, callers, result_item

TCP = {"kind": "tcp", "targets": ["192.0.2.1:80"]}
EVERY = {"labels": {}, "all": True}
TERM_S = 3600


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


class Background:
    """The control plane's own loops, on the test's clock."""

    def __init__(self, caller: Caller) -> None:
        self._plane = caller.plane

    async def __aenter__(self) -> None:
        self._group = await asyncio.TaskGroup().__aenter__()
        loops = (schedule_forever(self._plane), sweep_forever(self._plane))
        self._tasks = [self._group.create_task(loop) for loop in loops]
        await self._plane.clock.settle()  # type: ignore[attr-defined]

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)


async def agent(caller: Caller, name: str, **labels: str) -> RegisteredAgent:
    key = name.encode().hex().ljust(32, "0")
    return await caller.register(hostname=name, agent_key=key, inventory={"labels": labels})


async def legacy_agent(caller: Caller, name: str) -> RegisteredAgent:
    sent = {"hostname": name}
    status, answer, _ = await caller.agent("POST", "/register", sent, netsonde_protocol="")
    assert status == 200, answer
    headers = {"netsonde_protocol": ""}
    return RegisteredAgent(caller, answer["agent_id"], answer["auth_token"], answer, headers)


async def create(caller: Caller, **fields: Any) -> dict[str, Any]:
    wanted = TCP | {"every_ms": 10_000, "select": EVERY} | fields
    status, made, _ = await caller.operator("POST", "/v1/checks", wanted)
    assert status == 201, made
    result: dict[str, Any] = made
    return result


async def check(caller: Caller, made: dict[str, Any]) -> dict[str, Any]:
    status, answer, _ = await caller.operator("GET", f"/v1/checks/{made['check_id']}")
    assert status == 200
    result: dict[str, Any] = answer
    return result


async def results(caller: Caller) -> list[dict[str, Any]]:
    _, answer, _ = await caller.operator("GET", "/v1/results?limit=1000")
    listed: list[dict[str, Any]] = answer["results"]
    return listed


async def counters(caller: Caller) -> dict[str, int]:
    _, answer, _ = await caller.operator("GET", "/v1/queues")
    listed: dict[str, int] = answer["counters"]
    return listed


def grid(lease: dict[str, Any]) -> Grid:
    return Grid(lease["task_id"], instant_ns(lease["scheduled_at"]), Repeat(**lease["repeat"]))


def tick_item(lease: dict[str, Any], tick: int, outcome: str = "ok") -> dict[str, Any]:
    scheduled_at = rfc3339(grid(lease).instant_ns(tick))
    return result_item(lease["lease_id"], outcome) | {"tick": tick, "scheduled_at": scheduled_at}


async def report(one: RegisteredAgent, *items: dict[str, Any]) -> list[str]:
    status, answer, _ = await one.call("/report", {"completed": list(items), "cancelled": []})
    assert status == 200, answer
    return [result["status"] for result in answer["results"]]


async def extend(one: RegisteredAgent, lease: dict[str, Any], by_s: int = TERM_S) -> Any:
    body = {"lease_ids": [lease["lease_id"]], "extend_by_ms": by_s * 1000}
    status, answer, _ = await one.call("/extend", body)
    assert status == 200
    return answer


# ── who gets them ──


async def test_a_repeated_check_is_one_standing_lease_per_agent_and_target(caller: Caller) -> None:
    agents = [await agent(caller, name) for name in "abc"]
    made = await create(caller, targets=["192.0.2.1:80", "192.0.2.2:80"], jitter_ms=500)
    assert (made["tasks"], made["next_at"]) == (6, None)
    for one in agents:
        leases = await one.claim(9)
        assert [lease["repeat"] for lease in leases] == [{"every_ms": 10_000, "jitter_ms": 500}] * 2
        assert [lease["scheduled_at"] for lease in leases] == [made["created_at"]] * 2
        assert {lease["check_id"] for lease in leases} == {made["check_id"]}
        assert [lease["next_tick"] for lease in leases] == [0, 0]
    async with Background(caller):
        await caller.clock.advance(100 * NS_PER_S)
    assert (await check(caller, made))["tasks"] == 6, "nothing is made tick by tick"


async def test_a_standing_lease_has_its_own_term_and_no_last_deadline(caller: Caller) -> None:
    one = await agent(caller, "a")
    await create(caller, stale_after_ms=700)
    (lease,) = await one.claim(1)
    assert (lease["lease_until_ms"], lease["offline_ms"]) == (TERM_S * 1000, 86_400_000)
    assert lease["repeat"]["stale_after_ms"] == 700
    assert "max_lease_ms" not in lease
    for _ in range(50):
        await caller.clock.advance(1800 * NS_PER_S)
        answer = await extend(one, lease)
        assert answer["results"][0]["status"] == "extended"
        assert answer["outcomes"][0]["new_deadline_ms"] == TERM_S * 1000


async def test_shared_checks_stay_a_task_per_tick(caller: Caller) -> None:
    one = await agent(caller, "a", site="ams")
    async with Background(caller):
        for select in ({"any": True}, {"labels": {"site": "ams"}}):
            made = await create(caller, select=select)
            await caller.clock.advance(25 * NS_PER_S)
            assert (await check(caller, made))["tasks"] == 3
    assert not any("repeat" in lease for lease in await one.claim(9))


async def test_original_agents_get_a_task_per_tick(caller: Caller) -> None:
    old = await legacy_agent(caller, "old")
    new = await agent(caller, "new")
    async with Background(caller):
        made = await create(caller)
        (standing,) = await new.claim(9)
        assert "repeat" in standing
        for number in range(3):
            leases = await old.claim(9, claim_id=f"c{number}")
            assert [("repeat" in lease) for lease in leases] == [False]
            await old.report(leases[0]["lease_id"])
            await caller.clock.advance(10 * NS_PER_S)
    assert (await check(caller, made))["tasks"] == 1 + 4
    assert made["next_at"] is not None


async def test_a_claim_without_the_protocol_gets_no_standing_task(caller: Caller) -> None:
    one = await agent(caller, "a")
    await create(caller)
    one.headers["netsonde_protocol"] = ""
    await caller.clock.settle()
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(one.claim(9))
        await caller.clock.advance(25 * NS_PER_S)
    assert claim.result() == []


async def test_agents_that_come_later_are_given_theirs(caller: Caller) -> None:
    async with Background(caller):
        made = await create(caller, select={"labels": {"site": "ams"}, "all": True})
        await caller.clock.advance(95 * NS_PER_S)
        assert (await check(caller, made))["tasks"] == 0
        late = await agent(caller, "late", site="ams")
        await caller.clock.settle()
        (lease,) = await late.claim(9)
    since_ns = instant_ns(lease["scheduled_at"]) - instant_ns(made["created_at"])
    assert since_ns == 90 * NS_PER_S, "it begins with the period that has begun, on the grid"


async def test_agents_that_match_no_more_lose_theirs(caller: Caller) -> None:
    one = await agent(caller, "a", site="ams")
    async with Background(caller):
        await create(caller, select={"labels": {"site": "ams"}, "all": True})
        (lease,) = await one.claim(9)
        await caller.operator("PATCH", f"/v1/agents/{one.agent_id}", {"labels": {"site": "fra"}})
        await caller.clock.advance(NS_PER_S)
        assert (await extend(one, lease))["revoked"] == [lease["lease_id"]]
        await caller.operator("PATCH", f"/v1/agents/{one.agent_id}", {"labels": {"site": "ams"}})
        await caller.clock.advance(NS_PER_S)
        (again,) = await one.claim(9)
    assert again["task_id"] != lease["task_id"]


async def test_what_changed_while_the_server_was_down_is_noticed(caller: Caller) -> None:
    made = await create(caller)
    await agent(caller, "a")
    async with Background(caller):
        pass
    assert (await check(caller, made))["tasks"] == 1


async def test_a_count_stays_with_its_agents_and_moves_little(caller: Caller) -> None:
    agents = [await agent(caller, name) for name in "abcdefgh"]
    async with Background(caller):
        await create(caller, select={"labels": {}, "count": 3})
        had = {one.agent_id for one in agents if await one.claim(9)}
        assert len(had) == 3
        await caller.operator("PATCH", f"/v1/agents/{min(had)}", {"disabled": True})
        await caller.clock.advance(NS_PER_S)
        more = {one.agent_id for one in agents if one.agent_id not in had and await one.claim(9)}
    assert len(more) == 1, "only the share of the one that left has moved"


# ── the life of a check ──


async def heartbeat(one: RegisteredAgent, *leases: dict[str, Any]) -> set[int]:
    ids = [lease["lease_id"] for lease in leases]
    _, answer, _ = await one.call("/heartbeat", {"active_leases": {"ids": ids}})
    return {*answer.get("revoked_leases", ()), *answer.get("unknown_leases", ())}


@pytest.mark.parametrize("how", ["delete", "disable", "patch", "cancel"])
async def test_calling_a_check_off_revokes_its_lease(caller: Caller, how: str) -> None:
    one = await agent(caller, "a")
    async with Background(caller):
        made = await create(caller)
        (lease,) = await one.claim(9)
        assert await heartbeat(one, lease) == set()
        path = f"/v1/checks/{made['check_id']}"
        match how:
            case "delete":
                await caller.operator("DELETE", path)
            case "disable":
                await caller.operator("PATCH", path, {"enabled": False})
            case "patch":
                await caller.operator("PATCH", path, {"every_ms": 5_000})
            case "cancel":
                await caller.operator("POST", f"{path}/cancel", {})
        assert await heartbeat(one, lease) == {lease["lease_id"]}
        await caller.clock.advance(10 * NS_PER_S)
        assert (await extend(one, lease))["revoked"] == [lease["lease_id"]]
        left = await one.claim(9, claim_id="again")
    if how in ("delete", "disable"):
        assert left == []
    else:
        assert [each["repeat"]["every_ms"] for each in left] == [
            5_000 if how == "patch" else 10_000
        ]
    _, listed, _ = await caller.operator("GET", f"/v1/agents/{one.agent_id}")
    assert listed["in_flight"] == ({"tcp": 1} if left else {})


async def test_a_cancelled_check_goes_on_with_its_next_tick(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller)
    await caller.clock.advance(3 * NS_PER_S)
    await caller.operator("POST", f"/v1/checks/{made['check_id']}/cancel", {})
    (lease,) = await one.claim(9)
    assert instant_ns(lease["scheduled_at"]) - instant_ns(made["created_at"]) == 10 * NS_PER_S


async def test_renaming_leaves_the_lease_alone(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller)
    (lease,) = await one.claim(9)
    await caller.operator("PATCH", f"/v1/checks/{made['check_id']}", {"name": "new"})
    assert (await extend(one, lease))["results"][0]["status"] == "extended"


async def test_enabling_a_check_gives_its_leases_again(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller, enabled=False)
    assert await one.claim(9) == []
    await caller.operator("PATCH", f"/v1/checks/{made['check_id']}", {"enabled": True})
    assert len(await one.claim(9, claim_id="b")) == 1


async def test_run_now_is_one_more_task_beside_the_standing_one(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller)
    (standing,) = await one.claim(9)
    path = f"/v1/checks/{made['check_id']}/run-now"
    _, ran, _ = await caller.operator("POST", path, {})
    assert (ran["tasks"], ran["skipped"]) == (1, 0)
    _, again, _ = await caller.operator("POST", path, {})
    assert (again["tasks"], again["skipped"]) == (0, 1), "the first one has not ended"
    (extra,) = await one.claim(9, claim_id="b")
    assert "repeat" not in extra
    assert await one.report(extra["lease_id"]) == ["accepted"]
    assert await report(one, tick_item(standing, 0)) == ["accepted"]


# ── ticks ──


async def test_every_tick_is_stored_once(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller, jitter_ms=3_000)
    (lease,) = await one.claim(9)
    items = [tick_item(lease, tick) for tick in (0, 1, 1, 2)]
    assert await report(one, *items) == ["accepted", "accepted", "duplicate", "accepted"]
    assert await report(one, *items[1:]) == ["duplicate"] * 3
    stored = await results(caller)
    assert [each["tick"] for each in stored] == [0, 1, 2]
    due = [items[place]["scheduled_at"] for place in (0, 1, 3)]
    assert [each["scheduled_at"] for each in stored] == due
    assert {(each["lease_id"], each["task_id"], each["attempt"]) for each in stored} == {
        (lease["lease_id"], lease["task_id"], 1)
    }
    assert (await extend(one, lease))["results"][0]["status"] == "extended", "it still stands"
    assert (await check(caller, made))["missed"] == 0


async def test_a_tick_says_which_it_is(caller: Caller) -> None:
    one = await agent(caller, "a")
    await create(caller, jitter_ms=3_000)
    (lease,) = await one.claim(9)
    right = tick_item(lease, 4)
    wrong = [
        result_item(lease["lease_id"]),
        {name: value for name, value in right.items() if name != "tick"},
        {name: value for name, value in right.items() if name != "scheduled_at"},
        right | {"tick": 5},
        right | {"scheduled_at": "2026-99-99T00:00:00Z"},
        right | {"tick": 2**62},
    ]
    assert await report(one, *wrong, right) == ["invalid"] * 6 + ["accepted"]


async def test_a_failed_tick_is_a_result_and_no_attempt(caller: Caller) -> None:
    one = await agent(caller, "a")
    await create(caller, max_attempts=1)
    (lease,) = await one.claim(9)
    outcomes = ("agent_error", "cancelled", "target_error", "of_tomorrow")
    items = [tick_item(lease, tick, outcome) for tick, outcome in enumerate(outcomes)]
    assert await report(one, *items) == ["accepted"] * 4
    assert [each["outcome"] for each in await results(caller)] == list(outcomes)
    assert (await extend(one, lease))["results"][0]["status"] == "extended"


async def test_a_strangers_tick_is_fenced(caller: Caller) -> None:
    one, other = await agent(caller, "a"), await agent(caller, "b")
    await create(caller, select={"agents": ["a"]})
    (lease,) = await one.claim(9)
    assert await report(other, tick_item(lease, 0)) == ["fenced"]
    assert await results(caller) == []


async def test_ticks_in_between_are_missed_until_they_come(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller)
    (lease,) = await one.claim(9)
    await report(one, tick_item(lease, 0), tick_item(lease, 5))
    assert (await check(caller, made))["missed"] == 4
    await report(one, tick_item(lease, 2), tick_item(lease, 2))
    assert (await check(caller, made))["missed"] == 3
    assert (await counters(caller))["missed"] == 3


async def test_what_was_due_before_the_check_was_called_off_is_taken(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller)
    (lease,) = await one.claim(9)
    await caller.clock.advance(25 * NS_PER_S)
    await caller.operator("DELETE", f"/v1/checks/{made['check_id']}")
    async with Background(caller):
        await caller.clock.advance(60 * NS_PER_S)
    items = [tick_item(lease, tick) for tick in range(4)]
    assert await report(one, *items) == ["late_accepted"] * 3 + ["fenced"]
    assert await report(one, *items) == ["duplicate"] * 3 + ["fenced"]


# ── outages, restarts, drains ──


async def test_an_expired_lease_is_revived_and_no_attempt_consumed(caller: Caller) -> None:
    one = await agent(caller, "a")
    await create(caller, max_attempts=1)
    (lease,) = await one.claim(9)
    async with Background(caller):
        await caller.clock.advance(6 * 3600 * NS_PER_S)
        assert (await counters(caller))["expired"] == 1
        assert await report(one, tick_item(lease, 0)) == ["late_accepted"]
        assert (await extend(one, lease))["results"][0]["status"] == "extended"
        assert await report(one, tick_item(lease, 1)) == ["accepted"]
    _, dead, _ = await caller.operator("GET", "/v1/dead-letters")
    assert dead["dead_letters"] == []


async def test_ticks_of_an_earlier_lease_are_taken_and_the_new_one_goes_on(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller)
    (first,) = await one.claim(9)
    await report(one, tick_item(first, 0))
    async with Background(caller):
        await caller.clock.advance(2 * 3600 * NS_PER_S)
        (second,) = await one.claim(9, claim_id="again")
    assert (second["task_id"], second["attempt"], second["next_tick"]) == (first["task_id"], 1, 1)
    assert second["lease_id"] > first["lease_id"]
    assert second["scheduled_at"] == first["scheduled_at"]
    assert await report(one, tick_item(first, 1), tick_item(second, 1), tick_item(second, 2)) == [
        "late_accepted",
        "duplicate",
        "accepted",
    ]
    answer = await extend(one, first)
    assert answer["results"][0]["status"] == "extended", "who has not heard of the new one goes on"
    assert await heartbeat(one, first, second) == set()
    await caller.operator("DELETE", f"/v1/checks/{made['check_id']}")
    assert await heartbeat(one, first, second) == {first["lease_id"], second["lease_id"]}


async def test_drains_and_restarts_consume_nothing_however_many(caller: Caller) -> None:
    key = "5" * 32
    one = await caller.register(agent_key=key, instance_id="0")
    await create(caller, max_attempts=1)
    for number in range(15):
        await caller.clock.advance(120 * NS_PER_S)
        (lease,) = await one.claim(9, claim_id=f"c{number}")
        assert lease["attempt"] == 1
        if number % 2:
            await one.call("/release", {"lease_ids": [lease["lease_id"]]})
        else:
            one = await caller.register(agent_key=key, instance_id=f"{number + 1}")


async def test_a_lost_claim_is_found_again_for_the_whole_term(caller: Caller) -> None:
    one = await agent(caller, "a")
    await create(caller)
    (lease,) = await one.claim(9, claim_id="lost")
    await caller.clock.advance(1800 * NS_PER_S)
    (again,) = await one.claim(9, claim_id="lost")
    assert again["lease_id"] == lease["lease_id"]
    assert again["lease_until_ms"] == 1_800_000


async def test_leases_are_forgotten_when_nobody_can_report_under_them(caller: Caller) -> None:
    one = await agent(caller, "a")
    made = await create(caller)
    (lease,) = await one.claim(9)
    await caller.operator("DELETE", f"/v1/checks/{made['check_id']}")
    await caller.plane.housekeep()
    store = caller.plane.writer
    ids = [lease["lease_id"]]
    assert await store.read(lambda store: store.standing_leases(ids))
    for _ in range(9):
        await caller.clock.advance(24 * 3600 * NS_PER_S)
    await caller.plane.housekeep()
    assert not await store.read(lambda store: store.standing_leases(ids))


# ── one-off tasks that repeat ──


def repeated(**changes: Any) -> dict[str, Any]:
    repeat = {"every_ms": 1_000, "ticks": 3} | changes
    spec = {"host": "192.0.2.1", "port": 80}
    return {"kind": "tcp", "spec": spec, "agent": "a", "repeat": repeat}


async def test_the_last_tick_ends_a_task_with_ticks(caller: Caller) -> None:
    one = await agent(caller, "a")
    await caller.operator("POST", "/v1/tasks", [repeated()])
    (lease,) = await one.claim(9)
    assert lease["repeat"] == {"every_ms": 1_000, "jitter_ms": 0, "ticks": 3}
    beyond = tick_item(lease, 2) | {"tick": 3, "scheduled_at": rfc3339(grid(lease).instant_ns(3))}
    items = [tick_item(lease, 1), tick_item(lease, 2), beyond, tick_item(lease, 0)]
    assert await report(one, *items) == ["accepted", "accepted", "invalid", "accepted"]
    async with Background(caller):
        await caller.clock.advance(10 * NS_PER_S)
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert queues["queues"] == []
    assert (await extend(one, lease))["revoked"] == [lease["lease_id"]]


async def test_a_task_whose_last_tick_was_missed_ends_too(caller: Caller) -> None:
    one = await agent(caller, "a")
    await caller.operator("POST", "/v1/tasks", [repeated()])
    (lease,) = await one.claim(9)
    async with Background(caller):
        await caller.clock.advance(10 * NS_PER_S)
        await one.call("/release", {"lease_ids": [lease["lease_id"]]})
        await caller.clock.advance(2 * NS_PER_S)
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert (queues["queues"], queues["counters"]["stale"]) == ([], 1)
    assert await report(one, tick_item(lease, 1)) == ["late_accepted"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"repeat": {"every_ms": 1_000}}, "$.repeat"),
        ({"repeat": {"every_ms": 1, "ticks": 1}}, "$.repeat.every_ms"),
        ({"repeat": {"every_ms": 1_000, "ticks": 0}}, "$.repeat.ticks"),
        ({"repeat": {"every_ms": 1_000, "ticks": 1, "jitter_ms": 1_000}}, "$.repeat.jitter_ms"),
        ({"repeat": {"every_ms": 1_000, "ticks": 1, "often": 1}}, "$.repeat.often"),
        ({"agent": None}, "$.repeat"),
        ({"agent": "old"}, "$.repeat"),
    ],
)
async def test_a_wrong_repeat_is_refused(caller: Caller, change: dict[str, Any], path: str) -> None:
    await agent(caller, "a")
    await legacy_agent(caller, "old")
    _, answer, _ = await caller.operator("POST", "/v1/tasks", [repeated() | change])
    (item,) = answer["tasks"]
    assert item["error"] == "ERR_VALIDATION"
    assert item["violations"][0]["path"] == path
