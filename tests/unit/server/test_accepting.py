"""What a client reads, and calls that answer with nothing of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import RequestError
from netsonde.server.about import About
from netsonde.server.accepting import is_acceptable, require_acceptable
from support.stores import STORES, Caller, callers

JSON, NDJSON = "application/json", "application/x-ndjson"


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    yield from callers(STORES[0], tmp_path)


@pytest.mark.parametrize(
    ("accept", "is_taken"),
    [
        (JSON, True),
        ("*/*", True),
        ("application/*", True),
        ("text/html, application/xml;q=0.9, */*;q=0.8", True),
        ("APPLICATION/JSON", True),
        ("application/json;q=0.001", True),
        ("application/json;charset=utf-8;q=0", False),
        ("application/json;q=0.000, */*", False),
        ("*/*;q=0, application/json", True),
        ("text/html", False),
        ("text/*", False),
        (NDJSON, False),
        ("application/jsonx", False),
        ("json", False),
        (",", False),
    ],
)
def test_the_range_that_fits_best_decides(accept: str, is_taken: bool) -> None:
    assert is_acceptable(accept, [JSON]) is is_taken


@given(st.text(max_size=200))
def test_any_text_is_answered_for(accept: str) -> None:
    assert is_acceptable(accept, [JSON]) in (True, False)


def test_a_stream_is_offered_where_there_is_one() -> None:
    require_acceptable(NDJSON, About("Stream.", None, answer_line=dict))
    with pytest.raises(RequestError, match="answers with application/json, not with"):
        require_acceptable(NDJSON, About("Answer.", None))


async def test_what_a_client_cannot_read_is_not_done(caller: Caller) -> None:
    agent = await caller.register()
    for method, path, accept in (
        ("POST", "/heartbeat", NDJSON),
        ("POST", "/claim", "text/html"),
        ("GET", "/config", "image/*"),
    ):
        body = {"agent_id": agent.agent_id, "capacities": {}} if method == "POST" else None
        credentials = agent.credentials() | {"accept": accept}
        status, answer, _ = await caller.agent(method, path, body, **credentials)
        assert (status, answer["error"]) == (406, "ERR_NOT_ACCEPTABLE"), path
    check = {"kind": "tcp", "targets": ["192.0.2.1:80"]}
    status, answer, _ = await caller.operator("POST", "/v1/checks", check, accept="text/html")
    assert (status, answer["error"]) == (406, "ERR_NOT_ACCEPTABLE")
    assert (await caller.operator("GET", "/v1/checks"))[1]["checks"] == []


async def test_supervisors_and_scrapers_are_answered(caller: Caller) -> None:
    assert (await caller.operator("GET", "/livez", accept="text/plain"))[0] == 200
    assert (await caller.agent("GET", "/readyz", accept="text/html"))[0] == 200
