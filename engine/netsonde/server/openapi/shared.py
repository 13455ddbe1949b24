"""What the document says once, of all calls: servers, tags, who may ask, headers."""

from collections.abc import Mapping
from typing import Any

from netsonde.server.about import Parameter
from netsonde.server.agent_calls import PREFIXES
from netsonde.server.api import PROTOCOL
from netsonde.server.idempotency import KEY_MAX_CHARS
from netsonde.server.openapi.calls import AGENT, OPERATOR

ABOUT = (
    "Two APIs on two listeners: agents speak to one, people and their programs to the other;"
    " each operation's tags, servers and x-listener say which one it is on. The agent API's calls"
    f" are also answered under the prefixes {', '.join(repr(one) for one in PREFIXES[1:])}"
    " instead of /v1/agents. Agents and control planes ignore fields that they do not know; the"
    " operator API refuses them. Streams are application/x-ndjson: `x-line` is the schema of"
    " one line. docs/control-plane-api.md says in words what this document cannot."
)
SERVERS: Mapping[str, Mapping[str, Any]] = {
    AGENT: {"url": "http://127.0.0.1:8080", "description": "the agents' listener, `listen`"},
    OPERATOR: {
        "url": "http://127.0.0.1:8090",
        "description": "the operators' listener, `operator_listen`",
    },
}
TAGS: Mapping[str, str] = {
    AGENT: "What measurement hosts say, on the agents' listener.",
    OPERATOR: "What people and their programs say, on the operators' listener.",
}
SECURITY: Mapping[str, Any] = {
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
HEADERS: Mapping[str, Any] = {
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
EVERY_ANSWER = ("X-Request-Id", "Netsonde-Protocol")
IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    where="header",
    schema={"type": "string", "minLength": 1, "maxLength": KEY_MAX_CHARS},
    text="For 24 h the same request under the same key is done once, and answered alike.",
)
PROTOCOL_HEADER = Parameter(
    name="Netsonde-Protocol",
    where="header",
    schema={"type": "string", "example": PROTOCOL},
    text="Says that the agent speaks this version; without it, it is an original one.",
)
