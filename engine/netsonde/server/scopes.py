"""What an operator may do, and on whose behalf a call is made."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a token allows; append-only (docs/control-plane-api.md). None implies another."""

    READ = "read"
    CHECKS_WRITE = "checks:write"
    AGENTS_WRITE = "agents:write"
    ENROL_WRITE = "enrol:write"
    CONFIGS_WRITE = "configs:write"
    TOKENS_WRITE = "tokens:write"


EVERYTHING = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a named token, or, with no id, who holds the server's file or its host."""

    name: str
    scopes: frozenset[Scope]
    token_id: int | None = None


TOKEN_FILE = Principal("operator-token-file", EVERYTHING)
LOOPBACK = Principal("loopback", EVERYTHING)
RESERVED_NAMES = frozenset({TOKEN_FILE.name, LOOPBACK.name})
