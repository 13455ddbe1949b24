"""Bad input to every operator call: the documented code, and which field, whatever the call.

The calls, their bodies' types and their parameters are those of the routes; what is right is what
the API's document shows as an example.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct, inspect

from netsonde.clock import NS_PER_S
from netsonde.errors import CODES, ErrorCode
from netsonde.server.about import Parameter
from netsonde.server.api import Route
from netsonde.server.operator import OperatorApi
from support.configs import document, envelope
from support.stores import Caller, callers

EXAMPLES = json.loads(files("netsonde.server").joinpath("examples.json").read_text("utf-8"))
WRONG: tuple[Any, ...] = ({"x": [1]}, [{"x": 1}], "\0", -1.5, True)
TCP = {"kind": "tcp", "targets": ["192.0.2.1:80"]}
WHOLE = {"repeat": {"repeat": {"every_ms": 1000, "ticks": 3}}}  # what no example shows


def routes() -> list[Route]:
    for caller in callers("memory", Path()):
        assert isinstance(caller.operators, OperatorApi)
        return caller.operators.routes
    raise AssertionError("there is no control plane")


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


ALL = routes()
ROUTES = [pytest.param(route, id=named(route)) for route in ALL]
TAKING = [one for one in ALL if one.about and one.about.takes is not None]
TAKING_NONE = [one for one in ALL if one.method != "GET" and one not in TAKING]
PARAMETERS = [
    pytest.param(route, parameter, id=f"{named(route)} {parameter.name}")
    for route in ALL
    if route.method == "GET"  # a stream of lines has the other one: test_uploads.py
    for parameter in (route.about.query if route.about else ())
]


@pytest.fixture
async def caller(tmp_path: Path) -> Any:
    """A control plane in which there is a first one of everything."""
    for caller in callers("memory", tmp_path):
        await caller.clock.advance(10**9 * NS_PER_S)
        await caller.register()
        for path, body in (
            ("/v1/checks", TCP),
            ("/v1/tokens", {"name": "ci", "scopes": ["read"]}),
            ("/v1/enrolment-tokens", {}),
            ("/v1/configs", document(envelope(1, {}, expires_s=10**10))),
        ):
            status, answer, _ = await caller.operator("POST", path, body)
            assert status == 201, answer
        yield caller


# ── what is wrong, and where ──


def fields(struct: type[Struct]) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(struct)}


def wrong_for(type_: Any) -> Any:
    """Return a value that a type does not take."""
    for value in WRONG:
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError:
            return value
    raise AssertionError(f"{type_} takes everything")


def body_type(route: Route) -> tuple[type[Struct], bool]:
    """Return the type of a body, or of the items of one that is a bulk."""
    assert route.about is not None
    found = inspect.type_info(route.about.takes)
    if isinstance(found, inspect.Metadata):
        found = found.type
    if isinstance(found, inspect.VarTupleType):
        assert isinstance(found.item_type, inspect.StructType)
        return found.item_type.cls, True
    assert isinstance(found, inspect.StructType)
    return found.cls, False


def right(route: Route) -> dict[str, Any]:
    body = EXAMPLES[named(route)]["body"]
    return dict(body[0] if isinstance(body, list) else body)


def nested(struct: type[Struct], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where in a body there is an object with fields of its own."""
    yield path
    for name, type_ in fields(struct).items():
        yield from _nested_in(inspect.type_info(type_), (*path, name))


