"""The OpenAPI 3.1 document of both APIs, made of their routes and of the types they name."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from netsonde import wire
from netsonde.errors import CODES, ErrorCode
from netsonde.model import MINTED_ID_MAX, ErrorEnvelope
from netsonde.server.about import About, Parameter
from netsonde.server.agent_calls import AGENT_CALLS, LIVEZ, PREFIXES, READYZ
from netsonde.server.api import JSON, PROTOCOL, Route
from netsonde.server.idempotency import KEY_MAX_CHARS
from netsonde.server.scopes import Scope

SCHEMAS = "#/components/schemas/"
AGENT, OPERATOR = "agent", "operator"
HEALTH = {"/livez": LIVEZ, "/readyz": READYZ}

# What any call may be answered with: by the listener itself, and by what is behind it.
COMMON = (
    ErrorCode.VALIDATION,
    ErrorCode.MALFORMED_JSON,
    ErrorCode.TIMEOUT,
    ErrorCode.TOO_LARGE,
    ErrorCode.MEDIA_TYPE,
    ErrorCode.BACKEND,
    ErrorCode.UNAVAILABLE,
    ErrorCode.STORAGE_FULL,
)
KNOWN = (ErrorCode.UNAUTHORIZED, ErrorCode.TOKEN_EXPIRED, ErrorCode.FORBIDDEN)
_WITH_HINT = (429, 503, 507)


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of the document."""

    listener: str
    method: str
    path: str
    about: About
    scope: Scope | None = None

    @property
    def name(self) -> str:
        """What the call's example is found under."""
        return f"{self.method} {self.path}"

    @property
    def is_open(self) -> bool:
        """Whether anybody may make it."""
        return self.path in HEALTH

    def codes(self) -> Iterator[ErrorCode]:
        """Yield what it may be refused with."""
        yield from COMMON
        if not self.is_open:
            yield from KNOWN
            yield ErrorCode.NOT_ACCEPTABLE
        if self.listener == AGENT and not self.is_open:
            yield ErrorCode.RATE_LIMITED
        if self.listener == OPERATOR and self.method == "POST":
            yield ErrorCode.CONFLICT  # an Idempotency-Key, at least
        if "{" in self.path:
            yield ErrorCode.NOT_FOUND
        yield from self.about.refuses


def agent_calls() -> list[Call]:
    """Return the agent API's operations, under the first of their prefixes."""
    return [
        Call(AGENT, call.method, f"{PREFIXES[0]}/{name}", call.about)
        for name, call in AGENT_CALLS.items()
    ]


