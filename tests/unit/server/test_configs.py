"""Signed configurations at the control plane: published, handed out, told of."""

import base64
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.dsse import PAYLOAD_MAX_BYTES
from netsonde.server import configs
from netsonde.server.config_calls import is_match
from support.configs import KEY, OTHER_KEY, document, envelope, payload
from support.stores import (
    STORES,
    Caller,
    RegisteredAgent,
    at_once,
    callers,
    config,
    control_plane,
    open_store,
)

FIELDS = st.sampled_from(
    ["payload_type", "payload", "signatures", "keyid", "sig", "kinds", "ping", "deny", "all", "x"]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=8,
)
AMS = {"labels": {"site": "ams"}}


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


async def publish(caller: Caller, *args: Any, status: int = 201, **changes: Any) -> Any:
    body = document(envelope(*args, **changes))
    code, answer, _ = await caller.operator("POST", "/v1/configs", body)
    assert code == status, answer
    return answer


async def fetch(agent: RegisteredAgent, etag: str = "") -> tuple[int, Any, Mapping[str, str]]:
    headers = agent.credentials() | {"if_none_match": etag}
    return await agent.caller.agent("GET", "/v1/agents/config", **headers)


async def beat(agent: RegisteredAgent, **said: Any) -> Any:
    status, answer, _ = await agent.call("/heartbeat", {"config": said} if said else {})
    assert status == 200, answer
    return answer


async def states(caller: Caller, revision: int) -> dict[int, str]:
    code, answer, _ = await caller.operator("GET", f"/v1/configs/{revision}/status")
    assert code == 200, answer
    found = {one["agent_id"]: one["status"] for one in answer["agents"]}
    for name in configs.STATES:
        assert answer["counts"][name] == list(found.values()).count(name)
    return found


async def located(caller: Caller, name: str, site: str) -> RegisteredAgent:
    return await caller.register(
        hostname=name, agent_key=name * 8, inventory={"labels": {"site": site}}
    )


# ── publishing ──


async def test_what_is_published_is_told(caller: Caller) -> None:
    answer = await publish(caller, 18)

    assert answer["revision"] == 18
    assert answer["scope"] == {"all": True}
    assert answer["keyids"] == [KEY.public.keyid]
    _, listed, _ = await caller.operator("GET", "/v1/configs")
    assert listed == {"configs": [answer], "cursor": None}
    _, one, _ = await caller.operator("GET", "/v1/configs/18")
    assert one["envelope"] == document(envelope(18))
    assert one["config"] == {"kinds": {"ping": {"concurrency": 2}}}


@pytest.mark.parametrize("expires_at", ["9999-12-31T23:59:59+00:00", "9999-12-31T23:59:59-14:00"])
async def test_one_may_be_for_ever(caller: Caller, expires_at: str) -> None:
    await publish(caller, 18, expires_at=expires_at)
    agent = await caller.register()
    assert (await fetch(agent))[0] == 200


async def test_revisions_grow(caller: Caller) -> None:
    await publish(caller, 5)
    for revision in (4, 1):
        answer = await publish(caller, revision, status=409)
        assert answer["error"] == "ERR_CONFLICT"
        assert "sign it as 6" in answer["message"]
    answer = await publish(caller, 5, {}, status=409)
    assert answer["error"] == "ERR_CONFLICT"
    await publish(caller, 6)


async def test_a_key_is_exchanged_without_another_revision(caller: Caller) -> None:
    agent = await caller.register()
    first = await publish(caller, 5)
    _, _, headers = await fetch(agent)
    again = await publish(caller, 5, None, KEY, OTHER_KEY, status=200)
    assert again["published_at"] == first["published_at"]
    code, body, _ = await fetch(agent, headers["ETag"])
    assert (code, len(body["signatures"])) == (200, 2)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"payload_type": "x"},
        document(envelope()) | {"payload": "?"},
        document(envelope()) | {"payload": ""},
        document(envelope()) | {"payload": 5},
        document(envelope()) | {"payload_type": "text/plain"},
        document(envelope()) | {"signatures": []},
        document(envelope()) | {"signatures": [{"keyid": "x"}]},
        document(envelope()) | {"extra": 1},
        document(envelope(1, {"control_plane": "http://evil"})),
        document(envelope(1, {"kinds": {"ping": {"concurrency": -1}}})),
        document(envelope(1, None, expires_s=1)),
        document(envelope(0)),
        document(envelope()) | {"payload": "A" * (PAYLOAD_MAX_BYTES * 4 // 3 + 8)},
    ],
)
async def test_what_no_agent_would_take_is_refused(memory: Caller, body: Any) -> None:
    code, answer, _ = await memory.operator("POST", "/v1/configs", body)

    assert (code, answer["error"]) == (422, "ERR_CONFIG_INVALID"), answer
    assert answer["details"]["violations"][0]["path"].startswith("$")
    _, listed, _ = await memory.operator("GET", "/v1/configs")
    assert listed["configs"] == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 1000])
