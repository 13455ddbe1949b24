"""What a call takes and gives, said beside its route: the API's document is made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Meta

from netsonde.errors import ErrorCode
from netsonde.model import MINTED_ID_MAX, TaskKind

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a query string, or one header."""

    name: str
    schema: Mapping[str, Any]
    text: str
    where: str = "query"
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class About:
    """What a call takes and gives.

    `takes` and `answer` are the types of the bodies, None where there is none; `also` are other
    statuses of success. `takes_line` and `answer_line` are the types of single lines where a body
    may be a stream of NDJSON. `refuses` are codes beyond those that every call of its listener may
    be answered with.
    """

    summary: str
    answer: Any = None
    takes: Any = None
    status: int = 200
    also: Mapping[int, Any] = field(default_factory=dict)
    query: Sequence[Parameter] = ()
    headers: Sequence[Parameter] = ()
    refuses: Sequence[ErrorCode] = ()
    takes_line: Any = None
    answer_line: Any = None
    text: str = ""
    media_type: str = JSON_TYPE
    is_body_optional: bool = False


def within(low: int, high: int) -> Meta:
    """Say what is allowed of a number that a handler checks itself, in words of its own."""
    return Meta(extra_json_schema={"minimum": low, "maximum": high})


def sized(low: int, high: int) -> Meta:
    """Say how long a text may be that a handler checks itself."""
    return Meta(extra_json_schema={"minLength": low, "maxLength": high})


def counted(low: int, high: int) -> Meta:
    """Say how many entries a list may have that a handler counts itself."""
    return Meta(extra_json_schema={"minItems": low, "maxItems": high})


def words(values: Sequence[str]) -> Meta:
    """Say which words are allowed of a text that a handler looks up itself."""
    return Meta(extra_json_schema={"enum": [*values]})


def labelled(most: int, most_chars: int) -> Meta:
    """Say how many labels there may be, and how long they may be."""
    return Meta(
        extra_json_schema={
            "maxProperties": most,
            "propertyNames": {"minLength": 1, "maxLength": most_chars},
            "additionalProperties": {"type": "string", "maxLength": most_chars},
        }
    )


# ── parameters of queries ──


def number(name: str, low: int, high: int, text: str) -> Parameter:
    """A whole number."""
    return Parameter(
        name=name, text=text, schema={"type": "integer", "minimum": low, "maximum": high}
    )


def choice(name: str, values: Sequence[str], text: str) -> Parameter:
    """One of a few words."""
    return Parameter(name=name, text=text, schema={"type": "string", "enum": [*values]})


def words_of(name: str, low: int, high: int, text: str) -> Parameter:
    """A text."""
    schema = {"type": "string", "minLength": low, "maxLength": high}
    return Parameter(name=name, text=text, schema=schema)


def instant(name: str, text: str) -> Parameter:
    """An instant."""
    schema = {"type": "string", "format": "date-time"}
    return Parameter(name=name, text=f"{text} RFC 3339.", schema=schema)


LIMIT = number("limit", 1, LIMIT_MAX, f"How many are answered at most; {LIMIT_DEFAULT} unless told")
CURSOR = Parameter(
    name="cursor",
    schema={"type": "string", "minLength": 1},
    text="Where to go on: what the page before answered.",
)
PAGE = (LIMIT, CURSOR)
AGENT = Parameter(
    name="agent", schema={"type": "string", "minLength": 1}, text="An agent's id or hostname."
)
KIND = choice("kind", [*TaskKind], "A kind of measurement.")
CHECK_ID = number("check_id", 1, MINTED_ID_MAX, "A check's id.")
TASK_ID = number("task_id", 1, MINTED_ID_MAX, "A task's id.")