def operator_calls(routes: Iterable[Route]) -> list[Call]:
    """Return the operator API's operations; a route that says nothing of itself has none."""
    return [
        Call(OPERATOR, route.method, route.path, route.about, route.scope)
        for route in routes
        if route.about is not None
    ]


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the document of the agent API and of the operator API with these routes."""
    calls = [*agent_calls(), *operator_calls(routes)]
    types = _Types(calls)
    paths: dict[str, dict[str, Any]] = {}
    responses: dict[str, Any] = {}
    for call in calls:
        operation = _operation(call, types, responses)
        paths.setdefault(call.path, {})[call.method.lower()] = operation
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "netsonde control plane",
            "version": PROTOCOL,
            "summary": "What agents and operators say to a control plane.",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [_SERVERS[OPERATOR], _SERVERS[AGENT]],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": _SECURITY,
            "headers": _HEADERS,
            "responses": dict(sorted(responses.items())),
            "schemas": dict(sorted(types.components.items())),
        },
    }
    plain: dict[str, Any] = json.loads(wire.encode(made))  # no tuples, no enums: as it is read
    return plain


def text(made: Mapping[str, Any]) -> str:
    """Write a document for people and for diffs."""
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


# ── operations ──


def _operation(call: Call, types: "_Types", responses: dict[str, Any]) -> dict[str, Any]:
    about = call.about
    operation: dict[str, Any] = {
        "operationId": _operation_id(call),
        "summary": about.summary,
        "tags": [*_SERVERS] if call.is_open else [call.listener],
        "servers": [*_SERVERS.values()] if call.is_open else [_SERVERS[call.listener]],
        "x-listener": [*_SERVERS] if call.is_open else [call.listener],
        "security": [] if call.is_open else _security(call),
        "parameters": [*_parameters(call)],
        "responses": {**_successes(call, types), **_refusals(call, responses)},
    }
    if about.text:
        operation["description"] = about.text
    if about.takes is not None:
        operation["requestBody"] = _request_body(call, types)
    return operation


def _operation_id(call: Call) -> str:
    words = call.path.replace("{", "").replace("}", "").replace(".", "-").split("/")
    return "-".join([call.listener, call.method.lower(), *(word for word in words if word)])


def _security(call: Call) -> list[dict[str, list[str]]]:
    if call.listener == OPERATOR:
        scopes = [] if call.scope is None else [call.scope.value]
        return [{"operatorToken": scopes}, {}]  # {}: on loopback, where no token file is set
    if call.path.endswith("/register"):
        return []
    return [{"agentId": [], "agentToken": []}, {"agentId": [], "agentBearer": []}]


def _parameters(call: Call) -> Iterator[dict[str, Any]]:
    for part in call.path.split("/"):
        if part.startswith("{"):
            schema = {"type": "integer", "minimum": 1, "maximum": MINTED_ID_MAX}
            yield {"name": part[1:-1], "in": "path", "required": True, "schema": schema}
    for one in (*call.about.query, *call.about.headers):
        yield _parameter(one)
    if call.listener == OPERATOR and call.method == "POST":
        yield _parameter(_IDEMPOTENCY_KEY)
    if call.listener == AGENT:
        yield _parameter(_PROTOCOL)


def _parameter(one: Parameter) -> dict[str, Any]:
    return {
        "name": one.name,
        "in": one.where,
        "required": one.is_required,
        "description": one.text,
        "schema": one.schema,
    }


def _request_body(call: Call, types: "_Types") -> dict[str, Any]:
    about = call.about
    content = {JSON: _media(types.taken(call, about.takes), example(call, "body"))}
    if about.takes_line is not None:
        content[wire.NDJSON] = _lines(types.taken(call, about.takes_line), call, "body")
    return {"required": not about.is_body_optional, "content": content}


def _successes(call: Call, types: "_Types") -> dict[str, Any]:
    about = call.about
    content: dict[str, Any] = {}
    if about.answer is not None:
        content[about.media_type] = _media(types.given(about.answer), example(call, "answer"))
    if about.answer_line is not None:
        content[wire.NDJSON] = _lines(types.given(about.answer_line), call, "answer")
    answers = {str(about.status): _response("It was done.", content)}
    for status, type_ in about.also.items():
        other = {} if type_ is None else {JSON: _media(types.given(type_), None)}
        answers[str(status)] = _response("Nothing was to be done.", other)
    return answers


def _response(description: str, content: Mapping[str, Any]) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _EVERY_ANSWER}
    response: dict[str, Any] = {"description": description, "headers": headers}
    return response | {"content": content} if content else response


def _media(schema: Mapping[str, Any], sample: Any) -> dict[str, Any]:
    return {"schema": schema} if sample is None else {"schema": schema, "example": sample}


def _lines(schema: Mapping[str, Any], call: Call, part: str) -> dict[str, Any]:
    """Describe a stream: OpenAPI 3.1 has no word for what its lines are."""
    sample = b"".join(wire.encode(line) + b"\n" for line in example(call, f"{part}_lines"))
    return {
        "schema": {"type": "string", "description": "One JSON value a line, as x-line has it."},
        "x-line": schema,
        "example": sample.decode(),
    }


def _refusals(call: Call, responses: dict[str, Any]) -> dict[str, Any]:
    by_status: dict[int, list[ErrorCode]] = {}
    for code in call.codes():
        codes = by_status.setdefault(CODES[code].status, [])
        if code not in codes:
            codes.append(code)
    answers = {}
    for status, codes in sorted(by_status.items()):
        name = "-".join(code.name.lower() for code in codes)
        responses.setdefault(name, _refusal(status, codes))
        answers[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return answers


def _refusal(status: int, codes: Sequence[ErrorCode]) -> dict[str, Any]:
    sample = {
        "error": codes[0],
        "message": "what failed, on what, and what to do next",
        "retryable": CODES[codes[0]].retryable,
        "request_id": "9a0f3c51d0e94b6f8a52f1f0c3f2b7aa",
    }
    if status in _WITH_HINT:
        sample["retry_after_ms"] = 1_000
    schema = {
        "allOf": [
            {"$ref": f"{SCHEMAS}ErrorEnvelope"},
            {
                "required": ["error", "message", "retryable", "request_id"],
                "properties": {"error": {"enum": codes}},
            },
        ]
    }
    response = _response(", ".join(codes), {JSON: _media(schema, sample)})
    if status in _WITH_HINT:
        response["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    return response


# ── types ──


class _Types:
    """The schemas of every type that calls name; what operators send is closed to other fields."""

    def __init__(self, calls: Sequence[Call]) -> None:
        given: list[Any] = [ErrorEnvelope]
        taken: list[Any] = []
        for call in calls:
            about = call.about
            given += [one for one in (about.answer, about.answer_line, *about.also.values()) if one]
            (taken if call.listener == OPERATOR else given).extend(
                one for one in (about.takes, about.takes_line) if one is not None
            )
        self._given, self.components = _schemas(given)
        self._taken, closed = _schemas(taken)
        closed = {name: _closed(schema) for name, schema in closed.items()}
        renamed = {
            f"{SCHEMAS}{name}": f"{SCHEMAS}{name}.given"
            for name, schema in closed.items()
            if self.components.get(name, schema) != schema
        }
        self._taken = {one: _renamed(schema, renamed) for one, schema in self._taken.items()}
        for name, schema in closed.items():
            own = renamed.get(f"{SCHEMAS}{name}", f"{SCHEMAS}{name}").removeprefix(SCHEMAS)
            self.components[own] = _renamed(schema, renamed)

    def given(self, type_: Any) -> Mapping[str, Any]:
        """Return the schema of an answer."""
        schema: Mapping[str, Any] = self._given[type_]
        return schema

    def taken(self, call: Call, type_: Any) -> Mapping[str, Any]:
        """Return the schema of a body that is sent."""
        schema: Mapping[str, Any] = (self._taken if call.listener == OPERATOR else self._given)[
            type_
        ]
        return schema


def _schemas(types: Sequence[Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    schemas, components = msgspec.json.schema_components(types, ref_template=SCHEMAS + "{name}")
    return dict(zip(types, schemas, strict=True)), dict(components)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    closed = dict(schema)
    if "properties" in schema:
        closed["additionalProperties"] = False
    return closed


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """Return a schema with its references renamed."""
    if isinstance(schema, Mapping):
        return {
            key: names.get(value, value)
            if key == "$ref" and isinstance(value, str)
            else _renamed(value, names)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [_renamed(one, names) for one in schema]
    return schema


def example(call: Call, part: str) -> Any:
    """Return what a call's body or answer may be, or lines of one; None where there is none."""
    return _examples().get(call.name, {}).get(part)


