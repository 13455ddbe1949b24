"""The whole document, and its text."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from netsonde import wire
from netsonde.server.api import PROTOCOL, Route
from netsonde.server.openapi import shared
from netsonde.server.openapi.calls import AGENT, OPERATOR, agent_calls, operator_calls
from netsonde.server.openapi.operations import operation
from netsonde.server.openapi.schemas import Types


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the document of the agent API and of the operator API with these routes."""
    calls = [*agent_calls(), *operator_calls(routes)]
    types = Types(calls)
    paths: dict[str, dict[str, Any]] = {}
    responses: dict[str, Any] = {}
    for call in calls:
        described = operation(call, types, responses)
        paths.setdefault(call.path, {})[call.method.lower()] = described
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "netsonde control plane",
            "version": PROTOCOL,
            "summary": "What agents and operators say to a control plane.",
            "description": shared.ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [shared.SERVERS[OPERATOR], shared.SERVERS[AGENT]],
        "tags": [{"name": name, "description": text} for name, text in shared.TAGS.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": shared.SECURITY,
            "headers": shared.HEADERS,
            "responses": dict(sorted(responses.items())),
            "schemas": dict(sorted(types.components.items())),
        },
    }
    plain: dict[str, Any] = json.loads(wire.encode(made))  # no tuples, no enums: as it is read
    return plain


def text(made: Mapping[str, Any]) -> str:
    """Write a document for people and for diffs."""
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"
