"""Who may become an agent: contract section 3."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S
from netsonde.errors import RequestError
from netsonde.model import RegisterRequest
from netsonde.server.enrolment import Admission, Enrolment
from netsonde.server.registry import identity_of
from support.stores import STORES, Caller, at_once, callers, written_in

DAY_NS = 86_400 * NS_PER_S
FILE_TOKEN = "correct horse battery"


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path, listen="0.0.0.0:0")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path, listen="0.0.0.0:0")


async def made(caller: Caller, **wanted: Any) -> dict[str, Any]:
    status, answer, _ = await caller.operator("POST", "/v1/enrolment-tokens", wanted)
    assert status == 201, answer
    token: dict[str, Any] = answer
    return token


async def refusal(caller: Caller, key: str = "a", **body: Any) -> str:
    sent = {"hostname": "h", "agent_key": key * 32} | body
    status, answer, headers = await caller.agent("POST", "/register", sent)
    assert (status, answer["error"]) == (401, "ERR_ENROLMENT_REQUIRED"), answer
    assert answer["retryable"] is False
    assert headers["WWW-Authenticate"] == "Bearer"
    message: str = answer["message"]
    return message


async def listed(caller: Caller) -> list[dict[str, Any]]:
    _, answer, _ = await caller.operator("GET", "/v1/enrolment-tokens")
    tokens: list[dict[str, Any]] = answer["enrolment_tokens"]
    return tokens


async def test_a_token_enrols_one_agent(caller: Caller) -> None:
    token = (await made(caller))["token"]
    assert token.startswith("net_")
    assert len(token) >= 4 + 43, "256 bits"
    assert "present an enrolment token" in await refusal(caller)
    agent = await caller.register(agent_key="a" * 32, enrolment_token=token)
    assert await agent.claim() == []
    assert "as often as it may be" in await refusal(caller, "b", enrolment_token=token)
    assert [one["used"] for one in await listed(caller)] == [1]


async def test_a_used_token_is_as_good_again_for_the_same_agent(caller: Caller) -> None:
    token = (await made(caller))["token"]
    first = await caller.register(agent_key="a" * 32, enrolment_token=token)
    again = await caller.register(agent_key="a" * 32, enrolment_token=token)
    await caller.clock.advance(2 * DAY_NS)
    later = await caller.register(agent_key="a" * 32, enrolment_token=token)
    assert first.agent_id == again.agent_id == later.agent_id
    assert [one["used"] for one in await listed(caller)] == [1]


async def test_a_known_agent_needs_no_token_and_spends_none(caller: Caller) -> None:
    first = await caller.register(enrolment_token=(await made(caller))["token"])
    spare = (await made(caller))["token"]
    for given in ({}, {"enrolment_token": "wrong"}, {"enrolment_token": spare}):
        assert (await caller.register(**given)).agent_id == first.agent_id
    await caller.register(agent_key="b" * 32, enrolment_token=spare)


async def test_a_token_for_several_agents(caller: Caller) -> None:
    token = (await made(caller, uses=2, name="rack 7"))["token"]
    for key in "abab":
        await caller.register(agent_key=key * 32, enrolment_token=token)
    await refusal(caller, "c", enrolment_token=token)
    (one,) = await listed(caller)
    assert (one["name"], one["uses"], one["used"]) == ("rack 7", 2, 2)
    assert "token" not in one


async def test_a_token_that_expired_or_was_revoked_says_so(caller: Caller) -> None:
    old = await made(caller, expires_in_ms=60_000)
    gone = await made(caller)
    await caller.clock.advance(60 * NS_PER_S)
    message = await refusal(caller, enrolment_token=old["token"])
    assert message == f"this enrolment token expired at {old['expires_at']}"
    path = f"/v1/enrolment-tokens/{gone['token_id']}"
    assert (await caller.operator("DELETE", path))[0] == 200
    assert "revoked" in await refusal(caller, enrolment_token=gone["token"])
    status, answer, _ = await caller.operator("DELETE", path)
    assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")
    assert "not known" in await refusal(caller, enrolment_token="net_" + "x" * 43)
    assert "not known" in await refusal(caller, enrolment_token="é")


async def test_refusing_changes_nothing(caller: Caller) -> None:
    await made(caller)
    await refusal(caller, enrolment_token="wrong")
    assert [one["used"] for one in await listed(caller)] == [0]
    assert (await caller.operator("GET", "/v1/agents"))[1]["agents"] == []
    agent = await caller.register(enrolment_token=(await made(caller))["token"])
    assert agent.agent_id == 1


async def test_labels_of_the_token_stand_over_the_agents_own(caller: Caller) -> None:
    token = (await made(caller, labels={"site": "ams", "tier": "1"}))["token"]

    async def labels(**inventory: Any) -> dict[str, str]:
        agent = await caller.register(enrolment_token=token, inventory={"labels": inventory})
        _, answer, _ = await caller.operator("GET", f"/v1/agents/{agent.agent_id}")
        found: dict[str, str] = answer["labels"]
        return found

    assert await labels(site="lon", os="linux") == {"site": "ams", "tier": "1", "os": "linux"}
    assert await labels(site="lon", os="bsd") == {"site": "ams", "tier": "1", "os": "bsd"}
    many = {f"l{number:02}": "x" for number in range(64)}
    assert len(await labels(**many)) == 64
    assert (await labels(**many))["site"] == "ams"
    await caller.operator("PATCH", "/v1/agents/1", {"labels": {"mine": "yes"}})
    assert await labels(os="linux") == {"mine": "yes"}


async def test_a_disabled_agent_enrols_with_no_token(caller: Caller) -> None:
    agent = await caller.register(enrolment_token=(await made(caller))["token"])
    await caller.operator("PATCH", f"/v1/agents/{agent.agent_id}", {"disabled": True})
    fresh = (await made(caller))["token"]
    for given in ({}, {"enrolment_token": fresh}):
        sent = {"hostname": "h", "agent_key": "k1" * 16} | given
        status, answer, _ = await caller.agent("POST", "/register", sent)
        assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")
    await caller.register(agent_key="b" * 32, enrolment_token=fresh)


async def test_a_hostname_proves_nothing(caller: Caller) -> None:
    """An original agent is known by its hostname, which anybody can send."""
    token = (await made(caller))["token"]
    legacy: dict[str, Any] = {"agent_key": None, "hostname": "old-1"}
    first = await caller.register(**legacy, enrolment_token=token)
    status, answer, _ = await caller.agent("POST", "/register", {"hostname": "old-1"})
    assert (status, answer["error"]) == (401, "ERR_ENROLMENT_REQUIRED")
    assert (await caller.register(**legacy, enrolment_token=token)).agent_id == first.agent_id


async def test_the_servers_own_token_has_no_end(tmp_path: Path) -> None:
    for caller in callers("memory", tmp_path, listen="0.0.0.0:0", enrolment_token=FILE_TOKEN):
        for key in "abc":
            await caller.register(agent_key=key * 32, enrolment_token=FILE_TOKEN)
        other = (await made(caller))["token"]
        await caller.register(agent_key="d" * 32, enrolment_token=other)


async def test_on_loopback_everybody_enrols_and_a_token_still_labels(tmp_path: Path) -> None:
    for caller in callers("memory", tmp_path):
        await caller.register(agent_key="a" * 32, enrolment_token="wrong")
        token = (await made(caller, labels={"site": "ams"}))["token"]
        agent = await caller.register(agent_key="b" * 32, enrolment_token=token)
        _, answer, _ = await caller.operator("GET", f"/v1/agents/{agent.agent_id}")
        assert answer["labels"] == {"site": "ams"}


async def test_tokens_and_who_used_them_survive_a_restart_hashed(tmp_path: Path) -> None:
    token = ""
    for caller in callers("sqlite", tmp_path, listen="0.0.0.0:0"):
        token = (await made(caller, labels={"site": "ams"}))["token"]
        await caller.register(agent_key="a" * 32, enrolment_token=token)
    assert token.encode() not in written_in(tmp_path)
    for caller in callers("sqlite", tmp_path, listen="0.0.0.0:0"):
        await caller.register(agent_key="a" * 32)
        await refusal(caller, "b", enrolment_token=token)


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ({"uses": 0}, "$.uses"),
        ({"uses": 100_001}, "$.uses"),
        ({"uses": "1"}, "$.uses"),
        ({"expires_in_ms": 0}, "$.expires_in_ms"),
        ({"expires_in_ms": 10**12}, "$.expires_in_ms"),
        ({"expires_in_ms": None}, "$.expires_in_ms"),
        ({"name": ""}, "$.name"),
        ({"name": "a\nb"}, "$.name"),
        ({"name": "x" * 101}, "$.name"),
        ({"labels": {"": "x"}}, "$.labels"),
        ({"labels": {"a": "x" * 129}}, "$.labels"),
        ({"labels": {f"l{number}": "" for number in range(65)}}, "$.labels"),
        ({"colour": "red"}, "$.colour"),
    ],
)
async def test_a_bad_wish_names_the_field(
    memory: Caller, wanted: dict[str, Any], path: str
) -> None:
    status, answer, _ = await memory.operator("POST", "/v1/enrolment-tokens", wanted)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"][0]["path"] == path
    assert await listed(memory) == []


async def test_the_number_of_tokens_has_a_limit(
    memory: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.operator.tokens.ENROLMENT_TOKENS_MAX", 1)
    await made(memory)
    status, answer, _ = await memory.operator("POST", "/v1/enrolment-tokens", {})
    assert (status, answer["error"]) == (409, "ERR_CONFLICT")


async def test_tokens_come_in_pages(memory: Caller) -> None:
    names = [(await made(memory, name=name))["name"] for name in ("a", "b", "c")]
    seen: list[str] = []
    cursor = ""
    page: dict[str, Any] = {}
    for _ in range(2):
        _, page, _ = await memory.operator("GET", f"/v1/enrolment-tokens?limit=2{cursor}")
        seen += [one["name"] for one in page["enrolment_tokens"]]
        cursor = f"&cursor={page['cursor']}"
    assert (seen, page["cursor"]) == (names, None)


async def test_an_agent_that_was_forgotten_enrols_with_its_used_token(memory: Caller) -> None:
    """As after a backup was restored: who enrolled is known, the agent is not."""
    token = (await made(memory, labels={"site": "ams"}))["token"]
    await memory.register(agent_key="a" * 32, enrolment_token=token)
    await memory.clock.advance(2 * DAY_NS)

    def admitted(key: str) -> Admission:
        request = RegisterRequest(agent_key=key * 32, enrolment_token=token)
        enrolment = Enrolment(memory.plane.config)
        return at_once(
            memory.plane.writer.read(
                lambda store: enrolment.admit(
                    store,
                    request,
                    identity_of(request),
                    is_known=False,
                    now_ns=memory.plane.time.now_ns(),
                )
            )
        )

    assert admitted("a") == Admission(b'{"site":"ams"}'), "and no use is spent"
    with pytest.raises(RequestError, match="expired at"):
        admitted("b")
