"""The API's document, and APIs of which every answer must be one that it names.

As a program it writes the document to the file named.
"""

import json
import random
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from netsonde import wire
from netsonde.clock import ManualClock
from netsonde.server import openapi
from netsonde.server.agent_calls import PREFIXES
from netsonde.server.api import ApiRequest, ApiResponse
from netsonde.server.config import ServerConfig
from netsonde.server.core import ControlPlane
from netsonde.server.handlers import AgentApi
from netsonde.server.operator import OperatorApi
from netsonde.server.store import InlineWriter, MemoryStore

JSON = "application/json"
RESPONSES = "#/components/responses/"


class CheckedAgentApi(AgentApi):
    """The agent API; an answer that its document does not name fails the test."""

    async def dispatch(self, request: ApiRequest) -> ApiResponse:
        return checked(openapi.AGENT, request, await super().dispatch(request))


class CheckedOperatorApi(OperatorApi):
    """The operator API; an answer that its document does not name fails the test."""

    async def dispatch(self, request: ApiRequest) -> ApiResponse:
        return checked(openapi.OPERATOR, request, await super().dispatch(request))


@cache
def made_document() -> dict[str, Any]:
    """Make the document, as the code has it."""
    store = MemoryStore()
    plane = ControlPlane(
        ServerConfig(), ManualClock(), InlineWriter(store), store, random.Random(1)
    )
    return openapi.document(OperatorApi(plane).all_routes)


def checked(listener: str, request: ApiRequest, answer: ApiResponse) -> ApiResponse:
    """Return an answer whose status, headers and body the document names for this request."""
    operation = found_operation(listener, request.method, request.path)
    if operation is None:
        assert answer.status in (404, 405), f"{_said(request, answer)} is in no document"
        _check(("ErrorEnvelope",), {"$ref": f"{openapi.SCHEMAS}ErrorEnvelope"}, answer.body)
        return answer
    name = operation["operationId"]
    response = operation["responses"].get(str(answer.status))
    assert response is not None, f"{name} is not said to answer {_said(request, answer)}"
    response = resolved(response)
    missing = {
        header
        for header in response.get("headers", {})
        if header.lower() not in {given.lower() for given in answer.headers}
    }
    assert not missing, f"{name}: {answer.status} has no {missing}"
    content = response.get("content", {})
    if answer.chunks is not None:
        lines = content[wire.NDJSON]["x-line"]
        return ApiResponse(
            answer.status,
            answer.body,
            answer.headers,
            _checked_lines((name, "line"), lines, answer.chunks),
        )
    if not content:
        assert not answer.body, f"{name}: {answer.status} has a body"
    elif answer.headers["Content-Type"] == JSON:
        _check((name, answer.status), content[JSON]["schema"], answer.body)
    else:
        assert answer.headers["Content-Type"] in content, name
    return answer


def found_operation(listener: str, method: str, path: str) -> dict[str, Any] | None:
    """Return the operation that a request is one of."""
    for prefix in PREFIXES if listener == openapi.AGENT else ():
        call = path.removeprefix(f"{prefix}/")
        if path.startswith(f"{prefix}/") and f"{PREFIXES[0]}/{call}" in made_document()["paths"]:
            path = f"{PREFIXES[0]}/{call}"
            break
    paths = made_document()["paths"]
    for template in sorted(paths, key=lambda one: "{" in one):
        found = paths[template].get(method.lower())
        if found is not None and listener in found["x-listener"] and _fits(template, path):
            return dict(found)
    return None


def resolved(response: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a response's reference, if it is one."""
    name = response.get("$ref", "").removeprefix(RESPONSES)
    return made_document()["components"]["responses"][name] if name else response


def validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Make a validator that allows no field of an answer that the document does not name."""
    root = {**schema, "components": {"schemas": _closed_components()}}
    return Draft202012Validator(root, format_checker=Draft202012Validator.FORMAT_CHECKER)


@cache
def _closed_components() -> dict[str, Any]:
    return {
        name: {**schema, "additionalProperties": False} if "properties" in schema else schema
        for name, schema in made_document()["components"]["schemas"].items()
    }


_validators: dict[tuple[Any, ...], Draft202012Validator] = {}


def _check(name: tuple[Any, ...], schema: Mapping[str, Any], body: bytes) -> None:
    known = _validators.get(name)
    if known is None:
        known = _validators[name] = validator(schema)
    error = best_match(known.iter_errors(json.loads(body)))
    assert error is None, f"{name}: {error.json_path}: {error.message[:500]}" if error else ""


async def _checked_lines(
    name: tuple[Any, ...], schema: Mapping[str, Any], chunks: AsyncGenerator[bytes]
) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            for line in chunk.splitlines():
                _check(name, schema, line)
            yield chunk


def _fits(template: str, path: str) -> bool:
    parts, given = template.split("/"), path.split("/")
    return len(parts) == len(given) and all(
        part == value or (part.startswith("{") and value)
        for part, value in zip(parts, given, strict=True)
    )


def _said(request: ApiRequest, answer: ApiResponse) -> str:
    return f"{request.method} {request.path}: {answer.status} {answer.body[:300]!r}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(openapi.text(made_document()), "utf-8")
