"""The error envelope, strict in what we write and lenient in what we read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import ErrorCode, RequestError
from netsonde.wire import decode_error, error_body, parse


def test_the_envelope_carries_everything() -> None:
    error = RequestError(
        ErrorCode.VALIDATION, "bad", violations=(("$.count", "too many"),), retry_after_ms=5
    )

    assert parse(error_body(error, "r-1")) == {
        "error": "ERR_VALIDATION",
        "message": "bad",
        "retryable": False,
        "details": {"violations": [{"path": "$.count", "message": "too many"}]},
        "request_id": "r-1",
        "retry_after_ms": 5,
    }


def test_what_we_write_we_read() -> None:
    read = decode_error(429, error_body(RequestError(ErrorCode.RATE_LIMITED, "slow"), "r"), "2")

    assert (read.code, read.retryable, read.retry_after_ms) == ("ERR_RATE_LIMITED", True, 2000)


@pytest.mark.parametrize(
    ("status", "body", "code", "retryable"),
    [
        (502, b"<html>Bad gateway</html>", "ERR_UPSTREAM", True),
        (500, b"", "ERR_BACKEND", True),
        (401, b"unauthorized\n", "ERR_UNAUTHORIZED", False),
        (503, b'{"error":"timeout"}', "ERR_UNAVAILABLE", True),
        (400, b'{"error":"ERR_NOVEL","message":"m","retryable":true}', "ERR_NOVEL", True),
        (503, b'{"error":"ERR_NOVEL","message":"m"}', "ERR_NOVEL", True),
        (404, b'{"error":"ERR_NOT_FOUND","message":"m","retryable":true}', "ERR_NOT_FOUND", False),
    ],
)
def test_foreign_errors_are_understood(
    status: int, body: bytes, code: str, retryable: bool
) -> None:
    read = decode_error(status, body)

    assert (read.code, read.retryable) == (code, retryable)


@pytest.mark.parametrize(
    ("header", "hint"), [("0", None), ("3", 3000), ("soon", None), (None, None)]
)
def test_retry_after_zero_is_no_hint(header: str | None, hint: int | None) -> None:
    assert decode_error(429, b"", header).retry_after_ms == hint


@given(st.integers(300, 599), st.binary())
def test_any_body_gives_an_error_to_raise(status: int, body: bytes) -> None:
    assert decode_error(status, body).status == status
