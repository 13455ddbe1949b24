"""What a hostile peer tries, against the APIs without sockets: refused, and harmless to others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde import wire
from netsonde.errors import RequestError
from netsonde.server.agent_calls import PREFIXES
from support.stores import STORES, Caller, RegisteredAgent, at_once, callers

FILE_TOKEN = "correct horse battery"
AGENT_CALLS = ("heartbeat", "claim", "extend", "release", "report", "metrics")
DEEP = b'{"hostname":' + b"[" * 10_000 + b"]" * 10_000 + b"}"


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


async def two(caller: Caller) -> tuple[RegisteredAgent, RegisteredAgent]:
    """A good agent, and one that is not."""
    good = await caller.register(agent_key="a" * 32, hostname="good")
    bad = await caller.register(agent_key="b" * 32, hostname="bad")
    return good, bad


# ── another agent's things ──


async def test_an_agents_token_opens_no_other_agent(caller: Caller) -> None:
    good, bad = await two(caller)
    for call in AGENT_CALLS:
        body = {"agent_id": good.agent_id}
        stolen = {"x_agent_id": str(good.agent_id), "x_agent_token": bad.token}
        status, answer, _ = await caller.agent("POST", f"/{call}", body, **stolen)
        assert (status, answer["error"]) == (401, "ERR_UNAUTHORIZED"), call


async def test_an_agent_speaks_for_no_other_agent(caller: Caller) -> None:
    good, bad = await two(caller)
    bodies: dict[str, dict[str, Any]] = {
        "claim": {"capacities": {}},
        "extend": {"lease_ids": [], "extend_by_ms": 1},
        "report": {"completed": [], "cancelled": []},
        "metrics": {"timestamp": "2026-11-28T00:00:00Z"},
    }
    for call in AGENT_CALLS:
        body = bodies.get(call, {}) | {"agent_id": good.agent_id}
        status, answer, _ = await caller.agent("POST", f"/{call}", body, **bad.credentials())
        assert (status, answer["error"]) == (403, "ERR_FORBIDDEN"), (call, answer)


async def test_another_agents_leases_are_out_of_reach(caller: Caller) -> None:
    good, bad = await two(caller)
    await caller.tasks(3)
    leases = [lease["lease_id"] for lease in await good.claim(3)]
    assert await bad.report(*leases) == ["fenced"] * 3
    _, answer, _ = await bad.call("/release", {"lease_ids": leases})
    assert answer == {"released": 0}
    _, answer, _ = await bad.call("/extend", {"lease_ids": leases, "extend_by_ms": 5000})
    assert (answer["outcomes"], answer["revoked"]) == ([], leases)
    _, answer, _ = await bad.call("/heartbeat", {"active_leases": {"ids": leases}})
    assert answer["unknown_leases"] == leases
    assert await bad.claim(3, claim_id="c") == []
    assert await good.report(*leases) == ["accepted"] * 3, "nothing happened to them"


async def test_a_claim_id_of_another_agent_brings_nothing(caller: Caller) -> None:
    good, bad = await two(caller)
    await caller.tasks(1)
    held = await good.claim(1, claim_id="shared")
    assert await bad.claim(1, claim_id="shared") == []
    _, answer, _ = await bad.call("/release", {"claim_ids": ["shared"]})
    assert answer == {"released": 0}
    assert [one["lease_id"] for one in await good.claim(1, claim_id="shared")] == [
        one["lease_id"] for one in held
    ]


async def test_leases_nobody_was_given_are_unknown(caller: Caller) -> None:
    _, bad = await two(caller)
    invented = [1, 2**53 - 1, 2**53, 2**63, 2**64 - 1]
    assert set(await bad.report(*invented)) == {"unknown"}
    _, answer, _ = await bad.call("/extend", {"lease_ids": invented, "extend_by_ms": 1})
    assert {one["status"] for one in answer["results"]} == {"unknown"}


async def test_a_stolen_token_ends_with_the_agent_disabled(caller: Caller) -> None:
    good, bad = await two(caller)
    await caller.operator("PATCH", f"/v1/agents/{bad.agent_id}", {"disabled": True})
    for call in AGENT_CALLS:
        status, answer, _ = await bad.call(f"/{call}", {})
        assert (status, answer["error"]) == (403, "ERR_FORBIDDEN"), call
    wrong = {"x_agent_id": str(bad.agent_id), "x_agent_token": "wrong"}
    status, _, _ = await caller.agent("POST", "/claim", {}, **wrong)
    assert status == 401, "who has no token is not told that it is disabled"
    assert await good.claim() == []


# ── the wrong door ──


async def test_an_agents_token_is_no_operators(caller: Caller) -> None:
    agent = await caller.register()
    guarded = Caller(caller.plane, caller.clock, operator_token=FILE_TOKEN)
    for path in ("/v1/queues", "/v1/agents", "/v1/tokens", "/v1/audit"):
        for headers in (agent.credentials(), {"authorization": f"Bearer {agent.token}"}):
            status, answer, _ = await guarded.operator("GET", path, **headers)
            assert (status, answer["error"]) == (401, "ERR_UNAUTHORIZED")


async def test_an_operators_token_is_no_agents(caller: Caller) -> None:
    guarded = Caller(caller.plane, caller.clock, operator_token=FILE_TOKEN)
    agent = await guarded.register()
    owner = {"authorization": f"Bearer {FILE_TOKEN}"}
    named = {"name": "ci", "scopes": ["read", "tokens:write"]}
    _, made, _ = await guarded.operator("POST", "/v1/tokens", named, **owner)
    for token in (FILE_TOKEN, made["token"]):
        headers = {"x_agent_id": str(agent.agent_id), "authorization": f"Bearer {token}"}
        status, answer, _ = await guarded.agent("POST", "/claim", {}, **headers)
        assert (status, answer["error"]) == (401, "ERR_UNAUTHORIZED")
    _, enrolment, _ = await guarded.operator("POST", "/v1/enrolment-tokens", {}, **owner)
    secret = {"authorization": f"Bearer {enrolment['token']}"}
    assert (await guarded.operator("GET", "/v1/queues", **secret))[0] == 401


@pytest.mark.parametrize(
    "path", ["/v1/checks", "/v1/tokens", "/v1/enrolment-tokens", "/v1/audit", "/v1/tasks"]
)
async def test_operators_calls_are_not_at_the_agents_door(memory: Caller, path: str) -> None:
    owner = {"authorization": f"Bearer {FILE_TOKEN}"}
    for method in ("GET", "POST"):
        status, answer, _ = await memory.agent(method, path, {}, **owner)
        assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_agents_calls_are_not_at_the_operators_door(memory: Caller, prefix: str) -> None:
    agent = await memory.register()
    for call in ("register", *AGENT_CALLS):
        status, answer, _ = await memory.operator(
            "POST", f"{prefix}/{call}", {}, **agent.credentials()
        )
        assert status in (404, 405), (call, answer)


# ── paths ──

TRICKS = (
    "//v1/queues", "/v1//queues", "/v1/queues/", "/v1/./queues", "/v1/../v1/queues", "/V1/queues",
    "/v1/queues;a=b", "/v1/queues%00", "/v1%2fqueues", "/v1/%71ueues", "/livez/../v1/queues",
    "/livez/v1/queues", "/v1/agents/../queues", "/v1/agents//", "v1/queues", "", "\\v1\\queues",
)  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
async def test_no_other_path_is_one_of_ours(memory: Caller, path: str) -> None:
    guarded = Caller(memory.plane, memory.clock, operator_token=FILE_TOKEN)
    status, answer, _ = await guarded.operator("GET", path)
    assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")


@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "PATCH", "DELETE", "HEAD", "X"]))
@settings(deadline=None)
def test_no_path_gets_past_the_token(path: str, method: str) -> None:
    for plain in callers("memory", Path()):
        guarded = Caller(plain.plane, plain.clock, operator_token=FILE_TOKEN)
        bare = path.replace("?", "")
        status, answer, _ = at_once(guarded.operator(method, f"/v1/{bare}", {}))
        assert status in (401, 404, 405), answer


@pytest.mark.parametrize("item", ["0", "-1", "1e3", "٣", "9" * 17, "1 ", "x", "%31", "1,2"])
async def test_what_is_no_id_is_not_found(memory: Caller, item: str) -> None:
    for path in ("checks", "tokens", "enrolment-tokens"):
        status, answer, _ = await memory.operator("DELETE", f"/v1/{path}/{item}")
        assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")


# ── bodies ──

HOSTILE: tuple[tuple[bytes, dict[str, str], int, str], ...] = (
    (DEEP, {}, 400, "ERR_MALFORMED_JSON"),
    (b'"' + b"x" * (wire.ADMIN_MAX_BYTES + 1) + b'"', {}, 413, "ERR_TOO_LARGE"),
    (b"\x1f\x8b\x08", {"content_encoding": "gzip"}, 415, "ERR_MEDIA_TYPE"),
    (b"{}", {"content_encoding": "identity, br"}, 415, "ERR_MEDIA_TYPE"),
    (b"{}", {"content_type": "multipart/form-data; boundary=x"}, 415, "ERR_MEDIA_TYPE"),
    (b"\xff\xfe{\x00}\x00", {}, 400, "ERR_MALFORMED_JSON"),
    (b"", {}, 400, "ERR_MALFORMED_JSON"),
)


@pytest.mark.parametrize(("body", "headers", "status", "code"), HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_bodies_cost_their_sender_only(
    memory: Caller, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    agent = await memory.register(agent_key="z" * 32)
    for path in ("/register", "/claim", "/report"):
        sent = agent.credentials() | headers
        got, answer, _ = await memory.agent("POST", path, body, **sent)
        assert (got, answer["error"]) == (status, code), path
    for path in ("/v1/checks", "/v1/tokens", "/v1/tasks"):
        got, answer, _ = await memory.operator("POST", path, body, **headers)
        assert (got, answer["error"]) == (status, code), path
    assert await agent.claim() == []
    assert (await memory.operator("GET", "/v1/checks"))[1]["checks"] == []


async def test_who_may_not_call_is_refused_before_the_body_is_read(memory: Caller) -> None:
    agent = await memory.register()
    guarded = Caller(memory.plane, memory.clock, operator_token=FILE_TOKEN)
    with pytest.raises(RequestError, match="token is needed"):
        guarded.operators.check_sender("POST", "/v1/tasks", {})
    guarded.operators.check_sender("POST", "/v1/tasks", {"authorization": f"Bearer {FILE_TOKEN}"})
    with pytest.raises(RequestError, match="are needed"):
        memory.agents.check_sender("POST", "/v1/agents/report", {})
    proof = {"x-agent-id": str(agent.agent_id), "x-agent-token": agent.token}
    memory.agents.check_sender("POST", "/v1/agents/report", proof)
    memory.agents.check_sender("POST", "/v1/agents/register", {})
    row = memory.plane.registry.get(agent.agent_id)
    assert row is not None
    assert not row.tokens[0].is_used, "looking at a token does not use it"


@pytest.mark.parametrize("number", [-1, 2**64, 2**70, -(2**63) - 1])
async def test_ids_that_nobody_can_have_are_refused(caller: Caller, number: int) -> None:
    agent = await caller.register()
    bodies: dict[str, Mapping[str, Any]] = {
        "/extend": {"lease_ids": [number], "extend_by_ms": 1},
        "/release": {"lease_ids": [number]},
        "/heartbeat": {"active_leases": {"ids": [number]}},
    }
    for path, body in bodies.items():
        status, answer, _ = await agent.call(path, body)
        assert (status, answer["error"]) == (400, "ERR_VALIDATION"), path
    check = {"kind": "tcp", "targets": ["192.0.2.1:80"], "select": {"agents": [number]}}
    status, answer, _ = await caller.operator("POST", "/v1/checks", check)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


@pytest.mark.parametrize("said", [{"inventory": {"x": 2**70}}, {"capacities": {"x": -(2**70)}}])
async def test_an_account_with_numbers_beyond_64_bits_is_left_out(
    caller: Caller, said: Mapping[str, Any]
) -> None:
    agent = await caller.register(**said)
    assert (await agent.call("/heartbeat", {}))[0] == 200
    assert (await caller.operator("GET", f"/v1/agents/{agent.agent_id}"))[0] == 200


@pytest.mark.parametrize("field", ["every_ms", "spec", "x", "priority"])
async def test_a_check_takes_no_number_beyond_64_bits(caller: Caller, field: str) -> None:
    check = {"kind": "tcp", "targets": ["192.0.2.1:80"]}
    status, made, _ = await caller.operator("POST", "/v1/checks", check)
    assert status == 201
    value = {"timeout_ms": 2**70} if field == "spec" else 2**70
    for method, path, body in (
        ("POST", "/v1/checks", check | {field: value}),
        ("PATCH", f"/v1/checks/{made['check_id']}", {field: value}),
    ):
        status, answer, _ = await caller.operator(method, path, body)
        assert (status, answer["error"]) == (400, "ERR_VALIDATION"), method
