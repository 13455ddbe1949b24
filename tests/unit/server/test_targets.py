"""Targets that are open to nobody are refused before they are work; all others are the agents'."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import TaskKind
from netsonde.server.targets import require_measurable
from support.stores import STORES, Caller, callers

DENIED: list[tuple[str, str, dict[str, Any], str]] = [
    ("ping", "224.0.0.1", {}, "$.targets[0]"),
    ("ping", "[ff02::1]", {}, "$.targets[0]"),
    ("ping", "ff02::1%eth0", {}, "$.targets[0]"),
    ("trace", "255.255.255.255", {}, "$.targets[0]"),
    ("tcp", "0.0.0.0:80", {}, "$.targets[0]"),
    ("tcp", "[::]:80", {}, "$.targets[0]"),
    ("ping", "::ffff:224.0.0.1", {}, "$.targets[0]"),
    ("http", "http://239.1.2.3:8080/x", {}, "$.targets[0]"),
    ("http", "https://[ff02::1]/", {}, "$.targets[0]"),
    ("dns", "example.com", {"server": "224.0.0.251:5353"}, "$.spec.server"),
    ("dns", "example.com", {"server": "[ff02::fb]:5353"}, "$.spec.server"),
    ("dns", "example.com", {"server": "ff02::fb"}, "$.spec.server"),
]
OPEN: list[tuple[str, str, dict[str, Any]]] = [
    ("ping", "127.0.0.1", {}),
    ("ping", "10.0.0.1", {}),
    ("ping", "169.254.169.254", {}),
    ("ping", "multicast.example", {}),
    ("tcp", "192.0.2.1:80", {}),
    ("http", "http://localhost/", {}),
    ("dns", "224.0.0.1", {}),
    ("dns", "example.com", {"server": "127.0.0.53"}),
]


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    yield from callers(STORES[0], tmp_path)


@pytest.mark.parametrize(("kind", "target", "spec", "path"), DENIED)
async def test_a_check_of_what_nobody_may_measure_is_refused(
    caller: Caller, kind: str, target: str, spec: dict[str, Any], path: str
) -> None:
    check = {"kind": kind, "targets": [target], "spec": spec}
    status, answer, _ = await caller.operator("POST", "/v1/checks", check)

    assert (status, answer["error"], answer["retryable"]) == (422, "ERR_TARGET_DENIED", False)
    assert [one["path"] for one in answer["details"]["violations"]] == [path]
    assert "no rule allows that" in answer["message"]


@pytest.mark.parametrize(("kind", "target", "spec"), OPEN)
async def test_what_some_agent_may_measure_is_for_the_agents_to_judge(
    caller: Caller, kind: str, target: str, spec: dict[str, Any]
) -> None:
    check = {"kind": kind, "targets": [target], "spec": spec}

    assert (await caller.operator("POST", "/v1/checks", check))[0] == 201


async def test_a_task_costs_itself(caller: Caller) -> None:
    items = [{"kind": "ping", "spec": {"host": host}} for host in ("192.0.2.1", "224.0.0.1", "::")]
    _, answer, _ = await caller.operator("POST", "/v1/tasks", items)

    good, *bad = answer["tasks"]
    assert "task_id" in good
    assert [(one["error"], one["violations"][0]["path"]) for one in bad] == [
        ("ERR_TARGET_DENIED", "$.spec.host")
    ] * 2


async def test_a_change_of_something_else_is_not_about_targets(caller: Caller) -> None:
    check = {"kind": "ping", "targets": ["192.0.2.1"]}
    _, made, _ = await caller.operator("POST", "/v1/checks", check)
    path = f"/v1/checks/{made['check_id']}"

    status, answer, _ = await caller.operator("PATCH", path, {"targets": ["224.0.0.1"]})
    assert (status, answer["error"]) == (422, "ERR_TARGET_DENIED")
    status, answer, _ = await caller.operator("PATCH", path, {"enabled": False})
    assert (status, answer["targets"]) == (200, ["192.0.2.1"])


@given(st.sampled_from(TaskKind), st.text(max_size=60), st.text(max_size=60))
def test_any_target_is_answered_for(kind: TaskKind, target: str, server: str) -> None:
    options = {"server": server} if kind is TaskKind.DNS else {}
    refusals: list[RequestError] = []
    try:
        require_measurable(wire.build_spec(kind, target, options))
    except RequestError as error:
        refusals.append(error)
    for refusal in refusals:
        assert refusal.code in (ErrorCode.VALIDATION, ErrorCode.TARGET_DENIED)
        assert refusal.violations