async def test_what_is_no_json_is_malformed(memory: Caller, body: bytes) -> None:
    code, answer, _ = await memory.operator("POST", "/v1/configs", body)
    assert (code, answer["error"]) == (400, "ERR_MALFORMED_JSON")


@given(JSON_VALUES)
def test_whatever_is_published_has_an_answer(value: Any) -> None:
    """Never a defect of ours, never a configuration that is none."""
    with tempfile.TemporaryDirectory() as folder:
        (memory,) = callers("memory", Path(folder))
        code, _, _ = at_once(memory.operator("POST", "/v1/configs", value))
        assert code in (400, 422)
        body = json.dumps(json.loads(payload()) | {"config": value, "scope": value}).encode()
        signed = document(envelope()) | {"payload": base64.b64encode(body).decode()}
        code, _, _ = at_once(memory.operator("POST", "/v1/configs", signed))
        assert code == 422


async def test_a_repeated_request_is_one_publication(caller: Caller) -> None:
    body = document(envelope(1))
    first = await caller.operator("POST", "/v1/configs", body, idempotency_key="k")
    again = await caller.operator("POST", "/v1/configs", body, idempotency_key="k")
    assert first[:2] == again[:2]


@pytest.mark.parametrize("path", ["/v1/configs/9", "/v1/configs/x/status", "/v1/configs/9/status"])
async def test_what_is_not_there_is_not_found(memory: Caller, path: str) -> None:
    code, answer, _ = await memory.operator("GET", path)
    assert (code, answer["error"]) == (404, "ERR_NOT_FOUND")


