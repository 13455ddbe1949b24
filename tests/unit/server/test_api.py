"""Every answer that is not a success carries the envelope, whoever refused it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netsonde import wire
from netsonde.cli.logs import JsonFormatter
from netsonde.errors import ErrorCode, RequestError, StorageError
from netsonde.server.api import Api, ApiRequest, ApiResponse, Route, problem
from support.stores import Caller, callers

ENVELOPE = {"error", "message", "retryable", "request_id"}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


@pytest.mark.parametrize("path", ["/", "/nope", "/v1/agents/nope", "/v2/claim", "/claim/", "/%00"])
async def test_unknown_paths(memory: Caller, path: str) -> None:
    status, answer, headers = await memory.agent("GET", path)
    assert (status, answer["error"], answer["retryable"]) == (404, "ERR_NOT_FOUND", False)
    assert set(answer) == ENVELOPE
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Request-Id"] == answer["request_id"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"])
async def test_wrong_methods_say_which_are_right(memory: Caller, method: str) -> None:
    status, answer, headers = await memory.agent(method, "/v1/agents/claim")
    assert (status, answer["error"]) == (405, "ERR_METHOD_NOT_ALLOWED")
    assert headers["Allow"] == "POST"
    status, _, headers = await memory.operator("PUT", "/v1/checks/5")
    assert (status, headers["Allow"]) == (405, "DELETE, GET, PATCH")


@pytest.mark.parametrize(
    "media_type", ["application/x-ndjson", "text/plain", "application/x-www-form-urlencoded"]
)
async def test_wrong_media_types(memory: Caller, media_type: str) -> None:
    status, answer, _ = await memory.agent("POST", "/report", {}, content_type=media_type)
    assert (status, answer["error"]) == (415, "ERR_MEDIA_TYPE")
    status, answer, _ = await memory.operator("POST", "/v1/tasks", [], content_type=media_type)
    assert (status, answer["error"]) == (415, "ERR_MEDIA_TYPE")


async def test_encoded_bodies_are_refused_unread(memory: Caller) -> None:
    status, answer, _ = await memory.agent(
        "POST", "/register", b"\x1f\x8b", content_encoding="gzip"
    )
    assert (status, answer["error"]) == (415, "ERR_MEDIA_TYPE")


async def test_json_with_a_charset_is_json(memory: Caller) -> None:
    status, _, _ = await memory.agent(
        "POST", "/register", {"hostname": "h"}, content_type="Application/JSON; charset=utf-8"
    )
    assert status == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "ERR_MALFORMED_JSON"),
        (b"{", 400, "ERR_MALFORMED_JSON"),
        (b"\xff\xfe", 400, "ERR_MALFORMED_JSON"),
        (b'{"hostname": "\xff"}', 400, "ERR_MALFORMED_JSON"),
        (b"[" * 50_000, 400, "ERR_MALFORMED_JSON"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, 400, "ERR_MALFORMED_JSON"),
        (b"[]", 400, "ERR_VALIDATION"),
        (b'{"hostname": "\\ud800"}', 400, "ERR_MALFORMED_JSON"),
        (b'{"inventory": {"labels": {"\\udfff": "x"}}}', 400, "ERR_MALFORMED_JSON"),
        (b'{"hostname": 5}', 400, "ERR_VALIDATION"),
        (b'{"hostname": "' + b"x" * wire.BODY_MAX_BYTES + b'"}', 413, "ERR_TOO_LARGE"),
    ],
)
async def test_garbage(memory: Caller, body: bytes, status: int, code: str) -> None:
    got, answer, _ = await memory.agent("POST", "/v1/agents/register", body)
    assert (got, answer["error"], answer["retryable"]) == (status, code, False)
    assert set(answer) >= ENVELOPE


class BrokenApi(Api):
    def __init__(self, error: Exception) -> None:
        async def broken(_: ApiRequest) -> ApiResponse:
            raise error

        super().__init__([Route("GET", "/", broken)])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("secret path /etc/shadow"), 500, "ERR_BACKEND"),
        (StorageError("/secret/server.db: gone"), 500, "ERR_BACKEND"),
        (RequestError(ErrorCode.STORAGE_FULL, "full"), 507, "ERR_STORAGE_FULL"),
        (RequestError(ErrorCode.UNAVAILABLE, "locked"), 503, "ERR_UNAVAILABLE"),
    ],
)
async def test_failures_are_told_without_their_inside(
    error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await BrokenApi(error).dispatch(ApiRequest(method="GET", path="/"))
    decoded = wire.parse(answer.body)
    assert (answer.status, decoded["error"], decoded["retryable"]) == (status, code, True)
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    if status == 500:
        assert "secret" in caplog.text, "the log has the cause"
        (line,) = (wire.parse(JsonFormatter().format(one).encode()) for one in caplog.records)
        assert line["request_id"] == decoded["request_id"]
    else:
        assert answer.headers["Retry-After"] == "1"


def test_hints_are_whole_seconds_rounded_up() -> None:
    error = RequestError(ErrorCode.RATE_LIMITED, "slow down", retry_after_ms=1_001)
    assert problem(error).headers["Retry-After"] == "2"
    assert problem(RequestError(ErrorCode.RATE_LIMITED, "x")).headers["Retry-After"] == "1"


async def test_liveness_needs_nothing(memory: Caller) -> None:
    for call in (memory.agent, memory.operator):
        status, answer, _ = await call("GET", "/livez")
        assert (status, answer) == (200, {"status": "ok"})
        status, answer, _ = await call("GET", "/readyz")
        assert (status, answer) == (200, {"status": "ok"})
