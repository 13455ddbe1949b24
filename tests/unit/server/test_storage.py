"""Little room: what is refused, what is taken, and that it ends by itself."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.background import RETRY_NS, schedule_forever
from netsonde.server.leasing import ServerTime
from netsonde.server.operator import tasks
from netsonde.server.storage import FULL_NS, StorageGuard
from netsonde.server.store import SqliteStore
from netsonde.server.store.retention import StoreSize
from support.feeds import task_line, upload
from support.stores import Caller, callers, config, control_plane

MIB = 1 << 20
TCP = {"kind": "tcp", "targets": ["192.0.2.1:80"]}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def guard(clock: ManualClock, **changes: Any) -> StorageGuard:
    return StorageGuard(config(**changes), ServerTime(clock, 0))


def size(free_mib: float, file_mib: float = 0, used_mib: float = 0) -> StoreSize:
    return StoreSize(int(file_mib * MIB), int(used_mib * MIB), int(free_mib * MIB))


@pytest.mark.parametrize(
    ("measured", "is_short"),
    [
        (size(64), False),
        (size(63.9), True),
        (size(20, 100, 50), False),  # free pages count, there is room for the journal
        (size(15.9, 100, 50), True),  # which they cannot be
        (size(0), True),
        (StoreSize(0, 0, None), False),
    ],
)
def test_free_space_and_free_pages_are_room(
    clock: ManualClock, measured: StoreSize, is_short: bool
) -> None:
    watched = guard(clock)
    watched.measured(measured)
    assert (watched.shortage is not None) == is_short
    assert watched.health()["status"] == ("degraded" if is_short else "ok")


def test_work_goes_on_when_there_is_clearly_enough(clock: ManualClock) -> None:
    watched = guard(clock)
    for free_mib, is_short in ((70, False), (60, True), (70, True), (80, False), (70, False)):
        watched.measured(size(free_mib))
        assert (watched.shortage is not None) == is_short, free_mib


def test_without_a_reserve_only_the_disk_decides(clock: ManualClock) -> None:
    watched = guard(clock, storage_reserve_bytes=0)
    watched.measured(size(0))
    watched.admit()
    watched.met_full()
    with pytest.raises(RequestError, match="refused a write") as caught:
        watched.admit()
    assert caught.value.code is ErrorCode.STORAGE_FULL
    assert (caught.value.retry_after_ms or 0) >= 1_000


async def test_a_full_disk_is_believed_for_a_while(clock: ManualClock) -> None:
    watched = guard(clock)
    watched.met_full()
    assert watched.shortage is not None
    await clock.advance(FULL_NS)
    assert watched.shortage is None


def test_a_limit_that_nothing_can_be_dropped_for_is_a_shortage(clock: ManualClock) -> None:
    watched = guard(clock, max_database_bytes=100 * MIB)
    watched.measured(size(1_000, 200, 120))
    assert watched.is_over
    assert watched.shortage is None, "results are being dropped"
    watched.is_stuck = True
    watched.measured(size(1_000, 200, 120))
    assert "no results left to drop" in str(watched.shortage)
    watched.measured(size(1_000, 200, 90))
    assert watched.shortage is None


@pytest.fixture(params=["memory", "sqlite"])
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


async def test_claims_and_new_work_stop_first_and_results_are_taken(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(3)
    (lease,) = await agent.claim(1, claim_id="c1")
    _, check, _ = await caller.operator("POST", "/v1/checks", TCP)
    caller.plane.storage.measured(size(1))
    for method, path, body in (
        ("POST", "/v1/tasks", [{"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}}]),
        ("POST", "/v1/checks", TCP),
        ("POST", f"/v1/checks/{check['check_id']}/run-now", None),
    ):
        status, answer, headers = await caller.operator(method, path, body)
        assert (status, answer["error"], answer["retryable"]) == (507, "ERR_STORAGE_FULL", True)
        assert int(headers["Retry-After"]) >= 1
    status, answer, _ = await agent.call("/claim", {"capacities": {"tcp": 1}})
    assert (status, answer["error"]) == (507, "ERR_STORAGE_FULL")
    (again,) = await agent.claim(1, claim_id="c1")
    assert again["lease_id"] == lease["lease_id"], "what was granted is found again"
    extension = {"lease_ids": [lease["lease_id"]], "extend_by_ms": 5_000}
    assert (await agent.call("/extend", extension))[1]["results"][0]["status"] == "extended"
    assert await agent.report(lease["lease_id"]) == ["accepted"]
    path = f"/v1/checks/{check['check_id']}"
    assert (await caller.operator("DELETE", path))[0] == 200, "an operator may make room"
    for api in (caller.agent, caller.operator):
        status, answer, _ = await api("GET", "/readyz")
        assert (status, answer["status"]) == (200, "degraded"), "results are to come here still"
        assert answer["storage"]["refused"] == 4
    caller.plane.storage.measured(size(1_000))
    assert len(await agent.claim(5)) == 2
    assert (await caller.agent("GET", "/readyz"))[1] == {"status": "ok"}


async def test_lines_are_taken_until_there_is_little_room(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "GROUP_LINES", 2)
    admit, admitted = caller.plane.storage.admit, 0

    def fill_up_after_a_group() -> None:
        nonlocal admitted
        admit()
        admitted += 1
        caller.plane.storage.measured(size(1))

    with monkeypatch.context() as patch:
        patch.setattr(caller.plane.storage, "admit", fill_up_after_a_group)
        answers = await upload(caller, task_line() * 5, key="k")
    assert admitted == 1
    assert [one["t"] for one in answers] == ["a", "a", "end"]
    assert answers[-1]["reason"] == "error"
    assert answers[-1]["error"]["error"] == "ERR_STORAGE_FULL"
    assert answers[-1]["error"]["retryable"]
    assert answers[-1]["error"]["retry_after_ms"] >= 1_000
    caller.plane.storage.measured(size(1_000))
    again = await upload(caller, task_line() * 5, key="k")
    assert [one["task_id"] for one in again[:2]] == [one["task_id"] for one in answers[:2]]
    assert again[-1] == {"t": "end", "reason": "done", "through": 5}


async def test_checks_wait_for_room(caller: Caller) -> None:
    await caller.operator("POST", "/v1/checks", TCP | {"every_ms": 10_000})
    caller.plane.storage.measured(size(1))

    async def made() -> int:
        depths = await caller.plane.writer.read(
            lambda store: store.depths(caller.plane.time.now_ns())
        )
        return sum(depth.ready for depth in depths)

    async with asyncio.TaskGroup() as group:
        loop = group.create_task(schedule_forever(caller.plane))
        for _ in range(25):
            await caller.clock.advance(NS_PER_S)
        assert await made() == 1, "the first tick's"
        caller.plane.storage.measured(size(1_000))
        await caller.clock.advance(2 * RETRY_NS)
        _, answer, _ = await caller.operator("GET", "/v1/checks/1")
        assert answer["tasks"] + answer["skipped"] == 2, "one tick for those that had no room"
        loop.cancel()


async def test_a_write_that_the_disk_refuses_stops_claims_for_a_while(tmp_path: Path) -> None:
    clock = ManualClock()
    store = SqliteStore.open(tmp_path / "server.db")
    caller = Caller(control_plane(store, clock), clock)
    agent = await caller.register()
    await caller.tasks(2)
    (lease,) = await agent.claim(1)
    pages = store.select("PRAGMA page_count", ()).fetchone()[0]
    store.select(f"PRAGMA max_page_count = {pages}", ())
    tasks = [
        {"kind": "tcp", "spec": {"host": f"h{number}.{'x' * 60}.example", "port": 80}}
        for number in range(9_000)
    ]
    status, answer, _ = await caller.operator("POST", "/v1/tasks", tasks)
    assert (status, answer["error"]) == (507, "ERR_STORAGE_FULL")
    status, answer, _ = await agent.call("/claim", {"capacities": {"tcp": 1}})
    assert (status, answer["error"]) == (507, "ERR_STORAGE_FULL")
    store.select("PRAGMA max_page_count = 1000000", ())
    assert await agent.report(lease["lease_id"]) == ["accepted"]
    await clock.advance(FULL_NS)
    assert len(await agent.claim(1)) == 1
    store.close()
