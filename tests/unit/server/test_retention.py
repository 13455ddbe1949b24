"""Retention over a control plane: what goes, what is still recognised, and who waits for it."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock, rfc3339
from netsonde.errors import StorageError
from netsonde.server.core import SPOOLED_NS
from netsonde.server.retention import (
    ROUND_NS,
    STEP_ROWS,
    Retention,
    keep_in_bounds_forever,
)
from netsonde.server.store import MemoryStore, Store
from netsonde.server.store.results import ResultQuery
from netsonde.server.store.retention import StoreSize
from support.driving import finish
from support.stores import (
    STORES,
    Caller,
    RegisteredAgent,
    config,
    control_plane,
    open_store,
    result_item,
)

DAY_NS = 86_400 * NS_PER_S
HORIZON_NS = DAY_NS + SPOOLED_NS  # offline_ms and what a host that was off may keep
RETAIN = {"retain_results_ms": 3_600_000, "retain_dead_letters_ms": 7_200_000}


NOW_NS = 1_790_000_000 * NS_PER_S  # 2026: lease ids tell the time from 2025 on


def callers(name: str, directory: Path, **changes: Any) -> Iterator[Caller]:
    """Yield a caller of a fresh control plane."""
    clock = ManualClock(realtime_ns=NOW_NS)
    store = open_store(name, directory)
    try:
        yield Caller(control_plane(store, clock, config(**changes)), clock)
    finally:
        store.close()


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path, **RETAIN)


async def results(caller: Caller) -> int:
    return len(await caller.plane.writer.read(lambda store: store.results(ResultQuery(limit=9999))))


async def run_some(agent: RegisteredAgent, count: int) -> list[int]:
    """Measure tasks; return their leases."""
    await agent.caller.tasks(count)
    leases = [lease["lease_id"] for lease in await agent.claim(count)]
    assert await agent.report(*leases) == ["accepted"] * count
    return leases


async def expire(caller: Caller) -> None:
    await finish(caller.clock, Retention(caller.plane).expire())


async def test_old_results_go_and_young_ones_stay(caller: Caller) -> None:
    agent = await caller.register()
    await run_some(agent, 3)
    await caller.clock.advance(3_601 * NS_PER_S)
    await run_some(agent, 2)
    await expire(caller)
    assert await results(caller) == 2
    _, answer, _ = await caller.operator("GET", "/v1/storage")
    assert (answer["first_result_id"], answer["counters"]["results_expired"]) == (4, 3)
    assert answer["oldest_result_at"] is not None


async def test_without_a_bound_everything_stays(tmp_path: Path) -> None:
    for caller in callers("sqlite", tmp_path, retain_results_ms=0):
        agent = await caller.register()
        await run_some(agent, 3)
        await caller.clock.advance(4_000 * DAY_NS)
        await expire(caller)
        assert await results(caller) == 3


async def test_a_result_that_has_gone_is_a_duplicate_for_as_long_as_agents_spool(
    caller: Caller,
) -> None:
    agent = await caller.register()
    leases = await run_some(agent, 2)
    await caller.clock.advance(2 * DAY_NS)
    await expire(caller)
    assert await results(caller) == 0
    assert await agent.report(*leases) == ["duplicate"] * 2
    await caller.clock.advance(HORIZON_NS)
    await expire(caller)
    assert await agent.report(*leases) == ["fenced"] * 2
    assert await results(caller) == 0


async def standing(agent: RegisteredAgent) -> dict[str, Any]:
    repeat = {"every_ms": 3_600_000, "ticks": 1_000}
    await agent.caller.tasks(1, agent=agent.agent_id, repeat=repeat)
    (lease,) = await agent.claim(1)
    return lease


async def report_tick(
    caller: Caller, agent: RegisteredAgent, lease: dict[str, Any], tick: int
) -> str:
    held = await caller.plane.writer.read(
        lambda store: store.standing_leases({lease["lease_id"]})[lease["lease_id"]]
    )
    item = result_item(lease["lease_id"]) | {
        "tick": tick,
        "scheduled_at": rfc3339(held.anchor_ns + tick * 3_600 * NS_PER_S),
    }
    _, answer, _ = await agent.call("/report", {"completed": [item], "cancelled": []})
    status: str = answer["results"][0]["status"]
    return status


async def test_a_tick_that_has_gone_is_never_taken_twice(caller: Caller) -> None:
    agent = await caller.register()
    lease = await standing(agent)
    assert await report_tick(caller, agent, lease, 1) == "accepted"
    await caller.clock.advance(2 * DAY_NS)
    await expire(caller)
    assert await results(caller) == 0
    assert await report_tick(caller, agent, lease, 1) == "duplicate"
    assert await report_tick(caller, agent, lease, 2) == "late_accepted", "it has had no result"
    await caller.clock.advance(HORIZON_NS)
    await expire(caller)
    for tick in (1, 2, 3):
        assert await report_tick(caller, agent, lease, tick) == "fenced", "nobody remembers"
    assert await report_tick(caller, agent, lease, 9 * 24) == "late_accepted"


async def test_dead_letters_go_later_and_raise_nothing_twice(tmp_path: Path) -> None:
    for name in STORES:
        (tmp_path / name).mkdir()
        for caller in callers(name, tmp_path / name, max_attempts=1, **RETAIN):
            await one_dead_letter(caller)


async def one_dead_letter(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    (lease,) = await agent.claim(1)
    assert await agent.report(lease["lease_id"], outcome="agent_error") == ["accepted"]
    await caller.clock.advance(3_601 * NS_PER_S)
    await expire(caller)
    assert await results(caller) == 0
    assert await agent.report(lease["lease_id"]) == ["duplicate"], "its letter raises no second one"
    assert len((await caller.operator("GET", "/v1/dead-letters"))[1]["dead_letters"]) == 1
    await caller.clock.advance(3_601 * NS_PER_S)
    await expire(caller)
    assert (await caller.operator("GET", "/v1/dead-letters"))[1]["dead_letters"] == []


async def test_a_letter_older_than_anybody_remembers_raises_nothing(tmp_path: Path) -> None:
    settings = RETAIN | {"retain_dead_letters_ms": 0}
    for caller in callers("sqlite", tmp_path, max_attempts=1, **settings):
        agent = await caller.register()
        await caller.tasks(1)
        (lease,) = await agent.claim(1)
        assert await agent.report(lease["lease_id"], outcome="agent_error") == ["accepted"]
        await caller.clock.advance(HORIZON_NS + DAY_NS)
        await expire(caller)
        assert await results(caller) == 0
        assert await agent.report(lease["lease_id"]) == ["fenced"]
        assert (await caller.operator("POST", "/v1/dead-letters/requeue", {"all": True}))[0] == 200
        assert await agent.report(lease["lease_id"]) == ["fenced"], "nor is it its holder's again"
        assert len(await agent.claim(1)) == 1


async def test_a_cursor_whose_results_have_gone_has_expired(caller: Caller) -> None:
    agent = await caller.register()
    await run_some(agent, 4)
    _, page, _ = await caller.operator("GET", "/v1/results?limit=2")
    _, start, _ = await caller.operator("GET", "/v1/results?order=desc&limit=1")
    assert await caller.plane.writer.write(
        lambda store: store.drop_results(None, Retention(caller.plane).floor(), 2)
    )
    status, rest, _ = await caller.operator("GET", f"/v1/results?cursor={page['cursor']}")
    assert (status, len(rest["results"])) == (200, 2), "nothing after it is missing"
    await caller.plane.writer.write(
        lambda store: store.drop_results(None, Retention(caller.plane).floor(), 1)
    )
    status, answer, _ = await caller.operator("GET", f"/v1/results?cursor={page['cursor']}")
    assert (status, answer["error"], answer["retryable"]) == (410, "ERR_CURSOR_EXPIRED", False)
    assert "1 at most" in answer["message"]
    status, rest, _ = await caller.operator("GET", "/v1/results")
    assert (status, len(rest["results"])) == (200, 1)
    path = f"/v1/results?order=desc&cursor={start['cursor']}"
    assert (await caller.operator("GET", path))[0] == 200, "what has gone ends a list, no more"


async def test_specs_of_results_that_have_gone_go(caller: Caller) -> None:
    agent = await caller.register()
    for port in (1, 2, 3):
        await caller.tasks(1, spec={"host": "192.0.2.1", "port": port})
    leases = [lease["lease_id"] for lease in await agent.claim(3)]
    await agent.report(*leases)
    await caller.clock.advance(3_601 * NS_PER_S)
    await expire(caller)
    await finish(caller.clock, Retention(caller.plane).drop_specs())
    _, answer, _ = await caller.operator("GET", "/v1/storage")
    assert answer["counters"]["specs_dropped"] == 2, "the latest id is not given out again"


class SizedStore(MemoryStore):
    """Says that each result takes 1 MiB; can be told to fail."""

    failures = 0

    def size(self) -> StoreSize:
        if self.failures:
            self.failures -= 1
            raise StorageError("the disk has gone")
        return StoreSize(64 << 20, len(self._results.rows) << 20, 1 << 40)


@pytest.fixture
async def sized() -> Caller:
    clock = ManualClock(realtime_ns=NOW_NS)
    settings = config(max_database_bytes=500 << 20, retain_results_ms=120_000, quota_scale=1_000)
    plane = control_plane(SizedStore(), clock, settings)
    return Caller(plane, clock)


async def test_what_is_too_much_goes_oldest_first(sized: Caller) -> None:
    agent = await sized.register()
    leases = await run_some(agent, 900)
    retention = Retention(sized.plane)
    await finish(sized.clock, retention.look())
    assert await results(sized) == 400, "steps of 100, until 98 % of 500 are left"
    kept = await sized.plane.writer.read(lambda store: store.results(ResultQuery(limit=1)))
    assert kept[0].lease_id == leases[500]
    assert await agent.report(leases[0]) == ["duplicate"]
    await finish(sized.clock, retention.look())
    assert await results(sized) == 400
    _, answer, _ = await sized.operator("GET", "/v1/storage")
    assert answer["counters"]["results_evicted"] == 500
    assert (answer["used_bytes"], answer["max_database_bytes"]) == (400 << 20, 500 << 20)


async def test_between_steps_others_have_their_turn(sized: Caller) -> None:
    agent = await sized.register()
    await run_some(agent, 900)
    seen: list[int] = []

    async def others(eviction: "asyncio.Task[None]") -> None:
        while not eviction.done():
            seen.append(await results(sized))
            await run_some(agent, 1)
            await sized.clock.sleep(5 * NS_PER_MS)

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            await others(group.create_task(Retention(sized.plane).look()))

    await finish(sized.clock, both())
    steps = [before - after for before, after in itertools.pairwise(seen)]
    assert set(steps) == {STEP_ROWS - 1, -1}, "no step takes more, and one was served between"
    assert len(seen) >= 5 * 4, "20 ms at least between steps"


async def test_the_loop_measures_expires_and_survives_failures(sized: Caller) -> None:
    agent = await sized.register()
    await run_some(agent, 10)
    store: Any = sized.plane.writer._store  # type: ignore[attr-defined]
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(keep_in_bounds_forever(sized.plane))
        await sized.clock.settle(50)
        assert sized.plane.storage.size.used_bytes == 10 << 20
        store.failures = 3
        for _ in range(4):
            await sized.clock.advance(NS_PER_S)
        await run_some(agent, 5)
        await sized.clock.advance(NS_PER_S)
        assert sized.plane.storage.size.used_bytes == 15 << 20
        for _ in range(3 * ROUND_NS // NS_PER_S):
            await sized.clock.advance(NS_PER_S)
        assert await results(sized) == 0
        loop.cancel()


REPORTS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.integers(0, 7)),
        st.tuples(st.just("tick"), st.integers(0, 3)),
        st.tuples(st.just("expire"), st.just(0)),
        st.tuples(st.just("evict"), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.sampled_from([1_000, 4_000_000, 800_000_000])),
    ),
    max_size=25,
)


@pytest.mark.parametrize("name", STORES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=REPORTS)
def test_nothing_that_goes_lets_a_result_count_twice(
    name: str, steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_play(name, steps, tmp_path_factory.mktemp("twice")))


async def _play(name: str, steps: list[tuple[str, int]], directory: Path) -> None:
    for caller in callers(name, directory, quota_scale=1_000, **RETAIN):
        agent = await caller.register()
        lease = await standing(agent)
        await caller.tasks(8)
        leases = [one["lease_id"] for one in await agent.claim(8)]
        taken: list[tuple[str, int]] = []
        for step, number in steps:
            if step == "report":
                status = (await agent.report(leases[number]))[0]
            elif step == "tick":
                status = await report_tick(caller, agent, lease, number)
            else:
                status = ""
                await _let_go(caller, step, number)
            if status in ("accepted", "late_accepted"):
                taken.append((step, number))
        assert len(taken) == len(set(taken)), "a result counted twice"


async def _let_go(caller: Caller, step: str, number: int) -> None:
    if step == "wait":
        await caller.clock.advance(number * NS_PER_MS)
    elif step == "expire":
        await expire(caller)
    else:

        def evict(store: Store) -> int:
            return store.drop_results(None, Retention(caller.plane).floor(), number)

        await caller.plane.writer.write(evict)
