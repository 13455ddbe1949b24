"""One operation of the document: its parameters, its body, its answers, and an example of each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from netsonde import wire
from netsonde.errors import CODES, ErrorCode
from netsonde.model import MINTED_ID_MAX
from netsonde.server.about import Parameter
from netsonde.server.api import JSON
from netsonde.server.openapi import shared
from netsonde.server.openapi.calls import AGENT, OPERATOR, Call
from netsonde.server.openapi.schemas import SCHEMAS, Types

_WITH_HINT = (429, 503, 507)


def operation(call: Call, types: Types, responses: dict[str, Any]) -> dict[str, Any]:
    """Describe one call; what it may be refused with is added to the document's responses."""
    about = call.about
    described: dict[str, Any] = {
        "operationId": _operation_id(call),
        "summary": about.summary,
        "tags": [*shared.SERVERS] if call.is_open else [call.listener],
        "servers": [*shared.SERVERS.values()] if call.is_open else [shared.SERVERS[call.listener]],
        "x-listener": [*shared.SERVERS] if call.is_open else [call.listener],
        "security": [] if call.is_open else _security(call),
        "parameters": [*_parameters(call)],
        "responses": {**_successes(call, types), **_refusals(call, responses)},
    }
    if about.text:
        described["description"] = about.text
    if about.takes is not None:
        described["requestBody"] = _request_body(call, types)
    return described


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
        yield _parameter(shared.IDEMPOTENCY_KEY)
    if call.listener == AGENT:
        yield _parameter(shared.PROTOCOL_HEADER)


def _parameter(one: Parameter) -> dict[str, Any]:
    return {
        "name": one.name,
        "in": one.where,
        "required": one.is_required,
        "description": one.text,
        "schema": one.schema,
    }


def _request_body(call: Call, types: Types) -> dict[str, Any]:
    about = call.about
    content = {JSON: _media(types.taken(call, about.takes), _example(call, "body"))}
    if about.takes_line is not None:
        content[wire.NDJSON] = _lines(types.taken(call, about.takes_line), call, "body")
    return {"required": not about.is_body_optional, "content": content}


def _successes(call: Call, types: Types) -> dict[str, Any]:
    about = call.about
    content: dict[str, Any] = {}
    if about.answer is not None:
        content[about.media_type] = _media(types.given(about.answer), _example(call, "answer"))
    if about.answer_line is not None:
        content[wire.NDJSON] = _lines(types.given(about.answer_line), call, "answer")
    answers = {str(about.status): _response("It was done.", content)}
    for status, type_ in about.also.items():
        other = {} if type_ is None else {JSON: _media(types.given(type_), None)}
        answers[str(status)] = _response("Nothing was to be done.", other)
    return answers


def _response(description: str, content: Mapping[str, Any]) -> dict[str, Any]:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in shared.EVERY_ANSWER}
    response: dict[str, Any] = {"description": description, "headers": headers}
    return response | {"content": content} if content else response


def _media(schema: Mapping[str, Any], sample: Any) -> dict[str, Any]:
    return {"schema": schema} if sample is None else {"schema": schema, "example": sample}


def _lines(schema: Mapping[str, Any], call: Call, part: str) -> dict[str, Any]:
    """Describe a stream: OpenAPI 3.1 has no word for what its lines are."""
    sample = b"".join(wire.encode(line) + b"\n" for line in _example(call, f"{part}_lines"))
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


def _example(call: Call, part: str) -> Any:
    """Return what a call's body or answer may be, or lines of one; None where there is none."""
    return _examples().get(call.name, {}).get(part)


@cache
def _examples() -> Mapping[str, Any]:
    read: dict[str, Any] = json.loads(
        (files("netsonde.server") / "examples.json").read_text("utf-8")
    )
    return read