@cache
def _examples() -> Mapping[str, Any]:
    read: dict[str, Any] = json.loads(
        (files("netsonde.server") / "examples.json").read_text("utf-8")
    )
    return read


# ── what is the same for all ──

_ABOUT = (
    "Two APIs on two listeners: agents speak to one, people and their programs to the other;"
    " each operation's tags, servers and x-listener say which one it is on. The agent API's calls"
    f" are also answered under the prefixes {', '.join(repr(one) for one in PREFIXES[1:])}"
    " instead of /v1/agents. Agents and control planes ignore fields that they do not know; the"
    " operator API refuses them. Streams are application/x-ndjson: `x-line` is the schema of"
    " one line. docs/control-plane-api.md says in words what this document cannot."
)
_SERVERS: Mapping[str, Mapping[str, Any]] = {
    AGENT: {"url": "http://127.0.0.1:8080", "description": "the agents' listener, `listen`"},
    OPERATOR: {
        "url": "http://127.0.0.1:8090",
        "description": "the operators' listener, `operator_listen`",
    },
}
_TAGS: Mapping[str, str] = {
    AGENT: "What measurement hosts say, on the agents' listener.",
    OPERATOR: "What people and their programs say, on the operators' listener.",
}
_SECURITY: Mapping[str, Any] = {
    "operatorToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "The server's own token, or one made with POST /v1/tokens. On loopback,"
        " without a token file, none is needed.",
    },
    "agentId": {"type": "apiKey", "in": "header", "name": "X-Agent-Id"},
    "agentToken": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Agent-Token",
        "description": "The auth_token that register answered.",
    },
    "agentBearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The same token in another place.",
    },
}
_HEADERS: Mapping[str, Any] = {
    "X-Request-Id": {
        "description": "Ties the answer to the control plane's log.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Netsonde-Protocol": {
        "description": "The version of this API.",
        "required": True,
        "schema": {"const": PROTOCOL},
    },
    "Retry-After": {
        "description": "Seconds after which the request may be made again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
}
_EVERY_ANSWER = ("X-Request-Id", "Netsonde-Protocol")
_IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    where="header",
    schema={"type": "string", "minLength": 1, "maxLength": KEY_MAX_CHARS},
    text="For 24 h the same request under the same key is done once, and answered alike.",
)
_PROTOCOL = Parameter(
    name="Netsonde-Protocol",
    where="header",
    schema={"type": "string", "example": PROTOCOL},
    text="Says that the agent speaks this version; without it, it is an original one.",
)
