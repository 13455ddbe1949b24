"""What every store must do with tokens, enrolment and the audit log."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netsonde.server.store import SqliteStore, Store
from netsonde.server.store.access import (
    AuditQuery,
    AuditRow,
    EnrolmentRow,
    EnrolmentTokenRow,
    OperatorTokenRow,
)
from support.stores import STORES, open_store


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param, tmp_path)
    opened.begin()
    yield opened
    opened.commit()
    opened.close()


def operator_token(token_id: int, **changes: Any) -> OperatorTokenRow:
    fields: dict[str, Any] = {
        "token_id": token_id,
        "name": f"t{token_id}",
        "digest": b"d%d" % token_id,
        "scopes": ("read", "checks:write"),
        "created_ns": 5,
    }
    return OperatorTokenRow(**(fields | changes))


def enrolment_token(token_id: int, **changes: Any) -> EnrolmentTokenRow:
    fields: dict[str, Any] = {
        "token_id": token_id,
        "name": None,
        "digest": b"e%d" % token_id,
        "uses_max": 1,
        "created_ns": 5,
        "expires_ns": 50,
    }
    return EnrolmentTokenRow(**(fields | changes))


def call(at_ns: int, **changes: Any) -> AuditRow:
    fields: dict[str, Any] = {
        "at_ns": at_ns,
        "token_id": 3,
        "token_name": "ci",
        "remote": "192.0.2.1",
        "call": "POST /v1/checks",
        "object": "checks/1",
        "status": 201,
        "error": None,
        "request_id": "r",
    }
    return AuditRow(**(fields | changes))


def ids(store: Store, **query: Any) -> list[int]:
    return [row.audit_id for row in store.audit(AuditQuery(**({"limit": 99} | query)))]


def test_token_ids_are_never_given_twice(store: Store) -> None:
    first, second = store.new_token_id(), store.new_token_id()
    assert first < second


def test_operator_tokens_come_by_id_and_by_name(store: Store) -> None:
    rows = [operator_token(one, expires_ns=9 if one == 2 else None) for one in (1, 2, 3)]
    for row in reversed(rows):
        store.save_operator_token(row)
    assert store.operator_tokens(0, 9) == rows
    assert store.operator_tokens(1, 1) == [rows[1]]
    assert store.operator_token_named("t3") == rows[2]
    assert store.operator_token_named("t") is None
    assert store.operator_token_count() == 3
    assert store.delete_operator_token(2)
    assert not store.delete_operator_token(2)
    assert store.operator_tokens(0, 9) == [rows[0], rows[2]]


def test_a_tokens_last_use_never_goes_back(store: Store) -> None:
    store.save_operator_token(operator_token(1))
    for used_ns in (30, 20):
        store.used_operator_token(1, used_ns)
    store.used_operator_token(9, 30)
    assert [row.last_used_ns for row in store.operator_tokens(0, 9)] == [30]


def test_enrolment_tokens_are_found_by_their_hash(store: Store) -> None:
    row = enrolment_token(4, name="ams", uses_max=3, labels=b'{"site":"ams"}')
    store.save_enrolment_token(row)
    assert store.enrolment_token_of(b"e4") == row
    assert store.enrolment_token_of(b"e") is None
    used = replace(row, uses=1)
    store.save_enrolment_token(used)
    assert store.enrolment_tokens(0, 9) == [used]
    assert store.enrolment_tokens(4, 9) == []
    assert store.enrolment_token_count() == 1
    assert store.delete_enrolment_token(4)
    assert not store.delete_enrolment_token(4)
    assert store.enrolment_token_of(b"e4") is None


def test_the_latest_enrolment_of_an_agent_counts(store: Store) -> None:
    assert store.enrolment("key:a") is None
    store.save_enrolment(EnrolmentRow("key:a", 1, b"{}", 5))
    latest = EnrolmentRow("key:a", 2, b'{"a":"b"}', 6)
    store.save_enrolment(latest)
    assert store.enrolment("key:a") == latest
    assert store.enrolment("key:b") is None


def test_tokens_are_forgotten_some_time_after_they_expired(store: Store) -> None:
    for one, expires_ns in ((1, None), (2, 10), (3, 11)):
        store.save_operator_token(operator_token(one, expires_ns=expires_ns))
    for one, until_ns in ((4, 10), (5, 11)):
        store.save_enrolment_token(enrolment_token(one, expires_ns=until_ns))
    assert store.forget_tokens(11) == 2
    assert [row.token_id for row in store.operator_tokens(0, 9)] == [1, 3]
    assert [row.token_id for row in store.enrolment_tokens(0, 9)] == [5]


def test_the_audit_log_is_read_in_both_directions(store: Store) -> None:
    for at_ns in (10, 20, 30):
        store.add_audit(call(at_ns, token_name="ci" if at_ns != 20 else "ann"))
    newest, middle, oldest = store.audit(AuditQuery(limit=9))
    assert (newest, oldest) == (call(30, audit_id=3), call(10, audit_id=1))
    assert middle.token_name == "ann"
    assert ids(store, descending=False) == [1, 2, 3]
    assert ids(store, limit=2) == [3, 2]
    assert ids(store, position=2) == [1]
    assert ids(store, position=1, descending=False, limit=1) == [2]
    assert ids(store, token="ci") == [3, 1]
    assert ids(store, from_ns=20) == [3, 2]
    assert ids(store, to_ns=20, from_ns=10) == [1]


def test_the_audit_log_is_bounded_by_age_and_number(store: Store) -> None:
    for at_ns in range(1, 11):
        store.add_audit(call(at_ns))
    assert store.forget_audit(4, 100, 100, 2) == 2, "a little at a time"
    assert store.forget_audit(4, 100, 100, 2) == 1
    assert ids(store, descending=False) == [4, 5, 6, 7, 8, 9, 10]
    assert store.forget_audit(0, 5, 100, 100) == 2
    assert ids(store, descending=False) == [6, 7, 8, 9, 10]


def test_refusals_push_out_refusals_only(store: Store) -> None:
    store.add_audit(call(1))
    for at_ns in range(2, 8):
        store.add_audit(call(at_ns, status=403, error="ERR_FORBIDDEN"))
    assert store.forget_audit(0, 100, 2, 3) == 3
    assert store.forget_audit(0, 100, 2, 3) == 1
    assert ids(store, descending=False) == [1, 6, 7]
    assert store.forget_audit(0, 100, 2, 3) == 0


def test_a_call_that_was_forgotten_gives_its_id_to_no_other(store: Store) -> None:
    store.add_audit(call(1))
    assert store.forget_audit(9, 100, 100, 9) == 1
    store.add_audit(call(2))
    assert ids(store) == [2]


def test_what_is_looked_up_often_has_an_index(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "server.db")
    plans: dict[str, tuple[Any, str]] = {
        "enrolment_token_of": ((b"",), "autoindex_enrolment_token"),
        "enrolment": (("",), "PRIMARY KEY"),
        "forget_audit_before": ((1, 1), "audit_age"),
        "forget_audit_refusals": ((1, 1), "audit_refused"),
        "forget_audit_beyond": ((1, 1), "INTEGER PRIMARY KEY (rowid<?)"),
    }
    for name, (parameters, index) in plans.items():
        explained = "EXPLAIN QUERY PLAN " + store._queries[name]
        plan = " ".join(row[3] for row in store.select(explained, parameters).fetchall())
        assert index in plan, (name, plan)
    store.close()