def _nested_in(found: inspect.Type, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(found, inspect.Metadata):
        yield from _nested_in(found.type, path)
    elif isinstance(found, inspect.UnionType):
        for each in found.types:
            yield from _nested_in(each, path)
    elif isinstance(found, inspect.VarTupleType | inspect.ListType):
        yield from _nested_in(found.item_type, (*path, 0))
    elif isinstance(found, inspect.StructType):
        yield from nested(found.cls, path)


def with_unknown(body: Any, path: tuple[Any, ...]) -> Any:
    """Put an unknown field into a body, in the object at path; objects on the way are made."""
    if not path:
        return {**(body or {}), "nonsense": 1}
    name, *rest = path
    if name == 0:
        return [with_unknown((body or [None])[0], tuple(rest)), *(body or [])[1:]]
    made = dict(body or {})
    made[name] = with_unknown(made.get(name), tuple(rest))
    return made


def text_of(path: tuple[Any, ...]) -> str:
    return "$" + "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path)


async def refused(
    caller: Caller, route: Route, body: Any, code: ErrorCode, **headers: str
) -> list[str]:
    """Make a call that must be refused with a code; return the paths that are named."""
    is_bulk = isinstance(body, dict) and body_type(route)[1]
    path = route.path.replace("{id}", "1")
    before = await state(caller)
    status, answer, _ = await caller.operator(
        route.method, path, [body] if is_bulk else body, **headers
    )
    if is_bulk:
        assert status == 200
        (told,) = answer["tasks"]
        violations = told["violations"]
    else:
        assert status == CODES[code].status, answer
        told, violations = answer, answer.get("details", {}).get("violations", [])
    assert told["error"] == code, answer
    assert await state(caller) == before, "nothing came of it"
    return [one["path"] for one in violations]


async def state(caller: Caller) -> Any:
    listed = ("checks", "agents", "tokens", "enrolment-tokens", "configs", "queues")
    return [(await caller.operator("GET", f"/v1/{one}"))[1] for one in listed]


def code_of(route: Route) -> ErrorCode:
    """Return what a body of a wrong shape is refused with."""
    is_config = route.path == "/v1/configs"
    return ErrorCode.CONFIG_INVALID if is_config else ErrorCode.VALIDATION


@pytest.mark.parametrize(
    ("route", "path"),
    [
        pytest.param(route, path, id=f"{named(route)} {text_of(path)}")
        for route in TAKING
        for path in nested(body_type(route)[0])
    ],
)
async def test_an_unknown_field_is_named(
    caller: Caller, route: Route, path: tuple[Any, ...]
) -> None:
    body = with_unknown(WHOLE.get(path[0], {}) | right(route) if path else right(route), path)

    paths = await refused(caller, route, body, code_of(route))

    assert paths == [f"{text_of(path)}.nonsense"]


@pytest.mark.parametrize(
    ("route", "name"),
    [
        pytest.param(route, name, id=f"{named(route)} {name}")
        for route in TAKING
        for name in fields(body_type(route)[0])
    ],
)
async def test_a_wrong_type_is_named(caller: Caller, route: Route, name: str) -> None:
    wrong = wrong_for(fields(body_type(route)[0])[name])

    (path,) = await refused(caller, route, right(route) | {name: wrong}, code_of(route))

    assert path.startswith(f"$.{name}")


@pytest.mark.parametrize("route", TAKING, ids=named)
async def test_a_body_that_is_none_is_refused(caller: Caller, route: Route) -> None:
    assert route.about is not None
    shapes = [b"1", b'"x"', b"null"] + ([b"{}"] if body_type(route)[1] else [b"[]"])
    for body in shapes:
        assert await refused(caller, route, body, code_of(route)) != []
    begun = b"[" if body_type(route)[1] else b"{"
    for body in (begun, b"\xff", b"[" * 100 + b"]" * 100):
        assert await refused(caller, route, body, ErrorCode.MALFORMED_JSON) == []
    if not route.about.is_body_optional:
        assert await refused(caller, route, b"", ErrorCode.MALFORMED_JSON) == []
    text = {"content_type": "text/plain"}
    assert await refused(caller, route, b"{}", ErrorCode.MEDIA_TYPE, **text) == []
    large = b" " * (route.max_bytes + 1)
    assert await refused(caller, route, large, ErrorCode.TOO_LARGE) == []


@pytest.mark.parametrize("route", TAKING_NONE, ids=named)
async def test_a_call_without_a_body_takes_none(caller: Caller, route: Route) -> None:
    assert await refused(caller, route, b'{"nonsense":1}', ErrorCode.VALIDATION) == ["$.nonsense"]
    assert await refused(caller, route, b"[1]", ErrorCode.VALIDATION) == ["$"]
    assert await refused(caller, route, b"{", ErrorCode.MALFORMED_JSON) == []
    status, answer, _ = await caller.operator(route.method, route.path.replace("{id}", "1"), {})
    assert status in (200, 404), answer


@pytest.mark.parametrize("route", ROUTES)
async def test_an_unknown_parameter_is_named(caller: Caller, route: Route) -> None:
    path = route.path.replace("{id}", "1")
    body = EXAMPLES.get(named(route), {}).get("body")
    before = await state(caller)
    status, answer, _ = await caller.operator(
        route.method, f"{path}?nonsense=1{'&name=x' if path.endswith('/query') else ''}", body
    )
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert [one["path"] for one in answer["details"]["violations"]] == ["$.nonsense"]
    assert await state(caller) == before


def wrong_texts(parameter: Parameter) -> Iterator[str]:
    schema = parameter.schema
    if parameter.name in ("cursor", "agent"):
        yield from ("%21", "nobody")
    if "enum" in schema:
        yield from ("nonsense", "")
    if schema.get("type") == "integer":
        yield from ("many", "", "1.5", str(schema["minimum"] - 1), str(schema["maximum"] + 1))
        yield from ("9" * 5000, "٣")
    if schema.get("format") == "date-time":
        yield from ("yesterday", "", "2026-13-01T00:00:00Z")
    if "pattern" in schema:
        yield from ("many", "", "-1m", "0", "1" * 8, "5y")
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)


