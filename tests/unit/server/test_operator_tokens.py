"""Which operator may do what, and the log of who did: contract section 9."""

import asyncio
import json
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import RequestError, StorageError
from netsonde.server.access import EXPIRED_KEPT_NS
from netsonde.server.core import ControlPlane
from netsonde.server.operator import OperatorApi
from netsonde.server.operator.api import OPEN_PATHS
from netsonde.server.operator.calls import Change
from netsonde.server.scopes import Scope
from netsonde.server.store import SqliteStore, Store, ThreadWriter
from support.stores import STORES, Caller, at_once, callers, config, control_plane, written_in

DAY_NS = 86_400 * NS_PER_S
FILE_TOKEN = "correct horse battery"
TCP = {"kind": "tcp", "targets": ["192.0.2.1:80"]}
# A call that answers something of each scope, and its body.
CALLS: dict[Scope, tuple[str, str, Any]] = {
    Scope.READ: ("GET", "/v1/queues", None),
    Scope.CHECKS_WRITE: ("POST", "/v1/checks", TCP),
    Scope.AGENTS_WRITE: ("PATCH", "/v1/agents/1", {"disabled": False}),
    Scope.ENROL_WRITE: ("POST", "/v1/enrolment-tokens", {}),
    Scope.TOKENS_WRITE: ("DELETE", "/v1/tokens/999", None),
}


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    for one in callers(request.param, tmp_path):
        yield Caller(one.plane, one.clock, operator_token=FILE_TOKEN)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    for one in callers("memory", tmp_path):
        yield Caller(one.plane, one.clock, operator_token=FILE_TOKEN)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


OWNER = bearer(FILE_TOKEN)


async def made(caller: Caller, name: str = "ci", *scopes: str, **more: Any) -> dict[str, Any]:
    wanted = {"name": name, "scopes": scopes or ["read"]} | more
    status, answer, _ = await caller.operator("POST", "/v1/tokens", wanted, **OWNER)
    assert status == 201, answer
    token: dict[str, Any] = answer
    return token


async def audit(caller: Caller, query: str = "order=asc") -> list[dict[str, Any]]:
    status, answer, _ = await caller.operator("GET", f"/v1/audit?{query}", **OWNER)
    assert status == 200, answer
    calls: list[dict[str, Any]] = answer["calls"]
    return calls


# ── every call has a scope, and every change is noted ──


def test_every_operator_call_names_its_scope(memory: Caller) -> None:
    assert isinstance(memory.operators, OperatorApi)
    for route in memory.operators.routes:
        where = f"{route.method} {route.path}"
        assert route.scope is not None, f"{where} names no scope"
        is_read = route.method == "GET"
        assert (route.scope is Scope.READ) is is_read, f"{where} needs {route.scope}"
        assert is_read or isinstance(route.handler, Change), f"{where} is not in the audit log"
        assert route.path not in OPEN_PATHS


def test_no_agents_call_is_an_operators(memory: Caller) -> None:
    assert isinstance(memory.operators, OperatorApi)
    for route in memory.operators.routes:
        with pytest.raises(RequestError):
            memory.agents._router.find(route.method, route.path)


async def test_a_route_without_a_scope_is_for_the_servers_own_token(memory: Caller) -> None:
    api = memory.operators
    routes = api._router._fixed["/v1/queues"]
    routes["GET"] = replace(routes["GET"], scope=None)
    ci = await made(memory, "ci", *Scope)
    status, answer, _ = await memory.operator("GET", "/v1/queues", **bearer(ci["token"]))
    assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")
    assert (await memory.operator("GET", "/v1/queues", **OWNER))[0] == 200


# ── tokens ──


@pytest.mark.parametrize("scope", list(CALLS))
async def test_a_scope_allows_its_calls_and_no_other(memory: Caller, scope: Scope) -> None:
    await memory.register()
    one = await made(memory, "one", scope)
    rest = await made(memory, "rest", *(other for other in Scope if other is not scope))
    method, path, body = CALLS[scope]
    status, answer, _ = await memory.operator(method, path, body, **bearer(one["token"]))
    assert status in (200, 201, 404), answer
    status, answer, _ = await memory.operator(method, path, body, **bearer(rest["token"]))
    assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")
    assert answer["message"] == (
        f"this call needs the scope {scope}, which the token rest does not have"
    )


