"""Looks at results, calls and series: bounded, in both directions, each by its index."""

from collections.abc import Callable, Iterator
from itertools import compress, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S
from netsonde.model import TaskKind
from netsonde.server.store import MemoryStore, SqliteStore, Store
from netsonde.server.store.access import AuditQuery
from netsonde.server.store.results import NewResult, ResultQuery
from netsonde.server.store.sqlite_feed import SKEW_NS
from support.stores import STORES, TCP_SPEC, new_task, open_store

HOUR_NS = 3600 * NS_PER_S


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path_factory.mktemp("looks") / "server.db")
    yield opened
    opened.close()


def fill(store: Store, count: int, **changes: Any) -> None:
    store.add_tasks([new_task(spec=TCP_SPEC)])
    store.add_results([result(number, **changes) for number in range(1, count + 1)])


def result(number: int, **changes: Any) -> NewResult:
    fields: dict[str, Any] = {
        "lease_id": number,
        "task_id": number % 3 + 1,
        "agent_id": number % 2 + 1,
        "check_id": number % 4 + 1,
        "kind": TaskKind.TCP,
        "outcome": "ok" if number % 5 else "target_error",
        "attempt": 1,
        "received_ns": number * HOUR_NS,
        "is_final": True,
        "spec_id": 1,
        "body": b"{}",
    }
    return NewResult(**(fields | changes))


def walk(store: Store, rows_max: int, **query: Any) -> list[int]:
    """Read everything look by look; every look but the last must get somewhere."""
    seen: list[int] = []
    wanted = ResultQuery(limit=99, **query)
    for _ in range(50):
        end = store.look_end(wanted, rows_max)
        fields = {"limit": 99, **query, "position": wanted.position, "through": end}
        page = store.results(ResultQuery(**fields))
        assert len(page) <= rows_max
        seen += [row.result_id for row in page]
        if end is None:
            return seen
        assert end != wanted.position
        wanted = ResultQuery(limit=99, **(query | {"position": end}))
    raise AssertionError("it never ends")


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"task_id": 2},
        {"check_id": 3},
        {"agent_id": 1},
        {"agent_id": 1, "check_id": 2},
        {"kind": TaskKind.TCP},
        {"kind": TaskKind.DNS},
        {"outcome": "target_error"},
        {"kind": TaskKind.TCP, "outcome": "target_error"},
        {"from_ns": 7 * HOUR_NS},
        {"to_ns": 7 * HOUR_NS},
        {"from_ns": 5 * HOUR_NS, "to_ns": 9 * HOUR_NS, "agent_id": 2},
    ],
)
def test_looks_put_together_find_what_one_does(
    store: Store, filters: dict[str, Any], descending: bool
) -> None:
    fill(store, 20)
    whole = walk(store, 1_000, descending=descending, **filters)
    assert walk(store, 1, descending=descending, **filters) == whole
    assert walk(store, 3, descending=descending, **filters) == whole
    assert whole == sorted(whole, reverse=descending)


def test_ids_that_nothing_has_are_passed_in_one_look(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "server.db")
    fill(store, 2)
    store.select("UPDATE sqlite_sequence SET seq = 1000000 WHERE name = 'result'", ())
    store.add_results([result(3), result(4)])
    assert walk(store, 3) == [1, 2, 1000001, 1000002]
    assert walk(store, 3, descending=True) == [1000002, 1000001, 2, 1]
    store.close()


@given(
    st.lists(st.integers(0, 8).map(lambda step: step * SKEW_NS // 4), max_size=12),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_a_clock_that_lost_some_time_hides_no_result(
    database: SqliteStore, steps: list[int], from_step: int, to_step: int
) -> None:
    """Instants go on from each other, and now and then fall back by less than the skew."""
    instants, now_ns = [], SKEW_NS
    for place, step in enumerate(steps):
        now_ns += step if place % 3 else -SKEW_NS // 2
        instants.append(max(now_ns, 0))
    rows = [result(number, received_ns=at) for number, at in enumerate(instants, 1)]
    span: dict[str, Any] = {"from_ns": from_step * SKEW_NS // 4, "to_ns": to_step * SKEW_NS // 4}
    found = []
    for store in (MemoryStore(), database):
        store.begin()
        store.add_tasks([new_task(spec=TCP_SPEC)])
        store.add_results(rows)
        found.append([row.result_id for row in store.results(ResultQuery(limit=99, **span))])
    database.rollback()
    assert found[0] == found[1]


def plans(store: SqliteStore, verb: Callable[..., object], *arguments: object) -> list[str]:
    """Return how SQLite carries out every statement of a verb."""
    said: list[str] = []
    store._connection.set_trace_callback(said.append)
    verb(*arguments)
    store._connection.set_trace_callback(None)
    steps = [store.select(f"EXPLAIN QUERY PLAN {text}", ()).fetchall() for text in said]
    return [row[3] for rows in steps for row in rows]


def check(steps: list[str], wanted: object) -> None:
    """Neither a table nor an index is read from end to end, and nothing is sorted."""
    small = ("SCAN CONSTANT ROW", "SCAN sqlite_sequence", "SCAN (subquery-1)")
    assert not [step for step in steps if step.startswith("SCAN") and step not in small], wanted
    assert not [step for step in steps if "TEMP B-TREE" in step or "result_spec" in step], wanted


def test_every_query_of_operators_goes_by_an_index(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "server.db")
    fill(store, 5)
    fields: dict[str, Any] = {
        "position": 3,
        "task_id": 1,
        "check_id": 1,
        "agent_id": 1,
        "kind": TaskKind.TCP,
        "outcome": "ok",
        "from_ns": SKEW_NS + 1,
        "to_ns": SKEW_NS + 2,
        "descending": True,
    }
    for chosen in product((False, True), repeat=len(fields)):
        filters = dict(compress(fields.items(), chosen))
        query = ResultQuery(limit=9, **filters)
        check(plans(store, store.look_end, query, 2), query)
        check(plans(store, store.results, query), query)
    for token, from_ns, to_ns, position, descending in product(
        (None, "ci"), (None, 7), (None, 9), (None, 5), (False, True)
    ):
        calls = AuditQuery(
            limit=9,
            token=token,
            from_ns=from_ns,
            to_ns=to_ns,
            position=position,
            descending=descending,
        )
        steps = plans(store, store.audit, calls)
        check(steps, calls)
        assert token is None or any("audit_token (token_name=? AND" in step for step in steps)
    for name, agent_id in product((None, "a"), (None, 7)):
        steps = plans(store, store.metric_series, name, agent_id, 3, 9)
        check(steps, (name, agent_id))
        assert any("SEARCH metric_series USING" in step for step in steps), steps
    store.close()
