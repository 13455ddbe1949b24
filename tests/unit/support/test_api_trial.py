"""The API's trial: what it excepts the document allows, and its verdict is what it found."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from netsonde import wire
from netsonde.server.openapi import AGENT, OPERATOR
from support.api_trial import command
from support.api_trial.exceptions import EXCEPTIONS, EXPECTED, NEGATIVE, POSITIVE, settings
from support.api_trial.half import LISTENERS, Half, document_of

OPERATIONS: dict[str, Any] = {
    operation["operationId"]: operation
    for listener in LISTENERS
    for item in document_of(listener)["paths"].values()
    for operation in item.values()
}


@pytest.mark.parametrize("one", EXCEPTIONS, ids=str)
def test_an_exception_has_a_reason_and_is_of_what_the_document_names(one: Any) -> None:
    assert one.reason.endswith(".")
    for name in one.operations:
        assert set(one.statuses) <= OPERATIONS[name]["responses"].keys()
    assert not any(status.startswith("5") for status in one.statuses)
    assert not set(one.statuses) & set(EXPECTED[one.check])


def test_the_settings_say_what_is_excepted_and_nothing_else() -> None:
    read = tomllib.loads(settings())

    assert read["checks"].keys() == {POSITIVE, NEGATIVE}
    found = {
        (name, check, status)
        for one in read["operations"]
        for name in one["include-operation-id"]
        for check, said in one["checks"].items()
        for status in set(said["expected-statuses"]) - set(EXPECTED[check])
    }
    assert found == {
        (name, one.check, status)
        for one in EXCEPTIONS
        for name in one.operations
        for status in one.statuses
    }
    named = [one["include-operation-id"] for one in read["operations"]]
    assert len(named) == len({name for (name,) in named})  # a later one would replace an earlier


@pytest.mark.parametrize("listener", LISTENERS)
def test_a_half_has_all_calls_of_its_listener_but_streams(listener: str) -> None:
    paths = document_of(listener)["paths"]

    assert "/livez" in paths
    assert not any(path.endswith("/stream") for path in paths)
    for operation in (one for item in paths.values() for one in item.values()):
        assert listener in operation["x-listener"]
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            assert wire.NDJSON not in body.get("content", {})


@pytest.mark.parametrize(("findings", "status"), [([], 0), (["GET /v1/x: 500"], 1)])
def test_the_verdict_is_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], findings: list[str], status: int
) -> None:
    halves = []
    for listener, count in ((AGENT, "12"), (OPERATOR, "30")):
        (tmp_path / listener).mkdir()
        (tmp_path / listener / "0.count").write_text(count)
        halves.append(Half(listener, tmp_path / listener, 7, rounds=1))
    halves[0].findings += findings

    assert command.told(halves, 7, 3.0) == status

    said = capsys.readouterr().out
    assert "agent: 12 requests of" in said
    assert "operator: 30 requests of" in said
    assert all(one.reason in said for one in EXCEPTIONS)
    assert said.splitlines()[-1].startswith("api: 42 requests in 3 s, seed 7: ")
    assert ("no finding" in said.splitlines()[-1]) is (status == 0)
