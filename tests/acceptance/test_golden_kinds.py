"""What any version wrote of the five kinds is read for ever, by agents and control planes.

What this version writes is added by

    NETSONDE_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/acceptance/test_golden_kinds.py

which adds to the file of this version, and never changes what is there.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from netsonde import wire
from netsonde.model import SPEC_TYPES, Outcome, TaskKind
from support.contract_types import lost
from support.golden_kinds import (
    ANY_KIND,
    OBSERVATIONS,
    Golden,
    append,
    files,
    item_of,
    own_file,
    plain,
    read,
    written,
)
from support.stores import Caller, callers

ROOT = Path(__file__).resolve().parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "result.schema.json").read_text("utf-8"))
IS_WRITING = os.environ.get("NETSONDE_WRITE_GOLDEN") == "1"
ALL = [
    pytest.param(one, id=f"{path.stem.removeprefix('kinds-')}-{one.kind}-{one.what}-{one.name}")
    for path in files()
    for one in read(path)
]
SPECS = [one for one in ALL if one.values[0].what == "spec"]  # type: ignore[union-attr]
LEASES = [one for one in ALL if one.values[0].what == "lease"]  # type: ignore[union-attr]
RESULTS = [one for one in ALL if one.values[0].what == "result"]  # type: ignore[union-attr]
NAME = re.compile(r'"((?:dns|http|tcp|ping|trace|agent)_[a-z_]+|trace)"')
OBSERVED = re.compile(
    r"trace|agent_rejected|(dns|http|tcp|ping|trace)_"
    r"(response|error|summary|attempts?|resolution|names|[a-z]+_record)"
)


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


def seen_in(one: Golden) -> set[str]:
    return {observation["name"] for observation in one.body["observations"]}


# ── what there is ──


async def test_what_this_version_writes_is_written_down() -> None:
    path = own_file()
    known = {one[:3] for one in read(path)} if path.exists() else set()
    missing = [one for one in await written() if one[:3] not in known]
    if IS_WRITING and missing:
        append(path, missing)
        missing = []

    assert [one[:3] for one in missing] == [], "write them down (see above): they are for ever"


@pytest.mark.parametrize("kind", list(TaskKind))
def test_every_kind_is_there_whole(kind: TaskKind) -> None:
    own = [one for one in read(own_file()) if one.kind is kind]
    results = [one for one in own if one.what == "result"]

    assert {"spec", "lease", "result"} == {one.what for one in own}
    assert {one.body["outcome"] for one in results} >= {
        Outcome.OK,
        Outcome.TARGET_ERROR,
        Outcome.REJECTED,
    }
    names = set().union(*map(seen_in, results))
    assert names - ANY_KIND == OBSERVATIONS[kind]
    fields = {field.encode_name for field in msgspec.structs.fields(SPEC_TYPES[kind])}
    assert set().union(*(one.body for one in own if one.what == "spec")) == fields | {"kind"}


def test_every_observation_that_is_written_is_named() -> None:
    found = {
        name
        for path in (ROOT / "engine" / "netsonde").rglob("*.py")
        for name in NAME.findall(path.read_text("utf-8"))
        if OBSERVED.fullmatch(name)
    }

    assert found == set().union(*OBSERVATIONS.values()) | ANY_KIND


def test_every_observation_has_a_schema() -> None:
    named = [each["if"]["properties"]["name"] for each in SCHEMA["$defs"]["observation"]["allOf"]]
    for name in set().union(*OBSERVATIONS.values()) | ANY_KIND:
        assert [
            one
            for one in named
            if one.get("const") == name or re.search(one.get("pattern", "^$"), name)
        ], name


def test_every_observation_is_described() -> None:
    page = (ROOT / "docs" / "measurement.md").read_text("utf-8")
    for name in set().union(*OBSERVATIONS.values()) | ANY_KIND:
        assert re.search(rf"`{name}[`{{]", page), name


def test_a_line_that_was_changed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "kinds-9.jsonl"
    one, two = (Golden(TaskKind.TCP, "spec", name, {"x": 1}) for name in ("one", "two"))
    append(path, [one])
    append(path, [two])
    assert read(path) == [one, two]
    text = path.read_text()
    for changed in (text.replace('"x": 1', '"x": 2', 1), text.partition("\n")[2]):
        path.write_text(changed)
        with pytest.raises(AssertionError, match="not as it was written"):
            read(path)


# ── that it is read for ever ──


@pytest.mark.parametrize("one", SPECS)
async def test_a_spec_is_read_and_asked_for(one: Golden, caller: Caller) -> None:
    spec = wire.convert_spec(one.body)

    assert isinstance(spec, SPEC_TYPES[one.kind])
    assert [*lost(one.body, plain(spec))] == []
    status, answer, _ = await caller.operator(
        "POST", "/v1/tasks", [{"kind": one.kind, "spec": one.body}]
    )
    assert (status, list(answer["tasks"][0])) == (200, ["task_id"])


@pytest.mark.parametrize("one", LEASES)
def test_a_lease_is_read_in_an_answer_and_in_a_stream(one: Golden) -> None:
    claimed = wire.decode_claim(wire.encode({"leases": [one.body], "held_ms": 3}))
    (line,) = wire.Lines().feed(b'{"t":"lease","lease":%s}\n' % wire.encode(one.body))
    streamed = wire.read_claim_lines([line])

    (lease,) = claimed.leases
    assert claimed.rejected == ()
    assert [*lost(one.body, plain(lease))] == []
    assert streamed.claimed.leases == (lease,)


@pytest.mark.parametrize("one", RESULTS)
async def test_a_result_is_valid_and_taken(one: Golden, caller: Caller) -> None:
    found = [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator(SCHEMA).iter_errors(one.body)
    ]
    assert found == []
    agent = await caller.register()
    (task_id,) = await caller.tasks(1)
    (lease,) = await agent.claim(1)
    item = item_of(one.body, lease["lease_id"])

    status, answer, _ = await agent.call("/report", {"completed": [item], "cancelled": []})

    assert (status, [each["status"] for each in answer["results"]]) == (200, ["accepted"])
    _, listed, _ = await caller.operator("GET", f"/v1/results?task_id={task_id}&final=any")
    (kept,) = listed["results"]
    assert [*lost(item, kept)] == []
