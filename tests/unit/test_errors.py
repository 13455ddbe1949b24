"""The taxonomy and the contract's table of codes."""

import pytest

from netsonde import errors
from netsonde.errors import CODES, ErrorCode, RequestError, code_for_status

PER_ITEM = {ErrorCode.LEASE_FENCED, ErrorCode.LEASE_UNKNOWN, ErrorCode.LIMIT}


def test_every_code_but_the_items_travels_with_a_status() -> None:
    assert set(CODES) == set(ErrorCode) - PER_ITEM


def test_retryable_codes_are_those_of_retryable_statuses() -> None:
    for code, facts in CODES.items():
        assert facts.retryable == (facts.status in errors.RETRYABLE_STATUSES), code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ERR_VALIDATION"),
        (401, "ERR_UNAUTHORIZED"),
        (418, "ERR_VALIDATION"),
        (502, "ERR_UPSTREAM"),
        (599, "ERR_BACKEND"),
    ],
)
def test_a_bare_status_gets_its_classes_code(status: int, code: str) -> None:
    assert code_for_status(status) == code


def test_a_class_docstring_is_its_default_message() -> None:
    assert str(errors.SpoolFull()) == errors.SpoolFull.__doc__


def test_request_errors_know_their_facts() -> None:
    error = RequestError(ErrorCode.RATE_LIMITED, "slow down", retry_after_ms=1000)

    assert (error.facts.status, error.facts.retryable, error.retry_after_ms) == (429, True, 1000)


def test_send_errors_name_the_operation() -> None:
    error = errors.SendError("set TTL", 22, "Invalid argument")

    assert (str(error), error.errno) == ("set TTL: Invalid argument", 22)
