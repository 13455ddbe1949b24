"""The operator API's client over the memory transport."""

from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from netsonde import wire
from netsonde.clock import NS_PER_S, ManualClock
from netsonde.control_plane.memory import MemoryControlPlaneTransport
from netsonde.control_plane.operator import OperatorClient, Page
from netsonde.control_plane.transport import TransportRequest, TransportResponse
from netsonde.errors import ControlPlaneError, TransportError


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


async def test_an_empty_page_ends_a_listing_whatever_its_cursor() -> None:
    api = Api({"agents": [], "cursor": "again"})
    assert await api.client().agents() == []


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


async def collect(api: Api, count: int) -> list[Any]:
    """Take count items of `follow`, moving a manual clock whenever it sleeps."""

    class Sleepless(ManualClock):
        async def sleep(self, delay_ns: int) -> None:
            slept.append(delay_ns)

    slept: list[int] = []
    items: list[Any] = []
    query = {"kind": "tcp", "cursor": "a"}
    async for item in api.client().follow(query, clock=Sleepless(), rng=Random(1)):
        items.append(item)
        if len(items) == count:
            break
    assert all(0 <= delay_ns <= 10 * NS_PER_S for delay_ns in slept)
    return items


async def test_follow_goes_on_from_each_cursor() -> None:
    api = Api(
        {"results": [{"lease_id": 1}, {"lease_id": 2}], "cursor": "b"},
        {"results": [], "cursor": "b"},
        {"results": [{"lease_id": 3}], "cursor": "c"},
    )
    assert [item["lease_id"] for item in await collect(api, 3)] == [1, 2, 3]
    assert [api.query(at)["cursor"] for at in range(3)] == ["a", "b", "b"]
    assert {api.query(at)["kind"] for at in range(3)} == {"tcp"}


async def test_follow_tells_an_outage_once_and_loses_nothing() -> None:
    api = Api(
        {"results": [{"lease_id": 1}], "cursor": "b"},
        TransportError("results", "connection refused"),
        refusal(503, b""),
        TransportError("results", "connection refused"),
        {"results": [{"lease_id": 2}], "cursor": "c"},
        TransportError("results", "connection refused"),
        {"results": [{"lease_id": 3}], "cursor": "d"},
    )
    items = await collect(api, 5)
    assert [item["lease_id"] for item in items if isinstance(item, dict)] == [1, 2, 3]
    assert [type(item) for item in items] == [dict, TransportError, dict, TransportError, dict]
    assert [api.query(at)["cursor"] for at in range(7)] == ["a", "b", "b", "b", "b", "c", "c"]


async def test_follow_ends_when_the_query_is_refused() -> None:
    api = Api(refusal(400, b'{"error":"ERR_VALIDATION","message":"kind","retryable":false}'))
    with pytest.raises(ControlPlaneError, match="ERR_VALIDATION"):
        await collect(api, 1)


async def test_follow_begins_at_the_oldest_when_results_after_its_cursor_have_gone() -> None:
    api = Api(
        refusal(410, b'{"error":"ERR_CURSOR_EXPIRED","message":"gone","retryable":false}'),
        {"results": [{"lease_id": 8}], "cursor": "h"},
    )
    expired, result = await collect(api, 2)
    assert (expired.code, result) == ("ERR_CURSOR_EXPIRED", {"lease_id": 8})
    assert "cursor" not in api.query(1)
