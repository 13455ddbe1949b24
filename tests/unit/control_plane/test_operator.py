"""The operator API's client over the memory transport."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from netsonde import wire
from netsonde.control_plane.memory import MemoryControlPlaneTransport
from netsonde.control_plane.operator import OperatorClient, Page
from netsonde.control_plane.transport import TransportRequest, TransportResponse
from netsonde.errors import ControlPlaneError


class Api:
    """Answers from a script and remembers what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.asked: list[TransportRequest] = []
        self._answers = list(answers)

    async def __call__(self, request: TransportRequest) -> TransportResponse:
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, TransportResponse):
            return answer
        return TransportResponse(200, {}, wire.encode(answer))

    def client(self, token: str | None = None) -> OperatorClient:
        transport = MemoryControlPlaneTransport(self)
        return OperatorClient("http://127.0.0.1:8090", token=token, transport=transport)

    def query(self, at: int) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.asked[at].path).query))


def refusal(status: int, body: bytes = b"", **headers: str) -> TransportResponse:
    return TransportResponse(status, headers, body)


async def test_a_check_is_posted_once_under_its_own_key() -> None:
    api = Api({"check_id": 7, "kind": "ping"}, {"check_id": 8, "kind": "ping"})
    wanted = {"kind": "ping", "targets": ["127.0.0.1"], "every_ms": 60_000}
    async with api.client() as client:
        assert await client.create_check(wanted) == {"check_id": 7, "kind": "ping"}
        await client.create_check(wanted)
    first, second = api.asked
    assert (first.method, first.path) == ("POST", "/v1/checks")
    assert wire.parse(first.body) == wanted
    assert first.headers["Content-Type"] == "application/json"
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


async def test_the_token_is_presented_only_where_there_is_one() -> None:
    api = Api({"queues": [], "counters": {}}, {"queues": [], "counters": {}})
    await api.client().queues()
    await api.client(token="net_abc").queues()
    assert "Authorization" not in api.asked[0].headers
    assert api.asked[1].headers["Authorization"] == "Bearer net_abc"


async def test_a_listing_is_read_to_its_end() -> None:
    api = Api(
        {"checks": [{"check_id": 1}, {"check_id": 2}], "cursor": "c2"},
        {"checks": [{"check_id": 3}], "cursor": None},
    )
    async with api.client() as client:
        assert [check["check_id"] for check in await client.checks()] == [1, 2, 3]
    assert "cursor" not in api.query(0)
    assert api.query(1)["cursor"] == "c2"


async def test_a_cursor_that_stays_ends_a_listing_and_an_empty_page_does_not() -> None:
    api = Api(
        {"agents": [], "cursor": "on"},
        {"agents": [{"agent_id": 7}], "cursor": "again"},
        {"agents": [], "cursor": "again"},
    )
    assert [agent["agent_id"] for agent in await api.client().agents()] == [7]


async def test_results_ask_only_for_what_was_given() -> None:
    api = Api({"results": [{"lease_id": 5}], "cursor": "x"})
    async with api.client() as client:
        since = "2026-01-01T00:00:00Z"
        page = await client.results({"kind": "ping", "check_id": None, "from": since})
    assert page == Page(({"lease_id": 5},), "x")
    assert api.query(0) == {"kind": "ping", "from": "2026-01-01T00:00:00Z"}


async def test_a_long_poll_may_take_as_long_as_it_asked_for() -> None:
    api = Api({"results": [], "cursor": "x"}, {"results": [], "cursor": "x"})
    async with api.client() as client:
        await client.results({})
        await client.results({}, wait_ms=20_000)
    assert api.asked[1].timeout_s == api.asked[0].timeout_s + 20
    assert api.query(1) == {"wait_ms": "20000"}


async def test_a_check_is_removed_by_its_id() -> None:
    api = Api({"check_id": 9, "cancelled": 1})
    assert await api.client().remove_check(9) == {"check_id": 9, "cancelled": 1}
    assert (api.asked[0].method, api.asked[0].path) == ("DELETE", "/v1/checks/9")


