"""Who sends a request: nothing but a positive id with a token is an agent."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import ErrorCode, RequestError
from netsonde.model import ID_MAX, RegisterRequest
from netsonde.server.api import ApiRequest
from netsonde.server.senders import bearer, credentials, is_legacy, is_original, register_key

ZEROS_FIRST = ("0" * 20 + "1" * 30, "0" * 20 + "1" * 5000, "0" * 5000)


def request(**headers: str) -> ApiRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ApiRequest(method="POST", path="/v1/agents/claim", headers=named, remote="192.0.2.1")


def test_a_token_comes_in_its_header_or_as_bearer() -> None:
    assert credentials(request(x_agent_id=" 7 ", x_agent_token="t")) == (7, "t")
    assert credentials(request(x_agent_id="7", authorization="bearer  t ")) == (7, "t")
    assert bearer(request(authorization="Basic dDp0")) == ""


@pytest.mark.parametrize("headers", [{}, {"x_agent_id": "7"}, {"x_agent_token": "t"}])
def test_who_does_not_say_who_it_is_is_unauthorized(headers: dict[str, str]) -> None:
    with pytest.raises(RequestError) as refused:
        credentials(request(**headers))

    assert refused.value.code is ErrorCode.UNAUTHORIZED


@given(st.one_of(st.text(min_size=1), st.integers().map(str)))
def test_an_id_is_a_positive_integer_or_refused(text: str) -> None:
    found = None
    with suppress(RequestError):
        found, _ = credentials(request(x_agent_id=text, x_agent_token="t"))

    assert found is None or (str(found) == text.strip().lstrip("0") and 0 < found <= ID_MAX)


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "٣", "1" * 5000, str(ID_MAX + 1), *ZEROS_FIRST])
def test_ids_that_nobody_has_are_refused(text: str) -> None:
    with pytest.raises(RequestError) as refused:
        credentials(request(x_agent_id=text, x_agent_token="t"))

    assert refused.value.code is ErrorCode.VALIDATION


def test_registrations_count_by_the_agent_or_by_the_address() -> None:
    assert register_key(RegisterRequest(), request()) == "remote:192.0.2.1"
    assert "remote" not in register_key(RegisterRequest(agent_key="k" * 32), request())


def test_an_original_agent_says_so_and_does_not_know_the_protocol() -> None:
    original = request(user_agent="codecrafters-agent/1.0")
    ours = request(user_agent="netsonde/1", netsonde_protocol="1")

    assert (is_original(original), is_legacy(original)) == (True, True)
    assert (is_original(ours), is_legacy(ours)) == (False, False)
