"""Heartbeats, commands, drained agents and dead letters; each test runs on each store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.model import TaskKind
from netsonde.server.leasing import Died
from netsonde.server.store import SqliteStore, Store, sqlite, statements
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.dead_letters import DeadQuery, Revival
from netsonde.server.store.fleet import HeartbeatRow
from netsonde.server.store.results import NewResult, ResultQuery
from netsonde.server.store.tasks import ANY_QUEUE, Grant, pinned_queue
from support.stores import STORES, TCP_SPEC, new_task, open_store

TCP, PING = TaskKind.TCP, TaskKind.PING


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


def agent_row(agent_id: int, **changes: Any) -> AgentRow:
    fields: dict[str, Any] = {
        "agent_id": agent_id,
        "identity": f"key:{agent_id}",
        "hostname": "h",
        "is_legacy": False,
        "registered_ns": 1,
        "last_seen_ns": 1,
    }
    return AgentRow(**(fields | changes))


def buried(store: Store, lease_id: int = 100, agent_id: int = 7, **task: Any) -> int:
    """Let a task die in the hands of an agent; return its id."""
    (task_id,) = store.add_tasks([new_task(**task)])
    grant = Grant(
        agent_id=agent_id, claim_key=1, first_lease_id=lease_id, now_ns=10, until_ns=1_000,
        due_ns=1_200,
    )  # fmt: skip
    queue, kind = task.get("queue", ANY_QUEUE), task.get("kind", TCP)
    assert len(store.take(queue, kind, 1, grant)) == 1
    store.apply([Died(task_id, "why")], lease_id)
    return task_id


def found(store: Store, **query: Any) -> list[int]:
    return [dead.task_id for dead in store.find_dead(DeadQuery(**({"limit": 10} | query)))]


def test_the_last_heartbeat_of_every_agent_is_kept(store: Store) -> None:
    first = HeartbeatRow(agent_id=2, instance_id="a", seq=4, heard_ns=5, state="active")
    bare = HeartbeatRow(agent_id=1)
    store.save_heartbeats([first, bare])
    later = HeartbeatRow(
        agent_id=2, instance_id="b", seq=1, heard_ns=9, document=b'{"x":1}', retired=("a", "z")
    )
    store.save_heartbeats([later])
    assert store.heartbeats() == [bare, later]


def test_drained_agents_are_barred_until_resumed(store: Store) -> None:
    store.save_agent(agent_row(3))
    assert not store.is_barred(3)
    assert not store.is_barred(99)
    store.drain_agent(3, 50)
    store.drain_agent(3, 60)
    assert (store.drained_since(3), store.drained_since(4)) == (50, None)
    assert store.drained_agents() == {3: 50}
    assert store.is_barred(3)
    store.resume_agent(3)
    store.resume_agent(3)
    assert store.drained_agents() == {}
    assert not store.is_barred(3)
    store.save_agent(agent_row(3, is_disabled=True))
    assert store.is_barred(3), "a disabled agent is granted nothing, either"


def test_a_command_is_open_until_its_own_agent_settles_it(store: Store) -> None:
    store.order(1, "drain", 10)
    store.order(1, "drain", 11)
    store.order(1, "refresh_config", 12)
    store.order(2, "drain", 13)
    drain, refresh = store.commands([1])
    assert (drain.type, drain.ordered_ns, refresh.type) == ("drain", 10, "refresh_config")
    assert [one.agent_id for one in store.commands([1, 2, 3])] == [1, 1, 2]
    assert store.settle_commands(2, [drain.command_id]) == 0, "it is somebody else's"
    assert store.settle_commands(1, [drain.command_id, 10**9]) == 1
    assert store.settle_commands(1, [drain.command_id]) == 0
    store.call_off(1, "refresh_config")
    store.call_off(1, "refresh_config")
    assert store.commands([1]) == []
    store.order(1, "drain", 14)
    (again,) = store.commands([1])
    assert again.command_id > drain.command_id, "an id is never used again"


def test_dead_letters_are_found_by_what_they_are(store: Store) -> None:
    first = buried(store, 100, check_id=6)
    second = buried(store, 200, agent_id=8, kind=PING)
    third = buried(store, 300)
    assert found(store) == [third, second, first]
    assert store.dead_count() == 3
    assert found(store, limit=1, before=third) == [second]
    assert found(store, task_id=first) == [first]
    assert found(store, kind=PING) == [second]
    assert found(store, check_id=6) == [first]
    assert found(store, agent_id=7) == [third, first]
    assert found(store, from_ns=200, to_ns=300) == [second]
    assert found(store, kind=PING, agent_id=7) == []


def test_a_revived_task_is_what_it_was_with_fresh_attempts(store: Store) -> None:
    queue = pinned_queue(7)
    fields = {"priority": 3, "queue": queue, "max_attempts": 1, "check_id": 6, "scheduled_ns": 4}
    task_id = buried(store, 100, **fields)
    store.revive([Revival(task_id, 500, True, 10)])
    assert store.dead_count() == 0
    held = store.by_lease([100])[100]
    assert (held.task_id, held.agent_id, held.attempt, held.state.name) == (task_id, 7, 0, "READY")
    assert store.held_by(7) == []
    grant = Grant(agent_id=7, claim_key=1, first_lease_id=900, now_ns=500, until_ns=600, due_ns=700)
    (again,) = store.take(queue, TCP, 5, grant)
    assert (again.task_id, again.attempt, again.max_attempts, again.priority) == (task_id, 1, 1, 3)
    assert (again.check_id, again.scheduled_ns) == (6, 4)
    assert store.by_lease([100]) == {}, "its earlier holder is fenced off now"


def test_a_revived_tasks_last_result_is_final_no_more(store: Store) -> None:
    task_id = buried(store, 100)
    other = buried(store, 200)
    for lease_id, dead in ((100, task_id), (200, other)):
        store.add_results([new_result(lease_id, dead)])
    store.revive([Revival(task_id, 500, False, 10)])
    assert store.by_lease([100]) == {}
    assert [row.task_id for row in store.results(ResultQuery(limit=9))] == [other]
    every = store.results(ResultQuery(limit=9, final_only=False))
    assert [row.task_id for row in every] == [task_id, other]


def new_result(lease_id: int, task_id: int) -> NewResult:
    return NewResult(
        lease_id=lease_id, task_id=task_id, agent_id=7, kind=TCP, outcome="agent_error", attempt=1,
        received_ns=lease_id, is_final=True, spec_id=1, body=b"{}",
    )  # fmt: skip


def test_a_letter_of_an_earlier_schema_goes_back_to_its_last_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(sqlite, "schema", lambda: {2: statements.schema()[2]})
        old = SqliteStore.open(tmp_path / "server.db")
        old.select("INSERT INTO spec (spec_id, digest, body) VALUES (1, x'00', ?)", [TCP_SPEC])
        old.select(
            "INSERT INTO dead_letter (task_id, lease_id, agent_id, kind, attempt, reason, died_ns,"
            " spec_id) VALUES (5, 100, 7, 3, 4, 'why', 9, 1)",
            [],
        )
        old.close()
    store = SqliteStore.open(tmp_path / "server.db")
    store.begin()
    (dead,) = store.find_dead(DeadQuery(limit=1))
    assert (dead.task_id, dead.queue, dead.max_attempts) == (5, pinned_queue(7), 4)
    store.revive([Revival(5, 500, False, 10)])
    (depth,) = store.depths(500)
    assert (depth.queue, depth.kind, depth.ready) == (pinned_queue(7), TCP, 1)
    store.commit()
    store.close()