async def test_a_refusal_keeps_its_code() -> None:
    body = b'{"error":"ERR_NOT_FOUND","message":"no check 9","retryable":false}'
    with pytest.raises(ControlPlaneError, match="no check 9") as caught:
        await Api(refusal(404, body)).client().remove_check(9)
    assert (caught.value.code, caught.value.status) == ("ERR_NOT_FOUND", 404)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"[1", b'{"results":7}', b'{"results":[7]}']
)
async def test_an_answer_that_is_none_is_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(wire.DecodeError):
        await Api(TransportResponse(200, {}, body)).client().results({})


async def test_tokens_are_made_listed_and_revoked() -> None:
    api = Api(
        {"token_id": 1, "token": "nop_x"},
        {"tokens": [{"token_id": 1}], "cursor": None},
        {"token_id": 1},
        {"token_id": 2, "token": "net_x"},
        {"enrolment_tokens": [{"token_id": 2}], "cursor": None},
        {"token_id": 2},
        {"calls": [{"audit_id": 1}], "cursor": "c"},
    )
    async with api.client() as client:
        assert (await client.create_token({"name": "a"}))["token"] == "nop_x"
        assert await client.tokens() == [{"token_id": 1}]
        await client.revoke_token(1)
        assert (await client.create_enrolment_token({}))["token"] == "net_x"
        assert await client.enrolment_tokens() == [{"token_id": 2}]
        await client.revoke_enrolment_token(2)
        assert await client.audit({"limit": 5, "token": None}) == Page(({"audit_id": 1},), "c")
    asked = [(one.method, one.path.partition("?")[0]) for one in api.asked]
    assert asked == [
        ("POST", "/v1/tokens"),
        ("GET", "/v1/tokens"),
        ("DELETE", "/v1/tokens/1"),
        ("POST", "/v1/enrolment-tokens"),
        ("GET", "/v1/enrolment-tokens"),
        ("DELETE", "/v1/enrolment-tokens/2"),
        ("GET", "/v1/audit"),
    ]
    assert api.query(6) == {"limit": "5"}


async def test_agents_are_ordered_by_their_ids() -> None:
    api = Api({"agent_id": 4}, {"agent_id": 4, "drained": True}, {"agent_id": 4})
    client = api.client()
    assert await client.agent(4) == {"agent_id": 4}
    assert await client.order(4, "drain") == {"agent_id": 4, "drained": True}
    await client.change_agent(4, {"disabled": False})
    assert [(one.method, one.path, one.body) for one in api.asked] == [
        ("GET", "/v1/agents/4", b""),
        ("POST", "/v1/agents/4/drain", b""),
        ("PATCH", "/v1/agents/4", b'{"disabled":false}'),
    ]
    assert "Idempotency-Key" in api.asked[1].headers


async def test_dead_letters_are_found_and_dealt_with() -> None:
    api = Api(
        {"dead_letters": [{"task_id": 9}], "cursor": None},
        {"requeued": 1}, {"deleted": 1}, {"requeued": 2, "more": False}, {"deleted": 3},
    )  # fmt: skip
    client = api.client()
    page = await client.dead_letters({"kind": "tcp", "agent": None})
    assert page.items == ({"task_id": 9},)
    assert api.query(0) == {"kind": "tcp"}
    await client.requeue_dead_letter(9)
    await client.delete_dead_letter(9)
    await client.requeue_dead_letters({"all": True})
    await client.delete_dead_letters({"kind": "tcp"})
    assert [(one.method, one.path) for one in api.asked[1:]] == [
        ("POST", "/v1/dead-letters/9/requeue"),
        ("DELETE", "/v1/dead-letters/9"),
        ("POST", "/v1/dead-letters/requeue"),
        ("POST", "/v1/dead-letters/delete"),
    ]
    assert [wire.parse(one.body) for one in api.asked[3:]] == [{"all": True}, {"kind": "tcp"}]


async def test_metrics_are_listed_by_name_and_agent() -> None:
    api = Api(
        {"metrics": [{"name": "x", "value": 1}], "cursor": "c"}, {"metrics": [], "cursor": None}
    )
    assert await api.client().metrics("x", "ams1") == [{"name": "x", "value": 1}]
    assert api.query(0) == {"limit": "1000", "name": "x", "agent": "ams1"}
    assert api.query(1)["name"] == "x"
