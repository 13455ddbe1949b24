"""The operator API's query strings: strict, and cursors that only we can read."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from netsonde import wire
from netsonde.clock import NS_PER_S
from netsonde.model import MINTED_ID_MAX, TaskKind
from netsonde.server.about import LIMIT_DEFAULT, LIMIT_MAX
from netsonde.server.api import refuse
from netsonde.server.config import CLAIM_WAIT_MAX_MS
from netsonde.server.registry import AgentRegistry
from netsonde.server.store.results import ResultQuery

OUTCOME_MAX_CHARS = 64
INSTANT_MAX_NS = 2**62  # the year 2116; an integer column holds no more than twice that
POSITION_DIGITS_MAX = 16  # 2^53 has 16
LISTING_CURSOR = "c1:"
RESULT_CURSOR = "r1:"  # of results, as pages and as a stream
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Query:
    """A query string of which every parameter must be taken."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._values: dict[str, str] = {}
        for name, value in pairs:
            if name in self._values:
                refuse(name[:50], f"{name[:50]} is given twice")
            self._values[name] = value

    def take(self, name: str) -> str | None:
        """Return a parameter's value, None when it is absent."""
        return self._values.pop(name, None)

    def number(self, name: str, low: int, high: int) -> int | None:
        """Return a parameter as a whole number from low to high."""
        text = self.take(name)
        if text is None:
            return None
        is_number = text.isascii() and text.isdecimal() and len(text) <= 20
        if not is_number or not low <= int(text) <= high:
            refuse(name, f"{name} must be a whole number from {low} to {high}, not {text[:50]!r}")
        return int(text)

    def choice(self, name: str, allowed: Sequence[str]) -> str | None:
        """Return a parameter that is one of a few words."""
        text = self.take(name)
        if text is not None and text not in allowed:
            refuse(name, f"{name} must be one of {', '.join(allowed)}, not {text[:50]!r}")
        return text

    def instant_ns(self, name: str) -> int | None:
        """Return a parameter that is an RFC 3339 instant."""
        return instant_of(name, self.take(name))

    def limit(self) -> int:
        """Return the page size."""
        return self.number("limit", 1, LIMIT_MAX) or LIMIT_DEFAULT

    def end(self) -> None:
        """Refuse whatever was not taken."""
        for name in self._values:
            refuse(name[:50], f"there is no parameter {name[:50]}")


def results_query(
    pairs: Sequence[tuple[str, str]], registry: AgentRegistry
) -> tuple[ResultQuery, int]:
    """Read which results are wanted, and how long to wait for the first.

    Raises:
        RequestError: naming the parameter and what is allowed.
    """
    query = Query(pairs)
    limit, order = query.limit(), query.choice("order", ("asc", "desc"))
    wanted = replace(_filters(query, registry), limit=limit, descending=order == "desc")
    wait_ms = query.number("wait_ms", 0, CLAIM_WAIT_MAX_MS) or 0
    query.end()
    return wanted, wait_ms


def feed_query(
    pairs: Sequence[tuple[str, str]], registry: AgentRegistry
) -> tuple[ResultQuery, int]:
    """Read which results are wanted as a stream, and how long it lasts at most.

    Raises:
        RequestError: naming the parameter and what is allowed.
    """
    query = Query(pairs)
    wanted = _filters(query, registry)
    wait_ms = query.number("wait_ms", 0, wire.STREAM_MAX_MS)
    query.end()
    return wanted, wire.STREAM_MAX_MS if wait_ms is None else wait_ms


def _filters(query: Query, registry: AgentRegistry) -> ResultQuery:
    kind = query.choice("kind", [kind.value for kind in TaskKind])
    outcome = query.take("outcome")
    if outcome is not None and not 0 < len(outcome) <= OUTCOME_MAX_CHARS:
        refuse("outcome", f"outcome must have 1 to {OUTCOME_MAX_CHARS} characters")
    return ResultQuery(
        limit=LIMIT_DEFAULT,
        position=decode_cursor(query.take("cursor"), RESULT_CURSOR),
        check_id=query.number("check_id", 1, MINTED_ID_MAX),
        agent_id=agent_id_of(query.take("agent"), registry),
        task_id=query.number("task_id", 1, MINTED_ID_MAX),
        kind=None if kind is None else TaskKind(kind),
        outcome=outcome,
        from_ns=query.instant_ns("from"),
        to_ns=query.instant_ns("to"),
        final_only=query.choice("final", ("true", "any")) != "any",
    )


def instant_of(name: str, text: str | None) -> int | None:
    """Read an RFC 3339 instant; None for none.

    Raises:
        RequestError: ERR_VALIDATION, naming the field.
    """
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
        since = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        refuse(name, f"{name} must be an RFC 3339 instant, not {text[:50]!r}")
    instant_ns = (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1_000
    return min(max(instant_ns, 0), INSTANT_MAX_NS)


def agent_id_of(name: str | None, registry: AgentRegistry) -> int | None:
    """Return the id of the one agent that an id or a hostname names; None for none.

    Raises:
        RequestError: ERR_VALIDATION, there is none or more than one.
    """
    if name is None:
        return None
    found = registry.find(name)
    if len(found) != 1:
        refuse("agent", f"{len(found)} agents are named {name[:100]!r}, one is needed")
    return found[0]


def encode_cursor(position: int, mark: str = LISTING_CURSOR) -> str:
    """Return the text that stands for a position in a listing."""
    return base64.urlsafe_b64encode(f"{mark}{position}".encode()).decode().rstrip("=")


def decode_cursor(text: str | None, mark: str = LISTING_CURSOR) -> int | None:
    """Return the position that a cursor stands for; None for none.

    Raises:
        RequestError: ERR_VALIDATION, it is none of ours, or of another listing.
    """
    if text is None:
        return None
    plain = _plain(text)
    position = plain.removeprefix(mark)
    is_number = position.isdecimal() and len(position) <= POSITION_DIGITS_MAX
    if plain == position or not is_number or int(position) > MINTED_ID_MAX:
        refuse("cursor", "cursor must be one that this call answered")
    return int(position)


def _plain(text: str) -> str:
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        return ""
