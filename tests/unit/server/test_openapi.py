"""docs/openapi.json: made of the code, and true of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from netsonde import wire
from netsonde.errors import CODES, ErrorCode
from netsonde.server import openapi
from netsonde.server.agent_calls import AGENT_CALLS, PREFIXES
from netsonde.server.queries import Query
from support.api_document import RESPONSES, found_operation, made_document, resolved, validator
from support.stores import STORES, Caller, callers

DOCS = Path(__file__).resolve().parents[3] / "docs"
METHODS = frozenset({"get", "post", "patch", "delete"})
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    yield from callers(STORES[0], tmp_path)


def operations() -> list[Operation]:
    return [
        (method, path, operation)
        for path, item in made_document()["paths"].items()
        for method, operation in item.items()
    ]


OPERATIONS = [pytest.param(*one, id=one[2]["operationId"]) for one in operations()]


def test_the_file_is_what_the_code_makes() -> None:
    kept = (DOCS / "openapi.json").read_text("utf-8")

    assert kept == openapi.text(made_document()), "run `scripts/dev.py openapi`"


async def test_it_is_served_to_operators(caller: Caller) -> None:
    status, answer, _ = await caller.operator("GET", "/openapi.json")

    assert (status, answer) == (200, made_document())
    status, _, _ = await caller.operator("GET", "/openapi.json?x=1")
    assert status == 400


def test_every_route_is_in_it(caller: Caller) -> None:
    assert found_operation("operator", "GET", "/openapi.json")
    documented = {(method.upper(), path) for method, path, _ in operations()}
    agents = {(call.method, f"{PREFIXES[0]}/{name}") for name, call in AGENT_CALLS.items()}
    operators = {
        (route.method, route.path)
        for route in caller.operators.all_routes  # type: ignore[attr-defined]
    }

    assert documented == agents | operators


def test_every_reference_leads_somewhere() -> None:
    made = made_document()

    for reference in set(references(made)):
        found: Any = made
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


def test_every_component_is_used() -> None:
    made = made_document()
    used = set(references(made))

    for kind in ("schemas", "responses", "headers"):
        assert {f"#/components/{kind}/{name}" for name in made["components"][kind]} <= used


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_every_schema_is_one() -> None:
    for name, schema in made_document()["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema), name


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]

    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_an_operation_says_who_may_make_it_and_how_it_fails(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    assert method in METHODS
    assert operation["summary"].endswith(".")
    assert operation["tags"] == operation["x-listener"]
    is_open = path in openapi.HEALTH or path.endswith("/register")
    assert bool(operation["security"]) is not is_open
    for status, response in operation["responses"].items():
        if int(status) >= 400:
            codes = resolved(response)["description"].split(", ")
            assert {CODES[ErrorCode(code)].status for code in codes} == {int(status)}
    assert {"400", "413", "415", "500", "503", "507"} <= operation["responses"].keys()


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_every_example_is_valid(method: str, path: str, operation: dict[str, Any]) -> None:
    shown = 0
    bodies = [operation.get("requestBody", {}), *map(resolved, operation["responses"].values())]
    for body in bodies:
        for media_type, content in body.get("content", {}).items():
            if "example" in content:
                shown += 1
                validator(content["schema"]).validate(content["example"])
                for line in content["example"].splitlines() if "x-line" in content else ():
                    validator(content["x-line"]).validate(json.loads(line))
            else:
                assert media_type != "application/json" or path in UNSHOWN, (method, path)
    assert shown or path in UNSHOWN


def test_every_example_is_of_a_call() -> None:
    named = json.loads(
        (DOCS.parent / "engine" / "netsonde" / "server" / "examples.json").read_text("utf-8")
    )

    assert named.keys() <= {f"{method.upper()} {path}" for method, path, _ in operations()}


UNSHOWN = {"/openapi.json", "/v1/configs"}  # itself; the answer of a second publication
QUERIES = {"/v1/metrics/query": "?name=x"}


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [one for one in OPERATIONS if str(one.id).startswith("operator-get-v1")],
)
async def test_queries_are_read_as_they_are_said(
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    operation: dict[str, Any],
) -> None:
    taken: set[str] = set()
    take = Query.take

    def noted(query: Query, name: str) -> str | None:
        taken.add(name)
        return take(query, name)

    monkeypatch.setattr(Query, "take", noted)
    asked = path.replace("{id}", "1") + QUERIES.get(path, "")
    if path == "/v1/results/stream":
        asked += "?wait_ms=0"

    status, _, _ = await caller.operator(method.upper(), asked)

    assert status in (200, 404)
    said = {one["name"] for one in operation["parameters"] if one["in"] == "query"}
    assert taken == said
    status, answer, _ = await caller.operator(method.upper(), f"{asked.split('?')[0]}?nonsense=1")
    assert (status, answer["error"]) == (400, ErrorCode.VALIDATION)


def test_results_are_those_of_their_own_schema() -> None:
    own = json.loads((DOCS / "result.schema.json").read_text("utf-8"))
    shown = made_document()["components"]["schemas"]["Result"]

    assert shown["properties"].keys() == own["properties"].keys()
    assert set(own["required"]) <= set(shown["required"])


def test_refusals_are_components() -> None:
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            assert (int(status) >= 400) is response.get("$ref", "").startswith(RESPONSES)


def test_streams_say_what_their_lines_are() -> None:
    streams = [
        content[wire.NDJSON]
        for _, _, operation in operations()
        for body in (operation.get("requestBody", {}), *operation["responses"].values())
        if wire.NDJSON in (content := body.get("content", {}))
    ]

    assert len(streams) == 6
    assert all("$ref" in one["x-line"] or "anyOf" in one["x-line"] for one in streams)