async def test_a_token_is_shown_once(caller: Caller) -> None:
    token = await made(caller, "ci", "checks:write", "read")
    assert token["token"].startswith("nop_")
    assert token["scopes"] == ["read", "checks:write"]
    _, answer, _ = await caller.operator("GET", "/v1/tokens", **OWNER)
    (one,) = answer["tokens"]
    assert one == {name: value for name, value in token.items() if name != "token"}
    assert token["token"] not in json.dumps(await audit(caller))


async def test_a_repeated_request_does_not_show_it_again(caller: Caller) -> None:
    for path, wanted in (("/v1/tokens", {"name": "a", "scopes": ["read"]}), (
        "/v1/enrolment-tokens", {}
    )):  # fmt: skip
        sent = OWNER | {"idempotency_key": path}
        first = (await caller.operator("POST", path, wanted, **sent))[1]
        again = (await caller.operator("POST", path, wanted, **sent))[1]
        assert again == first | {"token": None}
    assert len(await audit(caller)) == 2


async def test_one_tokens_keys_are_not_anothers(caller: Caller) -> None:
    first, second = await made(caller, "a", "checks:write"), await made(caller, "b", "checks:write")
    answers = [
        (await caller.operator("POST", "/v1/checks", TCP, idempotency_key="k", **bearer(token)))[1]
        for token in (first["token"], second["token"], first["token"], FILE_TOKEN)
    ]
    assert [answer["check_id"] for answer in answers] == [1, 2, 1, 3]


async def test_what_is_no_token_is_unauthorised(caller: Caller) -> None:
    token = (await made(caller))["token"]
    for header in (
        "", "Bearer", "Bearer ", "Basic " + token, token, f"Bearer {token}x",
        f"Bearer {token[:-1]}", "Bearer nop_" + "x" * 43, "Bearer é", f"Bearer {token} {token}",
    ):  # fmt: skip
        status, answer, headers = await caller.operator("GET", "/v1/queues", authorization=header)
        assert (status, answer["error"]) == (401, "ERR_UNAUTHORIZED"), header
        assert headers["WWW-Authenticate"] == "Bearer"
    assert (await caller.operator("GET", "/v1/queues", **bearer(token)))[0] == 200


async def test_a_token_expires(caller: Caller) -> None:
    token = await made(caller, expires_in_ms=60_000)
    await caller.clock.advance(59 * NS_PER_S)
    assert (await caller.operator("GET", "/v1/queues", **bearer(token["token"])))[0] == 200
    await caller.clock.advance(NS_PER_S)
    status, answer, _ = await caller.operator("GET", "/v1/queues", **bearer(token["token"]))
    assert (status, answer["error"]) == (401, "ERR_TOKEN_EXPIRED")
    assert answer["message"] == f"the operator token ci expired at {token['expires_at']}"


async def test_a_revoked_token_ends_at_once(caller: Caller) -> None:
    token = await made(caller)
    path = f"/v1/tokens/{token['token_id']}"
    assert (await caller.operator("DELETE", path, **OWNER))[0] == 200
    assert (await caller.operator("GET", "/v1/queues", **bearer(token["token"])))[0] == 401
    assert (await caller.operator("DELETE", path, **OWNER))[0] == 404
    again = await made(caller)
    assert again["token_id"] > token["token_id"], "the log stays unambiguous"


