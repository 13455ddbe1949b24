"""The OpenAPI 3.1 document of both APIs, made of their routes and of the types they name."""

from netsonde.server.openapi.calls import AGENT, HEALTH, OPERATOR
from netsonde.server.openapi.document import document, text
from netsonde.server.openapi.schemas import SCHEMAS

__all__ = ["AGENT", "HEALTH", "OPERATOR", "SCHEMAS", "document", "text"]
