"""The calls that the document describes, and what each may be refused with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netsonde.errors import ErrorCode
from netsonde.server.about import About
from netsonde.server.agent_calls import AGENT_CALLS, LIVEZ, PREFIXES, READYZ
from netsonde.server.api import Route
from netsonde.server.scopes import Scope

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