async def test_listings_have_pages(memory: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in (1, 2, 3):
        await publish(memory, revision, scope={"agents": [revision]})
    monkeypatch.setattr("netsonde.server.operator.configs.PAGE_MAX", 2)
    _, first, _ = await memory.operator("GET", "/v1/configs?limit=1000")
    _, rest, _ = await memory.operator("GET", f"/v1/configs?limit=2&cursor={first['cursor']}")
    got = [one["revision"] for page in (first, rest) for one in page["configs"]]
    assert got == [3, 2, 1]


async def test_superseded_ones_are_kept_for_a_while(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "SUPERSEDED_KEPT", 2)
    ams = await located(caller, "a", "ams")
    await publish(caller, 1, scope=AMS)
    for revision in (2, 3, 4, 5):
        await publish(caller, revision, scope={"agents": [99]})
    _, listed, _ = await caller.operator("GET", "/v1/configs")
    assert [one["revision"] for one in listed["configs"]] == [5, 4, 3, 1]
    assert (await fetch(ams))[1]["revision"] == "1"


async def test_so_many_scopes_are_enough(memory: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "IN_FORCE_MAX", 2)
    await publish(memory, 1, scope={"agents": [1]})
    await publish(memory, 2, scope={"agents": [2]})
    answer = await publish(memory, 3, scope={"agents": [3]}, status=409)
    assert "publish one for all" in answer["message"]
    await publish(memory, 3)
    await publish(memory, 4, scope={"agents": [3]})


# ── handing out ──


async def test_without_one_there_is_none(caller: Caller) -> None:
    agent = await caller.register()
    code, answer, _ = await fetch(agent)
    assert (code, answer["error"], answer["retryable"]) == (404, "ERR_NOT_FOUND", False)
    assert "config_revision" not in await beat(agent)


async def test_an_agent_gets_the_envelope_and_the_originals_copy(caller: Caller) -> None:
    agent = await caller.register()
    await publish(caller, 18)
    code, body, headers = await fetch(agent)

    sealed = document(envelope(18))
    assert code == 200
    assert body.items() >= sealed.items()
    assert body["revision"] == "18"
    assert body["config"] == {"kinds": {"ping": {"concurrency": 2}}}
    assert body["signature"] == sealed["signatures"][0]["sig"]
    assert body["issued_at"].startswith("1970-01-01")
    assert body["expires_at"].startswith("2100-01-01")
    assert headers["ETag"].startswith('"')
    assert headers["ETag"].endswith('"')


@pytest.mark.parametrize(
    "form", ["{}", "W/{}", '"x", {}', '"x",W/{} , "y"', "*", 'W/"x", *', "{}, {}"]
)
async def test_what_is_known_is_not_sent_again(memory: Caller, form: str) -> None:
    agent = await memory.register()
    await publish(memory, 18)
    _, _, headers = await fetch(agent)
    tag = headers["ETag"]

    code, body, again = await fetch(agent, form.replace("{}", tag))
    assert (code, body, again["ETag"]) == (304, None, tag)
    code, _, _ = await fetch(agent, form.replace("{}", tag.strip('"')))
    assert code == 304
    await publish(memory, 19)
    code, _, _ = await fetch(agent, tag)
    assert code == 200


@pytest.mark.parametrize("header", ["", '"y"', "W/", '"xx"', "x y", '"', ",,,"])
def test_another_tag_is_no_match(header: str) -> None:
    assert not is_match(header, "x")


@given(
    st.text(max_size=60), st.text(alphabet="abc012", min_size=1, max_size=6), st.text(max_size=9)
)
def test_any_header_has_an_answer(before: str, tag: str, after: str) -> None:
    assert is_match(f'{before.replace(",", ";")}, W/"{tag}" ,{after}', tag)
    assert is_match(before, tag) <= (tag in before or "*" in before)


async def test_everyone_gets_the_latest_that_is_theirs(caller: Caller) -> None:
    ams, fra = await located(caller, "a", "ams"), await located(caller, "f", "fra")
    await publish(caller, 1)
    await publish(caller, 2, scope=AMS)
    await publish(caller, 3, scope={"agents": ["f"]})
    await publish(caller, 4, scope={"agents": [99]})

    assert (await fetch(ams))[1]["revision"] == "2"
    assert (await fetch(fra))[1]["revision"] == "3"
    await publish(caller, 5)
    assert (await fetch(ams))[1]["revision"] == "5"
    assert (await fetch(fra))[1]["revision"] == "5"


async def test_an_operators_labels_are_not_the_agents(caller: Caller) -> None:
    """The agent could not check them: what it would refuse is not sent."""
    agent = await located(caller, "f", "fra")
    await publish(caller, 1, scope=AMS)
    path = f"/v1/agents/{agent.agent_id}"
    code, _, _ = await caller.operator("PATCH", path, {"labels": {"site": "ams"}})
    assert code == 200
    assert (await fetch(agent))[0] == 404
    moved = await located(caller, "f", "ams")
    assert (await fetch(moved))[0] == 200


async def test_every_answer_names_the_revision(caller: Caller) -> None:
    agent = await caller.register()
    await publish(caller, 18)
    assert (await beat(agent))["config_revision"] == "18"
    _, answer, _ = await agent.call("/claim", {"capacities": {"tcp": 1}})
    assert answer["config_revision"] == "18"
    assert (await caller.register()).answer["config_revision"] == "18"


async def test_a_restarted_control_plane_hands_out_what_it_had(tmp_path: Path) -> None:
    clock = ManualClock()
    before = open_store("sqlite", tmp_path)
    first = Caller(control_plane(before, clock, config()), clock)
    agent = await first.register()
    await publish(first, 18)
    before.close()
    store = open_store("sqlite", tmp_path)
    again = Caller(control_plane(store, clock, config()), clock)
    agent.caller = again
    assert (await fetch(agent))[1]["revision"] == "18"
    store.close()


# ── what agents say ──


async def test_agents_say_what_they_make_of_it(caller: Caller) -> None:
    good = await caller.register(hostname="good", agent_key="g" * 32)
    bad = await caller.register(hostname="bad", agent_key="b" * 32)
    late = await caller.register(hostname="late", agent_key="l" * 32)
    await publish(caller, 18)
    assert set((await states(caller, 18)).values()) == {"pending"}
    await beat(good, applied=18, status="ack", revision=18, clamped=[{"path": "x"}])
    await beat(bad, status="nack", revision=18, reason="expired", error="it expired")
    assert await states(caller, 18) == {
        good.agent_id: "ack",
        bad.agent_id: "nack",
        late.agent_id: "pending",
    }
    _, answer, _ = await caller.operator("GET", "/v1/configs/18/status")
    first, second, _ = answer["agents"]
    assert first["clamped"] == [{"path": "x"}]
    assert (second["reason"], second["error"]) == ("expired", "it expired")
    assert second["reported_at"]
    await publish(caller, 19)
    assert (await states(caller, 18))[late.agent_id] == "superseded"
    assert (await states(caller, 18))[good.agent_id] == "ack"


async def test_the_last_word_counts(caller: Caller) -> None:
    agent = await caller.register()
    await publish(caller, 18)
    await beat(agent, status="nack", revision=18, reason="not_kept", error="disk full")
    await beat(agent, applied=18, status="ack", revision=18)
    assert await states(caller, 18) == {agent.agent_id: "ack"}


async def test_what_is_said_again_is_not_written_again(memory: Caller) -> None:
    agent = await memory.register()
    await publish(memory, 18)
    await beat(agent, applied=18, status="ack", revision=18)
    _, first, _ = await memory.operator("GET", "/v1/configs/18/status")
    await memory.clock.advance(60 * NS_PER_S)
    await beat(agent, applied=18, status="ack", revision=18)
    _, again, _ = await memory.operator("GET", "/v1/configs/18/status")
    assert first == again


@pytest.mark.parametrize(
    "said",
    [
        {"applied": -1},
        {"applied": 2**60},
        {"status": 5},
        {"error": "x" * 2000},
        {"clamped": [{"path": 1}]},
        {"clamped": [{"path": "x"}] * 65},
        {"clamped": [{"path": "x" * 257}]},
        {"clamped": [{f"k{n}": "x" for n in range(9)}]},
    ],
)
async def test_what_makes_no_sense_is_invalid(memory: Caller, said: dict[str, Any]) -> None:
    agent = await memory.register()
    status, answer, _ = await agent.call("/heartbeat", {"config": said})
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"][0]["path"].startswith("$.config")


async def test_unknown_revisions_leave_no_trace(memory: Caller) -> None:
    agent = await memory.register()
    await publish(memory, 18)
    await beat(agent, applied=7, status="ack", revision=7, later=True)
    assert await states(memory, 18) == {agent.agent_id: "pending"}


async def test_status_has_pages(memory: Caller) -> None:
    for number in range(3):
        await memory.register(hostname=f"h{number}", agent_key=f"{number}" * 32)
    await publish(memory, 18)
    _, first, _ = await memory.operator("GET", "/v1/configs/18/status?limit=2")
    path = f"/v1/configs/18/status?limit=2&cursor={first['cursor']}"
    _, rest, _ = await memory.operator("GET", path)
    assert [one["agent_id"] for page in (first, rest) for one in page["agents"]] == [1, 2, 3]
    assert rest["counts"]["pending"] == 3


async def test_names_are_made_a_set_once_however_many_agents_ask(
    memory: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(names: Iterable[int | str] = ()) -> frozenset[int | str]:
        made.append(1)
        return frozenset(names)

    monkeypatch.setattr(configs, "frozenset", counted, raising=False)
    names = [f"probe-{number}" for number in range(300)]
    await publish(memory, 1, scope={"agents": names[:-1]})
    published = len(made)
    agent = await memory.register()
    row = memory.plane.registry.get(agent.agent_id)
    assert row is not None
    for number in range(200):
        named = replace(row, agent_id=number + 2, hostname=names[-1 - number])
        memory.plane.registry.keep(named)
    _, answer, _ = await memory.operator("GET", "/v1/configs/1/status")
    assert answer["counts"]["pending"] == 200  # probe-1 of them
    assert len(made) == published > 0


async def test_what_agents_say_is_kept_once_their_revision_is_published_again(
    caller: Caller,
) -> None:
    agent = await caller.register()
    for _ in range(2):  # the database was restored, the agents were not
        await beat(agent, applied=18, revision=18, status="ack")
    await publish(caller, 18)
    await beat(agent, applied=18, revision=18, status="ack")
    assert await states(caller, 18) == {agent.agent_id: "ack"}