@pytest.mark.parametrize(("route", "parameter"), PARAMETERS)
async def test_a_wrong_parameter_is_named(
    caller: Caller, route: Route, parameter: Parameter
) -> None:
    texts = [*wrong_texts(parameter)]
    assert texts or parameter.schema == {"type": "string"}
    path = route.path.replace("{id}", "1")
    base = "&name=x" if route.path.endswith("/query") and parameter.name != "name" else ""
    for text in [*texts, f"1&{parameter.name}=1"]:
        status, answer, _ = await caller.operator(
            route.method, f"{path}?{parameter.name}={text}{base}"
        )
        assert (status, answer["error"]) == (400, "ERR_VALIDATION"), (text[:40], answer)
        paths = [one["path"] for one in answer["details"]["violations"]]
        assert paths == [f"$.{parameter.name}"], text[:40]


@pytest.mark.parametrize("route", [one for one in ALL if "{id}" in one.path], ids=named)
async def test_what_is_no_id_is_not_found(caller: Caller, route: Route) -> None:
    body = EXAMPLES.get(named(route), {}).get("body")
    for item in ("x", "0", "-1", "1.0", "9" * 30, "999"):
        status, answer, _ = await caller.operator(
            route.method, route.path.replace("{id}", item), body
        )
        assert (status, answer["error"]) == (404, "ERR_NOT_FOUND"), item


# ── what the documents name ──


@pytest.mark.parametrize("every_ms", [0, 1, 99, 31 * 86_400_000 + 1, -1])
async def test_a_check_more_often_than_the_limit_is_refused(caller: Caller, every_ms: int) -> None:
    for method, path in (("POST", "/v1/checks"), ("PATCH", "/v1/checks/1")):
        body = TCP | {"every_ms": every_ms} if method == "POST" else {"every_ms": every_ms}
        status, answer, _ = await caller.operator(method, path, body)
        assert (status, answer["error"]) == (400, "ERR_VALIDATION")
        assert [one["path"] for one in answer["details"]["violations"]] == ["$.every_ms"]
    repeat = {"every_ms": every_ms, "ticks": 3}
    task = {"kind": "tcp", "spec": {"host": "a", "port": 1}, "agent": "probe-1", "repeat": repeat}
    _, answer, _ = await caller.operator("POST", "/v1/tasks", [task])
    assert answer["tasks"][0]["violations"][0]["path"] == "$.repeat.every_ms"


@pytest.mark.parametrize("route", [one for one in TAKING if one.method == "POST"], ids=named)
async def test_a_key_is_for_one_body(caller: Caller, route: Route) -> None:
    first = EXAMPLES[named(route)]["body"]
    if route.path == "/v1/configs":
        first = document(envelope(2, {}, expires_s=10**10))
    status, made, _ = await caller.operator(route.method, route.path, first, idempotency_key="k")
    assert status in (200, 201), made
    before = await state(caller)
    other = [*first, *first] if isinstance(first, list) else {**first, "name": "other"}
    if route.path == "/v1/configs":
        other = document(envelope(3, {}, expires_s=10**10))
    elif "dead-letters" in route.path:
        other = {**first, "limit": 7}
    elif "enrolment" not in route.path and "tokens" not in route.path and "name" not in first:
        other = other if isinstance(first, list) else {**first, "priority": 1}
    status, answer, _ = await caller.operator(route.method, route.path, other, idempotency_key="k")
    assert (status, answer["error"]) == (409, "ERR_CONFLICT"), answer
    assert await state(caller) == before


async def test_a_key_that_is_too_long_is_refused(caller: Caller) -> None:
    status, answer, _ = await caller.operator("POST", "/v1/checks", TCP, idempotency_key="x" * 256)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"]