async def test_a_token_gives_only_what_it_has(caller: Caller) -> None:
    keeper = bearer((await made(caller, "keeper", "read", "tokens:write"))["token"])
    wanted = {"name": "more", "scopes": ["read", "checks:write", "agents:write"]}
    status, answer, _ = await caller.operator("POST", "/v1/tokens", wanted, **keeper)
    assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")
    assert "checks:write, agents:write" in answer["message"]
    wanted = {"name": "same", "scopes": ["read", "tokens:write"]}
    assert (await caller.operator("POST", "/v1/tokens", wanted, **keeper))[0] == 201


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ({"name": "a"}, "$"),
        ({"name": "a", "scopes": []}, "$.scopes"),
        ({"name": "a", "scopes": ["read", "root"]}, "$.scopes"),
        ({"name": "a", "scopes": "read"}, "$.scopes"),
        ({"scopes": ["read"]}, "$"),
        ({"name": "", "scopes": ["read"]}, "$.name"),
        ({"name": " a", "scopes": ["read"]}, "$.name"),
        ({"name": "a\x1b[31m", "scopes": ["read"]}, "$.name"),
        ({"name": "x" * 101, "scopes": ["read"]}, "$.name"),
        ({"name": "loopback", "scopes": ["read"]}, "$.name"),
        ({"name": "operator-token-file", "scopes": ["read"]}, "$.name"),
        ({"name": "a", "scopes": ["read"], "expires_in_ms": 0}, "$.expires_in_ms"),
        ({"name": "a", "scopes": ["read"], "token": "mine"}, "$.token"),
    ],
)
async def test_a_bad_wish_names_the_field(
    memory: Caller, wanted: dict[str, Any], path: str
) -> None:
    status, answer, _ = await memory.operator("POST", "/v1/tokens", wanted, **OWNER)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION"), answer
    assert answer["details"]["violations"][0]["path"] == path


