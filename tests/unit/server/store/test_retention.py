"""What stores let go; each test runs on each store."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.model import TaskKind
from netsonde.server.leasing import Died, Finished
from netsonde.server.store import SqliteStore, Store, retention
from netsonde.server.store.dead_letters import DeadQuery
from netsonde.server.store.results import NewResult, ResultBounds, ResultQuery
from netsonde.server.store.retention import KeyFloor
from netsonde.server.store.statements import named_queries
from netsonde.server.store.tasks import ANY_QUEUE, Grant, NewTask
from netsonde.server.store.writer import run_alone
from support.stores import STORES, new_task, open_store

AGENT = 7
NO_FLOOR = KeyFloor()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


def spec(number: int) -> bytes:
    return b'{"kind":"tcp","host":"192.0.2.%d","port":80}' % number


def reported(store: Store, count: int = 1, first_lease_id: int = 100) -> None:
    """Run tasks from queue to result; each lease is received at the instant of its number."""
    for number in range(count):  # one by one, so that specs have ids in this order
        store.add_tasks([new_task(spec=spec(first_lease_id + number))])
    grant = Grant(
        agent_id=AGENT,
        claim_key=1,
        first_lease_id=first_lease_id,
        now_ns=10,
        until_ns=20,
        due_ns=30,
    )
    taken = store.take(ANY_QUEUE, TaskKind.TCP, count, grant)
    assert len(taken) == count
    held = store.by_lease({task.lease_id for task in taken})
    store.apply([Finished(task.task_id) for task in taken], 10)
    store.add_results(
        [
            new_result(task.lease_id, task.task_id, spec_id=held[task.lease_id].spec_id)
            for task in taken
        ]
    )


def new_result(lease_id: int, task_id: int, **changes: Any) -> NewResult:
    fields: dict[str, Any] = {
        "lease_id": lease_id,
        "task_id": task_id,
        "agent_id": AGENT,
        "kind": TaskKind.TCP,
        "outcome": "ok",
        "attempt": 1,
        "received_ns": lease_id,
        "is_final": True,
        "spec_id": 1,
        "body": b"{}",
    }
    return NewResult(**(fields | changes))


def kept(store: Store) -> list[int]:
    return [row.lease_id for row in store.results(ResultQuery(limit=1000))]


def test_the_oldest_results_go_a_few_at_a_time(store: Store) -> None:
    reported(store, 5)
    assert (store.result_bounds().oldest, store.oldest_result_ns()) == (1, 100)
    assert store.drop_results(103, NO_FLOOR, 2) == 2
    assert kept(store) == [102, 103, 104]
    assert (store.result_bounds().oldest, store.oldest_result_ns()) == (3, 102)
    assert store.drop_results(103, NO_FLOOR, 2) == 1
    assert store.drop_results(103, NO_FLOOR, 2) == 0
    assert kept(store) == [103, 104]
    assert store.drop_results(None, NO_FLOOR, 9) == 2, "whatever their age"
    assert (store.result_bounds().oldest, store.oldest_result_ns()) == (6, None)
    reported(store, 1, 200)
    assert [row.result_id for row in store.results(ResultQuery(limit=9))] == [6]


def test_pages_fit_what_is_left(store: Store) -> None:
    reported(store, 6)
    assert store.drop_results(None, NO_FLOOR, 3) == 3

    def ids(**query: Any) -> list[int]:
        return [row.result_id for row in store.results(ResultQuery(limit=9, **query))]

    assert store.result_bounds() == ResultBounds(4, 6)
    assert ids() == ids(position=2) == ids(position=3) == [4, 5, 6]
    assert ids(position=4) == [5, 6]
    assert ids(position=4, through=5) == [5]
    assert ids(through=3) == ids(position=6) == []
    assert ids(descending=True) == [6, 5, 4]
    assert ids(descending=True, position=6) == [5, 4]
    assert [store.next_result(position) for position in (0, 3, 4, 5, 6, 7)] == [4, 4, 5, 6] + [
        None
    ] * 2
    store.drop_results(None, NO_FLOOR, 9)
    assert (store.result_bounds(), ids()) == (ResultBounds(7, 6), [])


def test_large_bodies_make_a_step_shorter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite_retention", "memory_retention"):
        monkeypatch.setattr(f"netsonde.server.store.{module}.STEP_MAX_BYTES", 250)
    (task_id,) = store.add_tasks([new_task()])
    store.add_results(
        [
            new_result(lease, task_id, body=random.Random(lease).randbytes(100))
            for lease in range(1, 6)
        ]
    )
    store.add_results([new_result(6, task_id, body=random.Random(6).randbytes(1000))])
    assert [store.drop_results(None, NO_FLOOR, 9) for _ in range(5)] == [2, 2, 1, 1, 0]
    assert retention.STEP_MAX_BYTES > 256 << 10, "an item has at most as much"


def test_a_result_that_has_gone_is_still_known(store: Store) -> None:
    reported(store, 3)
    store.add_results([new_result(200, 50, tick=4, scheduled_ns=7_000)])
    assert store.drop_results(None, NO_FLOOR, 9) == 4
    assert store.result_owners({100, 101, 102, 103}) == dict.fromkeys((100, 101, 102), AGENT)
    assert store.have_run({(50, 7_000), (50, 7_001), (51, 7_000)}) == {(50, 7_000)}
    assert store.key_floor() == NO_FLOOR


def test_keys_go_when_nobody_can_report_them_and_a_floor_stays(store: Store) -> None:
    reported(store, 3)
    ticks = [
        new_result(200 + tick, 50, tick=tick, scheduled_ns=7_000 + tick, received_ns=1_000)
        for tick in range(3)
    ]
    store.add_results(ticks)
    store.drop_results(None, NO_FLOOR, 9)
    floor = KeyFloor(102, 7_002)
    assert store.drop_keys(floor, 3) == 3, "no more than asked for"
    assert store.key_floor() == floor
    assert store.drop_keys(floor, 3) == 1
    assert store.drop_keys(floor, 3) == 0
    assert store.result_owners({100, 101, 102}) == {102: AGENT}
    assert store.have_run({(50, 7_001), (50, 7_002)}) == {(50, 7_002)}
    assert store.drop_keys(KeyFloor(5, 5), 3) == 0
    assert store.key_floor() == floor, "it never falls"


def test_results_below_the_floor_leave_no_keys(store: Store) -> None:
    reported(store, 2)
    store.add_results([new_result(300, 50, tick=1, scheduled_ns=7_000)])
    floor = KeyFloor(101, 7_001)
    assert store.drop_results(None, floor, 9) == 3
    assert store.key_floor() == floor
    assert store.result_owners({100, 101}) == {101: AGENT}
    assert store.have_run({(50, 7_000)}) == set()
    assert store.drop_keys(floor, 9) == 0


def test_results_that_are_kept_are_known_below_the_floor_too(store: Store) -> None:
    store.add_results([new_result(100, 1), new_result(300, 50, tick=1, scheduled_ns=7_000)])
    store.add_results([new_result(50, 9, received_ns=400)])  # reported late
    assert store.drop_results(200, KeyFloor(101, 9_000), 9) == 1
    assert store.have_run({(50, 7_000)}) == {(50, 7_000)}
    assert store.result_owners({50, 100}) == {50: AGENT}


def test_old_dead_letters_go(store: Store) -> None:
    first, second, third = store.add_tasks([new_task() for _ in range(3)])
    grant = Grant(agent_id=1, claim_key=1, first_lease_id=9, now_ns=1, until_ns=2, due_ns=3)
    store.take(ANY_QUEUE, TaskKind.TCP, 3, grant)
    for died_ns, task_id in ((30, first), (10, second), (20, third)):
        store.apply([Died(task_id, "it did not do")], died_ns)
    assert store.drop_dead_letters(30, 1) == 1
    assert [row.task_id for row in store.find_dead(DeadQuery(limit=9))] == [third, first]
    assert store.drop_dead_letters(30, 9) == 1
    assert [row.task_id for row in store.find_dead(DeadQuery(limit=9))] == [first]


def test_specs_go_that_nothing_refers_to(store: Store) -> None:
    reported(store, 3)
    (waiting,) = store.add_tasks([new_task(spec=spec(100))])
    store.drop_results(102, NO_FLOOR, 9)
    page = store.unused_specs(0, 9)
    assert (len(page.unused), page.after) == (1, None), "one waits again, one has a result"
    assert store.drop_specs(page.unused) == 1
    assert store.drop_specs(page.unused) == 0
    store.withdraw([waiting], 10)
    assert len(store.unused_specs(0, 9).unused) == 1


def test_specs_are_looked_through_in_pages(store: Store) -> None:
    reported(store, 5)
    store.drop_results(None, NO_FLOOR, 9)
    pages, after = [], 0
    while after is not None:
        page = store.unused_specs(after, 2)
        pages.append(len(page.unused))
        after = page.after  # type: ignore[assignment]
    assert pages == [2, 2, 1]


def test_a_spec_that_is_needed_again_is_not_dropped(store: Store) -> None:
    reported(store, 2)
    store.drop_results(None, NO_FLOOR, 9)
    unused = store.unused_specs(0, 9).unused
    store.add_tasks([new_task(spec=spec(100))])
    assert store.drop_specs(unused) == 0, "one is needed, one is the latest"
    grant = Grant(agent_id=1, claim_key=1, first_lease_id=500, now_ns=1, until_ns=2, due_ns=3)
    assert [task.spec for task in store.take(ANY_QUEUE, TaskKind.TCP, 9, grant)] == [spec(100)]


def test_a_spec_that_has_gone_can_come_again(store: Store) -> None:
    reported(store, 3)
    store.drop_results(None, NO_FLOOR, 9)
    assert store.drop_specs(store.unused_specs(0, 9).unused) == 2
    store.add_tasks([new_task(spec=spec(number)) for number in (100, 777)])
    grant = Grant(agent_id=1, claim_key=1, first_lease_id=500, now_ns=1, until_ns=2, due_ns=3)
    taken = store.take(ANY_QUEUE, TaskKind.TCP, 9, grant)
    assert [task.spec for task in taken] == [spec(100), spec(777)]


def test_free_pages_are_used_again(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "server.db")

    def add(store: Store) -> None:
        first = store.result_bounds().oldest + 10_000 * len(kept(store))
        rows = [
            new_result(first + n, first + n, body=random.Random(n).randbytes(1000))
            for n in range(1000)
        ]
        store.add_tasks([NewTask(kind=TaskKind.TCP, spec=spec(1), run_ns=0, max_attempts=1)])
        store.add_results(rows)

    run_alone(store, add)
    full = store.size()
    assert full.used_bytes == full.file_bytes > 1_000_000
    assert full.free_bytes is not None
    assert full.free_bytes > 0
    assert run_alone(store, lambda store: store.drop_results(None, NO_FLOOR, 1000)) == 1000
    empty = store.size()
    assert empty.used_bytes < full.used_bytes / 4
    assert empty.file_bytes <= full.file_bytes + (1 << 16)
    run_alone(store, add)
    assert store.size().file_bytes <= empty.file_bytes + (1 << 16)
    store.close()


def test_what_was_let_go_stays_so_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "server.db")
    run_alone(store, lambda store: reported(store, 3))
    run_alone(store, lambda store: store.drop_results(None, KeyFloor(101, 5), 9))
    store.close()
    store = SqliteStore.open(tmp_path / "server.db")
    assert store.key_floor() == KeyFloor(101, 5)
    assert store.result_bounds().oldest == 4
    assert store.result_owners({100, 101, 102}) == {101: AGENT, 102: AGENT}
    store.close()


def test_steps_use_their_indexes(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "server.db")
    plans = {
        "oldest_results": (9,),
        "keep_leases": (9, 1),
        "keep_ticks": (9, 1),
        "drop_results": (9,),
        "drop_dead_letters": (1, 1),
        "drop_gone_leases": (1, 1),
        "drop_gone_ticks": (1, 1),
        "specs_after": (1, 1),
        "drop_specs": ("[1]",),
        "have_run": ("[[1,1]]",),
        "result_owners": ("[1]",),
    }
    for name, parameters in plans.items():
        text = named_queries()[name]
        steps = [row[3] for row in store.select(f"EXPLAIN QUERY PLAN {text}", parameters)]
        scans = [
            step
            for step in steps
            if step.startswith("SCAN") and "json_each" not in step and "wanted" not in step
        ]
        allowed = ["SCAN result"] if name == "oldest_results" else []  # by its key, up to a limit
        assert scans == allowed, (name, steps)
        if name in ("keep_leases", "keep_ticks", "drop_results"):  # not all that is younger
            assert steps == ["SEARCH result USING INTEGER PRIMARY KEY (rowid<?)"], steps
    store.close()
