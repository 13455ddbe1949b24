"""What every store must do; each test runs on each store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.model import TaskKind
from netsonde.server.leasing import (
    Change,
    Died,
    Finished,
    Requeued,
    StandingLease,
    TaskState,
    Unchanged,
)
from netsonde.server.store import Store
from netsonde.server.store.agents import AgentRow, TokenRow
from netsonde.server.store.base import RememberedAnswer
from netsonde.server.store.checks import CheckRow
from netsonde.server.store.dead_letters import DeadQuery
from netsonde.server.store.results import NewResult, ResultQuery
from netsonde.server.store.tasks import (
    ANY_QUEUE,
    ExtendedLease,
    Grant,
    GrantedTask,
    NewTask,
    QueueDepth,
    pinned_queue,
)
from support.stores import PING_SPEC, STORES, TCP_SPEC, new_task, open_store


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


def grant(first_lease_id: int = 100, **changes: Any) -> Grant:
    fields: dict[str, Any] = {
        "agent_id": 7,
        "claim_key": 1,
        "first_lease_id": first_lease_id,
        "now_ns": 10,
        "until_ns": 1_000,
        "due_ns": 1_200,
    }
    return Grant(**(fields | changes))


def take(
    store: Store, limit: int = 10, first_lease_id: int = 100, **changes: Any
) -> list[GrantedTask]:
    return store.take(ANY_QUEUE, TaskKind.TCP, limit, grant(first_lease_id, **changes))


def new_result(lease_id: int, **changes: Any) -> NewResult:
    fields: dict[str, Any] = {
        "lease_id": lease_id,
        "task_id": lease_id,
        "agent_id": 7,
        "kind": TaskKind.TCP,
        "outcome": "ok",
        "attempt": 1,
        "received_ns": lease_id,
        "is_final": True,
        "spec_id": 1,
        "body": b"{}",
    }
    return NewResult(**(fields | changes))


def test_tasks_are_granted_by_priority_then_time_then_id(store: Store) -> None:
    ids = store.add_tasks(
        [
            new_task(priority=1, run_ns=1),
            new_task(priority=0, run_ns=5),
            new_task(priority=0, run_ns=4),
            new_task(priority=0, run_ns=4),
            new_task(priority=-1, run_ns=11),
        ]
    )
    taken = take(store, limit=3)
    assert [task.task_id for task in taken] == [ids[2], ids[3], ids[1]]
    assert [task.lease_id for task in taken] == [100, 101, 102]
    assert [task.task_id for task in take(store, first_lease_id=200)] == [ids[0]]
    assert [task.task_id for task in take(store, first_lease_id=300, now_ns=11)] == [ids[4]]


def test_a_grant_carries_what_the_claim_answers(store: Store) -> None:
    (task_id,) = store.add_tasks(
        [new_task(check_id=4, scheduled_ns=9, priority=2, max_attempts=5, spec=TCP_SPEC)]
    )
    assert take(store) == [
        GrantedTask(
            task_id=task_id,
            lease_id=100,
            kind=TaskKind.TCP,
            spec=TCP_SPEC,
            attempt=1,
            max_attempts=5,
            granted_ns=10,
            until_ns=1_000,
            priority=2,
            check_id=4,
            scheduled_ns=9,
        )
    ]


def test_queues_and_kinds_are_apart(store: Store) -> None:
    store.add_tasks([new_task(queue=pinned_queue(8)), new_task(kind=TaskKind.PING, spec=PING_SPEC)])
    assert take(store) == []
    assert len(store.take(pinned_queue(8), TaskKind.TCP, 9, grant(100))) == 1
    assert len(store.take(ANY_QUEUE, TaskKind.PING, 9, grant(200))) == 1


def test_task_ids_are_never_used_again(store: Store) -> None:
    first = store.add_tasks([new_task(), new_task()])
    assert list(first) == [1, 2]
    store.apply([Finished(1), Finished(2)], 0)
    assert list(store.add_tasks([new_task()])) == [3]


def test_stale_tasks_are_not_granted_and_dropped(store: Store) -> None:
    store.add_tasks([new_task(stale_ns=10), new_task(stale_ns=11), new_task()])
    assert store.is_sweep_due(10)
    assert not store.is_sweep_due(9)
    assert len(take(store)) == 2
    assert store.drop_stale(20, 100) == 1, "a leased task is not stale"
    assert not store.is_sweep_due(20)


def test_held_tasks_are_found_by_lease_and_by_agent(store: Store) -> None:
    store.add_tasks([new_task(check_id=3, scheduled_ns=5), new_task()])
    take(store)
    found = store.by_lease([100, 101, 999])
    assert sorted(found) == [100, 101]
    task = found[100]
    assert (task.agent_id, task.state, task.attempt, task.check_id) == (7, TaskState.LEASED, 1, 3)
    assert (task.granted_ns, task.until_ns, task.scheduled_ns) == (10, 1_000, 5)
    assert store.held_by(7) == [found[100], found[101]]
    assert store.held_by(8) == []
    assert store.holds_more_than(7, 1)
    assert not store.holds_more_than(7, 2)
    assert store.by_lease([]) == {}


def test_a_claim_is_found_again_while_it_is_held(store: Store) -> None:
    store.add_tasks([new_task(), new_task(), new_task()])
    taken = take(store, limit=2, claim_key=5)
    take(store, first_lease_id=200, claim_key=6)
    assert store.granted_under(7, 5) == taken
    assert store.granted_under(8, 5) == []
    store.apply([Finished(taken[0].task_id)], 0)
    assert store.granted_under(7, 5) == taken[1:]


def test_extension_moves_the_deadline(store: Store) -> None:
    store.add_tasks([new_task()])
    (task,) = take(store)
    assert store.due(1_199, 10) == []
    assert [held.task_id for held in store.due(1_200, 10)] == [task.task_id]
    store.extend([ExtendedLease(task.task_id, 2_000, 2_200)])
    assert store.due(2_199, 10) == []
    assert store.by_lease([100])[100].until_ns == 2_000


def test_a_swept_task_keeps_its_lease_until_the_next_grant(store: Store) -> None:
    store.add_tasks([new_task()])
    (task,) = take(store)
    store.apply([Requeued(task.task_id, 50, 1, 0, keeps_lease=True)], 40)
    assert store.by_lease([100])[100].state is TaskState.READY
    assert store.held_by(7) == []
    store.extend([ExtendedLease(task.task_id, 3_000, 3_200)])
    assert store.by_lease([100])[100].state is TaskState.LEASED
    store.apply([Requeued(task.task_id, 50, 1, 0, keeps_lease=True)], 40)
    (again,) = take(store, first_lease_id=200, now_ns=50)
    assert (again.task_id, again.attempt) == (task.task_id, 2)
    assert sorted(store.by_lease([100, 200])) == [200]


def test_changes(store: Store) -> None:
    store.add_tasks([new_task(check_id=6)] * 4)
    take(store)
    changes: list[Change] = [
        Requeued(1, 60, 0, 1, keeps_lease=False),
        Died(2, "why"),
        Finished(3),
        Unchanged(4),
    ]
    store.apply(changes, 44)
    assert store.by_lease([100, 101, 102, 103]) == {}
    (dead,) = store.find_dead(DeadQuery(limit=10))
    assert (dead.task_id, dead.lease_id, dead.agent_id, dead.reason) == (2, 101, 7, "why")
    assert (dead.died_ns, dead.spec, dead.check_id, dead.attempt) == (44, TCP_SPEC, 6, 1)
    assert store.dead_by_lease([100, 101]) == {101: dead}
    assert store.find_dead(DeadQuery(limit=10, before=2)) == []
    store.unbury([2])
    assert store.find_dead(DeadQuery(limit=10)) == []
    (again,) = take(store, first_lease_id=200, now_ns=60)
    assert (again.task_id, again.attempt) == (1, 1)


def test_cancelling_a_check_drops_and_revokes(store: Store) -> None:
    store.add_tasks([new_task(check_id=1), new_task(check_id=1), new_task(check_id=2)])
    take(store, limit=1)
    assert store.live_of_check(1, 0) == {(ANY_QUEUE, TCP_SPEC)}
    assert store.cancel_check(1, 60) == 2
    assert store.by_lease([100])[100].state is TaskState.REVOKED
    assert store.live_of_check(1, 0) == set()
    assert store.cancel_check(1, 60) == 0
    assert [task.check_id for task in take(store, first_lease_id=200)] == [2]
    assert [held.lease_id for held in store.due(10_000, 10)] == [100, 200]


def test_a_stale_task_is_live_only_while_it_is_worked_on(store: Store) -> None:
    store.add_tasks([new_task(check_id=1, stale_ns=50)])
    assert store.live_of_check(1, 49) == {(ANY_QUEUE, TCP_SPEC)}
    assert store.live_of_check(1, 50) == set()
    take(store, now_ns=40)
    assert store.live_of_check(1, 50) == {(ANY_QUEUE, TCP_SPEC)}


def test_delayed_and_depths(store: Store) -> None:
    store.add_tasks([new_task(run_ns=5), new_task(run_ns=90), new_task(queue=-3, run_ns=2)])
    assert store.delayed(10) == [(ANY_QUEUE, TaskKind.TCP, 90)]
    assert store.depths(10) == [
        QueueDepth(-3, TaskKind.TCP, 1, 0, 0, 2),
        QueueDepth(ANY_QUEUE, TaskKind.TCP, 1, 1, 0, 5),
    ]
    take(store)
    assert store.depths(10)[1] == QueueDepth(ANY_QUEUE, TaskKind.TCP, 0, 1, 1, None)


def test_counters_add_up(store: Store) -> None:
    store.count("expired", 2)
    store.count("expired", 3)
    store.count("late", 0)
    assert store.counters() == {"expired": 5}


def test_results_are_paged_and_filtered(store: Store) -> None:
    store.add_tasks([new_task()])  # the spec that the results name
    store.add_results(
        [
            new_result(1, check_id=1, outcome="ok"),
            new_result(2, check_id=2, agent_id=8, outcome="target_error"),
            new_result(3, check_id=1, kind=TaskKind.PING),
            new_result(4, is_final=False, outcome="agent_error"),
        ]
    )

    def found(**query: Any) -> list[int]:
        return [row.lease_id for row in store.results(ResultQuery(**({"limit": 10} | query)))]

    assert found() == [1, 2, 3]
    assert found(final_only=False) == [1, 2, 3, 4]
    assert found(check_id=1) == [1, 3]
    assert found(agent_id=8) == [2]
    assert found(kind=TaskKind.PING) == [3]
    assert found(outcome="target_error") == [2]
    assert found(task_id=3) == [3]
    assert found(from_ns=2, to_ns=3) == [2]
    assert found(descending=True) == [3, 2, 1]
    assert found(limit=1) == [1]
    first = store.results(ResultQuery(limit=1))[0]
    assert first.spec == TCP_SPEC
    assert found(position=first.result_id) == [2, 3]
    assert found(position=first.result_id, descending=True) == []
    assert store.result_owners([1, 2, 99]) == {1: 7, 2: 8}


def agent_row(**changes: Any) -> AgentRow:
    fields: dict[str, Any] = {
        "agent_id": 1,
        "identity": "key:1",
        "hostname": "a",
        "is_legacy": False,
        "registered_ns": 1,
        "last_seen_ns": 2,
    }
    return AgentRow(**(fields | changes))


def test_agents(store: Store) -> None:
    assert store.new_agent_id() == 1
    assert store.new_agent_id() == 2
    tokens = (TokenRow(b"new"), TokenRow(b"old", True, 99))
    first = agent_row(tokens=tokens, instance_id="i", labels=b'{"site":"ams"}')
    store.save_agent(first)
    store.save_agent(agent_row(agent_id=2, identity="key:2", is_disabled=True))
    assert store.agent(1) == first
    assert store.agent_by_identity("key:1") == first
    assert store.agent_by_identity("key:9") is None
    assert store.agent(9) is None
    assert [agent.agent_id for agent in store.agents(0, 10)] == [1, 2]
    assert [agent.agent_id for agent in store.agents(1, 10)] == [2]
    changed = agent_row(tokens=(TokenRow(b"only"),), hostname="b", is_legacy=True)
    store.save_agent(changed)
    assert store.agent(1) == changed
    store.saw_agents({1: 50, 2: 1, 9: 5})
    seen = [agent.last_seen_ns for agent in store.agents(0, 10)]
    assert seen == [50, 2]


def test_label_queues_are_made_once(store: Store) -> None:
    first = store.label_queue(b'{"site":"ams"}')
    second = store.label_queue(b'{"site":"fra"}')
    assert first > ANY_QUEUE
    assert first != second
    assert store.label_queue(b'{"site":"ams"}') == first
    assert store.label_queues() == {first: b'{"site":"ams"}', second: b'{"site":"fra"}'}


def check_row(check_id: int, **changes: Any) -> CheckRow:
    fields: dict[str, Any] = {
        "check_id": check_id,
        "document": b"{}",
        "is_enabled": True,
        "next_ns": 100,
        "created_ns": 1,
    }
    return CheckRow(**(fields | changes))


def test_checks(store: Store) -> None:
    assert store.new_check_id() == 1
    store.save_check(check_row(1, next_ns=200))
    store.save_check(check_row(2, next_ns=100))
    store.save_check(check_row(3, next_ns=None))
    store.save_check(check_row(4, is_enabled=False))
    assert store.check_count() == 4
    assert store.next_tick_ns() == 100
    assert [check.check_id for check in store.checks_due(200, 10)] == [2, 1]
    assert [check.check_id for check in store.checks_due(200, 1)] == [2]
    assert [check.check_id for check in store.checks(1, 2)] == [2, 3]
    changed = check_row(2, next_ns=None, tick=3, tasks=4, skipped=5, document=b"[]")
    store.save_check(changed)
    assert store.check(2) == changed
    store.delete_check(1)
    assert store.check(1) is None
    assert store.next_tick_ns() is None


def test_answers_are_remembered_for_a_while(store: Store) -> None:
    answer = RememberedAnswer(b"digest", 201, b"{}")
    store.remember("key", answer, 100)
    assert store.recall("key") == answer
    assert store.recall("other") is None
    store.forget_before(100, 9)
    assert store.recall("key") == answer
    store.forget_before(101, 9)
    assert store.recall("key") is None


def test_answers_are_forgotten_a_few_at_a_time(store: Store) -> None:
    for at_ns in (30, 10, 20):
        store.remember(f"k{at_ns}", RememberedAnswer(b"d", 200, b"{}"), at_ns)
    store.forget_before(100, 2)
    kept = [at_ns for at_ns in (10, 20, 30) if store.recall(f"k{at_ns}") is not None]
    assert kept == [30]


def test_the_clock_and_the_fence_only_grow(store: Store) -> None:
    assert (store.clock_ns(), store.last_lease_id()) == (0, 0)
    store.keep_clock(50, 7)
    store.keep_clock(40, 6)
    assert (store.clock_ns(), store.last_lease_id()) == (50, 7)


def test_every_commit_of_a_change_keeps_what_the_store_follows(store: Store) -> None:
    reached = [(50, 7), (60, 8), (55, 6)]
    store.follow(lambda: reached[0])
    for kept in [(50, 7), (60, 8), (60, 8)]:
        store.count("writes", 1)
        store.commit()
        store.begin()
        assert (store.clock_ns(), store.last_lease_id()) == kept
        del reached[0]
    store.follow(lambda: (70, 9))


# ── standing tasks ──

REPEAT = '{"every_ms":1000,"jitter_ms":0}'


def standing_task(**changes: Any) -> NewTask:
    fields: dict[str, Any] = {"check_id": 4, "scheduled_ns": 50, "repeat": REPEAT}
    return new_task(**(fields | changes))


def take_standing(store: Store, first_lease_id: int = 100, **changes: Any) -> list[GrantedTask]:
    fields: dict[str, Any] = {"standing_until_ns": 9_000, "standing_due_ns": 9_500}
    return take(store, first_lease_id=first_lease_id, **(fields | changes))


def tick_result(lease_id: int, task_id: int, tick: int) -> NewResult:
    return new_result(lease_id, task_id=task_id, tick=tick, scheduled_ns=50 + tick * 1000)


def test_standing_tasks_have_a_term_of_their_own(store: Store) -> None:
    standing, once = store.add_tasks([standing_task(), new_task()])
    assert [task.task_id for task in take(store, limit=1)] == [once], "not for who knows no ticks"
    (task,) = take_standing(store, 200)
    assert (task.task_id, task.until_ns, task.repeat, task.next_tick) == (
        standing,
        9_000,
        REPEAT,
        0,
    )
    assert store.granted_under(7, 1)[-1] == task
    assert [held.is_standing for held in store.held_by(7)] == [False, True]
    assert [held.lease_id for held in store.due(9_499, 9)] == [100]
    assert [held.lease_id for held in store.due(9_500, 9)] == [100, 200]


def test_every_lease_of_a_standing_task_is_known(store: Store) -> None:
    task_id, _ = store.add_tasks([standing_task(), new_task()])
    take_standing(store)
    store.apply([Requeued(task_id, 10, 0, 0, keeps_lease=False)], 20)
    take_standing(store, 200, now_ns=20)
    store.ran({task_id: 3, 77: 9})
    store.ran({task_id: 2})
    known = store.standing_leases([100, 101, 200, 300])
    assert sorted(known) == [100, 200]
    assert known[200] == StandingLease(
        lease_id=200, task_id=task_id, agent_id=7, kind=TaskKind.TCP, anchor_ns=50, repeat=REPEAT,
        spec_id=known[200].spec_id, granted_ns=20, check_id=4, ended_ns=None, next_tick=3,
    )  # fmt: skip
    store.apply([Requeued(task_id, 10, 0, 0, keeps_lease=True)], 30)
    assert [task.next_tick for task in take_standing(store, 300)] == [3]
    store.apply([Finished(task_id)], 40)
    assert store.standing_leases([200])[200].next_tick is None


def test_a_tick_has_one_result_and_a_lease_many(store: Store) -> None:
    store.add_tasks([standing_task()])
    store.add_results([tick_result(100, 1, 0), tick_result(100, 1, 1), tick_result(101, 2, 1)])
    assert store.have_run([(1, 50), (1, 1050), (2, 50), (2, 1050), (3, 50)]) == {
        (1, 50), (1, 1050), (2, 1050),
    }  # fmt: skip
    assert store.result_owners([100, 101]) == {}
    assert [(row.tick, row.scheduled_ns) for row in store.results(ResultQuery(limit=9))] == [
        (0, 50), (1, 1050), (1, 1050),
    ]  # fmt: skip


def test_standing_tasks_are_told_apart_from_those_of_a_tick(store: Store) -> None:
    first, second, _ = store.add_tasks(
        [standing_task(queue=-7), standing_task(queue=-8), new_task(check_id=4)]
    )
    assert store.live_of_check(4, 0) == {(ANY_QUEUE, TCP_SPEC)}
    assert store.standing_of_check(4) == {(-7, TCP_SPEC): first, (-8, TCP_SPEC): second}
    assert store.standing_of_check(5) == {}


def test_withdrawn_tasks_are_dropped_or_revoked_at_once(store: Store) -> None:
    ids = store.add_tasks([standing_task(), standing_task(), standing_task(), new_task()])
    given = grant(standing_until_ns=9_000, standing_due_ns=9_500)
    store.take(ANY_QUEUE, TaskKind.TCP, 2, given)
    assert store.withdraw([], 30) == 0
    assert store.withdraw([ids[0], ids[2], 999], 30) == 2
    assert list(store.standing_of_check(4).values()) == [ids[1]]
    assert [held.lease_id for held in store.due(30, 9)] == [100], "nothing is waited for"
    assert [lease.ended_ns for lease in store.standing_leases([100, 101]).values()] == [30, None]
    assert store.withdraw([ids[0]], 40) == 0
    assert store.standing_leases([100])[100].ended_ns == 30


def test_standing_leases_are_forgotten_by_what_ended_them(store: Store) -> None:
    ended, followed, gone, live = store.add_tasks([standing_task(queue=q) for q in (1, 2, 3, 4)])
    for queue, lease_id in ((1, 100), (2, 101), (3, 102), (4, 103)):
        given = grant(lease_id, standing_until_ns=9_000, standing_due_ns=9_500)
        store.take(queue, TaskKind.TCP, 1, given)
    store.withdraw([ended], 30)
    store.apply([Requeued(followed, 10, 0, 0, keeps_lease=False), Finished(gone)], 30)
    again = grant(200, now_ns=30, standing_until_ns=9_000, standing_due_ns=9_500)
    store.take(2, TaskKind.TCP, 1, again)
    everything = [100, 101, 102, 103, 200]
    assert store.forget_standing(10) == 0
    assert store.forget_standing(11) == 1, "granted to a task that is gone"
    assert store.forget_standing(30) == 0
    assert store.forget_standing(31) == 2
    assert sorted(store.standing_leases(everything)) == [103, 200]
    assert live in {lease.task_id for lease in store.standing_leases(everything).values()}


def test_a_check_counts_what_it_missed(store: Store) -> None:
    store.save_check(check_row(1, missed=2))
    store.add_missed(1, 5)
    store.add_missed(1, -1)
    store.add_missed(9, 1)
    row = store.check(1)
    assert row is not None
    assert row.missed == 6