async def test_names_and_numbers_have_their_limits(
    memory: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(memory, "a")
    monkeypatch.setattr("netsonde.server.operator.tokens.TOKENS_MAX", 1)
    for name, said in (("a", "a token a already"), ("b", "which is the limit")):
        wanted = {"name": name, "scopes": ["read"]}
        status, answer, _ = await memory.operator("POST", "/v1/tokens", wanted, **OWNER)
        assert (status, answer["error"]) == (409, "ERR_CONFLICT")
        assert said in answer["message"]


async def test_the_last_use_is_told_and_written_down(tmp_path: Path) -> None:
    token: dict[str, Any] = {}
    used_at = None
    for plain in callers("sqlite", tmp_path):
        caller = Caller(plain.plane, plain.clock, operator_token=FILE_TOKEN)
        token = await made(caller)
        assert token["last_used_at"] is None
        await caller.operator("GET", "/v1/queues", **bearer(token["token"]))
        used_at = (await _tokens(caller))[0]["last_used_at"]
        assert used_at is not None
        await caller.plane.operators.flush_used(at_once=True)
        assert (await _tokens(caller))[0]["last_used_at"] == used_at
    assert token["token"].encode() not in written_in(tmp_path)
    for plain in callers("sqlite", tmp_path):
        caller = Caller(plain.plane, plain.clock, operator_token=FILE_TOKEN)
        assert (await _tokens(caller))[0]["last_used_at"] == used_at
        assert (await caller.operator("GET", "/v1/queues", **bearer(token["token"])))[0] == 200


async def test_the_last_use_outlives_a_write_that_fails(tmp_path: Path) -> None:
    for plain in callers("sqlite", tmp_path):
        caller = Caller(plain.plane, plain.clock, operator_token=FILE_TOKEN)
        token = await made(caller)
        await caller.operator("GET", "/v1/queues", **bearer(token["token"]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(caller.plane.writer, "write", _no_room)
            with pytest.raises(StorageError):
                await caller.plane.operators.flush_used(at_once=True)
        await caller.plane.operators.flush_used(at_once=True)
        rows = await caller.plane.writer.read(lambda store: store.operator_tokens(0, 9))
        assert [row.last_used_ns for row in rows] == [caller.plane.time.now_ns()]


async def _no_room(operation: Any, items: int = 1) -> Any:
    raise StorageError("no room")


async def test_a_token_that_is_forgotten_is_so_everywhere(tmp_path: Path) -> None:
    for plain in callers("sqlite", tmp_path):
        caller = Caller(plain.plane, plain.clock, operator_token=FILE_TOKEN)
        token = await made(caller, expires_in_ms=1_000)
        await caller.clock.advance(EXPIRED_KEPT_NS + 3_600 * NS_PER_S)
        status, answer, _ = await caller.operator("GET", "/v1/queues", **bearer(token["token"]))
        assert (status, answer["error"]) == (401, "ERR_TOKEN_EXPIRED"), (
            "long before it is forgotten"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(caller.plane.writer, "write", _no_room)
            with pytest.raises(StorageError):
                await caller.plane.housekeep()
        await caller.plane.housekeep()
        assert await _tokens(caller) == [], "also when it failed the first time"
        status, answer, _ = await caller.operator("GET", "/v1/queues", **bearer(token["token"]))
        assert (status, answer["error"]) == (401, "ERR_UNAUTHORIZED"), "nor is it compared any more"


async def _tokens(caller: Caller) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = (await caller.operator("GET", "/v1/tokens", **OWNER))[1][
        "tokens"
    ]
    return tokens


async def test_a_token_that_is_presented_on_loopback_counts(tmp_path: Path) -> None:
    """Nobody who presents a token may do more by it than the token says."""
    for caller in callers("memory", tmp_path):
        wanted = {"name": "ci", "scopes": ["read"]}
        token = (await caller.operator("POST", "/v1/tokens", wanted))[1]["token"]
        assert (await caller.operator("GET", "/v1/queues", **bearer(token)))[0] == 200
        assert (await caller.operator("POST", "/v1/checks", TCP, **bearer(token)))[0] == 403
        assert (await caller.operator("POST", "/v1/checks", TCP, **bearer("wrong")))[0] == 401
        assert (await caller.operator("POST", "/v1/checks", TCP, authorization="Basic x"))[0] == 401
        assert (await caller.operator("POST", "/v1/checks", TCP))[0] == 201
        (_, _, last) = (await caller.operator("GET", "/v1/audit?order=asc"))[1]["calls"]
        assert (last["token"], last["token_id"]) == ("loopback", None)


async def test_wrong_tokens_are_told_of_once_a_minute(
    memory: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    for seconds in (0, 1, 58, 1):
        await memory.clock.advance(seconds * NS_PER_S)
        await memory.operator("GET", "/v1/queues", **bearer("nop_secret"))
    said = [record for record in caplog.records if record.__dict__.get("action")]
    assert [record.__dict__["calls"] for record in said] == [1, 3]
    assert "nop_secret" not in caplog.text


@given(st.text(max_size=80))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    for plain in callers("memory", Path()):
        with pytest.raises(RequestError):
            plain.plane.operators.identify(text, FILE_TOKEN)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = ("name", "scopes", "uses", "labels", "expires_in_ms")


@given(
    st.sampled_from(["/v1/tokens", "/v1/enrolment-tokens"]),
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING | st.just(["read"]) | st.just("a")),
)
@settings(deadline=None)
def test_every_wish_has_a_defined_answer(path: str, wish: dict[str, Any]) -> None:
    for caller in callers("memory", Path()):
        status, answer, _ = at_once(caller.operator("POST", path, wish))
        assert status in (201, 400), answer
        assert (status == 201) is ("token" in answer)


# ── the audit log ──


async def test_the_log_tells_who_did_what(caller: Caller) -> None:
    ci = await made(caller, "ci", "checks:write")
    await caller.clock.advance(NS_PER_S)
    _, check, headers = await caller.operator("POST", "/v1/checks", TCP, **bearer(ci["token"]))
    await caller.operator("DELETE", f"/v1/checks/{check['check_id']}", **OWNER)
    await caller.operator("GET", "/v1/checks", **OWNER)
    first, second, third = await audit(caller)
    assert (first["token"], first["call"], first["object"]) == (
        "operator-token-file", "POST /v1/tokens", f"tokens/{ci['token_id']} ci",
    )  # fmt: skip
    assert second == {
        "audit_id": 2,
        "at": check["created_at"],
        "token_id": ci["token_id"],
        "token": "ci",
        "remote": "192.0.2.200",
        "call": "POST /v1/checks",
        "object": f"checks/{check['check_id']}",
        "status": 201,
        "error": None,
        "request_id": headers["X-Request-Id"],
    }
    assert (third["call"], third["object"]) == ("DELETE /v1/checks/{id}", "checks/1")


async def test_tasks_are_named_by_their_ids(caller: Caller) -> None:
    item = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}}
    await caller.operator("POST", "/v1/tasks", [item, item, {"kind": "x"}], **OWNER)
    await caller.operator("POST", "/v1/tasks", [{"kind": "x"}], **OWNER)
    assert [one["object"] for one in await audit(caller)] == ["tasks/1-2", "tasks"]


async def test_refusals_of_who_is_known_are_in_the_log(caller: Caller) -> None:
    ci = bearer((await made(caller, "ci", "read"))["token"])
    await caller.operator("POST", "/v1/checks", TCP, **ci)
    await caller.operator("DELETE", "/v1/checks/77", **OWNER)
    await caller.operator("POST", "/v1/checks", TCP | {"kind": "x"}, **OWNER)
    await caller.operator("POST", "/v1/checks", b"{", **OWNER)
    await caller.operator("POST", "/v1/checks", TCP, content_type="text/plain", **OWNER)
    await caller.operator("POST", "/v1/checks?x=1", TCP, **OWNER)
    await caller.operator("POST", "/v1/checks", TCP, **bearer("wrong"))
    await caller.operator("GET", "/v1/results?limit=x", **OWNER)
    seen = [(one["token"], one["status"], one["error"]) for one in await audit(caller)]
    assert seen[1:] == [
        ("ci", 403, "ERR_FORBIDDEN"),
        ("operator-token-file", 404, "ERR_NOT_FOUND"),
        ("operator-token-file", 400, "ERR_VALIDATION"),
        ("operator-token-file", 400, "ERR_MALFORMED_JSON"),
        ("operator-token-file", 415, "ERR_MEDIA_TYPE"),
        ("operator-token-file", 400, "ERR_VALIDATION"),
    ]


class _FullAudit:
    """A store whose disk is full as soon as the log is written."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def add_audit(self, row: Any) -> None:
        raise StorageError("the disk is full")


async def test_a_change_that_cannot_be_noted_does_not_happen(tmp_path: Path) -> None:
    for plain in callers("sqlite", tmp_path):
        store = plain.plane.writer._store  # type: ignore[attr-defined]
        plane = control_plane(_FullAudit(store), plain.clock)
        caller = Caller(plane, plain.clock)
        assert (await caller.operator("POST", "/v1/checks", TCP))[0] == 500
        assert (await caller.operator("GET", "/v1/checks"))[1]["checks"] == []
        status, answer, _ = await caller.operator("DELETE", "/v1/checks/9")
        assert (status, answer["error"]) == (404, "ERR_NOT_FOUND"), "the refusal stays what it is"


async def test_the_log_is_read_in_pages_and_followed(caller: Caller) -> None:
    for name in "abcde":
        await made(caller, name)
        await caller.clock.advance(NS_PER_S)
    status, page, _ = await caller.operator("GET", "/v1/audit?limit=2", **OWNER)
    assert status == 200
    assert [one["audit_id"] for one in page["calls"]] == [5, 4]
    _, page, _ = await caller.operator("GET", f"/v1/audit?limit=3&cursor={page['cursor']}", **OWNER)
    assert [one["audit_id"] for one in page["calls"]] == [3, 2, 1]
    forward = "/v1/audit?order=asc&cursor="
    _, page, _ = await caller.operator("GET", "/v1/audit?order=asc&limit=4", **OWNER)
    _, page, _ = await caller.operator("GET", forward + page["cursor"], **OWNER)
    assert [one["audit_id"] for one in page["calls"]] == [5]
    _, page, _ = await caller.operator("GET", forward + page["cursor"], **OWNER)
    assert page["calls"] == []
    await made(caller, "f")
    _, page, _ = await caller.operator("GET", forward + page["cursor"], **OWNER)
    assert [one["audit_id"] for one in page["calls"]] == [6]
    since = (await audit(caller))[3]["at"]
    assert len(await audit(caller, f"from={since.replace('+', '%2B')}")) == 3
    assert await audit(caller, "token=nobody") == []


async def test_the_log_is_kept_for_as_long_as_was_said(tmp_path: Path) -> None:
    for caller in callers("memory", tmp_path, audit_ms=2 * 86_400_000):
        wanted = {"name": "ci", "scopes": ["read"], "expires_in_ms": 1000}
        await caller.operator("POST", "/v1/tokens", wanted)
        await caller.clock.advance(DAY_NS)
        await caller.operator("POST", "/v1/enrolment-tokens", {})
        await caller.plane.housekeep()
        assert len((await caller.operator("GET", "/v1/audit"))[1]["calls"]) == 2
        await caller.clock.advance(DAY_NS + 1)
        await caller.plane.housekeep()
        assert len((await caller.operator("GET", "/v1/audit"))[1]["calls"]) == 1
        assert len((await caller.operator("GET", "/v1/tokens"))[1]["tokens"]) == 1
        await caller.clock.advance(31 * DAY_NS)
        await caller.plane.housekeep()
        assert (await caller.operator("GET", "/v1/tokens"))[1]["tokens"] == []
        assert (await caller.operator("GET", "/v1/enrolment-tokens"))[1]["enrolment_tokens"] == []


@pytest.mark.parametrize("query", ["limit=0", "cursor=x", "order=up", "from=now", "colour=red"])
async def test_bad_queries_of_the_log_name_the_parameter(memory: Caller, query: str) -> None:
    status, answer, _ = await memory.operator("GET", f"/v1/audit?{query}", **OWNER)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"][0]["path"] == f"$.{query.partition('=')[0]}"


async def test_nobody_changes_the_log(memory: Caller) -> None:
    for method in ("POST", "PATCH", "DELETE", "PUT"):
        status, _, headers = await memory.operator(method, "/v1/audit", {}, **OWNER)
        assert (status, headers["Allow"]) == (405, "GET")


# ── the page ──

PAGE = Path(__file__).resolve().parents[3] / "docs" / "control-plane-api.md"


def test_the_page_has_every_scope_and_call(memory: Caller) -> None:
    operator_api = PAGE.read_text().partition("## Operator API")[2]
    operator_api = re.sub(r"\{\w+\}", "{id}", operator_api)  # people are told what id it is
    table = operator_api.partition("| scope | allows |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == list(Scope)
    assert isinstance(memory.operators, OperatorApi)
    for route in memory.operators.routes:
        call = f"{route.method} {route.path}"
        assert re.search(rf"^\| `{re.escape(call)}[`?]", operator_api, re.MULTILINE), call


async def test_a_token_is_revoked_even_if_who_revokes_it_hangs_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = SqliteStore.open(tmp_path / "server.db"), ManualClock()
    writer = ThreadWriter(store, store.reader, clock)
    plane = ControlPlane(config(), clock, writer, store, random.Random(1))
    caller = Caller(plane, clock, operator_token=FILE_TOKEN)
    token = await made(caller)
    begun, gate, commit = threading.Event(), threading.Event(), store.commit

    def slowly() -> None:
        begun.set()
        gate.wait(5)
        commit()

    monkeypatch.setattr(store, "commit", slowly)
    path = f"/v1/tokens/{token['token_id']}"
    async with asyncio.TaskGroup() as group:
        revoking = group.create_task(caller.operator("DELETE", path, **OWNER))
        await asyncio.to_thread(begun.wait, 5)
        revoking.cancel()
        await asyncio.sleep(0)
        gate.set()
    assert await writer.read(lambda store: store.operator_tokens(0, 9)) == []
    status, _, _ = await caller.operator("GET", "/v1/queues", **bearer(token["token"]))
    assert status == 401
    await writer.close()
